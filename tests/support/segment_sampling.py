"""One run of the advanced segment sampler, and the sockets that it takes."""

import comfy.samplers
import torch


def noise_of(seed):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    return Noise_RandomNoise(seed)


def guider_of(model, text, cfg):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*text)
    guider.set_cfg(cfg)
    return guider


def advanced(run, model, text, z_ref, cfg=1.0, sampler="euler", seed=3, sigmas=None, **options):
    return run(
        "SwiftI2V_SegmentSamplerAdvanced",
        noise=noise_of(seed),
        guider=guider_of(model, text, cfg),
        sampler=comfy.samplers.sampler_object(sampler),
        sigmas=torch.tensor([1.0, 0.9375, 5 / 6, 0.625, 0.0]) if sigmas is None else sigmas,
        z_ref=z_ref,
        **{"drift_control": 0.0, **options},  # the host has none
    )[0]["samples"]
