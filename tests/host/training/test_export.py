"""Exported weights in a real ComfyUI, and sampling in training against sampling in the nodes."""

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy.taesd.taehv import TAEHV
from safetensors.torch import load_file, save_file
from swifti2v.nodes.checks import models as model_checks
from swifti2v.nodes.comfyui import models, sampling
from tiny_training import make_dataset, project, stage_one, stage_two

import nodes as host_nodes
from swifti2v_core.sigmas import even_timesteps, flow_sigmas
from swifti2v_core.stage_two.segment_loop import clean_mask
from swifti2v_core.stage_two.segments import plan_segments
from swifti2v_train import commands, export
from swifti2v_train.config import Autoencoder, Export, Network
from swifti2v_train.networks.autoencoder import load_autoencoder
from swifti2v_train.networks.native_keys import load_native, to_native
from swifti2v_train.networks.sampling import generate_motion, generate_segments, motion_input
from swifti2v_train.networks.tiny_vae import TinyVAE
from swifti2v_train.networks.window_transformer import Shape, empty_network, network_from

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"
# As wide and as deep as the tiny models, which have text embeddings of ComfyUI's width.
NETWORK = Network(heads=2, layers=2, ffn_dim=64, text_dim=4096)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), text_dim=4096)


def export_to(workspace, run, name, *, merged="", folder="diffusion_models"):
    """Export a run into ComfyUI's folders, under a name that no other test uses."""
    models = workspace / "models"
    file = str(models / folder / name)
    merged_file = str(models / "diffusion_models" / merged) if merged else ""
    export.run(project("", export=Export(run=run, file=file, merged_file=merged_file, dtype="fp32")))
    folder_paths.filename_list_cache.clear()
    return name


def load_stage_two(run, name, lora="none"):
    return run("SwiftI2V_LoadStageII", model_name=name, lora=lora, weight_dtype="default")


def sample(run, model, z_ref, text, **options):
    """The segment sampler's result for a reference, by ComfyUI's own sampling."""
    options = {"denoise": 1.0, "drift_control": 0.0, "seed": 3, **options}
    return run("SwiftI2V_SegmentSampler", model=model, z_ref=z_ref, positive=text[0], **options)[0][
        "samples"
    ]


def distance(one, two):
    return float((one - two).norm() / two.norm())


@pytest.fixture(scope="module")
def base(workspace):
    """A random 48-channel model like Wan2.2-TI2V-5B."""
    torch.manual_seed(0)
    network = empty_network(Shape.new(NETWORK, 48, 48))
    torch.nn.init.normal_(network.proj_out.weight, std=0.02)
    path = workspace / "models" / "diffusion_models" / "train_base.safetensors"
    save_file({key: value.contiguous() for key, value in to_native(network.state_dict()).items()}, path)
    folder_paths.filename_list_cache.clear()
    return path


@pytest.fixture(scope="module")
def adapted(workspace, dataset, base, tmp_path_factory):
    """A LoRA run on the base, exported as adapter and merged."""
    run = str(tmp_path_factory.mktemp("run") / "lora")
    settings = stage_two(
        run, steps=4, base=str(base), method="lora", lora_rank=4, lora_alpha=8, learning_rate=1e-2
    )
    commands.stage2(project(dataset, stage2=settings))
    adapter = export_to(
        workspace, run, "train_adapter.safetensors", merged="train_merged.safetensors", folder="loras"
    )
    return adapter, "train_merged.safetensors"


def test_full_weights_load_in_the_stock_loader_and_in_ours(
    pack, run, workspace, dataset, z_ref, text, tmp_path
):
    settings = stage_two(tmp_path / "run", steps=2, network=NETWORK)
    commands.stage2(project(dataset, stage2=settings))
    name = export_to(workspace, settings.output, "train_full.safetensors")
    model, kind = load_stage_two(run, name)
    assert kind == "concat"
    stock = models.with_shift(host_nodes.UNETLoader().load_unet(name, "default")[0], 5.0)
    assert torch.equal(sample(run, model, z_ref, text), sample(run, stock, z_ref, text))


def test_an_adapter_on_its_base_is_the_merged_model(run, base, adapted, z_ref, text):
    adapter, merged = adapted
    model, kind = load_stage_two(run, base.name, adapter)
    whole, whole_kind = load_stage_two(run, merged)
    assert kind == whole_kind == "concat"
    theirs = sample(run, whole, z_ref, text)
    assert distance(sample(run, model, z_ref, text), theirs) <= 1e-5
    plain, plain_kind = load_stage_two(run, base.name)
    assert plain_kind == "plain"
    assert distance(sample(run, plain, z_ref, text), theirs) > 1e-3


def test_an_adapter_works_with_weights_kept_in_ram(run, base, adapted, z_ref, text, monkeypatch):
    """As on a small card: ComfyUI patches offloaded weights at every use."""
    adapter, merged = adapted
    theirs = sample(run, load_stage_two(run, merged)[0], z_ref, text)
    load, offloaded = ModelPatcher.load, []

    def load_little(self, device_to=None, **_):
        load(self, device_to, lowvram_model_memory=64)
        offloaded.append(bool(self.model.diffusion_model.patch_embedding.weight_function))

    monkeypatch.setattr(ModelPatcher, "load", load_little)
    ours = sample(run, load_stage_two(run, base.name, adapter)[0], z_ref, text)
    assert offloaded and all(offloaded)
    assert distance(ours, theirs) <= 1e-5


def test_an_adapter_works_through_the_stock_lora_loader(pack, run, base, adapted, z_ref, text):
    adapter, merged = adapted
    loaded = host_nodes.UNETLoader().load_unet(base.name, "default")[0]
    patched = host_nodes.LoraLoaderModelOnly().load_lora_model_only(loaded, adapter, 1.0)[0]
    model = models.with_shift(patched, 5.0)
    assert model_checks.read_stage_two_kind(model) == "concat"
    theirs = sample(run, load_stage_two(run, merged)[0], z_ref, text)
    assert distance(sample(run, model, z_ref, text), theirs) <= 1e-5
    # The model that was patched goes back to what it was, also in the shape of its weight.
    assert model_checks.read_stage_two_kind(loaded) == "plain"
    alone = load_stage_two(run, base.name)[0]
    again = models.with_shift(loaded, 5.0)
    assert torch.equal(sample(run, again, z_ref, text), sample(run, alone, z_ref, text))


def test_the_nodes_sample_as_rollouts_in_training_do(pack, run, stage_two, z_ref, text):
    """The same noise, schedule and windows; latents in the network's own space on our side."""
    space = stage_two.get_model_object("latent_format")
    reference = space.process_in(z_ref["samples"])
    noise = sampling.SeededNoise(3).generate_noise(z_ref)
    state = {
        key: value.float() for key, value in load_native(TINY / "tiny_stage2_detail.safetensors").items()
    }
    plan = plan_segments(reference.shape[2])
    made = generate_segments(network_from(state), reference, reference, text[0][0][0], noise, plan)
    assert distance(space.process_out(made), sample(run, stage_two, z_ref, text)) <= 1e-4


def test_stage_one_samples_as_the_node_does(pack, run, stage_one, vae, photo, text):
    options = {"width": 128, "height": 64, "frames": 9, "seed": 3, "positive": text[0]}
    theirs = run("SwiftI2V_MotionSampler", model_high_noise=stage_one, vae=vae, image=photo, **options)
    latents = theirs[1]["samples"]
    space = stage_one.get_model_object("latent_format")
    known = space.process_in(latents)
    noise = sampling.SeededNoise(3).generate_noise({"samples": latents})
    state = {
        key: value.float() for key, value in load_native(TINY / "tiny_stage1_motion.safetensors").items()
    }
    sigmas = flow_sigmas(even_timesteps(4), 5.0)
    made = generate_motion(
        network_from(state), torch.zeros_like(known), known, text[0][0][0], noise, sigmas
    )
    assert distance(space.process_out(made), latents) <= 1e-4


def test_the_input_of_a14b_is_the_hosts(pack, experts, text):
    """Noise, mask and image in the order in which ComfyUI concatenates them."""
    generator = torch.Generator().manual_seed(0)
    noisy, photo = torch.randn(2, 1, 16, 3, 6, 8, generator=generator)
    model = experts[0].model
    space = model.latent_format
    concat = model.concat_cond(
        noise=noisy,
        device="cpu",
        concat_latent_image=space.process_out(photo),
        concat_mask=clean_mask(3, 1, 6, 8),
    )
    torch.testing.assert_close(motion_input(noisy, photo), torch.cat((noisy, concat), dim=1))


def test_the_tiny_autoencoder_is_the_hosts():
    state = {key: value.float() for key, value in load_file(TINY / "tiny_vae48.safetensors").items()}
    ours = TinyVAE()
    ours.load_state_dict(state)
    video = torch.rand(2, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0))
    for parallel in (True, False):
        theirs = TAEHV(48, parallel=parallel)
        theirs.load_state_dict(state)
        with torch.inference_mode():
            latents = theirs.encode(video)
            torch.testing.assert_close(ours.encode(video), latents)
            torch.testing.assert_close(ours.decode(latents), theirs.decode(latents))


def test_a_trained_autoencoder_loads_as_a_vae(workspace, stage_two, tmp_path):
    settings = Autoencoder(
        output=str(tmp_path / "run"), sources=(str(TINY / "photos" / "life.jpg"),), steps=2, batch_size=1,
        width=64, height=64, frames=5,
    )  # fmt: skip
    commands.autoencoder(project("", autoencoder=settings))
    name = export_to(workspace, settings.output, "train_vae.safetensors", folder="vae")
    loaded = host_nodes.VAELoader().load_vae(name)[0]
    ours = load_autoencoder(workspace / "models" / "vae" / name)
    space = stage_two.get_model_object("latent_format")
    clip = torch.rand(5, 64, 64, 3)
    with torch.inference_mode():
        latents = ours.encode(clip.movedim(-1, 0)[None])
        torch.testing.assert_close(space.process_in(loaded.encode(clip)), latents)
        pixels = ours.decode(latents)[0].movedim(0, -1)
        made = loaded.decode(space.process_out(latents))[0]
        torch.testing.assert_close(made.clamp(0, 1), pixels)


@pytest.mark.parametrize(("expert", "channels"), [("both", 48), ("high", 16)])
def test_stage_one_loads_as_a_motion_model(pack, run, workspace, tmp_path, expert, channels):
    folder = make_dataset(tmp_path / "data", lengths=(3,), channels=channels, text_dim=4096)
    settings = stage_one(tmp_path / "run", steps=1, network=NETWORK, expert=expert)
    commands.stage1(project(folder, stage1=settings))
    name = export_to(workspace, settings.output, f"train_motion_{channels}.safetensors")
    none = {"low_noise_model": "none", "high_noise_lora": "none", "low_noise_lora": "none"}
    model = run("SwiftI2V_LoadStageI", high_noise_model=name, **none, weight_dtype="default")[0]
    assert model_checks.read_stage_one_latents(model, "the model") == channels
