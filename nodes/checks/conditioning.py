"""Prompts, and the time ranges and parts of the picture they apply to."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...swifti2v_core.geometry import LATENT_FACTOR, pixel_frame_count
from ...swifti2v_core.stage_two.prompt_ranges import (
    WHOLE_CLIP,
    check_frame_range,
    check_ranges_in_clip,
    unused_ranges,
)
from ..comfyui.conditioning import (
    PROMPT_FRAMES,
    area_in_cells,
    cuts_time,
    empty_conditioning,
    frame_ranges,
    is_area,
)
from ..comfyui.models import text_width
from .describe import are_whole_numbers, kind_of, shown
from .numbers import check_finite

logger = logging.getLogger("SwiftI2V")

MASK_VALUES = (1e4, "those of a mask are 0 to 1; check the node that makes it")
"""Magnitude and rule for `check_finite`."""

TEXT_VALUES = (1e4, "those of a prompt are about -100 to 100; check the node that makes it")
"""Magnitude and rule for `check_finite`."""


def check_conditioning(value: Any, what: str) -> None:
    """Raise ValueError unless ``value`` is a CONDITIONING that fits windows."""
    pairs = isinstance(value, list) and all(
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], torch.Tensor)
        and isinstance(entry[1], dict)
        for entry in value
    )
    if not (pairs and value):
        raise ValueError(f"{what} is a {kind_of(value)}, but must be a CONDITIONING.")
    for text, options in value:
        check_text(text, what)
        check_no_added_frames(options, what)
        check_frame_range_option(options, what)


def check_text(text: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a tensor can be what a text encoder makes, ``[B, tokens, width]``."""
    if text.ndim != 3 or 0 in text.shape:
        raise ValueError(
            f"{what} holds a tensor of shape {tuple(text.shape)}, but a prompt has (1, tokens, "
            "width), none of them 0; encode it with the umt5 text encoder (CLIP Loader, type wan)."
        )
    check_finite(text, what, *TEXT_VALUES)


def check_frame_range_option(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition carries an invalid range of frames."""
    found = options.get(PROMPT_FRAMES, WHOLE_CLIP)
    if not are_whole_numbers(found, 2):
        raise ValueError(
            f"{what} is for the frames {shown(found)}, but a range has two frame numbers; connect SwiftI2V "
            "Prompt for a Time Range."
        )
    check_frame_range(*found)


def read_prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """Return both prompts, checked, with an empty one for each that is not connected."""
    return _read_prompt(model, positive, "positive"), _read_prompt(model, negative, "negative")


def _read_prompt(model: Any, value: Any, what: str) -> Any:
    """Return a prompt that fits the model, an empty one for None."""
    if value is None:
        return empty_conditioning(model)
    check_conditioning(value, what)
    for text, _ in value:
        check_text_width(model, text, what)
    return value


def check_text_width(model: Any, text: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a text embedding is as wide as the model reads it."""
    needed = text_width(model)
    if text.shape[-1] != needed:
        raise ValueError(
            f"{what} is {text.shape[-1]} wide, but this model reads {needed}; encode it with the umt5 "
            "text encoder (CLIP Loader, type wan)."
        )


def check_no_added_frames(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition adds frames of its own, which have no place in a window."""
    for key in ("time_dim_concat", "context_latents", "reference_latents"):
        if options.get(key) is not None:
            raise ValueError(
                f"{what} carries {key}, extra frames that have no place in a window; "
                "remove the node that adds them."
            )


def check_guider_conditions(guider: Any) -> None:
    """Raise ValueError if a guider's conditions do not fit windows or the model."""
    for name, conditions in guider.original_conds.items():
        for condition in conditions:
            check_no_added_frames(condition, name)
            check_frame_range_option(condition, name)
            text = condition.get("cross_attn")
            if text is not None:
                check_text(text, name)
                check_text_width(guider.model_patcher, text, name)


def check_regions(guider: Any, segments: list[Any], height: int, width: int) -> None:
    """Raise ValueError if a prompt is for a part of the picture that windows cannot show.

    Parameters
    ----------
    guider
        The GUIDER.
    segments
        The plan.
    height, width
        Size of the latent.
    """
    frames = max(len(segment.window) for segment in segments)
    for name, conditions in guider.original_conds.items():
        for condition in conditions:
            if condition.get("area") is not None:
                check_area(condition["area"], name, frames, height, width)
            if condition.get("mask") is not None:
                check_prompt_mask(condition["mask"], name)
            if condition.get("gligen") is not None:
                raise ValueError(
                    f"{name} carries GLIGEN boxes, which Wan models do not read; remove the node that adds "
                    "them, or use Conditioning (Set Area with Percentage)."
                )


def check_area(area: Any, what: str, frames: int, height: int, width: int) -> None:
    """Raise ValueError unless an area lies in the picture and holds all of a window's ``frames``."""
    if not is_area(area):
        raise ValueError(
            f"{what} is for the area {shown(area)}, but an area has 4 or 6 numbers; "
            "connect Conditioning (Set Area with Percentage)."
        )
    if cuts_time(area, frames):
        raise ValueError(
            f"{what} has an area for a part of the time, but every segment is sampled by itself; set "
            "temporal to 1 and z to 0 in the node that sets the area, and connect SwiftI2V Prompt for a "
            "Time Range."
        )
    _, _, top, left = area_in_cells(area, height, width)
    if not (0 <= top < height and 0 <= left < width):
        raise ValueError(
            f"{what} has an area that begins {top * LATENT_FACTOR} pixels from the top and "
            f"{left * LATENT_FACTOR} from the left, but must begin inside the clip's "
            f"{width * LATENT_FACTOR}x{height * LATENT_FACTOR} pixels; the nearest valid begin is "
            f"{min(max(top, 0), height - 1) * LATENT_FACTOR} and "
            f"{min(max(left, 0), width - 1) * LATENT_FACTOR}."
        )


def check_prompt_mask(mask: Any, what: str) -> None:
    """Raise ValueError unless the mask of a prompt is one picture."""
    if not isinstance(mask, torch.Tensor) or mask.ndim < 2 or 0 in mask.shape:
        raise ValueError(f"{what} has a mask that is a {kind_of(mask)}, but must be a MASK.")
    check_finite(mask, f"The mask of {what}", *MASK_VALUES)
    count = mask.shape[:-2].numel()
    if count != 1:
        raise ValueError(
            f"{what} has a mask of {count} pictures, but every segment is sampled by itself and takes one; "
            "connect one mask, and SwiftI2V Prompt for a Time Range for a part of the time."
        )


def check_no_ranges(conditioning: Any) -> None:
    """Raise ValueError if an entry of a CONDITIONING has a range already, which a new one would replace."""
    for _, options in conditioning:
        if PROMPT_FRAMES in options:
            start, end = options[PROMPT_FRAMES]
            raise ValueError(
                f"conditioning has a range already (start_frame {start}, end_frame {end}) and can have "
                "only one; connect it to the input before, and the prompt for this range to conditioning."
            )


def check_prompt_ranges(guider: Any, segments: list[Any]) -> None:
    """Raise ValueError if a guider's prompts all apply after the clip; warn of unused ones."""
    frames = pixel_frame_count(segments[-1].noisy[-1] + 1)
    for name, conditions in guider.original_conds.items():
        ranges = frame_ranges(conditions)
        check_ranges_in_clip(ranges, frames, name)
        for start, end in unused_ranges(ranges, segments):
            logger.warning(
                "%s has a prompt with start_frame %s and end_frame %s that no segment uses: a segment "
                "takes the prompts for its middle frame.",
                name,
                start,
                end,
            )
