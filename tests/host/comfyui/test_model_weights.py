"""The digest of a model's weights: each weight is read once per model object and file."""

import gc
import os
import shutil

import comfy.model_management
import comfy.sd
import pytest
import torch
from patched_models import lora, with_module
from safetensors.torch import load_file, save_file
from segment_sampling import advanced
from swifti2v.nodes.comfyui import model_files, model_identity, model_weights
from swifti2v.swifti2v_core.resume import fingerprint as fingerprints

TINY = "tiny_stage2_detail.safetensors"


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch):
    monkeypatch.setattr(model_weights, "_of_models", type(model_weights._of_models)())
    monkeypatch.setattr(model_weights, "_of_files", {})


@pytest.fixture
def bytes_read(monkeypatch):
    """Call a function; return its result and the number of bytes of tensors that it hashed."""
    sizes, read = [], fingerprints.tensor_bytes

    def counting(tensor):
        sizes.append(tensor.nbytes)
        return read(tensor)

    monkeypatch.setattr(fingerprints, "tensor_bytes", counting)

    def call(function, *args):
        sizes.clear()
        return function(*args), sum(sizes)

    return call


@pytest.fixture
def file(workspace):
    """A copy of the tiny Stage II model."""
    folder = workspace / "models" / "diffusion_models"
    path = folder / "digest.safetensors"
    shutil.copy(folder / TINY, path)
    os.utime(path, (10**9, 10**9))
    yield path
    path.unlink()


def load(file):
    return model_files.load_model(file.name, "default")


def load_as_comfyui(file):
    return comfy.sd.load_diffusion_model(str(file))


def of_all(model):
    """The digest, from every byte."""
    return fingerprints.fingerprint_tensors(model_weights.model_weights(model), lambda: None)


def size(model):
    return sum(weight.nbytes for weight in model_weights.model_weights(model).values())


def ends(model):
    """Bytes of the ends of all weights."""
    weights = model_weights.model_weights(model).values()
    return sum(2 * min(128, weight.numel()) * weight.itemsize for weight in weights)


def change(file, key_end, index):
    """Change one number in a file, whose size and time stay."""
    state = load_file(file)
    key = next(key for key in state if key.endswith(key_end))
    state[key].view(-1)[index] += 1
    save_file(state, file)
    os.utime(file, (10**9, 10**9))


def test_weights_are_read_once_per_model(run, stage_two, make_latent, bytes_read):
    digest, read = bytes_read(model_weights.weights_digest, stage_two)
    assert digest == of_all(stage_two) and read == size(stage_two) + ends(stage_two)
    text = [[torch.zeros(1, 8, 4096), {}]]
    advanced(run, lora(stage_two), (text, text), make_latent(8), cfg=2.0, sampler="euler")
    for _ in range(2):  # loaded and patched, then unloaded
        assert bytes_read(model_weights.weights_digest, stage_two) == (digest, ends(stage_two))
        comfy.model_management.unload_all_models()


@pytest.mark.parametrize("patch", [lora, with_module])
def test_a_clone_shares_the_digest_and_is_another_model(stage_two, bytes_read, patch):
    digest, _ = bytes_read(model_weights.weights_digest, stage_two)
    clone = patch(stage_two)
    assert bytes_read(model_weights.weights_digest, clone) == (digest, ends(stage_two))
    changes = [
        fingerprints.fingerprint(model_identity.model_changes(model), model_identity.without_weights(model))
        for model in (stage_two, clone)
    ]
    assert changes[0] != changes[1]


def test_nothing_is_read_again_under_dynamic_vram(stage_two, bytes_read, monkeypatch):
    """There, a weight is a map of its file, which may have left the memory."""
    monkeypatch.setattr(type(stage_two), "is_dynamic", lambda _: True)
    digest, read = bytes_read(model_weights.weights_digest, stage_two)
    assert read > size(stage_two)
    assert bytes_read(model_weights.weights_digest, stage_two) == (digest, 0)
    assert bytes_read(model_weights.weights_digest, lora(stage_two)) == (digest, 0)


@pytest.mark.parametrize("loaded", [load, load_as_comfyui])
def test_an_unchanged_file_is_read_once(file, bytes_read, loaded):
    first = loaded(file)
    digest, _ = bytes_read(model_weights.weights_digest, first)
    again = loaded(file)
    assert again.model is not first.model
    assert bytes_read(model_weights.weights_digest, again) == (digest, ends(first))
    os.utime(file, (10**9, 10**9 + 1))  # written again
    assert bytes_read(model_weights.weights_digest, loaded(file)) == (digest, size(first) + ends(first))


def test_other_weights_of_a_file_are_another_model(file):
    """Widened, and in another number format."""
    one, other = load(file), model_files.load_model(file.name, "fp8_e4m3fn")
    wide = model_files.load_model(file.name, "default", 100)
    digests = [model_weights.weights_digest(model) for model in (one, other, wide)]
    assert digests == [of_all(model) for model in (one, other, wide)] and len(set(digests)) == 3


@pytest.mark.parametrize("index", [0, -1])
def test_a_file_replaced_under_a_loaded_model_is_not_mistaken_for_it(file, index):
    """Even one of the same size and time, as far as an end of a weight differs."""
    before = load(file)
    change(file, "blocks.0.self_attn.q.weight", index)
    after = load(file)
    digests = [model_weights.weights_digest(model) for model in (before, after)]
    assert digests == [of_all(before), of_all(after)] and digests[0] != digests[1]


def test_a_weight_overwritten_in_place_is_noticed(file):
    model = load(file)
    digest = model_weights.weights_digest(model)
    with torch.inference_mode():
        model.model.diffusion_model.blocks[0].self_attn.q.weight.mul_(2)
    assert digest != model_weights.weights_digest(model) == of_all(model)


def test_a_model_of_no_file_is_read_once(file, bytes_read):
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model_state_dict(load_file(file))
    digest, read = bytes_read(model_weights.weights_digest, model)
    assert digest == of_all(model) and read == size(model) + ends(model)
    assert bytes_read(model_weights.weights_digest, model) == (digest, ends(model))


def test_a_digest_keeps_no_model_alive(file):
    model = load(file)
    model_weights.weights_digest(model)
    assert len(model_weights._of_models) == 1
    del model
    gc.collect()
    assert len(model_weights._of_models) == 0


def test_an_interrupted_digest_is_not_kept(file):
    model = load(file)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        model_weights.weights_digest(model)
    assert model_weights.weights_digest(model) == of_all(model)


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ("cuda:1 NVIDIA GeForce RTX 4090 : cudaMallocAsync", "NVIDIA GeForce RTX 4090"),
        ("cuda:1 NVIDIA GeForce RTX 4090 : native", "NVIDIA GeForce RTX 4090"),
        ("cuda:1 NVIDIA H200 : native", "NVIDIA H200"),
    ],
)
def test_a_device_counts_by_its_name_alone(monkeypatch, shown, name):
    monkeypatch.setattr(comfy.model_management, "get_torch_device_name", lambda _: shown)
    assert model_identity._device_name(torch.device("cuda:1")) == name


def test_a_cpu_counts_by_its_vector_instructions():
    assert model_identity._device_name(torch.device("cpu")).split() == [
        "cpu",
        *torch.backends.cpu.get_cpu_capability().split(),
    ]
