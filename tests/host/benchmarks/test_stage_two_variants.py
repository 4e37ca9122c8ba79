"""The variants of the report on Stage II at tiny size: their figures are those of the metrics."""

import math

import pytest
import torch
from PIL import Image

import nodes as host_nodes
from benchmarks.quality import stage_one_report
from benchmarks.quality import stage_two_report as report
from benchmarks.quality.tiny_comfyui import Bench
from swifti2v_train.evaluation.figures import COLUMNS
from swifti2v_train.evaluation.metrics import fidelity

WIDTH, HEIGHT, FRAMES = 128, 64, 17


@pytest.fixture(scope="module")
def bench(pack, stage_one, stage_two, vae):
    return Bench({**host_nodes.NODE_CLASS_MAPPINGS, **pack.nodes}, stage_one, stage_two, vae)


@pytest.fixture(scope="module")
def task(bench, photo):
    return report.prepare(bench, report.fixed_clip([photo], 0, WIDTH, FRAMES), softened=False)


@pytest.fixture(scope="module")
def by_hand(run, photo, vae):
    """Motion, truth and reference by nodes alone."""
    camera = {"pan_x": 0.08, "zoom": 1.15, "rotate": 2.0, "sway": 0.01, "seed": 1, "frames": FRAMES}
    motion = run("SwiftI2V_CameraMotion", image=photo, width=64, height=32, **camera)[0]
    truth = run("SwiftI2V_CameraMotion", image=photo, width=WIDTH, height=HEIGHT, **camera)[0]
    size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}
    z_ref = run("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, **size)[0]
    return motion, truth, z_ref


def decoded(run, vae, latent):
    return run("SwiftI2V_TiledVAEDecode", samples=latent, vae=vae)[0].clamp(0, 1)


@pytest.mark.parametrize(
    ("variant", "options"),
    [("bidirectional", {"drift_control": 0.0}), ("drift control 1", {}), ("z_ref, decoded", None)],
)
def test_figures_are_those_of_the_metrics(
    pack, bench, task, run, stage_two, vae, by_hand, variant, options
):
    variants = {**report.YARDSTICKS, **report.VARIANTS}
    values, clip = report.measure(bench, task, variants[variant], 1)
    _, truth, latent = by_hand
    if options is not None:
        latent = run("SwiftI2V_SegmentSampler", model=stage_two, z_ref=latent, seed=1, **options)[0]
    frames = decoded(run, vae, latent)
    assert torch.equal(task.truth, truth) and torch.equal(clip, frames)

    likeness = [likeness_of(*pair) for pair in zip(frames, truth, strict=True)]
    decibel, similarity = zip(*likeness[1:], strict=True)
    assert values["PSNR"] == pytest.approx(sum(decibel) / 16, rel=1e-5)
    assert values["PSNR end"] == pytest.approx(sum(decibel[-4:]) / 4, rel=1e-5)
    assert values["SSIM"] == pytest.approx(sum(similarity) / 16, rel=1e-5)
    sharp, true_sharp = ([sharpness(frame) for frame in part] for part in (frames, truth))
    assert values["Laplacian"] == pytest.approx(sum(sharp[-4:]) / 4 / sharp[0], rel=1e-5)
    assert values["sharpness"] == pytest.approx(sum(sharp[-4:]) / sum(true_sharp[-4:]), rel=1e-5)
    assert math.isnan(values["pulse"]) and values["seam"] > 0  # 17 frames are less than two periods


def likeness_of(frame, truth):
    """PSNR and SSIM of two frames, PSNR by its definition."""
    error = (frame.double() - truth.double()).square().mean()
    return -10 * math.log10(error), fidelity(frame, truth).ssim


def sharpness(frame):
    luma = (frame.double() @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[None, None]
    kernel = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)[None, None]
    return float(torch.nn.functional.conv2d(luma, kernel).std())


def test_yardsticks_need_no_model(bench, task, by_hand):
    found, _ = report.measure(bench, task, report.VARIANTS["truth"], None)
    assert math.isinf(found["PSNR"]) and found["SSIM"] == 1 and found["sharpness"] == 1
    _, frames = report.measure(bench, task, report.YARDSTICKS[report.PLAIN], None)
    assert torch.equal(frames, report.resize(by_hand[0], WIDTH, HEIGHT))


@pytest.mark.parametrize("variant", ["anchor without detail", "no anchor"])
def test_another_anchor_reaches_windows_alone(bench, task, variant):
    before = task.z_ref["samples"].clone()
    made = report.VARIANTS[variant](bench, task, 1)["samples"]
    usual = report.VARIANTS["bidirectional"](bench, task, 1)["samples"]
    assert torch.equal(made[:, :, :1], before[:, :, :1]) and torch.equal(task.z_ref["samples"], before)
    assert (made - usual)[:, :, 1:].abs().mean() > 0.01


def test_a_whole_clip_in_one_window_is_one_segment(bench, task, run, stage_two):
    """The benchmark's own sampling is set up as the segment sampler's is."""
    segment = run(
        "SwiftI2V_SegmentSampler",
        model=stage_two, z_ref=task.z_ref, seed=1, drift_control=0.0, segment_frames=4,
    )[0]["samples"]  # fmt: skip
    whole = report.VARIANTS["full attention"](bench, task, 1)["samples"]
    assert (segment - whole)[:, :, 1:].abs().max() < 1e-4
    windowed = report.full_length(bench, task, 1, window_frames=2)["samples"]
    assert (windowed - whole)[:, :, 1:].abs().mean() > 0.01


def test_a_keyframe_moves_the_end_towards_the_truth(bench, task):
    psnr = {
        name: report.measure(bench, task, report.VARIANTS[name], 1)[0]["PSNR end"]
        for name in ("bidirectional", "keyframe at the end")
    }
    assert psnr["keyframe at the end"] > psnr["bidirectional"]


def test_reshifting_is_measured_without_a_truth(bench, photo):
    size, figures = (64, 64), {}
    for name, options in stage_one_report.RESHIFTING.items():
        figures[name], clip = stage_one_report.measure(bench, photo, size, 9, options)
        assert clip.shape == (9, 64, 64, 3) and list(figures[name]) == list(stage_one_report.COLUMNS)
    motions = {values["motion"] for values in figures.values()}
    assert len(motions) == 3 and all(motion > 0 for motion in motions)


def test_rows_table_and_sheets(bench, tmp_path):
    names = ["truth", "bidirectional", "drift control 0.5"]
    words = ["--comfyui", "x", "--raw", str(tmp_path / "rows.jsonl"), "--width", str(WIDTH), "--clips", "1"]
    words += ["--camera", "fixed", "--frames", "9", "--seeds", "1", "--sheets", str(tmp_path)]
    options = report.parser().parse_args([*words, "--variants", *names])
    report.run(bench, options)
    rows = {row["variant"]: row for row in report.read_rows(options.raw)}
    assert list(rows) == [report.CEILING, report.PLAIN, report.REFERENCE, *names]
    quality, comparison = report.tables([*rows.values()]).split("\n\n")
    lines = quality.splitlines()[2:]
    assert [line.split(" | ")[1] for line in lines] == list(rows)
    cells = lines[4].strip("| ").split(" | ")[3:]
    for cell, (column, decimals) in zip(cells, COLUMNS.items(), strict=True):
        value = rows["bidirectional"][column]
        assert cell == (f"{value:.{decimals}f}" if math.isfinite(value) else "-")
    assert [line.split(" | ")[1] for line in comparison.splitlines()[2:]] == names[1:]
    with Image.open(tmp_path / "clip00_9.jpg") as sheet:
        assert sheet.size == (5 * 240, 7 * (120 + 14))
