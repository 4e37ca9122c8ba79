"""Ways to spoil an input, by the type of its socket or widget: what a graph can really send."""

import math

import comfy.samplers
import numpy as np
import torch

ANYTHING = {
    "nothing": lambda _: None,
    "a text": lambda _: "x",
    "a number": lambda _: 3,
    "NaN": lambda _: math.nan,
    "an empty list": lambda _: [],
    "an empty dict": lambda _: {},
}
"""For any input: the wrong type of socket."""

DTYPES = {
    name: lambda t, name=name: t.to(getattr(torch, name))
    for name in ("float16", "bfloat16", "float64", "float8_e4m3fn", "uint8", "int64", "bool")
}
TENSORS = {
    **DTYPES,
    "requires_grad": lambda t: t.clone().requires_grad_(),
    "transposed": lambda t: t.transpose(-2, -3).contiguous().transpose(-2, -3),
    "sliced": lambda t: torch.cat((t, t), dim=-1)[..., : t.shape[-1]],
    "expanded": lambda t: t[:1].expand(t.shape),
    "NaN inside": lambda t: t.masked_fill(t == t.max(), math.nan),
    "infinity inside": lambda t: t.masked_fill(t == t.max(), math.inf),
    "large": lambda t: t * 255,
    "zeros": torch.zeros_like,
    "fewer dimensions": lambda t: t[0],
    "more dimensions": lambda t: t[None],
    "empty first": lambda t: t[:0],
    "empty last": lambda t: t[..., :0],
    "one more": lambda t: torch.cat((t, t[..., :1]), dim=-1),
    "twice": lambda t: torch.cat((t, t)),
    "longer": lambda t: torch.cat((t, t), dim=2),
}
"""For an image, latent or text embedding."""


def sized(height, width):
    return lambda t: torch.rand(len(t), height, width, 3, generator=torch.Generator().manual_seed(1))


def with_entry(name, value):
    return lambda latent: {**latent, name: value}


def with_options(**options):
    return lambda text: [[text[0][0], options]]


IMAGES = {**TENSORS, "one pixel": sized(1, 1), "portrait": sized(67, 31), "a line": sized(1, 500)}
LATENTS = {
    **{name: lambda z, make=make: {**z, "samples": make(z["samples"])} for name, make in TENSORS.items()},
    "no samples": lambda z: {},
    "noise mask": with_entry("noise_mask", torch.zeros(1, 1, 3, 2, 2)),
    "foreign entry": with_entry("another pack's", {"a": 1}),
    "index": with_entry("batch_index", [7]),
    "no times": with_entry("swifti2v_keyframe_times", None),
    "times after the end": with_entry("swifti2v_keyframe_times", [99]),
    "too many times": with_entry("swifti2v_keyframe_times", [1, 2, 3]),
}
PROMPTS = {
    **{name: lambda c, make=make: [[make(c[0][0]), c[0][1]]] for name, make in TENSORS.items()},
    "range of NaN": with_options(swifti2v_frames=(math.nan, 2)),
    "range after the end": with_options(swifti2v_frames=(999, 0)),
    "range": with_options(swifti2v_frames=(0, 4)),
    "extra frames": with_options(time_dim_concat=torch.zeros(1)),
}
SOUNDS = {
    **{name: lambda a, make=make: {**a, "waveform": make(a["waveform"])} for name, make in TENSORS.items()},
    "no rate": lambda a: {"waveform": a["waveform"]},
    "rate NaN": lambda a: {**a, "sample_rate": math.nan},
    "rate of NumPy": lambda a: {**a, "sample_rate": np.int64(8000)},
    "5.1": lambda a: {**a, "waveform": a["waveform"].repeat(1, 3, 1)},
}
SCHEDULES = {
    **DTYPES,
    "NaN inside": lambda t: torch.tensor([1.0, math.nan, 0.0]),
    "infinity inside": lambda t: torch.tensor([math.inf, 1.0, 0.0]),
    "rising": lambda t: t.flip(0),
    "empty": lambda t: t[:0],
    "two dimensions": lambda t: t[None],
}


def guider_like(make_text=lambda text: text, cfg=1.0):
    def make(guider):
        text = make_text([[torch.zeros(1, 8, 4096), {}]])
        spoiled = comfy.samplers.CFGGuider(guider.model_patcher)
        spoiled.set_conds(text, text)
        spoiled.set_cfg(cfg)
        return spoiled

    return make


GUIDERS = {
    **{name: guider_like(make) for name, make in PROMPTS.items()},
    "cfg NaN": guider_like(cfg=math.nan),
}
NUMBERS = {
    "below": lambda w: w.min - 1,
    "above": lambda w: w.max + 1,
    "infinite": lambda w: math.inf,
    "True": lambda w: True,
    "half": lambda w: w.min + 0.5,
    "NumPy integer": lambda w: np.int64(math.ceil(w.min)),
    "NumPy float": lambda w: np.float32(math.ceil(w.min)),
    "NumPy boolean": lambda w: np.bool_(True),
}
"""For a number widget; made from the widget."""

WRITTEN = "", " \n\t", "4", "nan, nan", "1e999", "-1", "\U0001f600", "../../out", "/out/x", "x/", "n" * 300
TEXTS = {repr(text)[:12]: lambda _, text=text: text for text in WRITTEN}
WAYS = {
    "IMAGE": IMAGES, "LATENT": LATENTS, "CONDITIONING": PROMPTS, "SIGMAS": SCHEDULES, "GUIDER": GUIDERS,
    "AUDIO": SOUNDS, "INT": NUMBERS, "FLOAT": NUMBERS, "STRING": TEXTS, "COMBO": TEXTS,
}  # fmt: skip
