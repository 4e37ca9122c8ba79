"""Wan models of the real shapes with random weights, loaded by ComfyUI without any file.

Import this after `command_line.boot`: it needs ComfyUI on the path.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import comfy.ldm.wan.model
import comfy.ldm.wan.vae
import comfy.ldm.wan.vae2_2
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.command_line import ROOT
from benchmarks.speed.measure import GIB, Work, count_flops, module_bytes

NETWORKS = {
    "TI2V-5B": {"heads": 24, "ffn_dim": 14336, "num_layers": 30, "out_dim": 48},
    "A14B": {"heads": 40, "ffn_dim": 13824, "num_layers": 40, "out_dim": 16},
}
VAES = {"Wan2.2": {"dim": 160, "dec_dim": 256, "z_dim": 48}, "Wan2.1": {"dim": 96, "z_dim": 16}}
HEAD, TEXT_TOKENS, TEXT_WIDTH = 128, 512, 4096
ONES = ("gamma", "norm_q.weight", "norm_k.weight", "norm3.weight")
"""Key suffixes of norm weights, which are 1."""

LEAST_FREE_BYTES = 64 * 2**20
"""Lower bound on the memory reported under a cap: ComfyUI divides by it."""


class Pack:
    """The node pack of this repository, loaded without ComfyUI's web server."""

    def __init__(self) -> None:
        name = "swifti2v_benchmarked"
        spec = importlib.util.spec_from_file_location(
            name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
        )
        assert spec and spec.loader
        package = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
        extension = asyncio.run(package.comfy_entrypoint())
        self.decode: ModuleType = sys.modules[f"{name}.nodes.pipeline.decode"]
        self.encode: ModuleType = sys.modules[f"{name}.nodes.pipeline.encode"]
        self.memory_plan: ModuleType = sys.modules[f"{name}.swifti2v_core.vae.memory_plan"]
        self.nodes = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}

    def takes(self, node_id: str, name: str) -> bool:
        """Return whether a node has an input; inputs differ between versions of the pack."""
        return name in inspect.signature(self.nodes[node_id].execute).parameters

    def run(self, node_id: str, **inputs: Any) -> tuple[Any, ...]:
        """Run a node with the defaults of its widgets, as ComfyUI's executor does; return its outputs."""
        node = self.nodes[node_id]
        defaults = {
            widget.id: widget.default
            for widget in node.GET_SCHEMA().inputs
            if getattr(widget, "default", None) is not None and self.takes(node_id, widget.id)
        }
        return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**{**defaults, **inputs}).args


def device() -> torch.device:
    """Return ComfyUI's compute device."""
    return comfy.model_management.get_torch_device()


def dtype() -> torch.dtype:
    """Return the dtype ComfyUI runs these models in: bfloat16 on a GPU, else float32."""
    return torch.bfloat16 if device().type == "cuda" else torch.float32


def meta_network(kind: str, in_dim: int, divisor: int = 1) -> torch.nn.Module:
    """Return a Wan transformer on the meta device, widths and depth divided by ``divisor``."""
    config = NETWORKS[kind]
    heads = max(1, config["heads"] // divisor)
    return comfy.ldm.wan.model.WanModel(
        in_dim=in_dim,
        out_dim=config["out_dim"],
        dim=heads * HEAD,
        num_heads=heads,
        ffn_dim=config["ffn_dim"] // divisor,
        num_layers=max(1, config["num_layers"] // divisor),
        text_dim=TEXT_WIDTH,
        operations=comfy.ops.disable_weight_init,
        device="meta",
        dtype=dtype(),
    )


def vae_config(kind: str, divisor: int) -> dict[str, Any]:
    """Return the arguments of ComfyUI's autoencoder module, widths divided by ``divisor``."""
    widths = {key: size if key == "z_dim" else size // divisor for key, size in VAES[kind].items()}
    return {**widths, "temperal_downsample": [False, True, True]}


def meta_vae(kind: str, divisor: int = 1) -> torch.nn.Module:
    """Return an autoencoder on the meta device."""
    module = comfy.ldm.wan.vae2_2 if kind == "Wan2.2" else comfy.ldm.wan.vae
    with torch.device("meta"):
        vae = module.WanVAE(**vae_config(kind, divisor))
    for part in (vae.encoder, vae.decoder):  # the count must not depend on the installed kernels
        part.middle[1].optimized_attention = _pixel_attention
    return vae


def _pixel_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    tokens = [part.flatten(2).transpose(1, 2)[:, None] for part in (q, k, v)]
    return scaled_dot_product_attention(*tokens).transpose(2, 3).reshape(q.shape)


def _token_attention(
    _: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, **__: Any
) -> torch.Tensor:
    split = [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, k, v)]
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def random_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return random weights for a module, scaled so that activations stay finite at any depth."""
    generator = torch.Generator(device()).manual_seed(0)

    def draw(key: str, shape: torch.Size) -> torch.Tensor:
        if key.endswith(ONES):
            return torch.ones(shape, device=device(), dtype=dtype())
        scale = 0.02 if len(shape) == 1 else (0.5 / shape[1:].numel()) ** 0.5
        return torch.randn(shape, generator=generator, device=device(), dtype=dtype()) * scale

    return {key: draw(key, value.shape) for key, value in module.state_dict().items()}


def load_network(kind: str, in_dim: int, divisor: int = 1) -> Any:
    """Return a MODEL with random weights from ComfyUI's own loader."""
    weights = random_weights(meta_network(kind, in_dim, divisor))
    return comfy.sd.load_diffusion_model_state_dict(weights)


def load_vae(kind: str, divisor: int = 1) -> Any:
    """Return a VAE with random weights from ComfyUI's own loader."""
    if kind == "Wan2.1":  # ComfyUI reads its width from the weights
        return comfy.sd.VAE(sd=random_weights(meta_vae(kind, divisor)))
    narrow, original = vae_config(kind, divisor), comfy.ldm.wan.vae2_2.WanVAE
    with mock.patch("comfy.ldm.wan.vae2_2.WanVAE", lambda **config: original(**{**config, **narrow})):
        return comfy.sd.VAE(sd=random_weights(meta_vae(kind, divisor)))


def through_loader(pack: Pack, model: Any, **widgets: Any) -> Any:
    """Return a MODEL from our Stage II loader, which finds an empty file and gets a loaded model for it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "random.pt").touch()
        paths = {"diffusion_models": ([folder], {".pt"})}
        with (
            mock.patch.dict(folder_paths.folder_names_and_paths, paths),
            mock.patch.dict(folder_paths.filename_list_cache, clear=True),
            mock.patch("comfy.utils.load_torch_file", lambda *_, **__: ({}, None)),
            mock.patch("comfy.sd.load_diffusion_model_state_dict", lambda *_, **__: model),
        ):
            return pack.run("SwiftI2V_LoadStageII", model_name="random.pt", lora="none", **widgets)[0]


# --- Floors -----------------------------------------------------------------------------------------


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype())


@functools.cache
def forward_work(kind: str, in_dim: int, latent_size: tuple[int, ...], divisor: int = 1) -> Work:
    """Return the work of one forward over ``(frames, height, width)`` latent cells."""
    network, frames = meta_network(kind, in_dim, divisor), latent_size[0]
    window, text = _meta(1, in_dim, *latent_size), _meta(1, TEXT_TOKENS, TEXT_WIDTH)
    options = {"optimized_attention_override": _token_attention}
    flops = count_flops(lambda: network(window, _meta(1, frames), text, transformer_options=options))
    return Work(flops, module_bytes(network, dtype().itemsize) + window.nbytes)


@functools.cache
def decode_work(kind: str, latent_size: tuple[int, ...], divisor: int = 1) -> Work:
    """Return the work of decoding ``(frames, height, width)`` latent cells undivided."""
    vae, latent = meta_vae(kind, divisor).to(dtype()), _meta(1, VAES[kind]["z_dim"], *latent_size)
    frames: list[torch.Tensor] = []
    flops = count_flops(lambda: frames.append(vae.decode(latent)))
    return Work(flops, module_bytes(vae.decoder, dtype().itemsize) + latent.nbytes + frames[0].nbytes)


@functools.cache
def encode_work(kind: str, size: tuple[int, ...], divisor: int = 1) -> Work:
    """Return the work of encoding ``(frames, height, width)`` pixels."""
    vae, clip = meta_vae(kind, divisor).to(dtype()), _meta(1, 3, *size)
    flops = count_flops(lambda: vae.encode(clip))
    return Work(flops, module_bytes(vae.encoder, dtype().itemsize) + clip.nbytes)


# --- A smaller card -----------------------------------------------------------------------------------


@contextlib.contextmanager
def memory_cap(gibibytes: float) -> Iterator[None]:
    """Emulate a card of this size; 0 leaves the device whole.

    ComfyUI and the pack plan with the two ComfyUI functions patched here. PyTorch's allocator gets
    what such a card has left next to the CUDA context.
    """
    management, target = comfy.model_management, device()
    missing = max(0.0, management.get_total_memory(target) - gibibytes * GIB) if gibibytes else 0.0

    def reduced(ask: Any) -> Any:
        def answer(dev: Any = None, torch_too: bool = False) -> Any:
            whole, of_torch = ask(dev, True)
            if dev is None or torch.device(dev).type == target.type:
                whole = max(LEAST_FREE_BYTES, whole - missing)
            return (whole, of_torch) if torch_too else whole

        return answer

    with (
        mock.patch.object(management, "get_total_memory", reduced(management.get_total_memory)),
        mock.patch.object(management, "get_free_memory", reduced(management.get_free_memory)),
    ):
        if missing and target.type == "cuda":
            free, total = torch.cuda.mem_get_info(target)
            context = total - free - torch.cuda.memory_reserved(target)
            torch.cuda.set_per_process_memory_fraction((total - missing - context) / total, target)
        try:
            yield
        finally:
            if target.type == "cuda":
                torch.cuda.set_per_process_memory_fraction(1.0, target)


def unload_models() -> None:
    """Unload all models, so that every case starts from the same state."""
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
