"""What gets a clear sentence before any model is loaded or called.

Every case runs a node with one bad input. The sentence must name the value, the rule and the way out;
a guard makes the test fail if a model is touched first.
"""

import logging
import re
from types import FunctionType, SimpleNamespace

import comfy.model_management
import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from comfy.ldm.wan.vae import WanVAE
from safetensors.torch import save_file
from swifti2v.nodes import load_models
from swifti2v.nodes.checks import compiler
from swifti2v.nodes.comfyui import memory
from swifti2v.nodes.pipeline import encode as encoding
from swifti2v.swifti2v_core.vae import strips
from torch.torch_version import TorchVersion

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


@pytest.fixture(scope="session")
def wan_model(pack):
    """Real, tiny, random Wan models by input and latent channels, through the host's own loader."""
    made = {}

    def make(channels, latents):
        if (channels, latents) not in made:
            network = WanModel(
                model_type="t2v",
                in_dim=channels,
                out_dim=latents,
                dim=128,
                ffn_dim=128,
                num_heads=1,
                num_layers=1,
                operations=comfy.ops.manual_cast,
            )
            weights = {k: torch.randn(v.shape) * 0.02 for k, v in network.state_dict().items()}
            made[channels, latents] = comfy.sd.load_diffusion_model_state_dict(weights)
        return made[channels, latents]

    return make


@pytest.fixture(scope="session")
def wan21_vae(pack):
    """A real, tiny, random Wan2.1 VAE (16 channels)."""
    network = WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]
    )
    return comfy.sd.VAE(sd={k: torch.randn(v.shape) * 0.02 for k, v in network.state_dict().items()})


@pytest.fixture(scope="session")
def no_wan(pack):
    """A MODEL of another family."""

    class LTXV(torch.nn.Module):
        diffusion_model = torch.nn.Linear(1, 1)

    return comfy.model_patcher.ModelPatcher(LTXV(), torch.device("cpu"), torch.device("cpu"))


@pytest.fixture(scope="session")
def checkpoints(workspace):
    """Files that are Wan checkpoints (``wan_<channels>``) or something else to a reader of the header."""
    folder = workspace / "models" / "diffusion_models"
    paths = [folder / f"wan_{channels}.safetensors" for channels in (16, 36, 96, 100, 148)]
    for path in paths:
        channels = int(path.stem.split("_")[1])
        save_file({"patch_embedding.weight": torch.zeros(8, channels, 1, 2, 2)}, path)
    paths.append(folder / "other.safetensors")
    save_file({"transformer_blocks.0.weight": torch.zeros(8, 8)}, paths[-1])
    yield
    for path in paths:
        path.unlink()


@pytest.fixture
def kit(pack, stage_one, stage_two, vae, wan21_vae, wan_model, no_wan, checkpoints):
    """Valid values of every kind, and the inputs each node runs with when nothing is wrong."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    generator = torch.Generator().manual_seed(0)
    text = [[torch.zeros(1, 8, 4096), {}]]
    guider = comfy.samplers.CFGGuider(stage_two)
    guider.set_conds(text, text)
    values = {
        "STRING": "a string",
        "IMAGE": torch.rand(1, 96, 128, 3, generator=generator),
        "LATENT": {"samples": torch.randn(1, 48, 5, 6, 8, generator=generator)},
        "MODEL": stage_two,
        "VAE": vae,
        "CONDITIONING": text,
        "NOISE": Noise_RandomNoise(0),
        "GUIDER": guider,
        "SAMPLER": comfy.samplers.sampler_object("euler"),
        "SIGMAS": torch.tensor([1.0, 0.5, 0.0]),
    }
    image, latent = values["IMAGE"], values["LATENT"]
    size = {"width": 128, "height": 96, "frames": 9}
    none = {"high_noise_lora": "none", "low_noise_lora": "none", "low_noise_model": "none"}
    custom = {name.lower(): values[name] for name in ("NOISE", "GUIDER", "SAMPLER", "SIGMAS")}
    motion = torch.rand(9, 48, 64, 3, generator=generator)
    good = {
        "SwiftI2V_LoadStageI": {"high_noise_model": "tiny_stage1_motion.safetensors", **none},
        "SwiftI2V_LoadStageII": {"model_name": "tiny_stage2_detail.safetensors", "lora": "none"},
        "SwiftI2V_MotionSampler": {"model_high_noise": stage_one, "vae": vae, "image": image, **size},
        "SwiftI2V_CameraMotion": {"image": image, **size},
        "SwiftI2V_AnchorEncode": {"image": image, "motion": motion, "vae": vae, **size},
        "SwiftI2V_PromptRange": {"conditioning": text},
        "SwiftI2V_SegmentSampler": {"model": stage_two, "z_ref": latent},
        "SwiftI2V_SegmentSamplerAdvanced": {**custom, "z_ref": latent},
        "SwiftI2V_TemporalWindows": {"model": stage_two},
        "SwiftI2V_TiledVAEDecode": {"samples": latent, "vae": vae},
        "SwiftI2V_DecodeToVideo": {"samples": latent, "vae": vae},
    }
    return SimpleNamespace(
        values=values,
        good=good,
        image=image,
        latent=latent,
        motion=motion,
        text=text,
        stage_one=stage_one,
        stage_two=stage_two,
        vae=vae,
        wan21_vae=wan21_vae,
        wan=wan_model,
        no_wan=no_wan,
    )


@pytest.fixture
def guard(pack, monkeypatch):
    """Fail as soon as a model is loaded or called."""

    def refuse(*args, **kwargs):
        raise AssertionError("model work")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", refuse)
    monkeypatch.setattr(load_models, "load_model", refuse)
    monkeypatch.setattr(comfy.samplers.CFGGuider, "sample", refuse)
    monkeypatch.setattr(comfy.sd.VAE, "encode", refuse)
    monkeypatch.setattr(comfy.sd.VAE, "decode", refuse)
    monkeypatch.setattr(strips.StripEncoder, "encode", refuse)
    monkeypatch.setattr(strips.StripDecoder, "decode", refuse)


@pytest.fixture
def refused(guard, run, kit):
    """Run a node with good inputs but for the given ones and return the one sentence it answers."""

    def sentence(node_id, **bad):
        given = {
            name: value(kit) if isinstance(value, FunctionType) else value for name, value in bad.items()
        }
        with pytest.raises(ValueError) as error:
            run(node_id, **{**kit.good[node_id], **given})
        text = str(error.value)
        assert text.endswith(".") and "\n" not in text
        assert not re.search(r"[.!?] ", text), f"not one sentence: {text}"
        assert not re.search(r"\ba [aeiouAEIO][a-z]", text), f"a, not an: {text}"
        return text

    return sentence


@pytest.mark.parametrize(
    "node_id", sorted({*SIZED, *SEGMENTS, *DECODERS, "SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"})
)
def test_good_inputs_pass_all_checks_and_reach_the_model(guard, run, kit, node_id):
    """The guard works, and no case below is refused for another reason than its bad input."""
    if node_id == "SwiftI2V_CameraMotion":  # has no model to reach
        assert run(node_id, **kit.good[node_id])[0].shape == (9, 96, 128, 3)
        return
    with pytest.raises(AssertionError, match=r"^model work$"):
        run(node_id, **kit.good[node_id])


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


GEOMETRY = [
    *(
        case(
            node,
            f"{width}x{height}",
            "multiples of 32",
            f"nearest valid size is {near}",
            width=width,
            height=height,
        )
        for node in SIZED
        for width, height, near in (
            (130, 96, "128x96"),
            (128, 100, "128x96"),
            (112, 80, "128x96"),
        )
    ),
    # A14B takes multiples of 16.
    case(
        "SwiftI2V_MotionSampler",
        "648x352",
        "multiples of 16",
        "nearest valid size is 656x352",
        model_high_noise=lambda kit: kit.wan(36, 16),
        vae=lambda kit: kit.wan21_vae,
        width=648,
        height=352,
    ),
    *cases(
        SEGMENTS,
        "size is 112x80",
        "multiples of 32",
        "nearest valid size is 128x96",
        z_ref=samples(1, 48, 5, 5, 7),
    ),
    *(
        case(
            node,
            f"has {frames} frames",
            "4n+1 and at least 5",
            f"nearest valid number is {near}",
            frames=frames,
        )
        for node in SIZED
        for frames, near in ((80, 81), (82, 81))
    ),
    *cases(
        SEGMENTS,
        "has 1 latent frame",
        "the first one is the photo",
        "nearest valid number is 2 (5 frames)",
        z_ref=samples(1, 48, 1, 6, 8),
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            str(shape),
            "(1, 48, 5, 6, 8)",
            "must be the same clip",
            "connect the output of a segment sampler that used this z_ref",
            latent=samples(*shape),
        )
        for shape in ((1, 48, 5, 8, 8), (1, 48, 4, 6, 8), (2, 48, 5, 6, 8))
    ),
]

CHANNELS = [
    *cases(
        SEGMENTS,
        "z_ref has 16 channels",
        "Stage II needs 48",
        "encode it with the Wan2.2 VAE",
        z_ref=samples(1, 16, 5, 12, 16),
    ),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "latent has 16 channels",
        "Stage II needs 48",
        "Wan2.2 VAE",
        latent=samples(1, 16, 5, 6, 8),
    ),
    *cases(
        DECODERS,
        "samples has 16 channels",
        "this VAE decodes 48",
        "load the Wan2.1 VAE",
        samples=samples(1, 16, 5, 6, 8),
    ),
    *cases(
        DECODERS,
        "samples has 48 channels",
        "this VAE decodes 16",
        "load the Wan2.2 VAE",
        vae=lambda kit: kit.wan21_vae,
    ),
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
]

VALUES = [
    *(
        case(
            "SwiftI2V_PromptRange",
            f"start_frame is {start}",
            rule,
            f"nearest valid {near}",
            start_frame=start,
            end_frame=end,
        )
        for start, end, rule, near in (
            (40, 40, "end_frame 40, but a range must end after it starts", "end_frame is 41"),
            (40, 20, "end_frame 20, but a range must end after it starts", "end_frame is 41"),
        )
    ),
    case(
        "SwiftI2V_TemporalWindows",
        "window_frames is 5",
        "must be even and at least 2",
        "nearest valid value is 6",
        window_frames=5,
    ),
    *cases(
        SEGMENTS,
        "z_ref is empty (all zeros)",
        "needs the photo and the motion",
        "connect SwiftI2V Anchor Encode",
        z_ref=samples(1, 48, 5, 6, 8, fill=0.0),
    ),
    *(
        case(
            node,
            f"neighbors (N) is {n}",
            "a clip of 5 latent frames",
            "between 0 and 3",
            f"nearest valid value is {near}",
            neighbors=n,
        )
        for node in SEGMENTS
        for n, near in ((4, 3), (100, 3))
    ),
    *cases(
        SEGMENTS,
        "window has 33 latent frames",
        "at most 31",
        "segment_frames + neighbors of at most 30",
        z_ref=samples(1, 48, 33, 2, 2),
        segment_frames=32,
        time_positions="clamped",
    ),
    case(
        "SwiftI2V_SegmentSampler",
        "denoise is 0",
        "above 0 and at most 1",
        "nearest useful value is 0.05",
        denoise=0.0,
    ),
    *(
        case(node, f'timesteps is "{text}"', rule, '"1000, 750, 500, 250"', timesteps=text)
        for node in SAMPLERS
        for text, rule in (
            ("1000, many", "numbers separated by commas"),
            ("250, 500", "must fall from at most 1000 to more than 0"),
            ("500, 500", "must fall"),
            ("1200, 500", "at most 1000"),
            ("500, 0", "more than 0"),
            (",", "must fall"),
        )
    ),
    case("SwiftI2V_DecodeToVideo", "crf is 52", "h264 knows 0 to 51", "nearest valid value is 51", crf=52),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            *words,
            "fall at every step",
            "use a scheduler node with this model",
            sigmas=torch.tensor(values),
        )
        for values, words in (
            ([14.6, 3.0, 0.0], ("sigmas begins 14.6, 3, 0",)),
            ([1.01, 0.0], ("sigmas begins 1.01, 0",)),
            ([0.0, 0.5, 1.0], ("sigmas begins 0, 0.5, 1",)),
            ([1.0, 0.5, 0.5, 0.0], ("sigmas begins 1, 0.5, 0.5, 0",)),
            ([1.0, 0.5, -0.1], ("sigmas begins 1, 0.5, -0.1",)),
            ([1.0, float("nan"), 0.0], ("sigmas begins 1, nan, 0",)),
        )
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            "sigmas holds no step",
            "denoise 0 makes such a schedule",
            "at least one",
            sigmas=torch.tensor(values),
        )
        for values in ([], [0.0])
    ),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "start_segment is 1",
        "no latent holds the segments before it",
        "connect the latent",
        "or start at 0",
        start_segment=1,
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            f"start_segment is {start} and end_segment {end}",
            "the clip has 2 segments",
            "a start from 0 to 1",
            "an end above it, at most 2",
            start_segment=start,
            end_segment=given,
            latent=lambda kit: kit.latent,
        )
        for start, given, end in ((2, 0, 2), (1, 1, 1), (0, 3, 3))
    ),
]

NOT_FINITE = [
    case(node, f"{label} holds NaN or infinite values", "check the node that makes it", **{socket: spoil})
    for number in (float("nan"), float("inf"))
    for nodes, socket, label, spoil in (
        (SIZED, "image", "The photo", lambda kit, x=number: with_nan(kit.image, what=x)),
        (
            SIZED[2:],
            "motion",
            "The motion clip",
            lambda kit, x=number: with_nan(kit.motion, (4, 5, 6, 1), x),
        ),
        (SEGMENTS, "z_ref", "z_ref", spoiled_latent(number)),
        (SEGMENTS[1:], "latent", "latent", spoiled_latent(number)),
        (DECODERS, "samples", "samples", spoiled_latent(number)),
    )
    for node in nodes
]

BATCHES = [
    case(
        "SwiftI2V_AnchorEncode",
        "The motion clip has 9 frames for 2 photos",
        "one clip for each photo",
        "nearest valid number of frames is 10",
        image=lambda kit: kit.image.repeat(2, 1, 1, 1),
        motion=torch.rand(9, 48, 64, 3),
    ),
    case(
        "SwiftI2V_DecodeToVideo",
        "batch of 2 clips",
        "a file holds one",
        "pick one with LatentFromBatch",
        samples=samples(2, 48, 2, 6, 8),
    ),
    case(
        "SwiftI2V_AnchorEncode",
        "The motion clip is empty",
        "(0, 48, 64, 3)",
        "connect at least one frame",
        motion=torch.zeros(0, 48, 64, 3),
    ),
    *cases(
        SIZED,
        "The photo is empty",
        "(1, 0, 64, 3)",
        "connect at least one frame",
        image=torch.zeros(1, 0, 64, 3),
    ),
    *(
        case(
            node,
            f"{socket} has shape (1, 48, 0, 6, 8)",
            "none of them 0",
            **{socket: samples(1, 48, 0, 6, 8)},
        )
        for nodes, socket in ((SEGMENTS, "z_ref"), (SEGMENTS[1:], "latent"), (DECODERS, "samples"))
        for node in nodes
    ),
    *(
        case(
            node,
            f"{socket} has shape (1, 48, 6, 8)",
            "(batch, channels, latent frames, height, width)",
            **{socket: samples(1, 48, 6, 8)},
        )
        for nodes, socket in ((SEGMENTS, "z_ref"), (DECODERS, "samples"))
        for node in nodes
    ),
    *cases(
        SIZED,
        "The photo has shape (1, 96, 128)",
        "an IMAGE has (frames, height, width, 3)",
        image=torch.rand(1, 96, 128),
    ),
    *(
        case(
            node,
            f"{socket} carries {key}",
            "no place in a window",
            "remove the node that adds them",
            **{socket: [[torch.zeros(1, 8, 4096), {key: [torch.zeros(1)]}]]},
        )
        for node, socket in (
            ("SwiftI2V_SegmentSampler", "positive"),
            ("SwiftI2V_SegmentSampler", "negative"),
            ("SwiftI2V_MotionSampler", "positive"),
        )
        for key in ("time_dim_concat", "context_latents", "reference_latents")
    ),
]


@pytest.mark.parametrize(
    ("node_id", "bad", "words"), GEOMETRY + CHANNELS + MODELS + VALUES + NOT_FINITE + BATCHES
)
def test_sentence(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    for word in words:
        assert word in sentence


# --- The wrong kind of object on a socket -----------------------------------------------------------

SOCKETS = {
    "SwiftI2V_MotionSampler": {
        "model_high_noise": "MODEL",
        "model_low_noise": "MODEL",
        "vae": "VAE",
        "image": "IMAGE",
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
    },
    "SwiftI2V_CameraMotion": {"image": "IMAGE"},
    "SwiftI2V_AnchorEncode": {"image": "IMAGE", "motion": "IMAGE", "vae": "VAE", "keyframes": "IMAGE"},
    "SwiftI2V_PromptRange": {"conditioning": "CONDITIONING", "before": "CONDITIONING"},
    "SwiftI2V_SegmentSampler": {
        "model": "MODEL",
        "z_ref": "LATENT",
        "positive": "CONDITIONING",
        "negative": "CONDITIONING",
        "keyframes": "LATENT",
    },
    "SwiftI2V_SegmentSamplerAdvanced": {
        "noise": "NOISE",
        "guider": "GUIDER",
        "sampler": "SAMPLER",
        "sigmas": "SIGMAS",
        "z_ref": "LATENT",
        "latent": "LATENT",
        "keyframes": "LATENT",
    },
    "SwiftI2V_TemporalWindows": {"model": "MODEL"},
    "SwiftI2V_TiledVAEDecode": {"samples": "LATENT", "vae": "VAE"},
    "SwiftI2V_DecodeToVideo": {"samples": "LATENT", "vae": "VAE"},
}
KINDS = (
    "STRING",
    "IMAGE",
    "LATENT",
    "MODEL",
    "VAE",
    "CONDITIONING",
    "NOISE",
    "GUIDER",
    "SAMPLER",
    "SIGMAS",
)


def test_all_sockets_are_tried(pack):
    for node_id, sockets in SOCKETS.items():
        found = {i.id: i.io_type for i in pack.nodes[node_id].GET_SCHEMA().inputs if i.io_type in KINDS[1:]}
        assert found == sockets


@pytest.mark.parametrize(("node_id", "socket"), [(n, s) for n, sockets in SOCKETS.items() for s in sockets])
def test_wrong_kind(refused, kit, node_id, socket):
    wanted = SOCKETS[node_id][socket]
    # A GUIDER on SAMPLER is among the gaps below.
    for kind in [k for k in KINDS if k != wanted and (k, wanted) != ("GUIDER", "SAMPLER")]:
        sentence = refused(node_id, **{socket: kit.values[kind]})
        article = {"IMAGE": "an ", "SIGMAS": ""}.get(wanted, "a ")
        by_type = sentence.endswith(f", but must be {article}{wanted}.")
        # One tensor is told from another by its shape.
        by_shape = wanted == "IMAGE" and "has shape (3,), but an IMAGE has" in sentence
        assert by_type or (by_shape and kind == "SIGMAS"), sentence
        assert re.match(rf"({socket}|The (vae|photo|motion clip|Stage II model)) (is|has) ", sentence)


# --- A motion clip of another length is told and brought to length -----------------------------------


@pytest.mark.parametrize("given", [1, 5, 9, 10, 33])
def test_motion_clip_of_another_length(pack, run, kit, caplog, monkeypatch, given):
    encoded = []
    encode = encoding.encode_frames
    monkeypatch.setattr(
        encoding, "encode_frames", lambda vae, x: (encoded.append(x.clone()), encode(vae, x))[1]
    )
    clip = torch.linspace(0, 1, given)[:, None, None, None].expand(given, 96, 128, 3)
    with caplog.at_level(logging.INFO, logger="SwiftI2V"):
        z_ref = run("SwiftI2V_AnchorEncode", **{**kit.good["SwiftI2V_AnchorEncode"], "motion": clip})[0]
    assert z_ref["samples"].shape == (1, 48, 3, 6, 8)
    told = [record.getMessage() for record in caplog.records if record.name == "SwiftI2V"]
    sentence = (
        f"The motion clip has {given} frames and 9 are asked for: frames are repeated or skipped to "
        "cover the same time."
    )
    assert told == ([] if given == 9 else [sentence])
    assert [record.levelname for record in caplog.records if record.name == "SwiftI2V"] == [
        "WARNING"
    ] * len(told)
    frames = encoded[0]
    assert torch.equal(frames[:1], kit.image)  # the photo itself, whatever the motion's first frame is
    shades = frames[1:, 0, 0, 0]
    even = torch.linspace(0, 1, 9)[1:] if given > 1 else torch.zeros(8)
    assert (shades - even).abs().max() <= 0.5 / max(1, given - 1) + 1e-6  # the nearest frame in time
    assert all(shade in clip[:, 0, 0, 0] for shade in shades)  # never a blend


def test_plain_weights_with_denoise_1_are_told(guard, run, kit, caplog):
    inputs = {**kit.good["SwiftI2V_SegmentSampler"], "model": kit.stage_one}
    with (
        caplog.at_level(logging.WARNING, logger="SwiftI2V"),
        pytest.raises(AssertionError, match="model work"),
    ):
        run("SwiftI2V_SegmentSampler", **inputs, denoise=1.0)
    assert "the motion reference has no influence; 0.4 to 0.6 keeps the motion." in caplog.text
    caplog.clear()
    with pytest.raises(AssertionError, match="model work"):
        run("SwiftI2V_SegmentSampler", **inputs, denoise=0.5)
    assert not caplog.text


# --- Mistakes that look right at first sight --------------------------------------------------------


def photo_without_motion(kit):
    alone = kit.latent["samples"].clone()
    alone[:, :, 1:] = 0
    return {"samples": alone}


def guider_with(kit, text):
    guider = comfy.samplers.CFGGuider(kit.values["GUIDER"].model_patcher)
    guider.set_conds(text, text)
    return guider


def ranged(kit, *ranges):
    return [[kit.text[0][0], {"swifti2v_frames": frames}] for frames in ranges]


SUBTLE = [
    *(
        case(
            node,
            "positive has prompts from frame 17 on",
            "the clip has 17 frames, 0 to 16",
            "nearest valid start_frame is 16",
            **{socket: make},
        )
        for node, socket, make in (
            (SEGMENTS[0], "positive", lambda kit: ranged(kit, (40, 0), (17, 30))),
            (SEGMENTS[1], "guider", lambda kit: guider_with(kit, ranged(kit, (40, 0), (17, 30)))),
        )
    ),
    case(
        "SwiftI2V_SegmentSampler",
        "negative has prompts from frame 17 on",
        negative=lambda kit: [*kit.text, *ranged(kit, (17, 30))],  # one for the whole clip does not help
    ),
    case(
        "SwiftI2V_PromptRange",
        "conditioning has a range already (start_frame 3, end_frame 9)",
        "connect it to the input before",
        conditioning=lambda kit: ranged(kit, (3, 9)),
    ),
    *cases(SEGMENTS, "z_ref", "zeros", "connect SwiftI2V Anchor Encode", z_ref=photo_without_motion),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "sampler is a",
        "must be a SAMPLER",
        sampler=lambda kit: kit.values["GUIDER"],
    ),
    *cases(SAMPLERS, 'timesteps is "nan"', "1000, 750, 500, 250", timesteps="nan"),
    *(
        case("SwiftI2V_SegmentSampler", "positive", "must be a CONDITIONING", positive=value)
        for value in ([1, 2], ["ab"], [], [[torch.zeros(1, 8, 4096), None]])
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
    *(
        case(node, f"{name} holds no Wan model", "load", **{socket: name})
        for node, socket in (
            ("SwiftI2V_LoadStageI", "high_noise_model"),
            ("SwiftI2V_LoadStageII", "model_name"),
        )
        for name in ("other.safetensors",)
    ),
    case("SwiftI2V_DecodeToVideo", "filename_prefix", "output folder", filename_prefix="../../clip"),
    case(
        "SwiftI2V_DecodeToVideo", 'filename_prefix is ""', 'valid value is "SwiftI2V"', filename_prefix=""
    ),
    case("SwiftI2V_MotionSampler", "starts at sigma 0.978", "first timestep is 1000", timesteps="900, 500"),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "positive is 768 wide",
        "this model reads 4096",
        guider=lambda kit: guider_with(kit, [[torch.zeros(1, 77, 768), {}]]),
    ),
    case(
        "SwiftI2V_SegmentSampler",
        "positive is 768 wide",
        "this model reads 4096",
        "umt5",
        positive=[[torch.zeros(1, 77, 768), {}]],
    ),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), SUBTLE)
def test_subtle_mistakes(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("device", "triton", "compilers", "platform", "words"),
    [
        ("cuda", False, ["g++"], "linux", ("Triton", "triton-windows")),
        ("cuda", True, [], "linux", ("gcc, clang, cc, g++",)),
        ("cuda", False, [], "win32", ("Triton", "triton-windows")),
        ("cpu", True, ["gcc"], "linux", ("none of g++, clang++, c++, cl",)),
    ],
)
@pytest.mark.parametrize("node_id", ["SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"])
def test_a_missing_compiler_is_said_before_loading(
    pack, refused, monkeypatch, node_id, device, triton, compilers, platform, words
):
    facts(pack, monkeypatch, device, triton, compilers, platform)
    sentence = refused(node_id, compile_blocks=True)
    for word in ("compile_blocks is on", "switch compile_blocks off", *words):
        assert word in sentence


@pytest.mark.parametrize("node_id", ["SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"])
def test_an_old_pytorch_is_said_before_loading(pack, refused, monkeypatch, node_id):
    facts(pack, monkeypatch, "cpu", True, ["g++"], "linux")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1+cu128"))
    assert "needs PyTorch 2.8 and this is 2.7.1+cu128; update" in refused(node_id, compile_blocks=True)


@pytest.mark.parametrize(
    ("device", "triton", "compilers", "platform"),
    [
        ("cuda", True, ["gcc"], "linux"),
        ("cuda", True, [], "win32"),  # Triton for Windows brings its compiler
        ("cpu", False, ["cl"], "win32"),
        ("cpu", False, ["clang++"], "darwin"),
    ],
)
def test_what_is_enough_to_compile(pack, monkeypatch, device, triton, compilers, platform):
    facts(pack, monkeypatch, device, triton, compilers, platform)
    compiler.check_can_compile(memory.device_type())


def facts(pack, monkeypatch, device, triton, compilers, platform):
    """Another machine: its device, whether Triton is installed, its compilers and system."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(device))
    monkeypatch.setattr(compiler, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(compiler.sys, "platform", platform)
