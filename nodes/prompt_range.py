"""Prompts for time ranges: one CONDITIONING whose entries say when they apply."""

from __future__ import annotations

import copy
from typing import Any

from comfy_api.latest import io

from ..swifti2v_core.stage_two.prompt_ranges import check_frame_range, chosen_prompts
from ..swifti2v_core.stage_two.segments import Segment
from . import checks
from .comfyui import host

CATEGORY = "SwiftI2V"


class PromptRange(io.ComfyNode):
    """Limit a prompt to a part of the clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_PromptRange",
            display_name="SwiftI2V Prompt for a Time Range",
            category=CATEGORY,
            description="Limits a prompt to a part of the video: the segment samplers make each segment "
            "with the prompts for its time.",
            search_aliases=["prompt schedule", "prompt travel", "timed prompt", "swifti2v"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The prompt for this part of the video, from CLIP Text Encode. It stays as it "
                    "is; a copy comes out.",
                ),
                io.Int.Input(
                    "start_frame",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="First frame of the video that the prompt is for, counted from 0. Default 0. "
                    "At least 0 and inside the video.",
                ),
                io.Int.Input(
                    "end_frame",
                    default=0,
                    min=0,
                    max=100000,
                    tooltip="First frame that the prompt is no longer for, the start_frame of the next "
                    "prompt. Default 0: to the end of the video. Else above start_frame.",
                ),
                io.Conditioning.Input(
                    "before",
                    optional=True,
                    tooltip="Prompts for other parts, from another such node, that are put in front, or a "
                    "prompt for the whole video. Unconnected: this prompt alone.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="All prompts with their times, for positive or negative of a segment sampler "
                    "or of a guider.",
                ),
            ],
        )

    @classmethod
    @checks.checked_widgets
    def execute(
        cls, conditioning: Any, start_frame: int, end_frame: int, before: Any = None
    ) -> io.NodeOutput:
        check_frame_range(start_frame, end_frame)
        earlier = [] if before is None else checks.conditioning(before, "before")
        added = checks.without_ranges(checks.conditioning(conditioning, "conditioning"))
        ranged = host.extend_conditioning(added, {checks.PROMPT_FRAMES: (start_frame, end_frame)})
        return io.NodeOutput([*earlier, *ranged])


def guider_for(guider: Any, segment: Segment) -> Any:
    """Return a copy of a GUIDER with the conditions that a segment is made with, without their ranges."""
    clone = copy.copy(guider)
    clone.original_conds = {
        name: _chosen(conditions, segment) for name, conditions in guider.original_conds.items()
    }
    return clone


def _chosen(conditions: list[dict[str, Any]], segment: Segment) -> list[dict[str, Any]]:
    chosen = [conditions[index] for index in chosen_prompts(checks.ranges_of(conditions), segment)]
    return [
        {key: value for key, value in condition.items() if key != checks.PROMPT_FRAMES}
        for condition in chosen
    ]
