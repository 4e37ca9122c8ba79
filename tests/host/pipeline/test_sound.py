"""The sound of a file: its length to the sample, its pitch, its level."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from swifti2v.nodes.pipeline import sound, video_file

CODECS = ("h264", "vp9", "av1", "hevc")
NTSC = Fraction(24000, 1001)


def tone(pitch, rate, seconds, channels=2):
    """A sine of level 0.5, ``[channels, samples]``."""
    time = torch.arange(round(rate * seconds)) / rate
    return (0.5 * torch.sin(2 * torch.pi * pitch * time)).repeat(channels, 1)


def level_of(samples, pitch):
    """The level of a pitch in samples of 48 kHz: 0.5 for the tone above, 0 for silence and other tones."""
    time = np.arange(len(samples)) / 48000
    return 2 * abs(np.exp(-2j * np.pi * pitch * time) @ samples) / len(samples)


def written(path, codec, frames, rate, samples):
    with video_file.VideoFile(
        path, 64, 64, rate, video_file.CODECS[codec], 30, {}, video_file.DEPTHS["8"], samples
    ) as video:
        for _ in range(frames):
            video.write(torch.zeros(64, 64, 3, dtype=torch.uint8))
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1)
        seconds = stream.duration and stream.duration * stream.time_base
        return heard, seconds, stream.rate


@pytest.mark.parametrize("rate", [44100, 48000, 16000, 96000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_has_the_length_the_pitch_and_the_channels(rate, channels):
    fitted = sound.fit_sound(tone(440, rate, 2, channels), rate, 48000)
    assert fitted.shape == (min(2, channels), 48000) and fitted.dtype == np.float32
    loud = 0.5 if channels < 6 else 0.5 * (1 + 2 * 0.7071)  # front, center and surround
    for heard in fitted:
        assert level_of(heard[480:-480], 440) == pytest.approx(loud, rel=1e-3)
        assert level_of(heard[480:-480], 660) < 2e-3


def test_left_stays_left():
    both = torch.cat((tone(440, 44100, 1, 1), tone(1000, 44100, 1, 1)))
    left, right = sound.fit_sound(both, 44100, 48000)
    assert level_of(left, 440) > 0.49 > 0.01 > level_of(left, 1000)
    assert level_of(right, 1000) > 0.49 > 0.01 > level_of(right, 440)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_short_sound_is_followed_by_silence_and_long_sound_is_cut(rate):
    short = sound.fit_sound(tone(440, rate, 0.5), rate, 48000)
    assert level_of(short[0, :24000], 440) > 0.49
    assert np.abs(short[:, 24100:]).max() < 1e-4
    long = sound.fit_sound(tone(440, rate, 5), rate, 48000)
    assert np.abs(long[:, -200:]).max() > 0.49  # nothing fades before the cut
    assert (sound.fit_sound(torch.zeros(2, 0), rate, 100) == 0).all()


def test_the_given_sound_is_not_changed():
    given = tone(440, 48000, 1)
    before = given.clone()
    sound.fit_sound(given, 48000, 24000)[:] = 9
    assert torch.equal(given, before)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("frames", "rate"), [(33, Fraction(16)), (21, NTSC)])
def test_the_file_plays_sound_to_the_end_of_the_last_frame(tmp_path, codec, frames, rate):
    length = sound.sample_count(frames, rate)
    assert length == {33: 99000, 21: 42042}[frames]
    fitted = sound.fit_sound(tone(440, 44100, 10), 44100, length)
    heard, seconds, speed = written(tmp_path / "clip", codec, frames, rate, fitted)
    assert speed == 48000
    if video_file.CODECS[codec].sound_encoder == "libopus":
        assert heard.shape == (2, length)
    else:  # AAC counts in blocks of 1024; the container says where it ends
        assert seconds * 48000 == length and 0 <= heard.shape[1] - length < 1024
    # A shifted tone would cancel: 5 samples are 16 degrees of 440 Hz.
    assert np.abs(heard[:, 2400 : length - 2400] - fitted[:, 2400:-2400]).max() < 0.05
    assert level_of(heard[0, 2400:42000], 440) == pytest.approx(0.5, rel=0.02)


def test_mono_stays_mono(tmp_path):
    fitted = sound.fit_sound(tone(440, 48000, 1, 1), 48000, 48000)
    heard, _, _ = written(tmp_path / "clip", "av1", 16, Fraction(16), fitted)
    assert heard.shape == (1, 48000) and level_of(heard[0], 440) == pytest.approx(0.5, rel=0.02)
