"""Runs that stop and resume, in the real ComfyUI: the same bits, or a separate run."""

import logging
import os
import shutil
import time
from pathlib import Path

import comfy.model_management
import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import folder_paths
import pytest
import torch
from patched_models import lora, with_option, with_other_weight
from safetensors.torch import load_file, save_file
from swifti2v.nodes.comfyui import model_files, model_identity, model_weights, models, progress
from swifti2v.swifti2v_core.resume import saved_segments

SEGMENTS = 3  # of 8 latent frames with M = 3


@pytest.fixture(autouse=True)
def folder(workspace):
    """An empty folder of checkpoints."""
    path = Path(folder_paths.get_output_directory()) / "swifti2v_checkpoints"
    shutil.rmtree(path, ignore_errors=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "SwiftI2V")

    def take():
        lines = [record.getMessage() for record in caplog.records if "Checkpoint" in record.getMessage()]
        caplog.clear()
        return lines

    return take


@pytest.fixture
def cancelled(monkeypatch):
    """Run a function and cancel it at a progress report, counted from 1, as the button does."""

    def run_until(number, function, **inputs):
        reports, show = [], progress.SamplingProgress._show

        def cancelling(bar, *args):
            reports.append(args)
            if len(reports) == number:
                comfy.model_management.interrupt_current_processing()
            show(bar, *args)

        with monkeypatch.context() as patched:
            patched.setattr(progress.SamplingProgress, "_show", cancelling)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                function(**inputs)
        assert len(reports) == number

    return run_until


def reference(batch=1, seed=1):
    return {"samples": torch.randn(batch, 48, 8, 8, 12, generator=torch.Generator().manual_seed(seed))}


@pytest.fixture
def sample(run, stage_two):
    """Run the simple sampler."""

    def sampled(**inputs):
        given = {"model": stage_two, "z_ref": reference(), "seed": 3, "steps": 3, **inputs}
        return run("SwiftI2V_SegmentSampler", **given)[0]["samples"]

    return sampled


@pytest.fixture
def sample_advanced(run, stage_two):
    """Run the advanced sampler, with an ancestral sampler: its noise depends on seeds."""

    def sampled(
        model=stage_two, seed=3, sampler="euler_ancestral", sigmas=(1.0, 0.8, 0.5, 0.0), cfg=1.0, **inputs
    ):
        text = [[torch.zeros(1, 8, 4096), {}]]
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(inputs.pop("positive", text), text)
        guider.set_cfg(cfg)
        return run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=custom.Noise_RandomNoise(seed),
            guider=guider,
            sampler=comfy.samplers.sampler_object(sampler),
            sigmas=torch.tensor(sigmas),
            **{"z_ref": reference(), **inputs},
        )[0]["samples"]

    return sampled


def files(folder):
    return sorted(path.relative_to(folder).parts[2] for path in folder.rglob("*.safetensors"))


def test_a_checkpoint_changes_nothing(sample, folder):
    expected = sample()
    assert not folder.exists()
    assert torch.equal(sample(checkpoint="walk"), expected)
    assert files(folder) == [f"clip-0000-segment-0000{n}.safetensors" for n in range(SEGMENTS)]
    assert {path.parts[-3] for path in folder.rglob("*.safetensors")} == {"walk"}


@pytest.mark.parametrize(
    ("report", "finished"), [(1, 0), (3, 0), (4, 1), (5, 1), (7, 1), (8, 2), (11, 2), (12, 3)]
)
def test_a_cancelled_run_resumes_after_its_finished_segments(
    sample, cancelled, said, folder, report, finished
):
    """One report per step, and one when a segment is finished and saved."""
    expected = sample()
    cancelled(report, sample, checkpoint="walk")
    assert len(files(folder)) == finished
    said()
    assert torch.equal(sample(checkpoint="walk"), expected)
    assert said() == ([f'Checkpoint "walk": {finished} of 3 segments restored.'] if finished else [])


def test_a_finished_run_is_not_made_again(sample, monkeypatch):
    expected = sample(checkpoint="walk")

    def no_sampling(*_args, **_kwargs):
        raise AssertionError("the model ran")

    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample", no_sampling)
    assert torch.equal(sample(checkpoint="walk"), expected)


def test_delete_when_done(sample, folder):
    expected = sample()
    assert torch.equal(sample(checkpoint="walk", checkpoint_files="delete when done"), expected)
    assert list(folder.iterdir()) == []


def test_delete_when_done_keeps_what_is_not_done(sample_advanced, folder):
    cut = {"checkpoint": "walk", "checkpoint_files": "delete when done"}
    sample_advanced(end_segment=2, **cut)
    assert len(files(folder)) == 2
    assert torch.equal(sample_advanced(**cut), sample_advanced())
    assert files(folder) == []


def test_the_newest_runs_are_kept(sample, folder, said):
    """Those of other seeds are days old; the one that may still be running on another server is not."""
    for seed in range(4):
        sample(checkpoint="walk", seed=seed)
        (run,) = [path for path in (folder / "walk").iterdir() if path.stat().st_mtime > time.time() - 1e4]
        when = time.time() - (4 - seed) * 86400
        for path in [*run.iterdir(), run]:
            os.utime(path, (when, when))
    sample(checkpoint="walk", seed=4)
    said()
    expected = sample(seed=5)
    kept = {"checkpoint": "walk", "checkpoint_files": "keep newest 3 runs"}
    assert torch.equal(sample(seed=5, **kept), expected)
    assert said()[1:] == [
        'Checkpoint "walk" holds 5 other runs, 0.6 MB, the oldest 4 days old.',
        'Checkpoint "walk": the oldest 3 of 5 other runs are deleted (0.4 MB).',
    ]
    assert len(files(folder)) == 3 * SEGMENTS
    assert torch.equal(sample(seed=3, **kept), sample(seed=3))
    assert said()[0] == 'Checkpoint "walk": 3 of 3 segments restored.'


def test_a_second_run_hashes_no_weights(sample, cancelled, monkeypatch):
    expected = sample()
    cancelled(5, sample, checkpoint="walk")

    def no_hashing(*_args):
        raise AssertionError("the weights were read again")

    monkeypatch.setattr(model_weights, "fingerprint_tensors", no_hashing)
    assert torch.equal(sample(checkpoint="walk"), expected)


def test_a_batch_resumes_inside_its_second_clip(sample, cancelled, folder):
    two = {"z_ref": reference(batch=2)}
    expected = sample(**two)
    cancelled(18, sample, checkpoint="walk", **two)
    assert files(folder)[-1] == "clip-0001-segment-00000.safetensors"
    assert torch.equal(sample(checkpoint="walk", **two), expected)


def test_later_segments_of_a_started_latent(sample_advanced, folder):
    whole = sample_advanced()
    started = {"latent": {"samples": whole}, "start_segment": 1, "checkpoint": "walk"}
    assert torch.equal(sample_advanced(**started), whole)
    assert len(files(folder)) == 2
    # Other frames before it: another run.
    changed = whole.clone()
    changed[:, :, 3] += 1
    sample_advanced(**{**started, "latent": {"samples": changed}})
    assert len(files(folder)) == 4


DIFFERENT = {
    "prompts and guidance": [
        lambda model: {"cfg": 2.0},
        lambda model: {"positive": [[torch.ones(1, 8, 4096), {}]]},
        lambda model: {"positive": [[torch.zeros(1, 8, 4096), {"strength": 0.5}]]},
    ],
    "noise or seed": [lambda model: {"seed": 4}],
    "sampler": [lambda model: {"sampler": "euler"}],
    "sigmas": [lambda model: {"sigmas": (1.0, 0.8, 0.4, 0.0)}],
    "reference": [lambda model: {"z_ref": reference(seed=2)}],
    "segments": [
        lambda model: {"segment_frames": 4},
        lambda model: {"neighbors": 2},
        lambda model: {"context": "read-only"},
        lambda model: {"reference_strength": 0.5},
    ],
    "drift control": [lambda model: {"drift_control": 0.5}],
    "model patches": [
        lambda model: {"model": lora(model)},
        lambda model: {"model": with_other_weight(model)},
    ],
}


@pytest.mark.parametrize(
    ("word", "change"), [(word, change) for word, changes in DIFFERENT.items() for change in changes]
)
def test_another_run_starts_over_and_says_why(sample_advanced, stage_two, said, folder, word, change):
    sample_advanced(checkpoint="walk")
    said()
    inputs = change(stage_two)
    expected = sample_advanced(**inputs)
    assert torch.equal(sample_advanced(checkpoint="walk", **inputs), expected)
    why, others = said()
    assert f"differs in {word}" in why
    assert others.startswith('Checkpoint "walk" holds 1 other run, 0.1 MB, less than a minute old.')
    assert torch.equal(sample_advanced(checkpoint="walk"), sample_advanced())


def test_a_function_in_the_options_counts(sample_advanced, stage_two, said):
    sample_advanced(checkpoint="walk", cfg=2.0)
    said()
    sample_advanced(checkpoint="walk", cfg=2.0, model=with_option(stage_two))
    assert "differs in model patches, prompts and guidance;" in said()[0]


def test_other_weights_and_another_version_count(sample, stage_two, said, monkeypatch):
    sample(checkpoint="walk")
    said()
    weights = model_weights.model_weights(stage_two)
    name, weight = next(iter(weights.items()))
    changed = {**weights, name: weight.clone()}
    changed[name].view(-1)[-1] += 1e-3
    with monkeypatch.context() as patched:
        patched.setattr(model_weights, "model_weights", lambda *_: changed)
        sample(checkpoint="walk")
    assert "differs in model weights;" in said()[0]
    monkeypatch.setattr(model_identity, "comfyui_version", "9.9")
    sample(checkpoint="walk")
    assert "differs in versions and device;" in said()[0]


def test_quantized_weights_can_be_saved(sample, said):
    """ComfyUI's quantized layers list weights in their state that the module does not have."""
    import comfy.sd

    path = model_files.model_path("diffusion_models", "tiny_stage2_detail.safetensors")
    state = load_file(path)
    kind = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
    for key in [key for key in state if key.endswith("self_attn.q.weight")]:
        scale = state[key].float().abs().max() / 448
        state[key] = (state[key].float() / scale).to(torch.float8_e4m3fn)
        state[key.replace("weight", "weight_scale")] = scale
        state[key.replace("weight", "comfy_quant")] = kind
    with torch.inference_mode():
        model = models.with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)
    expected = sample(model=model)
    assert torch.equal(sample(model=model, checkpoint="walk"), expected)
    assert torch.equal(sample(model=model, checkpoint="walk"), expected)
    assert said() == ['Checkpoint "walk": 3 of 3 segments restored.']


def test_a_vae_inside_a_patch_counts_and_does_no_harm(sample, stage_two, vae, said):
    model = stage_two.clone()

    class Previews:
        def __init__(self):
            self.vae = vae

        def __call__(self, executor, *args, **kwargs):
            return executor(*args, **kwargs)

    from comfy.patcher_extension import WrappersMP

    model.add_wrapper(WrappersMP.DIFFUSION_MODEL, Previews())
    expected = sample(model=model, checkpoint="walk")
    said()
    assert torch.equal(sample(model=model, checkpoint="walk"), expected)
    assert said() == ['Checkpoint "walk": 3 of 3 segments restored.']


def test_a_damaged_segment_is_made_again(sample, folder, said):
    expected = sample(checkpoint="walk")
    path = next(folder.rglob("*segment-00001*"))
    path.write_bytes(path.read_bytes()[:-1])
    said()
    assert torch.equal(sample(checkpoint="walk"), expected)
    lines = said()
    assert "segment-00001.safetensors is ignored" in lines[0] and "1 of 3" in lines[1]


def test_segments_of_another_run_are_not_restored(sample, folder):
    """Segments that someone else's run left, renamed to fit, do not enter this one."""
    expected = sample()
    sample(checkpoint="walk", seed=99)
    (foreign,) = (folder / "walk").iterdir()
    sample(checkpoint="walk")
    (mine,) = set((folder / "walk").iterdir()) - {foreign}
    for path in foreign.iterdir():
        shutil.copy(path, mine / path.name)
    (mine / "clip-0000-segment-00009.safetensors").write_bytes(b"")
    save_file({"frames": torch.zeros(1, 48, 3, 8, 12)}, mine / "clip-0000-segment-00000.safetensors")
    assert torch.equal(sample(checkpoint="walk"), expected)


def test_a_full_disk_does_not_stop_the_run(sample, said, monkeypatch, folder):
    expected = sample()

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(saved_segments.os, "fsync", full)
        assert torch.equal(sample(checkpoint="walk"), expected)
    assert [line.count("not on disk yet (No space left on device)") for line in said()] == [1, 1, 1]
    assert files(folder) == [] and not list(folder.rglob("*.part"))
    assert torch.equal(sample(checkpoint="walk"), expected)


def test_a_retake_is_saved_separately_and_resumes(sample, cancelled, said, folder):
    clip = sample(checkpoint="walk")
    options = {"latent": {"samples": clip}, "retake": "0, 2", "seed": 4}
    expected = sample(**options)
    cancelled(5, sample, **options, checkpoint="walk")
    said()
    assert torch.equal(sample(**options, checkpoint="walk"), expected)
    assert any("1 of 2 segments restored" in line for line in said())
    assert files(folder) == [f"clip-0000-segment-0000{n}.safetensors" for n in (0, 0, 1, 2, 2)]
    options["latent"] = {"samples": clip + 0.01}  # another clip is another retake
    assert torch.equal(sample(**options, checkpoint="walk"), sample(**options))
    assert any("differs in reference" not in line and "the clip to retake" in line for line in said())
    assert torch.equal(sample(checkpoint="walk"), clip)
    assert any("3 of 3 segments restored" in line for line in said())


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"checkpoint": "../up"}, 'checkpoint is "../up", but must be a name'),
        ({"checkpoint": "walk", "checkpoint_files": "burn"}, 'checkpoint_files is "burn", but must be'),
    ],
)
def test_wrong_names_are_refused_before_a_model_loads(sample, monkeypatch, inputs, sentence):
    def no_loading(*_args, **_kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", no_loading)
    with pytest.raises(ValueError, match=sentence):
        sample(**inputs)


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_loads(sample, monkeypatch, folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", None)
    with pytest.raises(ValueError, match="cannot be written to"):
        sample(checkpoint="walk")
    folder.unlink()
