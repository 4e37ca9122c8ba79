"""The nodes: schemas, checks and progress around ``swifti2v_core``."""

from comfy_api.latest import ComfyExtension, io

from .anchor import AnchorEncode
from .camera_move import CameraMotion
from .decode import DecodeToVideo, TiledVAEDecode
from .loaders import LoadStageI, LoadStageII
from .motion import MotionSampler
from .prompts import PromptRange
from .refiner import TemporalWindows
from .sampler import SegmentSampler, SegmentSamplerAdvanced


class SwiftI2VExtension(ComfyExtension):
    """Registers the pack's nodes with ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Return the nodes in the order of the workflow."""
        return [
            LoadStageI,
            LoadStageII,
            MotionSampler,
            CameraMotion,
            AnchorEncode,
            PromptRange,
            SegmentSampler,
            SegmentSamplerAdvanced,
            TemporalWindows,
            TiledVAEDecode,
            DecodeToVideo,
        ]


async def comfy_entrypoint() -> SwiftI2VExtension:
    """Give ComfyUI the extension."""
    return SwiftI2VExtension()
