"""The nodes, in the order of the workflow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from comfy_api.latest import ComfyExtension, io

logger = logging.getLogger("SwiftI2V")

NODES: list[type[io.ComfyNode]] = []
"""The nodes that work with this ComfyUI."""


@contextmanager
def _reported(names: str) -> Iterator[None]:
    """Log which nodes are off where ComfyUI lacks something that they import; the others load."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        logger.warning(
            "SwiftI2V: %s is off in this ComfyUI (%s); update ComfyUI or SwiftI2V.", names, error
        )


with _reported("Load Stage I Models, Load Stage II Model"):
    from .load_models import LoadStageI, LoadStageII

    NODES += [LoadStageI, LoadStageII]
with _reported("Motion Sampler"):
    from .motion_sampler import MotionSampler

    NODES += [MotionSampler]
with _reported("Camera Motion"):
    from .camera_motion import CameraMotion

    NODES += [CameraMotion]
with _reported("Anchor Encode"):
    from .anchor_encode import AnchorEncode

    NODES += [AnchorEncode]
with _reported("Prompt for a Time Range"):
    from .prompt_range import PromptRange

    NODES += [PromptRange]
with _reported("CSG Segment Sampler"):
    from .segment_sampler import SegmentSampler, SegmentSamplerAdvanced

    NODES += [SegmentSampler, SegmentSamplerAdvanced]
with _reported("Temporal Window Attention"):
    from .temporal_windows import TemporalWindows

    NODES += [TemporalWindows]
with _reported("Tiled VAE Decode, Decode to Video"):
    from .vae_decode import DecodeToVideo, TiledVAEDecode

    NODES += [TiledVAEDecode, DecodeToVideo]


class SwiftI2VExtension(ComfyExtension):
    """Registers the pack's nodes with ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes in the order of the workflow."""
        return NODES


async def comfy_entrypoint() -> SwiftI2VExtension:
    """Give ComfyUI the extension."""
    return SwiftI2VExtension()
