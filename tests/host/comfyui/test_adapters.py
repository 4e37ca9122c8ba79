"""Models widened by an adapter, copied by ComfyUI; LoRAs that fit nothing."""

from types import MethodType

import comfy.hooks
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from safetensors.torch import save_file
from swifti2v.nodes import load_models
from swifti2v.nodes.comfyui import models

WIDTH, TEXT = 256, 4096


@pytest.fixture
def loras(workspace):
    """Save a LoRA under a name, and remove it again."""
    saved = []

    def save(name, tensors):
        path = workspace / "models" / "loras" / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        saved.append(path)
        return path.name

    yield save
    for path in saved:
        path.unlink()


def pair(key, inputs, outputs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{key}.lora_down.weight": torch.randn(4, inputs, generator=generator) * 0.1,
        f"{key}.lora_up.weight": torch.randn(outputs, 4, generator=generator) * 0.1,
    }


@pytest.fixture
def adapter(loras, stage_one):
    """A file that widens the plain model to 96 input channels."""
    weight = stage_one.model.diffusion_model.patch_embedding.weight
    key = "diffusion_model.patch_embedding"
    shape = torch.tensor([weight.shape[0], 96, *weight.shape[2:]])
    return loras("adapter", {f"{key}.reshape_weight": shape, **pair(key, 96 * 4, weight.shape[0])})


def loaded(run, lora="none", name="tiny_stage1_motion.safetensors", **options):
    return run("SwiftI2V_LoadStageII", model_name=name, lora=lora, weight_dtype="default", **options)


@pytest.fixture
def dynamic(monkeypatch):
    """ComfyUI as with dynamic VRAM, which no CPU has."""
    monkeypatch.setattr(comfy.model_patcher.ModelPatcher, "is_dynamic", lambda self: True)


def sampled(run, model, z_ref):
    return run("SwiftI2V_SegmentSampler", model=model, z_ref=z_ref, steps=2)[0]["samples"]


def in_channels(model):
    return model.model.diffusion_model.patch_embedding.weight.shape[1]


def as_dynamic(model):
    """Make one MODEL look as it does with dynamic VRAM; its copies do not."""
    model.is_dynamic = lambda: True
    model.non_dynamic_delegate_model = None
    delegate = comfy.model_patcher.ModelPatcherDynamic.get_non_dynamic_delegate
    model.get_non_dynamic_delegate = MethodType(delegate, model)
    return model


def clone_of(model):
    """As compiled blocks and Select Model Device make it."""
    return as_dynamic(model).clone(disable_dynamic=True)


def delegate_of(model):
    return as_dynamic(model).get_non_dynamic_delegate()


def on_another_device(model):
    """As MultiGPU CFG Split makes it."""
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no copies for other devices")
    return model.deepclone_multigpu(torch.device("cpu"))


@pytest.mark.parametrize("copied", [clone_of, delegate_of, on_another_device])
def test_a_copy_of_a_widened_model_is_as_wide_and_samples_the_same(run, adapter, make_latent, copied):
    z_ref = make_latent(4)
    model, kind = loaded(run, adapter)
    assert kind == "concat"
    expected = sampled(run, model, z_ref)
    copy = copied(model)
    assert copy.model is not model.model
    assert in_channels(copy) == 96 and models.input_channels(copy) == 96
    assert torch.equal(sampled(run, copy, z_ref), expected)


def test_an_adapter_compiles_with_dynamic_vram(run, adapter, dynamic, monkeypatch):
    monkeypatch.setattr(load_models, "check_can_compile", lambda device: None)
    for lora, kind, channels in (("none", "plain", 48), (adapter, "concat", 96)):
        model, found = loaded(run, lora, compile_blocks=True)
        assert found == kind and in_channels(model) == channels


def test_prompts_with_loras_of_their_own_take_an_adapter(run, adapter, text):
    model = as_dynamic(loaded(run, adapter)[0])
    hook = comfy.hooks.create_hook_lora(pair("diffusion_model.head.head", WIDTH, 192), 1.0, 0.0)
    prompt = [[text[0][0][0], {"hooks": hook}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(prompt, prompt)
    assert in_channels(guider.model_patcher) == 96


NOTHING = {
    "of_14B": {
        k: v
        for block in range(6)
        for layer in "qkvo"
        for k, v in pair(f"diffusion_model.blocks.{block}.self_attn.{layer}", 5120, 5120).items()
    },
    "odd_names": pair("lora_unet_blocks_0.self_attn.q", WIDTH, WIDTH),
    "difference_of_14B": {"diffusion_model.blocks.0.self_attn.q.diff": torch.zeros(5120, 5120)},
    "empty": {},
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("node", ["SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"])
def test_a_lora_that_fits_nothing_is_refused_by_its_name(run, loras, name, node):
    lora = loras(name, NOTHING[name])
    inputs = {"model_name": "tiny_stage1_motion.safetensors", "lora": lora}
    if node == "SwiftI2V_LoadStageI":
        inputs = {
            "high_noise_model": "tiny_stage1_motion.safetensors",
            "low_noise_model": "none",
            "high_noise_lora": lora,
            "low_noise_lora": "none",
        }
    with pytest.raises(
        ValueError, match=rf"^{name}.safetensors would change nothing: none of its \d+ tensors"
    ):
        run(node, weight_dtype="default", **inputs)


@pytest.mark.parametrize("other", [None, "odd_names", "of_14B"])
def test_a_lora_that_fits_somewhere_is_taken(run, loras, make_latent, other):
    fits = pair("diffusion_model.blocks.5.self_attn.q", WIDTH, WIDTH)
    lora = loras("some", {**NOTHING.get(other, {}), **fits})
    model, _ = loaded(run, lora, "tiny_stage2_detail.safetensors")
    plain, _ = loaded(run, "none", "tiny_stage2_detail.safetensors")
    z_ref = make_latent(4)
    assert not torch.equal(sampled(run, model, z_ref), sampled(run, plain, z_ref))
