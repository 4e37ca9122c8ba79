import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swifti2v_core.geometry import latent_frame_of
from swifti2v_core.reference.keyframes import append_frames, append_zero_noise, parse_keyframe_times
from swifti2v_core.stage_two.segments import plan_segments


def test_times_are_read_or_spread():
    assert parse_keyframe_times("", 1, 81) == [80]
    assert parse_keyframe_times(" ", 3, 81) == [26, 53, 80]
    assert parse_keyframe_times("5, 80", 2, 81) == [5, 80]
    assert parse_keyframe_times("1 5 9", 3, 13) == [1, 5, 9]


@given(st.integers(1, 80), st.integers(1, 20))
def test_spread_keyframes_fit_every_plan(steps, count):
    frames = 4 * steps + 1
    if count > steps:
        with pytest.raises(ValueError, match=f"nearest valid number is {steps}"):
            parse_keyframe_times("", count, frames)
        return
    numbers = parse_keyframe_times("", count, frames)
    assert parse_keyframe_times(", ".join(map(str, numbers)), count, frames) == numbers
    assert plan_segments(steps + 1, 3, min(1, steps - 1), [latent_frame_of(number) for number in numbers])


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("soon", 1, 'separated by commas, for example "80"'),
        ("40", 2, '1 numbers for 2 keyframes; give one for each, for example "40, 80"'),
        ("0, 80", 2, "must ascend from at least 1 to at most 80"),
        ("40, 81", 2, "at most 80"),
        ("40, 30", 2, "must ascend"),
        ("41, 44", 2, "one per latent frame"),
    ],
)
def test_wrong_times_say_what_is_right(text, count, words):
    with pytest.raises(ValueError) as error:
        parse_keyframe_times(text, count, 81)
    assert words in str(error.value)


def test_keyframes_are_appended_to_the_clip_and_have_no_noise():
    latents, keyframes = torch.rand(2, 3, 4, 2, 2), torch.rand(1, 3, 2, 2, 2)
    longer = append_frames(latents, keyframes)
    assert torch.equal(longer[:, :, :4], latents)
    assert torch.equal(longer[1:, :, 4:], keyframes) and torch.equal(longer[:1, :, 4:], keyframes)
    noise = append_zero_noise(latents, keyframes)
    assert (
        torch.equal(noise[:, :, :4], latents) and not noise[:, :, 4:].any() and noise.shape == longer.shape
    )
