import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swifti2v_core.stage_one.chunks import Chunk, append_chunk, continue_from, last_frames, plan_chunks


def table(*args):
    return [(chunk.frames.start, chunk.frames.stop, chunk.known) for chunk in plan_chunks(*args)]


@pytest.mark.parametrize(
    ("frames", "chunk_frames", "overlap_frames", "chunks"),
    [
        # 61 latent frames, chunks of 21 that share 2; the last one is moved back.
        (241, 81, 8, [(0, 21, 0), (19, 40, 2), (38, 59, 2), (40, 61, 19)]),
        (237, 81, 16, [(0, 21, 0), (17, 38, 4), (34, 55, 4), (39, 60, 16)]),
        (157, 81, 8, [(0, 21, 0), (19, 40, 2)]),  # fits exactly
        (85, 81, 80, [(0, 21, 0), (1, 22, 20)]),
        (17, 9, 4, [(0, 3, 0), (2, 5, 1)]),
        (13, 5, 4, [(0, 2, 0), (1, 3, 1), (2, 4, 1)]),
        (81, 81, 8, [(0, 21, 0)]),
        (81, 121, 8, [(0, 21, 0)]),
        (241, 0, 8, [(0, 61, 0)]),
        (241, 0, 3, [(0, 61, 0)]),
    ],
)
def test_tables(frames, chunk_frames, overlap_frames, chunks):
    assert table(frames, chunk_frames, overlap_frames) == chunks
    assert [chunk.index for chunk in plan_chunks(frames, chunk_frames, overlap_frames)] == list(
        range(len(chunks))
    )


@given(st.data())
def test_every_frame_is_made_once_and_known_after_that(data):
    total, length = data.draw(st.integers(2, 300)), data.draw(st.integers(2, 40))
    overlap = data.draw(st.integers(1, length - 1))
    chunks = plan_chunks(4 * total - 3, 4 * length - 3, 4 * overlap)
    assert [frame for chunk in chunks for frame in chunk.frames[chunk.known :]] == list(range(total))
    assert all(len(chunk.frames) == min(length, total) for chunk in chunks)
    assert all(chunk.known == overlap for chunk in chunks[1:-1])
    assert chunks[0].known == 0
    assert len(chunks) == 1 or overlap <= chunks[-1].known < length


@pytest.mark.parametrize(
    ("chunk_frames", "overlap_frames", "words"),
    [
        (80, 8, ("chunk_frames is 80", "4n+1", "nearest valid value is 81")),
        (1, 8, ("chunk_frames is 1", "nearest valid value is 5")),
        (81, 6, ("overlap_frames is 6", "from 4 to 80", "nearest valid value is 8")),
        (81, 0, ("overlap_frames is 0", "nearest valid value is 4")),
        (81, 84, ("overlap_frames is 84", "nearest valid value is 80")),
        (321, 322, ("overlap_frames is 322", "nearest valid value is 320")),  # also of a short clip
    ],
)
def test_wrong_numbers_say_what_is_right(chunk_frames, overlap_frames, words):
    with pytest.raises(ValueError) as error:
        plan_chunks(241, chunk_frames, overlap_frames)
    assert all(word in str(error.value) for word in words), error.value


def test_a_chunk_knows_the_last_frames():
    reference = torch.zeros(1, 2, 4, 1, 1)
    made = torch.arange(6.0).reshape(1, 1, 6, 1, 1).expand(1, 2, 6, 1, 1)
    start = continue_from(reference, made, 2)
    assert start[0, :, :, 0, 0].tolist() == [[4, 5, 0, 0]] * 2
    assert not reference.any()
    assert continue_from(reference, made, 0) is reference


def test_overlaps_fade_linearly():
    made = torch.full((1, 2, 5, 1, 1), 4.0)
    longer = append_chunk(made, torch.full((1, 2, 4, 1, 1), 8.0), 3)
    assert longer[0, :, :, 0, 0].tolist() == [[4, 4, 5, 6, 7, 8]] * 2
    assert (made == 4).all()
    assert append_chunk(made, longer, 1)[0, 0, :, 0, 0].tolist() == [4, 4, 4, 4, 4, 4, 5, 6, 7, 8]
    first = torch.rand(1, 2, 4, 3, 3)
    assert torch.equal(append_chunk(first[:, :, :0], first, 0), first)


def test_equal_frames_stay_as_they_are():
    clip = torch.randn(1, 3, 9, 4, 4)
    assert torch.equal(append_chunk(clip[:, :, :6], clip[:, :, 1:], 5), clip)


def test_a_chunk_is_a_value():
    assert plan_chunks(17, 9, 4)[1] == Chunk(1, range(2, 5), 1)


@pytest.mark.parametrize(
    ("overlap_frames", "numbers"), [(4, [9]), (8, [5, 6, 7, 8, 9]), (12, [*range(1, 10)])]
)
def test_a_clip_continues_from_the_frames_of_whole_latent_frames(overlap_frames, numbers):
    clip = torch.arange(10.0).reshape(10, 1, 1, 1)
    assert last_frames(clip, 81, overlap_frames).flatten().tolist() == numbers


@pytest.mark.parametrize(
    ("given", "frames", "overlap_frames", "words"),
    [
        (4, 81, 8, ("continue_from has 4 frames", "last 5", "nearest valid overlap_frames is 4.")),
        (12, 81, 16, ("continue_from has 12 frames", "last 13", "nearest valid overlap_frames is 12.")),
        (81, 9, 12, ("overlap_frames is 12", "below frames", "nearest valid value is 8.")),
        (81, 81, 6, ("overlap_frames is 6", "multiple of 4 from 4 to 80", "nearest valid value is 8.")),
    ],
)
def test_what_a_clip_cannot_continue_from(given, frames, overlap_frames, words):
    with pytest.raises(ValueError) as error:
        last_frames(torch.zeros(given, 1, 1, 3), frames, overlap_frames)
    assert all(word in str(error.value) for word in words), error.value
