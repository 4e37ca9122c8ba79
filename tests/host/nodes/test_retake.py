"""Segments of a finished clip made again: what they see, and that nothing else changes."""

import logging

import pytest
import torch
from segment_sampling import advanced
from swifti2v.nodes.pipeline import stage_two as redrawing
from swifti2v.swifti2v_core.stage_two import drift_control

FRAMES = {0: [1, 2, 3], 1: [4, 5, 6], 2: [7]}
"""Latent frames of the three segments of ``z_ref``."""


@pytest.fixture(params=["concat", "plain"])
def model(request, stage_one, stage_two):
    return stage_two if request.param == "concat" else stage_one


@pytest.fixture
def sample(run, model, z_ref):
    """The simple sampler; plain weights start from the noised reference."""

    def node(**options):
        inputs = {"model": model, "z_ref": z_ref, "seed": 3, "steps": 2, "denoise": 0.5, **options}
        return run("SwiftI2V_SegmentSampler", **inputs)[0]["samples"]

    return node


@pytest.fixture
def seen(monkeypatch):
    """Positions, window, noise, mask and reference channels of every sampling."""
    windows, aim, sampling = [], redrawing.aim_guider, redrawing.sample

    def spy_aim(clone, guider, view, concat):
        windows.append({"positions": view.positions, "clean": view.clean, "concat": concat})
        return aim(clone, guider, view, concat)

    def spy_sample(guider, noise, window, *args, **kwargs):
        windows[-1] |= {"window": window.clone(), "mask": kwargs["mask"], "noise": noise.clone()}
        return sampling(guider, noise, window, *args, **kwargs)

    monkeypatch.setattr(redrawing, "aim_guider", spy_aim)
    monkeypatch.setattr(redrawing, "sample", spy_sample)
    return windows


def without(clip, segments):
    """The latent frames of a clip that are in none of some segments."""
    made = [frame for segment in segments for frame in FRAMES[segment]]
    return clip[:, :, [frame for frame in range(8) if frame not in made]]


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_it_sees_the_finished_frames_on_both_sides(sample, model, z_ref, seen, context):
    finished = sample(context=context)
    before, reference = finished.clone(), z_ref["samples"].clone()
    seen.clear()
    again = sample(context=context, seed=4, latent={"samples": finished}, retake="1")
    (window,) = seen
    assert window["positions"] == (0, 3, 7, 4, 5, 6) and window["clean"] == 3
    assert torch.equal(window["window"][:, :, :3], before[:, :, [0, 3, 7]])
    assert torch.equal(window["window"][:, :, 3:], reference[:, :, 4:7])  # not the old take
    assert window["mask"][0, 0, :, 0, 0].tolist() == [0, 0, 0, 1, 1, 1]
    if model.get_model_object("diffusion_model").in_dim == 96:
        assert torch.equal(window["concat"], window["window"])
    else:
        assert window["concat"] is None
    assert torch.equal(without(again, [1]), without(before, [1]))
    for frame in FRAMES[1]:
        assert (again - before)[:, :, frame].abs().mean() > 1e-3
    assert torch.equal(finished, before) and torch.equal(z_ref["samples"], reference)


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_the_frame_after_changes_what_is_made(sample, context):
    """With the same seed only that frame is new: the take changes with it, and the last one cannot."""
    clip = {"samples": sample(context=context)}
    same = sample(context=context, latent=clip, retake="0, 2")
    assert torch.equal(without(same, [0]), without(clip["samples"], [0]))
    assert (same - clip["samples"])[:, :, 1:4].abs().max() > 1e-3
    other = {"samples": clip["samples"].clone()}
    other["samples"][:, :, 4] = -other["samples"][:, :, 4]
    assert (sample(context=context, latent=other, retake="0") - same)[:, :, 1:4].abs().max() > 1e-3


def test_all_with_the_same_seed_are_the_run_itself(sample, monkeypatch):
    monkeypatch.setattr(drift_control, "TOLERANCE", 0.0)  # drift control corrects everything
    clip = sample(drift_control=0.7)
    assert torch.equal(sample(drift_control=0.7, latent={"samples": clip}, retake="2 1 0"), clip)


def test_one_after_another(sample):
    clip = sample()
    for number in (1, 0, 2):
        again = sample(seed=5 + number, latent={"samples": clip}, retake=str(number))
        assert torch.equal(without(again, [number]), without(clip, [number]))
        assert (again - clip)[:, :, FRAMES[number]].abs().mean() > 1e-3
        clip = again


def test_neighboring_segments_are_made_in_order(sample, seen):
    clip = sample(neighbors=2)
    seen.clear()
    again = sample(neighbors=2, seed=4, latent={"samples": clip}, retake="0, 1")
    assert [window["positions"] for window in seen] == [(0, 7, 1, 2, 3), (0, 2, 3, 7, 4, 5, 6)]
    assert torch.equal(seen[1]["window"][:, :, 1:3], again[:, :, 2:4])
    assert torch.equal(without(again, [0, 1]), without(clip, [0, 1]))


def test_drift_is_measured_in_the_finished_clip(sample, z_ref, make_latent, monkeypatch):
    """Later segments get the offset of the old first segment, which the kept ones were matched to."""
    monkeypatch.setattr(drift_control, "TOLERANCE", 0.0)
    monkeypatch.setattr(drift_control, "MAX_GAIN", 1e3)  # random areas are no photo to a tiny model
    areas = make_latent(8, 2, 3)["samples"].repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)
    given = {"z_ref": {"samples": areas}, "drift_control": 1.0}
    clip = sample(**given)
    again = sample(**given, seed=4, latent={"samples": clip}, retake="0, 1")

    def offset(frames, made):
        return drift_control.measure_offset(made[:, :, frames], areas[:, :, frames])

    old, new = (offset(FRAMES[0], made).mean() for made in (clip, again))
    later = offset(FRAMES[1], again)
    assert (later.brightness - old.brightness).abs().max() <= 1e-4
    assert (later.contrast - old.contrast).abs().max() <= 1e-4
    assert (new.brightness - old.brightness).abs().max() > 1e-3


def test_a_noise_mask_keeps_its_part(sample, z_ref):
    clip = sample()
    mask = torch.ones(1, 1, 8, 6, 8)
    mask[..., :4] = 0
    again = sample(z_ref={**z_ref, "noise_mask": mask}, seed=4, latent={"samples": clip}, retake="1")
    assert torch.equal(again[:, :, 4:7, :, :4], z_ref["samples"][:, :, 4:7, :, :4])
    assert (again - clip)[:, :, 4:7, :, 4:].abs().mean() > 1e-3
    assert torch.equal(without(again, [1]), without(clip, [1]))


def test_keyframes_stay_in_its_window(sample, seen):
    still = torch.randn(1, 48, 1, 6, 8, generator=torch.Generator().manual_seed(9))
    stills = {"samples": still, "swifti2v_keyframe_times": [5]}
    clip = sample(keyframes=stills)
    seen.clear()
    again = sample(keyframes=stills, seed=4, latent={"samples": clip}, retake="1")
    (window,) = seen
    assert window["positions"] == (0, 5, 3, 7, 4, 5, 6)
    assert torch.equal(window["window"][:, :, 1:2], still)
    assert torch.equal(window["window"][:, :, 2:4], clip[:, :, [3, 7]])
    assert torch.equal(without(again, [1]), without(clip, [1]))


def test_every_clip_of_a_batch_is_retaken(sample, make_latent):
    batch = make_latent(8, batch=2)["samples"]
    clips = sample(z_ref={"samples": batch})
    both = sample(z_ref={"samples": batch}, seed=4, latent={"samples": clips}, retake="1")
    assert torch.equal(without(both, [1]), without(clips, [1]))
    for place in (0, 1):
        part = slice(place, place + 1)
        one = {"z_ref": {"samples": batch[part]}, "latent": {"samples": clips[part]}}
        assert (sample(**one, seed=4 + place, retake="1") - both[part]).abs().max() <= 1e-5


def test_the_bar_counts_the_chosen_segments(sample, monkeypatch, caplog):
    import comfy.utils

    clip, values = sample(), []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: values.append(args[:2]))
    with caplog.at_level(logging.INFO, logger="SwiftI2V"):
        sample(latent={"samples": clip}, retake="2, 0")
    shown = [value for value, _ in values]  # ComfyUI leaves out some that follow one another fast
    assert shown == sorted(shown) and shown[-1] == 4 and {total for _, total in values} == {4}
    said = "Retake: segment 0 (video frames 1 to 12), segment 2 (video frames 25 to 28)"
    assert said in caplog.messages


def test_the_simple_node_is_the_advanced_one(run, stage_two, text, z_ref):
    options = {"latent": {"samples": advanced(run, stage_two, text, z_ref)}, "retake": "1", "seed": 4}
    ours = run(
        "SwiftI2V_SegmentSampler",
        model=stage_two,
        z_ref=z_ref,
        positive=text[0],
        negative=text[1],
        drift_control=0.0,
        **options,
    )[0]["samples"]
    assert torch.equal(ours, advanced(run, stage_two, text, z_ref, **options))


def test_a_latent_without_retake_is_mentioned(sample, caplog):
    plain = sample()
    with caplog.at_level(logging.WARNING, logger="SwiftI2V"):
        assert torch.equal(sample(latent={"samples": plain + 1}), plain)
    assert "latent is connected, but retake is empty, so all segments are made." in caplog.messages
