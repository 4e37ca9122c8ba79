"""Every ComfyUI internal this pack uses, and what is off where one is missing.

``comfy_api`` covers schemas and sockets. Models, samplers, guiders, previews and folders have no public
API, and ComfyUI moves them as it likes. So they are named here, in one table, looked for when the pack is
imported and never imported by name elsewhere: a ComfyUI without one of them loses the features that need
it and keeps the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pkgutil import resolve_name
from typing import Any

logger = logging.getLogger("SwiftI2V")


@dataclass(frozen=True)
class Feature:
    """What a user loses with an internal.

    Attributes
    ----------
    name
        In the user's words.
    instead
        What happens without it, or what to do.
    """

    name: str
    instead: str


# What a node cannot do without; the node says so when it runs.
LOADERS = Feature(
    "loading models with SwiftI2V's loaders",
    "load them with ComfyUI's Load Diffusion Model and set the shift with ModelSamplingSD3",
)
LORAS = Feature("LoRAs in SwiftI2V's loaders", "choose none there and use ComfyUI's LoraLoaderModelOnly")
ADAPTERS = Feature("adapters that make Wan2.2-TI2V-5B read the reference", "load full Stage II weights")
COMPILE = Feature("compile_blocks", "switch it off, or use ComfyUI's TorchCompileModel")
SAMPLING = Feature(
    "sampling with SwiftI2V Motion Sampler and SwiftI2V CSG Segment Sampler",
    "any other image-to-video node can make the motion, SwiftI2V CSG Segment Sampler (Advanced) the video",
)
SEGMENTS = Feature("sampling in segments", "update ComfyUI or SwiftI2V")
READ_ONLY = Feature("read-only context", "choose bidirectional context")
TEMPORAL_WINDOWS = Feature(
    "temporal window attention", "remove the node SwiftI2V Temporal Window Attention"
)
KINDS = Feature("telling the kinds of models apart", "update ComfyUI or SwiftI2V")
PROMPTS = Feature("checking prompts, and leaving them out", "update ComfyUI or SwiftI2V")
SCHEDULES = Feature(
    "the schedule of SwiftI2V's samplers",
    "use SwiftI2V CSG Segment Sampler (Advanced) with ComfyUI's sigmas",
)
CHECKPOINTS = Feature("checkpoints", "leave checkpoint empty")
SAVING = Feature(
    "Decode to Video", "use SwiftI2V Tiled VAE Decode with ComfyUI's own nodes that save videos"
)

# What is left out or done in another way.
SAMPLER_LIST = Feature("the choice of samplers", "euler is used")
KERNELS = Feature("the choice of attention kernels", "ComfyUI chooses, the video may take longer")
ESTIMATES = Feature(
    "estimates of the memory that a sampling takes",
    "if it runs out, choose bidirectional context or fewer segment_frames",
)
STREAMING = Feature("coding frames strip by strip", "ComfyUI codes whole clips, which takes more memory")
VAE_SIZES = Feature("sizes of unusual VAEs", "all are taken for Wan2.1 or Wan2.2")
PINNING = Feature("pinning of host memory", "decoding with little GPU memory takes longer")
GPU_RESULTS = Feature("keeping results where ComfyUI wants them", "they are kept in host memory")
RELEASING = Feature("giving memory back early", "ComfyUI does it between nodes")
LATE_ERRORS = Feature("trying again after out-of-memory errors that a GPU reports late", "the run stops")
HOST_MEMORY = Feature("refusing what cannot fit into host memory", "mind the size and length of clips")
PROGRESS = Feature("progress bars in ComfyUI's page", "the video is the same")
CONSOLE = Feature("ComfyUI's choice of a progress bar in the console", "it is shown")
PREVIEWS = Feature("previews while sampling", "the video is the same")
STOPPING = Feature("stopping while frames are made", "sampling still stops, frames come to their end")
METADATA = Feature("the workflow inside video files", "save it from ComfyUI's menu")

INTERNALS: dict[str, tuple[Feature, ...]] = {
    "comfy.cli_args.args": (CHECKPOINTS,),
    "comfy.cli_args.args.disable_metadata": (METADATA,),
    "comfy.ldm.modules.attention.attention_pytorch": (KERNELS,),
    "comfy.ldm.modules.attention.optimized_attention": (CHECKPOINTS,),
    # Calls the override among the transformer options; without it ours would silently never run.
    "comfy.ldm.modules.attention.wrap_attn": (READ_ONLY, TEMPORAL_WINDOWS),
    "comfy.ldm.wan.model.WanModel.forward_orig": (SEGMENTS,),
    "comfy.ldm.wan.model.WanModel.rope_encode": (SEGMENTS,),
    "comfy.lora.calculate_shape": (ADAPTERS,),
    "comfy.model_base.BaseModel.get_dtype_inference": (ESTIMATES,),
    "comfy.model_base.BaseModel.memory_required": (ESTIMATES,),
    "comfy.model_management.get_free_memory": (HOST_MEMORY,),
    "comfy.model_management.get_torch_device": (COMPILE,),
    "comfy.model_management.get_torch_device_name": (CHECKPOINTS,),
    "comfy.model_management.get_total_memory": (STREAMING, HOST_MEMORY),
    "comfy.model_management.intermediate_device": (GPU_RESULTS,),
    "comfy.model_management.is_oom": (LATE_ERRORS,),  # later than ComfyUI 0.16.3
    "comfy.model_management.load_models_gpu": (STREAMING,),
    "comfy.model_management.pin_memory": (PINNING,),
    "comfy.model_management.soft_empty_cache": (RELEASING,),
    "comfy.model_management.throw_exception_if_processing_interrupted": (STOPPING,),
    "comfy.model_management.unpin_memory": (PINNING,),
    "comfy.model_patcher.ModelPatcher": (CHECKPOINTS,),
    "comfy.model_patcher.ModelPatcher.add_object_patch": (LOADERS,),
    "comfy.model_patcher.ModelPatcher.add_wrapper_with_key": (SEGMENTS, TEMPORAL_WINDOWS, COMPILE),
    "comfy.model_patcher.ModelPatcher.get_free_memory": (STREAMING,),
    "comfy.model_patcher.ModelPatcher.model_dtype": (CHECKPOINTS,),
    "comfy.model_patcher.ModelPatcher.remove_wrappers_with_key": (TEMPORAL_WINDOWS,),
    "comfy.model_patcher.create_model_options_clone": (SAMPLING, SEGMENTS),
    "comfy.model_sampling.CONST": (LOADERS,),
    "comfy.model_sampling.ModelSamplingDiscreteFlow": (LOADERS,),
    "comfy.patcher_extension.WrappersMP.APPLY_MODEL": (COMPILE, TEMPORAL_WINDOWS),
    "comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL": (SEGMENTS, TEMPORAL_WINDOWS),
    "comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING": (ESTIMATES,),
    "comfy.sample.prepare_noise": (SAMPLING,),
    "comfy.samplers.CFGGuider": (SAMPLING,),
    "comfy.samplers.CFGGuider.predict_noise": (ESTIMATES,),
    "comfy.samplers.SAMPLER_NAMES": (SAMPLER_LIST,),
    "comfy.samplers.sampler_object": (SAMPLING,),
    "comfy.sd.VAE.spacial_compression_decode": (VAE_SIZES,),
    "comfy.sd.load_diffusion_model": (LOADERS,),
    "comfy.sd.load_diffusion_model_state_dict": (ADAPTERS,),
    "comfy.sd.load_lora_for_models": (LORAS,),
    "comfy.utils.PROGRESS_BAR_ENABLED": (CONSOLE,),
    "comfy.utils.ProgressBar": (PROGRESS,),
    "comfy.utils.load_torch_file": (LORAS,),
    "comfy_api.torch_helpers.set_torch_compile_wrapper": (COMPILE,),
    "comfyui_version.__version__": (CHECKPOINTS,),
    "folder_paths.get_filename_list": (LOADERS,),
    "folder_paths.get_full_path_or_raise": (LOADERS,),
    "folder_paths.get_output_directory": (SAVING, CHECKPOINTS),
    "folder_paths.get_save_image_path": (SAVING,),
    "latent_preview.get_previewer": (PREVIEWS,),
}
"""What needs each internal, by its dotted name."""


MODEL_INTERNALS: dict[str, tuple[Feature, ...]] = {
    "diffusion_model.blocks": (COMPILE, ESTIMATES),
    "diffusion_model.dim": (ESTIMATES,),
    "diffusion_model.forward_orig": (SEGMENTS,),
    "diffusion_model.in_dim": (KINDS,),
    "diffusion_model.patch_size": (TEMPORAL_WINDOWS,),
    "diffusion_model.rope_encode": (SEGMENTS,),
    "diffusion_model.text_dim": (PROMPTS,),
    "latent_format.latent_channels": (KINDS,),
    "model_sampling.shift": (SCHEDULES,),
}
"""The same for what a MODEL holds, looked for when one is connected."""

VAE_INTERNALS = ("device", "first_stage_model", "patcher", "process_input", "process_output", "vae_dtype")
"""What `STREAMING` needs of a VAE."""


def internal(name: str) -> Any:
    """Return what ComfyUI has now under a name of `INTERNALS`.

    Now, because other packs replace internals after this one is imported.

    Raises
    ------
    RuntimeError
        If ComfyUI has no such thing.
    """
    if name in MISSING:
        raise RuntimeError(sentence([name], INTERNALS[name][0]))
    return resolve_name(name)


def of_model(model: Any, name: str) -> Any:
    """Return what a MODEL has under a name of `MODEL_INTERNALS`; raises RuntimeError as `internal` does."""
    owner, attribute = name.split(".")
    try:
        return getattr(model.get_model_object(owner), attribute)
    except AttributeError:
        raise RuntimeError(sentence([name], MODEL_INTERNALS[name][0])) from None


def works(feature: Feature, model: Any = None) -> bool:
    """Tell whether ComfyUI, and a MODEL if one is given, have all that a feature needs."""
    return not _lacking(feature, model)


def need(*features: Feature, model: Any = None) -> None:
    """Raise RuntimeError if something is missing without which one of ``features`` cannot work."""
    for feature in features:
        lacking = _lacking(feature, model)
        if lacking:
            raise RuntimeError(sentence(lacking, feature))


def sentence(names: list[str], feature: Feature) -> str:
    """Return what a user is told about a feature that lacks internals."""
    return f"This ComfyUI has no {', '.join(names)}, which switches off {feature.name}: {feature.instead}."


def needing(*features: Feature) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator for a node's ``execute``: first of all `need`."""

    def decorate(execute: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(execute)
        def checked(cls: type, **inputs: Any) -> Any:
            need(*features)
            return execute(cls, **inputs)

        return checked

    return decorate


def _lacking(feature: Feature, model: Any) -> list[str]:
    names = [name for name in MISSING if feature in INTERNALS[name]]
    asked = [] if model is None else [name for name, users in MODEL_INTERNALS.items() if feature in users]
    return names + [name for name in asked if not _has(model, name)]


def _has(model: Any, name: str) -> bool:
    try:
        of_model(model, name)
    except RuntimeError:
        return False
    return True


def _look() -> frozenset[str]:
    """Return the names of `INTERNALS` that ComfyUI does not have, and log what is off."""
    missing = set()
    for name in INTERNALS:
        try:
            resolve_name(name)
        except (ImportError, AttributeError):
            missing.add(name)
    for feature in dict.fromkeys(feature for name in INTERNALS for feature in INTERNALS[name]):
        names = [name for name in INTERNALS if name in missing and feature in INTERNALS[name]]
        if names:
            logger.warning("SwiftI2V: %s", sentence(names, feature))
    return frozenset(missing)


MISSING = _look()
"""Names of `INTERNALS` that this ComfyUI does not have."""
