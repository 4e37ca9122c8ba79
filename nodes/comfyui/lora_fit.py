"""Whether a LoRA changes anything in a MODEL."""

from __future__ import annotations

import math
from typing import Any

from comfy.utils import get_attr


def fitting_weights(model: Any, patched: Any) -> int:
    """Return how many weights of a MODEL a LoRA changes, by the names and sizes in its file.

    ComfyUI drops what does not fit, while it loads the LoRA or while it samples, and goes on.

    Parameters
    ----------
    model, patched
        The MODEL before and after the LoRA.
    """
    fitting = 0
    for key, patches in patched.patches.items():
        new = patches[len(model.patches.get(key, ())) :]
        size = tuple(get_attr(patched.model, key).shape)
        fitting += any(_fits(change, offset, size) for _, change, _, offset, *_ in new)
    return fitting


def _fits(change: Any, offset: Any, size: tuple[int, ...]) -> bool:
    """Return whether a change can be added to a weight of a size; True where that is not known."""
    if offset is not None:
        return True  # for a part of the weight
    weights = getattr(change, "weights", None)
    if getattr(change, "name", "") == "lora" and weights is not None:
        up, down, _, middle, _, reshape = weights
        wanted = math.prod(size if reshape is None else reshape)
        return middle is not None or up.shape[0] * down[0].numel() == wanted
    if isinstance(change, tuple) and change[0] == "diff":
        values, *options = change[1]
        return tuple(values.shape) == size or any(option.get("pad_weight") for option in options)
    return True
