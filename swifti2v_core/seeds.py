"""Seeds of a batch: every clip equals the one generated alone from its seed."""

from __future__ import annotations

SEED_COUNT = 2**64
"""Number of seeds; they run from 0 to one less than this."""


def clip_seed(seed: int, clip: int) -> int:
    """Return the seed of a clip in a batch: ``seed`` for clip 0, ``seed + 1`` for clip 1, and so on.

    The seed wraps around to 0 after the last one.
    """
    return (seed + clip) % SEED_COUNT
