"""What a decode or encode takes: bytes on the device, bytes in RAM and multiply-adds, counted by layer.

Index arithmetic only; `strips` does the work in exactly the order that is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from typing import Any, NamedTuple

from ..geometry import FRAMES_PER_LATENT
from .layers import CACHED_FRAMES, Stage, stages

WORKSPACE = 1.1
"""A convolution's workspace, as a factor on the activations that are alive with it."""

DIVIDED_ENCODER_STAGES = 2
"""Encoder stages that run in strips; the others are small."""

WORK_PER_DEVICE_BYTE = 50
"""Multiply-adds that a GPU does while it copies one byte in its own memory."""

WORK_PER_RAM_BYTE = 10_000
"""The same for a byte that crosses to unpinned RAM or back."""


@dataclass(frozen=True)
class Cost:
    """What a decode or encode takes.

    Attributes
    ----------
    device_bytes
        Peak on the computing device, in addition to the weights.
    ram_bytes
        Peak in RAM, in addition to the frames themselves.
    work
        Multiply-adds of the whole clip, copies included.
    largest
        Elements of the largest tensor.
    """

    device_bytes: float
    ram_bytes: float
    work: float
    largest: float


def patch_size(channels: int) -> int:
    """Return the patch size for ``channels`` at the pixel end: 2 for Wan2.2, 1 for Wan2.1."""
    return isqrt(channels // 3)


def strip_ranges(length: int, strips: int) -> list[tuple[int, int]]:
    """Cut ``length`` into at most ``strips`` nearly equal pieces, as (begin, end)."""
    count = min(strips, length)
    return list(pairwise(length * i // count for i in range(count + 1)))


def tail_halos(tail: list[Stage]) -> list[int]:
    """Return the halo of each tail stage of a decoder, in cells of the stage's own input.

    The receptive field of two 3x3 convolutions per residual block, one after each doubling and one in the
    head. For the Wan2.2 decoder: 12, 10 and 7.
    """
    halos: list[int] = []
    halo = 1  # the head's convolution
    for stage in reversed(tail):
        if stage.resample is not None:
            halo = (halo + 1 + 1) // 2  # plus its convolution, then halved, rounded up
        halo += 2 * len(stage.blocks)
        halos.insert(0, halo)
    return halos


def encoder_halos(divided: list[Stage]) -> list[int]:
    """Return the halo of each divided encoder stage, in cells of its input, beside what it must give.

    Two 3x3 convolutions per residual block, one before the first stage, and one more row for the strided
    convolution, rounded up to an even number to keep the stride aligned.
    """
    halos = [2 * len(stage.blocks) + (2 if number == 0 else 1) for number, stage in enumerate(divided)]
    return [halo + halo % 2 for halo in halos]


def first_time_invariant(tail: list[Stage]) -> int:
    """Return the index of the first tail stage from which on frames are not doubled in time."""
    doubling = [number for number, stage in enumerate(tail) if hasattr(stage.resample, "time_conv")]
    return doubling[-1] + 1 if doubling else 0


@dataclass(frozen=True)
class _Level:
    """A stage's numbers, in elements per cell of its input.

    ``cached`` and ``resampled`` are channels, ``work`` is in multiply-adds per cell and input frame.
    """

    blocks: tuple[tuple[int, int], ...]
    cached: int
    work: float
    resampled: int
    in_time: bool
    doubles: bool


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _level(stage: Stage) -> _Level:
    blocks = tuple((int(block.in_dim), int(block.out_dim)) for block in stage.blocks)
    cached = sum(int(block.residual[place].in_channels) for block in stage.blocks for place in (2, 6))
    work = float(sum(_parameters(block) for block in stage.blocks))
    resample = stage.resample
    if resample is None:
        return _Level(blocks, cached, work, blocks[-1][1], False, False)
    convolution = resample.resample[1]
    doubles = int(convolution.stride[0]) == 1
    time = getattr(resample, "time_conv", None)
    frames = 2 if time is not None and doubles else 1
    work += (4 * frames if doubles else 0.25) * _parameters(convolution)
    if time is not None:
        cached += int(time.in_channels)
        work += _parameters(time) * (1 if doubles else 0.125)
    return _Level(blocks, cached, work, int(convolution.out_channels), time is not None, doubles)


def _blocks_peak(blocks: tuple[tuple[int, int], ...], frames: int) -> float:
    """Return the peak of residual blocks on some frames with their input, in elements per cell."""
    peak, first = 0, blocks[0][0] * frames
    window = frames + CACHED_FRAMES
    for number, (wide, out) in enumerate(blocks):
        held = wide * frames + (first if number else 0)  # the block's input, and the stage's for a shortcut
        shortcut = 0 if wide == out else out * frames
        peak = max(
            peak,
            held + wide * (window + 1),  # one normalized frame beside the window
            held + wide * window + out * frames,
            held + out * (frames + window + 1),
            held + out * (window + frames),
            held + out * frames + shortcut,
        )
    return float(peak)


def _level_peak(level: _Level, frames: int) -> float:
    """Return the peak of a stage on some input frames, in elements per cell of its input."""
    peak = _blocks_peak(level.blocks, frames)
    channels, first = level.blocks[-1][1], level.blocks[0][0]
    held = (first + channels) * frames
    if level.doubles:
        doubled = frames * (2 if level.in_time else 1)
        in_time = channels * (doubled + CACHED_FRAMES + frames) if level.in_time else 0
        enlarged = 4 * doubled * (channels + level.resampled) + (channels * doubled if level.in_time else 0)
        peak = max(peak, held + in_time, held + enlarged)
    elif level.resampled != channels or level.in_time:
        peak = max(peak, held + level.resampled * frames)
    return peak


def _share(length: int, strips: int, halo: int) -> float:
    """Return the fraction of a length that the largest strip covers with its halos."""
    return min(length, -(-length // strips) + 2 * halo) / length


class _Tail(NamedTuple):
    """A decoder's tail on one latent frame: elements of one strip, and the multiply-adds of all strips."""

    cached: float
    peak: float
    work: float
    recopied: float
    largest: float


def _work_cells(cells: int, length: int, strips: int, halo: int) -> float:
    """Return the cells that all strips cover with their halos."""
    ranges = strip_ranges(length, strips)
    covered = sum(min(length, end + halo) - max(0, begin - halo) for begin, end in ranges)
    return cells * covered / length


class DecodeCounter:
    """Counts what plans take for one decoder, size and length.

    Parameters
    ----------
    decoder
        The autoencoder's decoder, of which channel counts are read.
    height, width
        Size of the latent.
    element_size
        Bytes per value while decoding, 2 for bfloat16.
    latent_frames
        Length of the clip.
    """

    def __init__(
        self, decoder: Any, height: int, width: int, element_size: int, latent_frames: int = 1
    ) -> None:
        self._cells, self._side = height * width, max(height, width)
        self._element_size, self._latent_frames = element_size, latent_frames
        self._tails: dict[tuple[int, int], _Tail] = {}
        front, *tail = stages(decoder.upsamples)
        self._front_level, self._levels = _level(front), [_level(stage) for stage in tail]
        self._halos, self._invariant = tail_halos(tail), first_time_invariant(tail)
        head = decoder.head[-1]
        self._head = int(head.in_channels), int(head.out_channels), _parameters(head)
        self._first = int(decoder.conv1.in_channels), int(decoder.conv1.out_channels)
        residual = [layer for layer in decoder.middle if hasattr(layer, "residual")]
        middle = sum(layer.residual[place].in_channels for layer in residual for place in (2, 6))
        self._front_cached = (
            self._cells * CACHED_FRAMES * (self._first[0] + middle + self._front_level.cached)
        )
        attention = 2 * self._first[1] * self._cells  # per cell: every query meets every key
        weights = _parameters(decoder.conv1) + _parameters(decoder.middle)
        self._front_work = self._cells * (weights + attention + self._front_level.work)
        self._front_peak = self._cells * max(
            _level_peak(self._front_level, 1),
            _blocks_peak(((self._first[1], self._first[1]),), 1),
            6 * self._first[1],  # attention: input, its norm, queries, keys, values and result
        )

    @property
    def feature_bytes(self) -> int:
        """Bytes of the front's features of one latent frame."""
        return self._feature * self._element_size

    @property
    def _feature(self) -> int:
        frames = 2 if self._front_level.in_time else 1
        return self._cells * 4 * frames * self._front_level.resampled

    def cost(self, strips: int, frames: int, groups: int, kept: int) -> Cost:
        """Return what a plan takes; the parameters are `memory_plan.DecodePlan`'s."""
        if (strips, frames) not in self._tails:
            self._tails[strips, frames] = self._tail(strips, frames)
        tail = self._tails[strips, frames]
        together = -(-strips // groups)
        # Finished pixels: the strips of a group, their concatenation, and those still on their way to RAM.
        pixels = 3 * FRAMES_PER_LATENT * self._head_cells * self._head[1] * together / strips
        caches = CACHED_FRAMES * tail.cached * together + self._front_cached
        # The features of the whole frame stay beside the strip that is cut from them.
        alive = max(WORKSPACE * self._front_peak, self._feature + pixels + WORKSPACE * tail.peak)
        latent = self._latent_frames * self._cells * self._first[0]
        band = _share(self._side * 2, groups, self._halos[0])  # what a group reads of features in RAM
        ram = kept * self.feature_bytes
        copied = ram * (1 + band * (groups - 1))
        fronts = self._latent_frames + (groups - 1) * (self._latent_frames - kept)
        recopied = WORK_PER_DEVICE_BYTE * self._element_size * tail.recopied * strips
        work = fronts * self._front_work + self._latent_frames * (tail.work + recopied)
        return Cost(
            device_bytes=(caches + alive + latent) * self._element_size,
            ram_bytes=ram + (band * self.feature_bytes if kept else 0),
            work=work + WORK_PER_RAM_BYTE * copied,
            largest=tail.largest,
        )

    def cache_bytes(self, strips: int) -> float:
        """Return the bytes of the frame caches of the largest strip."""
        return CACHED_FRAMES * self._tail(strips, FRAMES_PER_LATENT).cached * self._element_size

    @property
    def _head_cells(self) -> int:
        doublings = 1 + sum(level.doubles for level in self._levels)
        return self._cells << 2 * doublings

    def _tail(self, strips: int, frames: int) -> _Tail:
        """Walk through the tail of the largest strip."""
        cells, length, count = self._cells * 4, self._side * 2, 2 if self._front_level.in_time else 1
        cached = peak = work = held = largest = invariant = 0.0
        for number, (level, halo) in enumerate(zip(self._levels, self._halos, strict=True)):
            covered = cells * _share(length, strips, halo)
            if number == self._invariant and frames < count:  # its input outlives the frames taken from it
                held, count = covered * count * level.blocks[0][0], frames
            peak = max(peak, held + covered * _level_peak(level, count))
            window = (count + CACHED_FRAMES) * max(wide for wide, _ in level.blocks)
            largest = max(largest, covered * window)
            cached += covered * level.cached
            invariant += covered * level.cached if number >= self._invariant else 0
            work += level.work * _work_cells(cells, length, strips, halo) * self._frames_at(number)
            if level.doubles:
                cells, length = cells * 4, length * 2
                count *= 2 if level.in_time else 1
                largest = max(largest, 4 * covered * count * level.blocks[-1][1])
        wide, out, parameters = self._head
        covered = cells * _share(length, strips, self._halos[-1])
        peak = max(peak, held + covered * (wide * (2 * count + CACHED_FRAMES + 1) + out * count))
        cached += covered * wide
        calls = FRAMES_PER_LATENT / min(frames, FRAMES_PER_LATENT)  # each copies the caches in and out
        recopied = 4 * CACHED_FRAMES * (invariant + covered * wide) * (calls - 1)
        return _Tail(cached, peak, work + parameters * cells * FRAMES_PER_LATENT, recopied, largest)

    def _frames_at(self, number: int) -> int:
        """Return the input frames of a tail stage for one latent frame."""
        frames = 2 if self._front_level.in_time else 1
        for level in self._levels[:number]:
            frames *= 2 if level.in_time else 1
        return frames


class EncodeCounter:
    """Counts what plans take for one encoder, size and length.

    Parameters as for `DecodeCounter`, with the size in pixels.
    """

    def __init__(
        self, encoder: Any, height: int, width: int, element_size: int, latent_frames: int = 1
    ) -> None:
        every = stages(encoder.downsamples)
        levels = [_level(stage) for stage in every]
        self._divided, self._whole = levels[:DIVIDED_ENCODER_STAGES], levels[DIVIDED_ENCODER_STAGES:]
        self._halos = encoder_halos(every[:DIVIDED_ENCODER_STAGES])
        self._channels = int(encoder.conv1.in_channels)
        self._width = int(encoder.conv1.out_channels)
        self._first_work = _parameters(encoder.conv1)
        patch = patch_size(self._channels)
        self._cells, self._side = height * width // patch**2, max(height, width) // patch
        self._element_size, self._latent_frames = element_size, latent_frames
        residual = [layer for layer in encoder.middle if hasattr(layer, "residual")]
        self._end_cached = sum(layer.residual[place].in_channels for layer in residual for place in (2, 6))
        self._end_cached += int(encoder.head[-1].in_channels)

    @property
    def result_scale(self) -> int:
        """Pixels per cell of what the divided stages give, in both directions."""
        return patch_size(self._channels) << len(self._divided)

    def cost(self, strips: int, groups: int) -> Cost:
        """Return what a plan takes; the parameters are `memory_plan.EncodePlan`'s."""
        cells, length, count = self._cells, self._side, FRAMES_PER_LATENT
        cached = peak = work = largest = 0.0
        for number, (level, halo) in enumerate(zip(self._divided, self._margins(), strict=True)):
            share = _share(length, strips, halo)
            covered = _work_cells(cells, length, strips, halo)
            if number == 0:
                cached += cells * share * self._channels
                window = self._channels * (2 * count + CACHED_FRAMES) + self._width * count
                peak = cells * share * window
                work += covered * count * self._first_work
            cached += cells * share * level.cached
            peak = max(peak, cells * share * _level_peak(level, count))
            largest = max(largest, cells * share * (count + CACHED_FRAMES) * max(map(max, level.blocks)))
            work += covered * count * level.work
            cells, length = cells // 4, length // 2
            count = count // 2 if level.in_time else count
        together = -(-strips // groups)
        result = cells * count * self._divided[-1].resampled
        caches = cached * together
        parts = 2 * result  # the strips' results and their concatenation
        for level in self._whole:
            caches += cells * level.cached
            peak = max(peak, cells * _level_peak(level, count))
            work += cells * count * level.work
            if not level.doubles and level is not self._whole[-1]:
                cells //= 4
                count = count // 2 if level.in_time else count
        caches += cells * self._end_cached
        frames = FRAMES_PER_LATENT * self._cells * self._channels
        device = CACHED_FRAMES * caches + parts + 2 * frames + WORKSPACE * peak
        kept = result * self._latent_frames * (strips - together) / strips if groups > 1 else 0
        ram = kept * self._element_size
        traffic = groups * self._latent_frames * frames * self._element_size  # every group reads all frames
        total = self._latent_frames * work + WORK_PER_RAM_BYTE * (2 * ram + traffic)
        return Cost(device * self._element_size, ram, total, largest)

    def _margins(self) -> list[int]:
        """Return the halo of each divided stage, what the next ones need included."""
        margins: list[int] = []
        for halo in reversed(self._halos):
            margins.insert(0, halo + 2 * margins[0] if margins else halo)
        return margins
