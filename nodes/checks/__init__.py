"""What can be wrong with a node's inputs, said in one sentence before any model loads."""

from .compiler import can_compile
from .conditioning import (
    PROMPT_FRAMES,
    conditioning,
    guider_conditions,
    prompt_ranges,
    prompts,
    ranges_of,
    without_ranges,
)
from .file_names import filename_prefix
from .latents import (
    KEYFRAME_TIMES,
    clip_fits_memory,
    decodable_at_once,
    framed_fits_memory,
    image,
    keyframe_latents,
    keyframe_numbers,
    motion_of,
    one_decodable_clip,
    reference,
    same_shape,
    stage_two_latent,
)
from .models import (
    check_stage_one_channels,
    model,
    stage_one_model,
    stage_two_kind,
    stage_two_model,
    vae,
    whole_windows,
)
from .numbers import frames_fit_memory
from .sampling import custom_sampling, finite_segment, from_pure_noise, noise_fits, segment_range
from .widgets import checked_widgets

__all__ = [
    "KEYFRAME_TIMES",
    "PROMPT_FRAMES",
    "can_compile",
    "check_stage_one_channels",
    "checked_widgets",
    "clip_fits_memory",
    "conditioning",
    "custom_sampling",
    "decodable_at_once",
    "filename_prefix",
    "finite_segment",
    "framed_fits_memory",
    "frames_fit_memory",
    "from_pure_noise",
    "guider_conditions",
    "image",
    "keyframe_latents",
    "keyframe_numbers",
    "model",
    "motion_of",
    "noise_fits",
    "one_decodable_clip",
    "prompt_ranges",
    "prompts",
    "ranges_of",
    "reference",
    "same_shape",
    "segment_range",
    "stage_one_model",
    "stage_two_kind",
    "stage_two_latent",
    "stage_two_model",
    "vae",
    "whole_windows",
    "without_ranges",
]
