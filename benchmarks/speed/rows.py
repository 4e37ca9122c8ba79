"""The rows of the speed benchmarks: ours and ComfyUI's own way, on the same weights and inputs.

Import this after `command_line.boot`: it needs ComfyUI on the path.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import comfy.context_windows
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import InputImpl, Types

from benchmarks.speed import wan_models
from benchmarks.speed.measure import Case, Work, differences
from benchmarks.speed.subject import WINDOW, Forwards, Subject, random_frames

MOTION_SIZE = (640, 352)

FALLBACK_TILE = 16
"""Latent cells per side of the tiles that ComfyUI's decode falls back to (256 pixels)."""


def _sigmas(steps: int, shift: float = 5.0) -> torch.Tensor:
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


# --- Window and Stage II ------------------------------------------------------------------------------


def our_sampling(subject: Subject, model: Any, z_ref: torch.Tensor, **widgets: Any) -> torch.Tensor:
    """Run our segment sampler on a reference."""
    inputs = {"model": model, "z_ref": {"samples": z_ref}, "positive": subject.text, **widgets}
    inputs["drift_control"] = 0.0  # ComfyUI has none
    latent: torch.Tensor = subject.pack.run("SwiftI2V_SegmentSampler", **inputs)[0]["samples"]
    return latent


def host_sampling(subject: Subject, model: Any, z_ref: torch.Tensor, steps: int) -> torch.Tensor:
    """Run ComfyUI's sampler on a whole reference at once; the noise mask keeps frame 0."""
    added = {"concat_latent_image": z_ref} if subject.sizes.channels == 96 else {}
    mask = torch.ones(1, 1, *z_ref.shape[2:])
    mask[:, :, 0] = 0
    text = [[embedding, {**options, **added}] for embedding, options in subject.text]
    return _sample(model, text, z_ref, steps, mask)


def _sample(model: Any, text: Any, latent: torch.Tensor, steps: int, mask: Any = None) -> torch.Tensor:
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(text, text)
    guider.set_cfg(1.0)
    noise, sampler = comfy.sample.prepare_noise(latent, 0), comfy.samplers.sampler_object("euler")
    return guider.sample(
        noise, latent, sampler, _sigmas(steps), denoise_mask=mask, disable_pbar=True, seed=0
    )


def with_context_windows(model: Any, frames: int, overlap: int) -> Any:
    """Return a MODEL patched as by ComfyUI's Wan Context Windows node, with its other defaults."""
    windows, clone = comfy.context_windows, model.clone()
    clone.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(windows.ContextSchedules.UNIFORM_STANDARD),
        fuse_method=windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=frames,
        context_overlap=overlap,
        dim=2,
        freenoise=True,
    )
    windows.create_prepare_sampling_wrapper(clone)
    windows.create_sampler_sample_wrapper(clone)
    return clone


def _sampling_case(
    subject: Subject, row: str, name: str, model: Any, run: Callable[[Any], torch.Tensor], **options: Any
) -> Case:
    """Return a case that samples with a model; one step over 5 latent frames warms it up."""
    forwards = Forwards(model)

    def again() -> torch.Tensor:
        forwards.clear()
        return run(forwards.model)

    sample = our_sampling if name.startswith("ours") else host_sampling
    return Case(
        row,
        name,
        again,
        lambda: sample(subject, forwards.model, subject.window, steps=1),
        lambda: forwards.work(subject.forward_work) * (1 / options.get("calls", 1)),
        **options,
    )


def window(subject: Subject) -> list[Case]:
    """Return cases of one forward over 5 latent frames; at a clip's start ours must equal ComfyUI's."""
    reference, steps = subject.window, subject.sizes.steps
    found: list[torch.Tensor] = []

    def host(model: Any) -> torch.Tensor:
        found[:] = [host_sampling(subject, model, reference, steps)]
        return found[0]

    def ours(model: Any) -> torch.Tensor:
        return our_sampling(subject, model, reference, steps=steps, segment_frames=WINDOW - 1)

    def errors(result: torch.Tensor) -> tuple[float, float] | None:
        return differences(result, found[0] if found else None)

    options = {"calls": steps, "errors": errors}
    return [
        _sampling_case(subject, "window", "host", subject.base, host, **options),
        *(
            _sampling_case(subject, "window", name, model, ours, **options)
            for name, model in subject.our_models.items()
        ),
    ]


def stage2(subject: Subject) -> list[Case]:
    """Return cases of the whole Stage II; the floor of each counts its own forwards."""
    z_ref, steps, row = subject.latent, subject.sizes.steps, f"stage2 {subject.sizes.frames}"

    def ours(model: Any) -> torch.Tensor:
        return our_sampling(subject, model, z_ref, steps=steps)

    def host(model: Any) -> torch.Tensor:
        return host_sampling(subject, model, z_ref, steps)

    cases = [
        _sampling_case(subject, row, "host, whole clip", subject.base, host),
        *(_sampling_case(subject, row, name, model, ours) for name, model in subject.our_models.items()),
    ]
    for name, frames, overlap in (("81/30", 21, 7), ("17/4", WINDOW, 1)):
        if z_ref.shape[2] > frames:
            windowed = with_context_windows(subject.base, frames, overlap)
            cases.append(_sampling_case(subject, row, f"host, context windows {name}", windowed, host))
    return cases


# --- Decode and encode ---------------------------------------------------------------------------------


@contextlib.contextmanager
def forced_plan(pack: wan_models.Pack, plan: tuple[Any, ...]) -> Iterator[None]:
    """Decode by the given plan instead of one made for the free memory."""
    chosen = pack.memory_plan.DecodePlan(*plan)
    with mock.patch.object(pack.decode, "first_plan", lambda planner, vae: chosen):
        yield


def decode(subject: Subject) -> list[Case]:
    """Return cases of latent to frames: ComfyUI's decode, its tiles, ours by free memory and by force."""
    vae, latent, pack = subject.vae, subject.latent, subject.pack
    reference = subject.untiled

    def host(samples: torch.Tensor) -> torch.Tensor:
        return vae.decode(samples)[0]

    def host_tiles(samples: torch.Tensor) -> torch.Tensor:
        tile = {"tile_x": FALLBACK_TILE, "tile_y": FALLBACK_TILE, "overlap": FALLBACK_TILE // 4}
        return vae.decode_tiled(samples, **tile)[0]

    def ours(samples: torch.Tensor) -> torch.Tensor:
        return pack.run("SwiftI2V_TiledVAEDecode", samples={"samples": samples}, vae=vae)[0]

    def streamed(samples: torch.Tensor) -> None:
        for _ in pack.decode.decode_integers(vae, samples):
            pass

    def forced(samples: torch.Tensor, plan: tuple[Any, ...]) -> torch.Tensor:
        with forced_plan(pack, plan):
            return ours(samples)

    def case(name: str, run: Callable[..., Any], *args: Any, compare: bool = True) -> Case:
        return Case(
            f"decode {subject.sizes.frames}",
            name,
            lambda: run(latent, *args),
            lambda: run(latent[:, :, :3], *args),
            subject.decode_work,
            (lambda frames: differences(frames, reference)) if compare else None,
        )

    # A clip smaller than one tile is one tile.
    tiled = [case("host, tiles", host_tiles)] if max(latent.shape[-2:]) > FALLBACK_TILE else []
    return [
        case("host", host),
        *tiled,
        case("ours, to IMAGE", ours),
        case("ours, frames not kept", streamed, compare=False),
        *(case(f"ours, {name}", forced, plan) for name, plan in subject.plans.items()),
    ]


def encode(subject: Subject) -> list[Case]:
    """Return cases of frames to latent."""
    vae, clip = subject.vae, subject.clip
    found: list[torch.Tensor] = []

    def host(frames: torch.Tensor) -> torch.Tensor:
        found[:] = [vae.encode(frames)]
        return found[0]

    def ours(frames: torch.Tensor) -> torch.Tensor:
        def pieces(_: torch.device) -> Iterator[torch.Tensor]:
            return iter([frames[:1], *frames[1:].split(4)])

        return subject.pack.encode.encode_reference(vae, *frames.shape[:3], pieces)

    def errors(result: torch.Tensor) -> tuple[float, float] | None:
        return differences(result, found[0] if found else None)

    return [
        Case(
            f"encode {len(clip)}",
            name,
            lambda run=run: run(clip),
            lambda run=run: run(clip[:9]),
            subject.encode_work,
            errors,
        )
        for name, run in (("host", host), ("ours", ours))
    ]


# --- The job, and Stage I ------------------------------------------------------------------------------


def our_job(subject: Subject, model: Any, motion: torch.Tensor, steps: int, folder: str) -> None:
    """Run everything after Stage I with our nodes, to a video file in ``folder``."""
    sizes, pack, vae = subject.sizes, subject.pack, subject.vae
    clip = {"image": subject.clip[:1], "motion": motion, "frames": len(motion)}
    z_ref = pack.run("SwiftI2V_AnchorEncode", **clip, vae=vae, width=sizes.width, height=sizes.height)[0]
    latent = {"samples": our_sampling(subject, model, z_ref["samples"], steps=steps)}
    with mock.patch("folder_paths.output_directory", folder):
        # ComfyUI's own video writer uses 23.
        pack.run("SwiftI2V_DecodeToVideo", samples=latent, vae=vae, crf=23)


def host_job(subject: Subject, model: Any, motion: torch.Tensor, steps: int, folder: str) -> None:
    """Run the same through the functions that ComfyUI's own nodes call."""
    small, size = motion.movedim(-1, 1), (subject.sizes.width, subject.sizes.height)
    clip = comfy.utils.common_upscale(small, *size, "bicubic", "disabled").movedim(1, -1)
    clip[:1] = subject.clip[:1]
    latent = host_sampling(subject, model, subject.vae.encode(clip), steps)
    images = subject.vae.decode(latent)[0]
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(16)))
    video.save_to(str(Path(folder) / "host.mp4"))


def job(subject: Subject) -> list[Case]:
    """Return cases of everything after Stage I: small motion clip to video file."""
    sizes = subject.sizes
    motion = random_frames(sizes.frames, *reversed(MOTION_SIZE)) if sizes.divisor == 1 else subject.clip

    def case(name: str, do: Callable[..., None], model: Any) -> Case:
        forwards = Forwards(model)

        def run(frames: int, steps: int) -> None:
            forwards.clear()
            with tempfile.TemporaryDirectory() as folder:
                do(subject, forwards.model, motion[:frames], steps, folder)

        def work() -> Work:
            return forwards.work(subject.forward_work) + subject.encode_work() + subject.decode_work()

        row = f"job {sizes.frames}"
        return Case(row, name, lambda: run(sizes.frames, sizes.steps), lambda: run(9, 1), work)

    return [case("host", host_job, subject.base), case("ours", our_job, subject.ours)]


def stage1(subject: Subject) -> list[Case]:
    """Return cases of Stage I with A14B at 640x352: photo to motion clip, one expert for all steps."""
    divisor, steps, (width, height) = subject.sizes.divisor, subject.sizes.steps, MOTION_SIZE
    if divisor > 1:
        width, height = 64, 32
    frames, photo = subject.sizes.frames, random_frames(1, height, width)
    vae = wan_models.load_vae("Wan2.1", divisor)
    forwards = Forwards(wan_models.load_network("A14B", 36, divisor))

    def ours(count: int, steps: int) -> torch.Tensor:
        forwards.clear()
        clip = {"image": photo, "width": width, "height": height, "frames": count}
        model = {"model_high_noise": forwards.model, "positive": subject.text, "steps": steps}
        return subject.pack.run("SwiftI2V_MotionSampler", **model, **clip, vae=vae)[0]

    def host(count: int, steps: int) -> torch.Tensor:
        forwards.clear()
        start = torch.full((count, height, width, 3), 0.5)
        start[:1] = photo
        image = vae.encode(start)
        mask = torch.ones(1, 1, *image.shape[2:])
        mask[:, :, 0] = 0
        added = {"concat_latent_image": image, "concat_mask": mask}
        text = [[embedding, {**options, **added}] for embedding, options in subject.text]
        return vae.decode(_sample(forwards.model, text, torch.zeros_like(image), steps))[0]

    def work() -> Work:
        def forward(count: int) -> Work:
            return wan_models.forward_work("A14B", 36, (count, height // 8, width // 8), divisor)

        latent = ((frames - 1) // 4 + 1, height // 8, width // 8)
        encode = wan_models.encode_work("Wan2.1", (frames, height, width), divisor)
        return forwards.work(forward) + wan_models.decode_work("Wan2.1", latent, divisor) + encode

    return [
        Case(f"stage1 {frames}", name, lambda run=run: run(frames, steps), lambda run=run: run(9, 1), work)
        for name, run in (("host", host), ("ours", ours))
    ]


ROWS = {
    "decode": decode,
    "encode": encode,
    "window": window,
    "stage2": stage2,
    "job": job,
    "stage1": stage1,
}
