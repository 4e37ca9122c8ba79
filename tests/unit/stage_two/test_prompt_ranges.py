import pytest
from hypothesis import given
from hypothesis import strategies as st

from swifti2v_core.stage_two.prompt_ranges import (
    WHOLE_CLIP,
    check_frame_range,
    check_ranges_in_clip,
    chosen_prompts,
    middle_frame,
    unused_ranges,
)
from swifti2v_core.stage_two.segments import plan_segments

PLAN = plan_segments(9)
"""33 frames: the segments generate the frames 1 to 12, 13 to 24 and 25 to 32."""


def test_middle_frames_by_hand():
    assert [middle_frame(segment) for segment in PLAN] == [6, 18, 28]
    assert [middle_frame(segment) for segment in plan_segments(4, 1)] == [2, 6, 10]
    # Keyframes stand between anchor and neighbors and have no say.
    assert [middle_frame(segment) for segment in plan_segments(9, keyframes=[2, 8])] == [6, 18, 28]


@pytest.mark.parametrize(
    ("ranges", "chosen"),
    [
        ([], [[], [], []]),
        ([WHOLE_CLIP], [[0], [0], [0]]),
        ([(0, 15), (15, 0)], [[0], [1], [1]]),
        ([(15, 0), (0, 15)], [[1], [0], [0]]),  # order among the prompts does not matter
        ([(0, 18), (18, 0)], [[0], [1], [1]]),  # the end is the first frame without
        ([(0, 19), (19, 0)], [[0], [0], [1]]),
        ([(0, 20), (10, 0)], [[0], [0, 1], [1]]),  # overlapping
        ([(0, 5), (30, 0)], [[0], [1], [1]]),  # 6, 18, 28 in none: 4 is nearer to 6, 30 to 18 and 28
        ([(0, 15), (22, 30)], [[0], [0], [1]]),  # 14 and 22 are as near to 18: the earlier
        ([(22, 30), (0, 15)], [[1], [1], [0]]),
        ([(0, 5), (2, 5)], [[0, 1], [0, 1], [0, 1]]),  # both hold 4
        ([(0, 5), (2, 4)], [[0], [0], [0]]),
        ([WHOLE_CLIP, (15, 20)], [[0], [0, 1], [0]]),  # without a range always, and gaps are its own
        ([(20, 60)], [[0], [0], [0]]),
    ],
)
def test_choice_by_hand(ranges, chosen):
    assert [chosen_prompts(ranges, segment) for segment in PLAN] == chosen


frame_ranges = st.tuples(st.integers(0, 120), st.integers(1, 60)).map(lambda r: (r[0], sum(r)))


@given(st.lists(frame_ranges, min_size=1, max_size=4), st.integers(2, 25), st.integers(1, 6))
def test_no_segment_is_without_a_prompt(ranges, latent_frames, segment_frames):
    for segment in plan_segments(latent_frames, segment_frames, 0):
        chosen, middle = chosen_prompts(ranges, segment), middle_frame(segment)
        assert chosen
        holding = [index for index, (start, end) in enumerate(ranges) if start <= middle < end]
        assert not holding or chosen == holding


def test_unused_ranges():
    assert unused_ranges([(0, 15), (15, 0)], PLAN) == []
    assert unused_ranges([(0, 15), (15, 18), (20, 28), (28, 0), (33, 40)], PLAN) == [(20, 28), (33, 40)]
    assert unused_ranges([WHOLE_CLIP, (7, 12)], PLAN) == [(7, 12)]


def test_ranges_after_the_clip_are_refused_unless_another_one_fits():
    with pytest.raises(
        ValueError, match="negative has prompts from frame 33 on, but the clip has 33 frames"
    ):
        check_ranges_in_clip([(40, 0), (33, 40), WHOLE_CLIP], 33, "negative")
    for ranges in ([], [WHOLE_CLIP], [(32, 40)], [(0, 10), (50, 0)]):
        check_ranges_in_clip(ranges, 33, "negative")


def test_wrong_ranges_say_what_is_right():
    for right in ((0, 0), (5, 0), (5, 6)):
        check_frame_range(*right)
    with pytest.raises(ValueError, match=r"start_frame is -1, .* nearest valid value is 0\.$"):
        check_frame_range(-1, 4)
    for start, end in ((5, 5), (5, 2), (5, -1)):
        with pytest.raises(ValueError, match=rf"end_frame {end}, .* nearest valid end_frame is 6\.$"):
            check_frame_range(start, end)
