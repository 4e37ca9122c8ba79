"""The segment sampler at 2560x1408 on a fake GPU: devices, copies, waits and peaks."""

import pytest
import torch
from expectations import expect_sampling, expect_stored, expect_undisturbed_loops
from host_models import run, text, wan_model

CHANNELS = {"plain": 48, "concat": 96}
GIB = 2**30
ROW, COLUMN = 88, 160


def reference(frames, device="cpu", batch=1):
    return {"samples": torch.zeros(batch, 48, frames, ROW, COLUMN, device=device)}


def redraw(meter, kind, z_ref, blocks=1, steps=1, cfg=1.0, **inputs):
    """Run the segment sampler; the meter counts from here."""
    model = wan_model("TI2V-5B", CHANNELS[kind], blocks)
    meter.start()
    denoise = 0.5 if kind == "plain" else 1.0
    prompts = {"positive": text(), "negative": text()}
    inputs = {"seed": 1, "steps": steps, "cfg": cfg, "denoise": denoise, **prompts, **inputs}
    return run("SwiftI2V_SegmentSampler", model=model, z_ref=z_ref, **inputs)[0]["samples"]


@pytest.mark.parametrize(
    "kind, inputs, peak",
    [
        ("plain", {}, 1.5),
        ("plain", {"cfg": 5.0}, 2.8),
        ("concat", {"cfg": 5.0}, 2.9),
        ("concat", {"cfg": 5.0, "context": "read-only", "steps": 2}, 3.2),
        ("concat", {"reference_strength": 0.5}, 1.5),
        ("concat", {"reference_strength": 0.5, "context": "read-only", "steps": 2}, 1.84),
        ("concat", {"reference_strength": 0.0}, 1.5),
        ("concat", {"drift_control": 0.0}, 1.5),
    ],
)
def test_a_segment_costs_one_copy_and_disturbs_no_step(meter, kind, inputs, peak):
    latent = redraw(meter, kind, reference(8), **inputs)
    expect_sampling(meter, latent, (1, 48, 8, ROW, COLUMN), samplings=3)
    assert meter.peak / GIB == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize("frames, segments", [(21, 7), (61, 20)], ids=["81 frames", "241 frames"])
def test_memory_does_not_grow_with_the_length_of_the_clip(meter, frames, segments):
    latent = redraw(meter, "concat", reference(frames))
    expect_sampling(meter, latent, (1, 48, frames, ROW, COLUMN), samplings=segments)
    assert meter.peak / GIB == pytest.approx(1.5, rel=0.05)


def test_time_positions_of_a_long_clip_can_be_clamped(meter):
    latent = redraw(meter, "concat", reference(34), time_positions="clamped")
    expect_sampling(meter, latent, (1, 48, 34, ROW, COLUMN), samplings=11)


def test_keyframes_widen_the_window(meter):
    stills = {"samples": torch.zeros(1, 48, 1, ROW, COLUMN), "swifti2v_keyframe_times": [7]}
    latent = redraw(meter, "concat", reference(8), keyframes=stills)
    expect_sampling(meter, latent, (1, 48, 8, ROW, COLUMN), samplings=3)
    assert meter.peak / GIB == pytest.approx(1.8, rel=0.05)


def test_the_clips_of_a_batch_take_the_memory_of_one(meter):
    latent = redraw(meter, "concat", reference(5, batch=2))
    expect_sampling(meter, latent, (2, 48, 5, ROW, COLUMN), samplings=4)
    assert meter.peak / GIB == pytest.approx(1.5, rel=0.05)


def test_memory_beside_the_weights_hardly_depends_on_the_number_of_blocks(meter):
    latent = redraw(meter, "concat", reference(4), blocks=30, cfg=5.0)
    expect_sampling(meter, latent, (1, 48, 4, ROW, COLUMN), samplings=1)
    assert meter.peak / GIB == pytest.approx(2.26, rel=0.05)


def test_read_only_context_keeps_keys_and_values_of_every_block(meter):
    """Of two clean frames of 3520 tokens, in 3072 channels and half precision."""
    peaks = []
    for blocks in (1, 9):
        redraw(meter, "concat", reference(5), blocks=blocks, context="read-only", segment_frames=2, steps=2)
        peaks.append(meter.peak)
    assert peaks[1] - peaks[0] == pytest.approx(8 * 2 * 2 * 3520 * 3072 * 2, rel=0.02)


def test_results_stay_on_the_gpu_where_comfyui_keeps_them_there(gpu_only):
    latent = redraw(gpu_only, "concat", reference(8, "cuda"), cfg=5.0)
    expect_stored(latent, (1, 48, 8, ROW, COLUMN), "cuda")
    assert gpu_only.copied("cuda->cpu") == []
    expect_undisturbed_loops(gpu_only)


def test_a_reference_on_the_gpu_gives_a_result_on_the_cpu(meter):
    latent = redraw(meter, "concat", reference(8, "cuda"))
    expect_stored(latent, (1, 48, 8, ROW, COLUMN))
    expect_undisturbed_loops(meter)


def test_temporal_windows_let_one_sampling_hold_a_whole_clip(meter):
    from swifti2v.nodes.comfyui.sampling import cfg_guider, make_sampler

    model = run("SwiftI2V_TemporalWindows", model=wan_model("TI2V-5B", 48, 2), window_frames=6)[0]
    meter.start()
    latent = torch.zeros(1, 48, 21, ROW, COLUMN)
    sigmas = torch.tensor([0.6, 0.3, 0.0])
    guider = cfg_guider(model, text(), text(), 1.0)
    result = guider.sample(latent, latent, make_sampler("euler"), sigmas, disable_pbar=True)
    assert result.shape == latent.shape
    expect_undisturbed_loops(meter)
    assert meter.peak / GIB == pytest.approx(6.03, rel=0.05)
