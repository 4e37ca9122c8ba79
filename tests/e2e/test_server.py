"""What a user gets: files written by the real server from the shipped graphs."""

import json
import shutil
import threading
import time
import uuid
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from devtools.prompts import find_video
from devtools.terminal import DevError

ROOT = Path(__file__).resolve().parents[2]
PHOTO = "life.jpg"


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, tags = stream.average_rate, dict(container.metadata)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    return torch.from_numpy(np.stack(frames)).float() / 255, rate, tags


def db(one, two):
    return float(-10 * torch.log10((one - two).pow(2).mean()))


def changes_per_frame(frames):
    return (frames[1:] - frames[:-1]).abs().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def photo_through_the_autoencoder(play, workspace):
    """The host's own encode and decode of the photo, by stock nodes."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": PHOTO}},
        "2": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae48.safetensors"}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 0]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0], "filename_prefix": "photo"}},
    }
    entry, _ = play(prompt)
    name = entry["outputs"]["5"]["images"][0]["filename"]
    with Image.open(workspace / "output" / name) as picture:
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


@pytest.fixture(scope="module")
def demo(play, graph, workspace):
    """The demo as shipped, once."""
    workflow = json.loads((ROOT / "workflows" / "swifti2v_demo.json").read_text())
    entry, progress = play(graph("swifti2v_demo"), workflow)
    return find_video(entry, workspace), progress


def test_the_demo_video_is_what_was_asked(demo, graph, photo_through_the_autoencoder):
    path, _ = demo
    frames, rate, tags = read(path)
    assert frames.shape == (33, 640, 1280, 3) and rate == Fraction(16)
    assert db(frames[0], photo_through_the_autoencoder) >= 34
    restored = json.loads(tags["prompt"])
    for node in restored.values():
        node.pop("is_changed", None)  # the host's cache key of files
    assert restored == graph("swifti2v_demo")
    shipped = json.loads((ROOT / "workflows" / "swifti2v_demo.json").read_text())
    assert json.loads(tags["workflow"]) == shipped
    moved = changes_per_frame(frames)
    assert moved.min() > 0.001  # every frame moves
    assert db(frames[0], frames[-1]) < 25


def test_the_demo_has_no_jump_between_segments(demo):
    """Segments end after the pixel frames 12 and 24; the step there is as large as around it."""
    frames, _, _ = read(demo[0])
    moved = changes_per_frame(frames)
    for boundary in (12, 24):
        around = torch.cat([moved[boundary - 8 : boundary], moved[boundary + 1 : boundary + 9]])
        assert moved[boundary] < 1.4 * around.max()
    light = frames.mean(dim=(1, 2, 3))
    assert (light[1:] - light[:-1]).abs().max() < 0.01  # no flash


def test_the_demo_shows_progress_and_previews(demo):
    _, progress = demo
    sampling = [p for p in progress if p.maximum == 12]  # 3 segments of 4 steps
    values = [p.value for p in sampling]
    assert values == sorted(values) and max(values) == 12
    assert max(p.previews for p in progress) >= 12


def test_stage_one_by_a_model(play, graph, workspace, photo_through_the_autoencoder):
    entry, _ = play(graph("swifti2v_demo_model_motion"))
    frames, _, _ = read(find_video(entry, workspace))
    assert frames.shape == (21, 640, 1280, 3)
    assert db(frames[0], photo_through_the_autoencoder) >= 34
    assert changes_per_frame(frames).mean() > 0.002


def test_any_clip_can_be_the_motion(demo, play, graph, workspace):
    """A video of another size and length feeds the reference; the result follows it."""
    shutil.copy(demo[0], workspace / "input" / "motion.mp4")
    changes = {
        "SwiftI2V_AnchorEncode": {"width": 640, "height": 320, "frames": 17},
        "SwiftI2V_DecodeToVideo": {"codec": "vp9", "crf": 20},
    }
    entry, _ = play(graph("swifti2v_any_motion", changes))
    path = find_video(entry, workspace)
    frames, _, _ = read(path)
    assert path.suffix == ".webm" and frames.shape == (17, 320, 640, 3)
    motion = torch.nn.functional.interpolate(
        read(demo[0])[0][-1:].movedim(-1, 1), (320, 640), mode="area"
    ).movedim(1, -1)[0]
    assert db(frames[-1], motion) > db(frames[0], motion) + 1


def test_the_true_size(play, graph, workspace):
    """2560x1408 and 9 frames with the tiny models."""
    changes = {
        "SwiftI2V_CameraMotion": {"width": 640, "height": 352, "frames": 9},
        "SwiftI2V_AnchorEncode": {"width": 2560, "height": 1408, "frames": 9},
    }
    entry, _ = play(graph("swifti2v_demo", changes))
    frames, _, _ = read(find_video(entry, workspace))
    assert frames.shape == (9, 1408, 2560, 3)
    assert changes_per_frame(frames).min() > 0.0005
    assert 0.1 < frames.mean() < 0.9 and frames.std() > 0.05


SMALL = {
    "SwiftI2V_CameraMotion": {"width": 320, "height": 160, "frames": 17},
    "SwiftI2V_AnchorEncode": {"width": 640, "height": 320, "frames": 17},
}


def test_plain_weights_run_through_the_same_sampler(play, graph, workspace):
    """The tiny Stage I model stands in for TI2V-5B: 48 input channels, denoise 0.5."""
    changes = SMALL | {
        "SwiftI2V_LoadStageII": {"model_name": "tiny_stage1_motion.safetensors"},
        "SwiftI2V_SegmentSampler": {"denoise": 0.5},
    }
    entry, _ = play(graph("swifti2v_demo", changes))
    frames, _, _ = read(find_video(entry, workspace))
    assert frames.shape == (17, 320, 640, 3) and changes_per_frame(frames).mean() > 0.001


def test_the_same_seed_writes_the_same_frames(play, graph, workspace):
    def video(seed):
        changes = SMALL | {"SwiftI2V_SegmentSampler": {"seed": seed}}
        changes["SwiftI2V_DecodeToVideo"] = {"filename_prefix": f"seed/{uuid.uuid4().hex}"}
        entry, _ = play(graph("swifti2v_demo", changes))
        return read(find_video(entry, workspace))[0]

    first = video(11)
    assert not torch.equal(first, video(12))
    assert torch.equal(first, video(11))


def test_cancel_leaves_no_file_and_the_queue_goes_on(server, play, graph, workspace):
    name = f"cancelled/{uuid.uuid4().hex}"
    prompt = graph("swifti2v_demo", {"SwiftI2V_DecodeToVideo": {"filename_prefix": name}})
    prompt["cancel-seed"] = {"class_type": "PreviewAny", "inputs": {"source": name}}
    client = uuid.uuid4().hex
    prompt_id = server.queue(prompt, client)
    stopped = threading.Event()

    def cancel_while_sampling(progress):
        if progress.maximum == 12 and progress.value >= 1 and not stopped.is_set():
            stopped.set()
            server.interrupt()

    begin = time.monotonic()
    with pytest.raises(DevError):
        server.wait(prompt_id, client, cancel_while_sampling, timeout=600)
    assert stopped.is_set(), "the run ended before it could be cancelled"
    assert time.monotonic() - begin < 300
    status = server.get(f"/history/{prompt_id}")[prompt_id]["status"]
    assert "execution_interrupted" in [message for message, _ in status["messages"]]
    assert not list((workspace / "output").glob("cancelled/*"))
    entry, _ = play(
        graph(
            "swifti2v_demo",
            SMALL | {"SwiftI2V_CameraMotion": SMALL["SwiftI2V_CameraMotion"] | {"seed": 99}},
        )
    )
    assert read(find_video(entry, workspace))[0].shape[0] == 17


def test_a_mistake_reaches_the_user_as_a_sentence(play, graph):
    changes = {"SwiftI2V_AnchorEncode": {"width": 1920, "height": 1080}}
    with pytest.raises(DevError, match="the nearest valid size is 1920x1088"):
        play(graph("swifti2v_demo", changes))


def test_the_server_lists_our_nodes_workflows_and_no_import_error(server, workspace):
    nodes = [name for name in server.get("/object_info") if name.startswith("SwiftI2V_")]
    assert len(nodes) == 11
    listed = server.get("/workflow_templates")
    assert set(listed["swifti2v"]) >= {"swifti2v_demo", "swifti2v_2k_wan22", "swifti2v_refine"}
    log = (workspace / "server.log").read_text(errors="replace")
    assert not any("swifti2v" in line and "IMPORT FAILED" in line for line in log.splitlines())


# --- The 2K workflow ------------------------------------------------------------------------------

TEXT_NODES = ("CLIPLoader", "CLIPTextEncode")


def resized(tensor, *shape):
    """Random weights of another shape, of about the same size."""
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator) * float(tensor.float().std())


@pytest.fixture(scope="module")
def stand_ins(workspace):
    """Tiny files under the names of the public weights, with the same channels and key layouts."""
    models = workspace / "models"
    motion = load_file(models / "diffusion_models" / "tiny_stage1_motion.safetensors")
    expert = dict(motion)  # Wan2.2-I2V-A14B: 16 noisy, 4 mask and 16 image channels in, 16 out
    expert["patch_embedding.weight"] = resized(motion["patch_embedding.weight"], 256, 36, 1, 2, 2)
    expert["head.head.weight"] = resized(motion["head.head.weight"], 64, 256)
    expert["head.head.bias"] = torch.zeros(64)
    small = load_file(models / "vae" / "tiny_vae48.safetensors")
    vae = dict(small)  # the 16-channel sibling, factor 8: no pixel shuffle at either end
    vae["encoder.0.weight"] = resized(small["encoder.0.weight"], 64, 3, 3, 3)
    last = max(int(key.split(".")[1]) for key in small if key.startswith("encoder."))
    vae[f"encoder.{last}.weight"] = resized(small[f"encoder.{last}.weight"], 16, 64, 3, 3)
    vae[f"encoder.{last}.bias"] = torch.zeros(16)
    vae["decoder.1.weight"] = resized(small["decoder.1.weight"], 256, 16, 3, 3)
    vae["decoder.22.weight"] = resized(small["decoder.22.weight"], 3, 64, 3, 3)
    vae["decoder.22.bias"] = torch.full((3,), 0.5)
    lora = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{end}.weight": torch.full(shape, 0.01)
        for end, shape in (("down", (4, 256)), ("up", (256, 4)))
    }
    weights = {
        "diffusion_models/wan2.2_i2v_high_noise_14B_fp8_scaled": expert,
        "diffusion_models/wan2.2_i2v_low_noise_14B_fp8_scaled": expert,
        "diffusion_models/wan2.2_ti2v_5B_fp16": motion,
        "loras/wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise": lora,
        "loras/wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise": lora,
        "vae/wan_2.1_vae": vae,
        "vae/wan2.2_vae": small,
    }
    paths = [models / f"{name}.safetensors" for name in weights]
    for path, state in zip(paths, weights.values(), strict=True):
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    yield
    for path in paths:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "missing", "count"),
    [
        ("swifti2v_2k_wan22", ("wan2.2_i2v_high_noise_14B", "wan_2.1_vae"), 7),
        ("swifti2v_refine", (), 3),
    ],
)
def test_graphs_of_public_weights_are_refused_only_for_missing_files(play, graph, name, missing, count):
    prompt = graph(name, {"LoadImage": {"image": PHOTO}})
    with pytest.raises(DevError) as refusal:
        play(prompt)
    message = str(refusal.value)
    for file in (*missing, "wan2.2_vae", "umt5_xxl", "wan2.2_ti2v_5B"):
        assert file in message
    assert message.count("not in") >= count  # files, and nothing else
    assert "Required input is missing" not in message


def test_the_2k_workflow_runs_with_stand_ins(play, graph, workspace, stand_ins):
    """All of it but the text encoder, whose real size alone is 6 GB, at a small size."""
    changes = {
        "LoadImage": {"image": PHOTO},
        "SwiftI2V_MotionSampler": {"width": 160, "height": 96, "frames": 9},
        "SwiftI2V_AnchorEncode": {"width": 320, "height": 192, "frames": 9},
        "SwiftI2V_SegmentSampler": {"steps": 2},
    }
    prompt = graph("swifti2v_2k_wan22", changes)
    text = {node_id for node_id, node in prompt.items() if node["class_type"] in TEXT_NODES}
    prompt = {node_id: node for node_id, node in prompt.items() if node_id not in text}
    for node in prompt.values():
        node["inputs"] = {
            name: value
            for name, value in node["inputs"].items()
            if not (isinstance(value, list) and value[0] in text)
        }
    entry, _ = play(prompt)
    frames, _, _ = read(find_video(entry, workspace))
    assert frames.shape == (9, 192, 320, 3) and frames.std() > 0.05
    assert list((workspace / "output" / "swifti2v_checkpoints").iterdir()) == []  # deleted when done
