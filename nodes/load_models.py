"""Loaders for both stages. Any other loader's MODEL (GGUF, fp8, compiled) works as well."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from .checks.compiler import check_can_compile
from .checks.models import (
    check_stage_one_channels,
    read_stage_one_latents,
    read_stage_two_kind,
    stage_two_kind_of_channels,
)
from .checks.widgets import checked_widgets
from .comfyui.compiled_model import with_compiled_blocks
from .comfyui.memory import device_type
from .comfyui.model_files import (
    WEIGHT_DTYPES,
    apply_lora,
    check_lora_file,
    input_channels_of_file,
    input_channels_of_lora,
    load_model,
    model_files,
)
from .comfyui.models import with_shift

logger = logging.getLogger("SwiftI2V")

CATEGORY = "SwiftI2V/loaders"
NONE = "none"


def _model_input(name: str, tooltip: str, *, optional: bool = False) -> io.Combo.Input:
    names = model_files("diffusion_models")
    return io.Combo.Input(name, options=[NONE, *names] if optional else names, tooltip=tooltip)


def _lora_input(name: str, tooltip: str) -> io.Combo.Input:
    return io.Combo.Input(name, options=[NONE, *model_files("loras")], tooltip=tooltip)


def _lora_strength(name: str = "lora_strength") -> io.Float.Input:
    return io.Float.Input(
        name,
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.05,
        tooltip="How strongly the LoRA changes the model. Default 1; few-step LoRAs are made for 1, "
        "lower values need more steps. Ignored without a LoRA.",
    )


def _shift() -> io.Float.Input:
    return io.Float.Input(
        "shift",
        default=5.0,
        min=0.1,
        max=100.0,
        step=0.1,
        tooltip="Resolution shift of the noise schedule. Default 5, what Wan2.2 and the 4-step LoRAs "
        "were made with (ComfyUI's own default for these models is 8). Higher values settle the "
        "composition longer, lower ones leave more steps for detail. Must be above 0.",
    )


def _weight_dtype() -> io.Combo.Input:
    return io.Combo.Input(
        "weight_dtype",
        options=list(WEIGHT_DTYPES),
        default="default",
        advanced=True,
        tooltip="Number format the weights are kept in. Default: as in the file. The fp8 formats halve "
        "the memory of a 16-bit file at some loss of detail; files that are fp8 already need no "
        "choice here.",
    )


def _compile_blocks() -> io.Boolean.Input:
    return io.Boolean.Input(
        "compile_blocks",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Whether the network's blocks are compiled with torch.compile. Default off. On, every "
        "step is a little faster, but the first run of each size waits for the compiler, up to minutes; "
        "a GPU needs Triton.",
    )


def _check_asked(loras: tuple[str, ...], compile_blocks: bool) -> None:
    """Raise ValueError unless PyTorch and the files have what these widgets ask for."""
    if compile_blocks:
        check_can_compile(device_type())
    for name in loras:
        if name != NONE:
            check_lora_file(name)


def _channels_asked(name: str, lora: str) -> int | None:
    """Return the input channels that a model will have, by the files' headers."""
    found = input_channels_of_file(name)
    widened = None if lora == NONE else input_channels_of_lora(lora)
    return found if widened is None else widened


def _load(name: str, lora: str, strength: float, shift: float, weight_dtype: str) -> Any:
    if lora == NONE:
        return with_shift(load_model(name, weight_dtype), shift)
    model = load_model(name, weight_dtype, input_channels_of_lora(lora))
    return with_shift(apply_lora(model, lora, strength), shift)


class LoadStageI(io.ComfyNode):
    """Load the motion model: one model, or a high- and a low-noise expert."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_LoadStageI",
            display_name="SwiftI2V Load Stage I Models",
            category=CATEGORY,
            description="Loads the image-to-video model that makes the small motion clip: the two "
            "experts of Wan2.2-I2V-A14B or the single Wan2.2-TI2V-5B, each with an optional LoRA.",
            search_aliases=["wan2.2 experts", "high noise low noise loader", "swifti2v"],
            inputs=[
                _model_input(
                    "high_noise_model",
                    "Model file from models/diffusion_models: the high-noise expert of "
                    "Wan2.2-I2V-A14B, or a single model such as Wan2.2-TI2V-5B. It must be able to "
                    "take a photo (36 or 48 input channels).",
                ),
                _model_input(
                    "low_noise_model",
                    "The low-noise expert. Default none: the first model does all steps. "
                    "Needed for Wan2.2-I2V-A14B.",
                    optional=True,
                ),
                _lora_input(
                    "high_noise_lora",
                    "LoRA for the first model, from models/loras. Default none. With a 4-step LoRA for "
                    "each expert, 4 steps at CFG 1 are enough.",
                ),
                _lora_strength("high_noise_lora_strength"),
                _lora_input(
                    "low_noise_lora",
                    "LoRA for the low-noise expert. Default none. Ignored without that expert.",
                ),
                _lora_strength("low_noise_lora_strength"),
                _shift(),
                _weight_dtype(),
                _compile_blocks(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model_high_noise",
                    tooltip="The high-noise expert, or the single model, with LoRA and shift set.",
                ),
                io.Model.Output(
                    display_name="model_low_noise",
                    tooltip="The low-noise expert; the single model again when there is none.",
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        high_noise_model: str,
        low_noise_model: str,
        high_noise_lora: str,
        high_noise_lora_strength: float,
        low_noise_lora: str,
        low_noise_lora_strength: float,
        shift: float,
        weight_dtype: str,
        compile_blocks: bool = False,
    ) -> io.NodeOutput:
        _check_asked((high_noise_lora, low_noise_lora), compile_blocks)
        for name, lora in ((high_noise_model, high_noise_lora), (low_noise_model, low_noise_lora)):
            channels = None if name == NONE else _channels_asked(name, lora)
            if channels is not None:
                check_stage_one_channels(channels, f"The Stage I model {name}")
        high = _load(high_noise_model, high_noise_lora, high_noise_lora_strength, shift, weight_dtype)
        read_stage_one_latents(high, f"The Stage I model {high_noise_model}")
        if compile_blocks:
            high = with_compiled_blocks(high)
        if low_noise_model == NONE:
            return io.NodeOutput(high, high)
        low = _load(low_noise_model, low_noise_lora, low_noise_lora_strength, shift, weight_dtype)
        read_stage_one_latents(low, f"The Stage I model {low_noise_model}")
        if compile_blocks:
            low = with_compiled_blocks(low)
        return io.NodeOutput(high, low)


class LoadStageII(io.ComfyNode):
    """Load the 2K detail model and name its kind."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SwiftI2V_LoadStageII",
            display_name="SwiftI2V Load Stage II Model",
            category=CATEGORY,
            description="Loads the model that redraws the clip at full size, segment by segment. "
            "SwiftI2V weights (96 input channels, concat) see the reference directly; plain "
            "Wan2.2-TI2V-5B weights (48, Turbo included) start from the noised reference instead.",
            search_aliases=["ti2v 5b", "detail model", "swifti2v"],
            inputs=[
                _model_input(
                    "model_name",
                    "Model file from models/diffusion_models with 96 (concat) or 48 (plain) input "
                    "channels. Fun variants (100, 148) do not fit.",
                ),
                _lora_input(
                    "lora",
                    "LoRA from models/loras: a few-step LoRA, or a SwiftI2V adapter, which makes plain "
                    "weights concat ones. Default none.",
                ),
                _lora_strength(),
                _shift(),
                _weight_dtype(),
                _compile_blocks(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The Stage II model with LoRA and shift set."
                ),
                io.String.Output(
                    display_name="kind",
                    tooltip='"concat": the weights take the reference as input channels, for which '
                    'denoise 0 means 1. "plain": they do not, and it means 0.5; 0.4 to 0.6 is useful.',
                ),
            ],
        )

    @classmethod
    @checked_widgets
    def execute(
        cls,
        model_name: str,
        lora: str,
        lora_strength: float,
        shift: float,
        weight_dtype: str,
        compile_blocks: bool = False,
    ) -> io.NodeOutput:
        _check_asked((lora,), compile_blocks)
        channels = _channels_asked(model_name, lora)
        if channels is not None:
            stage_two_kind_of_channels(channels)
        model = _load(model_name, lora, lora_strength, shift, weight_dtype)
        kind = read_stage_two_kind(model)
        if compile_blocks:
            model = with_compiled_blocks(model)
        logger.info("Stage II model %s: %s weights, shift %g", model_name, kind, shift)
        return io.NodeOutput(model, kind)
