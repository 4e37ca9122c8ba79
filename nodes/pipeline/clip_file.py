"""From the latent of a clip to its file, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ...swifti2v_core.geometry import pixel_frame_count
from ...swifti2v_core.progress import Report
from ..comfyui.output_files import reserved_output_file
from ..comfyui.progress import check_interrupted
from ..comfyui.vae import pixel_size_of
from .decode import decode_integers
from .sound import fit_sound, sample_count
from .video_file import Codec, Depth, VideoFile


@dataclass(frozen=True)
class FileSettings:
    """What the files of all clips of a batch have in common.

    Attributes
    ----------
    prefix
        Folder and start of the name inside ComfyUI's output folder.
    rate
        Frames per second.
    codec, depth
        Entries of `CODECS` and `DEPTHS`.
    crf
        Constant rate factor of the codec.
    tags
        Metadata.
    """

    prefix: str
    rate: Fraction
    codec: Codec
    depth: Depth
    crf: int
    tags: dict[str, str]


def write_clip(
    vae: Any,
    latent: torch.Tensor,
    settings: FileSettings,
    sound: tuple[torch.Tensor, int] | None,
    report: Report,
) -> tuple[Path, str]:
    """Decode one clip into a new file, which is complete or not there.

    Parameters
    ----------
    vae, latent
        The VAE and the latent ``[1, C, T, h, w]``.
    settings
        Name and format.
    sound
        Waveform ``[channels, samples]`` and samples per second; None for a silent file.
    report
        Called with how far the clip is, in frames.

    Returns
    -------
    tuple
        Path of the file, and its subfolder of the output folder.
    """
    depth, rate, samples = settings.depth, settings.rate, None
    if sound is not None:
        samples = fit_sound(*sound, sample_count(pixel_frame_count(latent.shape[2]), rate))
    with reserved_output_file(settings.prefix, settings.codec.extension, *pixel_size_of(vae, latent)) as (
        path,
        subfolder,
    ):
        pieces = decode_integers(vae, latent, depth.convert, report)
        first = next(pieces)
        height, width = first.shape[1:3]
        with VideoFile(
            path, width, height, rate, settings.codec, settings.crf, settings.tags, depth, samples
        ) as video:
            frames = (frame for piece in chain((first,), pieces) for frame in piece)
            for frame in frames:
                video.write(frame)
                check_interrupted()
    return path, subfolder
