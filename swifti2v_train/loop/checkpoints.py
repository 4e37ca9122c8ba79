"""Checkpoints by accelerate plus the averaged weights, written as a whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

PATTERN = "checkpoint-" + "[0-9]" * 8
AVERAGES = "averages.safetensors"
STATE = "state.json"
MODEL = "model.safetensors"


def newest_checkpoint(run: Path) -> Path | None:
    """Return the newest checkpoint of a run, or None."""
    return max(run.glob(PATTERN), default=None)


def trainable(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and value of every trained parameter."""
    return ((name, value) for name, value in network.named_parameters() if value.requires_grad)


class Checkpoints:
    """Writes and reads the state of a run.

    Accelerate saves trained weights, optimizer and random states. The averaged weights, which are exported,
    are a separate file, complete even if FSDP shards them.

    Parameters
    ----------
    run
        Output folder of the run.
    accelerator
        The accelerator that prepared ``model``.
    model
        The prepared model.
    averages
        Averages of the trained parameters of ``model``.
    keep
        How many checkpoints are kept.
    """

    def __init__(
        self, run: Path, accelerator: Accelerator, model: Any, averages: EMAModel, keep: int
    ) -> None:
        self.run, self.accelerator, self.averages, self.keep = run, accelerator, averages, keep
        self.network: nn.Module = accelerator.unwrap_model(model)
        if accelerator.distributed_type != DistributedType.FSDP:
            accelerator.register_save_state_pre_hook(self._keep_trainable)
            accelerator.register_load_state_pre_hook(self._load_trainable)

    def _keep_trainable(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights[0] = {name: value.detach() for name, value in trainable(self.network)}

    def _load_trainable(self, models: list[Any], folder: str) -> None:
        models.clear()  # keep accelerate from loading it itself
        weights = load_file(Path(folder) / MODEL)
        with torch.no_grad():
            for name, value in trainable(self.network):
                value.copy_(weights[name])

    def save(self, step: int) -> Path:
        """Write a step's checkpoint and remove the oldest beyond ``keep``; all processes must call it."""
        target = self.run / f"checkpoint-{step:08}"
        part = target.with_suffix(".part")
        self._write(part, step)
        if self.accelerator.is_main_process:
            shutil.rmtree(target, ignore_errors=True)
            os.replace(part, target)
            for old in sorted(self.run.glob(PATTERN))[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()
        return target

    def _write(self, folder: Path, step: int) -> None:
        if self.accelerator.is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(folder))
        names = [name for name, _ in trainable(self.network)]
        whole = {name: whole_tensor(v) for name, v in zip(names, self.averages.shadow_params, strict=True)}
        if self.accelerator.is_main_process:
            save_file(whole, folder / AVERAGES)
            state = {"step": step, "averaged_steps": self.averages.optimization_step}
            (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> int:
        """Restore a checkpoint and return its step."""
        self.accelerator.load_state(str(folder))
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        whole = load_file(folder / AVERAGES)
        names = [name for name, _ in trainable(self.network)]
        for name, shadow in zip(names, self.averages.shadow_params, strict=True):
            fill_sharded(shadow, whole[name])
        self.averages.optimization_step = state["averaged_steps"]
        return int(state["step"])

    def rehearse(self) -> None:
        """Write, read and remove a checkpoint: nothing changes, but errors surface now."""
        folder = self.run / "rehearsal.part"
        self._write(folder, 0)
        self.load(folder)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(folder)


def whole_tensor(value: Tensor) -> Tensor:
    """Gather a parameter that FSDP may shard on the CPU; all processes must call it."""
    whole: Tensor = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu().contiguous()


def fill_sharded(shadow: Tensor, whole: Tensor) -> None:
    """Copy a whole value into a tensor that FSDP may shard."""
    if isinstance(shadow, DTensor):
        whole = distribute_tensor(whole.to(shadow.device), shadow.device_mesh, shadow.placements)
    shadow.copy_(whole)
