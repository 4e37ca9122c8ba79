"""Memory that runs out: the same picture in smaller pieces, or one sentence; the next run is right."""

import re
import traceback

import comfy.model_management as management
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes import vae_decode
from swifti2v.nodes.comfyui import sampling
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import encode as encoding
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.attention import read_only
from swifti2v.swifti2v_core.reference import hybrid
from swifti2v.swifti2v_core.stage_one import camera
from swifti2v.swifti2v_core.vae import strips
from torch.utils._python_dispatch import TorchDispatchMode

GIB = 2**30
SIZE = {"width": 128, "height": 64, "frames": 9}
SENTENCE = re.compile(r"[A-Z][^.\n]*(\d\.\d[^.\n]*)*\.")


def of_the_device():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_the_cpu():
    """What PyTorch itself raises."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


ERRORS = [of_the_device, of_the_cpu, MemoryError]


@pytest.fixture(scope="module")
def given(run, streaming_vae, photo):
    """What the nodes are run on."""
    photo = photo[:, ::8, ::8]
    motion = run("SwiftI2V_CameraMotion", image=photo, **SIZE)[0]
    z_ref = run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=streaming_vae, **SIZE)[0]
    return {"photo": photo, "motion": motion, "z_ref": z_ref}


@pytest.fixture(scope="module")
def make(run, given, stage_one, stage_two, vae, streaming_vae):
    """One run of each node that takes memory, by name."""
    photo, motion, z_ref = given["photo"], given["motion"], given["z_ref"]
    frames = {"image": photo, "motion": motion, **SIZE}
    windows = {"model": stage_two, "z_ref": z_ref, "steps": 2, "segment_frames": 2, "neighbors": 1}
    return {
        "camera": lambda: run("SwiftI2V_CameraMotion", image=photo, **SIZE)[0],
        "motion": lambda: run(
            "SwiftI2V_MotionSampler", model_high_noise=stage_one, vae=vae, image=photo, steps=1, **SIZE
        )[0],
        # Wide: of a smaller clip, strips take no less than the whole.
        "reference": lambda: run("SwiftI2V_AnchorEncode", vae=streaming_vae, **frames | {"width": 512})[0],
        "reference, whole": lambda: run("SwiftI2V_AnchorEncode", vae=vae, **frames)[0],
        "segments": lambda: run("SwiftI2V_SegmentSampler", **windows)[0],
        "read-only": lambda: run("SwiftI2V_SegmentSampler", context="read-only", **windows)[0],
        "images": lambda: run("SwiftI2V_TiledVAEDecode", samples=z_ref, vae=streaming_vae)[0],
        "video": lambda: run("SwiftI2V_DecodeToVideo", samples=z_ref, vae=streaming_vae)[0],
    }


def tensor_of(made):
    """The numbers of a result; of a video none, its file is looked at elsewhere."""
    made = made["samples"] if isinstance(made, dict) else made
    return made if isinstance(made, torch.Tensor) else torch.zeros(())


@pytest.fixture(scope="module")
def expected(make):
    return {name: tensor_of(run()) for name, run in make.items()}


def fail(patch, owner, name, error, times):
    """Make a function fail the first ``times`` times."""
    function, left = getattr(owner, name), [times]

    def failing(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise error()
        return function(*args, **kwargs)

    patch.setattr(owner, name, failing)


def sites():
    """Return where memory is taken: what runs, the function that takes it, what the sentence advises."""
    size = r"nearest size that fits is \d+x\d+"
    return {
        "camera move": (
            "camera",
            camera,
            "camera_motion",
            "nearest number of frames that fits is 5",
        ),
        "upscaling": ("reference", hybrid, "fit_frames", size),
        "a whole clip": ("reference, whole", encoding, "assemble", "number of frames"),
        "encode": ("reference", strips.StripEncoder, "_front", size),
        "stage one window": ("motion", WanModel, "forward_orig", size),
        "window": ("segments", WanModel, "forward_orig", "nearest segment_frames that fits is 1"),
        "kept keys": (
            "read-only",
            read_only.ReadOnlyContext,
            "attend_window",
            "segment_frames that fits",
        ),
        "noise": ("segments", sampling.SeededNoise, "generate_noise", "nearest segment_frames"),
        "decode": ("images", strips.StripDecoder, "_strip", size),
        "decode of a file": ("video", strips.StripDecoder, "_strip", size),
        "IMAGE": ("images", decoding, "allocate_images", "use SwiftI2V Decode to Video"),
        "video frames": ("video", video_file.VideoFile, "write", "close other programs"),
    }


SMALLER_PIECES = {"upscaling", "encode", "decode", "decode of a file"}
"""Where a second attempt in smaller pieces gives the same picture."""

NAMES = [
    "camera move", "upscaling", "a whole clip", "encode", "stage one window", "window", "kept keys",
    "noise", "decode", "decode of a file", "IMAGE", "video frames",
]  # fmt: skip


def test_every_site_is_tried():
    assert list(sites()) == NAMES


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("site", sorted(SMALLER_PIECES))
def test_smaller_pieces_give_the_same_picture(make, expected, monkeypatch, site, error):
    what, owner, name, _ = sites()[site]
    # Of an encode this small, only one other plan takes less.
    fail(monkeypatch, owner, name, error, times=1 if what == "reference" else 2)
    assert (tensor_of(make[what]()) - expected[what]).abs().max() <= 1e-6 * expected[what].abs().max()


def frames_of(error):
    """Return the frames of an error's traceback; none without an error."""
    return set() if error is None else {frame for frame, _ in traceback.walk_tb(error.__traceback__)}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("site", NAMES)
def test_one_sentence_and_the_next_run_is_right(
    make, expected, workspace, live_tensors, monkeypatch, site, error
):
    what, owner, name, advice = sites()[site]
    files = set((workspace / "output").rglob("*"))
    before = live_tensors()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError) as caught:
        fail(patch, owner, name, error, times=-1)
        make[what]()
    message = str(caught.value)
    assert SENTENCE.fullmatch(message) and re.search(advice, message), message
    assert isinstance(caught.value, management.OOM_EXCEPTION) == (error is of_the_device)
    assert ("the computer's memory" in message) or error is of_the_device
    first = caught.value.__context__
    assert first is None or caught.value.__suppress_context__
    ended = frames_of(first) - frames_of(caught.value)
    assert not any(frame.f_locals for frame in ended)  # they would keep the failed run's tensors alive
    del caught, first, ended
    assert live_tensors() <= before  # fewer where ComfyUI drops another test's models meanwhile
    assert set((workspace / "output").rglob("*")) == files  # no unfinished file
    assert torch.equal(tensor_of(make[what]()), expected[what])


class Failing(TorchDispatchMode):
    """Fails at the n-th operation of PyTorch; with None it counts them."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise of_the_device()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("what", ["camera", "motion", "reference", "segments", "read-only", "images"])
def test_memory_may_run_out_anywhere(make, expected, what):
    """At operations all over a run: the picture, or one sentence."""
    with Failing() as counting:
        make[what]()
    explained = 0
    for part in range(1, 10):
        try:
            with Failing(at=counting.count * part // 10):
                made = tensor_of(make[what]())
            assert (made - expected[what]).abs().max() <= 1e-5 * expected[what].abs().max()
        except RuntimeError as error:
            explained += 1
            assert SENTENCE.fullmatch(str(error)) and "ran out of" in str(error), error
    assert torch.equal(tensor_of(make[what]()), expected[what])
    assert explained or what in ("reference", "images")  # which retry in smaller pieces


# --- The nearest setting --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "advice"),
    [
        (0.85, "the nearest segment_frames that fits is 2"),  # 4 of 5 latent frames
        (0.65, "the nearest segment_frames that fits is 1"),
        (0.45, "set segment_frames to 1 and neighbors to 0"),
        (0.30, "the nearest size that fits is 64x32"),  # a quarter of the cells
        (0.01, "close other programs that use memory, or make a smaller or shorter video"),
    ],
)
def test_the_nearest_window(run, stage_two, make_latent, monkeypatch, share, advice):
    """A window of 5 latent frames, in units of what ComfyUI says it takes."""
    need = stage_two.model.memory_required((1, 48, 5, 4, 8))
    monkeypatch.setattr(management, "get_free_memory", lambda device: share * need)
    fail(monkeypatch, WanModel, "forward_orig", of_the_device, times=-1)
    monkeypatch.setattr(management, "load_models_gpu", lambda *args, **kwargs: None)
    z_ref = make_latent(5, height=4, width=8)
    with pytest.raises(RuntimeError, match=advice):
        run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=z_ref, segment_frames=3, neighbors=1)


def test_keys_that_are_kept_are_the_first_to_go(pack, run, stage_two, make_latent, monkeypatch):
    context = read_only.ReadOnlyContext
    monkeypatch.setattr(context, "kept_bytes", lambda *args: 2 * GIB)
    fail(monkeypatch, context, "attend_window", of_the_device, times=-1)
    with pytest.raises(RuntimeError, match=r"takes about 2\.0 GiB.*; choose bidirectional context\."):
        run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=make_latent(5), context="read-only")


def test_the_nearest_chunk(run, stage_one, vae, photo, monkeypatch):
    need = stage_one.model.memory_required((1, 48, 6, 4, 8))
    monkeypatch.setattr(management, "get_free_memory", lambda device: 0.7 * need)
    fail(monkeypatch, WanModel, "forward_orig", of_the_device, times=-1)
    options = {"model_high_noise": stage_one, "vae": vae, "image": photo, "width": 128, "height": 64}
    with pytest.raises(RuntimeError, match="the nearest chunk_frames that fits is 13"):  # 4 of 6
        run("SwiftI2V_MotionSampler", frames=21, **options)


# --- What hardly fits -----------------------------------------------------------------------------


@pytest.fixture
def computer(monkeypatch):
    """Give the computer so much memory."""

    def have(total, free):
        monkeypatch.setattr(management, "get_total_memory", lambda device: total)
        monkeypatch.setattr(management, "get_free_memory", lambda device: free)

    return have


def test_frames_that_may_not_fit_give_a_warning(pack, run, vae, computer, monkeypatch, caplog):
    monkeypatch.setattr(vae_decode, "decode_images", lambda vae, latent: latent)
    latent = {"samples": torch.zeros(1, 48, 21, 88, 160)}
    for free, explained in ((4, False), (3, True)):
        caplog.clear()
        computer(64 * GIB, free * GIB)
        with caplog.at_level("WARNING", logger="SwiftI2V"):
            run("SwiftI2V_TiledVAEDecode", samples=latent, vae=vae)
        assert ("takes 3.3 GiB and 3.0 GiB are free" in caplog.text) == explained


def test_a_streamed_reference_takes_no_room_for_the_clip(run, streaming_vae, photo, computer, caplog):
    """A reference that goes through its VAE piece by piece takes no room for the clip."""
    computer(2**30, 2**10)
    with caplog.at_level("WARNING", logger="SwiftI2V"):
        run("SwiftI2V_AnchorEncode", vae=streaming_vae, image=photo, motion=photo, **SIZE)
    assert "run out of memory" not in caplog.text
