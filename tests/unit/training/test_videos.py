"""Clips of video files, at the requested rate and size."""

import numpy as np
import pytest
import torch
from synthetic_shots import counting, shot, world, write_video

from swifti2v_train.data.videos import clip_starts, clips_of, thumbnails_of


def test_clips_lie_side_by_side_within_the_shots():
    clip = torch.cat([shot(1, 25), shot(2, 9), shot(3, 18)])
    assert clip_starts(clip, 9) == [0, 9, 25, 34, 43]
    assert clip_starts(clip[:8], 9) == []


@pytest.mark.parametrize("fps", [8, 16, 24, 30, 48])
def test_frames_are_those_on_the_screen_at_each_moment(tmp_path, fps):
    write_video(tmp_path / "c.mp4", counting(48), 24)
    (clip,) = clips_of(tmp_path / "c.mp4", [0], 2 * fps, fps, 64, 96)
    numbers = (clip[:, -1].mean(dim=(1, 2)) * 255 / 4).round().int().tolist()
    assert numbers == [int(k / fps * 24 + 1e-6) for k in range(2 * fps)]


def test_tall_pictures_are_cut_to_the_middle(tmp_path):
    write_video(tmp_path / "tall.mp4", counting(9, 96, 64), 16)
    (clip,) = clips_of(tmp_path / "tall.mp4", [0], 9, 16, 64, 32)
    assert clip.shape == (9, 32, 64, 3) and clip.dtype == torch.float32
    # The middle third: half of it from the upper half of the picture.
    assert float(clip[3, :14].mean() * 255) == pytest.approx(52, abs=1.5)
    assert float(clip[3, 18:].mean() * 255) == pytest.approx(12, abs=1.5)


def test_a_lying_video_is_turned_upright(tmp_path):
    """The display matrix in the file's track header says how; written here by hand."""
    write_video(tmp_path / "c.mp4", counting(9, 64, 96), 16)
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
    write_video(tmp_path / "cuts.mp4", frames, 16)
    starts = clip_starts(thumbnails_of(tmp_path / "cuts.mp4", 16), 5)
    assert starts == [0, 5, 10, 15, 20, 26, 31]
    clips = clips_of(tmp_path / "cuts.mp4", starts[1:], 5, 16, 96, 64)
    for start, clip in zip(starts[1:], clips, strict=True):
        truth = torch.from_numpy(frames[start : start + 5]).float() / 255
        assert (clip - truth).abs().mean() < 0.02
