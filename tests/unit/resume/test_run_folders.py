"""The runs under one name: what is said about them, and which are deleted."""

import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from swifti2v_core.resume import run_folders
from swifti2v_core.resume.saved_segments import SavedSegments

DAY = 24 * 3600
MEGABYTE = torch.zeros(1, 1, 1, 512, 512)  # of float32


@pytest.fixture
def make_run(tmp_path):
    """Save runs under one name; return what a run's SavedSegments and folder are."""

    def make(seed, days=0.0, segments=1):
        saved = SavedSegments(tmp_path, "walk", {"noise or seed": str(seed)})
        saved.prepare(0)
        for number in range(segments):
            saved.save(0, number, MEGABYTE)
        for path in saved._folder.iterdir():
            os.utime(path, (time.time() - days * DAY,) * 2)
        return saved

    return make


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "SwiftI2V")
    return lambda: [record.getMessage() for record in caplog.records]


def left(tmp_path):
    return {path.name for path in (tmp_path / "walk").iterdir()}


def test_what_lies_there_and_how_old_it_is_is_logged(make_run, said):
    mine = make_run(0)
    mine.log_others()
    assert said() == []  # nothing but the run itself
    make_run(1, days=12.4)
    mine.log_others()
    make_run(2, days=3, segments=2)
    mine.log_others()
    assert said() == [
        'Checkpoint "walk" holds 1 other run, 1.0 MB, 12 days old.',
        'Checkpoint "walk" holds 2 other runs, 3.0 MB, the oldest 12 days old.',
    ]


@pytest.mark.parametrize(
    ("seconds", "age"),
    [
        (-1e9, "less than a minute"),  # the clock was set back
        (59, "less than a minute"),
        (60, "1 minute"),
        (3599, "59 minutes"),
        (3600, "1 hour"),
        (47 * 3600, "1 day"),
        (400 * DAY, "400 days"),
    ],
)
def test_an_age_has_one_unit(tmp_path, seconds, age):
    run = run_folders.RunFolder(tmp_path, 2**20, seconds)
    assert run_folders.describe_runs([run]) == f"1 other run, 1.0 MB, {age} old"


def test_the_newest_runs_are_kept(make_run, said, tmp_path):
    others = [make_run(seed, days=seed) for seed in (4, 1, 3, 2)]
    mine = make_run(0, days=100)  # restored whole: nothing was written
    mine.delete_others(3)
    assert left(tmp_path) == {run._folder.name for run in (mine, others[1], others[3])}
    assert said() == ['Checkpoint "walk": the oldest 2 of 4 other runs are deleted (2.0 MB).']
    mine.delete_others(3)
    assert len(said()) == 1  # nothing to delete, nothing to say


def test_a_run_that_may_be_in_use_stays(make_run, said, tmp_path):
    recent, old = make_run(1, days=0.9 / 24), make_run(2, days=1.1 / 24)
    mine = make_run(0)
    mine.delete_others(1)
    assert left(tmp_path) == {mine._folder.name, recent._folder.name}
    assert not old._folder.exists()


def test_what_is_no_run_stays(make_run, tmp_path):
    folder = make_run(1, days=9)._folder
    mine = make_run(0)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    (folder.parent / ("a" * 16)).symlink_to(elsewhere, target_is_directory=True)
    shutil.copytree(folder, folder.parent / "my copy")
    (folder / "notes.txt").write_text("mine")
    (folder / "clip-0000-segment-00001.safetensors.x.part").write_bytes(b"")
    mine.delete_others(1)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    assert len(list(elsewhere.iterdir())) == len(list((folder.parent / "my copy").iterdir())) == 1


def test_files_that_another_server_deletes_meanwhile_do_not_matter(make_run, said, tmp_path, monkeypatch):
    gone, old, mine = make_run(1, days=9), make_run(2, days=8), make_run(0)
    read = run_folders._read_run

    def vanishing(folder):
        if folder == gone._folder:
            shutil.rmtree(folder, ignore_errors=True)
        return read(folder)

    monkeypatch.setattr(run_folders, "_read_run", vanishing)
    mine.log_others()
    runs = [run_folders.RunFolder(run._folder, 1, 9 * DAY) for run in (old, gone)]
    assert run_folders.delete_old_runs(runs, 0) == runs
    assert left(tmp_path) == {mine._folder.name}
    assert said() == ['Checkpoint "walk" holds 1 other run, 1.0 MB, 8 days old.']


def test_what_cannot_be_deleted_is_not_reported(make_run, said, monkeypatch):
    make_run(1, days=9)
    mine = make_run(0)

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folders.Path, "unlink", refuse)
    mine.delete_others(1)
    assert said() == []


def test_a_pruned_run_that_goes_on_saves_its_segments(make_run, tmp_path):
    other, mine = make_run(1, days=9), make_run(0)
    mine.delete_others(1)
    other.save(0, 1, MEGABYTE)
    assert other.load(0, 0, MEGABYTE.shape) is None
    assert torch.equal(other.load(0, 1, MEGABYTE.shape), MEGABYTE)


def test_pruning_while_others_write_harms_nobody(make_run, monkeypatch, said):
    """Even if the age of a run did not protect it, a segment is complete or absent."""
    monkeypatch.setattr(run_folders, "IN_USE_SECONDS", float("-inf"))
    mine, others, found = make_run(0), [make_run(1), make_run(2)], []

    def write(run):
        for number in range(40):
            run.prepare(0)
            run.save(0, number, MEGABYTE + number)
            found.append((number, run.load(0, number, MEGABYTE.shape)))

    with ThreadPoolExecutor(len(others)) as pool:
        writing = [pool.submit(write, run) for run in others]
        while not all(future.done() for future in writing):
            mine.delete_others(1)
        for future in writing:
            future.result()
    assert len(found) == 80
    assert all(frames is None or torch.equal(frames, MEGABYTE + number) for number, frames in found)
    assert not [line for line in said() if "is ignored" in line]
    assert torch.equal(mine.load(0, 0, MEGABYTE.shape), MEGABYTE)
