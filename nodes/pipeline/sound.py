"""Sound of exactly a clip's length, as the encoders of video files take it."""

from __future__ import annotations

import math
from fractions import Fraction

import av
import numpy as np
import torch

RATE = 48000
"""Samples per second in a file; Opus knows no 44100, and every player knows this."""

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
"""FFmpeg's names of the channels of an AUDIO, by their number."""

TAIL_SECONDS = 0.1
"""Sound after the end of a clip that the filter of a resampling may still look at."""


def sample_count(frames: int, rate: Fraction) -> int:
    """Return the samples that last as long as some frames, at `RATE`."""
    return round(frames / rate * RATE)


def fit_sound(waveform: torch.Tensor, rate: int, length: int) -> np.ndarray:
    """Return a sound at `RATE`, mono or stereo, cut or padded with silence to a length.

    Parameters
    ----------
    waveform
        ``[channels, samples]``, -1..1, with a number of channels of `LAYOUTS`; FFmpeg mixes more than two
        down to stereo.
    rate
        Samples per second.
    length
        Samples of the result.

    Returns
    -------
    ndarray
        ``[1 or 2, length]`` float32.
    """
    needed = math.ceil((length / RATE + TAIL_SECONDS) * rate)
    given = waveform[:, :needed].detach().cpu().float().contiguous().numpy()
    channels = min(2, len(given))
    fitted = np.zeros((channels, length), dtype=np.float32)
    if given.shape[1]:
        samples = _resampled(given, rate, LAYOUTS[channels])[:, :length]
        fitted[:, : samples.shape[1]] = samples
    return fitted


def audio_frame(samples: np.ndarray, rate: int, first: int) -> av.AudioFrame:
    """Return samples ``[channels, n]`` float32 as a frame of sound that begins at a sample's number."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples), format="fltp", layout=LAYOUTS[len(samples)]
    )
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first
    return frame


def _resampled(samples: np.ndarray, rate: int, layout: str) -> np.ndarray:
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=RATE)
    pieces = [*resampler.resample(audio_frame(samples, rate, 0)), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray() for piece in pieces], axis=1)
