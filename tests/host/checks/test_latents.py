"""Latents: shape, channels, values, memory."""

import pytest
import torch
from refusals import DECODERS, SEGMENTS, case, cases, samples, sentence_of, spoiled_latent

SHAPES = [
    *cases(
        SEGMENTS,
        "size is 112x80",
        "multiples of 32",
        "nearest valid size is 128x96",
        z_ref=samples(1, 48, 5, 5, 7),
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
]

NOT_FINITE = [
    case(node, f"{label} holds NaN or infinite values", "check the node that makes it", **{socket: spoil})
    for number in (float("nan"), float("inf"))
    for nodes, socket, label, spoil in (
        (SEGMENTS, "z_ref", "z_ref", spoiled_latent(number)),
        (SEGMENTS[1:], "latent", "latent", spoiled_latent(number)),
        (DECODERS, "samples", "samples", spoiled_latent(number)),
    )
    for node in nodes
]


def photo_without_motion(kit):
    alone = kit.latent["samples"].clone()
    alone[:, :, 1:] = 0
    return {"samples": alone}


ZEROS = [
    *cases(
        SEGMENTS,
        "z_ref is empty (all zeros)",
        "needs the photo and the motion",
        "connect SwiftI2V Anchor Encode",
        z_ref=samples(1, 48, 5, 6, 8, fill=0.0),
    ),
    *cases(SEGMENTS, "z_ref", "zeros", "connect SwiftI2V Anchor Encode", z_ref=photo_without_motion),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), SHAPES + CHANNELS + NOT_FINITE + ZEROS)
def test_bad_latents_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence


def test_a_latent_of_values_that_no_latent_has(run, vae):
    samples = {"samples": torch.full((1, 48, 2, 2, 2), -1e38)}
    sentence = sentence_of(run, "SwiftI2V_TiledVAEDecode", samples=samples, vae=vae)
    assert sentence.startswith(
        "samples holds values from -1e+38 to -1e+38, but those of a latent are about"
    )


def test_an_expanded_latent_is_as_large_as_its_shape(run, small_machine, vae):
    samples = torch.zeros(1, 48, 1, 1, 1).expand(1, 48, 10**6, 88, 160)
    sentence = sentence_of(run, "SwiftI2V_TiledVAEDecode", samples={"samples": samples}, vae=vae)
    assert "samples with 1000000 latent frames" in sentence and "this machine has 1.0 GiB" in sentence
    assert sentence.endswith(
        f"the nearest valid number of latent frames is {2**30 // (3 * 4 * 48 * 88 * 160)}."
    )
