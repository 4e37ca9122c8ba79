"""The plans of decodes and encodes, measured: the one place that knows the planner's functions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any
from unittest import mock

import torch
from fake_machine import GIB
from meter import Meter

WIDTH, HEIGHT = 2560, 1408

BUDGETS = [gib * GIB for gib in range(3, 33)]
"""Free memory for which plans are asked."""


@dataclass(frozen=True)
class Measured:
    """What a plan took.

    Attributes
    ----------
    plan
        The plan.
    stated, stated_ram
        Its need in GPU memory and in RAM, in bytes, as the planner states it.
    peak
        GPU memory beside the weights, in bytes.
    ram
        CPU memory, in bytes, with the frames that wait in it.
    pinned
        Pinned CPU memory, in bytes.
    to_cpu, to_gpu
        Bytes of the pack's own copies.
    most_elements
        Elements of the largest tensor.
    """

    plan: Any
    stated: float
    stated_ram: float
    peak: int
    ram: int
    pinned: int
    to_cpu: int
    to_gpu: int
    most_elements: int


def decode_plans(vae: Any, latent_frames: int) -> list[Any]:
    """Return every plan that a decode at 2560x1408 may choose, whatever is free."""
    sizes = (vae.first_stage_model.decoder, HEIGHT // 16, WIDTH // 16, vae.vae_dtype.itemsize)
    return _choices(_planner().plan_decode, sizes, latent_frames)


def encode_plans(vae: Any, latent_frames: int) -> list[Any]:
    """Return every plan that an encode at 2560x1408 may choose, whatever is free."""
    sizes = (vae.first_stage_model.encoder, HEIGHT, WIDTH, vae.vae_dtype.itemsize)
    return _choices(_planner().plan_encode, sizes, latent_frames)


def decode_need(vae: Any, plan: Any, latent_frames: int) -> Any:
    """Return what the planner states for a decode at 2560x1408: bytes on the GPU and in RAM, and work."""
    decoder, size = vae.first_stage_model.decoder, vae.vae_dtype.itemsize
    return _planner().decode_cost(decoder, HEIGHT // 16, WIDTH // 16, size, plan, latent_frames)


def encode_need(vae: Any, plan: Any, latent_frames: int) -> Any:
    """Return what the planner states for an encode at 2560x1408: bytes on the GPU and in RAM, and work."""
    encoder, size = vae.first_stage_model.encoder, vae.vae_dtype.itemsize
    return _planner().encode_cost(encoder, HEIGHT, WIDTH, size, plan, latent_frames)


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
    with always(plan):
        meter.start()
        held = meter.cpu.live
        WORKS[work](vae, latent_frames)
    to_cpu, to_gpu = (sum(copy.size for copy in meter.copied(kind)) for kind in ("cuda->cpu", "cpu->cuda"))
    cost = NEEDS[work](vae, plan, latent_frames)
    return Measured(
        plan,
        cost.device_bytes,
        cost.ram_bytes,
        meter.peak,
        meter.cpu.peak - held,
        meter.pinned.peak,
        to_cpu,
        to_gpu,
        meter.most_elements,
    )


@contextlib.contextmanager
def later_frames_empty() -> Iterator[None]:
    """Decode three latent frames of every strip; of later ones, which take the same, only make room.

    Whole clips then take seconds.
    """
    from swifti2v.swifti2v_core.vae.strips import StripDecoder

    strip, groups = StripDecoder._strip, StripDecoder._groups
    used: dict[int, tuple[int, torch.Size]] = {}

    def first_ones(decoder: Any, features: Any, begin: int, end: int, cache: Any) -> torch.Tensor:
        count, size = used.get(id(cache), (0, torch.Size()))
        if count >= 3:
            return torch.empty(size, dtype=torch.uint8, device="cuda")
        pixels = strip(decoder, features, begin, end, cache)
        used[id(cache)] = count + 1, pixels.shape
        return pixels

    def of_new_caches(decoder: Any, latent: torch.Tensor) -> Any:
        used.clear()
        return groups(decoder, latent)

    with (
        mock.patch.object(StripDecoder, "_strip", first_ones),
        mock.patch.object(StripDecoder, "_groups", of_new_caches),
    ):
        yield


@contextlib.contextmanager
def always(plan: Any) -> Iterator[None]:
    """Let every decode or encode begin with one plan, whatever is free."""
    from swifti2v.nodes.pipeline.vae_plans import Planner

    with mock.patch.object(Planner, "first", lambda *_: plan):
        yield


class _Chosen(BaseException):
    """Stops a run at the choice of its plan; no Exception, so that nobody handles it."""

    def __init__(self, plan: Any) -> None:
        super().__init__()
        self.plan = plan


def plan_for(work: str, vae: Any, latent_frames: int) -> Any:
    """Return the plan that the pack chooses for a ``"decode"`` or ``"encode"`` on this machine."""
    from swifti2v.nodes.pipeline.vae_plans import Planner

    first = Planner.first

    def stop(planner: Any, parts: Any) -> Any:
        raise _Chosen(first(planner, parts))

    with mock.patch.object(Planner, "first", stop):
        try:
            WORKS[work](vae, latent_frames)
        except _Chosen as chosen:
            return chosen.plan
    raise AssertionError(f"the {work} chose no plan")


def name_of(plan: Any) -> str:
    """Return a plan in a few words, such as ``strips 4, frames 2, groups 4, kept 21``."""
    return ", ".join(f"{field.name} {getattr(plan, field.name)}" for field in fields(plan))


def _planner() -> Any:
    from swifti2v.swifti2v_core.vae import memory_plan

    return memory_plan


def _choices(choose: Any, sizes: tuple[Any, ...], latent_frames: int) -> list[Any]:
    plans = (choose(*sizes, free, latent_frames) for free in reversed(BUDGETS))
    return list(dict.fromkeys(plans))
