"""Frames to the reference latent: streamed where the autoencoder is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from ...swifti2v_core.progress import Report, silent
from ...swifti2v_core.reference.hybrid import with_anchor
from ...swifti2v_core.vae import memory_plan
from ...swifti2v_core.vae.strips import StripEncoder
from ..comfyui import memory
from ..comfyui.progress import check_interrupted
from ..comfyui.sampling import to_storage
from ..comfyui.vae import encode_frames, free_bytes_after_loading, streams
from .memory_advice import MemoryNeed, image_need, smaller_sizes

Chunks = Callable[[torch.device], Iterator[torch.Tensor]]
"""Starts a clip on a device from its beginning: one frame ``[1, H, W, 3]``, then four at a time.

A function and no iterator, because an encode that runs out of memory starts over in smaller pieces.
"""


def encode_reference(vae: Any, frames: int, height: int, width: int, chunks: Chunks) -> torch.Tensor:
    """Encode a clip given piece by piece, with its first frame as the anchor.

    Parameters
    ----------
    vae
        A VAE of 48 channels. Wan autoencoders take the pieces as they come; for any other the clip is
        assembled and ComfyUI encodes it (in tiles, if it must).
    frames, height, width
        Number and size of the frames of the clip.
    chunks
        The clip.

    Returns
    -------
    Tensor
        ``[1, 48, T, h, w]``; latent frame 0 is the first frame alone.
    """
    if streams(vae):
        return _encode_streamed(vae, _plan_strips(vae, height, width), chunks)
    clip = assemble(frames, chunks(memory.CPU))
    return with_anchor(encode_frames(vae, clip), encode_frames(vae, clip[:1]))


def encode_need(vae: Any, frames: int, height: int, width: int) -> MemoryNeed:
    """Return the least memory that `encode_reference` can work with."""
    if not streams(vae):
        return image_need("reference", 1, width, height, frames)
    encoder, size = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    most = memory_plan.ENCODE_STRIPS[-1]

    def needed(wide: int, high: int) -> float:
        return memory_plan.encode_memory_bytes(encoder, high, wide, size, most)

    return MemoryNeed(
        f"The encode at {width}x{height}, even in {most} strips",
        needed(width, height),
        lambda: smaller_sizes(width, height, needed),
    )


def assemble(count: int, pieces: Iterator[torch.Tensor], report: Report = silent) -> torch.Tensor:
    """Return ``count`` frames given in pieces as one float32 tensor, without holding them twice."""
    first = next(pieces)
    whole, done = torch.empty(count, *first.shape[1:], dtype=torch.float32), 0
    for piece in chain((first,), pieces):
        whole[done : done + len(piece)] = piece
        done += len(piece)
        report(done)
    return whole


def _plan_strips(vae: Any, height: int, width: int) -> int:
    """Make room for the encoder and choose the strips by the memory that is free then."""
    encoder, size = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    whole = memory_plan.encode_memory_bytes(encoder, height, width, size, strips=1)
    free = free_bytes_after_loading(vae, whole)
    return memory_plan.plan_encode(encoder, height, width, size, free)


def _encode_streamed(vae: Any, strips: int, chunks: Chunks) -> torch.Tensor:
    """Return the encoded clip, in more strips when memory runs out, which gives the same result."""
    # Frames are best resized where they are encoded; other devices than CUDA lack the antialiased kernels.
    device = vae.device if vae.device.type == "cuda" else memory.CPU
    while True:
        last = strips >= memory_plan.ENCODE_STRIPS[-1]
        # In the last attempt they are resized in RAM.
        pieces = (_prepare(vae, frames) for frames in chunks(memory.CPU if last else device))
        try:
            latent_frames = StripEncoder(vae.first_stage_model, strips).encode(pieces)
            return torch.cat([to_storage(latent_frame) for latent_frame in latent_frames], dim=2)
        except Exception as error:
            if last or not memory.is_out_of_memory(error):
                raise
            # Retry after this block: inside it the exception keeps the failed attempt's tensors alive.
            strips *= 2
        del pieces
        memory.release_memory()


def _prepare(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    check_interrupted()
    return vae.process_input(frames.to(vae.device)).to(vae.vae_dtype)
