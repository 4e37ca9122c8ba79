"""Ways to spoil an input, by the type of its socket or widget."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import comfy.samplers
import numpy as np
import torch


class Wrong:
    """An object of a class that no socket knows."""


@dataclass(frozen=True)
class Bad:
    """One way to spoil an input: its name and what makes the value from the valid one."""

    name: str
    make: Any

    def __repr__(self) -> str:
        return self.name


def bad(**ways):
    return [Bad(name, make) for name, make in ways.items()]


ANYTHING = bad(
    none=lambda _: None,
    object=lambda _: Wrong(),
    text=lambda _: "x",
    number=lambda _: 3,
    nan=lambda _: float("nan"),
    empty_list=lambda _: [],
    empty_dict=lambda _: {},
    flat_tensor=lambda _: torch.zeros(3),
)
"""For any input, of any type."""

TENSORS = bad(
    fp16=lambda t: t.half(),
    bf16=lambda t: t.bfloat16(),
    fp64=lambda t: t.double(),
    uint8=lambda t: t.to(torch.uint8),
    int64=lambda t: t.to(torch.int64),
    boolean=lambda t: t > 0.5,
    transposed=lambda t: t.transpose(-2, -3).contiguous().transpose(-2, -3),
    expanded=lambda t: t[:1].expand(t.shape),
    nan=lambda t: t.masked_fill(t == t.max(), math.nan),
    infinite=lambda t: t.masked_fill(t == t.max(), math.inf),
    large=lambda t: t * 255,
    zeros=lambda t: torch.zeros_like(t),
    fewer_dimensions=lambda t: t[0],
    more_dimensions=lambda t: t[None],
    empty_first=lambda t: t[:0],
    one_more=lambda t: torch.cat((t, t[..., :1]), dim=-1),
    twice=lambda t: torch.cat((t, t)),
)
"""For an image, latent or text embedding."""


def sized(height, width):
    return lambda t: torch.rand(len(t), height, width, 3, generator=torch.Generator().manual_seed(1))


IMAGES = TENSORS + bad(
    one_pixel=sized(1, 1),
    portrait=sized(67, 31),
    wide=sized(9, 21),
    too_wide=lambda t: t[:, :1, :1].expand(len(t), 1, 20000, 3),
    alpha=lambda t: torch.cat((t, t[..., :1]), dim=-1),
    gray=lambda t: t[..., :1],
)


def with_entry(name, value):
    return lambda latent: {**latent, name: value}


LATENTS = [
    Bad(way.name, lambda z, way=way: {**z, "samples": way.make(z["samples"])}) for way in TENSORS
] + bad(
    no_samples=lambda z: {},
    samples_none=with_entry("samples", None),
    image_latent=lambda z: {"samples": z["samples"][:, :, 0]},
    noise_mask=with_entry("noise_mask", torch.zeros(1, 1, 3, 2, 2)),
    index_long=with_entry("batch_index", [0, 1, 2]),
    index_text=with_entry("batch_index", "0"),
    index_negative=with_entry("batch_index", [-1]),
    times_number=with_entry("swifti2v_keyframe_times", 1),
    times_nan=with_entry("swifti2v_keyframe_times", [math.nan]),
    times_behind=with_entry("swifti2v_keyframe_times", [99]),
)


def with_options(**options):
    return lambda text: [[text[0][0], options]]


PROMPTS = [Bad(way.name, lambda c, way=way: [[way.make(c[0][0]), c[0][1]]]) for way in TENSORS] + bad(
    not_pairs=lambda c: c[0],
    options_none=lambda c: [[c[0][0], None]],
    text_none=lambda c: [[None, {}]],
    two=lambda c: [*c, *c],
    range_short=with_options(swifti2v_frames=(1,)),
    range_backwards=with_options(swifti2v_frames=(5, 2)),
    range_behind=with_options(swifti2v_frames=(999, 0)),
    extra_frames=with_options(time_dim_concat=torch.zeros(1)),
)

SCHEDULES = bad(
    int64=lambda t: torch.tensor([1, 0]),
    nan=lambda t: torch.tensor([1.0, math.nan, 0.0]),
    rising=lambda t: t.flip(0),
    one=lambda t: t[:1],
    none_left=lambda t: t[:0],
    two_dimensions=lambda t: t[None],
)


class Noise:
    """A NOISE as another pack may write it."""

    seed = 0

    def __init__(self, make):
        self._make = make

    def generate_noise(self, latent):
        return self._make(latent["samples"])


class NoSeed:
    def generate_noise(self, latent):
        return torch.zeros_like(latent["samples"])


NOISES = bad(
    short=lambda _: Noise(lambda samples: torch.zeros_like(samples[:, :, :1])),
    no_seed=lambda _: NoSeed(),
)


def other_prompt(way):
    def make(guider):
        spoiled = comfy.samplers.CFGGuider(guider.model_patcher)
        text = way.make([[torch.zeros(1, 8, 4096), {}]])
        spoiled.set_conds(text, text)
        return spoiled

    return make


def with_cfg(cfg):
    def make(guider):
        spoiled = other_prompt(Bad("same", lambda text: text))(guider)
        spoiled.set_cfg(cfg)
        return spoiled

    return make


GUIDERS = [
    Bad(way.name, other_prompt(way))
    for way in PROMPTS
    if way.name not in ("not_pairs", "triples", "options_none", "text_none")  # the host refuses these
] + bad(cfg_nan=with_cfg(math.nan), cfg_none=with_cfg(None), cfg_text=with_cfg("1"), cfg_high=with_cfg(7))

NUMBERS = bad(
    below=lambda w: w.min - 1,
    above=lambda w: w.max + 1,
    infinite=lambda w: math.inf,
    true=lambda w: True,
    numeral=lambda w: str(w.min),
    numpy_integer=lambda w: np.int64(math.ceil(w.min)),
    numpy_float=lambda w: np.float32(math.ceil(w.min)),
    half=lambda w: w.min + 0.5,
)
"""For a number widget; made from the widget."""

TEXTS = bad(
    empty=lambda w: "",
    blank=lambda w: " \n\t",
    numbers=lambda w: "4",
    infinite=lambda w: "1e999",
    not_a_number=lambda w: "nan, nan",
    negative=lambda w: "-1",
    emoji=lambda w: "\U0001f600",
    up=lambda w: "../../outside",
    absolute=lambda w: "/outside/x",
    folder=lambda w: "folder/",
    long_name=lambda w: "n" * 300,
    placeholder=lambda w: "%date%/%width%x%height%",
)

WAYS = {
    "IMAGE": IMAGES,
    "LATENT": LATENTS,
    "CONDITIONING": PROMPTS,
    "SIGMAS": SCHEDULES,
    "NOISE": NOISES,
    "GUIDER": GUIDERS,
    "INT": NUMBERS,
    "FLOAT": NUMBERS,
    "STRING": TEXTS,
    "COMBO": TEXTS,
}
