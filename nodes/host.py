"""The only door to ComfyUI's internals; every use says why the public API does not do.

``comfy_api`` covers schemas and sockets. Models, samplers, guiders, previews and folders have no
public API yet, so the few names used are gathered here.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import args
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import create_model_options_clone
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors import SafetensorError, safe_open
from torch.cuda import synchronize
from tqdm.auto import tqdm

from ..swifti2v_core.seeds import clip_seed
from . import attention, compiling, temporal, timeline, windows

logger = logging.getLogger("SwiftI2V")

WEIGHT_DTYPES = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
"""The same choices as ComfyUI's own diffusion model loader."""

PLAIN_ATTENTION = getattr(attention_pytorch, "__wrapped__", attention_pytorch)
"""ComfyUI's attention on PyTorch's kernels, as overrides are handed it."""

COMPILER = "inductor"
"""Backend of torch.compile."""

PATCH_EMBEDDING = "diffusion_model.patch_embedding.weight"
"""The weight whose second size is the number of input channels."""

RESHAPE = "diffusion_model.patch_embedding.reshape_weight"
"""What a LoRA says that shape is to be."""

# --- Files ----------------------------------------------------------------------------------------


def model_files(folder: str) -> list[str]:
    """Return the model files of a ComfyUI folder, extra model paths included."""
    return folder_paths.get_filename_list(folder)


def input_channels_of_file(name: str) -> int | None:
    """Read the input channels of a Wan checkpoint from its header, without loading it.

    Returns
    -------
    int or None
        None when the file is no safetensors file.

    Raises
    ------
    ValueError
        If the file is damaged or holds no Wan patch embedding.
    """
    path = folder_paths.get_full_path_or_raise("diffusion_models", name)
    if not path.endswith((".safetensors", ".sft")):
        return None
    try:
        with safe_open(path, framework="pt") as weights:
            for key in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
                if key.endswith("patch_embedding.weight"):
                    return weights.get_slice(key).get_shape()[1]
    except SafetensorError as error:
        raise ValueError(f"{name} is no complete safetensors file ({error}); download it again.") from None
    raise ValueError(
        f"{name} holds no Wan model (it has no patch_embedding); load Wan2.2-I2V-A14B or Wan2.2-TI2V-5B "
        "for Stage I, SwiftI2V weights or Wan2.2-TI2V-5B for Stage II."
    )


def input_channels_of_lora(name: str) -> int | None:
    """Return the input channels to which a LoRA widens a model, or None if it leaves them alone."""
    path = folder_paths.get_full_path_or_raise("loras", name)
    if not path.endswith((".safetensors", ".sft")):
        return None
    with safe_open(path, framework="pt") as weights:
        if RESHAPE not in weights.keys():  # noqa: SIM118 (safe_open is no mapping)
            return None
        return int(weights.get_tensor(RESHAPE)[1])


def load_model(name: str, weight_dtype: str, channels: int | None = None) -> Any:
    """Load a diffusion model as ComfyUI's own loader does.

    Parameters
    ----------
    name
        File in ComfyUI's folder.
    weight_dtype
        A key of `WEIGHT_DTYPES`.
    channels
        Input channels that the model is to have, the new ones without effect; None: as in the file.
        ComfyUI would widen the weight when it applies the LoRA, but not one that it keeps in RAM.
    """
    path = folder_paths.get_full_path_or_raise("diffusion_models", name)
    options = dict(WEIGHT_DTYPES[weight_dtype])
    if channels is None:
        return comfy.sd.load_diffusion_model(path, model_options=options)
    state, metadata = comfy.utils.load_torch_file(path, return_metadata=True)
    key = next(key for key in state if key.endswith("patch_embedding.weight"))
    weight = state[key]
    state[key] = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
    state[key][:, : weight.shape[1]] = weight
    return comfy.sd.load_diffusion_model_state_dict(state, model_options=options, metadata=metadata)


def apply_lora(model: Any, name: str, strength: float) -> Any:
    """Return a clone of ``model`` with a LoRA file applied, as ``LoraLoaderModelOnly`` does."""
    path = folder_paths.get_full_path_or_raise("loras", name)
    lora = comfy.utils.load_torch_file(path, safe_load=True)
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, strength, 0)
    return patched


def output_folder() -> str:
    """Return the absolute path of the folder that ComfyUI saves to."""
    return os.path.abspath(folder_paths.get_output_directory())


def save_path(prefix: str, extension: str, width: int, height: int) -> tuple[str, str, str]:
    """Return (full path, file name, subfolder) of a new file in ComfyUI's output folder.

    ComfyUI refuses prefixes that leave the output folder.
    """
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    file = f"{name}_{counter:05}_.{extension}"
    return os.path.join(folder, file), file, subfolder


def workflow_metadata(prompt: Any, extra: dict[str, Any] | None) -> dict[str, str]:
    """Return the tags that let ComfyUI restore the graph from a file; empty if the user said no."""
    if args.disable_metadata:
        return {}
    tags = {name: json.dumps(value) for name, value in (extra or {}).items()}
    return tags if prompt is None else {"prompt": json.dumps(prompt), **tags}


# --- Models ---------------------------------------------------------------------------------------


def input_channels(model: Any) -> int:
    """Return the channels that a Wan model takes (noisy latent and concatenated conditions).

    A LoRA with a ``reshape_weight`` makes them more than the file of the model had: SwiftI2V adapters for
    Wan2.2-TI2V-5B do, as ComfyUI's control LoRAs for Flux.
    """
    # Not the weight itself: models share it, and ComfyUI may have just patched it for another one.
    unpatched = torch.empty(1, model.get_model_object("diffusion_model").in_dim, device="meta")
    return comfy.lora.calculate_shape(model.patches.get(PATCH_EMBEDDING, []), unpatched, PATCH_EMBEDDING)[1]


def latent_channels(model: Any) -> int:
    """Return the channels of the latents that a model generates."""
    return model.get_model_object("latent_format").latent_channels


def is_wan(model: Any) -> bool:
    """Tell whether a MODEL is of the Wan family, whose windows this pack knows how to place."""
    network = model.get_model_object("diffusion_model")
    return hasattr(network, "rope_encode") and hasattr(network, "forward_orig")


def model_shift(model: Any) -> float:
    """Return the resolution shift of a flow model."""
    return float(getattr(model.get_model_object("model_sampling"), "shift", 1.0))


def with_shift(model: Any, shift: float) -> Any:
    """Return a clone of ``model`` with another resolution shift; the input keeps its own."""
    clone = model.clone()

    class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    # Built from the model's own settings, like ComfyUI's ModelSamplingSD3 node.
    sampling = FlowSampling(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=1000)
    clone.add_object_patch("model_sampling", sampling)
    return clone


def with_compiled_blocks(model: Any) -> Any:
    """Return a clone of ``model`` whose blocks are compiled in the first run, one by one.

    Every length of the sequence is compiled for itself: a clip has few, and they come back.
    """
    # As ComfyUI's TorchCompileModel: weights must not be moved in and out below compiled code.
    clone = model.clone(disable_dynamic=True)
    blocks = len(clone.get_model_object("diffusion_model").blocks)
    set_torch_compile_wrapper(
        clone,
        COMPILER,
        options={"guard_filter_fn": compiling.guards_to_keep},
        dynamic=False,
        keys=[f"diffusion_model.blocks.{index}" for index in range(blocks)],
    )
    for wrapper in (compiling.allow_many_graphs, attention.installer(PLAIN_ATTENTION)):
        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, windows.KEY, wrapper)
    return clone


def with_temporal_windows(model: Any, window_frames: int) -> Any:
    """Return a clone of ``model`` whose self-attention runs inside windows of ``window_frames``."""
    clone = model.clone()
    options = clone.model_options.setdefault("transformer_options", {})
    options[temporal.KEY] = temporal.TemporalWindows(window_frames, PLAIN_ATTENTION)
    for place, wrapper in (
        (WrappersMP.DIFFUSION_MODEL, temporal.temporal_forward),
        (WrappersMP.APPLY_MODEL, temporal.tell_apart),
    ):
        clone.remove_wrappers_with_key(place, temporal.KEY)  # of a model that was patched before
        clone.add_wrapper_with_key(place, temporal.KEY, wrapper)
    return clone


def device_type() -> str:
    """Return the kind of device that ComfyUI computes on, as PyTorch names it."""
    return comfy.model_management.get_torch_device().type


def text_width(model: Any) -> int:
    """Return the width of the text embeddings that a Wan model reads."""
    return model.get_model_object("diffusion_model").text_dim


def empty_conditioning(model: Any) -> list[Any]:
    """Return a CONDITIONING without text, for graphs that load no text encoder."""
    return [[torch.zeros(1, 8, text_width(model)), {}]]


def extend_conditioning(conditioning: Any, values: dict[str, Any]) -> Any:
    """Return a copy of a CONDITIONING with ``values`` added to every entry."""
    return [[text, {**options, **values}] for text, options in conditioning]


# --- Sampling -------------------------------------------------------------------------------------


def sampler_names() -> list[str]:
    """Return the samplers that ComfyUI offers."""
    return list(comfy.samplers.SAMPLER_NAMES)


def sampler_object(name: str) -> Any:
    """Return a SAMPLER by name."""
    return comfy.samplers.sampler_object(name)


def cfg_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return a GUIDER with classifier-free guidance; 1 skips the negative prompt."""
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def motion_guider(model: Any, positive: Any, negative: Any, cfg: float) -> Any:
    """Return the GUIDER of a Stage I sampling, with the attention that suits the card."""
    guider = cfg_guider(model, positive, negative, cfg)
    guider.model_options = create_model_options_clone(guider.model_options)
    attention.install(guider.model_options.setdefault("transformer_options", {}), PLAIN_ATTENTION)
    return guider


@dataclass(frozen=True)
class SeededNoise:
    """A NOISE that draws ComfyUI's noise of a seed; further clips of a batch take the next seeds."""

    seed: int

    def generate_noise(self, latent: dict[str, Any]) -> torch.Tensor:
        """Return noise in the shape of ``latent["samples"]``, for each clip as if it were alone."""
        clips = latent["samples"].split(1)
        # A clip picked from a batch keeps its number, and so its noise.
        numbers = latent.get("batch_index") or range(len(clips))
        seeded = zip(clips, (clip_seed(self.seed, number) for number in numbers), strict=True)
        return torch.cat([comfy.sample.prepare_noise(*clip_and_seed) for clip_and_seed in seeded])


def sample(
    guider: Any,
    noise: torch.Tensor,
    latent: torch.Tensor,
    sampler: Any,
    sigmas: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    callback: Callable[..., None],
    seed: int,
) -> torch.Tensor:
    """Run one native sampling and bring the result to where ComfyUI keeps latents."""
    result = guider.sample(
        noise,
        latent,
        sampler,
        sigmas,
        denoise_mask=mask,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    return to_storage(result)


def to_storage(latent: torch.Tensor) -> torch.Tensor:
    """Move a latent to the device where ComfyUI keeps results between nodes."""
    return latent.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32)


def frame_progress(total: int) -> Callable[[int], None]:
    """Return a function that shows how many of ``total`` frames are done and stops when cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def report(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done)

    return report


class SamplingProgress:
    """One progress bar over several samplings, with a preview of the frames being made.

    ComfyUI's page gets one bar, and so does the console: the samplers' own bars, one per segment, are
    switched off in `sample`.

    Parameters
    ----------
    model
        The MODEL being sampled; its latent format chooses the previewer.
    total
        Steps of all samplings together.
    """

    def __init__(self, model: Any, total: int) -> None:
        self._bar = comfy.utils.ProgressBar(total)
        self._console = tqdm(total=total, disable=not comfy.utils.PROGRESS_BAR_ENABLED)
        self._total = total
        self._previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(
        self, done: int, first_frame: int, place: tuple[float, float] | None = None
    ) -> Callable[..., None]:
        """Return the step callback of one sampling.

        Parameters
        ----------
        done
            Steps finished before this sampling.
        first_frame
            First latent frame to preview: ComfyUI's previewers show the first one they are given,
            which in a window is the photo and would never change.
        place
            Part of the clip that is being made, see `timeline.with_place`; None for all of it.
        """

        def on_step(step: int, denoised: torch.Tensor, _noisy: torch.Tensor, _steps: int) -> None:
            self._show(done + step + 1, self._preview(denoised[:, :, first_frame:], place))

        return on_step

    def _preview(self, frames: torch.Tensor, place: tuple[float, float] | None) -> Any:
        """Return ComfyUI's (format, picture, largest size), or None without previews."""
        shown = self._previewer and self._previewer.decode_latent_to_preview_image("JPEG", frames)
        if not shown or place is None:  # previewers that send pictures themselves return None
            return shown
        kind, picture, largest = shown
        return kind, timeline.with_place(picture, *place), largest

    def finish(self, done: int) -> None:
        """Move the bar to ``done`` steps, also where a sampler called back less often."""
        self._show(done, None)

    def _show(self, done: int, preview: Any) -> None:
        self._console.update(done - self._console.n)
        self._bar.update_absolute(done, self._total, preview)

    def __enter__(self) -> SamplingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._console.close()


# --- Windows --------------------------------------------------------------------------------------


def window_guider(guider: Any) -> Any:
    """Return a copy of a GUIDER whose model places windows; the guider given stays as it is.

    The model is a clone with one more wrapper around its forward, the innermost, so that wrappers of
    other packs run around it, and one around ComfyUI's estimate of the memory.
    """
    clone = copy.copy(guider)
    clone.model_patcher = guider.model_patcher.clone()
    for place, wrapper in (
        (WrappersMP.DIFFUSION_MODEL, windows.window_forward),
        (WrappersMP.PREPARE_SAMPLING, windows.count_kept_context),
    ):
        clone.model_patcher.add_wrapper_with_key(place, windows.KEY, wrapper)
    return clone


def aim_guider(
    clone: Any, guider: Any, view: windows.WindowView, concat_latent: torch.Tensor | None
) -> None:
    """Point a guider from `window_guider` at one window.

    Parameters
    ----------
    clone
        The guider to change.
    guider
        The GUIDER it was made from: conditions and options are taken from it anew.
    view
        The window.
    concat_latent
        Reference channels of the window, ``[B, 48, W, h, w]`` in VAE space, or None for plain
        weights.
    """
    clone.model_options = create_model_options_clone(guider.model_options)
    options = clone.model_options.setdefault("transformer_options", {})
    options[windows.KEY] = view
    options[windows.KEPT_BYTES] = windows.kept_bytes(guider.model_patcher, view, _conditions_run(guider))
    attention.install(options, PLAIN_ATTENTION)
    added = {} if concat_latent is None else {"concat_latent_image": concat_latent}
    clone.original_conds = {
        name: [{**condition, **added} for condition in conditions]
        for name, conditions in guider.original_conds.items()
    }


def _conditions_run(guider: Any) -> int:
    """Return how many conditions a guider runs per step; without guidance ComfyUI skips the negative."""
    counts = {name: len(conditions) for name, conditions in guider.original_conds.items()}
    usual = getattr(type(guider), "predict_noise", None) is comfy.samplers.CFGGuider.predict_noise
    if usual and math.isclose(guider.cfg, 1) and not guider.model_options.get("disable_cfg1_optimization"):
        counts.pop("negative", None)
    return sum(counts.values())


# --- Memory ---------------------------------------------------------------------------------------


def make_room(patcher: Any, needed: float) -> None:
    """Load a model and free ``needed`` bytes beside it, as ComfyUI does before every use."""
    comfy.model_management.load_models_gpu([patcher], memory_required=needed)


def total_memory(device: torch.device) -> float:
    """Return the bytes a device has."""
    return comfy.model_management.get_total_memory(device)


def free_memory(patcher: Any, device: torch.device) -> float:
    """Return the bytes that are free on a device, or will be when a loaded model asks for them."""
    return patcher.get_free_memory(device)


def raise_unless_out_of_memory(error: Exception) -> None:
    """Raise ``error`` again unless it says that the device's memory is exhausted."""
    known = getattr(comfy.model_management, "raise_non_oom", None)  # later than ComfyUI 0.16.3
    if known is not None:
        known(error)
    elif not isinstance(error, comfy.model_management.OOM_EXCEPTION):
        raise error


@contextmanager
def pinning(device: torch.device) -> Iterator[Callable[[torch.Tensor], None]]:
    """Give a function that pins tensors of host memory, as many as ComfyUI allows, until the end."""
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> None:
        if comfy.model_management.pin_memory(tensor):
            pinned.append(tensor)

    try:
        yield pin
    finally:
        if pinned:
            synchronize(device)  # copies may still be under way
        for tensor in pinned:
            comfy.model_management.unpin_memory(tensor)


def release_memory() -> None:
    """Give cached blocks back to the device."""
    comfy.model_management.soft_empty_cache()
