"""Reference and output: the host's VAE, the written file, the workflow in it."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from refusals import sentence_of
from swifti2v.nodes.comfyui import output_files
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.reference import hybrid


def small(photo, height=64, width=128):
    return torch.nn.functional.interpolate(photo.movedim(-1, 1), (height, width), mode="area").movedim(
        1, -1
    )


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, tags = stream.average_rate, dict(container.metadata)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return torch.from_numpy(np.stack(frames)).float() / 255, rate, tags


def db(one, two):
    return float(-10 * torch.log10((one - two).pow(2).mean()))


def test_the_reference_is_the_hosts_encoding_of_photo_and_enlarged_motion(pack, run, vae, photo):
    motion = torch.cat([small(photo.roll(8 * i, dims=2), 32, 64) for i in range(9)])
    z_ref = run(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, width=128, height=64, frames=9
    )[0]
    core = hybrid
    pixels = torch.cat(list(core.reference_chunks(photo, motion, core.ReferenceSettings(128, 64, 9))))
    with torch.inference_mode():
        expected = vae.encode(pixels)
        photo_alone = vae.encode(pixels[:1])
    assert z_ref["samples"].shape == (1, 48, 3, 4, 8)
    assert torch.equal(z_ref["samples"][:, :, 1:], expected[:, :, 1:])
    # The tiny VAE is not causal in frame 0; the anchor is the photo alone all the same.
    assert torch.equal(z_ref["samples"][:, :, :1], photo_alone)
    assert (expected[:, :, :1] - photo_alone).abs().max() > 1e-2


def test_frames_are_the_hosts_decoding(run, vae, photo):
    with torch.inference_mode():
        latent = vae.encode(small(photo).repeat(5, 1, 1, 1))
        expected = vae.decode(latent)[0]
    frames = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent}, vae=vae)[0]
    assert torch.equal(frames, expected)
    two = run("SwiftI2V_TiledVAEDecode", samples={"samples": latent.repeat(2, 1, 1, 1, 1)}, vae=vae)[0]
    assert two.shape[0] == 10 and torch.allclose(two[5:], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("codec", "crf", "name", "floor"),
    [("h264", 12, "h264", 38), ("vp9", 20, "vp9", 36), ("av1", 20, "av1", 36), ("hevc", 12, "hevc", 38)],
)
def test_the_file_holds_the_frames_and_the_workflow(run, vae, photo, workspace, codec, crf, name, floor):
    with torch.inference_mode():
        latent = vae.encode(torch.cat([small(photo.roll(8 * i, dims=2)) for i in range(9)]))
        expected = vae.decode(latent)[0].clamp(0, 1)
    hidden = {
        "PROMPT": {"1": {"class_type": "X", "inputs": {"a": "ü"}}},
        "EXTRA_PNGINFO": {"workflow": {"nodes": [1]}},
    }
    video = run(
        "SwiftI2V_DecodeToVideo",
        hidden=_hidden(hidden),
        samples={"samples": latent},
        vae=vae,
        filename_prefix=f"clips/{codec}",
        fps=23.98,
        codec=codec,
        crf=crf,
    )[0][0]
    path = video.get_stream_source()
    assert path.startswith(str(workspace / "output" / "clips"))
    frames, rate, tags = read(path)
    assert frames.shape == (9, 64, 128, 3) and video.get_dimensions() == (128, 64)
    assert rate == Fraction(24000, 1001)
    tags = {key.lower(): value for key, value in tags.items()}
    assert json.loads(tags["prompt"]) == hidden["PROMPT"]
    assert json.loads(tags["workflow"]) == {"nodes": [1]}
    assert db(frames, expected) > floor
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.name.startswith(("libdav1d", name))
    assert not list((workspace / "output" / "clips").glob("*.part"))


def _hidden(values):
    from comfy_api.latest import io

    return {io.Hidden.prompt: values["PROMPT"], io.Hidden.extra_pnginfo: values["EXTRA_PNGINFO"]}


@pytest.mark.parametrize("color", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.2, 0.4, 0.9)])
def test_colors_survive_players_that_take_bt709(pack, tmp_path, color):
    """The file says BT.709 and is: the standard's own matrix gives the color back."""
    path = str(tmp_path / "color.mp4")
    codec = video_file.CODECS["h264"]
    with video_file.VideoFile(path, 64, 64, Fraction(16), codec, 5, {}) as video:
        video.write((torch.tensor(color) * 255).round().to(torch.uint8).expand(64, 64, 3))
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    assert int(frame.colorspace) == 1 and int(frame.color_range) == 1
    planes = frame.to_ndarray(format="yuv420p").astype(float)
    luma = (planes[:64].mean() - 16) / 219
    blue, red = ((planes[64:80].mean() - 128) / 224, (planes[80:].mean() - 128) / 224)
    kr, kb = 0.2126, 0.0722  # ITU-R BT.709-6, 3.2
    r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
    g = (luma - kr * r - kb * b) / (1 - kr - kb)
    assert max(abs(x - y) for x, y in zip((r, g, b), color, strict=True)) < 0.02


def test_a_failed_run_leaves_no_file(pack, tmp_path):
    codec = video_file.CODECS["h264"]
    path = tmp_path / "clip.mp4"
    with (
        pytest.raises(ValueError),
        video_file.VideoFile(str(path), 64, 64, Fraction(16), codec, 17, {}) as video,
    ):
        video.write(torch.zeros(64, 64, 3, dtype=torch.uint8))
        video.write(torch.zeros(64, 64, 3))  # no bytes
    assert not list(tmp_path.iterdir())
    with (
        pytest.raises(KeyboardInterrupt),
        video_file.VideoFile(str(path), 64, 64, Fraction(16), codec, 17, {}) as video,
    ):
        video.write(torch.zeros(64, 64, 3, dtype=torch.uint8))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_metadata_can_be_switched_off(pack, monkeypatch):
    monkeypatch.setattr("comfy.cli_args.args.disable_metadata", True)
    assert output_files.workflow_metadata({"1": {}}, {"workflow": {}}) == {}


@pytest.mark.parametrize(
    ("codec", "cells", "nearest"),
    [
        ("av1", (1, 40), "64x640"),
        ("av1", (40, 3), "640x64"),
        ("h264", (1025, 1), "16384x16"),
        ("vp9", (1, 1025), "16x16384"),
        ("hevc", (513, 1), "8192x64"),
    ],
)
def test_sizes_that_a_codec_cannot_write(run, vae, codec, cells, nearest):
    width, height = cells
    samples = {"samples": torch.zeros(1, 48, 2, height, width)}
    sentence = sentence_of(run, "SwiftI2V_DecodeToVideo", samples=samples, vae=vae, codec=codec)
    assert f"The clip is {16 * width}x{16 * height}, but the encoder" in sentence
    assert sentence.endswith(f"; the nearest valid size is {nearest}, or choose another codec.")
