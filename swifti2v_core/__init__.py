"""SwiftI2V in pure PyTorch: photo to faithful 2K video in two stages.

The names below are the public API; they are imported when first used, so that ``import swifti2v_core`` is
cheap. Nothing here imports ComfyUI; ``nodes/`` adapts its sockets to the tensors and callables used here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.read_only import ReadOnlyContext as ReadOnlyContext
    from .reference.hybrid import ReferenceSettings as ReferenceSettings
    from .reference.hybrid import reference_chunks as reference_chunks
    from .reference.hybrid import with_anchor as with_anchor
    from .resume.fingerprint import fingerprint as fingerprint
    from .resume.saved_segments import SavedSegments as SavedSegments
    from .sigmas import even_timesteps as even_timesteps
    from .sigmas import flow_sigmas as flow_sigmas
    from .stage_one.camera import CameraMove as CameraMove
    from .stage_one.camera import camera_motion as camera_motion
    from .stage_two.drift_control import match_statistics as match_statistics
    from .stage_two.segment_loop import clean_mask as clean_mask
    from .stage_two.segment_loop import run_segments as run_segments
    from .stage_two.segments import Segment as Segment
    from .stage_two.segments import plan_segments as plan_segments
    from .vae.memory_plan import DecodePlan as DecodePlan
    from .vae.memory_plan import plan_decode as plan_decode
    from .vae.memory_plan import plan_encode as plan_encode
    from .vae.strips import StripDecoder as StripDecoder
    from .vae.strips import StripEncoder as StripEncoder

__version__ = "0.1.0"

_MODULES = {
    "CameraMove": "stage_one.camera",
    "DecodePlan": "vae.memory_plan",
    "ReadOnlyContext": "attention.read_only",
    "ReferenceSettings": "reference.hybrid",
    "SavedSegments": "resume.saved_segments",
    "Segment": "stage_two.segments",
    "StripDecoder": "vae.strips",
    "StripEncoder": "vae.strips",
    "camera_motion": "stage_one.camera",
    "clean_mask": "stage_two.segment_loop",
    "even_timesteps": "sigmas",
    "fingerprint": "resume.fingerprint",
    "flow_sigmas": "sigmas",
    "match_statistics": "stage_two.drift_control",
    "plan_decode": "vae.memory_plan",
    "plan_encode": "vae.memory_plan",
    "plan_segments": "stage_two.segments",
    "reference_chunks": "reference.hybrid",
    "run_segments": "stage_two.segment_loop",
    "with_anchor": "reference.hybrid",
}
"""Module of every public name."""

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
