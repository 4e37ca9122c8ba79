"""Encoding and decoding with ComfyUI's VAE objects: streamed where the autoencoder is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

from ..swifti2v_core import vae_stream
from ..swifti2v_core.geometry import pixel_frame_count
from ..swifti2v_core.pixels import Report, silent
from ..swifti2v_core.reference import with_anchor
from . import host


def vae_channels(vae: Any) -> int:
    """Return the latent channels of a VAE."""
    return vae.latent_channels


def encode(vae: Any, frames: torch.Tensor) -> torch.Tensor:
    """Encode frames ``[F, H, W, 3]`` to a video latent ``[1, C, T, h, w]``."""
    return host.to_storage(vae.encode(frames))


def encode_reference(vae: Any, frames: int, chunks: Callable[[], Iterator[torch.Tensor]]) -> torch.Tensor:
    """Encode a clip given piece by piece, with its first frame as the anchor.

    Parameters
    ----------
    vae
        A VAE of 48 channels. Wan2.2 autoencoders take the pieces as they come; for any other, and when
        memory runs out, the clip is put together and ComfyUI encodes it (in tiles, if it must).
    frames
        Number of frames of the clip.
    chunks
        Starts the clip anew: one frame ``[1, H, W, 3]``, then four at a time.

    Returns
    -------
    Tensor
        ``[1, 48, T, h, w]``; latent frame 0 is the first frame alone.
    """
    latent = _encode_streamed(vae, chunks()) if vae_stream.streams(vae.first_stage_model) else None
    if latent is None:
        clip = _put_together(frames, chunks())
        latent = with_anchor(encode(vae, clip), encode(vae, clip[:1]))
    return latent


def _put_together(count: int, pieces: Iterator[torch.Tensor], report: Report = silent) -> torch.Tensor:
    """Return ``count`` frames given in pieces as one tensor, without holding them twice."""
    first = next(pieces)
    whole, done = torch.empty(count, *first.shape[1:]), 0
    for piece in chain((first,), pieces):
        whole[done : done + len(piece)] = piece
        done += len(piece)
        report(done)
    return whole


def _encode_streamed(vae: Any, chunks: Iterator[torch.Tensor]) -> torch.Tensor | None:
    """Return the encoded clip, or None when memory ran out."""

    def pixels() -> Iterator[torch.Tensor]:
        for frames in chunks:
            prepared = vae.process_input(frames.movedim(-1, 0)[None])
            yield prepared.to(device=vae.device, dtype=vae.vae_dtype)

    try:
        first = next(chunks)
        need = vae.memory_used_encode((1, 3, 4, *first.shape[1:3]), vae.vae_dtype)
        host.make_room(vae.patcher, need)
        chunks = chain((first,), chunks)
        latent_frames = vae_stream.stream_encode(vae.first_stage_model, pixels())
        return torch.cat([host.to_storage(latent_frame) for latent_frame in latent_frames], dim=2)
    except torch.OutOfMemoryError:
        host.logger.warning(
            "The encode ran out of memory; ComfyUI encodes the whole clip instead, in tiles."
        )
    return None


def decode_images(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Decode a latent ``[B, C, T, h, w]`` to one IMAGE ``[B * F, H, W, 3]``, filled as frames are done."""
    if not vae_stream.streams(vae.first_stage_model):
        return _decode_whole(vae, latent)
    count = len(latent) * pixel_frame_count(latent.shape[2])
    pieces = (frames for clip in latent.split(1) for frames in decode(vae, clip))
    return _put_together(count, pieces, host.frame_progress(count))


def _decode_whole(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    frames = vae.decode(latent)
    return frames.flatten(0, 1) if frames.ndim == 5 else frames  # image VAEs give no frame axis


def decode(vae: Any, latent: torch.Tensor) -> Iterator[torch.Tensor]:
    """Decode one clip ``[1, C, T, h, w]``, yielding frames ``[n, H, W, 3]`` in order as they are done.

    Wan2.2 autoencoders stream (`vae_stream.StripDecoder`); any other is decoded whole by ComfyUI.
    """
    if not vae_stream.streams(vae.first_stage_model):
        yield _decode_whole(vae, latent)
        return
    plan, done = _decode_plan(vae, latent), 0
    while True:
        samples = latent.to(device=vae.device, dtype=vae.vae_dtype)
        ran_out, first = False, 0
        try:
            for pixels in vae_stream.StripDecoder(vae.first_stage_model, plan).decode(samples):
                fresh = pixels[:, :, max(0, done - first) :]
                first += pixels.shape[2]
                if fresh.shape[2]:
                    done = first
                    yield vae.process_output(fresh)[0].permute(1, 2, 3, 0)
        except torch.OutOfMemoryError:
            # Only noted: inside this block the exception keeps the failed attempt's tensors alive.
            ran_out = True
        if not ran_out:
            return
        host.release_memory()
        plan = vae_stream.smaller_plan(plan)
        host.logger.warning("The decode ran out of memory; trying again with %d strips.", plan.strips)


def _decode_plan(vae: Any, latent: torch.Tensor) -> vae_stream.DecodePlan:
    """Make room for the decoder and choose how to cut, by the memory that is free then."""
    decoder, size = vae.first_stage_model.decoder, vae.vae_dtype.itemsize
    height, width = latent.shape[-2:]
    caches, row, feature = vae_stream.decode_bytes(decoder, height, width, size)
    total = host.total_memory(vae.device)
    # More than the device holds cannot be freed; asking for it would only push the VAE's own weights out.
    wanted = min(caches + feature + row * 2 * height, total * 0.8)
    host.make_room(vae.patcher, wanted)
    free = host.free_memory(vae.device) * 0.85
    plan = vae_stream.plan_decode(decoder, height, width, size, free)
    host.logger.info("Decode: %d strips, %d latent frames at a time", plan.strips, plan.chunk)
    return plan
