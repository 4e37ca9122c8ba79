"""Files and workflows from strangers: what lies, leads out of its folder or carries code.

Each ends in one sentence, before a model is made, and leaves nothing outside the output folder.
"""

import asyncio
import json
import math
import os
import pickle
import struct
import traceback
import uuid
from pathlib import Path

import comfy.sd
import pytest
import torch
from safetensors.torch import save_file
from swifti2v.nodes.checks import file_names
from swifti2v.swifti2v_core.resume import saved_segments

LOADERS = {
    "SwiftI2V_LoadStageI": ("high_noise_model", "high_noise_lora"),
    "SwiftI2V_LoadStageII": ("model_name", "lora"),
}
FIRST_LAYER = "patch_embedding.weight"
SHAPE = [8, 48, 1, 2, 2]
BYTES = 8 * 48 * 4 * 4


def written(header, data=b"", length=None):
    """A safetensors file by hand: the length of its header, the header, the data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape=SHAPE, dtype="F32", offsets=(0, BYTES)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


DATA = bytes(BYTES)
GOOD = {FIRST_LAYER: tensor()}
LIES = {
    "empty": b"",
    "short": b"\x01\x02",
    "length beyond the file": written(GOOD, DATA, length=10**6),
    "length of 2**64 - 1": written(GOOD, DATA, length=2**64 - 1),
    "length of 0": written(GOOD, DATA, length=0),
    "cut off": written(GOOD, DATA[:100]),
    "too long": written(GOOD, DATA + b"more"),
    "shape of 10 GB": written({FIRST_LAYER: tensor([5120, 524288, 1, 1, 1])}, DATA),
    "shape that overflows": written({FIRST_LAYER: tensor([2**62, 2**62, 4, 1, 1])}, DATA),
    "negative shape": written({FIRST_LAYER: tensor([-8, 48, 1, 2, 2])}, DATA),
    "fractional shape": written({FIRST_LAYER: tensor([8.5, 48, 1, 2, 2])}, DATA),
    "flat first layer": written({FIRST_LAYER: tensor([BYTES // 4])}, DATA),
    "first layer of no dimension": written({FIRST_LAYER: tensor([], offsets=(0, 4))}, DATA[:4]),
    "unknown type": written({FIRST_LAYER: tensor(dtype="F1024")}, DATA),
    "type of another size": written({FIRST_LAYER: tensor(dtype="F64")}, DATA),
    "integers": written({FIRST_LAYER: tensor(dtype="I32")}, DATA),
    "truths": written({FIRST_LAYER: tensor(dtype="BOOL", offsets=(0, BYTES // 4))}, DATA[: BYTES // 4]),
    "negative offset": written({FIRST_LAYER: tensor(offsets=(-4, BYTES - 4))}, DATA),
    "offsets backwards": written({FIRST_LAYER: tensor(offsets=(BYTES, 0))}, DATA),
    "offsets beyond": written({FIRST_LAYER: tensor(offsets=(2**60, 2**60 + BYTES))}, DATA),
    "overlapping": written({**GOOD, "other": tensor()}, DATA),
    "a gap": written({FIRST_LAYER: tensor(offsets=(4, BYTES + 4))}, DATA + b"gap!"),
    "a name twice": written(
        b'{"%s":%s,"%s":%s}'
        % ((FIRST_LAYER.encode(), json.dumps(tensor()).encode(), FIRST_LAYER.encode(), b'{"dtype":"F32"}')),
        DATA,
    ),
    "no header": written(b"[1, 2, 3]"),
    "null": written(b"null"),
    "no JSON": written(b"{'a': 1}"),
    "deep JSON": written(b'{"a":' * 10**5 + b"1" + b"}" * 10**5),
    "deep lists": written(b'{"a":{"dtype":"F32","shape":' + b"[" * 10**5 + b"]" * 10**5 + b"}}"),
    "no UTF-8": written(b'{"\xff\xfe":1}'),
    "null bytes": written(b'{"a\x00b":1}'),
    "metadata of numbers": written({"__metadata__": {"a": 1}, **GOOD}, DATA),
    "header of 100 MB": written(b'{"a":"' + b"x" * 100_000_001 + b'"}'),
    "no first layer": written({"other": tensor()}, DATA),
    "half a surrogate pair": written(b'{"\\ud800":1}'),
}


@pytest.fixture
def put(workspace):
    """Write a file into a folder of models and take it away again."""
    paths = []

    def write(folder, name, data):
        paths.append(workspace / "models" / folder / name)
        paths[-1].write_bytes(data)
        return name

    yield write
    for path in paths:
        path.unlink()


@pytest.fixture
def refused(run, pack):
    """Run a loader and return the sentence it answers with."""

    def sentence(node_id, **inputs):
        with pytest.raises(ValueError) as error:
            run(node_id, **{"low_noise_model": "none"} if node_id.endswith("StageI") else {}, **inputs)
        text = str(error.value)
        last = traceback.extract_tb(error.value.__traceback__)[-1].filename
        assert "swifti2v" in last, f"another's error: {text}"
        assert text.endswith(".") and "\n" not in text and len(text) < 500
        return text

    return sentence


def no_lora(node_id):
    names = ("high_noise_lora", "low_noise_lora") if node_id.endswith("StageI") else ("lora",)
    return dict.fromkeys(names, "none")


@pytest.mark.parametrize("node_id", LOADERS)
@pytest.mark.parametrize("lie", LIES)
def test_a_model_file_that_lies(put, refused, monkeypatch, node_id, lie):
    def refuse(*args, **kwargs):
        raise AssertionError("the file was loaded")

    monkeypatch.setattr(comfy.sd, "load_diffusion_model", refuse)
    name = put("diffusion_models", "hostile.safetensors", LIES[lie])
    sentence = refused(node_id, **{**no_lora(node_id), LOADERS[node_id][0]: name})
    assert "hostile.safetensors" in sentence and (
        "download it again" in sentence or "load Wan2.2" in sentence
    )


UNSEEN = {"flat first layer", "first layer of no dimension", "integers", "truths", "no first layer"}
"""Nothing is wrong with these where a first layer is not looked for."""


@pytest.mark.parametrize("lie", LIES.keys() - UNSEEN)
def test_a_lora_file_that_lies(put, refused, monkeypatch, lie):
    def refuse(*args, **kwargs):
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(comfy.sd, "load_diffusion_model", refuse)
    name = put("loras", "hostile_lora.safetensors", LIES[lie])
    sentence = refused("SwiftI2V_LoadStageII", model_name="tiny_stage2_detail.safetensors", lora=name)
    assert "hostile_lora.safetensors" in sentence and "download it again" in sentence


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.mark.parametrize("suffix", ["pt", "ckpt", "bin", "safetensors"])
@pytest.mark.parametrize("place", ["model", "lora"])
def test_a_file_with_code_does_not_run_it(put, refused, tmp_path, suffix, place):
    proof = tmp_path / "ran"
    code = pickle.dumps({FIRST_LAYER: Code(proof)})
    folder = "diffusion_models" if place == "model" else "loras"
    name = put(folder, f"code.{suffix}", code)
    inputs = {"model_name": "tiny_stage2_detail.safetensors", "lora": "none"}
    sentence = refused(
        "SwiftI2V_LoadStageII", **{**inputs, "model_name" if place == "model" else "lora": name}
    )
    assert name in sentence and not proof.exists()
    pickle.loads(code)
    assert proof.exists()  # it would have


@pytest.mark.parametrize("node_id", LOADERS)
@pytest.mark.parametrize(
    "tensors",
    [
        {FIRST_LAYER: torch.zeros(*SHAPE)},
        {FIRST_LAYER: torch.zeros(0, 48, 1, 2, 2)},
        {FIRST_LAYER: torch.zeros(3, 48, 9, 9, 9)},
        {FIRST_LAYER: torch.zeros(*SHAPE), "blocks.7.ffn.0.weight": torch.zeros(3, 3)},
        {FIRST_LAYER: torch.zeros(*SHAPE), "head.modulation": torch.zeros(1, 2, 8)},
        {
            FIRST_LAYER: torch.zeros(*SHAPE),
            "head.modulation": torch.zeros(1, 2, 8),
            "blocks.0.ffn.0.weight": torch.zeros(3, 5),
        },
    ],
    ids=["alone", "empty", "cubes", "wrong block", "no block", "head and block"],
)
def test_a_file_with_a_first_layer_and_nothing_behind_it(put, workspace, refused, node_id, tensors):
    path = workspace / "models" / "diffusion_models" / "part.safetensors"
    save_file(tensors, path)
    try:
        sentence = refused(node_id, **{**no_lora(node_id), LOADERS[node_id][0]: "part.safetensors"})
    finally:
        path.unlink()
    assert "part.safetensors" in sentence


NAMES = (
    "../secret.safetensors",
    "/etc/passwd",
    "..\\secret",
    "tiny\x00",
    "",
    "x" * 10**5,
    "none/../../x",
    "\ud800",
)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize(
    ("node_id", "widget"), [(node, name) for node, names in LOADERS.items() for name in names]
)
def test_a_name_outside_the_list(workspace, refused, node_id, widget, name):
    (workspace / "models" / "secret.safetensors").write_bytes(written(GOOD, DATA))
    inputs = {"model_name": "tiny_stage2_detail.safetensors"}
    if node_id.endswith("StageI"):
        inputs = {"high_noise_model": "tiny_stage1_motion.safetensors"}
    sentence = refused(node_id, **{**inputs, **no_lora(node_id), widget: name})
    assert sentence.startswith(f"{widget} is ") and "must be an entry of its list" in sentence


# --- Names of files to write --------------------------------------------------------------------------


@pytest.fixture
def prefix(pack, workspace, monkeypatch):
    """Check a filename_prefix; on ComfyUI's side, ask where it would write."""
    import folder_paths

    def check(text):
        file_names.check_filename_prefix(text)
        output = Path(folder_paths.get_output_directory())
        folder, name, *_ = folder_paths.get_save_image_path(text, str(output), 32, 32)
        path = Path(folder) / f"{name}_00001_.webm.part"
        path.write_bytes(b"")  # the system takes the name
        assert path.resolve().is_relative_to(output.resolve())
        path.unlink()

    return check


@pytest.mark.parametrize(
    "text",
    [
        "clip",
        "a/b/c/clip",
        "a/../clip",
        "with space",
        "übung/映像",
        "%year%-%month%-%day%/%hour%%minute%%second%",
        "%width%x%height%",
        "%date:yyyy%",
        "a//b",
        "./clip",
        "....",
        ".hidden",
        "-rf",
        "n" * 200,
        "d/" * 200 + "clip",
        "a\\..\\..\\b",
        "~root/x",
        "$HOME/x",
        "%2e%2e/x",
    ],
)
def test_prefixes_inside_the_output_folder(prefix, text):
    prefix(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("names no file",)),
        ("a/", ("names no file",)),
        ("..", ("leaves ComfyUI's output folder",)),
        ("../x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("a/../../x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("%year%/../../x", ("leaves ComfyUI's output folder",)),
        ("/etc/x", ("leaves ComfyUI's output folder", 'value is "x"')),
        ("//server/share/x", ("leaves ComfyUI's output folder",)),
        ("../output_of_another/x", ("leaves ComfyUI's output folder",)),
        (".", ("leaves ComfyUI's output folder",)),
        ("link/x", ("leaves ComfyUI's output folder",)),
        ("link/../x", ()),
        ("file/x", ("has a file where a folder must be (file)",)),
        ("a\x00b", ("holds characters that no file name may have", 'value is "a_b"')),
        ("a\nb", ("holds characters",)),
        ("a\ud800b", ("holds characters", 'value is "a?b"')),
        ("n" * 300, ("200 bytes each", "shorten it")),
        ("ü" * 150, ("200 bytes each", "shorten it")),
        ("d/" * 2000 + "x", ("1000 together", "shorten it")),
    ],
)
def test_prefixes_that_are_refused(pack, workspace, tmp_path, text, words):
    output = workspace / "output"
    (output / "link").symlink_to(tmp_path, target_is_directory=True)
    (output / "file").write_bytes(b"")
    try:
        if not words:  # after its link, ".." leads elsewhere than in the text
            words = ("leaves ComfyUI's output folder",)
        with pytest.raises(ValueError) as error:
            file_names.check_filename_prefix(text)
    finally:
        (output / "link").unlink()
        (output / "file").unlink()
    sentence = str(error.value)
    assert sentence.startswith("filename_prefix is ") and "\n" not in sentence and len(sentence) < 300
    assert all(word in sentence for word in words)


@pytest.mark.parametrize(
    "text", ["C:\\x", "C:x", "con", "a/NUL", "aux.txt/x", "com1", "a:b", "what?", 'a"b', "a|b"]
)
def test_names_that_windows_keeps(pack, monkeypatch, text):
    monkeypatch.setattr(file_names.sys, "platform", "win32")
    with pytest.raises(ValueError, match="Windows keeps for itself; the nearest valid value is"):
        file_names.check_filename_prefix(text)
    file_names.check_filename_prefix("console/auxiliary.com")


def test_a_folder_that_may_not_be_written(pack, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="its folder is not writable; choose another one"):
        file_names.check_filename_prefix("clip")


# --- Workflows through ComfyUI's own validation --------------------------------------------------------


def validated(prompt):
    """Validate an API prompt as the server does on /prompt."""
    import execution

    return asyncio.run(execution.validate_prompt(uuid.uuid4().hex, prompt, None))


@pytest.fixture
def workflow(pack):
    """A workflow with our nodes from the model file to the video file, with some inputs changed."""

    def node(node_id, **inputs):
        widgets = (each for each in pack.nodes[node_id].GET_SCHEMA().inputs if hasattr(each, "default"))
        known = {each.id: each.default for each in widgets if each.default is not None}
        return {"class_type": node_id, "inputs": {**known, **inputs}}

    def make(**changed):
        load = {"model_name": "tiny_stage2_detail.safetensors", "lora": "none"}
        empty = {"width": 128, "height": 96, "batch_size": 1}
        prompt = {
            "load": node("SwiftI2V_LoadStageII", **load),
            "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae48.safetensors"}},
            "empty": {"class_type": "EmptyLatentImage", "inputs": empty},
            "sample": node("SwiftI2V_SegmentSampler", model=["load", 0], z_ref=["empty", 0]),
            "save": node("SwiftI2V_DecodeToVideo", samples=["sample", 0], vae=["vae", 0]),
        }
        for each in prompt.values():
            each["inputs"].update({name: changed[name] for name in changed.keys() & each["inputs"].keys()})
        return prompt

    return make


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "tiny_stage2_detail.safetensors\x00"])
@pytest.mark.parametrize("widget", ["model_name", "lora", "weight_dtype", "codec", "sampler_name"])
def test_the_server_refuses_names_outside_the_list(workflow, widget, name):
    assert validated(workflow())[0]
    valid, _, _, errors = validated(workflow(**{widget: name}))
    assert not valid
    assert [each["type"] for node in errors.values() for each in node["errors"]] == ["value_not_in_list"]


def test_the_server_lets_nan_pass(workflow):
    """Why widgets are checked once more: a text becomes a number, and NaN is in every range."""
    prompt = workflow(denoise="nan")
    assert validated(prompt)[0] and math.isnan(prompt["sample"]["inputs"]["denoise"])


def test_no_other_input_of_a_workflow_is_a_path(pack):
    """Texts that a workflow brings reach files in two places, which are tested here; lists are closed."""
    texts = {
        (node_id, each.id)
        for node_id, node in pack.nodes.items()
        for each in node.GET_SCHEMA().inputs
        if each.io_type == "STRING"
    }
    parsed = ("timesteps", "keyframe_times")
    assert {each for each in texts if each[1] not in parsed} == {
        ("SwiftI2V_DecodeToVideo", "filename_prefix"),
        ("SwiftI2V_SegmentSampler", "checkpoint"),
        ("SwiftI2V_SegmentSamplerAdvanced", "checkpoint"),
    }


NO_FOLDERS = (
    "../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "C:",
    "con",
    "a\x00b",
    "a\nb",
    "x" * 10**6,
    "a\ud800",
)


@pytest.mark.parametrize("name", NO_FOLDERS, ids=range(len(NO_FOLDERS)))
def test_the_name_of_a_checkpoint_is_no_path(pack, name):
    with pytest.raises(ValueError, match=r"^checkpoint is .* the nearest valid value is .*[.]$") as error:
        saved_segments.check_name(name)
    assert len(str(error.value)) < 400


# --- Folders of checkpoints ----------------------------------------------------------------------------


def outside_file(path, tmp_path):
    secret = tmp_path / "secret"
    path.rename(secret)  # even the right one, where a link leads to it
    path.symlink_to(secret)


def folder(path, tmp_path):
    path.unlink()
    path.mkdir()


def pipe(path, tmp_path):
    path.unlink()
    os.mkfifo(path)


PLANTED = {
    "link": outside_file,
    "folder": folder,
    **({"pipe": pipe} if hasattr(os, "mkfifo") else {}),
    **{lie: lambda path, _, data=data: path.write_bytes(data) for lie, data in LIES.items()},
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_checkpoint_from_a_stranger_counts_as_none(pack, tmp_path, caplog, what):
    module, frames = saved_segments, torch.ones(1, 48, 1, 2, 2)
    held = module.SavedSegments(tmp_path, "clip", {"seed": "1"})
    held.save(0, 0, frames)
    assert torch.equal(held.load(0, 0, frames.shape), frames)
    (path,) = tmp_path.rglob("*.safetensors")
    PLANTED[what](path, tmp_path)
    assert held.load(0, 0, frames.shape) is None
    assert caplog.messages[-1].startswith(f'Checkpoint "clip": {path.name} is ignored: it ')
    assert len(caplog.messages[-1]) < 400 and "\n" not in caplog.messages[-1]
