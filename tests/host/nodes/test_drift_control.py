"""Finished segments brought back to the reference's statistics, inside the segment loop."""

import pytest
import torch
from swifti2v.nodes.pipeline import stage_two as redrawing
from swifti2v.swifti2v_core.stage_two import drift_control


def sampled(run, model, z_ref, **options):
    given = {"model": model, "z_ref": z_ref, "seed": 3, "steps": 2, **options}
    return run("SwiftI2V_SegmentSampler", **given)[0]["samples"]


@pytest.fixture(params=["concat", "plain"])
def model(request, stage_one, stage_two):
    return stage_two if request.param == "concat" else stage_one


def test_0_is_the_sampler_without_it(run, model, z_ref, monkeypatch):
    controlled = sampled(run, model, z_ref, denoise=0.5, drift_control=0.0)
    monkeypatch.setattr(redrawing, "match_statistics", lambda frames, reference, first, strength: frames)
    assert torch.equal(controlled, sampled(run, model, z_ref, denoise=0.5, drift_control=1.0))


def areas_of(make_latent, batch):
    """A reference with large areas, whose statistics a sampling changes."""
    areas = make_latent(8, 2, 3, batch=batch)["samples"]
    return {"samples": areas.repeat_interleave(4, dim=3).repeat_interleave(4, dim=4)}


@pytest.mark.parametrize("batch", [1, 2])
def test_1_leaves_later_segments_the_offset_of_the_first(run, model, make_latent, batch, monkeypatch):
    monkeypatch.setattr(drift_control, "MAX_GAIN", 1e3)  # random areas are no photo to a tiny model
    monkeypatch.setattr(drift_control, "TOLERANCE", 0.0)
    z_ref = areas_of(make_latent, batch)
    reference = z_ref["samples"]
    for strength, reached in ((0.0, False), (1.0, True)):
        result = sampled(run, model, z_ref, denoise=0.5, drift_control=strength)
        assert torch.equal(result[:, :, 0], reference[:, :, 0])
        first = drift_control.measure_offset(result[:, :, 1:4], reference[:, :, 1:4]).mean()
        later = drift_control.measure_offset(result[:, :, 4:], reference[:, :, 4:])
        for one, two in ((later.contrast, first.contrast), (later.brightness, first.brightness)):
            assert bool((one - two).abs().max() <= 1e-4) == reached
    assert (result - reference)[:, :, 1:].abs().mean() > 0.05  # but not the reference itself


def test_only_what_exceeds_the_tolerance_is_corrected(run, model, make_latent, monkeypatch):
    z_ref = areas_of(make_latent, 1)
    free = sampled(run, model, z_ref, denoise=0.5, drift_control=0.0)
    assert not torch.equal(sampled(run, model, z_ref, denoise=0.5, drift_control=1.0), free)
    monkeypatch.setattr(drift_control, "TOLERANCE", 1e6)
    assert torch.equal(sampled(run, model, z_ref, denoise=0.5, drift_control=1.0), free)


def test_later_segments_see_corrected_neighbors(run, stage_two, make_latent, monkeypatch):
    monkeypatch.setattr(drift_control, "TOLERANCE", 0.0)
    z_ref, windows, results, sample = make_latent(10), [], [], redrawing.sample

    def spy(guider, noise, window, *args, **kwargs):
        windows.append(window.clone())
        results.append(sample(guider, noise, window, *args, **kwargs))
        return results[-1]

    monkeypatch.setattr(redrawing, "sample", spy)
    result = sampled(run, stage_two, z_ref, drift_control=1.0)
    assert torch.equal(result[:, :, 1:4], results[0][:, :, 1:4])  # the first segment sets the measure
    assert torch.equal(windows[2][:, :, 1], result[:, :, 6])  # the neighbor of segment 2
    assert (windows[2][:, :, 1] - results[1][:, :, 4]).abs().max() > 1e-3  # was corrected
    # Half of the way is half of the correction, in the second segment.
    half = sampled(run, stage_two, z_ref, drift_control=0.5)
    expected = (results[1][:, :, 2:5] + result[:, :, 4:7]) / 2
    assert (half[:, :, 4:7] - expected).abs().max() <= 1e-5


def test_split_and_resumed_gives_the_same_bits(run, stage_two, z_ref, text):
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    guider = comfy.samplers.CFGGuider(stage_two)
    guider.set_conds(*text)

    def advanced(**options):
        return run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(3),
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor([1.0, 5 / 6, 0.0]),
            z_ref=z_ref,
            drift_control=0.7,
            **options,
        )[0]["samples"]

    whole, first = advanced(), advanced(end_segment=1)
    assert torch.equal(advanced(start_segment=1, latent={"samples": first}), whole)


@pytest.mark.parametrize(("strength", "nearest"), [(-0.5, 0), (1.5, 1)])
def test_a_strength_out_of_range_is_refused(run, stage_two, z_ref, strength, nearest):
    with pytest.raises(ValueError) as error:
        sampled(run, stage_two, z_ref, drift_control=strength)
    assert str(error.value) == (
        f"drift_control is {strength:g}, but must be from 0 to 1; the nearest valid value is {nearest}."
    )
