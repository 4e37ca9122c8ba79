"""Noise reshifting in Stage I against the same thing put together by hand from the host's parts."""

import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import torch
import torch.nn.functional as F
from comfy.ldm.wan.model import WanModel

SMALL, LARGE = (64, 48), (96, 80)
"""Sizes of the clip and, by 1.5, of the first steps (width, height), in multiples of 16."""

SEED = 5


def sigmas_of(steps, shift=5.0):
    even = torch.tensor([1 - step / steps for step in range(steps + 1)], dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def picture(photo, width, height, aspect=SMALL[0] / SMALL[1]):
    """The photo cut to the proportions of the clip and brought to a size."""
    keep = round(photo.shape[1] * aspect)
    left = (photo.shape[2] - keep) // 2
    cut = photo[:, :, left : left + keep].movedim(-1, 1)
    resized = F.interpolate(cut, size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1).movedim(1, -1)


def guided(model, positive, negative, cfg, noise, latent, sigmas, mask=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.sampler_object("euler")
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, seed=SEED, disable_pbar=True)


def seeded(shape):
    return torch.randn(shape, generator=torch.manual_seed(SEED))


def by_hand(legs, sizes, conditions, cfg, shape, starts=None, mask=None):
    """Sample leg after leg; a leg is a list of (model, sigmas).

    Between the legs, (1 - s) * D(x0) + s * e is computed here and handed to the host as the noise
    that makes it so.
    """
    clean = None
    for leg, (width, height), texts in zip(legs, sizes, conditions, strict=True):
        latent = torch.zeros(*shape, height, width)
        noise, place = seeded(latent.shape), 0 if clean is None else 1
        frozen = None if mask is None else mask[..., :1, :1].expand(*mask.shape[:3], height, width)
        if starts is not None:
            latent[:, :, :1] = starts[place]
        if clean is not None:
            frames = clean[0].movedim(1, 0)
            small = F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)
            small = small.movedim(0, 1)[None]
            inward, level = leg[0][0].model.process_latent_in, float(leg[0][1][0])
            noisy = (1 - level) * inward(small) + level * noise
            added = (1 - level) * inward(latent) if latent.any() else 0
            noise = (noisy - added) / level
        for model, sigmas in leg:
            result = guided(model, *texts, cfg, noise, latent, sigmas, frozen)
            latent, noise = result, torch.zeros_like(result)
        clean = latent
    return clean


def a14b_conditions(vae, photo, text, width, height):
    from comfy_extras.nodes_wan import WanImageToVideo

    start = picture(photo, width, height)
    return WanImageToVideo.execute(*text, vae, width, height, 9, 1, start_image=start).args[:2]


def motion(run, models, vae, photo, text, steps, **options):
    return run(
        "SwiftI2V_MotionSampler",
        model_high_noise=models[0],
        model_low_noise=models[-1],
        vae=vae,
        image=photo,
        positive=text[0],
        negative=text[1],
        frames=9,
        seed=SEED,
        steps=steps,
        **{"width": SMALL[0], "height": SMALL[1], **options},
    )


def parts_by_hand(experts, sigmas):
    """The experts change at the first step that starts below 0.9."""
    high = sum(float(sigma) >= 0.9 for sigma in sigmas[:-1])
    pieces = ((experts[0], sigmas[: high + 1]), (experts[1], sigmas[high:]))
    return [(model, piece) for model, piece in pieces if len(piece) > 1]


@pytest.mark.parametrize(
    ("steps", "reshift", "cfg", "matched", "parts"),
    [
        (4, 1, 1.0, False, [1, 2]),  # of 4 steps, two are the high-noise expert's
        (4, 2, 3.0, False, [1, 1]),
        (4, 3, 1.0, False, [2, 1]),
        (10, 3, 1.0, True, [1, 1]),  # 0.921 becomes 0.881, the low-noise expert's
        (40, 10, 1.0, False, [1, 2]),  # of 40, fifteen
    ],
)
def test_a_reshifted_clip_is_the_one_put_together_by_hand(
    run, experts, vae16, photo, text, steps, reshift, cfg, matched, parts
):
    with torch.inference_mode():
        sigmas = sigmas_of(steps)
        rest = sigmas[reshift:]
        if matched:
            ratio = ((SMALL[0] * SMALL[1]) / (LARGE[0] * LARGE[1])) ** 0.5
            rest = ratio * rest / (1 - (1 - ratio) * rest)
        first = torch.cat((sigmas[:reshift], torch.zeros(1)))
        legs = [parts_by_hand(experts, first), parts_by_hand(experts, rest)]
        assert [len(leg) for leg in legs] == parts
        conditions = [a14b_conditions(vae16, photo, text, *size) for size in (LARGE, SMALL)]
        sizes = [(width // 8, height // 8) for width, height in (LARGE, SMALL)]
        theirs = by_hand(legs, sizes, conditions, cfg, (1, 16, 3))
    options = {"reshift_steps": reshift, "reshift_match_snr": matched, "cfg": cfg}
    frames, latent = motion(run, experts, vae16, photo, text, steps, **options)
    ours = latent["samples"]
    assert ours.shape == theirs.shape == (1, 16, 3, 6, 8)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert frames.shape == (9, 48, 64, 3)
    without = motion(run, experts, vae16, photo, text, steps, cfg=cfg)[1]["samples"]
    assert (ours - without).abs().max() > 0.01


@torch.inference_mode()
def test_one_model_with_the_photo_as_clean_frame(run, stage_one, vae, photo, text):
    sizes = ((192, 96), (128, 64))
    sigmas = sigmas_of(4)
    legs = [
        [(stage_one, torch.cat((sigmas[:2], torch.zeros(1))))],
        [(stage_one, sigmas[2:])],
    ]
    starts = [vae.encode(picture(photo, *size, 2.0)) for size in sizes]
    mask = torch.ones(1, 1, 3, 1, 1)
    mask[:, :, 0] = 0
    grids = [(width // 16, height // 16) for width, height in sizes]
    theirs = by_hand(legs, grids, [text, text], 3.0, (1, 48, 3), starts, mask)
    ours = motion(run, [stage_one], vae, photo, text, 4, width=128, height=64, cfg=3.0, reshift_steps=2)[1][
        "samples"
    ]
    assert ours.shape == theirs.shape == (1, 48, 3, 4, 8)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert torch.equal(ours[:, :, :1], starts[1])


def test_without_reshifting_the_other_two_widgets_do_nothing(run, experts, vae16, photo, text):
    plain = motion(run, experts, vae16, photo, text, 4)[1]["samples"]
    options = {"reshift_steps": 0, "reshift_scale": 3.0, "reshift_match_snr": True}
    assert torch.equal(plain, motion(run, experts, vae16, photo, text, 4, **options)[1]["samples"])


@pytest.fixture
def encoded(monkeypatch, vae16):
    """Shapes of the clips that the VAE is given."""
    shapes = []
    encode = vae16.encode

    def spy(pixels, *args, **kwargs):
        shapes.append(tuple(pixels.shape))
        return encode(pixels, *args, **kwargs)

    monkeypatch.setattr(vae16, "encode", spy)
    return shapes


def test_every_size_gets_the_photo_at_that_size(run, experts, vae16, photo, text, encoded, monkeypatch):
    seen = []
    forward = WanModel.forward_orig

    def spy(self, x, t, *args, **kwargs):
        high = self is experts[0].model.diffusion_model
        seen.append((high, tuple(x.shape[1:]), x[:, 16:].clone()))
        return forward(self, x, t, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", spy)
    motion(run, experts, vae16, photo, text, 4)
    assert encoded == [(9, 48, 64, 3)]
    plain = seen.copy()
    encoded.clear()
    seen.clear()
    motion(run, experts, vae16, photo, text, 4, reshift_steps=1)
    assert encoded == [(9, 80, 96, 3), (9, 48, 64, 3)]
    big, small = (36, 3, 10, 12), (36, 3, 6, 8)
    assert [entry[:2] for entry in seen] == [(True, big), (True, small), (False, small), (False, small)]
    # The small steps see the same mask and photo as without reshifting.
    for (*_, condition), (*_, wanted) in zip(seen[1:], plain[1:], strict=True):
        assert torch.equal(condition, wanted)


def toy(model, clean):
    """A clone of a model that always predicts ``clean[size]``, and what it was asked."""
    asked = []

    def predict(_apply, arguments):
        noisy, sigma = arguments["input"], float(arguments["timestep"].flatten()[0])
        asked.append((sigma, noisy.clone()))
        return clean[noisy.shape[-2:]].to(noisy)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(predict)
    return clone, asked


@pytest.mark.parametrize(
    "sampler", ["euler", "heun", "dpmpp_2m", "euler_ancestral", "lcm", "res_multistep"]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_the_rest_starts_from_known_clean_frames_noised_again(
    run, experts, vae16, photo, text, sampler, steps
):
    """The clean frames are exact in every sampler: (1 - s) * D(x0) + s * e enters the small steps."""
    generator = torch.Generator().manual_seed(1)
    large = torch.randn(1, 16, 3, 10, 12, generator=generator)
    clean = {(10, 12): large, (6, 8): torch.zeros(1, 16, 3, 6, 8)}
    model, asked = toy(experts[0], clean)
    motion(run, [model], vae16, photo, text, 4, sampler_name=sampler, reshift_steps=steps)
    sigma, noisy = next(entry for entry in asked if entry[1].shape[-1] == 8)
    level = float(sigmas_of(4)[steps])
    assert sigma == pytest.approx(level, abs=1e-6)
    down = F.interpolate(large[0].movedim(1, 0), size=(6, 8), mode="bilinear", antialias=True)
    expected = (1 - level) * down.movedim(0, 1) + level * seeded((1, 16, 3, 6, 8))
    assert (noisy - expected).abs().max() <= 1e-5


@pytest.fixture
def shown(monkeypatch):
    """What the progress bar is told: (value, total, picture size)."""
    calls = []

    def hook(value, total, preview, node_id=None):
        calls.append((value, total, preview and preview[1].size))

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return calls


def test_one_progress_bar_with_previews_of_both_sizes(run, experts, vae16, photo, text, shown):
    import latent_preview

    try:
        latent_preview.set_preview_method("latent2rgb")
        motion(run, experts, vae16, photo, text, 4, reshift_steps=1)
    finally:
        latent_preview.set_preview_method("none")
    sampling = [call for call in shown if call[1] == 4]
    assert [value for value, *_ in sampling] == sorted(value for value, *_ in sampling)
    assert sampling[-1][0] == 4
    pictures = [(value, size) for value, _, size in sampling if size]
    assert pictures == [(1, (12, 10)), (2, (8, 6)), (3, (8, 6)), (4, (8, 6))]


@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_stops_either_leg(run, experts, vae16, photo, text, monkeypatch, call):
    forward, calls = WanModel.forward_orig, []

    def interrupting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            comfy.model_management.interrupt_current_processing()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", interrupting)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        motion(run, experts, vae16, photo, text, 4, reshift_steps=1)
    assert len(calls) == call


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reshift_steps": 4}, ("reshift_steps is 4", "4 steps", "value is 3")),
        ({"reshift_steps": 2, "timesteps": "1000, 500"}, ("reshift_steps is 2", "2 steps", "value is 1")),
        ({"reshift_steps": 1, "reshift_scale": 1.1}, ("reshift_scale is 1.1", "64x48", "value is 1.17")),
    ],
)
def test_refused_before_anything_is_encoded(run, experts, vae16, photo, text, encoded, options, words):
    with pytest.raises(ValueError) as error:
        motion(run, experts, vae16, photo, text, 4, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not encoded
