"""What identifies a model: the same before and after use, and in every process."""

import comfy.model_management
import pytest
import torch
from patched_models import lora, with_compute_dtype, with_module, with_option
from safetensors.torch import load_file
from segment_sampling import advanced
from swifti2v.nodes.comfyui import compiled_model, model_files, model_identity, model_weights
from swifti2v.swifti2v_core.resume.fingerprint import fingerprint, fingerprint_tensors


def weights_of(model):
    return fingerprint_tensors(model_weights.model_weights(model), lambda: None)


def changes_of(model):
    return fingerprint(model_identity.model_changes(model), model_identity.without_weights(model))


@pytest.fixture
def use(run, make_latent):
    """Run a model in the segment sampler, with guidance."""
    text = [[torch.zeros(1, 8, 4096), {}]]
    return lambda model: advanced(
        run, model, (text, text), make_latent(8), cfg=2.0, sampler="euler_ancestral"
    )


@pytest.mark.parametrize("patch", [lambda model: model, lora, with_option, with_module, with_compute_dtype])
def test_the_same_model_is_the_same_before_and_after_use(use, stage_two, patch):
    """Loading patches weights in place and moves them; another process finds them untouched."""
    model = patch(stage_two)

    def identity(model):
        return weights_of(model), changes_of(model)

    comfy.model_management.unload_all_models()
    fresh = identity(model)
    use(model)
    assert identity(model) == fresh
    comfy.model_management.unload_all_models()
    assert identity(model) == fresh
    assert identity(patch(stage_two)) == fresh
    assert weights_of(stage_two) == fresh[0]


@pytest.mark.parametrize("patch", [with_module, with_compute_dtype])
def test_a_model_is_the_same_while_a_clone_of_it_is_loaded(use, stage_two, patch):
    use(stage_two)
    before = weights_of(stage_two), changes_of(stage_two)
    use(patch(stage_two))
    assert (weights_of(stage_two), changes_of(stage_two)) == before


def test_weights_are_all_that_a_file_holds(stage_two, workspace):
    file = load_file(workspace / "models" / "diffusion_models" / "tiny_stage2_detail.safetensors")
    found = model_weights.model_weights(stage_two)
    assert found.keys() == {f"diffusion_model.{key.removeprefix('model.diffusion_model.')}" for key in file}


def test_another_arithmetic_is_another_run(monkeypatch):
    """On cards that have it, fp8_e4m3fn_fast multiplies the same weights in fp8."""
    monkeypatch.setattr(comfy.model_management, "supports_fp8_compute", lambda *_: True)
    one, other = (
        model_files.load_model("tiny_stage2_detail.safetensors", dtype)
        for dtype in ("fp8_e4m3fn", "fp8_e4m3fn_fast")
    )
    assert weights_of(one) == weights_of(other) and changes_of(one) != changes_of(other)


def test_compiled_blocks_are_the_same_in_every_process(stage_two):
    compiled = [changes_of(compiled_model.with_compiled_blocks(stage_two)) for _ in range(2)]
    assert compiled[0] == compiled[1] != changes_of(stage_two)
