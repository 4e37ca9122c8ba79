"""Bad inputs for one node each, and the words of the sentence that refuses them."""

import comfy.samplers
import pytest
import torch

SIZED = ("SwiftI2V_MotionSampler", "SwiftI2V_CameraMotion", "SwiftI2V_AnchorEncode")
SEGMENTS = ("SwiftI2V_SegmentSampler", "SwiftI2V_SegmentSamplerAdvanced")
SAMPLERS = ("SwiftI2V_MotionSampler", "SwiftI2V_SegmentSampler")
DECODERS = ("SwiftI2V_TiledVAEDecode", "SwiftI2V_DecodeToVideo")
STAGE_ONE_REMEDY = "load Wan2.2-I2V-A14B (36 channels) or Wan2.2-TI2V-5B (48 channels)"
STAGE_TWO_REMEDY = "load SwiftI2V Stage II weights (96 channels) or Wan2.2-TI2V-5B (48 channels)"
FUN = {
    100: "the Wan2.2-Fun-5B InP or Camera variant (48 noisy + 4 mask + 48 image channels)",
    148: "the Wan2.2-Fun-5B Control variant (48 noisy + 48 control + 4 mask + 48 image channels)",
}


def with_nan(value, at=(0, -1, -1, -1), what=float("nan")):
    spoiled = value.clone()
    spoiled[at] = what
    return spoiled


def samples(*shape, fill=None):
    return {"samples": torch.randn(*shape) if fill is None else torch.full(shape, fill)}


def spoiled_latent(what):
    return lambda kit: {"samples": with_nan(kit.latent["samples"], (0, 5, 2, 3, 4), what)}


def other_guider(get_model):
    def make(kit):
        guider = comfy.samplers.CFGGuider(get_model(kit))
        guider.set_conds(kit.text, kit.text)
        return guider

    return make


def case(node_id, *words, **bad):
    name = node_id.removeprefix("SwiftI2V_")
    return pytest.param(node_id, bad, words, id=f"{name}-{'-'.join(bad)}-{words[0][:40]}")


def cases(nodes, *words, **bad):
    """The same bad input in several nodes."""
    return [case(node, *words, **bad) for node in nodes]


def both_segment_samplers(get_model, *words):
    """The same model on the MODEL socket and inside a GUIDER."""
    return (
        case("SwiftI2V_SegmentSampler", *words, model=get_model),
        case("SwiftI2V_SegmentSamplerAdvanced", *words, guider=other_guider(get_model)),
    )


def guider_with(kit, text):
    guider = comfy.samplers.CFGGuider(kit.values["GUIDER"].model_patcher)
    guider.set_conds(text, text)
    return guider


def ranged(kit, *ranges):
    return [[kit.text[0][0], {"swifti2v_frames": frames}] for frames in ranges]


def sentence_of(run, node_id, **inputs):
    """Run a node that refuses its inputs; return its sentence."""
    with pytest.raises(ValueError) as error:
        run(node_id, **inputs)
    return str(error.value)
