"""Figures and tables of Stage II, computed by hand."""

import math

import pytest
import torch

from swifti2v_core.stage_two.segments import plan_segments
from swifti2v_train.evaluation.figures import (
    COLUMNS,
    comparison_table,
    figures,
    gap_figures,
    quality_table,
    spread,
)


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
