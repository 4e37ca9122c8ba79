"""What a run of the segment loop keeps on disk; the files are in `swifti2v_core.checkpoint`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ...swifti2v_core import __version__
from ...swifti2v_core.resume.fingerprint import fingerprint, fingerprint_tensors
from ...swifti2v_core.resume.saved_segments import SavedSegments, check_name
from ...swifti2v_core.stage_two.segment_loop import noisy_frames
from ...swifti2v_core.stage_two.segments import Segment
from ..comfyui import model_files, model_identity
from ..comfyui.internals import CHECKPOINTS, need
from ..comfyui.progress import check_interrupted

KEEP, DELETE = "keep", "delete when done"


def inputs() -> list[io.Input]:
    """Return the widgets of a checkpoint."""
    return [
        io.String.Input(
            "checkpoint",
            default="",
            optional=True,
            advanced=True,
            tooltip="Name under which finished segments are saved in output/swifti2v_checkpoints. The same "
            "run, queued again after a crash or a cancel, goes on behind them as if it had not stopped; a "
            "run that differs in anything starts anew beside them. Empty (default): nothing is saved.",
        ),
        io.Combo.Input(
            "checkpoint_files",
            options=[KEEP, DELETE],
            default=KEEP,
            optional=True,
            advanced=True,
            tooltip="What happens to the checkpoint of a finished run. keep (default): it stays, so that a "
            "crash while decoding costs nothing either; 81 frames of 2560x1408 take 55 MB. delete when "
            "done: it is removed as soon as the last segment is made.",
        ),
    ]


@dataclass(frozen=True)
class CheckpointChoice:
    """What the widgets ask for.

    Attributes
    ----------
    name
        Empty for no checkpoint.
    files
        `KEEP` or `DELETE`.

    Raises
    ------
    ValueError
        If the name cannot be a folder's name.
    """

    name: str = ""
    model_files: str = KEEP

    def __post_init__(self) -> None:
        if self.name:
            need(CHECKPOINTS)
            check_name(self.name)

    def open(self, guider: Any, determining: dict[str, Any]) -> Saved:
        """Return the checkpoint of one run.

        Parameters
        ----------
        guider
            The GUIDER, as it came.
        determining
            All else that determines the run, by the user's word for it.
        """
        model = guider.model_patcher
        values = {
            "model patches": model_identity.model_changes(model),
            "prompts and guidance": model_identity.guider_settings(guider),
            **determining,
            "versions and device": [__version__, *model_identity.computing(model)],
        }
        named = model_identity.without_weights(model)
        parts = {name: fingerprint(value, named) for name, value in values.items()}
        parts["model weights"] = fingerprint_tensors(model_identity.model_weights(model), check_interrupted)
        return Saved(SavedSegments(model_files.checkpoint_folder(), self.name, parts), self.files == DELETE)


class Unsaved:
    """A run without a checkpoint."""

    def restore(self, clips: list[Tensor], segments: list[Segment], start: int) -> list[int]:
        """Put finished segments into working latents, in place.

        Parameters
        ----------
        clips
            Latents of every clip, ``[1, 48, T, h, w]``.
        segments, start
            The segments to be made are ``segments[start:]``.

        Returns
        -------
        list of int
            The first segment that is still to be made, for every clip.

        Raises
        ------
        ValueError
            If the others cannot be saved.
        """
        return [start] * len(clips)

    def save(self, clip: int, segment: Segment, latents: Tensor) -> None:
        """Save a segment that has just been written into a clip's latents."""

    def finish(self) -> None:
        """Do away with what only an unfinished run needs."""


@dataclass(frozen=True)
class Saved(Unsaved):
    """A run with a checkpoint.

    Attributes
    ----------
    checkpoint
        The run's files.
    deletes
        Whether they go when the run is finished.
    """

    checkpoint: SavedSegments
    deletes: bool

    def restore(self, clips: list[Tensor], segments: list[Segment], start: int) -> list[int]:
        firsts = [self._restore_clip(clip, latents, segments, start) for clip, latents in enumerate(clips)]
        missing = [
            noisy_frames(latents, segment).nbytes
            for latents, first in zip(clips, firsts, strict=True)
            for segment in segments[first:]
        ]
        self.checkpoint.prepare(sum(missing))
        self.checkpoint.log_restored(len(clips) * (len(segments) - start), len(missing))
        return firsts

    def _restore_clip(self, clip: int, latents: Tensor, segments: list[Segment], start: int) -> int:
        for segment in segments[start:]:
            place = noisy_frames(latents, segment)
            frames = self.checkpoint.load(clip, segment.index, place.shape)
            if frames is None:
                return segment.index
            place.copy_(frames)
        return len(segments)

    def save(self, clip: int, segment: Segment, latents: Tensor) -> None:
        self.checkpoint.save(clip, segment.index, noisy_frames(latents, segment))

    def finish(self) -> None:
        if self.deletes:
            self.checkpoint.delete()
