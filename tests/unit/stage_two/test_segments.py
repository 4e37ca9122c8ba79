from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swifti2v_core.geometry import check_size, latent_frame_count, nearest_frame_count, pixel_frame_count
from swifti2v_core.stage_two.segments import clamped_positions, plan_segments, true_positions, window_tokens


@st.composite
def plans(draw):
    frames = draw(st.integers(2, 90))
    segment_frames = draw(st.integers(1, 12))
    neighbors = draw(st.integers(0, max(1, frames - 2)))
    return frames, segment_frames, neighbors


@given(plans())
def test_every_frame_is_made_once_and_windows_stay_bounded(case):
    frames, m, n = case
    segments = plan_segments(*case)
    made = [frame for segment in segments for frame in segment.noisy]
    assert made == list(range(1, frames))
    for segment in segments:
        assert segment.window[0] == 0
        assert len(segment.window) <= 1 + n + m
        assert list(segment.window) == sorted(set(segment.window))
        context = segment.window[1 : segment.clean]
        assert list(context) == list(range(segment.noisy[0] - len(context), segment.noisy[0]))
        # Neighbors are missing only where the clip does not have them.
        if segment.index and len(context) < n:
            assert context[0] == 1


@given(plans())
def test_windows_after_the_first_keep_one_shape_where_neighbors_exist(case):
    _, m, n = case
    for segment in plan_segments(*case)[1:]:
        assert len(segment.window) == min(1 + n + m, segment.noisy[-1] + 1)


def test_the_paper_plan_for_81_frames():
    windows = [segment.window for segment in plan_segments(latent_frame_count(81))]
    assert windows == [
        (0, 1, 2, 3),
        (0, 3, 4, 5, 6),
        (0, 6, 7, 8, 9),
        (0, 9, 10, 11, 12),
        (0, 12, 13, 14, 15),
        (0, 15, 16, 17, 18),
        (0, 17, 18, 19, 20),  # two noisy frames left, so two neighbors
    ]


@pytest.mark.parametrize(("frames", "segments"), [(81, 7), (121, 10), (161, 14), (241, 20)])
def test_segment_counts_of_the_paper(frames, segments):
    assert len(plan_segments(latent_frame_count(frames))) == segments


@pytest.mark.parametrize("frames", [81, 241])
def test_token_budget_of_the_paper(frames):
    assert window_tokens(plan_segments(latent_frame_count(frames)), 1408, 2560) == 17_600


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ((1, 3, 1), "nearest valid number is 2"),
        ((21, 0, 1), "segment_frames (M) is 0"),
        ((21, 3, -1), "nearest valid value is 0"),
        ((4, 3, 3), "nearest valid value is 2"),
    ],
)
def test_impossible_plans_say_what_is_possible(case, words):
    with pytest.raises(ValueError) as error:
        plan_segments(*case)
    assert words in str(error.value)


def test_positions():
    segments = plan_segments(61)
    assert true_positions(segments[-1]) == segments[-1].window == (0, 57, 58, 59, 60)
    assert clamped_positions(segments[-1]) == (0, 27, 28, 29, 30)
    assert clamped_positions(segments[2]) == segments[2].window


@given(plans().filter(lambda case: case[1] + case[2] <= 30))
def test_clamped_positions_stay_in_the_trained_range(case):
    for segment in plan_segments(*case):
        positions = clamped_positions(segment)
        assert positions[0] == 0 and positions[-1] <= 30
        steps = [b - a for a, b in pairwise(positions[1:])]
        assert all(step == 1 for step in steps)
        assert len(positions) < 2 or positions[1] > 0


def test_clamped_positions_refuse_a_window_longer_than_the_range():
    with pytest.raises(ValueError, match="at most 30"):
        clamped_positions(plan_segments(61, 40, 1)[0])


@given(st.integers(-10, 2000))
def test_frame_counts_round_trip_or_name_the_nearest(frames):
    nearest = nearest_frame_count(frames)
    assert pixel_frame_count(latent_frame_count(nearest)) == nearest
    if frames == nearest:
        return
    with pytest.raises(ValueError, match=f"valid number is {nearest}"):
        latent_frame_count(frames)
    if frames >= 5:
        assert abs(frames - nearest) <= 2


def test_sizes():
    check_size(2560, 1408)
    with pytest.raises(ValueError, match="nearest valid size is 1920x1088"):
        check_size(1920, 1080)
    with pytest.raises(ValueError, match="nearest valid size is 32x32"):
        check_size(0, -5)
    check_size(640, 368, 16)


def test_segments_see_the_keyframes_near_them():
    segments = plan_segments(21, 3, 1, keyframes=(5, 12, 20))
    seen = [(segment.window[1 : segment.clean], segment.times[1 : segment.clean]) for segment in segments]
    assert seen == [
        ((21,), (5,)),  # makes 1 to 3
        ((21, 22, 3), (5, 12, 3)),  # 4 to 6
        ((21, 22, 6), (5, 12, 6)),
        ((21, 22, 23, 9), (5, 12, 20, 9)),  # 10 to 12
        ((22, 23, 12), (12, 20, 12)),
        ((22, 23, 15), (12, 20, 15)),
        ((22, 23, 17, 18), (12, 20, 17, 18)),  # 19 and 20
    ]


@given(plans(), st.data())
def test_keyframes_change_nothing_else(case, data):
    frames, m, _ = case
    keyframes = sorted(data.draw(st.sets(st.integers(1, frames - 1), max_size=4)))
    for plain, segment in zip(plan_segments(*case), plan_segments(*case, keyframes), strict=True):
        own = [frame for frame in segment.window if frame < frames]
        assert tuple(own) == plain.window and segment.noisy == plain.noisy
        near = [time for frame, time in zip(segment.window, segment.times, strict=True) if frame >= frames]
        assert [keyframes[frame - frames] for frame in segment.window if frame >= frames] == near
        assert len(near) <= m + 2  # however long the clip


@pytest.mark.parametrize(
    ("keyframes", "words"), [((0,), "nearest valid one is 1"), ((21,), "is 20"), ((4, 4), "must ascend")]
)
def test_impossible_keyframes_say_what_is_possible(keyframes, words):
    with pytest.raises(ValueError, match=words):
        plan_segments(21, 3, 1, keyframes)


def test_clamped_positions_make_room_for_a_keyframe_ahead():
    last = plan_segments(61, 3, 1, keyframes=(10, 60))
    assert clamped_positions(last[-1]) == (0, 1, 30, 27, 28, 29, 30)
    # Frames 37 to 39 with the last keyframe 21 to 23 frames later: everything fits into the range.
    assert last[12].times == (0, 10, 60, 36, 37, 38, 39)
    assert clamped_positions(last[12]) == (0, 1, 30, 6, 7, 8, 9)
    # Frames 4 to 6: the keyframe at 60 is too far ahead, neighbors move up to 1 at most.
    far = plan_segments(61, 3, 1, keyframes=(60,))[1]
    assert clamped_positions(far) == (0, 58, 1, 2, 3, 4)
