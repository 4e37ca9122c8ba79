"""Long clips in Stage I, sampled chunk by chunk, each chunk continuing the one before.

A chunk is a range of the clip's latent frames, as long as the clips that the model was trained on, so
memory does not grow with the clip. Its first latent frames come from the previous chunk; where the model
generates them again, both versions are cross-faded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import FRAMES_PER_LATENT, latent_frame_count, nearest_frame_count, nearest_multiple


@dataclass(frozen=True)
class Chunk:
    """Latent frames that are sampled together.

    Attributes
    ----------
    index
        Number of the chunk, from 0.
    frames
        Its latent frames in the clip.
    known
        Number of leading frames that earlier chunks have generated; 0 in chunk 0, which starts at the
        photo.
    """

    index: int
    frames: range
    known: int


def plan_chunks(frames: int, chunk_frames: int, overlap_frames: int) -> list[Chunk]:
    """Cut a clip into overlapping chunks of one length.

    The last chunk moves back to end with the clip, so its overlap may be larger than ``overlap_frames``.

    Parameters
    ----------
    frames
        Pixel frames of the clip, 4n+1.
    chunk_frames
        Pixel frames that a chunk alone decodes to, 4n+1 and at least 5. 0, or at least ``frames``, makes
        the whole clip one chunk.
    overlap_frames
        Pixel frames that a chunk shares with the previous one, 4n, at least 4 and less than
        ``chunk_frames``. Ignored while ``chunk_frames`` is 0.

    Raises
    ------
    ValueError
        If a number is invalid; the message names the nearest valid one.
    """
    total = latent_frame_count(frames)
    if chunk_frames:
        _check_chunks(chunk_frames, overlap_frames)
    if not 0 < chunk_frames < frames:
        return [Chunk(0, range(total), 0)]
    length = latent_frame_count(chunk_frames)
    step = length - overlap_frames // FRAMES_PER_LATENT
    starts = [*range(0, total - length, step), total - length]
    chunks = [Chunk(0, range(length), 0)]
    for start in starts[1:]:
        known = chunks[-1].frames.stop - start
        chunks.append(Chunk(len(chunks), range(start, start + length), known))
    return chunks


def _check_chunks(chunk_frames: int, overlap_frames: int) -> None:
    if nearest_frame_count(chunk_frames) != chunk_frames:
        raise ValueError(
            f"chunk_frames is {chunk_frames}, but must be 4n+1 and at least 5, or 0 for the whole clip at "
            f"once; the nearest valid value is {nearest_frame_count(chunk_frames)}."
        )
    _check_overlap(overlap_frames, chunk_frames, "chunk_frames")


def _check_overlap(overlap_frames: int, frames: int, name: str) -> None:
    nearest = min(nearest_multiple(overlap_frames, FRAMES_PER_LATENT), frames - 1)
    if overlap_frames != nearest:
        raise ValueError(
            f"overlap_frames is {overlap_frames}, but must be a multiple of 4 from 4 to "
            f"{frames - 1}, below {name}; the nearest valid value is {nearest}."
        )


def last_frames(clip: Tensor, frames: int, overlap_frames: int) -> Tensor:
    """Return the last frames of a given clip, from which a new one continues.

    As many as fill the latent frames of an overlap: ``overlap_frames`` - 3, since latent frame 0 is one
    video frame. The new clip then starts from one image, as models were trained to.

    Parameters
    ----------
    clip
        ``[F, H, W, C]``.
    frames
        Frames of the new clip, the known ones included, 4n+1.
    overlap_frames
        4n, at least 4 and less than ``frames``.

    Raises
    ------
    ValueError
        If the overlap is invalid or the clip too short; the message names the nearest valid overlap.
    """
    _check_overlap(overlap_frames, frames, "frames")
    count = overlap_frames - FRAMES_PER_LATENT + 1
    if len(clip) < count:
        raise ValueError(
            f"continue_from has {len(clip)} frames, but with overlap_frames {overlap_frames} a clip "
            f"continues from the last {count}; the nearest valid overlap_frames is "
            f"{(len(clip) + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT}."
        )
    return clip[-count:]


def continue_from(reference: Tensor, made: Tensor, known: int) -> Tensor:
    """Return the frames that a chunk starts from: its known frames, then those of ``reference``.

    Parameters
    ----------
    reference
        ``[1, C, t, h, w]``: the start of chunk 0, with the photo as latent frame 0.
    made
        ``[1, C, n, h, w]``: the clip so far.
    known
        Number of frames at the end of ``made`` that the chunk starts with; 0 in chunk 0.
    """
    return torch.cat((made[:, :, -known:], reference[:, :, known:]), dim=2) if known else reference


def append_chunk(made: Tensor, chunk: Tensor, known: int) -> Tensor:
    """Return the clip so far, extended by a chunk and cross-faded where they overlap.

    Parameters
    ----------
    made
        ``[1, C, n, h, w]``: the clip so far.
    chunk
        ``[1, C, t, h, w]``.
    known
        Overlap in latent frames; frame i of 1..known is mixed with ``i / (known + 1)`` of the chunk.
    """
    kept = made.shape[2] - known
    weight = torch.arange(1, known + 1).to(chunk)[:, None, None] / (known + 1)
    # lerp returns equal frames unchanged, bit for bit.
    faded = torch.lerp(made[:, :, kept:], chunk[:, :, :known], weight)
    return torch.cat((made[:, :, :kept], faded, chunk[:, :, known:]), dim=2)
