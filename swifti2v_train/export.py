"""Trained weights as files that ComfyUI loads.

A full training becomes native Wan weights. A LoRA becomes an adapter for any Wan2.2-TI2V-5B: a LoRA file in
ComfyUI's layout whose patch embedding carries ``reshape_weight``. It makes ComfyUI's LoRA loader widen the
weight from 48 to 96 input channels, as for Flux's control LoRAs, and then add the product of two factors.
One of them is the identity, so the result is exactly the trained patch embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .config import Autoencoder, Config, Diffusion, Export, load_config
from .loop.checkpoints import AVERAGES, newest_checkpoint
from .networks.native_keys import load_native, native_key, to_native, widen_patch_embedding

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
EMBEDDING = "patch_embedding"
LORA_PREFIX = "diffusion_model."
SECTIONS = ("autoencoder", "stage1", "stage2")


def run(config: Config) -> None:
    """Export the run that ``config.export`` names.

    Raises
    ------
    ValueError
        If there is nothing to export, or a weight overflows the number format.
    """
    settings = config.export
    section = run_section(settings.run)
    averages = averaged_weights(settings.run)
    if isinstance(section, Autoencoder):
        _save(averages, settings.file, settings)
    elif isinstance(section, Diffusion) and section.method == "lora":
        base = load_native(section.base)
        _save(adapter(averages, base, section.lora_alpha), settings.file, settings)
        if settings.merged_file:
            merged = merge(averages, base, section.lora_alpha / section.lora_rank)
            _save(merged, settings.merged_file, settings)
    else:
        _save(to_native(averages), settings.file, settings)


def run_section(run_folder: str) -> Autoencoder | Diffusion:
    """Return the settings that a run was started with.

    Raises
    ------
    ValueError
        If the folder holds no run.
    """
    for name in SECTIONS:
        path = Path(run_folder) / f"{name}.yaml"
        if path.exists():
            section: Autoencoder | Diffusion = getattr(load_config(path), name)
            return section
    raise ValueError(
        f"{run_folder or '(no folder)'} holds no run; set run to the output folder of a training."
    )


def averaged_weights(run_folder: str) -> dict[str, Tensor]:
    """Return the averaged weights of a run's newest checkpoint; raises ValueError if it has none."""
    newest = newest_checkpoint(Path(run_folder))
    if newest is None:
        raise ValueError(f"{run_folder} holds no checkpoint; continue the training until it has one.")
    return {key.replace(".default.", "."): value for key, value in load_file(newest / AVERAGES).items()}


def adapter(trained: Mapping[str, Tensor], base: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return a ComfyUI LoRA.

    Parameters
    ----------
    trained
        Factors of the LoRA and the whole patch embedding, under diffusers' names.
    base
        Native weights that were trained; only the patch embedding is used.
    alpha
        The LoRA's alpha.
    """
    lora = {}
    for key, value in trained.items():
        name = f"{LORA_PREFIX}{native_key(key)}"
        if not key.startswith(EMBEDDING):
            lora[name] = value
        if name.endswith("lora_A.weight"):
            lora[name.replace("lora_A.weight", "alpha")] = torch.tensor(alpha)
    return {**lora, **_embedding_patch(trained, base)}


def _embedding_patch(trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weight, bias = (trained[f"{EMBEDDING}.{kind}"].float() for kind in ("weight", "bias"))
    wide = widen_patch_embedding(base, weight.shape[1])
    change = weight - wide[f"{EMBEDDING}.weight"].float()
    outputs, inputs = len(change), change[0].numel()
    # Use the smaller identity. ComfyUI multiplies the factors as matrices and reshapes the product.
    if outputs <= inputs:
        up, down = torch.eye(outputs), change
    else:
        up, down = change.flatten(1), torch.eye(inputs).reshape(inputs, *change.shape[1:])
    name = f"{LORA_PREFIX}{EMBEDDING}"
    return {
        f"{name}.lora_up.weight": up[:, :, None, None, None],
        f"{name}.lora_down.weight": down,
        f"{name}.reshape_weight": torch.tensor(weight.shape),
        f"{name}.diff_b": bias - base[f"{EMBEDDING}.bias"].float(),
    }


def merge(trained: Mapping[str, Tensor], base: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return native weights with the LoRA and the trained patch embedding merged in.

    Parameters
    ----------
    trained, base
        As in `adapter`.
    scale
        The LoRA's alpha divided by its rank.
    """
    merged = dict(widen_patch_embedding(base, trained[f"{EMBEDDING}.weight"].shape[1]))
    for key, value in trained.items():
        if key.startswith(EMBEDDING):
            merged[key] = value
        elif key.endswith("lora_A.weight"):
            name = native_key(key).replace("lora_A.weight", "weight")
            up = trained[key.replace("lora_A", "lora_B")]
            merged[name] = merged[name].float() + scale * (up.float() @ value.float())
    return merged


def _save(state: Mapping[str, Tensor], file: str, settings: Export) -> None:
    if not file.endswith(".safetensors"):
        raise ValueError(
            f'file is "{file}", but must end in .safetensors, for example "weights.safetensors".'
        )
    dtype = DTYPES[settings.dtype]
    kept = {key: v.to(dtype).contiguous() if v.is_floating_point() else v for key, v in state.items()}
    for key, value in kept.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{key} does not fit {settings.dtype} (its largest value is {state[key].abs().max():g}); "
                "set dtype to bf16."
            )
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, file)
