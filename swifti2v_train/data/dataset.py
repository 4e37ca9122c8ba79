"""The prepared dataset: latents in safetensors files, and an index.

A folder with ``index.json``, ``{"version": 1, "clips": [...]}``, see `Clip`, and shards that hold, for the
clip NAME, in the space the network sees:

- ``NAME.latents`` ``[48, T, h, w]``: the truth at the size of Stage II; latent frame 0 is the photo alone;
- ``NAME.references`` ``[V, 48, T, h, w]``: variants of ``z_ref``, the plain one first;
- ``NAME.motion`` ``[C1, T, h1, w1]``: the truth at the size of Stage I, by Stage I's autoencoder;
- ``NAME.motion_photo`` ``[16, T, h1, w1]``, A14B only: the photo and gray frames behind it, encoded;
- ``NAME.text`` ``[L, D]``: text embeddings; without them a clip has zeros.
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
        Begins the names of its tensors.
    shard
        File that holds them.
    latent_frames
        T.
    height, width
        Pixels of Stage II.
    fps
        Frames per second.
    source
        The photo or video it was made of.
    sigmas
        Of every reference variant the noise level Stage I denoised it from; 0 for the plain one.
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
        What `DatasetWriter` made.

    Raises
    ------
    ValueError
        If there is no complete dataset of this version.
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
        """Return one reference of a clip, ``[48, T, h, w]`` float32; the others are not read."""
        return torch.as_tensor(self._slice(number, "references")[variant]).float()

    def motion(self, number: int) -> Tensor:
        """Return a clip at the size of Stage I, ``[C1, T, h1, w1]`` float32."""
        return self._tensor(number, "motion").float()

    def motion_photo(self, number: int) -> Tensor:
        """Return the photo and gray frames of A14B, ``[16, T, h1, w1]`` float32."""
        return self._tensor(number, "motion_photo").float()

    def text(self, number: int, width: int) -> Tensor:
        """Return the text embeddings of a clip, ``[L, width]`` float32; zeros if there are none."""
        clip = self.clips[number]
        if f"{clip.name}.text" not in self._shard(clip).keys():  # noqa: SIM118 (safe_open is no mapping)
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
    """Appends clips to a dataset; what the index names is complete and stays.

    Parameters
    ----------
    folder
        Made if it does not exist; a dataset in it is gone on with.
    shard_bytes
        Size at which a shard is written.
    """

    def __init__(self, folder: str | Path, shard_bytes: int = 2**30) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shard_bytes = shard_bytes
        self._clips = list(read_index(self.folder)) if (self.folder / INDEX).exists() else []
        self._names = {clip.name for clip in self._clips}
        self._waiting: list[tuple[Clip, dict[str, Tensor]]] = []

    def __contains__(self, name: object) -> bool:
        """Tell whether a clip is already there, written or waiting for its shard."""
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
        """Add a clip; it is in the index once its shard is full or `close` was called.

        Parameters
        ----------
        name
            New to the dataset.
        tensors
            By kind: ``latents``, ``references``, ``motion``, and if there are any ``motion_photo`` and
            ``text``; kept as float16.
        height, width, fps, source, sigmas
            See `Clip`.

        Raises
        ------
        ValueError
            If the name exists.
        """
        if name in self:
            raise ValueError(f"The dataset already has a clip {name}; give every clip a name of its own.")
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
        """Write what waits for its shard, then the index."""
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
        # After an error or an interrupt as well: the clips that were appended are complete.
        self.close()


def read_index(folder: Path) -> tuple[Clip, ...]:
    """Return the clips of a dataset.

    Raises
    ------
    ValueError
        If there is no index, or one of another version.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {INDEX}; run the prepare command first.") from None
    if index["version"] != VERSION:
        raise ValueError(
            f"{folder} is a dataset of version {index['version']}, but this program reads version "
            f"{VERSION}; prepare it again."
        )
    return tuple(Clip(**{**clip, "sigmas": tuple(clip["sigmas"])}) for clip in index["clips"])
