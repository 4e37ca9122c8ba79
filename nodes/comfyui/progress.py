"""What long loops show: progress bars, previews, and whether the user wants to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tqdm.auto import tqdm

from . import internals, timeline
from .internals import internal, works


def frame_progress(total: int) -> Callable[[int], None]:
    """Return a function that shows how many of ``total`` frames are done and stops when cancelled."""
    bar = _page_bar(total)

    def report(done: int) -> None:
        check_interrupted()
        bar(done)

    return report


def check_interrupted() -> None:
    """Raise ComfyUI's interruption if the user has cancelled."""
    if works(internals.STOPPING):
        internal("comfy.model_management.throw_exception_if_processing_interrupted")()


def _page_bar(total: int) -> Callable[..., None]:
    """Return what moves a progress bar in ComfyUI's page: called with steps done, total and preview."""
    if not works(internals.PROGRESS):
        return _nothing
    return internal("comfy.utils.ProgressBar")(total).update_absolute


def _nothing(*_: object) -> None:
    """Stand in for what ComfyUI does not have."""


class SamplingProgress:
    """One progress bar over several samplings, with a preview of the frames being made.

    ComfyUI's page gets one bar, and so does the console: the samplers' own bars, one per segment, are
    switched off in `sample`.

    Parameters
    ----------
    model
        The MODEL being sampled; its latent format chooses the previewer.
    total
        Steps of all samplings together.
    """

    def __init__(self, model: Any, total: int) -> None:
        self._bar, self._total, self._previewer = _page_bar(total), total, None
        hidden = works(internals.CONSOLE) and not internal("comfy.utils.PROGRESS_BAR_ENABLED")
        self._console = tqdm(total=total, disable=hidden)
        if works(internals.PREVIEWS):
            previewer = internal("latent_preview.get_previewer")
            self._previewer = previewer(model.load_device, model.model.latent_format)

    def callback(
        self, done: int, first_frame: int, place: tuple[float, float] | None = None
    ) -> Callable[..., None]:
        """Return the step callback of one sampling.

        Parameters
        ----------
        done
            Steps finished before this sampling.
        first_frame
            First latent frame to preview: ComfyUI's previewers show the first one they are given,
            which in a window is the photo and would never change.
        place
            Part of the clip that is being made, see `timeline.with_place`; None for all of it.
        """

        def on_step(step: int, denoised: torch.Tensor, _noisy: torch.Tensor, _steps: int) -> None:
            self._show(done + step + 1, self._preview(denoised[:, :, first_frame:], place))

        return on_step

    def _preview(self, frames: torch.Tensor, place: tuple[float, float] | None) -> Any:
        """Return ComfyUI's (format, picture, largest size), or None without previews."""
        shown = self._previewer and self._previewer.decode_latent_to_preview_image("JPEG", frames)
        if not shown or place is None:  # previewers that send pictures themselves return None
            return shown
        kind, picture, largest = shown
        return kind, timeline.with_place(picture, *place), largest

    def finish(self, done: int) -> None:
        """Move the bar to ``done`` steps, also where a sampler called back less often."""
        self._show(done, None)

    def _show(self, done: int, preview: Any) -> None:
        check_interrupted()  # at every step: ComfyUI's bar, which checks too, leaves out small ones
        self._console.update(done - self._console.n)
        self._bar(done, self._total, preview)

    def __enter__(self) -> SamplingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()
