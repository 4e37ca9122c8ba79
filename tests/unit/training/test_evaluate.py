"""Figures and tables of the evidence by hand, and the evaluate command on the tiny models."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import changed

from swifti2v_core.stage_two.segments import plan_segments
from swifti2v_train.config import Config, Evaluate, Prepare
from swifti2v_train.data.photos import read_photo
from swifti2v_train.evaluation import evaluate
from swifti2v_train.evaluation.contact_sheets import strip
from swifti2v_train.evaluation.figures import (
    COLUMNS,
    comparison_table,
    figures,
    gap_figures,
    quality_table,
    spread,
)

TINY = Path(__file__).resolve().parents[2] / "assets" / "tiny"


def test_figures_leave_the_photo_out():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(5, 64, 64, 3, generator=generator) * 0.5 + 0.25
    clip = truth + 0.1
    clip[0] = 0
    found = figures(clip.clamp(0, 1), truth, 2.5)
    assert found["PSNR"] == pytest.approx(20.0, abs=1e-3) and found["seconds"] == 2.5
    assert found["sharpness"] == pytest.approx(1.0, abs=1e-4) and list(found) == list(COLUMNS)


def test_the_gap_is_a_share_of_the_squared_error():
    truth = torch.zeros(1, 2, 7, 1, 1)
    reference, made = truth + 2, truth + 2
    made[:, :, 1:4], made[:, :, 4:] = 1, 3  # errors of 1 and 9 where the reference has 4
    reference[:, :, 0] = made[:, :, 0] = 100  # the photo counts in nothing
    found = gap_figures(made, reference, truth, plan_segments(7))
    assert found["gap closed"] == pytest.approx(1 - 5 / 4)
    assert found["gap of segments"] == pytest.approx([1 - 1 / 4, 1 - 9 / 4])


def test_mean_and_spread():
    assert spread([1.0, 2.0, 6.0], 2) == "3.00 ± 2.65" and spread([4.0], 1) == "4.0"
    assert spread([1.0, math.nan], 2) == "-"


def row(clip, variant, psnr, ssim, seed=None, segments=(0.5, 0.25)):
    values = dict.fromkeys(COLUMNS, 1.0) | {"PSNR": psnr, "SSIM": ssim}
    return {
        "frames": 33,
        "clip": clip,
        "variant": variant,
        "seed": seed,
        "gap of segments": segments,
        **values,
    }


def test_tables_count_clip_by_clip():
    rows = [
        *(row(clip, "plain upscaling", psnr, 0.5) for clip, psnr in enumerate((20.0, 30.0))),
        *(row(clip, "z_ref, decoded", psnr, 0.4) for clip, psnr in enumerate((19.0, 29.0))),
        row(0, "CSG, 4 steps", 21.0, 0.6, seed=1),
        row(0, "CSG, 4 steps", 20.5, 0.4, seed=2),
        row(1, "CSG, 4 steps", 29.5, 0.6, seed=1),
        row(1, "CSG, 4 steps", 31.0, 0.4, seed=2, segments=(0.1, -0.15)),
    ]
    quality = quality_table(rows).splitlines()
    assert quality[2].startswith("| 33 | plain upscaling | 2 | 25.00 ± 7.07 | 0.5000 ± 0.0000 |")
    assert quality[4].startswith("| 33 | CSG, 4 steps | 4 | 25.50 ± ")
    (line,) = comparison_table(rows).splitlines()[2:]
    cells = ["75%", "50%", "25%", "0.50 ± 0.71", "1.50 ± 0.71", "0.400 ± 0.200", "0.150 ± 0.200"]
    assert line.strip("| ").split(" | ") == ["33", "CSG, 4 steps", *cells]


def test_a_strip_shows_the_first_and_the_last_frame():
    clip = torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 8, 16, 3)
    made = strip("ramp", clip, columns=3, cell_width=32)
    assert made.size == (96, 16 + 14)
    assert [made.getpixel((16 + 32 * column, 20))[0] for column in range(3)] == [0, 128, 255]


def test_photos_are_read_upright(tmp_path):
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    picture.save(tmp_path / "lying.png", exif=exif)
    photo = read_photo(tmp_path / "lying.png")
    assert photo.shape == (1, 4, 2, 3) and photo[0, 0, 1].min() == 1 and photo.sum() == 3


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
