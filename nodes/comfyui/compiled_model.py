"""What torch.compile must be told about ComfyUI's networks.

Nothing of ComfyUI is imported here: `host.with_compiled_blocks` uses both.
"""

from __future__ import annotations

from typing import Any

GRAPHS = 64
"""Versions of a block that may be compiled: both stages, every length, the first block and the others."""


def guards_to_keep(guards: list[Any]) -> list[bool]:
    """Tell which assumptions of compiled code are tested before each use.

    None about the transformer options, which change with every block and step; ComfyUI's
    TorchCompileModel drops them, too.
    """
    return ["transformer_options" not in guard.name for guard in guards]


def allow_many_graphs(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Let PyTorch compile for all lengths of a session; after 8 it would give up for good."""
    import torch._dynamo  # slow to import, and needed by nobody else

    with torch._dynamo.config.patch(recompile_limit=GRAPHS):
        return executor(*args, **kwargs)
