"""AUDIO: the sound of clips."""

from __future__ import annotations

from typing import Any

import torch

from .describe import is_whole, kind_of, shown
from .numbers import check_finite

CHANNELS = (1, 2, 6)
"""Numbers of channels that a file's sound is made of: mono, stereo, 5.1."""

LOWEST_RATE, HIGHEST_RATE = 1000, 768000
"""Samples per second that sound may have."""

SAMPLE_VALUES = (100.0, "sound goes from -1 to 1; divide it by 32768 if it counts to that")
"""Magnitude and rule for `check_finite`; slightly too loud is no mistake."""


def read_sounds(value: Any, clips: int) -> list[tuple[torch.Tensor, int] | None]:
    """Return the sound of each clip, waveform ``[channels, samples]`` and rate; None without an AUDIO.

    One sound serves all clips.
    """
    if value is None:
        return [None] * clips
    if not (isinstance(value, dict) and "waveform" in value):
        raise ValueError(f"audio is a {kind_of(value)}, but must be an AUDIO.")
    waveform, rate = value["waveform"], value.get("sample_rate")
    _check_waveform(waveform)
    if rate is None or not is_whole(rate) or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise ValueError(
            f"The sample_rate of audio is {shown(rate)}, but must be a whole number from {LOWEST_RATE} to "
            f"{HIGHEST_RATE}; the usual value is 48000."
        )
    if len(waveform) not in (1, clips):
        raise ValueError(
            f"audio is a batch of {len(waveform)} sounds for {clips} clips, but must hold one for all or "
            f"one for each; the nearest valid number is {clips}."
        )
    return [(sound, int(rate)) for sound in waveform.expand(clips, -1, -1)]


def _check_waveform(waveform: Any) -> None:
    if not isinstance(waveform, torch.Tensor) or waveform.ndim != 3:
        shape = tuple(waveform.shape) if isinstance(waveform, torch.Tensor) else shown(waveform)
        raise ValueError(f"audio has shape {shape}, but an AUDIO has (batch, channels, samples).")
    if waveform.shape[1] not in CHANNELS:
        nearest = min(CHANNELS, key=lambda count: abs(count - waveform.shape[1]))
        raise ValueError(
            f"audio has {waveform.shape[1]} channels, but must have 1, 2 or 6 (mono, stereo or 5.1); the "
            f"nearest valid number is {nearest}."
        )
    if waveform.numel():  # a sound of no length is silence
        check_finite(waveform, "audio", *SAMPLE_VALUES)
