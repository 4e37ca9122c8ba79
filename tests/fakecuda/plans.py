"""The plans of decodes and encodes, measured: the one place that knows the planner's functions."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any
from unittest import mock

import torch
from fake_machine import GIB
from meter import Meter

WIDTH, HEIGHT = 2560, 1408

BUDGETS = [half * GIB / 2 for half in range(10, 2 * 48)]
"""Free memory for which plans are asked, in steps of half a GiB: cards from 8 to 48 GiB."""


@dataclass(frozen=True)
class Measured:
    """What a plan took.

    Attributes
    ----------
    plan
        The plan.
    stated
        Its need in GPU memory, in bytes, as the planner states it.
    peak
        GPU memory beside the weights, in bytes.
    pinned
        Pinned CPU memory, in bytes.
    to_cpu, to_gpu
        Bytes of the pack's own copies.
    most_elements
        Elements of the largest tensor.
    """

    plan: Any
    stated: float
    peak: int
    pinned: int
    to_cpu: int
    to_gpu: int
    most_elements: int


def decode_plans(vae: Any, latent_frames: int) -> list[Any]:
    """Return every plan that a decode at 2560x1408 may choose, whatever is free."""
    height, width = HEIGHT // 16, WIDTH // 16
    return _choices(
        _planner().plan_decode, vae.first_stage_model.decoder, height, width, vae, latent_frames
    )


def encode_plans(vae: Any, latent_frames: int) -> list[Any]:
    """Return every plan that an encode at 2560x1408 may choose, whatever is free."""
    return _choices(
        _planner().plan_encode, vae.first_stage_model.encoder, HEIGHT, WIDTH, vae, latent_frames
    )


def decode_need(vae: Any, plan: Any, latent_frames: int) -> float:
    """Return the bytes of GPU memory that the planner states for a decode at 2560x1408."""
    decoder, size = vae.first_stage_model.decoder, vae.vae_dtype.itemsize
    return float(_planner().decode_memory_bytes(decoder, HEIGHT // 16, WIDTH // 16, size, plan))


def encode_need(vae: Any, plan: Any, latent_frames: int) -> float:
    """Return the bytes of GPU memory that the planner states for an encode at 2560x1408."""
    encoder, size = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    return float(_planner().encode_memory_bytes(encoder, HEIGHT, WIDTH, size, plan))


def decode(vae: Any, latent_frames: int) -> None:
    """Decode a clip of 2560x1408 to bytes."""
    from swifti2v.nodes.pipeline.decode import decode_integers

    for _ in decode_integers(vae, torch.zeros(1, 48, latent_frames, HEIGHT // 16, WIDTH // 16)):
        pass


def encode(vae: Any, latent_frames: int) -> None:
    """Encode a clip of 2560x1408 that is made where the encode wants it."""
    from swifti2v.nodes.pipeline.encode import encode_reference

    def chunks(device: torch.device) -> Iterator[torch.Tensor]:
        yield torch.zeros(1, HEIGHT, WIDTH, 3, device=device)
        for _ in range(latent_frames - 1):
            yield torch.zeros(4, HEIGHT, WIDTH, 3, device=device)

    encode_reference(vae, 4 * latent_frames - 3, HEIGHT, WIDTH, chunks)


WORKS = {"decode": decode, "encode": encode}
NEEDS = {"decode": decode_need, "encode": encode_need}


def measure(work: str, meter: Meter, vae: Any, plan: Any, latent_frames: int) -> Measured:
    """Run a ``"decode"`` or ``"encode"`` of a clip of 2560x1408 with a plan."""
    with always(f"plan_{work}", plan):
        meter.start()
        WORKS[work](vae, latent_frames)
    to_cpu, to_gpu = (sum(copy.size for copy in meter.copied(kind)) for kind in ("cuda->cpu", "cpu->cuda"))
    stated = NEEDS[work](vae, plan, latent_frames)
    return Measured(plan, stated, meter.peak, meter.pinned.peak, to_cpu, to_gpu, meter.most_elements)


@contextlib.contextmanager
def always(function: str, plan: Any) -> Iterator[None]:
    """Let ``plan_decode`` or ``plan_encode`` choose one plan, whatever is free."""
    with mock.patch.object(_planner(), function, lambda *_, **__: plan):
        yield


class _Chosen(BaseException):
    """Stops a run at the choice of its plan; no Exception, so that nobody handles it."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.plan = plan


def plan_for(work: str, vae: Any, latent_frames: int) -> Any:
    """Return the plan that the pack chooses for a ``"decode"`` or ``"encode"`` on this machine."""
    function = f"plan_{work}"
    choose = getattr(_planner(), function)

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise _Chosen(choose(*args, **kwargs))

    with mock.patch.object(_planner(), function, stop):
        try:
            WORKS[work](vae, latent_frames)
        except _Chosen as chosen:
            return chosen.plan
    raise AssertionError(f"the {work} chose no plan")


def name_of(plan: Any) -> str:
    """Return a plan in a few words, such as ``8 strips, latent_frames 6, offload``."""
    if isinstance(plan, int):
        return f"strips {plan}"
    parts = [(field.name, getattr(plan, field.name)) for field in fields(plan)]
    return ", ".join(name if value is True else f"{name} {value}" for name, value in parts if value)


def _planner() -> Any:
    from swifti2v.swifti2v_core.vae import memory_plan

    return memory_plan


def _choices(
    choose: Callable[..., Any], network: Any, height: int, width: int, vae: Any, latent_frames: int
) -> list[Any]:
    known = {"latent_frames": latent_frames}
    options = {name: known[name] for name in inspect.signature(choose).parameters if name in known}
    size = vae.vae_dtype.itemsize
    plans = (choose(network, height, width, size, free, **options) for free in reversed(BUDGETS))
    return list(dict.fromkeys(plans))
