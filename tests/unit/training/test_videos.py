"""Cuts in clips whose cuts are known, and clips of real files in the rate and size that is asked for."""

import logging

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from swifti2v_train.config import Prepare
from swifti2v_train.data.clips import find_sources, make_clips, spread
from swifti2v_train.data.scene_cuts import find_cuts
from swifti2v_train.data.videos import clip_starts, clips_of, thumbnails_of


def world(seed, width=640, height=64):
    """A wide picture of coarse and fine shapes with colors of its own."""
    generator = torch.Generator().manual_seed(seed)
    tint = torch.rand(3, 1, 1, generator=generator) * 0.5
    layers = [
        F.interpolate(
            torch.rand(1, 3, 64 // n, 640 // n, generator=generator), (height, width), mode="bicubic"
        )
        for n in (16, 4)
    ]
    return (tint + 0.25 * layers[0][0] + 0.25 * layers[1][0]).clamp(0, 1)


def shot(seed, frames, speed=0, noise=0.0, light=None):
    """Thumbnails of a shot: a view of 32x32 that moves over its world, `speed` pixels a frame."""
    generator = torch.Generator().manual_seed(seed)
    views = []
    for frame in range(frames):
        left = round(frame * speed) % 600
        view = F.avg_pool2d(world(seed).roll(-left, 2)[:, :, :64], 2)
        view = view + noise * torch.randn(view.shape, generator=generator)
        views.append(view * (1.0 if light is None else light(frame)))
    return (torch.stack(views).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)


@pytest.mark.parametrize(
    "shots",
    [
        [(1, 12, 0), (2, 20, 0), (3, 9, 0)],
        [(1, 12, 4), (2, 20, 0), (3, 9, 8)],
        [(4, 30, 2), (5, 5, 2), (6, 30, 2)],
        [(7, 20, 24), (8, 20, 24)],  # fast pans on both sides
    ],
)
def test_cuts_are_found_where_they_are(shots):
    clip = torch.cat([shot(seed, frames, speed, noise=0.02) for seed, frames, speed in shots])
    ends = np.cumsum([frames for _, frames, _ in shots])
    assert find_cuts(clip) == ends[:-1].tolist()


def test_a_cut_between_shots_of_the_same_colors_is_found():
    upright = shot(15, 20, noise=0.02)
    assert find_cuts(torch.cat((upright, upright.flip(2)))) == [20]


@pytest.mark.parametrize("speed", [0, 1, 6, 16, 32])
def test_a_pan_of_any_speed_is_no_cut(speed):
    assert find_cuts(shot(11, 40, speed, noise=0.02)) == []
    start_and_stop = torch.cat((shot(11, 12), shot(11, 20, speed), shot(11, 1, 0)))
    assert find_cuts(start_and_stop[:32]) == []


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("light", [0.0, 6.0])
def test_a_flash_is_no_cut(length, light):
    def flash(frame):
        return light if 15 <= frame < 15 + length else 1.0

    assert find_cuts(shot(12, 40, 2, noise=0.02, light=flash)) == []
    with_cut = torch.cat((shot(12, 40, 2, light=flash), shot(13, 20, 2)))
    assert find_cuts(with_cut) == [40]


def test_a_slow_change_of_light_is_no_cut():
    assert find_cuts(shot(14, 40, 1, light=lambda frame: 0.3 + frame / 40)) == []


def test_clips_lie_side_by_side_within_the_shots():
    clip = torch.cat([shot(1, 25), shot(2, 9), shot(3, 18)])
    assert clip_starts(clip, 9) == [0, 9, 25, 34, 43]
    assert clip_starts(clip[:8], 9) == []


def write(path, pictures, rate, codec="libx264"):
    """Save pictures ``[F, H, W, 3]`` uint8 as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "4"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def counting(frames, height=96, width=64):
    """Gray pictures that tell their number: frame n has the level 4n, its upper half a little more."""
    pictures = np.empty((frames, height, width, 3), dtype=np.uint8)
    for number in range(frames):
        pictures[number, : height // 2], pictures[number, height // 2 :] = 4 * number + 40, 4 * number
    return pictures


@pytest.mark.parametrize("fps", [8, 16, 24, 30, 48])
def test_frames_are_those_on_the_screen_at_each_moment(tmp_path, fps):
    write(tmp_path / "c.mp4", counting(48), 24)
    (clip,) = clips_of(tmp_path / "c.mp4", [0], 2 * fps, fps, 64, 96)
    numbers = (clip[:, -1].mean(dim=(1, 2)) * 255 / 4).round().int().tolist()
    assert numbers == [int(k / fps * 24 + 1e-6) for k in range(2 * fps)]


def test_tall_pictures_are_cut_to_the_middle(tmp_path):
    write(tmp_path / "tall.mp4", counting(9, 96, 64), 16)
    (clip,) = clips_of(tmp_path / "tall.mp4", [0], 9, 16, 64, 32)
    assert clip.shape == (9, 32, 64, 3) and clip.dtype == torch.float32
    # The middle third: half of it from the upper half of the picture.
    assert float(clip[3, :14].mean() * 255) == pytest.approx(52, abs=1.5)
    assert float(clip[3, 18:].mean() * 255) == pytest.approx(12, abs=1.5)


def test_a_lying_video_is_turned_upright(tmp_path):
    """The display matrix in the file's track header says how; written here by hand."""
    write(tmp_path / "c.mp4", counting(9, 64, 96), 16)
    data = (tmp_path / "c.mp4").read_bytes()
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of other fields
    words = np.frombuffer(data[at : at + 36], dtype=">i4")
    assert words.tolist() == [65536, 0, 0, 0, 65536, 0, 0, 0, 2**30]
    clockwise = np.array([0, 65536, 0, -65536, 0, 0, 0, 0, 2**30], dtype=">i4").tobytes()
    (tmp_path / "turned.mp4").write_bytes(data[:at] + clockwise + data[at + 36 :])
    (clip,) = clips_of(tmp_path / "turned.mp4", [0], 9, 16, 64, 96)
    assert clip[0, :, 40:].mean() > clip[0, :, :24].mean() + 0.1  # the bright upper half is now right


def test_no_clip_spans_a_cut(tmp_path):
    pictures = [(world(seed, 96, 64).movedim(0, -1) * 255).byte().numpy() for seed in (1, 2, 3)]
    lengths = (20, 6, 14)
    frames = np.concatenate([np.stack([p] * n) for p, n in zip(pictures, lengths, strict=True)])
    write(tmp_path / "cuts.mp4", frames, 16)
    starts = clip_starts(thumbnails_of(tmp_path / "cuts.mp4", 16), 5)
    assert starts == [0, 5, 10, 15, 20, 26, 31]
    clips = clips_of(tmp_path / "cuts.mp4", starts[1:], 5, 16, 96, 64)
    for start, clip in zip(starts[1:], clips, strict=True):
        truth = torch.from_numpy(frames[start : start + 5]).float() / 255
        assert (clip - truth).abs().mean() < 0.02


def test_damaged_files_are_reported_in_one_line_and_skipped(tmp_path, caplog):
    write(tmp_path / "good.mp4", counting(9), 16)
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mov").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.webm").write_text("no video at all\n" * 50)
    (tmp_path / "notes.txt").write_text("not looked at")
    (tmp_path / "photo.png").write_bytes(b"no photo at all")
    sources = find_sources([str(tmp_path)])
    damaged = ["cut.mov", "empty.mp4", "photo.png", "text.webm"]
    assert [path.name for path in sources] == sorted([*damaged, "good.mp4"])
    settings = Prepare(frames=9, fps=16.0, width=64, height=96)
    with caplog.at_level(logging.WARNING, "SwiftI2V"):
        clips = list(make_clips(settings, sources))
    assert [clip.source.name for clip in clips] == ["good.mp4"] and clips[0].frames.shape == (9, 96, 64, 3)
    assert all("\n" not in message for message in caplog.messages)
    assert [message.split(" is skipped: ")[0] for message in caplog.messages] == damaged


def test_clips_of_a_video_are_spread_over_it():
    assert spread([0, 9, 18, 27, 36], 2) == [0, 18] and spread([0, 9], 5) == [0, 9] and spread([], 3) == []
