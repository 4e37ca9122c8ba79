"""Finished segments, saved to disk and found again; the files are in `saved_segments` of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ...swifti2v_core import __version__
from ...swifti2v_core.resume.fingerprint import fingerprint
from ...swifti2v_core.resume.saved_segments import SavedSegments
from ...swifti2v_core.stage_two.segment_loop import noisy_frames
from ...swifti2v_core.stage_two.segments import Segment
from ..comfyui import model_identity
from ..comfyui.model_weights import weights_digest
from ..comfyui.output_files import saved_segments_folder


class Resume(Protocol):
    """Where a run puts its finished segments and finds those of an interrupted one."""

    def restore(self, clips: list[Tensor], segments: list[Segment]) -> list[int]:
        """Put saved segments into working latents, in place.

        Parameters
        ----------
        clips
            Latents of every clip, ``[1, 48, T, h, w]``.
        segments
            The segments that the run makes, in this order.

        Returns
        -------
        list of int
            For every clip how many of them are restored.

        Raises
        ------
        ValueError
            If the others cannot be saved.
        """

    def save(self, clip: int, segment: Segment, latents: Tensor) -> None:
        """Save a segment that has just been written into a clip's latents."""

    def finish(self) -> None:
        """Delete the saved segments that the user does not want to keep."""


class NoResume:
    """A run that saves nothing."""

    def restore(self, clips: list[Tensor], segments: list[Segment]) -> list[int]:
        return [0] * len(clips)

    def save(self, clip: int, segment: Segment, latents: Tensor) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass(frozen=True)
class ResumeFromDisk:
    """A run that saves every finished segment.

    Attributes
    ----------
    saved
        The run's files.
    clean_up
        Called with them when the run is finished.
    """

    saved: SavedSegments
    clean_up: Callable[[SavedSegments], None]

    def restore(self, clips: list[Tensor], segments: list[Segment]) -> list[int]:
        counts = [self._restore_clip(clip, latents, segments) for clip, latents in enumerate(clips)]
        missing = [
            noisy_frames(latents, segment).nbytes
            for latents, count in zip(clips, counts, strict=True)
            for segment in segments[count:]
        ]
        self.saved.prepare(sum(missing))
        self.saved.log_restored(len(clips) * len(segments), len(missing))
        self.saved.log_others()
        return counts

    def _restore_clip(self, clip: int, latents: Tensor, segments: list[Segment]) -> int:
        for number, segment in enumerate(segments):
            place = noisy_frames(latents, segment)
            frames = self.saved.load(clip, segment.index, place.shape)
            if frames is None:
                return number
            place.copy_(frames)
        return len(segments)

    def save(self, clip: int, segment: Segment, latents: Tensor) -> None:
        self.saved.save(clip, segment.index, noisy_frames(latents, segment))

    def finish(self) -> None:
        self.clean_up(self.saved)


def open_resume(
    name: str, clean_up: Callable[[SavedSegments], None], guider: Any, determining: dict[str, Any]
) -> Resume:
    """Return where a run saves its segments.

    Parameters
    ----------
    name
        Name of the saved segments; empty saves nothing.
    clean_up
        Called with the saved segments when the run is finished.
    guider
        The GUIDER, unchanged.
    determining
        All else that determines the run's bits, by the user's word for it.
    """
    if not name:
        return NoResume()
    model = guider.model_patcher
    values = {
        "model patches": model_identity.model_changes(model),
        "prompts and guidance": model_identity.guider_settings(guider),
        **determining,
        "versions and device": [__version__, *model_identity.computing_environment(model)],
    }
    replace_parts = model_identity.without_weights(model)
    parts = {key: fingerprint(value, replace_parts) for key, value in values.items()}
    parts["model weights"] = weights_digest(model)
    return ResumeFromDisk(SavedSegments(saved_segments_folder(), name, parts), clean_up)
