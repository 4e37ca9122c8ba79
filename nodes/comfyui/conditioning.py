"""CONDITIONING: prompts, and the time ranges they apply to."""

from __future__ import annotations

import copy
from typing import Any

import torch

from ...swifti2v_core.stage_two.prompt_ranges import WHOLE_CLIP, FrameRange, chosen_prompts
from ...swifti2v_core.stage_two.segments import Segment
from .models import text_width

PROMPT_FRAMES = "swifti2v_frames"
"""Option of an entry of a CONDITIONING: the `FrameRange` of the clip that it applies to."""


def empty_conditioning(model: Any) -> list[Any]:
    """Return a CONDITIONING without text, for graphs that load no text encoder."""
    return [[torch.zeros(1, 8, text_width(model)), {}]]


def extend_conditioning(conditioning: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a CONDITIONING with ``values`` added to every entry."""
    return [[text, {**options, **values}] for text, options in conditioning]


def frame_ranges(conditions: list[dict[str, Any]]) -> list[FrameRange]:
    """Return the frame range of every condition of a GUIDER."""
    return [condition.get(PROMPT_FRAMES, WHOLE_CLIP) for condition in conditions]


def guider_for_segment(guider: Any, segment: Segment) -> Any:
    """Return a copy of a GUIDER that holds the prompts of one segment, without their ranges."""
    clone = copy.copy(guider)
    clone.original_conds = {
        name: _choose(conditions, segment) for name, conditions in guider.original_conds.items()
    }
    return clone


def _choose(conditions: list[dict[str, Any]], segment: Segment) -> list[dict[str, Any]]:
    chosen = [conditions[index] for index in chosen_prompts(frame_ranges(conditions), segment)]
    return [
        {key: value for key, value in condition.items() if key != PROMPT_FRAMES} for condition in chosen
    ]
