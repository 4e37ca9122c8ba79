"""What gets a clear sentence before any model is loaded or called.

Every case runs a node with one bad input. The sentence must name the value, the rule and the way out;
a guard makes the test fail if a model is used first.
"""

import re
from types import FunctionType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

# ComfyUI is imported inside the fixtures: pytest may load this file before it has been booted.


@pytest.fixture(scope="session")
def wan_model():
    """Real, tiny, random Wan models by input and latent channels, through the host's own loader."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.wan.model import WanModel

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
def wan21_vae():
    """A real, tiny, random Wan2.1 VAE (16 channels)."""
    import comfy.sd
    from comfy.ldm.wan.vae import WanVAE

    network = WanVAE(
        dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]
    )
    return comfy.sd.VAE(sd={k: torch.randn(v.shape) * 0.02 for k, v in network.state_dict().items()})


@pytest.fixture(scope="session")
def no_wan():
    """A MODEL of another family."""
    from comfy.model_patcher import ModelPatcher

    class LTXV(torch.nn.Module):
        diffusion_model = torch.nn.Linear(1, 1)

    return ModelPatcher(LTXV(), torch.device("cpu"), torch.device("cpu"))


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
def kit(stage_one, stage_two, vae, wan21_vae, wan_model, no_wan, checkpoints):
    """Valid values of every kind, and the inputs each node runs with when nothing is wrong."""
    import comfy.samplers
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
        "AUDIO": {"waveform": torch.zeros(1, 2, 4800), "sample_rate": 48000},
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
def guard(monkeypatch):
    """Fail as soon as a model is loaded or called."""

    def refuse(*args, **kwargs):
        raise AssertionError("model work")

    for name in (
        "comfy.model_management.load_models_gpu",
        "comfy.samplers.CFGGuider.sample",
        "comfy.sd.VAE.encode",
        "comfy.sd.VAE.decode",
        "swifti2v.nodes.load_models.load_model",
        "swifti2v.swifti2v_core.vae.strips.StripEncoder.encode",
        "swifti2v.swifti2v_core.vae.strips.StripDecoder.decode",
    ):
        monkeypatch.setattr(name, refuse)


@pytest.fixture
def refused(guard, run, kit):
    """Run a node with good inputs but for the given ones and return the one sentence that refuses them."""

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


@pytest.fixture
def small_machine(monkeypatch):
    """A machine of 1 GiB."""
    monkeypatch.setattr("swifti2v.nodes.comfyui.memory.total_bytes", lambda device: 2**30)
