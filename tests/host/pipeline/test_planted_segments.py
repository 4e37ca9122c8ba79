"""Saved segments from strangers count as none."""

import os

import pytest
import torch
from lying_files import LIES
from swifti2v.swifti2v_core.resume import saved_segments


def outside_file(path, tmp_path):
    secret = tmp_path / "secret"
    path.rename(secret)  # even the right one, where a link leads to it
    path.symlink_to(secret)


def folder(path, tmp_path):
    path.unlink()
    path.mkdir()


def pipe(path, tmp_path):
    path.unlink()
    os.mkfifo(path)


PLANTED = {
    "link": outside_file,
    "folder": folder,
    **({"pipe": pipe} if hasattr(os, "mkfifo") else {}),
    **{lie: lambda path, _, data=data: path.write_bytes(data) for lie, data in LIES.items()},
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_checkpoint_from_a_stranger_counts_as_none(pack, tmp_path, caplog, what):
    module, frames = saved_segments, torch.ones(1, 48, 1, 2, 2)
    held = module.SavedSegments(tmp_path, "clip", {"seed": "1"})
    held.save(0, 0, frames)
    assert torch.equal(held.load(0, 0, frames.shape), frames)
    (path,) = tmp_path.rglob("*.safetensors")
    PLANTED[what](path, tmp_path)
    assert held.load(0, 0, frames.shape) is None
    assert caplog.messages[-1].startswith(f'Checkpoint "clip": {path.name} is ignored: it ')
    assert len(caplog.messages[-1]) < 400 and "\n" not in caplog.messages[-1]
