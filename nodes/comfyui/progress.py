"""Progress bars, previews, and Cancel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.utils
import torch
from comfy import model_management

# Called through the module, because other packs replace it; a missing one is reported at start.
from comfy.model_management import throw_exception_if_processing_interrupted  # noqa: F401
from comfy.utils import PROGRESS_BAR_ENABLED, ProgressBar  # noqa: F401
from latent_preview import get_previewer
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

FINISHED, CURRENT, WAITING = (150, 150, 150), (80, 170, 255), (45, 45, 45)
"""Colors of the timeline under a preview."""


def frame_progress(total: int) -> Callable[[int], None]:
    """Return a function that shows how many of ``total`` frames are done and stops when cancelled."""
    bar = ProgressBar(total)

    def report(done: int) -> None:
        check_interrupted()
        bar.update_absolute(done)

    return report


def check_interrupted() -> None:
    """Raise ComfyUI's interruption if the user has cancelled."""
    model_management.throw_exception_if_processing_interrupted()


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
        self._bar, self._total = ProgressBar(total), total
        self._console = tqdm(total=total, disable=not comfy.utils.PROGRESS_BAR_ENABLED)
        self._previewer = get_previewer(model.load_device, model.model.latent_format)

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
            Part of the clip that is being made, see `with_timeline`; None for all of it.
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
        return kind, with_timeline(picture, *place), largest

    def finish(self, done: int) -> None:
        """Move the bar to ``done`` steps, also where a sampler called back less often."""
        self._show(done, None)

    def _show(self, done: int, preview: Any) -> None:
        check_interrupted()  # at every step: ComfyUI's bar, which checks too, leaves out small ones
        self._console.update(done - self._console.n)
        self._bar.update_absolute(done, self._total, preview)

    def __enter__(self) -> SamplingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()


def with_timeline(picture: Image.Image, start: float, stop: float) -> Image.Image:
    """Return a copy of a preview with a timeline below it.

    Parameters
    ----------
    picture
        The preview.
    start, stop
        Part of the clip that is being made, from 0 to 1; what lies before it is finished.
    """
    width, height = picture.size
    strip = max(2, height // 24)
    marked = Image.new("RGB", (width, height + strip), WAITING)
    marked.paste(picture, (0, 0))
    draw = ImageDraw.Draw(marked)
    left = round(start * width)
    right = max(left + 1, round(stop * width))  # at least one pixel, however long the clip
    for begin, end, color in ((0, left, FINISHED), (left, right, CURRENT)):
        if end > begin:
            draw.rectangle((begin, height, end - 1, height + strip - 1), fill=color)
    return marked
