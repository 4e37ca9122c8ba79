"""The report on Stage II gives the same with ComfyUI's nodes as with the networks that are trained."""

import argparse
import json
from pathlib import Path

import comfy.sample
import pytest
import torch

import nodes as host_nodes
from benchmarks.quality import stage_two_report as report
from benchmarks.quality.tiny_comfyui import Bench
from swifti2v_core.stage_two.segments import plan_segments
from swifti2v_train.data.stage_transition import encode_reference
from swifti2v_train.evaluation.figures import gap_figures
from swifti2v_train.networks.autoencoder import load_autoencoder
from swifti2v_train.networks.native_keys import load_native
from swifti2v_train.networks.sampling import generate_segments
from swifti2v_train.networks.window_transformer import network_from

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
WIDTH, FRAMES = 128, 29


@pytest.fixture(scope="module")
def bench(pack, stage_one, stage_two, vae):
    return Bench({**host_nodes.NODE_CLASS_MAPPINGS, **pack.nodes}, stage_one, stage_two, vae)


@pytest.fixture(scope="module")
def task(bench, photo):
    clip = report.drawn_clip([photo, photo.flip(2)], 3, WIDTH, FRAMES)
    return report.prepare(bench, clip, softened=True)


def test_references_are_the_same(bench, task):
    autoencoder = load_autoencoder(TINY / "tiny_vae48.safetensors")
    ours = encode_reference(autoencoder, task.truth[:1], task.motion, WIDTH, WIDTH // 2)
    theirs = bench.stage_two.model.process_latent_in(task.z_ref["samples"])
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


def test_rollouts_are_the_same(bench, task):
    """The segment sampler without drift control, and the training's own sampling from the same noise."""
    theirs = report.sampled(bench, task, 7, steps=2, drift_control=0.0)
    noise = comfy.sample.prepare_noise(task.z_ref["samples"], 7)
    reference = bench.stage_two.model.process_latent_in(task.z_ref["samples"])
    network = network_from(load_native(TINY / "tiny_stage2_detail.safetensors"))
    segments = plan_segments(8)
    ours = generate_segments(
        network, reference, reference, torch.zeros(1, 8, 4096), noise, segments, steps=2
    )
    made = bench.stage_two.model.process_latent_in(theirs["samples"])
    assert (ours - made).norm() / made.norm() < 2e-2
    truth = bench.stage_two.model.process_latent_in(task.z_truth["samples"])
    gap = gap_figures(ours, reference, truth, segments)
    assert report.gap_of(bench, task, theirs)["gap closed"] == pytest.approx(gap["gap closed"], abs=5e-3)


def test_weights_trained_in_another_way_are_sampled_as_they_were_trained(bench, task, tmp_path):
    file = tmp_path / "other.safetensors"
    file.symlink_to(TINY / "tiny_stage2_detail.safetensors")
    made = {}
    for name in report.TRAINED:
        variant = report.trained_variant(bench, *report.trained_file(f"{name}={file}"))
        made[name] = variant(bench, task, 1)["samples"]
    usual = report.VARIANTS["CSG, 4 steps"](bench, task, 1)["samples"]
    assert torch.equal(made["no rollout"], usual)
    assert torch.equal(made["no stage-transition"], usual)
    for name in ("read-only", "no anchor", "no neighbor"):
        found = made[name]
        assert torch.allclose(found[:, :, 0], usual[:, :, 0], atol=1e-5)
        assert (found - usual)[:, :, -1].abs().mean() > 1e-3
    with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=FILE"):
        report.trained_file(f"anchor={file}")


def test_what_is_known_is_not_measured_again(bench, tmp_path, monkeypatch):
    words = ["--comfyui", "x", "--raw", str(tmp_path / "rows.jsonl"), "--width", str(WIDTH)]
    words += ["--clips", "1", "--frames", "5", "--seeds", "1"]
    file = TINY / "tiny_stage2_detail.safetensors"
    words += ["--trained", f"no rollout={file}", "--sheets", str(tmp_path)]
    options = report.parser().parse_args(words)
    report.run(bench, options)
    rows = report.read_rows(options.raw)
    assert [row["variant"] for row in rows[:3]] == [report.CEILING, report.PLAIN, report.REFERENCE]
    assert [row["variant"] for row in rows[3:]] == [*report.CSG, "trained: no rollout"]
    assert [row["seed"] for row in rows] == [None] * 3 + [1] * 4
    monkeypatch.setattr(report, "prepare", None)
    report.run(bench, options)
    assert json.dumps(report.read_rows(options.raw)) == json.dumps(rows)  # NaN is not equal to itself
