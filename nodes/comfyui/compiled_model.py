"""A MODEL whose blocks are compiled with torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper

from .forward import attend_forward

COMPILER = "inductor"
"""Backend of torch.compile."""

COMPILED_KEY = "SwiftI2V"
"""Our name among the wrappers of a compiled MODEL around what holds the network."""

FORWARD_KEY = "SwiftI2V_compiled"
"""Our name among the wrappers of a compiled MODEL around the network itself."""

MOST_GRAPHS = 64
"""Upper bound on compiled variants of a block: stages x clip lengths, first block and others."""


def with_compiled_blocks(model: Any) -> Any:
    """Return a clone of ``model`` whose blocks are compiled in the first run, one by one.

    Every sequence length gets its own graph: a clip has few, and they recur.
    """
    # As ComfyUI's TorchCompileModel: weights must not move in and out under compiled code.
    clone = model.clone(disable_dynamic=True)
    blocks = len(clone.get_model_object("diffusion_model").blocks)
    set_torch_compile_wrapper(
        clone,
        COMPILER,
        options={"guard_filter_fn": guards_to_keep},
        dynamic=False,
        keys=[f"diffusion_model.blocks.{index}" for index in range(blocks)],
    )
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILED_KEY, allow_many_graphs)
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, FORWARD_KEY, compiled_forward)
    return clone


@torch.compiler.disable(recursive=False)
def compiled_forward(executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Run the network with our override in every forward, whoever samples.

    Compiled blocks share their code with models that are patched later, and guards on the options are
    dropped: an override that appears or disappears after the first run would go unnoticed.
    """
    return attend_forward(executor, *args, always=True, **kwargs)


def guards_to_keep(guards: list[Any]) -> list[bool]:
    """Return for each guard of compiled code whether it is tested before each use.

    Guards on the transformer options are dropped, as ComfyUI's TorchCompileModel does: these change with
    every block and step.
    """
    return ["transformer_options" not in guard.name for guard in guards]


def allow_many_graphs(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Let PyTorch compile every length of a session; its own limit of 8 variants would end compiling."""
    import torch._dynamo  # slow to import, and needed only here

    with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
        return executor(*args, **kwargs)
