"""Stage I: a photo becomes a motion clip, over ComfyUI's own sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ...swifti2v_core.geometry import latent_frame_count
from ...swifti2v_core.seeds import clip_seed
from ...swifti2v_core.stage_one.chunks import Chunk, append_chunk, continue_from
from ...swifti2v_core.stage_one.photo_start import (
    amplify_motion,
    keep_clean,
    mask_with_known_end,
    photo_first,
    photo_then_gray,
)
from ...swifti2v_core.stage_one.two_sizes import ExpertSteps, shrink
from ...swifti2v_core.stage_two.segment_loop import clean_mask
from ..comfyui.conditioning import extend_conditioning
from ..comfyui.progress import SamplingProgress
from ..comfyui.sampling import SeededNoise, motion_guider, sample
from ..comfyui.vae import encode_frames


@dataclass(frozen=True)
class Start:
    """Start of a Stage I sampling.

    Attributes
    ----------
    latent
        ``[1, C, T, h, w]``.
    mask
        Noise mask, or None where no frame is clean.
    conditions
        Entries added to the conditioning.
    """

    latent: torch.Tensor
    mask: torch.Tensor | None
    conditions: dict[str, Any]


def encode_a14b(
    vae: Any, known: torch.Tensor, frames: int, last: torch.Tensor | None = None
) -> torch.Tensor:
    """Encode known frames, then gray (Wan2.2-I2V-A14B), to ``[1, 16, T, h, w]``.

    Parameters
    ----------
    vae
        VAE.
    known
        ``[n, H, W, 3]``, the photo or frames to continue from.
    frames
        Length of the clip, 4n+1.
    last
        ``[1, H, W, 3]``, its last frame; None leaves it gray.
    """
    clip = photo_then_gray(known, frames)
    if last is not None:
        clip[-1:] = last
    return encode_frames(vae, clip)


def encode_ti2v(vae: Any, known: torch.Tensor, frames: int) -> torch.Tensor:
    """Encode known frames ``[n, H, W, 3]``, then zeros (Wan2.2-TI2V), to ``[1, 48, T, h, w]``."""
    return photo_first(encode_frames(vae, known), latent_frame_count(frames))


def start_a14b(reference: torch.Tensor, clean: int, *, motion_strength: float, loop: bool) -> Start:
    """Known frames as concatenated latent and mask (Wan2.2-I2V-A14B).

    Parameters
    ----------
    reference
        Latent of `encode_a14b`.
    clean
        Number of its known first latent frames.
    motion_strength
        See `amplify_motion`.
    loop
        Whether the last video frame is known, too.
    """
    mask = clean_mask(reference.shape[2], clean, *reference.shape[3:])
    gray_end = reference.shape[2] - loop
    image = amplify_motion(reference[:, :, :gray_end], clean, motion_strength)
    conditions = {
        "concat_latent_image": torch.cat((image, reference[:, :, gray_end:]), dim=2),
        "concat_mask": mask_with_known_end(mask) if loop else mask,
    }
    return Start(torch.zeros_like(reference), None, conditions)


def start_ti2v(reference: torch.Tensor, clean: int) -> Start:
    """Known frames as clean latent frames (Wan2.2-TI2V)."""
    return Start(reference, clean_mask(reference.shape[2], clean, *reference.shape[3:]), {})


@dataclass(frozen=True)
class MotionSampling:
    """One run of Stage I over ComfyUI's own sampling.

    Attributes
    ----------
    models
        The experts, or the only model.
    prompts
        Positive and negative CONDITIONING.
    cfg
        Guidance.
    sampler
        SAMPLER of every part.
    start
        Makes the start of an encoded latent and its number of known first frames.
    chunks
        Those of every clip, see `chunks.plan_chunks`.
    known
        Number of known latent frames that chunk 0 starts with: 1, the photo, or those of a clip that is
        continued, at most as many as chunks overlap.
    """

    models: list[Any]
    prompts: tuple[Any, Any]
    cfg: float
    sampler: Any
    start: Callable[[torch.Tensor, int], Start]
    chunks: list[Chunk]
    known: int

    def run(self, parts: list[ExpertSteps], clips: list[list[torch.Tensor]], seed: int) -> torch.Tensor:
        """Sample chunk after chunk, each for every clip, and return the latent of all clips.

        Parameters
        ----------
        parts
            In order.
        clips
            For every clip and every size the encoded latent that it starts from, as long as a chunk.
        seed
            Chooses the noise of every size; further clips take the next seeds.
        """
        made = [references[-1][:, :, :0] for references in clips]
        steps = sum(len(part.sigmas) - 1 for part in parts)
        with SamplingProgress(self.models[0], steps * len(clips) * len(self.chunks)) as progress:
            for chunk in self.chunks:
                starts = [self._starts(*clip, chunk) for clip in zip(clips, made, strict=True)]
                latents = self._sample_chunk(parts, starts, chunk, seed, progress)
                pairs = zip(made, latents, strict=True)
                made = [append_chunk(clip, latent, chunk.known) for clip, latent in pairs]
        return torch.cat(made)

    def _starts(self, references: list[torch.Tensor], made: torch.Tensor, chunk: Chunk) -> list[Start]:
        """Return the start of a chunk of one clip, for every size.

        Two things are approximate in later chunks. Models were trained with an image as latent frame 0,
        one pixel frame alone; here it is a frame of four. And the gray frames of A14B are encoded after
        the photo, not after the known frames. Both avoid decoding and encoding between chunks, which
        would shift the colors. Only chunk 0 knows the photo itself: before later chunks it would be a
        cut, which the models were not trained to continue from.
        """
        clean = self._clean(chunk)
        return [self.start(continue_from(reference, made, chunk.known), clean) for reference in references]

    def _clean(self, chunk: Chunk) -> int:
        """Return the number of latent frames that a chunk starts with."""
        return chunk.known or self.known

    def _sample_chunk(
        self,
        parts: list[ExpertSteps],
        clips: list[list[Start]],
        chunk: Chunk,
        seed: int,
        progress: SamplingProgress,
    ) -> list[torch.Tensor]:
        """Sample part after part, each for every clip, and return the latents of a chunk.

        One clip at a time, so that it is what it would be alone and memory does not grow; all clips
        of a part before the next one, so that a chunk loads every expert once.
        """
        latents = [starts[0].latent for starts in clips]
        done = chunk.index * len(clips) * sum(len(part.sigmas) - 1 for part in parts)
        for part, (index, starts) in product(parts, enumerate(clips)):
            callback = progress.callback(done, self._clean(chunk), self._place(chunk))
            latents[index] = self._sample(
                part, starts[part.size_index], latents[index], chunk, clip_seed(seed, index), callback
            )
            done += len(part.sigmas) - 1
            progress.finish(done)
        return latents

    def _place(self, chunk: Chunk) -> tuple[float, float] | None:
        """Return the part of the clip that a chunk adds, for the preview; None if it is all of it."""
        if len(self.chunks) == 1:
            return None
        count, frames = self.chunks[-1].frames.stop, chunk.frames
        return (frames.start + chunk.known) / count, frames.stop / count

    def _sample(
        self,
        part: ExpertSteps,
        start: Start,
        latent: torch.Tensor,
        chunk: Chunk,
        seed: int,
        callback: Callable[..., None],
    ) -> torch.Tensor:
        """Sample one part, from the latent that the part before it left."""
        if latent.shape != start.latent.shape:
            latent = keep_clean(shrink(latent, *start.latent.shape[-2:]), start.latent, start.mask)
        noise = torch.zeros_like(latent)
        if part.adds_noise:
            # ComfyUI adds it as (1 - s) * latent + s * noise, which is also what reshifting asks for.
            noise = self._noise(latent, chunk, seed)
        positive, negative = (extend_conditioning(p, start.conditions) for p in self.prompts)
        result = sample(
            motion_guider(self.models[part.expert], positive, negative, self.cfg),
            noise,
            latent,
            self.sampler,
            part.sigmas,
            mask=start.mask,
            callback=callback,
            # Otherwise samplers that draw noise of their own would draw the same in every chunk.
            seed=clip_seed(seed, chunk.index),
        )
        return keep_clean(result, start.latent, start.mask)

    def _noise(self, latent: torch.Tensor, chunk: Chunk, seed: int) -> torch.Tensor:
        """Return a chunk's part of the clip's noise: a latent frame has one noise in all its chunks."""
        batch, channels, _, height, width = latent.shape
        clip = latent.new_empty(batch, channels, self.chunks[-1].frames.stop, height, width)
        noise = SeededNoise(seed).generate_noise({"samples": clip})
        return noise[:, :, chunk.frames.start : chunk.frames.stop]
