"""Temporal window attention: a MODEL patch that makes refining a whole clip linear in its length."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..swifti2v_core.attention.temporal_windows import check_window_frames
from .checks.models import check_model
from .checks.widgets import checked_widgets, refused_when_queued
from .comfyui.temporal_model import with_temporal_windows
from .shared_inputs import CATEGORY


@refused_when_queued((check_window_frames, ("window_frames",)))
class TemporalWindows(io.ComfyNode):
    """Make a model attend inside temporal windows that shift from block to block."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_TemporalWindows",
            display_name="SwiftI2V Temporal Window Attention",
            category=CATEGORY,
            description="Lets a Wan model attend inside short windows along time that shift from block to "
            "block, so that refining a whole clip in one sampling costs time in proportion to its length. "
            "For samplings that start from an enlarged clip with denoise below 1.",
            search_aliases=["surf", "refiner", "sliding window attention", "video upscale", "swifti2v"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="Any Wan model, Wan2.2-TI2V-5B for example, with or without LoRAs, compiled "
                    "blocks or an attention patch. It stays as it is; a patched copy comes out.",
                ),
                io.Int.Input(
                    "window_frames",
                    default=6,
                    min=2,
                    max=1000,
                    step=2,
                    tooltip="Latent frames that attend to each other (W); one is 4 video frames. Default "
                    "6, which is 21 frames. Larger windows agree better over time and cost more; a window "
                    "as long as the clip is ordinary attention. Must be even and at least 2.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="The model with windowed self-attention, for KSampler or any other sampler.",
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(cls, model: Any, window_frames: int) -> io.NodeOutput:
        check_model(model, "model")
        return io.NodeOutput(with_temporal_windows(model, window_frames))
