"""Model and LoRA files from strangers: what lies, carries code or leads out of its folder.

Each ends in one sentence before a model is made.
"""

import os
import pickle
import traceback

import comfy.sd
import pytest
import torch
from lying_files import DATA, FIRST_LAYER, GOOD, LIES, SHAPE, written
from safetensors.torch import save_file

LOADERS = {
    "SwiftI2V_LoadStageI": ("high_noise_model", "high_noise_lora"),
    "SwiftI2V_LoadStageII": ("model_name", "lora"),
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
