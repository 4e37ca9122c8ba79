"""Finished segments on disk: complete or absent, never another run's, never outside their folder."""

import json
import logging
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from swifti2v_core.resume import saved_segments as module
from swifti2v_core.resume.saved_segments import SavedSegments, check_name

ROOT = Path(__file__).resolve().parents[3]
SHAPE = (1, 48, 3, 4, 6)
FINGERPRINTS = {"noise or seed": "a", "sigmas": "b"}


def frames(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def saved(tmp_path):
    made = SavedSegments(tmp_path / "base", "walk", FINGERPRINTS)
    made.prepare(0)
    return made


@pytest.fixture
def only_file(saved, tmp_path):
    """Path of the one segment that is saved."""
    saved.save(0, 0, frames())
    (path,) = (tmp_path / "base").rglob("*.safetensors")
    return path


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.INFO, "SwiftI2V")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_saved_segment_comes_back_bit_for_bit(saved, tmp_path):
    clip = torch.randn(1, 48, 9, 4, 6)
    clip[0, 0, 4, 0, :3] = torch.tensor([-0.0, 1e-42, torch.finfo(torch.float32).max])
    saved.save(2, 7, clip[:, :, 4:7])
    again = SavedSegments(tmp_path / "base", "walk", FINGERPRINTS).load(2, 7, SHAPE)
    assert torch.equal(again.view(torch.int32), clip[:, :, 4:7].contiguous().view(torch.int32))
    assert saved.load(2, 6, SHAPE) is None
    assert saved.load(0, 7, SHAPE) is None


def test_the_file_is_readable_by_others(only_file):
    assert torch.equal(load_file(only_file)["frames"], frames())
    assert os.stat(only_file).st_mode & 0o044 == 0o044 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_runs_under_one_name_do_not_mix(saved, tmp_path, warned):
    saved.save(0, 0, frames(0))
    other = SavedSegments(tmp_path / "base", "walk", {**FINGERPRINTS, "noise or seed": "c"})
    other.prepare(0)
    assert other.load(0, 0, SHAPE) is None
    other.log_restored(3, 3)
    assert warned() == [
        'Checkpoint "walk" holds a run that differs in noise or seed; this run starts from the beginning '
        "and is saved separately."
    ]
    other.save(0, 0, frames(1))
    other.delete()
    assert torch.equal(saved.load(0, 0, SHAPE), frames(0))


def test_the_nearest_run_is_named(tmp_path, warned):
    for fingerprints in ({"sigmas": "x", "noise or seed": "y"}, {**FINGERPRINTS, "sigmas": "x"}):
        saved = SavedSegments(tmp_path, "walk", fingerprints)
        saved.prepare(0)
        saved.save(0, 0, frames())
    SavedSegments(tmp_path, "walk", FINGERPRINTS).log_restored(3, 3)
    assert "differs in sigmas;" in warned()[0]


def test_the_number_of_restored_segments_is_logged(saved, warned):
    saved.log_restored(7, 2)
    saved.log_restored(7, 7)  # no other run: nothing to log
    assert warned() == ['Checkpoint "walk": 5 of 7 segments restored.']


def test_deleting_leaves_nothing_but_others(saved, only_file, tmp_path):
    foreign = only_file.parent.parent / "notes.txt"
    foreign.write_text("mine")
    saved.delete()
    assert [path for path in (tmp_path / "base").rglob("*") if path.is_file()] == [foreign]
    foreign.unlink()
    saved.prepare(0)
    saved.delete()
    assert list((tmp_path / "base").iterdir()) == []


# --- Files that are not what they should be --------------------------------------------------------


def header_of(path):
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def other_metadata(path, **changes):
    header, data = header_of(path)
    header["__metadata__"] = {**header["__metadata__"], **changes}
    return with_header(header, data)


def other_tensor(path, **changes):
    header, data = header_of(path)
    header["frames"] = {**header["frames"], **changes}
    return with_header(header, data)


BROKEN = {
    "empty": lambda path: b"",
    "cut in the header": lambda path: path.read_bytes()[:100],
    "cut in the frames": lambda path: path.read_bytes()[:-1],
    "one byte too many": lambda path: path.read_bytes() + b"\0",
    "one bit of a frame flipped": lambda path: flipped(path.read_bytes(), -1000),
    "only zeros": lambda path: bytes(len(path.read_bytes())),
    "text": lambda path: b"x" * len(path.read_bytes()),
    "no metadata": lambda path: save({"frames": frames()}),
    "another segment": lambda path: other_metadata(path, segment="1"),
    "another clip": lambda path: other_metadata(path, clip="1"),
    "another run": lambda path: other_metadata(path, **{"part: sigmas": "z"}),
    "one more part": lambda path: other_metadata(path, **{"part: more": "z"}),
    "another format": lambda path: other_metadata(path, format="SwiftI2V segment 2"),
    "another checksum": lambda path: other_metadata(path, checksum="0" * 64),
    "header longer than the file": lambda path: struct.pack("<Q", 2**40) + path.read_bytes()[8:],
    "header of the largest length": lambda path: struct.pack("<Q", 2**64 - 1) + path.read_bytes()[8:],
    "10 GB of frames": lambda path: other_tensor(
        path, shape=[1, 48, 3, 4000, 4000], data_offsets=[0, 9_216_000_000]
    ),
    "overflowing shape": lambda path: other_tensor(path, shape=[2**62, 2**62]),
    "negative shape": lambda path: other_tensor(path, shape=[1, 48, 3, -4, -6]),
    "offsets past the end": lambda path: other_tensor(path, data_offsets=[13824, 27648]),
    "offsets the wrong way round": lambda path: other_tensor(path, data_offsets=[13824, 0]),
    "another type": lambda path: other_tensor(path, dtype="I32"),
    "an unknown type": lambda path: other_tensor(path, dtype="F31"),
    "another shape": lambda path: other_tensor(path, shape=[1, 48, 3, 6, 4]),
    "another name": lambda path: with_header(*rename(path)),
    "a header that is no JSON": lambda path: with_header(b"{" * 500, header_of(path)[1]),
    "a header that is no text": lambda path: with_header(b"\xff\xfe" * 300, header_of(path)[1]),
    "a deep header": lambda path: with_header(b"[" * 30000 + b"]" * 30000, header_of(path)[1]),
    "a header that says frames twice": lambda path: with_header(twice(path), header_of(path)[1]),
}


def rename(path):
    header, data = header_of(path)
    header["Frames"] = header.pop("frames")
    return header, data


def twice(path):
    header, _ = header_of(path)
    text = json.dumps(header)
    lie = json.dumps({**header["frames"], "shape": [1, 48, 3, 2, 12]})
    return (text[:-1] + f', "frames": {lie}}}').encode()


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_logged_in_one_line_and_ignored(saved, only_file, warned, case):
    only_file.write_bytes(BROKEN[case](only_file))
    assert saved.load(0, 0, SHAPE) is None
    (line,) = warned()
    assert line.startswith('Checkpoint "walk": clip-0000-segment-00000.safetensors is ignored: it ')
    assert "\n" not in line and len(line) < 300
    # The next run writes over it.
    saved.save(0, 0, frames(5))
    assert torch.equal(saved.load(0, 0, SHAPE), frames(5))


def test_a_broken_file_is_no_run_to_compare_with(saved, only_file, tmp_path, warned):
    for case in BROKEN.values():
        broken = case(only_file)
        folder = tmp_path / "base" / "walk" / "0123456789abcdef"
        folder.mkdir(exist_ok=True)
        (folder / "clip-0000-segment-00000.safetensors").write_bytes(broken)
        SavedSegments(tmp_path / "base", "walk", {"noise or seed": "new"}).log_restored(3, 3)
    assert all("starts from the beginning" in line for line in warned())


def test_another_size_is_logged(saved, only_file, warned):
    assert saved.load(0, 0, (1, 48, 3, 40, 60)) is None
    assert "where 1382400 and a short header belong" in warned()[0]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_a_pipe_does_not_hang_and_a_link_is_not_followed(saved, only_file, tmp_path, warned):
    elsewhere = tmp_path / "elsewhere.safetensors"
    only_file.rename(elsewhere)
    only_file.symlink_to(elsewhere)
    assert saved.load(0, 0, SHAPE) is None
    saved.save(0, 0, frames(1))  # takes the link's place, not its target's
    assert torch.equal(load_file(elsewhere)["frames"], frames(0))
    assert not only_file.is_symlink()
    only_file.unlink()
    os.mkfifo(only_file)
    assert saved.load(0, 0, SHAPE) is None
    assert [line.partition("ignored: ")[2] for line in warned()] == ["it is no regular file."] * 2
    only_file.unlink()
    only_file.mkdir()
    assert saved.load(0, 0, SHAPE) is None


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["walk", "My clip 2", "café", "写真-01", "a.b", "x" * 60, "con-1", "_"])
def test_valid_names_are_accepted(name):
    check_name(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("../up", "_up"),
        ("..", "checkpoint"),
        (".", "checkpoint"),
        ("", "checkpoint"),
        ("/etc", "_etc"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("C:", "C_"),
        ("a\0b", "a_b"),
        ("a\nb", "a_b"),
        (" a", "a"),
        ("a.", "a"),
        ("x" * 61, "x" * 60),
        ("con", "_con"),
        ("NUL.txt", "_NUL.txt"),
        ("Com1", "_Com1"),
        ("%date%", "_date_"),
        ("a" + "\u202e" + "b", "a_b"),
    ],
)
def test_invalid_names_are_refused_with_the_nearest_valid_one(name, nearest):
    with pytest.raises(ValueError, match="checkpoint is") as error:
        check_name(name)
    assert str(error.value).endswith(f'the nearest valid value is "{nearest}".')
    check_name(nearest)


def test_a_long_name_is_shortened_in_the_message():
    with pytest.raises(ValueError, match="checkpoint is") as error:
        check_name("y" * 10**6)
    assert len(str(error.value)) < 500


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "base" / "walk").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="its folder is a link to"):
        SavedSegments(tmp_path / "base", "walk", FINGERPRINTS)
    assert list((tmp_path / "secret").iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_run_that_leads_elsewhere_is_refused(saved, tmp_path):
    (folder,) = (tmp_path / "base" / "walk").iterdir()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="its folder is a link to"):
        SavedSegments(tmp_path / "base", "walk", FINGERPRINTS)


def test_the_base_may_be_a_link(tmp_path):
    """People keep ComfyUI's output on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "output").symlink_to(tmp_path / "disk")
    made = SavedSegments(tmp_path / "output" / "checkpoints", "walk", FINGERPRINTS)
    made.prepare(0)
    made.save(0, 0, frames())
    assert torch.equal(made.load(0, 0, SHAPE), frames())


# --- Disks that refuse ----------------------------------------------------------------------------


def test_a_folder_that_cannot_be_created_is_reported_before_the_run(tmp_path):
    (tmp_path / "base").write_text("a file where the folder should be")
    with pytest.raises(
        ValueError, match=r'^checkpoint is "walk", but .* cannot be written to \(.*make it writable\.$'
    ):
        SavedSegments(tmp_path / "base", "walk", FINGERPRINTS).prepare(0)


def test_a_disk_without_space_is_reported_before_the_run(saved, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=5 * 2**20)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    saved.prepare(5 * 2**20)
    with pytest.raises(ValueError, match=r"needs 5.5 MB in .*, but only 5.0 MB are free; free some space"):
        saved.prepare(11 * 2**19)


def test_a_full_disk_costs_a_warning_and_is_caught_up(saved, monkeypatch, warned, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "fsync", full)
        saved.save(0, 0, frames(0))
        saved.save(0, 1, frames(1))
    assert ["1 finished segments" in warned()[0], "2 finished segments" in warned()[1]] == [True, True]
    assert "No space left on device" in warned()[0]
    assert list((tmp_path / "base").rglob("*.*")) == []
    saved.save(0, 2, frames(2))
    assert len(warned()) == 2
    for number in range(3):
        assert torch.equal(saved.load(0, number, SHAPE), frames(number))


def test_folders_that_cannot_be_flushed_do_not_matter(saved, monkeypatch, warned):
    """Some network mounts refuse it."""
    flush = os.fsync

    def refuse(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(module.os, "fsync", refuse)
    for number in range(3):
        saved.save(0, number, frames(number))
        assert torch.equal(saved.load(0, number, SHAPE), frames(number))
    assert warned() == []


def test_what_a_killed_process_left_is_cleared(saved, only_file):
    left = only_file.with_name(f"{only_file.name}.0123.part")
    left.write_bytes(b"half")
    saved.prepare(0)
    assert not left.exists() and only_file.exists()


def test_a_folder_that_vanished_comes_back(saved, tmp_path):
    shutil.rmtree(tmp_path / "base")
    saved.save(0, 0, frames())
    assert torch.equal(saved.load(0, 0, SHAPE), frames())


def test_the_clock_does_not_matter(saved, only_file, monkeypatch):
    os.utime(only_file, (0, 0))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    assert torch.equal(saved.load(0, 0, SHAPE), frames())
    saved.save(0, 1, frames(1))
    os.utime(only_file, (2**40, 2**40))
    assert torch.equal(saved.load(0, 0, SHAPE), frames())


WRITER = """
import sys
sys.path += {paths!r}
import test_saved_segments as t
from pathlib import Path
made = t.SavedSegments(Path({base!r}), "walk", t.FINGERPRINTS)
for round in range(8):
    made.prepare(0)
    for segment in range(4):
        made.save(0, segment, t.frames(segment))
        found = made.load(0, segment, t.SHAPE)
        assert found is None or t.torch.equal(found, t.frames(segment))
    if {deletes}:
        made.delete()
"""


@pytest.mark.parametrize("deletes", [False, True])
def test_processes_on_one_folder_do_not_harm_each_other(tmp_path, deletes):
    paths = [str(ROOT), str(ROOT / "tests" / "unit" / "resume")]
    code = WRITER.format(paths=paths, base=str(tmp_path), deletes=deletes)
    running = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], [text[-1500:] for text in errors]
    made = SavedSegments(tmp_path, "walk", FINGERPRINTS)
    for segment in range(4):
        found = made.load(0, segment, SHAPE)
        assert found is None if deletes else torch.equal(found, frames(segment))
    assert not list(tmp_path.rglob("*.part"))
