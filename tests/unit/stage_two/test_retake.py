"""Chosen segments of a finished clip: their numbers, their windows, and the frames that stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swifti2v_core.stage_two.retake import keep_others, parse_retake, plan_retake
from swifti2v_core.stage_two.segments import clamped_positions, plan_segments, true_positions


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("", []), ("  ", []), ("3, 5", [3, 5]), ("5 3", [3, 5]), ("0,6,0", [0, 6]), (" 2, ", [2])],
)
def test_numbers_are_read_in_any_order_and_once(text, numbers):
    assert parse_retake(text, 7) == numbers


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        *(
            (
                text,
                "but the clip has 7 segments, numbered from 0 to 6; the nearest valid value is "
                f'"{nearest}".',
            )
            for text, nearest in (("3, 9, 8", "3, 6"), ("-1", "0"))
        ),
        *(
            (
                text,
                'but must be numbers of segments separated by commas, from 0 to 6, for example "6".',
            )
            for text in ("3-5", "last", "1.5", ",")
        ),
    ],
)
def test_other_texts_are_refused(text, rule):
    with pytest.raises(ValueError) as error:
        parse_retake(text, 7)
    assert str(error.value) == f'retake is "{text}", {rule}'


def windows(chosen, neighbors=1, latent_frames=21, keyframes=()):
    plan = plan_segments(latent_frames, 3, neighbors, keyframes)
    retaken = plan_retake(plan, chosen, neighbors)
    for segment in retaken:
        assert segment.noisy == plan[segment.index].noisy
    return [(segment.window, segment.clean) for segment in retaken]


def test_windows_hold_the_frames_on_both_sides():
    assert windows([0, 3, 6]) == [
        ((0, 4, 1, 2, 3), 2),
        ((0, 9, 13, 10, 11, 12), 3),
        ((0, 17, 18, 19, 20), 3),  # nothing comes after the last segment
    ]
    assert windows([3], neighbors=2) == [((0, 8, 9, 13, 14, 10, 11, 12), 5)]
    assert windows([5], neighbors=4) == [((0, 12, 13, 14, 15, 19, 20, 16, 17, 18), 7)]
    assert windows([3], neighbors=0) == [((0, 10, 11, 12), 1)]


def test_frames_that_are_replaced_are_not_shown():
    assert windows([2, 3, 5]) == [
        ((0, 6, 13, 7, 8, 9), 3),  # 10 to 12 will be others
        ((0, 9, 13, 10, 11, 12), 3),
        ((0, 15, 19, 16, 17, 18), 3),
    ]
    assert windows([1, 3], neighbors=4, latent_frames=15) == [
        ((0, 1, 2, 3, 7, 8, 9, 13, 4, 5, 6), 8),
        ((0, 6, 7, 8, 9, 13, 14, 10, 11, 12), 7),
    ]


def test_keyframes_stay_in_the_window():
    assert windows([1], keyframes=(5, 12)) == [((0, 21, 22, 3, 7, 4, 5, 6), 5)]
    (segment,) = plan_retake(plan_segments(21, 3, 1, (5, 12)), [1], 1)
    assert true_positions(segment) == (0, 5, 12, 3, 7, 4, 5, 6)


@given(st.data())
def test_all_at_once_is_the_plan_itself(data):
    frames, m = data.draw(st.integers(2, 40)), data.draw(st.integers(1, 8))
    n = data.draw(st.integers(0, max(1, frames - 2)))
    plan = plan_segments(frames, m, n)
    assert plan_retake(plan, range(len(plan)), n) == plan


def test_clamped_positions_make_room_for_the_frame_after():
    plan = plan_segments(61, 3, 1)
    (inside, beyond, first) = (plan_retake(plan, [number], 1)[0] for number in (2, 15, 0))
    assert clamped_positions(inside) == inside.window == (0, 6, 10, 7, 8, 9)
    assert beyond.window == (0, 45, 49, 46, 47, 48)
    assert clamped_positions(beyond) == (0, 26, 30, 27, 28, 29)
    assert clamped_positions(first) == (0, 4, 1, 2, 3)


def test_a_window_too_long_for_clamped_positions_names_what_fits():
    (segment,) = plan_retake(plan_segments(61, 25, 5), [1], 5)
    with pytest.raises(
        ValueError, match=r"window has 36 latent frames, .* neighbors of at most 25 or true"
    ):
        clamped_positions(segment)
    (fitting,) = plan_retake(plan_segments(61, 20, 5), [1], 5)
    assert len(fitting.window) == 31 and max(clamped_positions(fitting)) == 30


def test_all_other_frames_are_the_finished_ones():
    finished = torch.randn(2, 3, 9, 2, 2)
    reference = torch.randn(2, 3, 9, 2, 2)
    latents = reference.clone()
    keep_others(latents, finished, plan_retake(plan_segments(9), [0, 2], 1))
    for frame in range(9):
        source = finished if frame in (0, 4, 5, 6) else reference
        assert torch.equal(latents[:, :, frame], source[:, :, frame])
