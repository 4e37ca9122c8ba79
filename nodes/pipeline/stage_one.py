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


def _encode_a14b(vae: Any, photo: torch.Tensor, frames: int) -> torch.Tensor:
    return encode_frames(vae, photo_then_gray(photo, frames))


def _encode_ti2v(vae: Any, photo: torch.Tensor, frames: int) -> torch.Tensor:
    return photo_first(encode_frames(vae, photo), latent_frame_count(frames))


def start_a14b(reference: torch.Tensor, clean: int, *, motion_strength: float) -> Start:
    """Known frames as concatenated latent and mask (Wan2.2-I2V-A14B)."""
    mask = clean_mask(reference.shape[2], clean, *reference.shape[3:])
    image = amplify_motion(reference, clean, motion_strength)
    return Start(torch.zeros_like(reference), None, {"concat_latent_image": image, "concat_mask": mask})


def start_ti2v(reference: torch.Tensor, clean: int) -> Start:
    """Known frames as clean latent frames (Wan2.2-TI2V)."""
    return Start(reference, clean_mask(reference.shape[2], clean, *reference.shape[3:]), {})


ENCODINGS = {16: _encode_a14b, 48: _encode_ti2v}
"""Encoders of the photo to a latent ``[1, C, T, h, w]`` that begins with it, by latent channels."""


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
        Makes the start of a latent of `ENCODINGS` and its number of known first frames.
    chunks
        Those of every clip, see `chunks.plan_chunks`.
    """

    models: list[Any]
    prompts: tuple[Any, Any]
    cfg: float
    sampler: Any
    start: Callable[[torch.Tensor, int], Start]
    chunks: list[Chunk]

    def run(self, parts: list[ExpertSteps], clips: list[list[torch.Tensor]], seed: int) -> torch.Tensor:
        """Sample chunk after chunk, each for every clip, and return the latent of all clips.

        Parameters
        ----------
        parts
            In order.
        clips
            For every clip and every size the latent of one of `ENCODINGS`, as long as a chunk.
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
        clean = chunk.known or 1  # in chunk 0 the photo
        return [self.start(continue_from(reference, made, chunk.known), clean) for reference in references]

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
            callback = progress.callback(done, chunk.known or 1, self._place(chunk))
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
