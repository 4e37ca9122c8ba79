"""The table of variants at tiny size: its figures are those of the metrics on the same clips."""

import argparse
import math
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import nodes as host_nodes

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

import variants_report as report

from swifti2v_train.evaluation.metrics import fidelity

WIDTH, HEIGHT, FRAMES = 128, 64, 17


@pytest.fixture(scope="module")
def bench(pack, stage_one, stage_two, vae):
    return report.Bench({**host_nodes.NODE_CLASS_MAPPINGS, **pack.nodes}, stage_one, stage_two, vae)


@pytest.fixture(scope="module")
def task(bench, photo):
    return report.prepare(bench, photo, WIDTH, FRAMES)


@pytest.fixture(scope="module")
def by_hand(run, photo, vae):
    """The reference and its sampling by nodes alone."""
    camera = {"pan_x": 0.08, "zoom": 1.15, "rotate": 2.0, "sway": 0.01, "seed": 1, "frames": FRAMES}
    motion = run("SwiftI2V_CameraMotion", image=photo, width=64, height=32, **camera)[0]
    truth = run("SwiftI2V_CameraMotion", image=photo, width=WIDTH, height=HEIGHT, **camera)[0]
    size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}
    z_ref = run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, **size)[0]
    return motion, truth, z_ref


def decoded(run, vae, latent):
    return run("SwiftI2V_TiledVAEDecode", samples=latent, vae=vae)[0].clamp(0, 1)


@pytest.mark.parametrize(
    ("variant", "options"),
    [("bidirectional", {"drift_control": 0.0}), ("drift control 0.25", {}), ("z_ref, decoded", None)],
)
def test_figures_are_those_of_the_metrics(
    pack, bench, task, run, stage_two, vae, by_hand, variant, options
):
    found, clip = report.measure(bench, task, report.VARIANTS[variant])
    values = dict(zip(report.COLUMNS, found, strict=True))
    _, truth, latent = by_hand
    if options is not None:
        latent = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=latent, seed=1, **options)[0]
    frames = decoded(run, vae, latent)
    assert torch.equal(task.truth, truth) and torch.equal(clip, frames)

    likeness = [likeness_of(*pair) for pair in zip(frames, truth, strict=True)]
    decibel, similarity = zip(*likeness[1:], strict=True)
    assert values["PSNR"] == pytest.approx(sum(decibel) / 16, rel=1e-5)
    assert values["PSNR end"] == pytest.approx(sum(decibel[-4:]) / 4, rel=1e-5)
    assert values["SSIM"] == pytest.approx(sum(similarity) / 16, rel=1e-5)
    sharp, true_sharp = ([sharpness(frame) for frame in part] for part in (frames, truth))
    assert values["Laplacian end"] == pytest.approx(sum(sharp[-4:]) / 4 / sharp[0], rel=1e-5)
    assert values["sharpness"] == pytest.approx(sum(sharp[-4:]) / sum(true_sharp[-4:]), rel=1e-5)
    assert math.isnan(values["pulse"]) and values["seam"] > 0  # 17 frames are less than two periods


def likeness_of(frame, truth):
    """PSNR and SSIM of two frames, PSNR by its definition."""
    error = (frame.double() - truth.double()).square().mean()
    return -10 * math.log10(error), fidelity(frame, truth).ssim


def sharpness(frame):
    luma = (frame.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[None, None]
    kernel = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    return float(torch.nn.functional.conv2d(luma, kernel).std())


def test_yardsticks_need_no_model(bench, task, by_hand):
    found, _ = report.measure(bench, task, report.VARIANTS["truth"])
    assert math.isinf(found[0]) and found[2] == 1 and found[5] == 1
    _, frames = report.measure(bench, task, report.VARIANTS["plain upscaling"])
    assert torch.equal(frames, report.resize(by_hand[0], WIDTH, HEIGHT))


@pytest.mark.parametrize("variant", ["anchor without detail", "no anchor"])
def test_another_anchor_reaches_windows_alone(bench, task, variant):
    before = task.z_ref["samples"].clone()
    made = report.VARIANTS[variant](bench, task)["samples"]
    usual = report.VARIANTS["bidirectional"](bench, task)["samples"]
    assert torch.equal(made[:, :, :1], before[:, :, :1]) and torch.equal(task.z_ref["samples"], before)
    assert (made - usual)[:, :, 1:].abs().mean() > 0.01


def test_a_whole_clip_in_one_window_is_one_segment(bench, task, run, stage_two):
    """The benchmark's own sampling is set up as the segment sampler's is."""
    segment = run(
        "SwiftI2V_SegmentSampler",
        model=stage_two, z_ref=task.z_ref, seed=1, drift_control=0.0, segment_frames=4,
    )[0]["samples"]  # fmt: skip
    whole = report.VARIANTS["full attention"](bench, task)["samples"]
    assert (segment - whole)[:, :, 1:].abs().max() < 1e-4
    windowed = report.full_length(bench, task, window_frames=2)["samples"]
    assert (windowed - whole)[:, :, 1:].abs().mean() > 0.01


def test_a_keyframe_moves_the_end_towards_the_truth(bench, task):
    psnr = {
        name: report.measure(bench, task, report.VARIANTS[name])[0][1]
        for name in ("bidirectional", "keyframe at the end")
    }
    assert psnr["keyframe at the end"] > psnr["bidirectional"]


def test_reshifting_is_measured_without_a_truth(bench, photo):
    size, figures = (64, 64), {}
    for name, options in report.RESHIFTING.items():
        figures[name], clip = report.measure_stage_one(bench, photo, size, 9, options)
        assert clip.shape == (9, 64, 64, 3) and len(figures[name]) == len(report.STAGE_ONE_COLUMNS)
    motions = {values[4] for values in figures.values()}
    assert len(motions) == 3 and all(motion > 0 for motion in motions)


def test_lengths_name_their_photos():
    assert report.Length.read("33") == (33, None) and report.Length.read("161:1") == (161, 1)
    with pytest.raises((ValueError, argparse.ArgumentTypeError)):
        report.Length.read("many")


def test_rows_table_and_sheets(bench, tmp_path):
    names = ["truth", "plain upscaling", "bidirectional", "drift control 0.5"]
    rows = report.run_length(bench, ["life"], WIDTH, 9, names, softened=True, sheets=tmp_path)
    lines = report.table(rows, report.COLUMNS).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == names
    cells = lines[4].strip("| ").split(" | ")[2:]
    for cell, value, decimals in zip(
        cells, rows[9, "bidirectional"][0], report.COLUMNS.values(), strict=True
    ):
        assert cell == f"{value:.{decimals}f}"
    best, worst = report.best_and_worst(rows, 9)
    assert rows[9, best][0][0] >= rows[9, worst][0][0] and {best, worst} == {*names[2:]}
    with Image.open(tmp_path / "life_9.png") as sheet:
        assert sheet.size == (5 * 240, 4 * (120 + 14))
    assert (tmp_path / "extremes_9.jpg").stat().st_size < 250_000
