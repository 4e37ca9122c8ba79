import numpy as np
import pytest
import torch
from PIL import Image

from swifti2v_core.images import fit_frames, resize
from swifti2v_core.reference.hybrid import (
    ReferenceSettings,
    keyframe_chunks,
    reference_chunks,
    resample_indices,
)


def build_reference(*arguments, **options):
    return torch.cat(list(reference_chunks(*arguments, **options)))


def photo(height, width, seed=0):
    noise = torch.rand(1, 3, 9, 16, generator=torch.Generator().manual_seed(seed))
    big = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return big.clamp(0, 1).movedim(1, -1)


def pil_resize(frame, width, height, kernel):
    channels = [
        np.asarray(Image.fromarray(c.numpy(), mode="F").resize((width, height), kernel))
        for c in frame.movedim(-1, 0).contiguous()
    ]
    return torch.from_numpy(np.stack(channels, axis=-1)).clamp(0, 1)


@pytest.mark.parametrize("size", [(160, 96), (31, 17), (90, 200)])
@pytest.mark.parametrize(("kernel", "pil"), [("bicubic", Image.BICUBIC), ("lanczos", Image.LANCZOS)])
def test_resize_equals_pil(size, kernel, pil):
    source = photo(60, 100)
    ours = resize(source, *size, kernel)[0]
    assert (ours - pil_resize(source[0], *size, pil)).abs().max() < 2e-5


@pytest.mark.parametrize("kernel", ["bicubic", "lanczos"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_constant_stays_constant_to_the_edge(kernel, fit):
    flat = torch.full((2, 50, 100, 3), 0.3)
    result = fit_frames(flat, 128, 64, fit, kernel)
    assert (result - 0.3).abs().max() < 1e-6


def test_crop_is_centered_and_pad_shows_everything():
    source = torch.zeros(1, 40, 100, 3)
    source[:, :, 45:55] = 1
    cropped = fit_frames(source, 40, 40, "crop")
    assert cropped[0, 20, 20, 0] > 0.99 and torch.allclose(cropped, cropped.flip(2), atol=1e-6)
    assert torch.allclose(cropped[0], source[0, :, 30:70], atol=1e-6)
    padded = fit_frames(source, 100, 100, "pad")
    assert torch.equal(padded[0, 30:70], source[0])
    assert padded[0, :30].abs().max() == 0 and padded[0, 70:].abs().max() == 0


def test_alpha_is_dropped():
    assert fit_frames(torch.rand(1, 32, 32, 4), 64, 64).shape == (1, 64, 64, 3)


@pytest.mark.parametrize(("count", "target"), [(5, 9), (9, 5), (1, 5), (80, 81), (33, 33)])
def test_time_is_resampled_end_to_end(count, target):
    indices = resample_indices(count, target)
    assert len(indices) == target and indices[0] == 0 and indices[-1] == count - 1
    exact = [i * (count - 1) / (target - 1) for i in range(target)]
    assert all(abs(i - e) <= 0.5 for i, e in zip(indices, exact, strict=True))


def test_the_reference_is_the_photo_then_the_enlarged_motion():
    settings = ReferenceSettings(width=128, height=64, frames=9)
    motion = torch.cat([photo(32, 64, seed) for seed in range(9)])
    still = photo(200, 400, 99)
    chunks = list(reference_chunks(still, motion, settings))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4]
    whole = torch.cat(chunks)
    assert torch.equal(whole[0], resize(still, 128, 64)[0])
    for frame in range(1, 9):
        assert torch.equal(whole[frame], resize(motion[frame : frame + 1], 128, 64)[0])


def test_color_match_undoes_a_cast_and_keeps_changes_of_light():
    settings = ReferenceSettings(width=64, height=32, frames=5)
    still = 0.25 + 0.5 * photo(32, 64)
    light = torch.linspace(0, 0.1, 5).view(5, 1, 1, 1)
    wanted = still + light
    gain, offset = torch.tensor([0.8, 1.1, 0.9]), torch.tensor([0.05, -0.04, 0.1])
    cast = wanted * gain + offset
    matched = build_reference(still, cast, settings, color_match=True)
    assert (matched - wanted).abs().max() < 1e-5
    unmatched = build_reference(still, cast, settings)
    assert (unmatched[1:] - wanted[1:]).abs().mean() > 0.03


def test_color_match_of_a_flat_clip_is_finite():
    settings = ReferenceSettings(width=64, height=32, frames=5)
    matched = build_reference(photo(32, 64), torch.full((5, 16, 32, 3), 0.5), settings, True)
    assert torch.isfinite(matched).all()


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(1280, 704), (1920, 1088), (704, 1280)])
def test_a_clip_at_rest_stays_at_rest_whatever_the_proportions(fit, size):
    """Photo 4:3, motion 20:11, result of a third shape: frame 0 is aligned with the frames after it."""
    still = photo(600, 800)
    motion = fit_frames(still, 640, 352, fit).repeat(5, 1, 1, 1)
    clip = build_reference(still, motion, ReferenceSettings(*size, 5, fit))
    # Cuts fall on whole pixels, so up to half a pixel of the motion is left between them.
    assert -10 * torch.log10((clip[1] - clip[0]).pow(2).mean()) > 38


def test_half_precision_frames_are_taken_as_they_come():
    settings = ReferenceSettings(width=64, height=32, frames=5)
    still, motion = photo(40, 80), torch.cat([photo(16, 32, seed) for seed in range(5)])
    full = build_reference(still, motion, settings, color_match=True)
    half = build_reference(still.half(), motion.half(), settings, color_match=True)
    assert half.dtype == torch.float32 and (half - full).abs().max() < 5e-3


def test_keyframes_replace_their_frames():
    motion = torch.rand(9, 32, 64, 3, generator=torch.Generator().manual_seed(1))
    settings = ReferenceSettings(128, 64, 9)
    plain = build_reference(photo(64, 128), motion, settings)
    keyframes = {4: photo(64, 128, seed=2), 8: photo(90, 128, seed=3)}
    clip = build_reference(photo(64, 128), motion, settings, keyframes=keyframes)
    kept = [0, 1, 2, 3, 5, 6, 7]
    assert torch.equal(clip[kept], plain[kept])
    assert torch.equal(clip[4:5], photo(64, 128, seed=2))
    assert torch.equal(clip[8:], fit_frames(photo(90, 128, seed=3), 128, 64))


def test_a_keyframe_as_a_moment_of_a_video_is_a_still_clip():
    settings = ReferenceSettings(128, 64, 9)
    still = torch.cat(list(keyframe_chunks(photo(64, 128), 2.0, settings)))
    assert torch.equal(still, photo(64, 128).expand(5, -1, -1, -1))
