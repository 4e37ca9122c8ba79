"""Random draws that depend on what they are for and on nothing that was drawn before."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Return a generator of its own for a purpose, for example (seed, step, number in the batch).

    The same in every process and on every machine; draws are made on the CPU.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def uniform(source: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Return a number from ``low`` up to, not including, ``high``."""
    return low + (high - low) * float(torch.rand((), generator=source, dtype=torch.float64))


def integer(source: torch.Generator, low: int, high: int) -> int:
    """Return a whole number from ``low`` to ``high - 1``."""
    return int(torch.randint(low, high, (), generator=source))
