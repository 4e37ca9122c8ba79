"""Names and forms of video files: exclusive, with placeholders, playable, at exact rates."""

import logging
from datetime import datetime
from fractions import Fraction

import av
import pytest
import torch
from comfy_api.latest import io
from save_at_once import PREFIX, save_at_once
from swifti2v.nodes.comfyui import output_files
from swifti2v.nodes.pipeline import clip_file, video_file
from swifti2v.nodes.pipeline.output_name import fill_placeholders, format_date

NOW = datetime(2026, 3, 7, 9, 5, 4)

PROMPT = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 7, "cfg": 1.0, "sampler_name": "euler"}},
    "4": {"class_type": "KSampler", "inputs": {"seed": 8}, "_meta": {"title": "Second Pass"}},
    "5": {"class_type": "Note", "inputs": {"text": "a/b: c", "on": True, "from": ["3", 0]}},
    "6": {"class_type": "Note", "inputs": {"text": "renamed"}},
}
EXTRA = {"workflow": {"nodes": [{"id": 6, "properties": {"Node name for S&R": "MyNote"}}, {"id": 5}]}}


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("video/%date:yyyy-MM-dd%/clip", "video/2026-03-07/clip"),
        ("%date:yy.M.d_hh-mm-ss%", "26.3.7_09-05-04"),
        ("%date:h-m-s%_%date:yyy%", "9-5-4_yyy"),
        ("%KSampler.seed%_%KSampler.cfg%_%KSampler.sampler_name%", "7_1_euler"),
        ("%Second Pass.seed%", "8"),
        ("%Note.text%-%Note.on%", "a_b_ c-true"),
        ("%MyNote.text%", "renamed"),
        ("%year%/%width%x%height%", "%year%/%width%x%height%"),
        ("100%", "100%"),
    ],
)
def test_placeholders_are_filled_as_the_page_fills_them(prefix, name, caplog):
    with caplog.at_level(logging.WARNING, "SwiftI2V"):
        assert fill_placeholders(prefix, PROMPT, EXTRA, NOW) == name
    assert not caplog.records


@pytest.mark.parametrize(
    "prefix", ["%Nothing.seed%", "%KSampler.nothing%", "%Note.from%", "%date%", "%a.b.c%"]
)
@pytest.mark.parametrize("graph", [(PROMPT, EXTRA), (None, None), ({}, {"workflow": None})])
def test_a_placeholder_for_nothing_stays_and_is_reported(prefix, graph, caplog):
    with caplog.at_level(logging.WARNING, "SwiftI2V"):
        assert fill_placeholders(prefix, *graph, NOW) == prefix
    assert f"{prefix} in filename_prefix stands for no widget" in caplog.text


def test_every_part_of_a_date_has_its_short_and_long_form():
    assert format_date("d dd M MM h hh m mm s ss yy yyyy", NOW) == "7 07 3 03 9 09 5 05 4 04 26 2026"


@pytest.fixture
def save(run, vae, photo):
    """Save a clip of five frames and return its path below the output folder."""
    frames = torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 128)).movedim(1, -1)
    with torch.inference_mode():
        latent = vae.encode(frames.repeat(5, 1, 1, 1))

    def save_as(prefix, hidden=None, **options):
        inputs = {"samples": {"samples": latent}, "vae": vae, "filename_prefix": prefix, **options}
        return run("SwiftI2V_DecodeToVideo", hidden=hidden, **inputs)[0][0].get_stream_source()

    return save_as


def test_the_node_fills_placeholders_from_the_queued_graph(save, workspace):
    hidden = {io.Hidden.prompt: PROMPT, io.Hidden.extra_pnginfo: None}
    path = save("names/%date:yyyy%_%KSampler.seed%_%width%x%height%", hidden)
    year = datetime.now().year
    assert path == str(workspace / "output" / "names" / f"{year}_7_128x64_00001_.mp4")


def test_a_placeholder_cannot_leave_the_output_folder(save):
    hidden = {io.Hidden.prompt: {"1": {"class_type": "N", "inputs": {"a": "../../x"}}}}
    assert save("names/%N.a%", hidden).endswith("/names/.._.._x_00001_.mp4")
    with pytest.raises(ValueError, match="leaves ComfyUI's output folder"):
        save("../../%N.a%", hidden)


@pytest.fixture
def folder(workspace):
    path = workspace / "output" / "taken"
    yield path
    for file in path.glob("*"):
        file.unlink()


def test_a_name_is_taken_from_the_start_of_the_node(save, folder, monkeypatch):
    decode, seen = clip_file.decode_integers, []

    def spy(*args):
        seen.append(sorted(path.name for path in folder.iterdir()))
        with output_files.reserved_output_file("taken/clip", "mp4", 128, 64) as (path, _):
            seen.append(path.name)
        return decode(*args)

    monkeypatch.setattr(clip_file, "decode_integers", spy)
    save("taken/clip")
    assert seen == [["clip_00001_.mp4.part"], "clip_00002_.mp4"]
    assert [path.name for path in folder.iterdir()] == ["clip_00001_.mp4"]


def test_a_name_that_another_process_completed_meanwhile_is_not_taken(folder, monkeypatch):
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(
        output_files, "get_save_image_path", lambda *args: (str(folder), "clip", 1, "taken", "taken/clip")
    )
    (folder / "clip_00001_.mp4").write_bytes(b"theirs")
    (folder / "clip_00002_.mp4.part").write_bytes(b"being written")
    with output_files.reserved_output_file("taken/clip", "mp4", 64, 64) as (path, _):
        assert path.name == "clip_00003_.mp4"
    assert sorted(path.name for path in folder.iterdir()) == ["clip_00001_.mp4", "clip_00002_.mp4.part"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, "InterruptProcessingException"])
@pytest.mark.parametrize("late", [False, True])
def test_a_failed_or_cancelled_run_frees_its_name(save, folder, monkeypatch, error, late):
    import comfy.model_management

    kind = error if isinstance(error, type) else getattr(comfy.model_management, error)

    def fail(vae, latent, convert, report):
        if late:
            yield torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
        raise kind

    monkeypatch.setattr(clip_file, "decode_integers", fail)
    with pytest.raises(kind):
        save("taken/clip")
    assert not list(folder.iterdir())


def test_two_processes_never_write_the_same_file(tmp_path, monkeypatch):
    names = save_at_once(str(tmp_path), 25)
    assert len(names) == len(set(names)) == 50
    assert sorted(path.name for path in (tmp_path / PREFIX).parent.iterdir()) == sorted(names)
    for name in names:
        with av.open(str((tmp_path / PREFIX).with_name(name))) as container:
            assert len(list(container.decode(video=0))) == 5


def written(path, codec, crf, rate=Fraction(16)):
    with video_file.VideoFile(path, 64, 64, rate, video_file.CODECS[codec], crf, {}) as video:
        generator = torch.Generator().manual_seed(0)
        for _ in range(3):
            video.write(torch.randint(256, (64, 64, 3), dtype=torch.uint8, generator=generator))
    return av.open(str(path))


def test_h264_has_the_profile_that_plays_everywhere_at_every_crf(tmp_path):
    profiles, sizes = set(), []
    for crf in range(52):
        path = tmp_path / f"{crf}.mp4"
        with written(path, "h264", crf) as container:
            profiles.add(container.streams.video[0].codec_context.profile)
        sizes.append(path.stat().st_size)
    assert profiles == {"High"}
    assert sizes[0] == sizes[1] > sizes[17] > sizes[51]


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (23.976, (24000, 1001)),
        (23.98, (24000, 1001)),
        (24000 / 1001, (24000, 1001)),
        (29.97, (30000, 1001)),
        (47.95, (48000, 1001)),
        (59.94, (60000, 1001)),
        (119.88, (120000, 1001)),
        (24.0, (24, 1)),
        (12.5, (25, 2)),
        (29.9, (299, 10)),
    ],
)
def test_frame_rates_are_exact(tmp_path, fps, rate):
    assert video_file.frame_rate(fps) == Fraction(*rate)
    with written(tmp_path / "clip", "h264", 30, video_file.frame_rate(fps)) as container:
        assert container.streams.video[0].average_rate == Fraction(*rate)
