"""The nodes: schemas, checks and progress around ``swifti2v_core``."""

from comfy_api.latest import ComfyExtension, io

from .anchor_encode import AnchorEncode
from .camera_motion import CameraMotion
from .load_models import LoadStageI, LoadStageII
from .motion_sampler import MotionSampler
from .prompt_range import PromptRange
from .segment_sampler import SegmentSampler, SegmentSamplerAdvanced
from .temporal_windows import TemporalWindows
from .vae_decode import DecodeToVideo, TiledVAEDecode


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
