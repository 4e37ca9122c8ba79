"""A prompt for a time range: one CONDITIONING whose entries say when they apply."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..swifti2v_core.stage_two.prompt_ranges import check_frame_range
from .checks.conditioning import check_conditioning, check_no_ranges
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.conditioning import PROMPT_FRAMES, extend_conditioning
from .shared_inputs import CATEGORY


@refused_when_queued((check_frame_range, ("start_frame", "end_frame")))
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
                    tooltip="The prompt for this part of the video, from CLIP Text Encode. The node "
                    "returns a copy.",
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
    @checked_widgets
    def execute(
        cls, conditioning: Any, start_frame: int, end_frame: int, before: Any = None
    ) -> io.NodeOutput:
        check_conditioning(conditioning, "conditioning")
        check_no_ranges(conditioning)
        if before is not None:
            check_conditioning(before, "before")
        ranged = extend_conditioning(conditioning, {PROMPT_FRAMES: (start_frame, end_frame)})
        return io.NodeOutput([*(before or []), *ranged])
