"""Clips with known truth from photos and videos; a clip has the same name in every run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
from torch import Tensor

from ..config import Prepare
from ..random_draws import generator, integer
from . import photos, videos
from .synthetic_scenes import draw_scene, render_scene

logger = logging.getLogger("SwiftI2V")

SEEDS = 2**31


class Truth(NamedTuple):
    """A clip at the size of Stage II.

    Attributes
    ----------
    name
        Unique; made from the source's path and the number of the clip.
    source
        The photo or video it was made from.
    frames
        ``[F, height, width, 3]`` float32, 0..1.
    """

    name: str
    source: Path
    frames: Tensor


def find_sources(places: Sequence[str]) -> list[Path]:
    """Return the photos and videos in files and folders, see `photos.find_files`."""
    return photos.find_files(places, photos.SUFFIXES + videos.SUFFIXES)


def is_photo(path: Path) -> bool:
    """Return whether a file is a photo, by its suffix."""
    return path.suffix.lower() in photos.SUFFIXES


def clip_name(source: Path, number: int) -> str:
    """Return the name of a clip, which depends on its source's path but on no other source."""
    digest = hashlib.blake2b(source.as_posix().encode(), digest_size=4).hexdigest()
    return f"{source.stem}-{digest}-{number:06}"


def make_clips(settings: Prepare, sources: Sequence[Path], done: Container[str] = ()) -> Iterator[Truth]:
    """Yield the clips of all sources, one at a time; unreadable files are logged and skipped.

    Parameters
    ----------
    settings
        See `config.Prepare`.
    sources
        Photos and videos.
    done
        Names of clips to leave out because they exist.
    """
    pictures = [path for path in sources if is_photo(path)]
    for source in sources:
        try:
            if is_photo(source):
                yield from _photo_clips(settings, source, pictures, done)
            else:
                yield from _video_clips(settings, source, done)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            logger.warning("Skipping %s: %s", source.name, " ".join(str(error).split()))


def _photo_clips(
    settings: Prepare, source: Path, pictures: Sequence[Path], done: Container[str]
) -> Iterator[Truth]:
    width, height = settings.width, settings.height
    for number in range(settings.clips_per_source):
        name = clip_name(source, number)
        if name in done:
            continue
        rng = generator(settings.seed, "scene", name)
        photo = photos.read_photo(source)
        other = photos.read_photo(pictures[integer(rng, 0, len(pictures))])
        detail = min(photo.shape[2] / width, photo.shape[1] / height)
        scene = draw_scene(integer(rng, 0, SEEDS), width / height, detail)
        yield Truth(name, source, render_scene(photo, other, width, height, settings.frames, scene))


def _video_clips(settings: Prepare, source: Path, done: Container[str]) -> Iterator[Truth]:
    thumbnails = videos.thumbnails_of(source, settings.fps)
    starts = spread(videos.clip_starts(thumbnails, settings.frames), settings.clips_per_source)
    missing = [start for start in starts if clip_name(source, start) not in done]
    clips = videos.clips_of(source, missing, settings.frames, settings.fps, settings.width, settings.height)
    for start, frames in zip(missing, clips, strict=True):
        yield Truth(clip_name(source, start), source, frames)


def spread(starts: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` of the starts, evenly spaced."""
    count = min(count, len(starts))
    return [starts[number * len(starts) // count] for number in range(count)]
