"""How a clip goes through the autoencoder: planned by what is free, then by what has failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import torch

from ...swifti2v_core.vae.counting import Cost
from ...swifti2v_core.vae.memory_plan import DecodePlan, EncodePlan
from ..comfyui import memory
from ..comfyui.vae import FREE_SHARE, free_bytes_after_loading
from .memory_advice import MemoryNeed, shortage, smaller_sizes

RETRY_SHARE = 0.75
"""Part of a failed plan's memory that the next plan may take at most."""

Plan = TypeVar("Plan", DecodePlan, EncodePlan)


class Planner(Generic[Plan]):
    """Chooses the plans of one clip.

    Parameters
    ----------
    name
        What is done, for messages.
    vae
        The VAE that does it.
    size
        Width and height in pixels.
    choose
        Returns the plan for some bytes of the device and of RAM.
    cost
        Returns what a plan takes at a width and height.
    """

    def __init__(
        self,
        name: str,
        vae: Any,
        size: tuple[int, int],
        choose: Callable[[float, float], Plan],
        cost: Callable[[Plan, int, int], Cost],
    ) -> None:
        self._name, self._vae, self._size = name, vae, size
        self._choose: Callable[[float, float], Plan] = choose
        self._cost: Callable[[Plan, int, int], Cost] = cost
        self._free = float("inf")
        self._free_ram = FREE_SHARE * memory.free_bytes(memory.CPU)
        self._on_cpu = vae.device.type == "cpu"

    def first(self, parts: Iterable[torch.nn.Module]) -> Plan:
        """Load the VAE, of which ``parts`` will run, and return the plan for the memory that is free then.

        Raises
        ------
        RuntimeError
            If every plan takes more RAM than is free.
        """
        fastest = self._cost(self._plan(), *self._size).device_bytes
        self._free = free_bytes_after_loading(self._vae, fastest, parts)
        self._free_ram = FREE_SHARE * memory.free_bytes(memory.CPU)  # models may have moved into it
        plan = self._plan()
        if self._cost(plan, *self._size).ram_bytes > self._free_ram:
            raise self.shortage(plan, of_cpu=True)
        return plan

    def smallest(self) -> Plan:
        """Return the plan that takes the least of the device."""
        return self._choose(0.0, self._most_ram())

    def smaller(self, plan: Plan, of_cpu: bool) -> Plan | None:
        """Return the plan to try after one ran out of memory, the CPU's if ``of_cpu``.

        It takes less of what ran out; None if no plan does.
        """
        failed = self._cost(plan, *self._size)
        if of_cpu and not self._on_cpu:
            self._free_ram = min(self._free_ram, RETRY_SHARE * failed.ram_bytes)
            smaller = self._plan()
            less = self._cost(smaller, *self._size).ram_bytes < failed.ram_bytes
        else:
            self._free = min(self._free, RETRY_SHARE * failed.device_bytes)
            smaller = self._plan()
            less = self._cost(smaller, *self._size).device_bytes < failed.device_bytes
        return smaller if less else None

    def need(self, plan: Plan, of_cpu: bool = False) -> MemoryNeed:
        """Return what a plan needs of the device, or of RAM if ``of_cpu``."""

        def needed(width: int, height: int) -> float:
            cost = self._cost(plan, width, height)
            return cost.ram_bytes if of_cpu else cost.device_bytes

        width, height = self._size
        strips = f", even in {plan.strips} strips" if plan.strips > 1 else ""
        return MemoryNeed(
            f"The {self._name} at {width}x{height}{strips}",
            needed(width, height),
            lambda: smaller_sizes(width, height, needed),
        )

    def shortage(self, plan: Plan, of_cpu: bool) -> RuntimeError:
        """Return the error for a clip that even a smallest plan has not enough memory for."""
        return shortage(self.need(plan, of_cpu), self._vae.device, of_cpu)

    def _plan(self) -> Plan:
        return self._choose(self._free, self._most_ram())

    def _most_ram(self) -> float:
        # What the CPU computes in is RAM, too: there, keeping results in RAM saves nothing.
        return 0.0 if self._on_cpu else self._free_ram
