"""The evaluate command on the tiny models."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_training import changed

from swifti2v_train.config import Config, Evaluate, Prepare
from swifti2v_train.evaluation import evaluate
from swifti2v_train.evaluation.figures import quality_table

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    settings = Prepare(
        autoencoder=str(TINY / "tiny_vae48.safetensors"),
        width=128,
        height=64,
        motion_width=64,
        motion_height=32,
        frames=9,
    )
    wanted = Evaluate(
        sources=(str(TINY / "photos" / "life.jpg"),),
        stage_two=str(TINY / "tiny_stage2_detail.safetensors"),
        output=str(tmp_path_factory.mktemp("evaluation")),
    )
    return Config(prepare=settings, evaluate=wanted)


def test_evaluate_writes_tables_and_sheets(config):
    rows = evaluate.run(config)
    csg = [f"CSG, {steps}" for steps in ("1 step", "2 steps", "4 steps")]
    names = ["plain upscaling", "truth, through the autoencoder", "z_ref, decoded", *csg]
    assert [found["variant"] for found in rows] == names
    values = {found["variant"]: found for found in rows}
    assert values["truth, through the autoencoder"]["gap closed"] == 1
    assert values["z_ref, decoded"]["gap closed"] == 0
    assert len({round(values[name]["PSNR"], 6) for name in names}) == 6
    assert values["CSG, 4 steps"]["gap closed"] < 1
    folder = Path(config.evaluate.output)
    assert quality_table(rows) in (folder / "table.md").read_text()
    kept = json.loads((folder / "figures.json").read_text())
    assert [found["PSNR"] for found in kept] == [found["PSNR"] for found in rows]
    with Image.open(folder / f"{rows[0]['clip']}.jpg") as sheet:
        assert sheet.size == (5 * 240, 7 * (120 + 14))
    again = evaluate.run(config)
    assert [found["PSNR"] for found in again] == [found["PSNR"] for found in rows]


def test_evaluate_needs_a_folder(config):
    with pytest.raises(ValueError, match="evaluate: output is empty"):
        evaluate.run(changed(config, evaluate=changed(config.evaluate, output="")))
