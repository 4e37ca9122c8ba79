"""The prepared dataset: clips are read back, and an interrupted run resumes."""

import json

import pytest
import torch
from safetensors import safe_open

from swifti2v_train.data.dataset import Dataset, DatasetWriter


def tensors(seed, frames=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(48, frames, 4, 6, generator=generator),
        "references": torch.randn(2, 48, frames, 4, 6, generator=generator),
        "motion": torch.randn(48, frames, 2, 3, generator=generator),
    }


def append(writer, name, values):
    writer.append(name, values, height=64, width=96, fps=16, source="photo.jpg", sigmas=(0, 0.5))


def test_clips_come_back_from_their_shards(tmp_path):
    written = {name: tensors(seed) for seed, name in enumerate(("one", "two", "three"))}
    written["three"]["text"] = torch.randn(5, 32)
    size = sum(value.numel() * 2 for value in written["one"].values())
    with DatasetWriter(tmp_path, shard_bytes=2 * size) as writer:
        for name, values in written.items():
            append(writer, name, values)
    dataset = Dataset(tmp_path)
    assert [clip.shard for clip in dataset.clips] == ["shard-00000.safetensors"] * 2 + [
        "shard-00001.safetensors"
    ]
    for number, values in enumerate(written.values()):
        assert torch.equal(dataset.latents(number), values["latents"].half().float())
        assert torch.equal(dataset.reference(number, 1), values["references"][1].half().float())
        assert torch.equal(dataset.motion(number), values["motion"].half().float())
    assert torch.equal(dataset.text(0, 32), torch.zeros(8, 32))
    assert torch.equal(dataset.text(2, 32), written["three"]["text"].half().float())
    assert dataset.clips[0].latent_frames == 4 and dataset.clips[0].sigmas == (0, 0.5)


def test_an_interrupted_run_keeps_its_clips_and_resumes(tmp_path):
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path) as writer:
        append(writer, "one", tensors(0))
        raise KeyboardInterrupt
    before = (tmp_path / "shard-00000.safetensors").read_bytes()
    with DatasetWriter(tmp_path) as writer:
        assert "one" in writer and "two" not in writer
        with pytest.raises(ValueError, match="already has a clip one"):
            append(writer, "one", tensors(0))
        append(writer, "two", tensors(1))
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == before
    assert [clip.name for clip in Dataset(tmp_path).clips] == ["one", "two"]
    assert not list(tmp_path.glob("*.part"))


def test_layout_of_the_folder(tmp_path):
    """Read without `Dataset`, as another program would."""
    with DatasetWriter(tmp_path) as writer:
        append(writer, "one", tensors(0))
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["version"] == 1
    assert index["clips"] == [
        {
            "name": "one", "shard": "shard-00000.safetensors", "latent_frames": 4, "height": 64,
            "width": 96, "fps": 16, "source": "photo.jpg", "sigmas": [0, 0.5],
        }
    ]  # fmt: skip
    with safe_open(tmp_path / "shard-00000.safetensors", framework="pt") as shard:
        assert set(shard.keys()) == {"one.latents", "one.references", "one.motion"}
        assert shard.get_tensor("one.references").dtype == torch.float16


def test_a_folder_without_a_dataset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no index\.json; run the prepare command first"):
        Dataset(tmp_path)
    (tmp_path / "index.json").write_text('{"version": 2, "clips": []}')
    with pytest.raises(ValueError, match="version 2, but this program reads version 1"):
        Dataset(tmp_path)
