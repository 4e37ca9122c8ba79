"""Clips of a folder of photos and videos."""

import logging

from synthetic_shots import counting, write_video

from swifti2v_train.config import Prepare
from swifti2v_train.data.clips import find_sources, make_clips, spread


def test_damaged_files_are_reported_in_one_line_and_skipped(tmp_path, caplog):
    write_video(tmp_path / "good.mp4", counting(9), 16)
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
    assert [message.removeprefix("Skipping ").split(": ")[0] for message in caplog.messages] == damaged


def test_clips_of_a_video_are_evenly_spaced():
    assert spread([0, 9, 18, 27, 36], 2) == [0, 18] and spread([0, 9], 5) == [0, 9] and spread([], 3) == []
