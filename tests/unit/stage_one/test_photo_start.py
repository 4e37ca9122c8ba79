import torch

from swifti2v_core.stage_one.photo_start import amplify_motion, mask_with_known_end, photo_then_gray


def condition(known=1, seed=0):
    return torch.randn(1, 16, known + 3, 4, 6, generator=torch.Generator().manual_seed(seed))


def test_strength_1_changes_no_bit():
    reference = condition()
    assert torch.equal(amplify_motion(reference, 1, 1.0), reference)


def test_known_frames_stay_and_the_input_is_not_changed():
    reference = condition(known=2)
    before = reference.clone()
    amplified = amplify_motion(reference, 2, 1.5)
    assert torch.equal(amplified[:, :, :2], reference[:, :, :2])
    assert (amplified[:, :, 2:] - reference[:, :, 2:]).abs().min() > 0
    assert torch.equal(reference, before)


def test_only_the_deviation_from_the_mean_difference_grows():
    """The photo is 0 and 4, gray 3 and 3: the difference is 3 and -1, its mean 1."""
    reference = torch.tensor([[0.0, 4.0], [3.0, 3.0]]).reshape(1, 1, 2, 1, 2)
    amplified = amplify_motion(reference, 1, 1.5)
    assert amplified.flatten().tolist() == [0.0, 4.0, 4.0, 2.0]  # 1 + 1.5 * (2, -2) from the photo


def test_every_frame_and_channel_keeps_its_mean():
    reference = condition(known=2)
    amplified = amplify_motion(reference, 2, 1.3)
    assert torch.allclose(amplified.mean((-2, -1)), reference.mean((-2, -1)), atol=1e-6)


def test_the_difference_is_that_from_the_last_known_frame():
    reference = condition(known=2)
    other = reference.clone()
    other[:, :, 0] += torch.randn(4, 6)
    assert torch.equal(amplify_motion(reference, 2, 1.3)[:, :, 2:], amplify_motion(other, 2, 1.3)[:, :, 2:])


def test_known_frames_come_before_the_gray_ones():
    known = torch.rand(5, 2, 3, 3)
    clip = photo_then_gray(known, 9)
    assert torch.equal(clip[:5], known) and (clip[5:] == 0.5).all() and clip.shape == (9, 2, 3, 3)


def test_a_known_end_is_the_last_video_frame_alone():
    mask = torch.ones(1, 1, 3, 2, 2)
    mask[:, :, 0] = 0
    seen = mask_with_known_end(mask)
    assert seen[0, :, :, 0, 0].tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 1], [0, 1, 0]]
    assert mask.sum() == 8
