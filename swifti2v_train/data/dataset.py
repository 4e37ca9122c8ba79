"""The prepared dataset: latents in safetensors files, and an index.

A dataset is a folder with ``index.json``, ``{"version": 1, "clips": [...]}`` (see `Clip`), and shards.
For the clip NAME, a shard holds these tensors, latents normalized as the network expects them:

- ``NAME.latents`` ``[48, T, h, w]``: the truth at the size of Stage II; latent frame 0 is the photo alone;
- ``NAME.references`` ``[V, 48, T, h, w]``: variants of ``z_ref``, starting with the plain one;
- ``NAME.motion`` ``[C1, T, h1, w1]``: the truth at the size of Stage I, encoded by Stage I's autoencoder;
- ``NAME.motion_photo`` ``[16, T, h1, w1]``, A14B only: the photo followed by gray frames, encoded;
- ``NAME.text`` ``[L, D]``: text embeddings; a clip without them uses zeros.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = 1
INDEX = "index.json"
EMPTY_TEXT_TOKENS = 8


@dataclass(frozen=True)
class Clip:
    """One clip of the index.

    Attributes
    ----------
    name
        Prefix of its tensors' names.
    shard
        File that holds the tensors.
    latent_frames
        T.
    height, width
        Size in pixels of Stage II.
    fps
        Frames per second.
    source
        The photo or video it was made from.
    sigmas
        For each reference, the sigma from which Stage I denoised it; 0 for the plain one.
    """

    name: str
    shard: str
    latent_frames: int
    height: int
    width: int
    fps: float
    source: str
    sigmas: tuple[float, ...]


class Dataset:
    """A prepared dataset, read sample by sample from memory-mapped files.

    Parameters
    ----------
    folder
        Folder written by `DatasetWriter`.

    Raises
    ------
    ValueError
        If the folder holds no clips, or a dataset of another version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.clips = read_index(self.folder)
        if not self.clips:
            raise ValueError(f"{self.folder} holds no clips; run the prepare command first.")
        self._open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.clips)

    def latents(self, number: int) -> Tensor:
        """Return a clip's truth, ``[48, T, h, w]`` float32."""
        return self._tensor(number, "latents").float()

    def reference(self, number: int, variant: int) -> Tensor:
        """Return one reference of a clip, ``[48, T, h, w]`` float32, without reading the others."""
        return torch.as_tensor(self._slice(number, "references")[variant]).float()

    def motion(self, number: int) -> Tensor:
        """Return a clip at the size of Stage I, ``[C1, T, h1, w1]`` float32."""
        return self._tensor(number, "motion").float()

    def motion_photo(self, number: int) -> Tensor:
        """Return A14B's photo and gray frames, ``[16, T, h1, w1]`` float32."""
        return self._tensor(number, "motion_photo").float()

    def text(self, number: int, width: int) -> Tensor:
        """Return the text embeddings of a clip, ``[L, width]`` float32; zeros if it has none."""
        clip = self.clips[number]
        if f"{clip.name}.text" not in self._shard(clip).keys():  # noqa: SIM118 (safe_open is not a mapping)
            return torch.zeros(EMPTY_TEXT_TOKENS, width)
        return self._tensor(number, "text").float()

    def _shard(self, clip: Clip) -> Any:
        if clip.shard not in self._open:
            self._open[clip.shard] = safe_open(self.folder / clip.shard, framework="pt")
        return self._open[clip.shard]

    def _slice(self, number: int, kind: str) -> Any:
        clip = self.clips[number]
        return self._shard(clip).get_slice(f"{clip.name}.{kind}")

    def _tensor(self, number: int, kind: str) -> Tensor:
        return torch.as_tensor(self._slice(number, kind)[:])


class DatasetWriter:
    """Appends clips to a dataset; clips in the index are complete and never rewritten.

    Parameters
    ----------
    folder
        Created if it does not exist; an existing dataset is continued.
    shard_bytes
        Size in bytes at which a shard is written.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = 2**30) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_bytes = shard_bytes
        self._clips = list(read_index(self.folder)) if (self.folder / INDEX).exists() else []
        self._names = {clip.name for clip in self._clips}
        self._waiting: list[tuple[Clip, dict[str, Tensor]]] = []

    def __contains__(self, name: object) -> bool:
        """Return whether a clip exists, written or waiting for its shard."""
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def append(
        self,
        name: str,
        tensors: dict[str, Tensor],
        *,
        height: int,
        width: int,
        fps: float,
        source: str,
        sigmas: tuple[float, ...],
    ) -> None:
        """Add a clip; it enters the index once its shard is full or `close` is called.

        Parameters
        ----------
        name
            Unique in the dataset.
        tensors
            By kind: ``latents``, ``references``, ``motion``, optionally ``motion_photo`` and ``text``;
            stored as float16.
        height, width, fps, source, sigmas
            See `Clip`.

        Raises
        ------
        ValueError
            If the name exists.
        """
        if name in self:
            raise ValueError(f"The dataset already has a clip {name}; give every clip a unique name.")
        self._names.add(name)
        kept = {
            f"{name}.{kind}": value.to("cpu", torch.float16).contiguous() for kind, value in tensors.items()
        }
        frames = tensors["latents"].shape[1]
        clip = Clip(name, self._next_shard(), frames, height, width, fps, source, tuple(sigmas))
        self._waiting.append((clip, kept))
        if (
            sum(value.nbytes for _, waiting in self._waiting for value in waiting.values())
            >= self.shard_bytes
        ):
            self.close()

    def close(self) -> None:
        """Write the clips that wait for their shard, then the index."""
        if not self._waiting:
            return
        merged = {key: value for _, waiting in self._waiting for key, value in waiting.items()}
        shard = self.folder / self._next_shard()
        save_file(merged, shard.with_suffix(".part"))
        os.replace(shard.with_suffix(".part"), shard)
        self._clips += [clip for clip, _ in self._waiting]
        self._waiting.clear()
        index = {"version": VERSION, "clips": [asdict(clip) for clip in self._clips]}
        part = self.folder / f"{INDEX}.part"
        part.write_text(json.dumps(index, indent=1), encoding="utf-8")
        os.replace(part, self.folder / INDEX)

    def _next_shard(self) -> str:
        return f"shard-{len({clip.shard for clip in self._clips}):05}.safetensors"

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Also after an error or an interrupt: appended clips are complete.
        self.close()


def read_index(folder: Path) -> tuple[Clip, ...]:
    """Return the clips of a dataset.

    Raises
    ------
    ValueError
        If the index is missing or of another version.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {INDEX}; run the prepare command first.") from None
    if index["version"] != VERSION:
        raise ValueError(
            f"{folder} is a dataset of version {index['version']}, but this program reads version "
            f"{VERSION}; run the prepare command again."
        )
    return tuple(Clip(**{**clip, "sigmas": tuple(clip["sigmas"])}) for clip in index["clips"])
