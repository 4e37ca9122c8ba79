"""A real ComfyUI in this process, on the CPU, with the pack loaded the way ComfyUI loads packs."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "assets" / "tiny"
HOST = Path(os.environ["COMFYUI_PATH"]) if "COMFYUI_PATH" in os.environ else None


BASE = Path(tempfile.mkdtemp(prefix="swifti2v-tests-"))
"""ComfyUI's base folder while the tests run."""


def pytest_addoption(parser):
    parser.addoption("--freeze", action="store_true", help="write the digests of this machine's results")
    parser.addoption("--write-locales", action="store_true", help="write the English texts of the nodes")
    parser.addoption("--freeze-portable", action="store_true", help="write the values of results")


def pytest_configure():
    """Boot the host and load the pack before any test module imports them."""
    # Tensors are tiny: threads would spend their time waiting for each other, most of all on busy machines.
    torch.set_num_threads(1)
    if HOST is None:
        raise pytest.UsageError("Host tests need a ComfyUI: run them with `python3 dev.py test host`.")
    sys.path.insert(0, str(HOST))
    # For swifti2v_train and the tests' helpers; last, so that `nodes` stays the host's.
    sys.path += [str(ROOT), str(ROOT / "tests" / "support")]
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--disable-all-custom-nodes"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args

    sys.argv = arguments
    _fill_workspace()
    _load_pack()


def pytest_unconfigure():
    shutil.rmtree(BASE, ignore_errors=True)


def _fill_workspace():
    """Make the folders that a user has: models, input, output, and the pack in custom_nodes."""
    import folder_paths

    for folder in ("output", "temp", "input", "custom_nodes"):
        (BASE / folder).mkdir()
    folder_paths.set_output_directory(str(BASE / "output"))
    folder_paths.set_temp_directory(str(BASE / "temp"))
    folder_paths.set_input_directory(str(BASE / "input"))
    for folder in ("diffusion_models", "loras", "vae"):
        (BASE / "models" / folder).mkdir(parents=True)
        folder_paths.add_model_folder_path(folder, str(BASE / "models" / folder), is_default=True)
    for folder, name in (
        ("diffusion_models", "tiny_stage1_motion"),
        ("diffusion_models", "tiny_stage2_detail"),
        ("vae", "tiny_vae48"),
    ):
        file = f"{name}.safetensors"
        (BASE / "models" / folder / file).symlink_to(TINY / file)


def _load_pack():
    """Load the pack as ComfyUI does, and make its modules importable as ``swifti2v.…``."""
    import nodes as host_nodes

    path = BASE / "custom_nodes" / "swifti2v"
    path.symlink_to(ROOT, target_is_directory=True)
    assert asyncio.run(host_nodes.load_custom_node(str(path)))
    name = str(path).replace(".", "_x_")
    for key, module in list(sys.modules.items()):
        if key == name or key.startswith(f"{name}."):
            sys.modules[f"swifti2v{key[len(name) :]}"] = module


@pytest.fixture(scope="session")
def workspace():
    """ComfyUI's base folder."""
    return BASE


@pytest.fixture(scope="session")
def pack():
    """The loaded pack: ``pack.nodes`` by node id, ``pack.modules`` by name inside the pack."""
    import nodes as host_nodes

    return SimpleNamespace(
        nodes={k: v for k, v in host_nodes.NODE_CLASS_MAPPINGS.items() if k.startswith("SwiftI2V_")},
        modules={
            key.removeprefix("swifti2v."): module
            for key, module in sys.modules.items()
            if key.startswith("swifti2v.")
        },
    )


@pytest.fixture(scope="session")
def run(pack):
    """Run a node by id with its widgets' defaults, as the host's executor does."""

    def run_node(node_id, hidden=None, **inputs):
        node = pack.nodes[node_id]
        schema = node.GET_SCHEMA()
        accepted = inspect.signature(node.execute).parameters
        defaults = {
            widget.id: widget.default
            for widget in schema.inputs
            if getattr(widget, "default", None) is not None and widget.id in accepted
        }
        clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden or {}})
        with torch.inference_mode():
            return clone.execute(**{**defaults, **inputs}).args

    return run_node


@pytest.fixture(scope="session")
def stage_two(pack, run, workspace):
    """The tiny concat model with shift 5."""
    return run(
        "SwiftI2V_LoadStageII",
        model_name="tiny_stage2_detail.safetensors",
        lora="none",
        weight_dtype="default",
    )[0]


@pytest.fixture(scope="session")
def stage_one(pack, run, workspace):
    """The tiny TI2V-like model with shift 5; as Stage II it is plain."""
    return run(
        "SwiftI2V_LoadStageI",
        high_noise_model="tiny_stage1_motion.safetensors",
        low_noise_model="none",
        high_noise_lora="none",
        low_noise_lora="none",
        weight_dtype="default",
    )[0]


@pytest.fixture(scope="session")
def vae(pack):
    """The tiny 48-channel VAE through the stock loader."""
    import nodes as host_nodes

    return host_nodes.VAELoader().load_vae("tiny_vae48.safetensors")[0]


def random_state(module, seed):
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in module.state_dict().items()}


@pytest.fixture(scope="session")
def experts(pack):
    """Two random models with the channels of Wan2.2-I2V-A14B: 36 in, 16 out."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.wan.model import WanModel

    def make(seed):
        network = WanModel(
            in_dim=36,
            out_dim=16,
            dim=128,
            ffn_dim=64,
            num_heads=1,
            num_layers=2,
            operations=comfy.ops.manual_cast,
        )
        model = comfy.sd.load_diffusion_model_state_dict(random_state(network, seed))
        from swifti2v.nodes.comfyui.models import with_shift

        return with_shift(model, 5.0)

    return make(0), make(1)


@pytest.fixture(scope="session")
def vae16(pack):
    """A random Wan2.1 VAE, small."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    network = WanVAE(
        dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        attn_scales=[],
        temperal_downsample=[False, True, True],
        dropout=0.0,
    )
    state = random_state(network, 2)
    state = {k: v + 1 if k.endswith("gamma") else v for k, v in state.items()}
    return comfy.sd.VAE(sd=state)


@pytest.fixture(scope="session")
def streaming_vae(vae):
    """The Wan2.2 VAE, narrow and random, in a VAE object of its own."""
    from comfy.ldm.wan.vae2_2 import WanVAE
    from comfy.model_patcher import ModelPatcher

    network = WanVAE(dim=8, dec_dim=8, z_dim=48, temperal_downsample=[False, True, True], num_res_blocks=2)
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        value.copy_(1 if key.endswith("gamma") else torch.randn(value.shape, generator=generator) * 0.2)
    wrapped = copy.copy(vae)
    wrapped.first_stage_model = network.train(False)
    wrapped.patcher = ModelPatcher(network, vae.patcher.load_device, vae.patcher.offload_device)
    return wrapped


@pytest.fixture(scope="session")
def photo():
    """A real photo, ``[1, 640, 1280, 3]``."""
    import numpy as np
    from PIL import Image

    with Image.open(TINY / "photos" / "life.jpg") as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels)[None]


@pytest.fixture
def text():
    """Two different conditionings of the tiny models' width."""
    generator = torch.Generator().manual_seed(1)
    return [[[torch.randn(1, 8, 4096, generator=generator), {}]] for _ in range(2)]


@pytest.fixture(scope="session")
def live_tensors():
    """Count the tensors that Python holds."""
    import gc

    def count():
        while gc.collect():  # finalizers of what was collected may free more
            pass
        return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())

    return count


def latent(frames, height=6, width=8, seed=0, batch=1):
    """A random latent in VAE space."""
    generator = torch.Generator().manual_seed(seed)
    return {"samples": torch.randn(batch, 48, frames, height, width, generator=generator)}


@pytest.fixture
def z_ref():
    """A random reference of 8 latent frames at 128x96 pixels."""
    return latent(8)


@pytest.fixture
def make_latent():
    return latent
