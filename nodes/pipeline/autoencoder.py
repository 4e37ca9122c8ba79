"""Encoding and decoding with ComfyUI's VAE objects: streamed where the autoencoder is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from ...swifti2v_core.geometry import LATENT_FACTOR, pixel_frame_count
from ...swifti2v_core.images import FiniteCheck, to_bytes
from ...swifti2v_core.progress import Report, silent
from ...swifti2v_core.reference.hybrid import with_anchor
from ...swifti2v_core.vae import memory_plan, strips
from ...swifti2v_core.vae.transfer import delayed_by_one
from ..comfyui import host, memory
from ..comfyui.internals import STREAMING, VAE_INTERNALS, VAE_SIZES, works
from ..comfyui.progress import check_interrupted, frame_progress
from .memory_advice import HOST, Work, image_work, shortage, smaller_sizes


def vae_channels(vae: Any) -> int:
    """Return the latent channels of a VAE."""
    return vae.latent_channels


def cell_size(vae: Any) -> int:
    """Return the pixels per latent cell of a VAE, in both directions."""
    if not works(VAE_SIZES):
        return LATENT_FACTOR if vae_channels(vae) == 48 else LATENT_FACTOR // 2
    return vae.spacial_compression_decode()


def device_of(vae: Any) -> torch.device:
    """Return where a VAE computes."""
    return getattr(vae, "device", HOST)


def streams(vae: Any) -> bool:
    """Return whether clips stream through a VAE, see `strips.is_wan_autoencoder`; others go whole."""
    known = works(STREAMING) and all(hasattr(vae, name) for name in VAE_INTERNALS)
    return known and strips.is_wan_autoencoder(vae.first_stage_model)


Chunks = Callable[[torch.device], Iterator[torch.Tensor]]
"""Starts a clip anew, made on a device: one frame ``[1, H, W, 3]``, then four at a time."""


# --- Encode ---------------------------------------------------------------------------------------


def encode(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Encode frames ``[F, H, W, 3]`` to a video latent ``[1, C, T, h, w]``."""
    return host.to_storage(vae.encode(frames))


def encode_reference(vae: Any, frames: int, height: int, width: int, chunks: Chunks) -> torch.Tensor:
    """Encode a clip given piece by piece, with its first frame as the anchor.

    Parameters
    ----------
    vae
        A VAE of 48 channels. Wan autoencoders take the pieces as they come; for any other the clip is
        put together and ComfyUI encodes it (in tiles, if it must).
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
        return _encode_streamed(vae, _encode_strips(vae, height, width), chunks)
    clip = _put_together(frames, chunks(HOST))
    return with_anchor(encode(vae, clip), encode(vae, clip[:1]))


def encode_work(vae: Any, frames: int, height: int, width: int) -> Work:
    """Return what a user must know if `encode_reference` runs out of memory."""
    if not streams(vae):
        return image_work("reference", 1, width, height, frames)
    encoder, size, most = (
        vae.first_stage_model.encoder,
        vae.vae_dtype.itemsize,
        memory_plan.ENCODE_STRIPS[-1],
    )

    def need(wide: int, high: int) -> float:
        return memory_plan.encode_memory_bytes(encoder, high, wide, size, most)

    return Work(
        f"The encode at {width}x{height}, even in {most} strips",
        need(width, height),
        lambda: smaller_sizes(width, height, need),
    )


def _encode_strips(vae: Any, height: int, width: int) -> int:
    """Make room for the encoder and choose the strips by the memory that is free then."""
    encoder, size = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    shape = (encoder, height, width, size)
    free = _free_after_asking(vae, memory_plan.encode_memory_bytes(*shape, strips=1))
    return memory_plan.plan_encode(*shape, free)


def _encode_streamed(vae: Any, strips: int, chunks: Chunks) -> torch.Tensor:
    """Return the encoded clip, in more strips when memory runs out, which gives the same result."""
    # Frames are best resized where they are encoded; other devices than CUDA lack the antialiased kernels.
    device = vae.device if vae.device.type == "cuda" else HOST
    while True:
        last = strips >= memory_plan.ENCODE_STRIPS[-1]
        # In the last attempt they are resized in host memory.
        pieces = (_prepared(vae, frames) for frames in chunks(HOST if last else device))
        try:
            latent_frames = strips.StripEncoder(vae.first_stage_model, strips).encode(pieces)
            return torch.cat([host.to_storage(latent_frame) for latent_frame in latent_frames], dim=2)
        except Exception as error:
            if last or not memory.is_out_of_memory(error):
                raise
            # Only noted: inside this block the exception keeps the failed attempt's tensors alive.
            strips *= 2
        del pieces
        memory.release_memory()


def _prepared(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    check_interrupted()
    return vae.process_input(frames.to(vae.device)).to(vae.vae_dtype)


def _put_together(count: int, pieces: Iterator[torch.Tensor], report: Report = silent) -> torch.Tensor:
    """Return ``count`` frames given in pieces as one float32 tensor, without holding them twice."""
    first = next(pieces)
    whole, done = torch.empty(count, *first.shape[1:], dtype=torch.float32), 0
    for piece in chain((first,), pieces):
        whole[done : done + len(piece)] = piece
        done += len(piece)
        report(done)
    return whole


# --- Decode ---------------------------------------------------------------------------------------


def decode_images(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode a latent ``[B, C, T, h, w]`` to one IMAGE ``[B * F, H, W, 3]``, filled as frames are done."""
    if not streams(vae):
        return _decode_whole(vae, latent)
    count = len(latent) * pixel_frame_count(latent.shape[2])
    # Half precision is finer than what 16-bit weights compute, and takes half as long to leave the GPU.
    leave = _unchanged if vae.vae_dtype == torch.float32 else torch.Tensor.half
    pieces = (frames for clip in latent.split(1) for frames in _decode_streamed(vae, clip, leave))
    return _put_together(count, pieces, frame_progress(count))


def decode_bytes(vae: Any, latent: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode one clip ``[1, C, T, h, w]``, yielding frames ``[n, H, W, 3]`` uint8 as they are done.

    Wan autoencoders stream (`strips.StripDecoder`); any other is decoded whole by ComfyUI.
    """
    if streams(vae):
        yield from _decode_streamed(vae, latent, to_bytes)
        return
    for frame in _decode_whole(vae, latent).split(1):
        check = FiniteCheck(frame.device)
        check.update(frame)
        check.verify()
        yield to_bytes(frame)


def _decode_whole(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    frames = vae.decode(latent)
    return frames.flatten(0, 1) if frames.ndim == 5 else frames  # image VAEs give no frame axis


def _unchanged(frames: torch.Tensor) -> torch.Tensor:
    return frames


def _decode_streamed(
    vae: Any, latent: torch.Tensor, leave: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[torch.Tensor]:
    """Decode one clip, yielding frames on the CPU in the format that ``leave`` gives them on the GPU."""
    check = FiniteCheck(vae.device)

    def finish(pixels: torch.Tensor) -> torch.Tensor:
        check_interrupted()  # at every strip; whole frames can take long
        check.update(pixels)
        return leave(vae.process_output(pixels.float()))

    plan, done, ran_out = _decode_plan(vae, latent), 0, False
    while True:
        with memory.pinning(vae.device) as pin:  # of one attempt: what failed must not stay pinned
            samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
            decoder = strips.StripDecoder(vae.first_stage_model, plan, finish, pin)
            pieces = _without(done, delayed_by_one(decoder.decode(samples)))
            del decoder  # lives as long as its pieces come
            try:
                for frames in pieces:
                    if not done:
                        check.verify()  # what is wrong from the start is said at the start
                    done += len(frames)
                    yield frames
                break
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
                # Only noted: inside this block the exception keeps the attempt's tensors alive.
                of_host = memory.is_of_host(error)
        del pieces
        memory.release_memory()
        smaller = memory_plan.smaller_plan(plan)
        if smaller is None:
            raise shortage(_smallest_decode(vae, latent), vae.device, of_host)
        plan = smaller
        if not ran_out:
            host.logger.warning("The decode ran out of memory; it starts again in smaller strips.")
        ran_out = True
    check.verify()


def _smallest_decode(vae: Any, latent: torch.Tensor) -> Work:
    """Return what a user must know of a decode that runs out of memory with the smallest plan."""
    decoder, size, plan = (
        vae.first_stage_model.decoder,
        vae.vae_dtype.itemsize,
        memory_plan.DECODE_PLANS[-1],
    )
    cell, (width, height) = cell_size(vae), pixel_size_of(vae, latent)

    def need(wide: int, high: int) -> float:
        return memory_plan.decode_memory_bytes(decoder, high // cell, wide // cell, size, plan)

    return Work(
        f"The decode at {width}x{height}, even in {plan.strips} strips",
        need(width, height),
        lambda: smaller_sizes(width, height, need),
    )


def pixel_size_of(vae: Any, latent: torch.Tensor) -> tuple[int, int]:
    """Return (width, height) in pixels that a latent decodes to."""
    cell = cell_size(vae)
    return latent.shape[-1] * cell, latent.shape[-2] * cell


def _without(count: int, pieces: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Leave out the first ``count`` frames."""
    for frames in pieces:
        left = frames[min(count, len(frames)) :]
        count -= len(frames) - len(left)
        if len(left):
            yield left


def _decode_plan(vae: Any, latent: torch.Tensor) -> memory_plan.DecodePlan:
    """Make room for the decoder and choose how to cut, by the memory that is free then."""
    shape = (vae.first_stage_model.decoder, *latent.shape[-2:], vae.vae_dtype.itemsize)
    free = _free_after_asking(vae, memory_plan.decode_memory_bytes(*shape, memory_plan.DECODE_PLANS[0]))
    plan = memory_plan.plan_decode(*shape, free)
    host.logger.info("Decode: %d strips, %d latent frames at a time", plan.strips, plan.latent_frames)
    return plan


def _free_after_asking(vae: Any, need: float) -> float:
    """Load the VAE, have ComfyUI make room for ``need`` bytes and return what may be taken."""
    # More than the device holds cannot be freed; asking for it would only push the VAE's own weights out.
    memory.make_room(vae.patcher, min(need, 0.8 * memory.total_memory(vae.device)))
    return 0.85 * memory.free_memory(vae.patcher, vae.device)
