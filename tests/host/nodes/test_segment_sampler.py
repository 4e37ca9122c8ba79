"""The segment sampler against ComfyUI's own sampling."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from segment_sampling import advanced, guider_of, noise_of
from swifti2v.nodes.comfyui import models, window_model
from swifti2v.nodes.pipeline import stage_two as redrawing
from swifti2v.swifti2v_core import sigmas
from swifti2v.swifti2v_core.stage_two import segments


@torch.inference_mode()
def host_sampling(model, text, z_ref, cfg, sampler, seed, sigmas):
    """The host's own sampling of the whole clip: photo by noise mask, reference by its own key."""
    samples = z_ref["samples"]
    if model.get_model_object("diffusion_model").in_dim == 96:
        text = [[[t, {**o, "concat_latent_image": samples}] for t, o in c] for c in text]
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[:, :, 0] = 0
    noise = noise_of(seed).generate_noise(z_ref)
    sampler = comfy.samplers.sampler_object(sampler)
    return guider_of(model, text, cfg).sample(noise, samples, sampler, sigmas, denoise_mask=mask, seed=seed)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("kind", ["concat", "plain"])
def test_one_segment_is_the_hosts_own_sampling(run, stage_two, stage_one, text, z_ref, kind, sampler, cfg):
    model = stage_two if kind == "concat" else stage_one
    sigmas = torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0] if kind == "concat" else [0.8, 0.6, 0.3, 0.0])
    ours = advanced(run, model, text, z_ref, cfg, sampler, sigmas=sigmas, segment_frames=7)
    theirs = host_sampling(model, text, z_ref, cfg, sampler, 3, sigmas)
    assert (ours - theirs)[:, :, 1:].abs().max() <= 1e-5
    assert ours.std() > 0.1  # something was made
    assert (ours - z_ref["samples"])[:, :, 1:].abs().mean() > 0.1


def test_the_simple_node_is_the_advanced_one_with_the_usual_sockets(run, stage_two, text, z_ref):
    simple = run(
        "SwiftI2V_SegmentSampler",
        model=stage_two,
        z_ref=z_ref,
        positive=text[0],
        negative=text[1],
        seed=3,
        cfg=3.0,
        drift_control=0.3,
        reference_strength=0.8,
    )[0]["samples"]
    same_options = {"cfg": 3.0, "drift_control": 0.3, "reference_strength": 0.8}
    assert torch.equal(simple, advanced(run, stage_two, text, z_ref, **same_options))


def test_unconnected_prompts_are_the_zeros_the_tiny_models_know(run, stage_two, z_ref):
    zeros = [[torch.zeros(1, 8, 4096), {}]]
    given = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, positive=zeros)[0]["samples"]
    assert torch.equal(given, run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref)[0]["samples"])


def test_the_steps_are_the_hosts_simple_schedule(pack, stage_two):
    flow = sigmas
    sampling = stage_two.get_model_object("model_sampling")
    for steps in (1, 4, 5, 8, 20):
        ours = flow.flow_sigmas(flow.even_timesteps(steps), 5.0)
        theirs = comfy.samplers.calculate_sigmas(sampling, "simple", steps)
        assert (ours - theirs).abs().max() < 1e-6
    half = comfy.samplers.KSampler(stage_two, 4, "cpu", "euler", "simple", denoise=0.5).sigmas
    assert (flow.flow_sigmas(flow.even_timesteps(4), 5.0, 0.5) - half).abs().max() < 1e-6


def test_anchor_is_bit_exact_and_neighbors_are_never_rewritten(
    pack, run, stage_two, text, z_ref, monkeypatch
):
    windows = []
    sample = redrawing.sample

    def spy(guider, noise, window, *args, **kwargs):
        windows.append((window.clone(), kwargs["mask"].clone()))
        return sample(guider, noise, window, *args, **kwargs)

    monkeypatch.setattr(redrawing, "sample", spy)
    result = advanced(run, stage_two, text, z_ref, segment_frames=2, neighbors=2)
    assert torch.equal(result[:, :, 0], z_ref["samples"][:, :, 0])
    plan = segments.plan_segments(8, 2, 2)
    assert len(windows) == len(plan) == 4
    for segment, (window, mask) in zip(plan, windows, strict=True):
        clean = list(segment.window[: segment.clean])
        assert torch.equal(window[:, :, : segment.clean], result[:, :, clean])
        noisy = list(segment.noisy)
        assert torch.equal(window[:, :, segment.clean :], z_ref["samples"][:, :, noisy])
        assert mask[0, 0, :, 0, 0].tolist() == [0.0] * segment.clean + [1.0] * len(noisy)


@pytest.mark.parametrize(
    ("choice", "last"), [("true", (0, 33, 34, 35, 36)), ("clamped", (0, 27, 28, 29, 30))]
)
def test_time_positions_reach_the_model(run, stage_two, text, make_latent, frequencies, choice, last):
    z_ref = make_latent(37, 2, 2)
    one_step = torch.tensor([1.0, 0.0])
    advanced(run, stage_two, text, z_ref, sigmas=one_step, time_positions=choice)
    assert len(frequencies) == 12
    _, freqs, network, _ = frequencies[-1]
    expected = torch.cat([network.rope_encode(1, 2, 2, t_start=p) for p in last], dim=1)
    assert torch.equal(freqs, expected)
    _, freqs, _, _ = frequencies[1]
    expected = torch.cat([network.rope_encode(1, 2, 2, t_start=p) for p in (0, 3, 4, 5, 6)], dim=1)
    assert torch.equal(freqs, expected)
    assert not torch.equal(freqs, network.rope_encode(5, 2, 2))


def test_positions_above_256_stay_apart_in_bfloat16(pack, stage_two):
    network = stage_two.model.diffusion_model
    x = torch.zeros(1, 96, 3, 2, 2, dtype=torch.bfloat16)
    freqs = window_model._frequencies(network, x, (257, 258, 259), {})
    expected = torch.cat(
        [network.rope_encode(1, 2, 2, t_start=p, dtype=torch.float64) for p in (257, 258, 259)], 1
    )
    assert (freqs - expected).abs().max() < 1e-3
    small = window_model._frequencies(network, x, (0, 1, 2), {})
    assert torch.equal(small, network.rope_encode(3, 2, 2, dtype=torch.bfloat16))  # the host's own


def test_split_and_resumed_gives_the_same_bits(run, stage_two, text, z_ref):
    whole = advanced(run, stage_two, text, z_ref, sampler="euler_ancestral")
    first = advanced(run, stage_two, text, z_ref, sampler="euler_ancestral", end_segment=1)
    assert torch.equal(first[:, :, 4:], z_ref["samples"][:, :, 4:])
    for begun in (first, whole):  # finished frames after the start are made again from z_ref
        rest = advanced(
            run,
            stage_two,
            text,
            z_ref,
            sampler="euler_ancestral",
            start_segment=1,
            latent={"samples": begun},
        )
        assert torch.equal(rest, whole)


def test_same_seed_same_bits_with_and_without_previews(run, stage_two, text, z_ref):
    import latent_preview

    plain = advanced(run, stage_two, text, z_ref)
    try:
        latent_preview.set_preview_method("latent2rgb")
        shown = advanced(run, stage_two, text, z_ref)
    finally:
        latent_preview.set_preview_method("none")
    assert torch.equal(plain, shown)
    assert not torch.equal(plain, advanced(run, stage_two, text, z_ref, seed=4))


def test_noise_belongs_to_the_latent_frame(pack, run, stage_two, text, z_ref, monkeypatch):
    drawn = []
    sample = redrawing.sample

    def spy(guider, noise, *args, **kwargs):
        drawn.append(noise)
        return sample(guider, noise, *args, **kwargs)

    monkeypatch.setattr(redrawing, "sample", spy)
    advanced(run, stage_two, text, z_ref)
    whole = noise_of(3).generate_noise(z_ref)
    assert torch.equal(drawn[1], whole[:, :, [0, 3, 4, 5, 6]])


def test_one_progress_bar_and_a_preview_of_the_frame_being_made(run, stage_two, text, z_ref, monkeypatch):
    import comfy.utils
    import latent_preview

    shown, values, pictures = [], [], []
    decode = latent_preview.Latent2RGBPreviewer.decode_latent_to_preview

    def spy(self, x0):
        shown.append(x0[0, :, 0].clone())
        return decode(self, x0)

    monkeypatch.setattr(latent_preview.Latent2RGBPreviewer, "decode_latent_to_preview", spy)

    def hook(value, total, preview, node_id=None):
        values.append((value, total))
        if preview:
            pictures.append(preview[1])

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    try:
        latent_preview.set_preview_method("latent2rgb")
        result = advanced(run, stage_two, text, z_ref)
    finally:
        latent_preview.set_preview_method("none")
    # 7 frames in 3 segments of 4 steps.
    assert {total for _, total in values} == {12}
    assert [value for value, _ in values] == sorted(value for value, _ in values)
    assert {value for value, _ in values} == set(range(1, 13))
    # The last preview of a segment is its first frame, finished.
    finished = stage_two.model.process_latent_in(result)
    for last, frame in ((3, 1), (7, 4), (11, 7)):
        assert (shown[last] - finished[0, :, frame]).abs().max() < 1e-5
    # Below it a timeline of the 8 latent frames, one pixel each: finished, being made, waiting.
    assert len(pictures) == 12
    for last, row in ((3, "fcccwwww"), (7, "ffffcccw"), (11, "fffffffc")):
        names = {(150, 150, 150): "f", (80, 170, 255): "c", (45, 45, 45): "w"}
        picture = pictures[last]
        assert picture.size == (8, 6 + 2)
        assert "".join(names[picture.getpixel((x, 7))] for x in range(8)) == row


def test_a_stock_lora_changes_the_result(run, stage_two, text, z_ref, workspace):
    from safetensors.torch import save_file

    import nodes as host_nodes

    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            "diffusion_model.blocks.0.self_attn.q.lora_down.weight": torch.randn(
                4, 256, generator=generator
            ),
            "diffusion_model.blocks.0.self_attn.q.lora_up.weight": torch.randn(256, 4, generator=generator),
        },
        workspace / "models" / "loras" / "test.safetensors",
    )
    plain = advanced(run, stage_two, text, z_ref)
    patched = host_nodes.LoraLoaderModelOnly().load_lora_model_only(stage_two, "test.safetensors", 0.5)[0]
    changed = advanced(run, patched, text, z_ref)
    assert (changed - plain).abs().max() > 1e-2
    ours = run(
        "SwiftI2V_LoadStageII",
        model_name="tiny_stage2_detail.safetensors",
        lora="test.safetensors",
        lora_strength=0.5,
        weight_dtype="default",
    )[0]
    assert torch.allclose(advanced(run, ours, text, z_ref), changed, atol=1e-5)
    assert torch.equal(advanced(run, stage_two, text, z_ref), plain)  # and it comes off again


def test_fp8_weights_through_the_stock_loader_run(run, stage_two, text, z_ref):
    import nodes as host_nodes

    fp8 = host_nodes.UNETLoader().load_unet("tiny_stage2_detail.safetensors", "fp8_e4m3fn")[0]
    assert fp8.model.diffusion_model.blocks[0].ffn[0].weight.dtype == torch.float8_e4m3fn
    schedule = torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0])
    full, eight = (advanced(run, m, text, z_ref, sigmas=schedule) for m in (stage_two, fp8))
    assert torch.isfinite(eight).all()
    assert 0 < (full - eight).pow(2).mean().sqrt() / full.std() < 0.3


def test_plain_weights_start_from_the_noised_reference(run, stage_one, z_ref):
    close = run("SwiftI2V_SegmentSampler", model=stage_one, z_ref=z_ref, denoise=0.1)[0]["samples"]
    far = run("SwiftI2V_SegmentSampler", model=stage_one, z_ref=z_ref, denoise=0.5)[0]["samples"]
    distance = [(x - z_ref["samples"])[:, :, 1:].pow(2).mean() for x in (close, far)]
    assert 0 < distance[0] < distance[1]


def test_a_batch_is_sampled_clip_by_clip_alike(run, stage_two, make_latent):
    """Windows keep the batch apart: the first clip of a batch is the clip alone."""
    batch = make_latent(8, batch=2)
    both = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=batch)[0]["samples"]
    alone = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref={"samples": batch["samples"][:1]})[0][
        "samples"
    ]
    assert (both[:1] - alone).abs().max() <= 1e-5


def test_the_loader_leaves_shared_models_alone(pack, stage_two):
    before = stage_two.get_model_object("model_sampling").shift
    clone = models.with_shift(stage_two, 3.0)
    assert clone.get_model_object("model_sampling").shift == 3.0
    assert stage_two.get_model_object("model_sampling").shift == before == 5.0


@pytest.mark.parametrize(("kind", "meant", "other"), [("stage_two", 1.0, 0.5), ("stage_one", 0.5, 1.0)])
def test_denoise_0_means_what_suits_the_weights(run, request, make_latent, kind, meant, other):
    def made(denoise):
        options = {"z_ref": make_latent(3), "steps": 1, "denoise": denoise}
        return run("SwiftI2V_SegmentSampler", model=request.getfixturevalue(kind), **options)[0]["samples"]

    assert torch.equal(made(0.0), made(meant)) and not torch.equal(made(0.0), made(other))
