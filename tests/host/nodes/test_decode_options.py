"""Decode to Video: batches, sound, and 10 bits for each color."""

import av
import numpy as np
import pytest
import torch
from refusals import sentence_of
from swifti2v.nodes.pipeline import clip_file, video_file
from swifti2v.swifti2v_core.vae import strips

CODECS_10 = ("h264", "av1", "hevc")


@pytest.fixture
def ramp_vae(streaming_vae, monkeypatch):
    """A VAE whose frames show a ramp of 1024 grays from left to right."""
    ramp = torch.linspace(-1, 1, 1024)[None, None, :, None]

    def decode(self, samples):
        for number in range(samples.shape[2]):
            yield self._finish(ramp.expand(4 if number else 1, 64, 1024, 3).clone())

    monkeypatch.setattr(strips.StripDecoder, "decode", decode)
    monkeypatch.setattr(streaming_vae, "process_output", lambda image: (image + 1) / 2, raising=False)
    return streaming_vae


@pytest.fixture
def folder(workspace):
    path = workspace / "output" / "options"
    yield path
    for file in path.glob("*"):
        file.unlink()


@pytest.fixture
def decode(run, folder):
    """Run the node with some options and return the paths of its files."""

    def decode_to(vae, latent, **options):
        inputs = {"samples": {"samples": latent}, "vae": vae, "filename_prefix": "options/clip", **options}
        return [video.get_stream_source() for video in run("SwiftI2V_DecodeToVideo", **inputs)[0]]

    return decode_to


def levels(plane, bits):
    """The levels of a plane of a frame."""
    rows = np.frombuffer(plane, np.uint8 if bits == "8" else np.uint16).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(float)


def lumas(path):
    """The luma of every frame, in the levels of the file."""
    with av.open(path) as container:
        assert container.streams.video[0].format.name == "yuv420p10le"
        for frame in container.decode(video=0):
            yield levels(frame.planes[0], "10")


@pytest.mark.parametrize("codec", CODECS_10)
def test_a_ramp_of_1024_grays_survives(decode, ramp_vae, codec):
    (path,) = decode(ramp_vae, torch.zeros(1, 48, 2, 4, 64), codec=codec, crf=1, bit_depth="10")
    exact = 64 + 876 * np.arange(1024) / 1023
    frames = list(lumas(path))
    assert len(frames) == 5
    for luma in frames:
        assert np.abs(luma - exact).max() < 1.6  # half a level of rounding and one of the encoder
        # Between neighbors, 8 bits would leave steps of four levels.
        assert len(np.unique(luma)) > 850 and np.diff(luma.mean(axis=0)).max() < 2.5


def test_8_bits_are_8_bits(decode, ramp_vae):
    (path,) = decode(ramp_vae, torch.zeros(1, 48, 2, 4, 64), crf=1)
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p" and len(np.unique(frame.to_ndarray()[:64])) < 256


@pytest.mark.parametrize("codec", CODECS_10)
def test_colors_of_10_bits_are_those_of_8(decode, vae, codec, photo):
    small = torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 128), mode="area").movedim(1, -1)
    with torch.inference_mode():
        latent = vae.encode(small.repeat(5, 1, 1, 1))
    planes = []
    for bits in ("8", "10"):
        (path,) = decode(vae, latent, codec=codec, crf=5, bit_depth=bits)
        with av.open(path) as container:
            frame = next(container.decode(video=0))
        assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)
        planes.append([levels(plane, bits) for plane in frame.planes])
    for coarse, fine in zip(*planes, strict=True):
        difference = 4 * coarse - fine
        assert np.abs(difference).mean() < 4 and abs(difference.mean()) < 2  # half a level of 8 bits


def test_what_an_encoder_does_not_write_is_refused(run, vae, monkeypatch):
    given = {"samples": {"samples": torch.zeros(1, 48, 2, 4, 8)}, "vae": vae, "codec": "vp9"}
    known = {each.name for each in av.Codec("libvpx-vp9", "w").video_formats}
    if "yuv420p10le" in known:
        pytest.skip("this PyAV writes vp9 with 10 bits")
    assert sentence_of(run, "SwiftI2V_DecodeToVideo", **given, bit_depth="10") == (
        "bit_depth is 10, but the installed encoder libvpx-vp9 writes 8 bits only; the nearest valid value "
        "is 8, or choose another codec."
    )


def test_each_clip_of_a_batch_gets_a_file_of_its_own(decode, vae, photo, folder):
    small = torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 128), mode="area").movedim(1, -1)
    with torch.inference_mode():
        latents = [vae.encode(each.repeat(5, 1, 1, 1)) for each in (small, 1 - small)]
    seconds = torch.arange(48000) / 48000
    tones = torch.stack([torch.sin(2 * torch.pi * pitch * seconds) / 2 for pitch in (440, 1000)])
    audio = {"waveform": tones[:, None], "sample_rate": 48000}
    paths = decode(vae, torch.cat(latents), audio=audio, codec="av1")
    assert paths == [str(folder / f"clip_0000{number}_.webm") for number in (1, 2)]
    for number, path in enumerate(paths):
        (alone,) = decode(vae, latents[number], codec="av1")
        assert np.array_equal(*(frames_of(each) for each in (path, alone)))
        with av.open(path) as container:
            heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
        assert heard.shape == (1, 15000)  # 5 frames at 16 per second
        spectrum = np.abs(np.fft.rfft(heard[0, :12000]))
        assert spectrum.argmax() * 4 == (440, 1000)[number]


def frames_of(path):
    with av.open(path) as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)])


def test_one_sound_serves_all_clips(decode, vae):
    audio = {"waveform": torch.full((1, 2, 48000), 0.25), "sample_rate": 48000}
    for path in decode(vae, torch.randn(2, 48, 2, 4, 8), audio=audio):
        with av.open(path) as container:
            assert container.streams.audio[0].channels == 2


@pytest.mark.parametrize("bits", ["8", "10"])
def test_frames_and_sound_are_written_while_later_frames_are_latent(
    decode, streaming_vae, monkeypatch, bits
):
    order, held = [], []
    write, sound, strip = (
        video_file.VideoFile.write,
        video_file._SoundTrack.write,
        strips.StripDecoder._strip,
    )

    def spy_write(self, frame):
        order.append("frame")
        held.append(frame.numel() * frame.element_size())
        write(self, frame)

    def spy_sound(self, until):
        order.append(until)
        sound(self, until)

    def spy_strip(self, *args, **kwargs):
        order.append("decode")
        return strip(self, *args, **kwargs)

    monkeypatch.setattr(video_file.VideoFile, "write", spy_write)
    monkeypatch.setattr(video_file._SoundTrack, "write", spy_sound)
    monkeypatch.setattr(strips.StripDecoder, "_strip", spy_strip)
    audio = {"waveform": torch.zeros(1, 1, 100), "sample_rate": 8000}
    decode(streaming_vae, torch.randn(1, 48, 3, 4, 8), audio=audio, bit_depth=bits)
    spoken = [part for number in range(9) for part in ("frame", 3000 * (number + 1))]
    assert order == ["decode", *spoken[:2], "decode", *spoken[2:10], "decode", *spoken[10:]]
    assert set(held) == {64 * 128 * 3 * (1 if bits == "8" else 2)}


@pytest.mark.parametrize("late", [False, True])
def test_a_cancelled_batch_keeps_whole_files_only(decode, vae, folder, monkeypatch, late):
    import comfy.model_management

    kind, made = comfy.model_management.InterruptProcessingException, []
    real = clip_file.decode_integers

    def fail(vae, latent, convert, report):
        made.append(latent)
        for frames in real(vae, latent, convert, report):
            yield frames
            if len(made) == 2 and late:
                raise kind
        if len(made) == 2:
            raise kind

    monkeypatch.setattr(clip_file, "decode_integers", fail)
    audio = {"waveform": torch.zeros(1, 2, 48000), "sample_rate": 48000}
    with pytest.raises(kind):
        decode(vae, torch.randn(2, 48, 2, 4, 8), audio=audio, bit_depth="10")
    assert [path.name for path in folder.iterdir()] == ["clip_00001_.mp4"]


SILENCE = torch.zeros(1, 2, 100)


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        (
            {"waveform": torch.zeros(1, 3, 100), "sample_rate": 48000},
            "audio has 3 channels, but must have 1, 2 or 6 (mono, stereo or 5.1); the nearest valid number "
            "is 2.",
        ),
        (
            {"waveform": torch.zeros(2, 100), "sample_rate": 48000},
            "audio has shape (2, 100), but an AUDIO has (batch, channels, samples).",
        ),
        (
            {"waveform": SILENCE.repeat(3, 1, 1), "sample_rate": 48000},
            "audio is a batch of 3 sounds for 1 clips, but must hold one for all or one for each; the "
            "nearest valid number is 1.",
        ),
        (
            {"waveform": SILENCE, "sample_rate": 0},
            "The sample_rate of audio is 0, but must be a whole number from 1000 to 768000; the usual "
            "value is 48000.",
        ),
        (
            {"waveform": SILENCE * float("nan"), "sample_rate": 48000},
            "audio holds NaN or infinite values; check the node that makes it.",
        ),
        (SILENCE, "audio is a Tensor, but must be an AUDIO."),
    ],
)
def test_sound_that_is_none_is_refused(run, vae, audio, sentence):
    given = {"samples": {"samples": torch.zeros(1, 48, 2, 4, 8)}, "vae": vae, "audio": audio}
    assert sentence_of(run, "SwiftI2V_DecodeToVideo", **given) == sentence
