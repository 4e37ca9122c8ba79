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
from ..comfyui.vae import FREE_SHARE, RETRY_SHARE, encode_frames, free_bytes_after_loading, streams
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
        return EncodePlanner(vae, frames, height, width).encode(chunks)
    clip = assemble(frames, chunks(memory.CPU))
    return with_anchor(encode_frames(vae, clip), encode_frames(vae, clip[:1]))


def encode_need(vae: Any, frames: int, height: int, width: int) -> MemoryNeed:
    """Return the least memory that `encode_reference` can work with."""
    if not streams(vae):
        return image_need("reference", 1, width, height, frames)
    planner = EncodePlanner(vae, frames, height, width)
    smallest = planner.plan(free=0.0)

    def needed(wide: int, high: int) -> float:
        return planner.cost(smallest, high, wide).device_bytes

    return MemoryNeed(
        f"The encode at {width}x{height}, even in {smallest.strips} strips",
        needed(width, height),
        lambda: smaller_sizes(width, height, needed),
    )


def assemble(count: int, pieces: Iterator[torch.Tensor]) -> torch.Tensor:
    """Return ``count`` frames given in pieces as one float32 tensor, without holding them twice."""
    first = next(pieces)
    whole, done = torch.empty(count, *first.shape[1:], dtype=torch.float32), 0
    for piece in chain((first,), pieces):
        whole[done : done + len(piece)] = piece
        done += len(piece)
    return whole


class EncodePlanner:
    """Encodes one clip, divided first by what is free and then by what has failed.

    Parameters as in `encode_reference`.
    """

    def __init__(self, vae: Any, frames: int, height: int, width: int) -> None:
        self._vae, self._size = vae, (height, width)
        self._latent_frames = latent_frame_count(frames)
        self._on_cpu = vae.device.type == "cpu"
        # What the CPU computes in is RAM, too: there, results in RAM save nothing.
        self._free_ram = 0.0 if self._on_cpu else FREE_SHARE * memory.free_bytes(memory.CPU)

    def cost(self, plan: EncodePlan, height: int, width: int) -> Cost:
        """Return what a plan takes at a size in pixels."""
        encoder, element = self._vae.first_stage_model.encoder, self._vae.vae_dtype.itemsize
        return encode_cost(encoder, height, width, element, plan, self._latent_frames)

    def plan(self, free: float) -> EncodePlan:
        """Return the plan for ``free`` bytes on the device."""
        encoder, element = self._vae.first_stage_model.encoder, self._vae.vae_dtype.itemsize
        return plan_encode(encoder, *self._size, element, free, self._latent_frames, self._free_ram)

    def encode(self, chunks: Chunks) -> torch.Tensor:
        """Return the encoded clip, in smaller pieces when memory runs out, which gives the same result."""
        # Frames are best resized where they are encoded; only CUDA has the antialiased kernels.
        device = self._vae.device if self._vae.device.type == "cuda" else memory.CPU
        plan = self._first()
        while True:
            smaller = self._smaller(plan)
            # In the last attempt they are resized in RAM.
            pieces = _Pieces(self._vae, chunks, device if smaller else memory.CPU)
            latent_frames = StripEncoder(self._vae.first_stage_model, plan).encode(pieces)
            try:
                latent_frames = memory.on_device(self._vae.device, latent_frames)
                return torch.cat([to_storage(latent_frame) for latent_frame in latent_frames], dim=2)
            except Exception as error:
                # RAM does not run out less with more groups, which keep more in it.
                of_cpu = memory.is_out_of_cpu_memory(error) and not self._on_cpu
                if smaller is None or of_cpu or not memory.is_out_of_memory(error):
                    raise
                # Retry after this block: inside it the exception keeps the failed attempt's tensors alive.
            del pieces, latent_frames
            memory.release_memory()
            plan = smaller

    def _first(self) -> EncodePlan:
        """Make room for the encoder and choose by the memory that is free then."""
        fastest = self.cost(EncodePlan(1), *self._size).device_bytes
        parts = [self._vae.first_stage_model.encoder, self._vae.first_stage_model.conv1]
        return self.plan(free_bytes_after_loading(self._vae, fastest, parts))

    def _smaller(self, plan: EncodePlan) -> EncodePlan | None:
        """Return the plan to try after one ran out of memory, None after the smallest."""
        failed = self.cost(plan, *self._size).device_bytes
        smaller = self.plan(RETRY_SHARE * failed)
        return smaller if self.cost(smaller, *self._size).device_bytes < failed else None


class _Pieces:
    """The clip as the encoder takes it; every iteration starts from its beginning."""

    def __init__(self, vae: Any, chunks: Chunks, device: torch.device) -> None:
        self._vae, self._chunks, self._device = vae, chunks, device

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (_prepare(self._vae, frames) for frames in self._chunks(self._device))


def _prepare(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    check_interrupted()
    return vae.process_input(frames.to(vae.device)).to(vae.vae_dtype)
