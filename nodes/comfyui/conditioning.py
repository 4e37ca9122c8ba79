"""CONDITIONING: prompts, and the time ranges and parts of the picture they apply to."""

from __future__ import annotations

import copy
from typing import Any

import torch
from comfy.utils import common_upscale

from ...swifti2v_core.geometry import LATENT_FACTOR
from ...swifti2v_core.stage_two.prompt_ranges import WHOLE_CLIP, FrameRange, chosen_prompts
from ...swifti2v_core.stage_two.segments import Segment
from .models import text_width

PROMPT_FRAMES = "swifti2v_frames"
"""Option of an entry of a CONDITIONING: the `FrameRange` of the clip that it applies to."""


PERCENTAGE = "percentage"
"""Mark of an area in parts of the picture; the others are in cells."""

AREA_CELL = 8
"""Pixels per cell in ComfyUI's areas of pictures, which are made for 8-pixel latents."""

SMALLEST_BOUNDS = 8
"""Cells of the smallest area that ComfyUI cuts to the bounds of a mask."""


def empty_conditioning(model: Any) -> list[Any]:
    """Return a CONDITIONING without text, for graphs that load no text encoder."""
    return [[torch.zeros(1, 8, text_width(model)), {}]]


def extend_conditioning(conditioning: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a CONDITIONING with ``values`` added to every entry."""
    return [[text, {**options, **values}] for text, options in conditioning]


def frame_ranges(conditions: list[dict[str, Any]]) -> list[FrameRange]:
    """Return the frame range of every condition of a GUIDER."""
    return [condition.get(PROMPT_FRAMES, WHOLE_CLIP) for condition in conditions]


def is_area(area: Any) -> bool:
    """Return whether a value is an area of a picture or a video, as ComfyUI's nodes set it."""
    if not isinstance(area, list | tuple):
        return False
    numbers = area[1:] if area and area[0] == PERCENTAGE else area
    return len(numbers) in (4, 6) and all(isinstance(number, int | float) for number in numbers)


def cuts_time(area: Any, frames: int) -> bool:
    """Return whether an area leaves out some of a window's ``frames``."""
    numbers = area[1:] if area[0] == PERCENTAGE else area
    if len(numbers) == 4:
        return False
    return bool(numbers[3] > 0 or numbers[0] < (1 if area[0] == PERCENTAGE else frames))


def area_in_cells(area: Any, height: int, width: int) -> tuple[int, int, int, int]:
    """Return an area as (height, width, top, left) in cells of a latent of a size.

    ComfyUI reads a percentage of four numbers as one of a picture's latent, and pixels as 8 to a cell;
    neither fits the 16-pixel latents of videos.
    """
    numbers = area[1:] if area[0] == PERCENTAGE else area
    half = len(numbers) // 2
    high, wide = (float(number) for number in numbers[half - 2 : half])
    top, left = (float(number) for number in numbers[-2:])
    scale_y, scale_x = (1.0, 1.0) if half != 2 else (AREA_CELL / LATENT_FACTOR, AREA_CELL / LATENT_FACTOR)
    if area[0] == PERCENTAGE:
        scale_y, scale_x = height, width
    return (
        max(1, round(high * scale_y)),
        max(1, round(wide * scale_x)),
        round(top * scale_y),
        round(left * scale_x),
    )


def guider_for_segment(guider: Any, segment: Segment, height: int, width: int) -> Any:
    """Return a copy of a GUIDER that holds the prompts of one segment as ComfyUI can sample them.

    Parameters
    ----------
    guider
        The GUIDER.
    segment
        Chooses the prompts, which lose their ranges.
    height, width
        Size of the latent, to which areas and masks of prompts are cut.
    """
    clone = copy.copy(guider)
    size = (len(segment.window), height, width)
    clone.original_conds = {
        name: [_place(condition, size) for condition in _choose(conditions, segment)]
        for name, conditions in guider.original_conds.items()
    }
    return clone


def _choose(conditions: list[dict[str, Any]], segment: Segment) -> list[dict[str, Any]]:
    return [conditions[index] for index in chosen_prompts(frame_ranges(conditions), segment)]


def _place(condition: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    """Return a condition without its range, its area and its mask in cells of a window of a size."""
    placed = {key: value for key, value in condition.items() if key != PROMPT_FRAMES}
    frames, height, width = size
    if placed.get("area") is not None:
        placed["area"] = area_in_cells(placed["area"], height, width)
    if placed.get("mask") is not None:
        mask = placed["mask"].reshape(1, 1, *placed["mask"].shape[-2:])
        mask = common_upscale(mask.float(), width, height, "bilinear", "none")
        if placed.pop("set_area_to_bounds", False):
            placed["area"] = _bounds(mask[0, 0])
        # ComfyUI cuts an area out of a mask along time, too.
        placed["mask"] = mask.expand(1, frames, height, width)
    return placed


def _bounds(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the area (height, width, top, left) outside which a mask ``[h, w]`` is 0."""
    rows, columns = torch.where(mask != 0)
    if not len(rows):
        return (SMALLEST_BOUNDS, SMALLEST_BOUNDS, 0, 0)  # it counts for nothing, wherever it lies
    top, left = int(rows.min()), int(columns.min())
    high, wide = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    return (max(SMALLEST_BOUNDS, high), max(SMALLEST_BOUNDS, wide), top, left)
