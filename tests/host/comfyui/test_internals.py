"""A ComfyUI that has lost an internal loses the features that need it, and never the pack.

Internals are taken away while a second copy of the pack is imported, as a ComfyUI without them would have
it, and put back before it runs: what ComfyUI does without them is not in question here.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from contextlib import contextmanager
from pkgutil import resolve_name
from types import ModuleType

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nodes as host_nodes

STAGE_II = {"model_name": "tiny_stage2_detail.safetensors", "weight_dtype": "default"}
SIZE = {"width": 64, "height": 64, "frames": 9}
SEGMENTS = {"segment_frames": 1, "context": "bidirectional", "time_positions": "true", "neighbors": 1}
SIMPLE = {"SegmentSampler", "SegmentSampler, read-only", "SegmentSampler, checkpoint"}
WINDOWS = {*SIMPLE, "SegmentSamplerAdvanced"}
LOADERS = {"LoadStageI", "LoadStageII", "LoadStageII, LoRA", "LoadStageII, compiled"}
SAMPLERS = {"MotionSampler", *WINDOWS}
STOPPED = {
    "LOADERS": LOADERS,
    "LORAS": {"LoadStageII, LoRA"},
    "COMPILE": {"LoadStageII, compiled"},
    "SAMPLING": {"MotionSampler", *SIMPLE},
    "CHECKPOINTS": {"SegmentSampler, checkpoint"},
    "SEGMENTS": WINDOWS,
    "READ_ONLY": {"SegmentSampler, read-only"},
    "TEMPORAL_WINDOWS": {"TemporalWindows"},
    "SAVING": {"DecodeToVideo"},
}
"""What says a sentence when it runs, by the name of a feature; all the rest goes on."""

STOPPED_BY_THE_MODEL = {
    "KINDS": SAMPLERS | LOADERS,
    "PROMPTS": SAMPLERS,
    "SCHEDULES": SAMPLERS - {"SegmentSamplerAdvanced"},
    **{key: STOPPED[key] for key in ("COMPILE", "SEGMENTS", "TEMPORAL_WINDOWS")},
}
"""The same for what a MODEL lacks."""

PUBLISHED = {"comfy.model_management.is_oom": "0.18"}
"""What the floor, ComfyUI 0.16.3, does not have yet."""


@pytest.fixture(scope="module")
def table(pack):
    return pack.modules["nodes.comfyui.internals"]


@contextmanager
def without(names):
    """Take attributes and modules away from ComfyUI."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            owner, _, last = name.rpartition(".")
            if isinstance(resolve_name(name), ModuleType):
                patch.setitem(sys.modules, name, None)
            if owner:
                patch.delattr(resolve_name(owner), last)
        yield


@pytest.fixture
def copy_without(workspace, pack, tmp_path):
    """Import the pack once more while internals are missing; returns its nodes by id."""
    path = workspace / "custom_nodes" / tmp_path.name
    path.symlink_to(pack.host.__file__.removesuffix("nodes/host.py"), target_is_directory=True)
    known = dict(host_nodes.NODE_CLASS_MAPPINGS)

    def load(*names):
        with without(names):
            assert asyncio.run(host_nodes.load_custom_node(str(path)))
        new = {k: v for k, v in host_nodes.NODE_CLASS_MAPPINGS.items() if known.get(k) is not v}
        assert new.keys() == pack.nodes.keys() and len(new) == 11
        checks = sys.modules[str(path).replace(".", "_x_") + ".nodes.checks"]
        checks.can_compile = lambda device: None  # whether there is a compiler is not in question here
        return new

    yield load
    host_nodes.NODE_CLASS_MAPPINGS.update(known)
    for name in [name for name in sys.modules if name.startswith(str(path).replace(".", "_x_"))]:
        del sys.modules[name]
    path.unlink()


@pytest.fixture(scope="module")
def given(run, stage_one, stage_two, vae, workspace):
    """What flows along the connections, made by ComfyUI's own nodes or by the complete pack."""
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
    guider = resolve_name("comfy.samplers.CFGGuider")(stage_two)
    guider.set_conds(text, text)
    sampler = resolve_name("comfy.samplers.sampler_object")("euler")
    custom = {"noise": Noise_RandomNoise(1), "guider": guider, "sampler": sampler}
    return {
        "photo": photo, "motion": motion, "z_ref": z_ref, "text": text, "vae": vae, "custom": custom,
        "stage_one": stage_one, "stage_two": stage_two, "output": workspace / "output",
    }  # fmt: skip


def weights(model):
    """What loading decides: weights with their patches and the shift."""
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
    """One run of every node, as functions that return tensors."""

    def node(name, **inputs):
        chosen = nodes[f"SwiftI2V_{name}"]
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
    """What the complete pack makes."""
    return {name: run() for name, run in runs(pack.nodes, given).items()}


def rows(table="INTERNALS"):
    """The names of a table, which is read from the source: no host is up when tests are collected."""
    import ast
    from pathlib import Path

    source = Path(__file__).resolve().parents[3] / "nodes" / "comfyui" / "internals.py"
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.AnnAssign) and node.target.id == table:
            return [key.value for key in node.value.keys]
    raise AssertionError("no table")


def keys_of(table, features):
    return [key for key, value in vars(table).items() if any(value is feature for feature in features)]


class Lost:
    """A part of a model that has lost an attribute."""

    def __init__(self, part, attribute):
        self.part, self.attribute = part, attribute

    def __getattr__(self, name):
        if name == self.attribute:
            raise AttributeError(name)
        return getattr(self.part, name)


@pytest.mark.parametrize("name", rows("MODEL_INTERNALS"))
def test_a_model_has_lost_an_attribute(pack, table, given, expected, monkeypatch, name):
    owner, attribute = name.split(".")
    patcher = resolve_name("comfy.model_patcher.ModelPatcher")
    get = patcher.get_model_object

    def get_without(self, key):
        return Lost(get(self, key), attribute) if key == owner else get(self, key)

    monkeypatch.setattr(pack.checks, "can_compile", lambda device: None)
    keys = keys_of(table, table.MODEL_INTERNALS[name])
    stopped = set().union(*(STOPPED_BY_THE_MODEL.get(key, set()) for key in keys))
    for what, run in runs(pack.nodes, given).items():
        with monkeypatch.context() as patch:
            patch.setattr(patcher, "get_model_object", get_without)
            if what in stopped:
                with pytest.raises(RuntimeError, match=re.escape(name)):
                    run()
                continue
            if what in LOADERS:
                continue  # weights are read through the part
            made = run()
        assert all(torch.equal(one, other) for one, other in zip(made, expected[what], strict=True)), what


def test_this_host_has_all_internals(table):
    """A name that is written wrong would switch its feature off for ever."""
    from comfyui_version import __version__

    version = tuple(map(int, __version__.split(".")[:2]))
    later = {name for name, since in PUBLISHED.items() if version < tuple(map(int, since.split(".")))}
    assert later == table.MISSING


@pytest.mark.parametrize("name", rows())
def test_one_internal_is_missing(table, copy_without, given, expected, caplog, monkeypatch, name):
    if name in table.MISSING:
        pytest.skip("this ComfyUI is older than the internal and does without it")
    with caplog.at_level("WARNING", logger="SwiftI2V"):
        nodes = copy_without(name)
    lost = [row for row in table.INTERNALS if row == name or row.startswith(f"{name}.")]
    features = {feature for row in lost for feature in table.INTERNALS[row]}
    lines = [record.getMessage() for record in caplog.records]
    for feature in features:
        (line,) = (line for line in lines if f"switches off {feature.name}: " in line)
        assert name in line and line.endswith(f"{feature.instead}.")
    keys = keys_of(table, features)
    stopped = set().union(*(STOPPED.get(key, set()) for key in keys))
    for what, run in runs(nodes, given).items():
        if what in stopped:
            with (
                monkeypatch.context() as patch,
                pytest.raises(RuntimeError, match=re.escape(name)),
            ):
                patch.setattr("comfy.model_management.load_models_gpu", pytest.fail)
                patch.setattr("comfy.sd.load_diffusion_model", pytest.fail)
                run()
            continue
        for one, other in zip(run(), expected[what], strict=True):
            if "STREAMING" in keys:  # ComfyUI codes the frames, with kernels of its own
                assert (one.float() - other.float()).abs().max() <= (
                    1 if one.dtype == torch.uint8 else 1e-4
                )
            else:
                assert torch.equal(one, other), what


@pytest.mark.parametrize(
    "module", sorted({name.rpartition(".")[0] for name in rows() if name.rpartition(".")[2][0].islower()})
)
def test_a_whole_module_is_missing(table, copy_without, given, expected, caplog, module):
    """As after a move to another file; a camera move is none of ComfyUI's business."""
    while not isinstance(resolve_name(module), ModuleType):
        module = module.rpartition(".")[0]
    with caplog.at_level("WARNING", logger="SwiftI2V"):
        nodes = copy_without(module)
    lost = [name for name in table.INTERNALS if name.startswith(f"{module}.")]
    assert lost and all(name in caplog.text for name in set(lost) - table.MISSING)
    copied = runs(nodes, given)
    for what in ("CameraMotion", "PromptRange"):
        assert torch.equal(copied[what]()[0], expected[what][0])


def test_a_complete_host_is_told_nothing(table, copy_without, caplog):
    with caplog.at_level("INFO", logger="SwiftI2V"):
        copy_without()
    assert caplog.text.count("switches off") == len(table.MISSING)


ARRANGED = [("SegmentSampler, read-only", "bidirectional"), ("TemporalWindows", "remove the node")]


@pytest.mark.parametrize(("what", "advice"), ARRANGED)
def test_an_attention_that_asks_nobody(pack, given, monkeypatch, what, advice):
    """The picture would be of another arrangement than was chosen, and nobody would know."""
    attention = resolve_name("comfy.ldm.modules.attention.attention_pytorch")
    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", attention.__wrapped__)
    with pytest.raises(RuntimeError, match=f"no call of optimized_attention_override.*{advice}"):
        runs(pack.nodes, given)[what]()


@pytest.mark.parametrize(("what", "advice"), ARRANGED)
def test_an_attention_that_tells_no_block(pack, given, monkeypatch, what, advice):
    attention = resolve_name("comfy.ldm.wan.model.optimized_attention")

    def without_block(*args, transformer_options, **kwargs):
        options = {key: value for key, value in transformer_options.items() if key != "block_index"}
        return attention(*args, transformer_options=options, **kwargs)

    monkeypatch.setattr("comfy.ldm.wan.model.optimized_attention", without_block)
    with pytest.raises(RuntimeError, match=f"no block_index.*{advice}"):
        runs(pack.nodes, given)[what]()
