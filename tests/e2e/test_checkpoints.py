"""Checkpoints on the real server: a kill, two servers on one folder, disks that refuse."""

import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from benchmarks.endurance.kill import KillTest, run
from devtools import paths
from devtools.comfyui_server import Server
from devtools.terminal import DevError


@pytest.fixture(scope="module")
def test(tmp_path_factory):
    """A workspace of its own, with servers that are started and killed."""
    return KillTest(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def server(test):
    """The first server on that workspace."""
    with test.server() as running:
        yield running


@pytest.fixture(scope="module")
def expected(test, server):
    """The latent of an undisturbed run."""
    server.wait(*test.queue(server, "undisturbed", checkpoint=""))
    return test.saved("undisturbed")


@pytest.fixture
def disk(test, tmp_path):
    """A disk of 600 kB where the checkpoints go; a run of the graph needs 516,096 bytes."""
    test.checkpoints.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(test.checkpoints)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be made on Linux by root only")
    yield test.checkpoints
    subprocess.run(["umount", str(test.checkpoints)], check=True)


def test_a_killed_server_loses_the_segment_in_flight_at_most(tmp_path):
    class Late:
        """A moment at which some segments are finished."""

        def uniform(self, _start, end):
            return 0.7 * end

    (kill,) = run(KillTest(tmp_path), 1, Late())
    assert kill.equal and kill.resumed == kill.on_disk > 0


def test_two_servers_on_one_folder_do_not_mix(test, server, expected, tmp_path):
    """Both make the same clip at the same time, and then one of them another clip under the same name."""
    test.clear()
    other = Server(test.host, test.workspace, log_path=tmp_path / "log", extra_args=test.options)
    with other:
        both = [test.queue(server, "first"), test.queue(other, "second")]
        thread = threading.Thread(target=other.wait, args=both[1])
        thread.start()
        server.wait(*both[0])
        thread.join()
        other.wait(*test.queue(other, "other", seed=2))
    assert test.saved("first") == test.saved("second") == expected != test.saved("other")
    assert len(list((test.checkpoints / "kill test").iterdir())) == 2
    server.wait(*test.queue(server, "again"))
    assert test.saved("again") == expected


def test_a_run_is_resumed_elsewhere(test, server, expected, tmp_path):
    """By a second server: ComfyUI, base folder and pack lie elsewhere, the pack under another name.

    The first server leaves three of seven segments and lives on, so nothing but files is shared.
    """
    test.clear()
    server.wait(*test.queue(server, "here"))
    (run,) = (test.checkpoints / "kill test").iterdir()
    for path in sorted(run.iterdir())[3:]:
        path.unlink()
    other = KillTest(tmp_path / "another base")
    packs = other.workspace / "custom_nodes"
    (packs / "swifti2v").unlink()
    hidden = shutil.ignore_patterns(".*", "__pycache__", "tests", "benchmarks")
    shutil.copytree(paths.REPO, packs / "My nodes 2.0", ignore=hidden)
    (tmp_path / "host").symlink_to(test.host.folder, target_is_directory=True)
    other.host = replace(test.host, folder=tmp_path / "host")
    shutil.copytree(test.checkpoints, other.checkpoints)
    with other.server() as elsewhere:
        elsewhere.wait(*other.queue(elsewhere, "there"))
    assert other.saved("there") == expected
    assert other.segments_resumed() == 3
    assert [path.name for path in (other.checkpoints / "kill test").iterdir()] == [run.name]


def test_a_disk_that_fills_up_costs_nothing_but_a_warning(test, server, expected, disk):
    def fill():
        while not test.segments_saved():
            time.sleep(0.005)
        (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free))

    thread = threading.Thread(target=fill)
    thread.start()
    server.wait(*test.queue(server, "filling"))
    thread.join()
    assert test.saved("filling") == expected
    assert "segments are not on disk yet (No space left on device)" in test.log.read_text()
    assert 1 <= test.segments_saved() < 7 and not list(disk.rglob("*.part"))
    (disk / "filler").unlink()
    server.wait(*test.queue(server, "room-again"))
    assert test.saved("room-again") == expected
    assert test.segments_saved() == 7


def test_a_disk_without_room_stops_the_run_before_it_begins(test, server, expected, disk):
    (disk / "filler").write_bytes(bytes(200_000))
    with pytest.raises(DevError, match=r"needs 0\.5 MB in .*, but only 0\.4 MB are free; free some space"):
        server.wait(*test.queue(server, "full"))


def test_a_folder_that_is_read_only_stops_the_run_before_it_begins(test, server, expected, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(DevError, match=r"cannot be written to \(Read-only file system\); make it"):
        server.wait(*test.queue(server, "read-only"))
    server.wait(*test.queue(server, "without", checkpoint=""))  # the queue goes on
    assert test.saved("without") == expected


def test_a_clock_that_went_back_changes_nothing(test, server, expected):
    test.clear()
    server.wait(*test.queue(server, "before"))
    for path in test.checkpoints.rglob("*"):
        os.utime(path, (time.time() + 10**8, time.time() + 10**8))
    server.wait(*test.queue(server, "after"))
    assert test.saved("before") == test.saved("after") == expected
    assert test.segments_resumed() == 7
