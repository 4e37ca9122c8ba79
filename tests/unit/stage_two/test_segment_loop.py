import pytest
import torch

from swifti2v_core.stage_two.segment_loop import keep_finished, run_segments, take_window
from swifti2v_core.stage_two.segments import plan_segments


def denoiser(log=None):
    """Make frames that depend on everything in the window, so that order and update show."""

    def denoise(segment, window):
        if log is not None:
            log.append((segment, window.clone()))
        return window * 0.5 + window.mean(dim=2, keepdim=True) + segment.index

    return denoise


@pytest.fixture
def reference():
    return torch.randn(2, 3, 11, 2, 2, generator=torch.Generator().manual_seed(0))


def test_windows_see_the_anchor_generated_neighbors_and_the_reference(reference):
    latents, log = reference.clone(), []
    segments = plan_segments(11, 3, 2)
    for segment in run_segments(latents, segments, denoiser(log)):
        seen_segment, window = log[-1]
        assert seen_segment is segment
        assert torch.equal(window[:, :, 0], reference[:, :, 0])
        for place, frame in enumerate(segment.window):
            source = latents if place < segment.clean else reference
            assert torch.equal(window[:, :, place], source[:, :, frame])
    assert torch.equal(latents[:, :, 0], reference[:, :, 0])
    assert not (latents[:, :, 1:] == reference[:, :, 1:]).any()


def test_a_split_run_gives_the_same_bits(reference):
    segments = plan_segments(11, 3, 1)
    whole = reference.clone()
    list(run_segments(whole, segments, denoiser()))
    for cut in range(1, len(segments)):
        split = reference.clone()
        list(run_segments(split, segments[:cut], denoiser()))
        assert not torch.equal(split, whole)
        resumed = reference.clone()
        keep_finished(resumed, split, segments[cut])
        list(run_segments(resumed, segments, denoiser(), start=cut))
        assert torch.equal(resumed, whole)


def test_the_window_is_a_copy(reference):
    segment = plan_segments(11)[0]
    window = take_window(reference, segment)
    before = reference.clone()
    window.zero_()
    assert torch.equal(reference, before)


def test_a_wrong_shape_is_refused(reference):
    segments = plan_segments(11)
    with pytest.raises(ValueError, match="denoise returned"):
        list(run_segments(reference.clone(), segments, lambda segment, window: window[:, :, 1:]))
