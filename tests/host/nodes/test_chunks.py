"""Long clips in Stage I against the same thing put together by hand from the host's parts."""

import comfy.model_management
import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import progress, sampling
from swifti2v.nodes.pipeline import stage_one as motion_making

WIDTH, HEIGHT = 64, 48
SEED = 5
SIGMAS = torch.tensor([1.0, 0.9375, 0.8333333, 0.625, 0.0])
"""4 steps at shift 5; two of them are the high-noise expert's."""

TABLES = [
    # frames, chunk_frames, overlap_frames; start and end of every chunk and what it knows
    (21, 13, 8, [(0, 4, 0), (2, 6, 2)]),
    (29, 13, 4, [(0, 4, 0), (3, 7, 1), (4, 8, 3)]),  # the last one is moved back
]


@pytest.fixture(scope="module")
def small(photo):
    """A photo that no size needs to crop or resize."""
    return torch.nn.functional.interpolate(photo.movedim(-1, 1), (HEIGHT, WIDTH), mode="area").movedim(
        1, -1
    )


@pytest.fixture(scope="module")
def wide(photo):
    return torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 128), mode="area").movedim(1, -1)


def guided(model, texts, cfg, noise, latent, sigmas, sampler, seed, mask=None):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*texts)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.sampler_object(sampler)
    return guider.sample(noise, latent, sampler, sigmas, denoise_mask=mask, seed=seed, disable_pbar=True)


def seeded(*shape):
    return torch.randn(shape, generator=torch.manual_seed(SEED))


def faded(made, chunk, known):
    """The clip so far, the overlap frame by frame, the rest of the chunk."""
    frames = list(made.unbind(2))[: made.shape[2] - known]
    for number in range(known):
        share = (number + 1) / (known + 1)
        old, new = made[:, :, made.shape[2] - known + number], chunk[:, :, number]
        frames.append((1 - share) * old + share * new)
    return torch.stack(frames + list(chunk.unbind(2))[known:], dim=2)


def a14b_by_hand(experts, vae, photo, text, cfg, sampler, chunks):
    """Every chunk is WanImageToVideo for its length, with known frames as further start frames."""
    from comfy_extras.nodes_wan import WanImageToVideo

    texts = WanImageToVideo.execute(*text, vae, WIDTH, HEIGHT, 13, 1, start_image=photo).args[:2]
    noise, made = seeded(1, 16, chunks[-1][1], HEIGHT // 8, WIDTH // 8), None
    for index, (start, stop, known) in enumerate(chunks):
        conditions = []
        for ((embedding, options),) in texts:
            image, mask = options["concat_latent_image"].clone(), options["concat_mask"].clone()
            assert image.shape[2] == 4 and mask[0, 0, :, 0, 0].tolist() == [0, 1, 1, 1]
            if known:
                image[:, :, :known], mask[:, :, :known] = made[:, :, start:], 0
            conditions.append([[embedding, {**options, "concat_latent_image": image, "concat_mask": mask}]])
        latent, seed = torch.zeros(1, 16, 4, HEIGHT // 8, WIDTH // 8), SEED + index
        latent = guided(
            experts[0], conditions, cfg, noise[:, :, start:stop], latent, SIGMAS[:3], sampler, seed
        )
        silence = torch.zeros_like(latent)
        latent = guided(experts[1], conditions, cfg, silence, latent, SIGMAS[2:], sampler, seed)
        made = faded(made, latent, known) if known else latent
    return made


def ti2v_by_hand(model, vae, photo, text, cfg, sampler, chunks):
    """Every chunk has the photo, or what it knows, as clean frames."""
    noise, made = seeded(1, 48, chunks[-1][1], 4, 8), None
    for index, (start, stop, known) in enumerate(chunks):
        latent, mask = torch.zeros(1, 48, 4, 4, 8), torch.ones(1, 1, 4, 4, 8)
        clean = made[:, :, start:] if known else vae.encode(photo)
        latent[:, :, : clean.shape[2]], mask[:, :, : clean.shape[2]] = clean, 0
        result = guided(
            model, text, cfg, noise[:, :, start:stop], latent, SIGMAS, sampler, SEED + index, mask
        )
        made = torch.cat((made, result[:, :, known:]), dim=2) if known else result
    return made


@pytest.fixture
def a14b(run, experts, vae16, small, text):
    """Run Stage I with two experts."""

    def motion(**options):
        given = {
            "model_high_noise": experts[0],
            "model_low_noise": experts[1],
            "vae": vae16,
            "image": small,
            "positive": text[0],
            "negative": text[1],
            "width": WIDTH,
            "height": HEIGHT,
            "seed": SEED,
        }
        return run("SwiftI2V_MotionSampler", **{**given, **options})

    return motion


@pytest.fixture
def ti2v(run, stage_one, vae, wide, text):
    """Run Stage I with one model and the photo as clean frame."""

    def motion(**options):
        given = {
            "model_high_noise": stage_one,
            "vae": vae,
            "image": wide,
            "positive": text[0],
            "negative": text[1],
            "width": 128,
            "height": 64,
            "seed": SEED,
        }
        return run("SwiftI2V_MotionSampler", **{**given, **options})

    return motion


@pytest.mark.parametrize(("frames", "chunk_frames", "overlap_frames", "chunks"), TABLES)
@pytest.mark.parametrize(("cfg", "sampler"), [(1.0, "euler"), (3.0, "euler_ancestral")])
def test_two_experts_by_hand(
    a14b, experts, vae16, small, text, frames, chunk_frames, overlap_frames, chunks, cfg, sampler
):
    options = {"chunk_frames": chunk_frames, "overlap_frames": overlap_frames}
    clip, latent = a14b(frames=frames, cfg=cfg, sampler_name=sampler, **options)
    with torch.inference_mode():
        theirs = a14b_by_hand(experts, vae16, small, text, cfg, sampler, chunks)
    ours = latent["samples"]
    assert ours.shape == theirs.shape == (1, 16, chunks[-1][1], 6, 8)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert clip.shape == (frames, HEIGHT, WIDTH, 3)


@pytest.mark.parametrize(("frames", "chunk_frames", "overlap_frames", "chunks"), TABLES)
@pytest.mark.parametrize(("cfg", "sampler"), [(1.0, "euler"), (3.0, "euler_ancestral")])
def test_clean_frames_by_hand(
    ti2v, stage_one, vae, wide, text, frames, chunk_frames, overlap_frames, chunks, cfg, sampler
):
    options = {"chunk_frames": chunk_frames, "overlap_frames": overlap_frames}
    clip, latent = ti2v(frames=frames, cfg=cfg, sampler_name=sampler, **options)
    with torch.inference_mode():
        theirs = ti2v_by_hand(stage_one, vae, wide, text, cfg, sampler, chunks)
    ours = latent["samples"]
    assert ours.shape == theirs.shape == (1, 48, chunks[-1][1], 4, 8)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert clip.shape == (frames, 64, 128, 3)


@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_a_clip_no_longer_than_a_chunk_is_made_whole(request, kind):
    motion = request.getfixturevalue(kind)
    whole = motion(frames=13)[1]["samples"]
    for chunk_frames in (0, 13, 81):
        same = motion(frames=13, chunk_frames=chunk_frames, overlap_frames=4)[1]["samples"]
        assert torch.equal(same, whole)
    assert not torch.equal(motion(frames=13, chunk_frames=9, overlap_frames=4)[1]["samples"], whole)


@pytest.fixture
def sampled(pack, monkeypatch):
    """Start and result of every sampling."""
    seen = []
    sample = motion_making.sample

    def spy(guider, noise, latent, *args, **kwargs):
        result = sample(guider, noise, latent, *args, **kwargs)
        seen.append((noise.clone(), latent.clone(), result.clone()))
        return result

    monkeypatch.setattr(motion_making, "sample", spy)
    return seen


def test_chunks_agree_where_they_overlap(ti2v, sampled):
    latent = ti2v(frames=21, chunk_frames=13, overlap_frames=8)[1]["samples"]
    (_, _, first), (_, start, second) = sampled
    assert torch.equal(start[:, :, :2], first[:, :, 2:]) and not start[:, :, 2:].any()
    assert torch.allclose(second[:, :, :2], first[:, :, 2:], atol=1e-5)  # the host rounds clean frames
    assert torch.equal(latent[:, :, :4], torch.cat((latent[:, :, :1], first[:, :, 1:]), dim=2))
    assert torch.equal(latent[:, :, 4:], second[:, :, 2:])


def test_two_experts_fade_from_chunk_to_chunk(a14b, sampled):
    latent = a14b(frames=21, chunk_frames=13, overlap_frames=8)[1]["samples"]
    first, second = (sampled[index][2] for index in (1, 3))  # what the low-noise expert made
    assert torch.equal(latent[:, :, :2], first[:, :, :2])
    assert torch.equal(latent[:, :, 4:], second[:, :, 2:])
    for frame, share in ((0, 1 / 3), (1, 2 / 3)):
        mixed = first[:, :, 2 + frame] * (1 - share) + second[:, :, frame] * share
        assert torch.allclose(latent[:, :, 2 + frame], mixed, atol=1e-6)


@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_a_frame_has_one_noise_in_all_its_chunks(request, kind, sampled):
    request.getfixturevalue(kind)(frames=21, chunk_frames=13, overlap_frames=8)
    first, second = (noise for noise, *_ in sampled if noise.any())
    clip = seeded(1, first.shape[1], 6, *first.shape[3:])
    assert torch.equal(first, clip[:, :, :4]) and torch.equal(second, clip[:, :, 2:])


@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_what_is_in_memory_does_not_grow_with_the_clip(request, kind, monkeypatch):
    """Neither what the model is given nor what the VAE encodes."""
    encoder = request.getfixturevalue("vae16" if kind == "a14b" else "vae")
    motion = request.getfixturevalue(kind)
    forward, encode, sizes, encoded = WanModel.forward_orig, encoder.encode, [], []
    monkeypatch.setattr(
        WanModel,
        "forward_orig",
        lambda self, x, *a, **k: sizes.append(x.shape[2]) or forward(self, x, *a, **k),
    )
    monkeypatch.setattr(encoder, "encode", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    for frames, chunks in ((17, 2), (33, 4), (49, 6)):
        sizes.clear()
        encoded.clear()
        assert motion(frames=frames, chunk_frames=13, overlap_frames=8)[0].shape[0] == frames
        assert sizes == [4] * 4 * chunks
        assert encoded == [13 if kind == "a14b" else 1]


@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_a_batch_is_its_photos_one_by_one(request, kind, small, wide):
    motion, photo = request.getfixturevalue(kind), small if kind == "a14b" else wide
    photos = torch.cat((photo, photo.flip(2) * 0.7))
    options = {"frames": 21, "chunk_frames": 13, "sampler_name": "euler_ancestral"}
    frames, both = motion(image=photos, **options)
    singles = [motion(image=one, seed=SEED + index, **options) for index, one in enumerate(photos.split(1))]
    assert torch.equal(both["samples"], torch.cat([latent["samples"] for _, latent in singles]))
    assert frames.shape[0] == 42
    assert torch.allclose(frames, torch.cat([clip for clip, _ in singles]), rtol=0, atol=1e-6)


def test_one_progress_bar_and_each_expert_once_a_chunk(pack, a14b, experts, small, monkeypatch):
    """2 photos, 2 chunks, 4 steps; the previews show the first new frame and its place in the clip."""
    import latent_preview

    shown, used, guider = [], [], sampling.motion_guider

    def spy(model, *args):
        used.append(experts.index(model))
        return guider(model, *args)

    def hook(value, total, preview, node_id=None):
        if total == 16:
            shown.append((value, preview and preview[1].size))

    monkeypatch.setattr(motion_making, "motion_guider", spy)
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    try:
        latent_preview.set_preview_method("latent2rgb")
        a14b(image=small.repeat(2, 1, 1, 1), frames=21, chunk_frames=13)
    finally:
        latent_preview.set_preview_method("none")
    assert used == [0, 0, 1, 1] * 2
    values = [value for value, _ in shown]
    assert values == sorted(values) and values[-1] == 16
    assert [(value, size) for value, size in shown if size] == [(step, (8, 8)) for step in range(1, 17)]


def test_previews_start_at_the_first_new_frame(pack, ti2v, monkeypatch):
    seen, callback = [], progress.SamplingProgress.callback

    def spy(self, done, first_frame, place=None):
        seen.append((done, first_frame, place))
        return callback(self, done, first_frame, place)

    monkeypatch.setattr(progress.SamplingProgress, "callback", spy)
    ti2v(frames=29, chunk_frames=13, overlap_frames=4)
    assert seen == [(0, 1, (0.0, 0.5)), (4, 1, (0.5, 0.875)), (8, 3, (0.875, 1.0))]
    seen.clear()
    ti2v(frames=13)
    assert seen == [(0, 1, None)]


def test_an_interrupt_stops_a_later_chunk(ti2v, monkeypatch):
    forward, calls = WanModel.forward_orig, []

    def interrupting(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            comfy.model_management.interrupt_current_processing()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", interrupting)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        ti2v(frames=21, chunk_frames=13)
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk_frames": 12}, ("chunk_frames is 12", "4n+1", "nearest valid value is 13")),
        ({"chunk_frames": 9, "overlap_frames": 12}, ("overlap_frames is 12", "nearest valid value is 8")),
        ({"chunk_frames": 9, "reshift_steps": 1}, ("reshift_steps is 1", "in chunks", "value is 0")),
    ],
)
def test_refused_before_anything_is_encoded(a14b, vae16, monkeypatch, options, words):
    encoded = []
    monkeypatch.setattr(vae16, "encode", encoded.append)
    with pytest.raises(ValueError) as error:
        a14b(frames=21, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not encoded


def test_a_clip_in_one_chunk_can_be_reshifted(a14b):
    options = {"frames": 9, "reshift_steps": 1}
    whole = a14b(**options)[1]["samples"]
    assert torch.equal(whole, a14b(**options, chunk_frames=9)[1]["samples"])
