"""Stage I against the host's own nodes: both kinds of model, one and two experts."""

import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.swifti2v_core.stage_one import camera

import nodes as host_nodes


def host_a14b(experts, vae, photo, text, width, height, frames, steps, switch, cfg):
    """WanImageToVideo and two KSamplerAdvanced, as the public workflows wire them."""
    from comfy_extras.nodes_wan import WanImageToVideo

    with torch.inference_mode():
        positive, negative, latent = WanImageToVideo.execute(
            *text, vae, width, height, frames, 1, start_image=photo
        ).args
        sampler = host_nodes.KSamplerAdvanced()
        options = (cfg, "euler", "simple", positive, negative)
        half = sampler.sample(
            experts[0], "enable", 5, steps, *options, latent, 0, switch, return_with_leftover_noise="enable"
        )[0]
        return sampler.sample(
            experts[1],
            "disable",
            5,
            steps,
            *options,
            half,
            switch,
            steps,
            return_with_leftover_noise="disable",
        )[0]["samples"]


@pytest.mark.parametrize(("steps", "switch", "cfg"), [(4, 2, 1.0), (10, 4, 3.0)])
def test_two_experts_equal_the_hosts_two_samplers(run, experts, vae16, photo, text, steps, switch, cfg):
    small = torch.nn.functional.interpolate(photo.movedim(-1, 1), (48, 64), mode="area").movedim(1, -1)
    frames, latent = run(
        "SwiftI2V_MotionSampler",
        model_high_noise=experts[0],
        model_low_noise=experts[1],
        vae=vae16,
        image=small,
        positive=text[0],
        negative=text[1],
        width=64,
        height=48,
        frames=9,
        seed=5,
        steps=steps,
        cfg=cfg,
    )
    theirs = host_a14b(experts, vae16, small, text, 64, 48, 9, steps, switch, cfg)
    assert latent["samples"].shape == theirs.shape == (1, 16, 3, 6, 8)
    assert (latent["samples"] - theirs).abs().max() <= 1e-4 * theirs.abs().max()
    assert frames.shape == (9, 48, 64, 3)
    with torch.inference_mode():
        assert torch.allclose(frames, vae16.decode(theirs)[0], atol=1e-3)


def test_the_experts_share_the_steps_at_sigma_09(run, experts, vae16, photo, monkeypatch):
    seen = []
    forward = WanModel.forward_orig

    def spy(self, x, t, *args, **kwargs):
        seen.append((self is experts[0].model.diffusion_model, round(float(t.flatten()[0]))))
        return forward(self, x, t, *args, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", spy)
    options = {"vae": vae16, "image": photo, "width": 32, "height": 32, "frames": 5}
    high, low = experts
    run("SwiftI2V_MotionSampler", model_high_noise=high, model_low_noise=low, **options)
    assert seen == [(True, 1000), (True, 938), (False, 833), (False, 625)]
    seen.clear()
    run(
        "SwiftI2V_MotionSampler",
        model_high_noise=high,
        model_low_noise=high,
        timesteps="1000, 500",
        **options,
    )
    assert seen == [(True, 1000), (True, 833)]


def test_ti2v_equals_the_hosts_clean_first_frame(run, stage_one, vae, photo, text):
    from comfy_extras.nodes_wan import Wan22ImageToVideoLatent

    small = torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 128), mode="area").movedim(1, -1)
    frames, latent = run(
        "SwiftI2V_MotionSampler",
        model_high_noise=stage_one,
        vae=vae,
        image=small,
        positive=text[0],
        width=128,
        height=64,
        frames=9,
        seed=5,
    )
    with torch.inference_mode():
        start = Wan22ImageToVideoLatent.execute(vae, 128, 64, 9, 1, start_image=small).args[0]
        theirs = host_nodes.KSampler().sample(
            stage_one, 5, 4, 1.0, "euler", "simple", text[0], text[1], start
        )[0]
        clean = vae.encode(small)
    assert (latent["samples"] - theirs["samples"]).abs().max() <= 1e-5
    assert torch.allclose(latent["samples"][:, :, :1], clean, atol=1e-5)
    assert frames.shape == (9, 64, 128, 3)


def test_the_tiny_stage_one_moves_the_photo(run, stage_one, vae, photo):
    """A real photo through the trained model: it starts at the photo and moves."""
    frames, _ = run(
        "SwiftI2V_MotionSampler",
        model_high_noise=stage_one,
        vae=vae,
        image=photo,
        width=320,
        height=160,
        frames=9,
    )
    small = torch.nn.functional.interpolate(photo.movedim(-1, 1), (160, 320), mode="area").movedim(1, -1)
    with torch.inference_mode():
        seen = vae.decode(vae.encode(small))[0]
    error = (frames[0] - seen[0]).pow(2).mean()
    assert 10 * torch.log10(1 / error) > 30
    assert (frames[-1] - frames[0]).abs().mean() > 0.005


def test_camera_motion_node_is_the_core(pack, run, photo):
    clip = run("SwiftI2V_CameraMotion", image=photo, width=128, height=64, frames=9, rotate=5.0, seed=4)[0]
    move = camera.CameraMove(0.05, 0.0, 1.15, 5.0, 0.0, 0.0, "smooth", 4)
    assert torch.equal(clip, camera.camera_motion(photo, 128, 64, 9, move))
