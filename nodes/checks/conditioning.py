"""Prompts and their time ranges."""

from __future__ import annotations

from typing import Any

import torch

from ...swifti2v_core import geometry
from ...swifti2v_core.stage_two.prompt_ranges import (
    WHOLE_CLIP,
    FrameRange,
    check_frame_range,
    check_ranges_in_clip,
    unused_ranges,
)
from ..comfyui import host
from .describe import kind_of, shown, whole_numbers
from .numbers import finite

PROMPT_FRAMES = "swifti2v_frames"
"""Option of an entry of a CONDITIONING: the `FrameRange` of the clip that it is for."""

TEXT_VALUES = (1e4, "those of a prompt are about -100 to 100; check the node that makes it")
"""Magnitude and rule for `values.finite`."""


def conditioning(value: Any, what: str) -> Any:
    """Return ``value`` if it is a CONDITIONING that fits windows."""
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
        text_embedding(text, what)
        fixed(options, what)
        frame_range(options, what)
    return value


def text_embedding(text: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a tensor can be what a text encoder makes, ``[B, tokens, width]``."""
    if text.ndim != 3 or 0 in text.shape:
        raise ValueError(
            f"{what} holds a tensor of shape {tuple(text.shape)}, but a prompt has (1, tokens, "
            "width), none of them 0; encode it with the umt5 text encoder (CLIP Loader, type wan)."
        )
    finite(text, what, *TEXT_VALUES)


def frame_range(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition's range of frames, if it has one, is none of ours."""
    found = options.get(PROMPT_FRAMES, WHOLE_CLIP)
    if not whole_numbers(found, 2):
        raise ValueError(
            f"{what} is for the frames {shown(found)}, but a range has two frame numbers; connect SwiftI2V "
            "Prompt for a Time Range."
        )
    check_frame_range(*found)


def prompts(model: Any, positive: Any, negative: Any) -> tuple[Any, Any]:
    """Return both prompts, checked, with an empty one for each that is not connected."""
    first = empty_or_checked(model, positive, "positive")
    return first, empty_or_checked(model, negative, "negative")


def empty_or_checked(model: Any, value: Any, what: str) -> Any:
    """Return a prompt that fits the model, an empty one for None."""
    if value is None:
        return host.empty_conditioning(model)
    for text, _ in conditioning(value, what):
        text_width(model, text, what)
    return value


def text_width(model: Any, text: torch.Tensor, what: str) -> None:
    """Raise ValueError unless a text embedding is as wide as the model reads it."""
    needed = host.text_width(model)
    if text.shape[-1] != needed:
        raise ValueError(
            f"{what} is {text.shape[-1]} wide, but this model reads {needed}; encode it with the umt5 "
            "text encoder (CLIP Loader, type wan)."
        )


def fixed(options: dict[str, Any], what: str) -> None:
    """Raise ValueError if a condition brings frames of its own, whose place no window knows."""
    for key in ("time_dim_concat", "context_latents", "reference_latents"):
        if options.get(key) is not None:
            raise ValueError(
                f"{what} carries {key}, extra frames that have no place in a window; "
                "remove the node that adds them."
            )


def guider_conditions(guider: Any) -> None:
    """Raise ValueError if a guider's conditions do not fit windows or the model."""
    for name, conditions in guider.original_conds.items():
        for condition in conditions:
            fixed(condition, name)
            frame_range(condition, name)
            text = condition.get("cross_attn")
            if text is not None:
                text_embedding(text, name)
                text_width(guider.model_patcher, text, name)


def without_ranges(conditioning: Any) -> Any:
    """Return a CONDITIONING if none of its entries has a range yet, which a second one would replace."""
    for _, options in conditioning:
        if PROMPT_FRAMES in options:
            start, end = options[PROMPT_FRAMES]
            raise ValueError(
                f"conditioning has a range already (start_frame {start}, end_frame {end}) and can have "
                "only one; connect it to the input before, and the prompt for this range to conditioning."
            )
    return conditioning


def ranges_of(conditions: list[dict[str, Any]]) -> list[FrameRange]:
    """Return the range of every condition of a GUIDER."""
    return [condition.get(PROMPT_FRAMES, WHOLE_CLIP) for condition in conditions]


def prompt_ranges(guider: Any, segments: list[Any]) -> None:
    """Raise ValueError if a guider's prompts are all for frames behind the clip; tell of unused ones."""
    frames = geometry.pixel_frame_count(segments[-1].noisy[-1] + 1)
    for name, conditions in guider.original_conds.items():
        ranges = ranges_of(conditions)
        check_ranges_in_clip(ranges, frames, name)
        for start, end in unused_ranges(ranges, segments):
            host.logger.warning(
                "%s has a prompt with start_frame %s and end_frame %s that no segment uses: a segment "
                "takes the prompts for its middle frame.",
                name,
                start,
                end,
            )
