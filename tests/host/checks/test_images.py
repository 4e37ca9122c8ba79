"""Photos and motion clips: shape, values, number of frames, memory."""

import logging

import pytest
import torch
from refusals import SIZED, case, cases, sentence_of, with_nan
from swifti2v.nodes.pipeline import encode as encoding

SHAPES = [
    case(
        "SwiftI2V_AnchorEncode",
        "The motion clip has 9 frames for 2 photos",
        "one clip for each photo",
        "nearest valid number of frames is 10",
        image=lambda kit: kit.image.repeat(2, 1, 1, 1),
        motion=torch.rand(9, 48, 64, 3),
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
    *cases(
        SIZED,
        "The photo has shape (1, 96, 128)",
        "an IMAGE has (frames, height, width, 3)",
        image=torch.rand(1, 96, 128),
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
    )
    for node in nodes
]


@pytest.mark.parametrize(("node_id", "bad", "words"), SHAPES + NOT_FINITE)
def test_bad_images_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence


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


def test_an_image_that_counts_to_255(run):
    given = {"image": 255 * torch.ones(1, 32, 32, 3), "width": 32, "height": 32, "frames": 5}
    counted = sentence_of(run, "SwiftI2V_CameraMotion", **given)
    assert counted == (
        "The photo holds values from 255 to 255, but an IMAGE goes from 0 to 1; divide it by 255 if it "
        "counts to 255."
    )


def test_black_bars_that_no_memory_holds(run, small_machine, vae):
    options = {"vae": vae, "width": 32, "height": 32, "frames": 5, "fit": "pad"}
    photo, motion = torch.rand(1, 16384, 1, 3), torch.rand(5, 16, 64, 3)
    sentence = sentence_of(run, "SwiftI2V_AnchorEncode", image=photo, motion=motion, **options)
    assert sentence.startswith("Frames of 65536x16384, 1 of them, take 12.0 GiB of memory")
