"""The training loop; a task holds what is specific to a stage.

Accelerate handles precision, accumulation, processes, FSDP and state, diffusers the averaging. A sample
depends only on the seed, the step and its number in the batch, so a run gives the same weights with any
number of processes, and a resumed run the same as an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..config import Training
from .checkpoints import Checkpoints, newest_checkpoint, trainable

logger = logging.getLogger("SwiftI2V")

MAY_CHANGE = ("steps", "checkpoint_steps", "keep_checkpoints", "sheet_steps", "stop_after_minutes")
"""Settings that may change when a run is resumed."""

Draw = Callable[[Sequence[Tensor]], Tensor]
"""Turns rows of latents into a contact sheet ``[H, W, 3]`` in 0..1."""


def process_state() -> PartialState:
    """Return accelerate's process state; without an accelerator, processes communicate on the CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())


class Task(Protocol):
    """Samples, losses and contact sheet of a training."""

    def hardest_step(self) -> int:
        """Return the number of a step that needs as much memory as any other."""
        ...

    def losses(self, network: Any, step: int, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Return the losses of a step's samples, ``[len(numbers)]``."""
        ...

    def sheet(self, network: Any, device: torch.device) -> Sequence[Tensor]:
        """Return rows of latents for a contact sheet; all processes must call it."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Result of one call.

    Attributes
    ----------
    step
        Optimizer steps so far, including earlier calls.
    losses
        Mean loss of every step of this call.
    finished
        Whether the run has all its steps.
    """

    step: int
    losses: list[float]
    finished: bool


def batch_numbers(settings: Training, processes: int, process: int) -> list[list[int]]:
    """Return the numbers of a process's samples in a batch, one list per forward pass.

    Raises
    ------
    ValueError
        If the batch cannot be divided evenly.
    """
    together = processes * settings.micro_batch
    if settings.batch_size % together:
        nearest = max(1, round(settings.batch_size / together)) * together
        raise ValueError(
            f"batch_size is {settings.batch_size}, but {processes} processes with a micro_batch of "
            f"{settings.micro_batch} need a multiple of {together}; the nearest valid value is {nearest}."
        )
    starts = range(process * settings.micro_batch, settings.batch_size, together)
    return [list(range(start, start + settings.micro_batch)) for start in starts]


def check_resumed(before: Training, now: Training, run: Path) -> None:
    """Raise ValueError if a run would resume with other settings than it started with."""
    earlier = dict(before)
    for name, value in now:
        if name not in MAY_CHANGE and value != earlier[name]:
            raise ValueError(
                f"{name} is {value!r}, but {run} was started with {earlier[name]!r}; set it back or "
                "choose another output folder."
            )


class Trainer:
    """One call of a training.

    Parameters
    ----------
    task
        Samples and losses.
    network
        Its parameters that require a gradient are trained.
    settings
        See `config.Training`.
    draw
        Draws contact sheets; None draws none.
    """

    def __init__(
        self, task: Task, network: nn.Module, settings: Training, draw: Draw | None = None
    ) -> None:
        self.task, self.settings, self.draw = task, settings, draw
        self.run_folder = Path(settings.output)
        state = process_state()
        self.numbers = batch_numbers(settings, state.num_processes, state.process_index)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision=settings.precision,
            gradient_accumulation_steps=len(self.numbers),
            log_with="tensorboard",
            project_dir=settings.output,
        )
        parameters = [value for _, value in trainable(network)]
        optimizer = torch.optim.AdamW(
            parameters, settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        # After prepare: FSDP shards the averages as it does the parameters.
        self.averages = EMAModel(self._parameters(), decay=settings.ema_decay)
        self.checkpoints = Checkpoints(
            self.run_folder, self.accelerator, self.model, self.averages, settings.keep_checkpoints
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [value for _, value in trainable(self.model)]

    def run(self) -> Outcome:
        """Train until all steps are done or the time is up, resuming from the newest checkpoint.

        Raises
        ------
        FloatingPointError
            If a loss or a gradient is not finite.
        """
        start, losses, settings = time.monotonic(), [], self.settings
        self.accelerator.init_trackers("log")
        newest = newest_checkpoint(self.run_folder)
        step = saved = self._rehearse() if newest is None else self.checkpoints.load(newest)
        bar = tqdm(
            total=settings.steps, initial=step, disable=not self.accelerator.is_main_process, unit="step"
        )
        with bar:
            while step < settings.steps and not self._time_is_up(start):
                losses.append(self._step(step))
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.4f}")
                if step % settings.sheet_steps == 0:
                    self._draw_sheet(step)
                if step % settings.checkpoint_steps == 0:
                    self.checkpoints.save(step)
                    saved = step
        if step > saved:
            self.checkpoints.save(step)
        self.accelerator.end_training()
        return Outcome(step, losses, step >= settings.steps)

    def _step(self, step: int) -> float:
        self._set_learning_rate(step)
        losses = []
        for numbers in self.numbers:
            with self.accelerator.accumulate(self.model):
                losses.append(self.task.losses(self.model, step, numbers, self.accelerator.device))
                self.accelerator.backward(losses[-1].mean())
                if self.accelerator.sync_gradients:
                    loss = float(self.accelerator.gather(torch.cat(losses).detach()).mean())
                    norm = float(
                        self.accelerator.clip_grad_norm_(self._parameters(), self.settings.gradient_clip)
                    )
                    self._check_finite(step, loss, norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.averages.step(self._parameters())
        rate = self.optimizer.param_groups[0]["lr"]
        self.accelerator.log({"loss": loss, "gradient_norm": norm, "learning_rate": rate}, step=step + 1)
        return loss

    def _set_learning_rate(self, step: int) -> None:
        # Computed from the step alone: independent of resuming and of the number of processes.
        warm = min(1.0, (step + 1) / (self.settings.warmup_steps + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * warm

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        # With fp16 the gradient scaler finds its scale by infinite gradients and skips those steps itself.
        if math.isfinite(loss) and (math.isfinite(norm) or self.settings.precision == "fp16"):
            return
        what = f"gradient norm of step {step + 1} is {norm}"
        if not math.isfinite(loss):
            what = f"loss of step {step + 1} is {loss}"
        kept = newest_checkpoint(self.run_folder) or "none yet"
        raise FloatingPointError(
            f"The {what}, so the run stopped before the weights changed; the last checkpoint is kept "
            f"({kept}); search the dataset for NaN, or restart with a learning_rate below "
            f"{self.settings.learning_rate:g}."
        )

    def _time_is_up(self, start: float) -> bool:
        """Return whether the time is up by the main process's clock, so that all stop at the same step."""
        minutes = self.settings.stop_after_minutes
        late = minutes > 0 and time.monotonic() - start > 60 * minutes
        decision = broadcast(torch.tensor(float(late), device=self.accelerator.device))
        return bool(decision)

    def _draw_sheet(self, step: int) -> None:
        if self.draw is None:
            return
        rows = self.task.sheet(self.model, self.accelerator.device)
        if self.accelerator.is_main_process:
            picture = self.draw(rows)[None].cpu().numpy()
            tracker = self.accelerator.get_tracker("tensorboard")
            tracker.log_images({"sheet": picture}, step=step, dataformats="NHWC")

    def _rehearse(self) -> int:
        """Try in the first minute what could otherwise fail hours later, without changing weights."""
        logger.info("Rehearsal: one backward pass, one contact sheet, one checkpoint written and read")
        hardest = self.task.hardest_step()
        loss = self.task.losses(self.model, hardest, self.numbers[0], self.accelerator.device).mean()
        self.accelerator.backward(loss)
        self.optimizer.zero_grad()
        self._draw_sheet(0)
        self.checkpoints.rehearse()
        return 0
