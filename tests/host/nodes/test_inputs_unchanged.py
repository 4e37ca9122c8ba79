"""The segment sampler leaves its inputs as they were, cancelled or not."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from segment_sampling import guider_of, noise_of


def snapshot(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: snapshot(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(part) for part in value]
    return value


def same(one, two):
    if isinstance(one, torch.Tensor):
        return isinstance(two, torch.Tensor) and torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return one is two or one == two


def state_of(model, guider, noise, text, z_ref):
    weights = {k: v.clone() for k, v in model.model.state_dict().items()}
    network = model.get_model_object("diffusion_model")
    return [
        snapshot(model.model_options),
        dict(model.object_patches),
        snapshot(model.wrappers),
        weights,
        network.forward_orig,
        network.rope_encode,
        snapshot({k: v for k, v in vars(guider).items() if k != "model_patcher"}),
        guider.model_patcher is model,
        vars(noise).copy(),
        snapshot(text),
        snapshot(z_ref),
    ]


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
@pytest.mark.parametrize("reference_strength", [1.0, 0.5])
@pytest.mark.parametrize("cancelled", [False, True])
def test_inputs_are_as_before(
    run, stage_two, text, z_ref, context, reference_strength, cancelled, monkeypatch
):
    model, noise = stage_two.clone(), noise_of(3)
    guider = guider_of(model, text, 3.0)
    before = state_of(model, guider, noise, text, z_ref)
    if cancelled:
        forward, calls = WanModel.forward_orig, []

        def interrupting(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == 6:
                comfy.model_management.interrupt_current_processing()
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(WanModel, "forward_orig", interrupting)

    def go():
        run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=noise,
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor([1.0, 0.8, 0.6, 0.0]),
            z_ref=z_ref,
            context=context,
            reference_strength=reference_strength,
        )

    if cancelled:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            go()
        assert len(calls) == 6  # stopped inside the step
        monkeypatch.undo()
        before[4] = model.get_model_object("diffusion_model").forward_orig
    else:
        go()
    after = state_of(model, guider, noise, text, z_ref)
    for place, (one, two) in enumerate(zip(before, after, strict=True)):
        assert same(one, two), f"part {place} changed"
