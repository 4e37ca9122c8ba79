"""Inputs that several nodes share, so that they read the same everywhere."""

from __future__ import annotations

from collections.abc import Callable

from comfy_api.latest import io

from ..swifti2v_core.resume.saved_segments import SavedSegments

KEEP = "keep"

CHECKPOINT_FILES: dict[str, Callable[[SavedSegments], None]] = {
    KEEP: SavedSegments.keep,
    "delete when done": SavedSegments.delete,
    "keep newest 3 runs": lambda saved: saved.delete_others(3),
}
"""What happens to saved segments when their run is finished, by the words of the widget."""

CATEGORY = "SwiftI2V"

PHOTOS = (
    "The photo, one image of any size. A batch is several photos, not the frames of a video: each makes "
    "a clip of its own, as if run alone with the seed, the seed + 1, and so on."
)
"""What an image socket of Stage I takes."""

SIZE_RULE = (
    "Must be a multiple of 32 (16 for Wan2.2-I2V-A14B). A quarter of the final size keeps the "
    "paper's proportions."
)
"""Which sizes a clip of Stage I may have."""


def seed(what: str) -> io.Int.Input:
    """Return the seed widget of a node that draws ``what``."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip=f"Chooses {what}. The same seed gives the same latent and frames, up to rounding, "
        "whatever the preview or progress settings. Further clips of a batch take the next seeds.",
    )


def size(default_width: int, default_height: int, multiple: int, rule: str) -> list[io.Int.Input]:
    """Return the width and height widgets."""
    return [
        io.Int.Input(
            name,
            default=default,
            min=multiple,
            max=16384,
            step=multiple,
            tooltip=f"{name.capitalize()} in pixels, default {default}. {rule}",
        )
        for name, default in (("width", default_width), ("height", default_height))
    ]


def frames(what: str) -> io.Int.Input:
    """Return the frame count widget."""
    return io.Int.Input(
        "frames",
        default=81,
        min=5,
        max=4001,
        step=4,
        tooltip=f"Number of frames of {what}. Default 81 (5 seconds at 16 fps). Must be 4n+1.",
    )


def fit() -> io.Combo.Input:
    """Return the widget that chooses how a photo is framed to another shape."""
    return io.Combo.Input(
        "fit",
        options=["crop", "pad"],
        default="crop",
        tooltip="How a photo of another shape is framed. crop (default) fills the frame and cuts what "
        "hangs over; pad shows all of it with black bars. Use the same choice in every node.",
    )


def steps() -> io.Int.Input:
    """Return the step count widget."""
    return io.Int.Input(
        "steps",
        default=4,
        min=1,
        max=1000,
        tooltip="Sampling steps. Default 4, right for distilled models and few-step LoRAs; base models "
        "want 20 to 50. More steps take proportionally longer.",
    )


def cfg() -> io.Float.Input:
    """Return the guidance widget."""
    return io.Float.Input(
        "cfg",
        default=1.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Classifier-free guidance. Default 1 (off, twice as fast), right for distilled models; "
        "base models want 3.5 to 5 and a negative prompt.",
    )


def sampler_name(names: list[str]) -> io.Combo.Input:
    """Return the sampler widget with ComfyUI's own samplers."""
    return io.Combo.Input(
        "sampler_name",
        options=names,
        default="euler",
        tooltip="ComfyUI sampler. Default euler, what the 4-step recipes were made for.",
    )


def timesteps() -> io.String.Input:
    """Return the widget for explicit few-step lists."""
    return io.String.Input(
        "timesteps",
        default="",
        optional=True,
        advanced=True,
        tooltip="Explicit list of timesteps, 1000 = pure noise, before the shift: "
        '"1000, 757, 522" for FastWan, for example. Empty (default): steps evenly spaced, which for '
        "4 steps is the 1000, 750, 500, 250 of the distilled models. A list overrides steps.",
    )


def prompts(stage: str) -> list[io.Conditioning.Input]:
    """Return the optional prompt sockets."""
    return [
        io.Conditioning.Input(
            "positive",
            optional=True,
            tooltip=f"What {stage} should show (CLIP Text Encode with the umt5 encoder). Unconnected: "
            "no text, which the tiny demo models expect; Wan models do better with a prompt.",
        ),
        io.Conditioning.Input(
            "negative",
            optional=True,
            tooltip="What to avoid. Used only when cfg is not 1. Unconnected: no text.",
        ),
    ]


def saved_segments() -> list[io.Input]:
    """Return the widgets that save finished segments."""
    return [
        io.String.Input(
            "checkpoint",
            default="",
            optional=True,
            advanced=True,
            tooltip="Name under which finished segments are saved in output/swifti2v_checkpoints. Queue "
            "the same graph after a crash or cancel and it resumes after the last saved segment, bit for "
            "bit. Any change starts a new set. Empty (default): nothing is saved.",
        ),
        io.Combo.Input(
            "checkpoint_files",
            options=list(CHECKPOINT_FILES),
            default=KEEP,
            optional=True,
            advanced=True,
            tooltip="What happens to the saved segments of a finished run. keep (default): they stay, so a "
            "crash while decoding costs nothing either; 81 frames of 2560x1408 take 55 MB. delete when "
            "done: they are deleted once the last segment is made. keep newest 3 runs: older runs under "
            "this name are deleted, except those written to in the last hour.",
        ),
    ]
