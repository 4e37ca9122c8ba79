"""Anchor Encode, Decode to Video and the decode to an IMAGE at 2560x1408 on a fake GPU."""

import contextlib
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from expectations import expect_stored, expect_waits, listed
from fake_machine import Card, fake_machine
from host_models import run, text, wan_model, wan_vae

CARDS = {"fp16": Card(24), "bf16": Card(24), "fp32": Card(48)}
"""Cards on which a decode keeps its frame caches on the GPU."""

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FRAME_BYTES = 2560 * 1408 * 3


def finished(frames, device="cpu"):
    return torch.zeros(1, 48, frames, 88, 160, device=device)


class FakeVideoFile:
    """Takes frames without writing them, which have no values."""

    def __init__(self, *_):
        self.frames = []

    def __enter__(self):
        return SimpleNamespace(write=self.write)

    def __exit__(self, *_): ...

    def write(self, frame):
        assert (frame.device.type, frame.dtype) == ("cpu", torch.uint8)
        self.frames.append(tuple(frame.shape))


def expect_queued_pieces(meter, sizes):
    """Hold a decode to one copy for each piece, into pinned memory, for which the program does not wait."""
    back = meter.copied("cuda->cpu")
    assert [copy.size for copy in back] == sizes, listed(back)
    assert not any(copy.blocking for copy in back), listed(back)
    expect_waits(meter, {"event": len(sizes), "aten.is_nonzero.default": 2})


@pytest.mark.parametrize("name", DTYPES)
def test_a_video_leaves_the_gpu_in_bytes(name, tmp_path):
    import folder_paths

    video = FakeVideoFile()
    folder_paths.set_output_directory(str(tmp_path))
    with (
        fake_machine(CARDS[name]) as meter,
        mock.patch("swifti2v.nodes.pipeline.clip_file.VideoFile", lambda *_: video),
    ):
        vae = wan_vae(48, DTYPES[name])
        meter.start()
        run("SwiftI2V_DecodeToVideo", samples={"samples": finished(2)}, vae=vae)
    assert video.frames == [(1408, 2560, 3)] * 5
    expect_queued_pieces(meter, [FRAME_BYTES, 4 * FRAME_BYTES])


@pytest.mark.parametrize("name, size", [("fp16", 2), ("bf16", 2), ("fp32", 4)])
def test_an_image_leaves_the_gpu_no_finer_than_the_weights_compute(name, size):
    with fake_machine(CARDS[name]) as meter:
        vae = wan_vae(48, DTYPES[name])
        meter.start()
        (images,) = run("SwiftI2V_TiledVAEDecode", samples={"samples": finished(2)}, vae=vae)
    expect_stored(images, (5, 1408, 2560, 3))
    expect_queued_pieces(meter, [FRAME_BYTES * size, 4 * FRAME_BYTES * size])


@pytest.mark.parametrize("name", DTYPES)
def test_a_reference_leaves_the_gpu_one_latent_frame_at_a_time(meter, name):
    vae = wan_vae(48, DTYPES[name])
    meter.start()
    reference, keyframes, *_ = run(
        "SwiftI2V_AnchorEncode",
        image=torch.zeros(1, 2160, 3840, 3),
        motion=torch.zeros(81, 352, 640, 3),
        vae=vae,
        frames=9,
        color_match=True,
        keyframes=torch.zeros(1, 1000, 3000, 3),
        keyframe_times="8",
    )
    expect_stored(reference["samples"], (1, 48, 3, 88, 160))
    expect_stored(keyframes["samples"], (1, 48, 1, 88, 160))
    back = meter.copied("cuda->cpu")
    # Three latent frames, and two of the clip from which the keyframe comes.
    assert len(back) == 5 and len({copy.place for copy in back}) == 1, listed(back)
    assert meter.copied("cuda->cpu", ours=False) == []
    # Only color_match waits, when it measures the photo and the clip, once.
    assert {wait.place.split(":")[0] for wait in meter.waits} == {"swifti2v_core/reference/color_match.py"}
    expect_waits(meter, {"aten.is_nonzero.default": 5, "aten.item.default": 6})


def test_nothing_but_the_video_leaves_the_gpu_where_comfyui_keeps_results_there(gpu_only):
    from swifti2v.nodes.pipeline.decode import decode_integers

    vae, model = wan_vae(48), wan_model("TI2V-5B", 96, 1)
    gpu_only.start()
    reference, keyframes, *_ = run(
        "SwiftI2V_AnchorEncode",
        image=torch.zeros(1, 1408, 2560, 3, device="cuda"),
        motion=torch.zeros(5, 352, 640, 3, device="cuda"),
        vae=vae,
        frames=5,
        keyframes=torch.zeros(1, 999, 999, 3, device="cuda"),
    )
    expect_stored(reference["samples"], (1, 48, 2, 88, 160), "cuda")
    (latent,) = run(
        "SwiftI2V_SegmentSampler", model=model, z_ref=reference, keyframes=keyframes, steps=1, cfg=5.0,
        positive=text(), negative=text(),
    )  # fmt: skip
    assert gpu_only.copied("cuda->cpu") == []
    pieces = list(decode_integers(vae, latent["samples"]))
    assert {piece.device.type for piece in pieces} == {"cpu"} and sum(map(len, pieces)) == 5
    assert len(gpu_only.copied("cuda->cpu")) == 2


def test_the_autoencoder_works_in_the_context_of_its_gpu_and_the_consumer_outside_it(meter):
    """ComfyUI's weight casts wait on the stream of the current device."""
    from comfy import model_management
    from swifti2v.swifti2v_core.vae import layers

    inside, seen, convolve = [0], [], layers.convolve

    @contextlib.contextmanager
    def context(device):
        inside[0] += 1
        yield
        inside[0] -= 1

    def watched(*args):
        seen.append(inside[0])
        return convolve(*args)

    vae = wan_vae(48)
    with (
        mock.patch.object(model_management, "cuda_device_context", context),
        mock.patch.object(layers, "convolve", watched),
    ):
        from swifti2v.nodes.pipeline.decode import decode_integers

        for _ in decode_integers(vae, finished(1)):
            assert inside == [0]
        photo, motion = torch.zeros(1, 1408, 2560, 3), torch.zeros(5, 352, 640, 3)
        run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, frames=5)
    assert len(seen) > 100 and set(seen) == {1} and inside == [0]
