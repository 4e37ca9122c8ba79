"""Random draws that depend on their purpose alone, never on earlier draws."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, *purpose: int | str) -> torch.Generator:
    """Return a CPU generator seeded by a purpose, for example (seed, step, number in the batch).

    The draws are the same in every process and on every machine.
    """
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def uniform(rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Return a number in ``[low, high)``."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def integer(rng: torch.Generator, low: int, high: int) -> int:
    """Return an integer in ``[low, high)``."""
    return int(torch.randint(low, high, (), generator=rng))
