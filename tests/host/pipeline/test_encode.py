"""Encoding through the nodes, with ComfyUI's VAE around the autoencoder."""

import pytest
import torch
from swifti2v.nodes.pipeline.vae_plans import Planner
from swifti2v.swifti2v_core.reference import hybrid
from swifti2v.swifti2v_core.vae import memory_plan
from swifti2v.swifti2v_core.vae import strips as streaming

WIDTH, HEIGHT, FRAMES = 512, 32, 13


@pytest.fixture(scope="module")
def motion():
    return torch.rand(FRAMES, 32, 512, 3, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def expected(autoencoder, photo, motion):
    """The undivided encode of the clip."""
    settings = hybrid.ReferenceSettings(WIDTH, HEIGHT, FRAMES)
    clip = torch.cat(list(hybrid.reference_chunks(photo, motion, settings)))
    with torch.inference_mode():
        return autoencoder.encode((clip * 2 - 1).movedim(-1, 0)[None])


@pytest.fixture
def encoded(run, host_vae, photo, motion):
    """Encode the clip through the node."""
    size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}

    def encode():
        return run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=host_vae, **size)[0]["samples"]

    return encode


def test_the_reference_is_encoded_in_pieces(encoded, expected):
    assert (encoded() - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_out_of_memory_retries_in_less_memory_with_the_same_latent(
    encoded, expected, host_vae, monkeypatch, failures
):
    # RAM that is not what the encode computes in, as beside a GPU.
    monkeypatch.setattr(Planner, "_most_ram", lambda _: float("inf"))
    front, plans = streaming.StripEncoder._front, []

    def failing(encoder, x, *args):
        if encoder._plan not in plans:
            plans.append(encoder._plan)
        if len(plans) <= failures and x.shape[1] == 4:
            raise torch.OutOfMemoryError("injected")
        return front(encoder, x, *args)

    monkeypatch.setattr(streaming.StripEncoder, "_front", failing)
    assert (encoded() - expected).abs().max() <= 1e-5 * expected.abs().max()
    encoder = host_vae.first_stage_model.encoder
    costs = [memory_plan.encode_cost(encoder, HEIGHT, WIDTH, 4, plan, 4) for plan in plans]
    taken = [cost.device_bytes for cost in costs]
    assert len(taken) == failures + 1 and taken == sorted(set(taken), reverse=True)
