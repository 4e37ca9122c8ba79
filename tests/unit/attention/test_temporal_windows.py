import pytest
import torch
import torch.nn.functional as F

from swifti2v_core.attention.temporal_windows import attend_in_windows, check_window_frames, plan_windows

BATCH, HEADS, TOKENS, CHANNELS = 2, 3, 5, 4
"""Clips, heads, tokens of a latent frame, channels of a head."""


def spans(frames, window_frames, block):
    return [(window.start, window.stop) for window in plan_windows(frames, window_frames, block)]


@pytest.mark.parametrize(
    ("frames", "window_frames", "even", "odd"),
    [
        (7, 4, [(0, 4), (4, 7)], [(0, 2), (2, 6), (6, 7)]),
        (8, 4, [(0, 4), (4, 8)], [(0, 2), (2, 6), (6, 8)]),
        (6, 4, [(0, 4), (4, 6)], [(0, 2), (2, 6)]),
        (5, 4, [(0, 4), (4, 5)], [(0, 2), (2, 5)]),
        (21, 6, [(0, 6), (6, 12), (12, 18), (18, 21)], [(0, 3), (3, 9), (9, 15), (15, 21)]),
        (5, 2, [(0, 2), (2, 4), (4, 5)], [(0, 1), (1, 3), (3, 5)]),
        (4, 4, [(0, 4)], [(0, 4)]),
        (3, 4, [(0, 3)], [(0, 3)]),
        (1, 4, [(0, 1)], [(0, 1)]),
        (1, 2, [(0, 1)], [(0, 1)]),
    ],
)
def test_windows_by_hand(frames, window_frames, even, odd):
    for block in (0, 2, 28):
        assert spans(frames, window_frames, block) == even
    for block in (1, 3, 29):
        assert spans(frames, window_frames, block) == odd


def test_windows_hold_every_frame_once_and_two_blocks_join_all_of_them():
    for window_frames in range(2, 13, 2):
        for frames in range(1, 40):
            plans = [plan_windows(frames, window_frames, block) for block in (0, 1)]
            for plan in plans:
                assert [frame for window in plan for frame in window] == list(range(frames))
                assert all(1 <= len(window) <= window_frames for window in plan)
            # No frame border is an end of windows in both blocks.
            ends = [{window.stop for window in plan} - {frames} for plan in plans]
            assert not ends[0] & ends[1]


@pytest.mark.parametrize(("given", "nearest"), [(5, 6), (1, 2), (0, 2), (-3, 2)])
def test_odd_windows_are_refused_with_the_nearest_valid_number(given, nearest):
    with pytest.raises(ValueError, match=rf"^window_frames is {given}, .* valid value is {nearest}\.$"):
        check_window_frames(given)


def test_even_windows_are_accepted():
    for window_frames in (2, 4, 6, 1000):
        check_window_frames(window_frames)


# --- Attention --------------------------------------------------------------------------------------


def flat(part):
    """``[B, heads, tokens, channels]`` as ``[B, tokens, heads * channels]``."""
    return part.transpose(1, 2).flatten(2)


def parts_of(frames):
    generator = torch.Generator().manual_seed(frames)
    shape = (BATCH, HEADS, frames * TOKENS, CHANNELS)
    return [torch.randn(shape, generator=generator) for _ in range(3)]


def attention(heads_in, heads_out, calls):
    def attend(query, key, value):
        calls.append(query.shape[0])
        parts = (query, key, value)
        if not heads_in:
            parts = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]
        result = F.scaled_dot_product_attention(*parts)
        return result if heads_out else flat(result)

    return attend


def masked(parts, windows):
    """The definition: one attention over the clip with a mask of blocks."""
    frame = torch.arange(parts[0].shape[2]) // TOKENS
    window = torch.tensor([number for number, frames in enumerate(windows) for _ in frames])[frame]
    return F.scaled_dot_product_attention(*parts, attn_mask=window[:, None] == window[None, :])


@pytest.mark.parametrize("heads_in", [False, True])
@pytest.mark.parametrize("heads_out", [False, True])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("frames", [1, 3, 4, 7, 11, 12])
def test_windows_are_attention_with_a_block_mask(frames, block, heads_in, heads_out):
    windows, parts, calls = plan_windows(frames, 4, block), parts_of(frames), []
    result = attend_in_windows(
        attention(heads_in, heads_out, calls),
        *(parts if heads_in else map(flat, parts)),
        windows,
        token_dim=2 if heads_in else 1,
        output_dim=2 if heads_out else 1,
    )
    expected = masked(parts, windows)
    expected = expected if heads_out else flat(expected)
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("frames", "block", "batches"),
    [
        (12, 0, [3 * BATCH]),
        (11, 0, [2 * BATCH, BATCH]),
        (12, 1, [BATCH, 2 * BATCH, BATCH]),
        (4, 1, [BATCH]),
    ],
)
def test_equal_windows_are_one_call(frames, block, batches):
    calls = []
    attend_in_windows(
        attention(True, True, calls),
        *parts_of(frames),
        plan_windows(frames, 4, block),
        token_dim=2,
        output_dim=2,
    )
    assert calls == batches


def test_inputs_stay_as_they_were():
    parts = parts_of(7)
    before = [part.clone() for part in parts]
    attend_in_windows(attention(True, True, []), *parts, plan_windows(7, 4, 1), token_dim=2, output_dim=2)
    assert all(torch.equal(one, two) for one, two in zip(parts, before, strict=True))
