"""Seeds of a batch: every clip is what it would be alone."""

from __future__ import annotations

SEEDS = 2**64
"""Seeds run from 0 to one below this."""


def clip_seed(seed: int, clip: int) -> int:
    """Return the seed of a clip of a batch: ``seed`` for clip 0, then the following ones.

    After the last seed comes 0.
    """
    return (seed + clip) % SEEDS
