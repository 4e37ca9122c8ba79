"""A ComfyUI that lacks a name costs the nodes that need it, and never the pack.

Names are removed while a second copy of the pack is imported, as a ComfyUI without them would have it, and
put back before it runs: what ComfyUI itself does without them is not in question here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import sys
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from comfy import model_management, samplers
from safetensors.torch import save_file
from swifti2v.nodes.comfyui import memory

import nodes as host_nodes

ROOT = Path(__file__).resolve().parents[3]
COMFYUI = ("comfy", "comfy_api", "comfyui_version", "folder_paths", "latent_preview", "node_helpers")
NODE_FILES = {
    "load_models": ("LoadStageI", "LoadStageII"),
    "motion_sampler": ("MotionSampler",),
    "camera_motion": ("CameraMotion",),
    "anchor_encode": ("AnchorEncode",),
    "prompt_range": ("PromptRange",),
    "segment_sampler": ("SegmentSampler", "SegmentSamplerAdvanced"),
    "temporal_windows": ("TemporalWindows",),
    "vae_decode": ("TiledVAEDecode", "DecodeToVideo"),
}
"""Nodes of each node file."""

STAGE_II = {"model_name": "tiny_stage2_detail.safetensors", "weight_dtype": "default"}
SIZE = {"width": 64, "height": 64, "frames": 9}
SEGMENTS = {"segment_frames": 1, "context": "bidirectional", "time_positions": "true", "neighbors": 1}


# --- What is imported from ComfyUI, read from the source: tests are collected before the pack runs -----


def imports(path):
    """Return the modules of the pack that a file imports, and the names of ComfyUI's."""
    own, foreign = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            foreign |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            folder = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            own |= {folder.with_suffix(".py"), *(folder / f"{alias.name}.py" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom):
            foreign |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {file for file in own if file.is_file()}, {n for n in foreign if n.split(".")[0] in COMFYUI}


def names_needed(path, seen):
    """Return the names of ComfyUI's that a file needs, itself or through the files that it imports."""
    if path in seen:
        return set()
    seen.add(path)
    own, names = imports(path)
    return names.union(*(names_needed(file, seen) for file in own))


NEEDED = {file: names_needed(ROOT / "nodes" / f"{file}.py", set()) for file in NODE_FILES}
"""Names of ComfyUI's that each node file needs."""

NAMES = sorted(
    {name for path in (ROOT / "nodes" / "comfyui").glob("*.py") for name in imports(path)[1]}
    - {"comfy", "comfy_api.latest"}  # without which there is no pack
)
"""Names that nodes/comfyui imports, and the modules that hold them."""


def files_off(name):
    """Return the node files that need a name, or something inside it."""
    return frozenset(
        file
        for file, names in NEEDED.items()
        if any(needed == name or needed.startswith(f"{name}.") for needed in names)
    )


def nodes_of(files):
    return {node for file in files for node in NODE_FILES[file]}


ONE_PER_SET = {files_off(name): name for name in NAMES}
"""A name for each set of node files that go off together."""


@contextmanager
def without(name):
    """Remove an attribute or module from ComfyUI."""
    owner, _, last = name.rpartition(".")
    with pytest.MonkeyPatch.context() as patch:
        if isinstance(resolve_name(name), ModuleType):
            patch.setitem(sys.modules, name, None)
        if owner:
            patch.delattr(resolve_name(owner), last)
        yield


@pytest.fixture
def load_copy(workspace, tmp_path, monkeypatch):
    """Import the pack once more, without a name of ComfyUI's if one is given; return its nodes by name."""
    path = workspace / "custom_nodes" / tmp_path.name
    path.symlink_to(ROOT, target_is_directory=True)
    name = str(path).replace(".", "_x_")
    known = dict(host_nodes.NODE_CLASS_MAPPINGS)

    def load(missing=None):
        if missing is None:
            assert asyncio.run(host_nodes.load_custom_node(str(path)))
        else:
            with without(missing):
                assert asyncio.run(host_nodes.load_custom_node(str(path)))
        loaders = sys.modules.get(f"{name}.nodes.load_models")
        if loaders is not None:  # whether there is a compiler is not in question here
            monkeypatch.setattr(loaders, "check_can_compile", lambda device: None)
        new = {k: v for k, v in host_nodes.NODE_CLASS_MAPPINGS.items() if known.get(k) is not v}
        return {key.removeprefix("SwiftI2V_"): node for key, node in new.items()}

    yield load
    host_nodes.NODE_CLASS_MAPPINGS.update(known)
    for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
        del sys.modules[module]
    path.unlink()


@pytest.fixture(scope="module")
def given(run, stage_one, stage_two, vae, workspace):
    """What flows along the connections, from ComfyUI's own nodes or the complete pack."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 64, 64, 3, generator=generator)
    network = stage_two.model.diffusion_model
    up, down = torch.ones(len(network.blocks[0].self_attn.q.weight), 1), torch.ones(1, 256)
    key = "diffusion_model.blocks.0.self_attn.q.lora"
    save_file(
        {f"{key}_up.weight": up, f"{key}_down.weight": down},
        workspace / "models" / "loras" / "x.safetensors",
    )
    motion = run("SwiftI2V_CameraMotion", image=photo, **SIZE)[0]
    z_ref = run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, **SIZE)[0]
    text = [[torch.rand(1, 8, 4096, generator=generator), {}]]
    guider = samplers.CFGGuider(stage_two)
    guider.set_conds(text, text)
    sampler = samplers.sampler_object("euler")
    custom = {"noise": Noise_RandomNoise(1), "guider": guider, "sampler": sampler}
    return {
        "photo": photo, "motion": motion, "z_ref": z_ref, "text": text, "vae": vae, "custom": custom,
        "stage_one": stage_one, "stage_two": stage_two, "output": workspace / "output",
    }  # fmt: skip


def weights(model):
    """Return what loading decides: weights with their patches, and the shift."""
    model.patch_model()
    network = model.model.diffusion_model
    values = network.blocks[0].self_attn.q.weight.clone()
    shift = torch.tensor(float(model.get_model_object("model_sampling").shift))
    model.unpatch_model()
    return values, shift


def frames_of(path):
    with av.open(str(path)) as video:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(0)]))


def runs(nodes, given):
    """Return one run of every node, as functions that return tensors."""

    def node(name, **inputs):
        chosen = nodes[name]
        accepted = inspect.signature(chosen.execute).parameters
        defaults = {
            entry.id: entry.default
            for entry in chosen.GET_SCHEMA().inputs
            if getattr(entry, "default", None) is not None and entry.id in accepted
        }
        with torch.inference_mode():
            return chosen.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**{**defaults, **inputs}).args

    def load_two(**options):
        return weights(node("LoadStageII", lora="none", **STAGE_II, **options)[0])

    def segments(name, **options):
        return (node(name, **{"z_ref": given["z_ref"], **SEGMENTS, **options})[0]["samples"],)

    def temporal():
        model = node("TemporalWindows", model=given["stage_one"], window_frames=2)[0]
        with torch.inference_mode():
            sampled = host_nodes.common_ksampler(
                model, 0, 1, 1.0, "euler", "simple", given["text"], given["text"], given["z_ref"], 0.5
            )
        return (sampled[0]["samples"],)

    def write():
        before = set(given["output"].rglob("*.mp4"))
        node("DecodeToVideo", samples=given["z_ref"], vae=given["vae"], crf=0)  # without loss
        (path,) = set(given["output"].rglob("*.mp4")) - before
        return (frames_of(path),)

    photo, vae, text = given["photo"], given["vae"], given["text"]
    sampled = {"model": given["stage_two"], "steps": 1, "positive": text}
    model_one = {"high_noise_model": "tiny_stage1_motion.safetensors", "weight_dtype": "default"}
    none = dict.fromkeys(("low_noise_model", "high_noise_lora", "low_noise_lora"), "none")
    small = {"width": 64, "height": 64, "frames": 5, "steps": 1}
    return {
        "LoadStageI": lambda: weights(node("LoadStageI", **model_one, **none)[0]),
        "LoadStageII": load_two,
        "LoadStageII, LoRA": lambda: weights(node("LoadStageII", lora="x.safetensors", **STAGE_II)[0]),
        "LoadStageII, compiled": lambda: load_two(compile_blocks=True),
        "MotionSampler": lambda: node(
            "MotionSampler", model_high_noise=given["stage_one"], vae=vae, image=photo, **small
        )[:1],
        "CameraMotion": lambda: node("CameraMotion", image=photo, **SIZE),
        "AnchorEncode": lambda: (
            node("AnchorEncode", image=photo, motion=given["motion"], vae=vae, **SIZE)[0]["samples"],
        ),
        "PromptRange": lambda: (node("PromptRange", conditioning=text)[0][0][0],),
        "SegmentSampler": lambda: segments("SegmentSampler", **sampled),
        "SegmentSampler, read-only": lambda: segments("SegmentSampler", context="read-only", **sampled),
        "SegmentSampler, checkpoint": lambda: segments("SegmentSampler", checkpoint="run", **sampled),
        "SegmentSamplerAdvanced": lambda: segments(
            "SegmentSamplerAdvanced", sigmas=torch.tensor([1.0, 0.0]), **given["custom"]
        ),
        "TemporalWindows": temporal,
        "TiledVAEDecode": lambda: node("TiledVAEDecode", samples=given["z_ref"], vae=vae),
        "DecodeToVideo": write,
    }


@pytest.fixture(scope="module")
def expected(pack, given):
    """The results of the complete pack."""
    from swifti2v.nodes import load_models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_models, "check_can_compile", lambda device: None)
        nodes = {key.removeprefix("SwiftI2V_"): node for key, node in pack.nodes.items()}
        return {name: run() for name, run in runs(nodes, given).items()}


def test_the_node_files_are_all_known():
    """A new one needs a line above, or it is not tested here."""
    classes = {
        path.stem: tuple(
            node.name
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef) and "io.ComfyNode" in map(ast.unparse, node.bases)
        )
        for path in (ROOT / "nodes").glob("*.py")
    }
    assert {file: nodes for file, nodes in classes.items() if nodes} == NODE_FILES
    assert len(NAMES) > 40 and "comfy.model_management.get_free_memory" in NAMES


def test_a_complete_comfyui_gets_all_nodes_and_no_warning(pack, load_copy, caplog):
    """A misspelled name would turn its nodes off forever."""
    with caplog.at_level("INFO", logger="SwiftI2V"):
        nodes = load_copy()
    assert {f"SwiftI2V_{name}" for name in nodes} == pack.nodes.keys() and len(nodes) == 11
    assert " is off " not in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_name_turns_off_the_nodes_that_need_it(pack, load_copy, caplog, name):
    with caplog.at_level("WARNING", logger="SwiftI2V"):
        nodes = load_copy(name)
    off = nodes_of(files_off(name))
    assert off
    assert nodes.keys() == nodes_of(NODE_FILES) - off
    lines = [line for line in caplog.messages if " is off in this ComfyUI (" in line]
    assert len(lines) == len(files_off(name))
    for node in off:
        title = pack.nodes[f"SwiftI2V_{node}"].GET_SCHEMA().display_name
        assert any(word in title for line in lines for word in titles(line)), title
    for line in lines:
        missing = {needed for needed in NAMES if needed == name or needed.startswith(f"{name}.")}
        assert any(needed.rpartition(".")[2] in line for needed in missing), line
        assert line.endswith("; update ComfyUI or SwiftI2V.")


def titles(line):
    """Return the names of nodes that a line of the log says are off."""
    return line.removeprefix("SwiftI2V: ").partition(" is off ")[0].split(", ")


@pytest.mark.parametrize("name", ONE_PER_SET.values())
def test_the_other_nodes_give_the_same_results(load_copy, given, expected, name):
    """Once for each set of nodes that go off together."""
    nodes = load_copy(name)
    for what, run in runs(nodes, given).items():
        if what.partition(",")[0] in nodes:
            for one, other in zip(run(), expected[what], strict=True):
                assert torch.equal(one, other), what


def test_the_oldest_comfyui_does_without_is_oom(monkeypatch):
    """ComfyUI 0.16.3 lacks it, the only name that the pack can do without."""
    monkeypatch.delattr(model_management, "is_oom", raising=False)
    for error in (torch.OutOfMemoryError(""), MemoryError(), RuntimeError("DefaultCPUAllocator: no")):
        assert memory.is_out_of_memory(error)
    assert not memory.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))
