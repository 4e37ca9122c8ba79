"""What the nodes make of the tiny models, case by case, reached through node ids only."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import av
import comfy.samplers
import folder_paths
import numpy as np
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from safetensors import safe_open
from torch import Tensor

import nodes as host_nodes

Parts = tuple[Tensor, ...]
SEED = 3


@dataclass(frozen=True)
class Case:
    """One result.

    Attributes
    ----------
    make
        Returns the result from the kit of models and inputs.
    again
        Makes the same in another way; without it, ``make`` runs a second time.
    compared
        How many parts of the result, from the first, the other way makes bit for bit; None for all.
    portable
        How far the values hold on other machines and versions: "values", "moments" or "".
    """

    make: Callable[[SimpleNamespace], Parts]
    again: Callable[[SimpleNamespace], Parts] | None = None
    compared: int | None = None
    portable: str = "values"


def even_sigmas(steps: int, denoise: float = 1.0, shift: float = 5.0) -> Tensor:
    even = torch.tensor([denoise * (1 - step / steps) for step in range(steps + 1)], dtype=torch.float64)
    return (shift * even / (1 + (shift - 1) * even)).float()


def rows(parts: list[Parts]) -> Parts:
    """Join results of single clips to the result of a batch."""
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


# --- Segment samplers -------------------------------------------------------------------------------


def simple(kit, kind="concat", batch=1, prompts=None, seed=SEED, **options):
    """The simple sampler; 8 latent frames are 3 segments."""
    positive, negative = prompts(kit) if prompts else kit.text
    return (
        kit.run(
            "SwiftI2V_SegmentSampler",
            model=kit.models[kind],
            positive=positive,
            negative=negative,
            seed=seed,
            **{
                "z_ref": kit.latent(8, batch=batch),
                "steps": 2,
                "denoise": 0.5 if kind == "plain" else 1.0,
                **given(kit, options),
            },
        )[0]["samples"],
    )


def advanced(kit, kind="concat", prompts=None, steps=2, cfg=1.0, sampler_name="euler", **options):
    """The advanced sampler, with what ComfyUI's own nodes put into its sockets."""
    guider = comfy.samplers.CFGGuider(kit.models[kind])
    guider.set_conds(*(prompts(kit) if prompts else kit.text))
    guider.set_cfg(cfg)
    if options.pop("timesteps", None):  # those of `TIMESTEPS`
        sigmas = torch.tensor([1.0, 5 / 6, 0.0])
    else:
        sigmas = even_sigmas(steps, 0.5 if kind == "plain" else 1.0)
    return (
        kit.run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(SEED),
            guider=guider,
            sampler=comfy.samplers.sampler_object(sampler_name),
            sigmas=sigmas,
            **{"z_ref": kit.latent(8), **given(kit, options)},
        )[0]["samples"],
    )


TIMESTEPS = "1000, 500"


def given(kit, options):
    """Replace the times of keyframes by a latent that carries them."""
    options = dict(options)
    if "keyframes" in options:
        times = options["keyframes"]
        options["keyframes"] = {**kit.latent(len(times), seed=9), "swifti2v_keyframe_times": list(times)}
    return options


def ranges(kit):
    """Two prompts on each side, each with a range of its own."""
    text = [*kit.text, *kit.more_text]

    def ranged(conditioning, start, end, before=None):
        inputs = {"conditioning": conditioning, "start_frame": start, "end_frame": end, "before": before}
        return kit.run("SwiftI2V_PromptRange", **inputs)[0]

    positive = ranged(text[1], 15, 0, ranged(text[0], 0, 15))
    return positive, ranged(text[3], 20, 0, ranged(text[2], 0, 20))


def both_samplers(**options):
    return Case(functools.partial(simple, **options), functools.partial(advanced, **options))


def one_by_one(kit, **options):
    clips = kit.latent(8, batch=2)["samples"].split(1)
    return rows(
        [simple(kit, z_ref={"samples": clip}, seed=SEED + n, **options) for n, clip in enumerate(clips)]
    )


def checkpoint_folder():
    return Path(folder_paths.get_output_directory()) / "swifti2v_checkpoints" / "frozen"


def saved_segments(kit, **options):
    """Run with a checkpoint; return the result and its files."""
    shutil.rmtree(checkpoint_folder(), ignore_errors=True)
    result = simple(kit, checkpoint="frozen", **options)
    return result, sorted(checkpoint_folder().rglob("*.safetensors"))


def resumed(kit, **options):
    """A run that finds its first segment on disk."""
    _, files = saved_segments(kit, **options)
    for file in files[1:]:
        file.unlink()
    result = simple(kit, checkpoint="frozen", **options)
    shutil.rmtree(checkpoint_folder().parent)
    return result


def checkpoint_files(kit):
    """Names and content of a checkpoint, but for what knows the folder that the pack lies in."""
    _, files = saved_segments(kit)
    found = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() | {"part: model patches": "", "part: segments": ""}
            found += [path.name, sorted(header.items())]
            found += [(key, file.get_tensor(key).tolist()) for key in sorted(file.keys())]
    shutil.rmtree(checkpoint_folder().parent)
    return (torch.frombuffer(bytearray(json.dumps(found).encode()), dtype=torch.uint8),)


def first_segment(kit, **options):
    return advanced(kit, end_segment=1, **options)


def split(kit, **options):
    """The first segment in one run, the others in the next."""
    (begun,) = first_segment(kit, **options)
    return advanced(kit, start_segment=1, latent={"samples": begun}, **options)


def saved_advanced(kit):
    """The part that end_segment keeps is that of the whole run."""
    (whole,) = advanced(kit)
    return (torch.cat((whole[:, :, :4], kit.latent(8)["samples"][:, :, 4:]), dim=2),)


SEGMENT_CASES = {
    **{
        f"segments, {kind}, {context}": both_samplers(kind=kind, context=context, steps=4, cfg=3.0)
        for kind in ("concat", "plain")
        for context in ("bidirectional", "read-only")
    },
    **{
        f"keyframes, {kind}, {context}": both_samplers(kind=kind, context=context, keyframes=(4, 7))
        for kind in ("concat", "plain")
        for context in ("bidirectional", "read-only")
    },
    **{
        f"prompt ranges, {context}": both_samplers(kind="reader", context=context, prompts=ranges, cfg=3.0)
        for context in ("bidirectional", "read-only")
    },
    "keyframes, prompt ranges": both_samplers(kind="reader", keyframes=(4,), prompts=ranges),
    **{
        f"reference_strength {strength:g}": both_samplers(reference_strength=strength)
        for strength in (0.0, 0.5, 2.0)
    },
    "reference_strength 0.5, read-only, cfg 3": both_samplers(
        reference_strength=0.5, context="read-only", cfg=3.0
    ),
    **{
        f"drift_control {strength:g}, {kind}": both_samplers(kind=kind, drift_control=strength)
        for kind in ("concat", "plain")
        for strength in (0.0, 0.5)
    },
    "clamped positions": both_samplers(time_positions="clamped", segment_frames=2),
    "segment_frames 2, neighbors 2": both_samplers(segment_frames=2, neighbors=2),
    "neighbors 0, dpmpp_2m": both_samplers(neighbors=0, sampler_name="dpmpp_2m", steps=3),
    "one segment": both_samplers(segment_frames=7),
    "timesteps": both_samplers(timesteps=TIMESTEPS),
    "euler_ancestral": both_samplers(sampler_name="euler_ancestral", steps=3),
    **{
        f"resumed, {sampler}": Case(
            functools.partial(resumed, sampler_name=sampler, steps=3),
            functools.partial(advanced, sampler_name=sampler, steps=3),
        )
        for sampler in ("euler", "euler_ancestral")
    },
    "checkpoint files": Case(checkpoint_files, portable=""),
    "end_segment 1": Case(first_segment, saved_advanced),
    "start_segment 1": Case(
        functools.partial(split, sampler_name="euler_ancestral"),
        functools.partial(advanced, sampler_name="euler_ancestral"),
    ),
    **{
        f"segments, batch, {kind}": Case(
            functools.partial(simple, kind=kind, batch=2), functools.partial(one_by_one, kind=kind)
        )
        for kind in ("concat", "plain")
    },
    "segments, batch, advanced": Case(lambda kit: advanced(kit, z_ref=kit.latent(8, batch=2))),
}


# --- Stage I ----------------------------------------------------------------------------------------


def ti2v(kit, photo=None, seed=SEED, **options):
    """Stage I with one model and the photo as clean frame: the latent, then the frames."""
    frames, latent = kit.run(
        "SwiftI2V_MotionSampler",
        model_high_noise=kit.models["plain"],
        vae=kit.vae,
        image=kit.photo if photo is None else photo,
        positive=kit.text[0],
        negative=kit.text[1],
        seed=seed,
        **{"width": 128, "height": 64, "frames": 9, "steps": 3, **options},
    )
    return latent["samples"], frames


def a14b(kit, photo=None, seed=SEED, **options):
    """Stage I with two experts: the latent, then the frames."""
    frames, latent = kit.run(
        "SwiftI2V_MotionSampler",
        model_high_noise=kit.experts[0],
        model_low_noise=kit.experts[1],
        vae=kit.vae16,
        image=kit.photo if photo is None else photo,
        positive=kit.text[0],
        negative=kit.text[1],
        seed=seed,
        **{"width": 64, "height": 48, "frames": 9, **options},
    )
    return latent["samples"], frames


def photo_by_photo(node, kit, **options):
    return rows([node(kit, photo, SEED + n, **options) for n, photo in enumerate(kit.photos.split(1))])


def motion_cases(name, node):
    chunks = {"frames": 21, "chunk_frames": 13, "overlap_frames": 8}
    return {
        f"{name}": Case(functools.partial(node), functools.partial(node, chunk_frames=9)),
        f"{name}, cfg 3, pad": Case(functools.partial(node, height=96, cfg=3.0, fit="pad")),
        f"{name}, timesteps": Case(functools.partial(node, timesteps="1000, 700, 300")),
        f"{name}, euler_ancestral": Case(functools.partial(node, sampler_name="euler_ancestral")),
        f"{name}, reshift": Case(functools.partial(node, reshift_steps=1)),
        f"{name}, reshift, matched": Case(
            functools.partial(node, steps=4, reshift_steps=2, reshift_match_snr=True, cfg=3.0)
        ),
        f"{name}, chunks": Case(functools.partial(node, **chunks)),
        f"{name}, batch": Case(
            lambda kit: node(kit, kit.photos),
            functools.partial(photo_by_photo, node),
            1,  # ComfyUI decodes the clips of a batch together
        ),
        f"{name}, batch in chunks": Case(
            lambda kit: node(kit, kit.photos, steps=2, **chunks),
            functools.partial(photo_by_photo, node, steps=2, **chunks),
            1,
        ),
    }


MOTION_CASES = {**motion_cases("one model", ti2v), **motion_cases("two experts", a14b)}


def camera(kit, photo=None, seed=SEED, **options):
    image = kit.photo if photo is None else photo
    size = {"width": 128, "height": 64, "frames": 9}
    return (kit.run("SwiftI2V_CameraMotion", image=image, seed=seed, **{**size, **options})[0],)


MOVES = {"pan_x": -0.2, "pan_y": 0.1, "zoom": 0.8, "rotate": 7.0, "tilt": 10.0, "sway": 0.02}

CAMERA_CASES = {
    "camera": Case(camera),
    "camera, all moves": Case(functools.partial(camera, **MOVES)),
    "camera, linear, pad": Case(
        functools.partial(camera, height=96, easing="linear", fit="pad", rotate=-5.0)
    ),
    "camera, batch": Case(
        lambda kit: camera(kit, kit.photos, sway=0.02), functools.partial(photo_by_photo, camera, sway=0.02)
    ),
}


# --- Temporal window attention ----------------------------------------------------------------------


def windowed(kit, window_frames=4, **options):
    """ComfyUI's own KSampler with a patched model."""
    inputs = {"model": kit.models["plain"], "window_frames": window_frames}
    model = kit.run("SwiftI2V_TemporalWindows", **inputs)[0]
    settings = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.5, **options}
    with torch.inference_mode():
        return (
            host_nodes.KSampler().sample(
                model,
                SEED,
                2,
                positive=kit.text[0],
                negative=kit.text[1],
                latent_image=kit.latent(8),
                **settings,
            )[0]["samples"],
        )


WINDOW_CASES = {
    "temporal windows": Case(windowed),
    "temporal windows, 2 frames, cfg 3": Case(functools.partial(windowed, window_frames=2, cfg=3.0)),
    "temporal windows, one window": Case(functools.partial(windowed, window_frames=100)),
}


# --- Reference and frames ---------------------------------------------------------------------------


def anchor(kit, vae="vae", photo=None, clip=slice(13), keyframes=0, **options):
    """The reference, then the keyframes' latent and times."""
    if keyframes:
        options |= {"keyframes": kit.stills[:keyframes], "keyframe_times": "6, 12"}
    z_ref, stills, *_ = kit.run(
        "SwiftI2V_AnchorEncode",
        image=kit.photo if photo is None else photo,
        motion=kit.motion[clip],
        vae=getattr(kit, vae),
        **{"width": 128, "height": 96, "frames": 13, **options},
    )
    if stills is None:
        return (z_ref["samples"],)
    return z_ref["samples"], stills["samples"], torch.tensor(stills["swifti2v_keyframe_times"]).float()


def anchors_one_by_one(kit, **options):
    first, second = kit.photos.split(1)
    parts = ((first, slice(13)), (second, slice(13, 26)))
    return rows([anchor(kit, photo=photo, clip=clip, **options) for photo, clip in parts])


ANCHORS = {
    "crop": {},
    "pad": {"fit": "pad"},
    "lanczos": {"upscale": "lanczos"},
    "color_match": {"color_match": True},
    "keyframes": {"keyframes": 2, "color_match": True},
}

ANCHOR_CASES = {
    f"anchor, {vae}, {name}": Case(functools.partial(anchor, vae=vae, **options))
    for vae in ("vae", "streaming_vae")
    for name, options in ANCHORS.items()
} | {
    f"anchor, {vae}, batch": Case(
        lambda kit, vae=vae: anchor(kit, vae, kit.photos, slice(26), color_match=True),
        functools.partial(anchors_one_by_one, vae=vae, color_match=True),
    )
    for vae in ("vae", "streaming_vae")
}


def decoded(kit, vae, batch=1):
    frames = kit.run("SwiftI2V_TiledVAEDecode", samples=kit.clip(vae, batch), vae=getattr(kit, vae))[0]
    return (frames,)


@torch.inference_mode()
def decoded_by_host(kit, vae):
    return (getattr(kit, vae).decode(kit.clip(vae, 1)["samples"])[0],)


def video(kit, vae, **options):
    """The frames in the file that was written, and its frame rate."""
    written = kit.run(
        "SwiftI2V_DecodeToVideo",
        samples=kit.clip(vae, 1),
        vae=getattr(kit, vae),
        filename_prefix="frozen/clip",
        **options,
    )[0][0]
    with av.open(written.get_stream_source()) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    shutil.rmtree(Path(written.get_stream_source()).parent)
    return torch.from_numpy(np.stack(frames)), torch.tensor([rate])


FRAME_CASES = {
    "frames, vae": Case(
        functools.partial(decoded, vae="vae"), functools.partial(decoded_by_host, vae="vae")
    ),
    "frames, streaming_vae": Case(functools.partial(decoded, vae="streaming_vae")),
    "frames, vae, batch": Case(functools.partial(decoded, vae="vae", batch=2)),
    "frames, streaming_vae, batch": Case(functools.partial(decoded, vae="streaming_vae", batch=2)),
    # The encoder's choices differ between its builds.
    "video, vae": Case(functools.partial(video, vae="vae"), portable="moments"),
    "video, streaming_vae": Case(
        functools.partial(video, vae="streaming_vae", fps=23.98, crf=12), portable="moments"
    ),
}

CASES = SEGMENT_CASES | MOTION_CASES | CAMERA_CASES | WINDOW_CASES | ANCHOR_CASES | FRAME_CASES
