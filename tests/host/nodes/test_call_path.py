"""From a sampler's ``execute`` to ComfyUI's sampling every call can be followed by name."""

import sys

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

PATH = ["execute", "redraw", "_redraw_clip", "run_segments", "denoise", "sample"]


@pytest.fixture
def calls(monkeypatch):
    """The functions that ran when ComfyUI's sampling began, outermost first."""
    names = []

    def sample(self, noise, latent, *args, **kwargs):
        frame = sys._getframe(1)
        while frame and "run_node" not in names:
            names.insert(0, frame.f_code.co_name)
            frame = frame.f_back
            if frame and frame.f_code.co_name == "run_node":
                raise KeyboardInterrupt
        return latent

    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample", sample)
    return names


def test_the_advanced_sampler_reaches_comfyui_in_six_calls(run, stage_two, z_ref, text, calls):
    guider = comfy.samplers.CFGGuider(stage_two)
    guider.set_conds(*text)
    sampling = {"sampler": comfy.samplers.sampler_object("euler"), "sigmas": torch.tensor([1.0, 0.0])}
    with pytest.raises(KeyboardInterrupt):
        run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(1),
            guider=guider,
            z_ref=z_ref,
            **sampling,
        )
    assert calls[calls.index("execute") :] == PATH


def test_the_simple_sampler_fills_the_sockets_of_the_advanced_one(run, stage_two, z_ref, calls):
    with pytest.raises(KeyboardInterrupt):
        run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, seed=1, steps=1)
    assert calls[calls.index("execute") :] == ["execute", "checked", *PATH]
