"""Frames to the reference latent: streamed where the autoencoder is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from ...swifti2v_core.geometry import latent_frame_count
from ...swifti2v_core.reference.hybrid import with_anchor
from ...swifti2v_core.vae.counting import Cost
from ...swifti2v_core.vae.memory_plan import EncodePlan, encode_cost, plan_encode
from ...swifti2v_core.vae.strips import StripEncoder
from ..comfyui import memory
from ..comfyui.progress import check_interrupted
from ..comfyui.sampling import to_storage
from ..comfyui.vae import encode_frames, streams
from .memory_advice import MemoryNeed, image_need
from .vae_plans import Planner

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
        return _encode_streamed(vae, encode_planner(vae, frames, height, width), chunks)
    clip = assemble(frames, chunks(memory.CPU))
    return with_anchor(encode_frames(vae, clip), encode_frames(vae, clip[:1]))


def encode_need(vae: Any, frames: int, height: int, width: int) -> MemoryNeed:
    """Return the least memory that `encode_reference` can work with."""
    if not streams(vae):
        return image_need("reference", 1, width, height, frames)
    planner = encode_planner(vae, frames, height, width)
    return planner.need(planner.smallest())


def assemble(count: int, pieces: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return ``count`` frames given in pieces as one float32 tensor, without holding them twice."""
    first = next(pieces)
    whole, done = torch.empty(count, *first.shape[1:], dtype=torch.float32), 0
    for piece in chain((first,), pieces):
        whole[done : done + len(piece)] = piece
        done += len(piece)
    return whole


def encode_planner(vae: Any, frames: int, height: int, width: int) -> Planner[EncodePlan]:
    """Return the planner of an encode."""
    encoder, element = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    latent_frames = latent_frame_count(frames)

    def choose(free: float, free_ram: float) -> EncodePlan:
        return plan_encode(encoder, height, width, element, free, latent_frames, free_ram)

    def cost(plan: EncodePlan, wide: int, high: int) -> Cost:
        return encode_cost(encoder, high, wide, element, plan, latent_frames)

    return Planner("encode", vae, (width, height), choose, cost)


def _encode_streamed(vae: Any, planner: Planner[EncodePlan], chunks: Chunks) -> torch.Tensor:
    """Return the encoded clip, in smaller pieces when memory runs out, which gives the same result."""
    # Frames are best resized where they are encoded; only CUDA has the antialiased kernels.
    device = vae.device if vae.device.type == "cuda" else memory.CPU
    plan = planner.first([vae.first_stage_model.encoder, vae.first_stage_model.conv1])
    while True:
        # In the smallest pieces they are resized in RAM.
        pieces = _Pieces(vae, chunks, memory.CPU if plan == planner.smallest() else device)
        latent_frames = StripEncoder(vae.first_stage_model, plan).encode(pieces)
        try:
            latent_frames = memory.on_device(vae.device, latent_frames)
            return torch.cat([to_storage(latent_frame) for latent_frame in latent_frames], dim=2)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            # Retry after this block: inside it the exception keeps the failed attempt's tensors alive.
            of_cpu = memory.is_out_of_cpu_memory(error)
        del pieces, latent_frames
        memory.release_memory()
        smaller = planner.smaller(plan, of_cpu)
        if smaller is None:
            raise planner.shortage(plan, of_cpu)
        plan = smaller


class _Pieces:
    """The clip as the encoder takes it; every iteration starts from its beginning."""

    def __init__(self, vae: Any, chunks: Chunks, device: torch.device) -> None:
        self._vae, self._chunks, self._device = vae, chunks, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (_prepare(self._vae, frames) for frames in self._chunks(self._device))


def _prepare(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    check_interrupted()
    return vae.process_input(frames.to(vae.device)).to(vae.vae_dtype)
