"""Cancel, pressed at any moment: heard within one piece of work, with nothing left behind."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.pipeline import decode as decoding
from swifti2v.nodes.pipeline import video_file
from swifti2v.swifti2v_core.vae import memory_plan, strips

SIZE = {"width": 64, "height": 32}


@pytest.fixture
def latents(make_latent):
    """A clip of 6 latent frames, 64x128."""
    return make_latent(6, height=4, width=8)


@pytest.fixture
def jobs(run, stage_one, stage_two, vae, streaming_vae, experts, vae16, photo, latents):
    """Every node that works for long, small, and what one piece of its work is."""
    small = photo[:, ::20, ::20].contiguous()

    def segments(**inputs):
        return run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=latents, seed=3, **inputs)

    def motion(**inputs):
        options = {**SIZE, "frames": 9, "seed": 3, **inputs}
        return run("SwiftI2V_MotionSampler", image=small, **options)

    def camera():
        return run("SwiftI2V_CameraMotion", image=small, **SIZE, frames=17)[0]

    def anchor(**inputs):
        options = {"width": 128, "height": 64, "frames": 17, "vae": streaming_vae, **inputs}
        return run("SwiftI2V_AnchorEncode", image=small, motion=camera(), **options)

    def decode(node, **inputs):
        return run(node, samples=latents, vae=streaming_vae, **inputs)

    return {
        "segments": lambda: segments(),
        "segments, guided": lambda: segments(cfg=2.0),
        "segments, read-only": lambda: segments(context="read-only"),
        "segments, saved": lambda: segments(checkpoint="cancelled"),
        "motion": lambda: motion(model_high_noise=stage_one, vae=vae),
        "motion, experts": lambda: motion(
            model_high_noise=experts[0], model_low_noise=experts[1], vae=vae16
        ),
        "camera": lambda: [camera()],
        "anchor": lambda: anchor(),
        "anchor, keyframes": lambda: anchor(keyframes=small.repeat(2, 1, 1, 1)),
        "images": lambda: decode("SwiftI2V_TiledVAEDecode"),
        "video": lambda: decode("SwiftI2V_DecodeToVideo"),
    }


JOBS = [
    "segments",
    "segments, guided",
    "segments, read-only",
    "segments, saved",
    "motion",
    "motion, experts",
    "camera",
    "anchor",
    "anchor, keyframes",
    "images",
    "video",
]
KEEPING = ["segments, saved"]
"""Jobs that leave something on purpose; `test_checkpoints` looks at it."""


@pytest.fixture
def plans(pack, monkeypatch):
    """Decode in two groups of strips, with features kept in RAM and several frames at a time."""
    plan = memory_plan
    monkeypatch.setattr(decoding, "plan_decode", lambda *_: plan.DecodePlan(2, 2, groups=2, kept=3))


@pytest.fixture
def listening(pack, monkeypatch):
    """Count pieces of work between two moments at which Cancel is heard, over a whole job."""
    stream, work, longest = strips, [0], [0]

    def piece(owner, name):
        original = getattr(owner, name)

        def counted(*args, **kwargs):
            work[0] += 1
            longest[0] = max(longest[0], work[0])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    # ComfyUI listens in every layer, but not in compiled ones or those of other packs.
    monkeypatch.setattr(comfy.ops, "run_every_op", lambda: None)
    piece(WanModel, "forward_orig")
    piece(stream.StripDecoder, "_strip")
    piece(stream.StripEncoder, "_front")
    piece(video_file.VideoFile, "write")
    heard = comfy.model_management.throw_exception_if_processing_interrupted

    def listen():
        work[0] = 0
        heard()

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", listen)
    return longest


@pytest.mark.parametrize("job", JOBS)
def test_every_piece_of_work_can_be_cancelled(jobs, job, listening, plans):
    jobs[job]()
    conditions = 2 if job == "segments, guided" else 1
    assert listening[0] <= conditions


@pytest.fixture
def cancelled_at():
    """Run a job and press Cancel when ComfyUI looks for the n-th time; 0 for never."""

    def work(job, number):
        heard, looks = comfy.model_management.throw_exception_if_processing_interrupted, []

        def look():
            looks.append(1)
            if len(looks) == number:
                comfy.model_management.interrupt_current_processing()
            heard()

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", look)
            if not number:
                return job(), len(looks)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                job()
        return None

    return work


def files_in(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def tensor_of(outputs):
    return outputs[0]["samples"] if isinstance(outputs[0], dict) else outputs[0]


@pytest.mark.parametrize("name", [name for name in JOBS if name not in KEEPING])
def test_a_cancelled_job_leaves_nothing_and_the_next_one_is_right(
    jobs, name, plans, cancelled_at, workspace
):
    job = jobs[name]
    expected, looks = cancelled_at(job, 0)
    before = files_in(workspace)
    for number in sorted({1, 2, looks // 2, looks}):
        cancelled_at(job, number)
        assert files_in(workspace) == before
    if name != "video":
        assert torch.equal(tensor_of(job()), tensor_of(expected))


def test_the_jobs_are_all_there(jobs):
    assert list(jobs) == JOBS
