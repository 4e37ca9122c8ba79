"""MODEL and VAE: of the right family, with the right channels."""

import pytest
from refusals import both_segment_samplers, case, cases

STAGE_ONE_REMEDY = "load Wan2.2-I2V-A14B (36 channels) or Wan2.2-TI2V-5B (48 channels)"
STAGE_TWO_REMEDY = "load SwiftI2V Stage II weights (96 channels) or Wan2.2-TI2V-5B (48 channels)"
FUN = {
    100: "the Wan2.2-Fun-5B InP or Camera variant (48 noisy + 4 mask + 48 image channels)",
    148: "the Wan2.2-Fun-5B Control variant (48 noisy + 48 control + 4 mask + 48 image channels)",
}

MODELS = [
    # A text-to-video expert as Stage I, in a file and on the socket, as either expert.
    *(
        case(
            "SwiftI2V_LoadStageI",
            "The Stage I model wan_16.safetensors has 16 input channels",
            "a text-to-video model that cannot take a photo",
            STAGE_ONE_REMEDY,
            **{socket: "wan_16.safetensors"},
        )
        for socket in ("high_noise_model", "low_noise_model")
    ),
    *(
        case(
            "SwiftI2V_MotionSampler",
            f"{socket} has 16 input channels",
            "a text-to-video model that cannot take a photo",
            STAGE_ONE_REMEDY,
            **{socket: lambda kit: kit.wan(16, 16)},
        )
        for socket in ("model_high_noise", "model_low_noise")
    ),
    *(
        case(
            "SwiftI2V_MotionSampler",
            f"model_high_noise has {channels} input channels",
            f"it is {FUN.get(channels, 'a SwiftI2V Stage II model')}",
            STAGE_ONE_REMEDY,
            model_high_noise=lambda kit, channels=channels: kit.wan(channels, 48),
        )
        for channels in (96, 100, 148)
    ),
    *(
        case(
            "SwiftI2V_LoadStageI",
            f"The Stage I model wan_{channels}.safetensors has {channels} input channels",
            f"it is {FUN.get(channels, 'a SwiftI2V Stage II model')}",
            STAGE_ONE_REMEDY,
            **{socket: f"wan_{channels}.safetensors"},
        )
        for socket in ("high_noise_model", "low_noise_model")
        for channels in (96, 100, 148)
    ),
    *(
        case(
            "SwiftI2V_LoadStageII",
            f"has {channels} input channels",
            f"that is {FUN[channels]}, which expects a mask"
            if channels in FUN
            else "that is no Stage II model",
            STAGE_TWO_REMEDY,
            model_name=f"wan_{channels}.safetensors",
        )
        for channels in (16, 36, 100, 148)
    ),
    *(
        param
        for channels in (16, 36, 100, 148)
        for param in both_segment_samplers(
            lambda kit, channels=channels: kit.wan(channels, 16 if channels < 48 else 48),
            f"has {channels} input channels",
            f"that is {FUN[channels]}" if channels in FUN else "that is no Stage II model",
            STAGE_TWO_REMEDY,
        )
    ),
    # Wan2.1-Fun-Control has 48 input channels, too, but 16-channel latents.
    *both_segment_samplers(
        lambda kit: kit.wan(48, 16),
        "makes 16-channel latents",
        "Stage II needs 48",
        "load SwiftI2V Stage II weights or Wan2.2-TI2V-5B",
    ),
    case(
        "SwiftI2V_MotionSampler",
        "model_high_noise makes 48-channel latents and model_low_noise 16",
        "must be of one kind",
        "load the pair of Wan2.2-I2V-A14B",
        model_low_noise=lambda kit: kit.wan(36, 16),
    ),
    # Another family.
    *(
        case(
            "SwiftI2V_MotionSampler",
            f"{socket} is of the class LTXV",
            "needs a Wan model",
            "Wan2.2-I2V-A14B or TI2V-5B",
            **{socket: lambda kit: kit.no_wan},
        )
        for socket in ("model_high_noise", "model_low_noise")
    ),
    case(
        "SwiftI2V_TemporalWindows",
        "model is of the class LTXV",
        "needs a Wan model",
        model=lambda kit: kit.no_wan,
    ),
    *both_segment_samplers(
        lambda kit: kit.no_wan,
        "The Stage II model is of the class LTXV",
        "needs a Wan model",
        "TI2V-5B or SwiftI2V weights",
    ),
    # Wan2.1-Fun-Control: 48 input channels like TI2V-5B, but 16-channel latents.
    case(
        "SwiftI2V_MotionSampler",
        "model_high_noise has 48 input channels",
        "16-channel latents",
        STAGE_ONE_REMEDY,
        model_high_noise=lambda kit: kit.wan(48, 16),
        vae=lambda kit: kit.wan21_vae,
    ),
]

AUTOENCODERS = [
    *cases(
        ("SwiftI2V_AnchorEncode", "SwiftI2V_MotionSampler"),
        "VAE makes 16-channel latents",
        "48 are needed",
        "load the Wan2.2 VAE",
        vae=lambda kit: kit.wan21_vae,
    ),
    case(
        "SwiftI2V_MotionSampler",
        "VAE makes 48-channel latents",
        "16 are needed",
        "load the Wan2.1 VAE",
        model_high_noise=lambda kit: kit.wan(36, 16),
    ),
]

FILES = [
    *(
        case(node, f"{name} holds no Wan model", "load", **{socket: name})
        for node, socket in (
            ("SwiftI2V_LoadStageI", "high_noise_model"),
            ("SwiftI2V_LoadStageII", "model_name"),
        )
        for name in ("other.safetensors",)
    ),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), MODELS + AUTOENCODERS + FILES)
def test_unfit_models_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence
