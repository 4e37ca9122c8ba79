"""Self-attention inside temporal windows that shift from block to block.

A refiner starts from an upscaled clip, which has the motion already, and only adds detail, so a latent
frame needs to see its neighborhood, not the whole clip. Even blocks attend inside windows of W latent
frames, odd blocks inside windows shifted by W/2, so that frames separated in one block meet in the next.
The cost grows linearly with the length of the clip, not quadratically (SURF, arXiv 2603.21002, section on
the refiner: cyclic shifted windows on time).
"""

from __future__ import annotations

from itertools import groupby, pairwise

from torch import Tensor, cat

from .read_only import Attend


def check_window_frames(window_frames: int) -> None:
    """Check that windows can be shifted by half their length.

    Parameters
    ----------
    window_frames
        W, latent frames of a window.

    Raises
    ------
    ValueError
        If W is odd or below 2; the message names the nearest valid number.
    """
    if window_frames < 2 or window_frames % 2:
        raise ValueError(
            f"window_frames is {window_frames}, but every other block moves the windows by half of it, so "
            f"it must be even and at least 2; the nearest valid value is {max(2, window_frames + 1)}."
        )


def plan_windows(frames: int, window_frames: int, block: int) -> list[range]:
    """Divide a clip into the windows of one block.

    Remainders at the ends form shorter windows; nothing wraps around. A clip that fits in one window is one
    window in every block.

    Parameters
    ----------
    frames
        T, latent frames of the clip, at least 1.
    window_frames
        W, latent frames of a window, even and at least 2.
    block
        Index of the transformer block, from 0; odd blocks shift the windows by W/2.

    Returns
    -------
    list of range
        Latent frames of every window, in order; together they cover all T.
    """
    if frames <= window_frames:
        return [range(frames)]
    first = window_frames // 2 if block % 2 else window_frames
    edges = [0, *range(first, frames, window_frames), frames]
    return [range(start, stop) for start, stop in pairwise(edges)]


def attend_in_windows(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    windows: list[range],
    *,
    token_dim: int,
    output_dim: int,
) -> Tensor:
    """Attend inside each window separately.

    Consecutive windows of equal length are one batch, so there is no mask and no discarded attention.

    Parameters
    ----------
    attend
        Plain attention.
    query, key, value
        The whole clip, frame after frame, batch along dimension 0, tokens along ``token_dim``.
    windows
        See `plan_windows`; every frame has the same number of tokens.
    token_dim, output_dim
        Token axis of the inputs and of what ``attend`` returns.

    Returns
    -------
    Tensor
        As ``attend`` on the whole clip with a block-diagonal mask of the windows.
    """
    tokens = query.shape[token_dim] // windows[-1].stop
    results = []
    for length, run in groupby(windows, len):
        group = list(run)
        parts = (
            _move_to_batch(
                part.narrow(token_dim, group[0].start * tokens, len(group) * length * tokens),
                len(group),
                token_dim,
            )
            for part in (query, key, value)
        )
        results.append(_move_from_batch(attend(*parts), len(group), output_dim))
    return results[0] if len(results) == 1 else cat(results, dim=output_dim)


def _move_to_batch(part: Tensor, count: int, dim: int) -> Tensor:
    """Move ``count`` equal pieces of ``dim`` into the batch."""
    pieces = part.reshape(*part.shape[:dim], count, -1, *part.shape[dim + 1 :])
    return pieces.movedim(dim, 1).flatten(0, 1)


def _move_from_batch(part: Tensor, count: int, dim: int) -> Tensor:
    """Move ``count`` pieces from the batch back into ``dim``."""
    pieces = part.reshape(-1, count, *part.shape[1:])
    return pieces.movedim(1, dim).flatten(dim, dim + 1)
