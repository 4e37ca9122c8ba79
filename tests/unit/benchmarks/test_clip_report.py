"""The command that prints the figures of a clip, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "benchmarks" / "quality" / "clip_report.py"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A noise picture that brightens at frame 13, where the second segment starts."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    noise = np.random.default_rng(0).integers(60, 160, (64, 128, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt, stream.options = 128, 64, "yuv444p", {"crf": "1"}
        for frame in range(25):
            picture = noise + np.uint8(60 * (frame >= 13))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks.quality.clip_report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_figures_and_plot_against_a_truth(clip, tmp_path):
    plot = tmp_path / "plot.png"
    done = run(clip, "--truth", clip, "--plot", plot)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "clip.mp4: 25 frames of 128x64, 7 latent frames, segments of 3"
    assert lines[1].endswith("Laplacian    lattice     motion       PSNR       SSIM")
    rows = [line.split() for line in lines[2:9]]
    assert [row[:2] for row in rows[:3]] == [["0", "0"], ["1", "1-4"], ["2", "5-8"]]
    assert all(row[5:] == ["inf", "1.000"] for row in rows)
    assert float(rows[4][4]) > 10 > float(rows[5][4])  # the jump, as motion
    figures = {line[:19].strip(): line[19:].split()[0] for line in lines[9:]}
    assert list(figures) == [
        "Laplacian ratio", "Laplacian slope", "lattice peak", "lattice frequency", "luma pulse",
        "seam energy", "motion", "PSNR", "SSIM",
    ]  # fmt: skip
    assert float(figures["Laplacian ratio"]) == pytest.approx(1, abs=0.05)
    assert float(figures["seam energy"]) > 100
    with Image.open(plot) as picture:
        assert picture.size == (1600, 3 * 400 + 56)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing.mp4"], "No such file or directory"),
        ([SCRIPT], "Invalid data found"),
        (["clip", "--segment-frames", "0"], "--segment-frames is 0, but it must be at least 1"),
    ],
)
def test_errors_are_one_sentence(arguments, words):
    failed = run(*arguments)
    assert failed.returncode and words in failed.stderr and "Traceback" not in failed.stderr
