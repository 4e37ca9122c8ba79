"""The shipped workflows, each described once; build.py makes the files of them."""

from __future__ import annotations

from graph import Graph, Node, Output

STAGE_ONE, REFERENCE, STAGE_TWO, OUTPUT, TEXT = "#3f789e", "#8A8", "#88A", "#b06634", "#b58b2a"

PHOTO, PREVIEW, VIDEO = 220, 240, 330  # room below the widgets, in pixels

TINY_VAE = "tiny_vae48.safetensors"
TINY_STAGE_ONE = "tiny_stage1_motion.safetensors"
TINY_STAGE_TWO = "tiny_stage2_detail.safetensors"
TINY_SIZE = {"width": 1280, "height": 640}

TINY_FILES = """\
It runs on any computer, also without a graphics card. In a clone of the repository \
**python3 dev.py demo --serve** puts everything in its place. By hand, from the folder tests/assets/tiny:
- photos/life.jpg → input
- tiny_vae48.safetensors → models/vae
- tiny_stage1_motion.safetensors, tiny_stage2_detail.safetensors → models/diffusion_models"""

TINY_LIMITS = """\
The tiny models are soft; they show how it works, not how good it gets. The preview on the sampler has \
false colors, since ComfyUI does not know the tiny VAE. With real weights: open **swifti2v_2k_wan22**."""


def swifti2v_demo(graph: Graph) -> None:
    """A camera move over a photo, redrawn by the tiny Stage II model."""
    graph.note(
        400,
        520,
        f"""\
# A photo becomes a moving clip

{TINY_FILES}

Then press **Run**; it takes a minute or two.

1. **Stage I** moves a camera over the photo: small, and without a model.
2. **Reference** enlarges that clip, puts the photo in as frame 0 and encodes both.
3. **Stage II** redraws the clip at full size, three latent frames at a time.
4. **Output** writes the video. Drop the file on ComfyUI and this graph comes back.

**Try** another photo, more **zoom**, another **pan_x**. {TINY_LIMITS}
""",
    )
    graph.group("Stage I: motion", STAGE_ONE)
    graph.column(360)
    photo = graph.node("LoadImage", image="life.jpg", picture=PHOTO)["IMAGE"]
    motion = graph.node(
        "SwiftI2V_CameraMotion",
        image=photo,
        width=640,
        height=320,
        frames=33,
        pan_x=0.04,
        pan_y=-0.02,
        zoom=1.12,
        sway=0.006,
        seed=7,
    )["frames"]
    vae, reference = tiny_reference(graph, photo, motion, frames=33)
    tiny_stage_two(graph, vae, reference, "video/SwiftI2V_demo")


def swifti2v_demo_model_motion(graph: Graph) -> None:
    """The demo with the tiny Stage I model instead of the camera move."""
    graph.note(
        400,
        560,
        f"""\
# A photo becomes a moving clip, with a model for the motion

{TINY_FILES}

Then press **Run**; it takes a minute or two.

1. **Stage I**: a model makes up a small motion clip.
2. **Reference** enlarges that clip, puts the photo in as frame 0 and encodes both.
3. **Stage II** redraws the clip at full size, three latent frames at a time.
4. **Output** writes the video. Drop the file on ComfyUI and this graph comes back.

The tiny Stage I model melts large motion; **swifti2v_demo** with its camera move does not. **Try** \
another **seed** in the Motion Sampler. {TINY_LIMITS}
""",
    )
    graph.group("Stage I: motion", STAGE_ONE)
    graph.column(360)
    photo = graph.node("LoadImage", image="life.jpg", picture=PHOTO)["IMAGE"]
    vae = graph.node("VAELoader", vae_name=TINY_VAE)["VAE"]
    models = graph.node(
        "SwiftI2V_LoadStageI",
        high_noise_model=TINY_STAGE_ONE,
        low_noise_model="none",
        high_noise_lora="none",
        low_noise_lora="none",
    )
    graph.column(380)
    motion = graph.node(
        "SwiftI2V_MotionSampler",
        picture=PREVIEW,
        model_high_noise=models["model_high_noise"],
        vae=vae,
        image=photo,
        width=640,
        height=320,
        frames=21,
        seed=3,
    )["frames"]
    vae, reference = tiny_reference(graph, photo, motion, frames=21, vae=vae)
    tiny_stage_two(graph, vae, reference, "video/SwiftI2V_demo_model")


def swifti2v_any_motion(graph: Graph) -> None:
    """A video from disk instead of Stage I."""
    graph.note(
        400,
        580,
        f"""\
# Motion from anywhere

Stage I can be replaced: whatever gives frames or a video can feed **motion**. Here it is a video from \
disk. Any image-to-video node of any pack does as well: connect its IMAGE or VIDEO output to **motion** \
and its input photo to **image**.

1. Choose the **photo** and a **video** that begins with that photo. Its size does not matter; another \
number of frames than asked is spread over the same time.
2. Set **frames** (4n+1) in Anchor Encode. **fps** and **audio** go from there to the end, so the result \
is as fast as the video and keeps its sound. For frames instead of a video, unlink both and set **fps**.
3. If the clip has a color cast, turn on **color_match**.

{TINY_FILES}

{TINY_LIMITS}
""",
    )
    graph.group("Stage I: any clip", STAGE_ONE)
    graph.column(360)
    photo = graph.node("LoadImage", image="life.jpg", picture=PHOTO)["IMAGE"]
    video = graph.node("LoadVideo", file="motion.mp4", picture=PHOTO)["VIDEO"]
    graph.group("Reference", REFERENCE)
    graph.column(400)
    vae = graph.node("VAELoader", vae_name=TINY_VAE)["VAE"]
    encode = tiny_encode(graph, photo, video, vae, frames=33)
    from_video = {"fps": encode["fps"], "audio": encode["audio"]}
    tiny_stage_two(graph, vae, encode["z_ref"], "video/SwiftI2V_any_motion", **from_video)


def tiny_reference(
    graph: Graph, photo: Output, motion: Output, frames: int, vae: Output | None = None
) -> tuple[Output, Output]:
    """Add the reference at the demo's size; return the VAE and the reference."""
    graph.group("Reference", REFERENCE)
    graph.column(400)
    vae = vae or graph.node("VAELoader", vae_name=TINY_VAE)["VAE"]
    return vae, tiny_encode(graph, photo, motion, vae, frames)["z_ref"]


def tiny_encode(graph: Graph, photo: Output, motion: Output, vae: Output, frames: int) -> Node:
    """Add the node that makes the reference, at the demo's size."""
    return graph.node(
        "SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae, frames=frames, **TINY_SIZE
    )


def tiny_stage_two(graph: Graph, vae: Output, reference: Output, prefix: str, **video: Output) -> None:
    """Add the tiny Stage II model, the sampler and the video, whose further inputs may be given."""
    graph.group("Stage II: detail", STAGE_TWO)
    graph.column(400)
    model = graph.node("SwiftI2V_LoadStageII", model_name=TINY_STAGE_TWO, lora="none")["model"]
    sampler = graph.node("SwiftI2V_SegmentSampler", picture=PREVIEW, model=model, z_ref=reference, seed=1)
    output(graph, sampler["latent"], vae, prefix, **video)


def output(graph: Graph, latent: Output, vae: Output, prefix: str, **inputs: Output) -> None:
    """Add the node that writes the video."""
    graph.group("Output", OUTPUT)
    graph.column(560)
    graph.node(
        "SwiftI2V_DecodeToVideo",
        picture=VIDEO,
        samples=latent,
        vae=vae,
        filename_prefix=prefix,
        **inputs,
    )


# --- 2K with public weights -----------------------------------------------------------------------

WAN21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
HIGH = "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"
HIGH_LORA = "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors"
LOW_LORA = "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors"
TI2V = "wan2.2_ti2v_5B_fp16.safetensors"
UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
POSITIVE = "The scene comes alive with gentle, natural motion; the camera slowly moves forward."
NEGATIVE = (
    "static, blurry details, overexposed, oversaturated, low quality, JPEG artifacts, subtitles, "
    "watermark, deformed hands, extra fingers, distorted face, cluttered background"
)

NOTE_2K = f"""\
# Photo to 2560x1408, 81 frames

**Files.** ComfyUI lists what is missing and offers to download it:
- models/diffusion_models: {HIGH}, {LOW}, {TI2V}
- models/loras: {HIGH_LORA}, {LOW_LORA}
- models/text_encoders: {UMT5}
- models/vae: wan_2.1_vae.safetensors (Stage I), wan2.2_vae.safetensors (Stage II)

**What it does**
1. **Stage I**: Wan2.2-I2V-A14B makes a clip of 640x352. With the 4-step LoRAs, 4 steps and **cfg** 1 are \
enough.
2. **Reference**: the clip is enlarged to 2560x1408, the photo becomes frame 0.
3. **Stage II**: Wan2.2-TI2V-5B redraws it, three latent frames at a time.
4. **Output** writes the video. Drop the file on ComfyUI and this graph comes back.

**Settings of Stage II.** No SwiftI2V weights have been published yet. Plain TI2V-5B stands in: it starts \
from the reference with noise. **denoise** 0 chooses by the weights: 0.5 for these (0.4 to 0.6 keeps \
the motion), 1 for SwiftI2V weights (96 input channels). The base weights want about 20 steps and **cfg** \
5, as set here. With TI2V-5B-Turbo: 4 steps and **cfg** 1, about ten times faster.

**Interrupted?** Queue the graph again, unchanged: Stage II resumes after its last finished segment. \
**checkpoint** saves them in output/swifti2v_checkpoints, and they are deleted when Stage II is done, so \
nothing is left there. Choose **keep** if the decoding crashes.

**First** write what moves into the prompt. A photo of at least 2560x1408 gives the most detail.
"""


def model_files(root: str, directory: str, *names: str) -> list[dict[str, str]]:
    """Return download entries as the UI reads them."""
    return [{"name": name, "url": f"{root}/{directory}/{name}", "directory": directory} for name in names]


def swifti2v_2k_wan22(graph: Graph) -> None:
    """Photo to 2K with the public Wan2.2 weights."""
    graph.note(480, 760, NOTE_2K)
    positive, negative = wan_prompts(graph)
    graph.group("Stage I: motion", STAGE_ONE)
    graph.column(420)
    photo = graph.node("LoadImage", image="example.png", picture=PHOTO)["IMAGE"]
    vae = wan_vae(graph, "Load VAE (Stage I)", "wan_2.1_vae.safetensors")
    models = wan_experts(graph)
    graph.column(380)
    motion = graph.node(
        "SwiftI2V_MotionSampler",
        picture=PREVIEW,
        model_high_noise=models["model_high_noise"],
        model_low_noise=models["model_low_noise"],
        vae=vae,
        image=photo,
        positive=positive,
        negative=negative,
        seed=1,
    )["frames"]
    graph.group("Reference", REFERENCE)
    graph.column(400)
    vae = wan_vae(graph, "Load VAE (Stage II)", "wan2.2_vae.safetensors")
    reference = graph.node("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae)["z_ref"]
    graph.group("Stage II: detail", STAGE_TWO)
    graph.column(400)
    model = wan_ti2v(graph)
    sampler = graph.node(
        "SwiftI2V_SegmentSampler",
        picture=PREVIEW,
        model=model,
        z_ref=reference,
        positive=positive,
        negative=negative,
        seed=1,
        steps=20,
        cfg=5,
        checkpoint="SwiftI2V_2K",
        checkpoint_files="delete when done",
    )
    output(graph, sampler["latent"], vae, "video/SwiftI2V_2K")


NOTE_REFINE = f"""\
# Refine the whole clip at once

**Files.** ComfyUI lists what is missing and offers to download it:
- models/diffusion_models: {TI2V}
- models/text_encoders: {UMT5}
- models/vae: wan2.2_vae.safetensors

**What it does**
1. **Stage I** moves a camera over the photo. Any clip does as well: connect its frames to **motion**.
2. **Reference**: the clip is enlarged to 2560x1408, the photo becomes frame 0.
3. **Refiner**: ComfyUI's own **KSampler** starts from that latent and redraws all 21 latent frames in one \
sampling of few steps. **Temporal Window Attention** lets them attend inside windows of **window_frames** \
that shift from block to block, so that the time grows with the length of the clip and not with its square.
4. **Output** writes the video. Drop the file on ComfyUI and this graph comes back.

**Settings.** A higher **denoise** adds more detail and keeps less of the clip; 0.4 is a place to start. \
With TI2V-5B-Turbo: 4 steps and **cfg** 1.

**Unlike in the segment sampler**, the memory grows with the length, and the photo's own frame is redrawn \
with the others.
"""


def swifti2v_refine(graph: Graph) -> None:
    """The whole clip refined in one sampling, inside temporal windows."""
    graph.note(480, 680, NOTE_REFINE)
    positive, negative = wan_prompts(graph)
    graph.group("Stage I: motion", STAGE_ONE)
    graph.column(360)
    photo = graph.node("LoadImage", image="example.png", picture=PHOTO)["IMAGE"]
    motion = graph.node("SwiftI2V_CameraMotion", image=photo)["frames"]
    graph.group("Reference", REFERENCE)
    graph.column(400)
    vae = wan_vae(graph, "Load VAE", "wan2.2_vae.safetensors")
    reference = graph.node("SwiftI2V_AnchorEncode", image=photo, motion=motion, vae=vae)["z_ref"]
    graph.group("Refiner: all frames at once", STAGE_TWO)
    graph.column(400)
    model = graph.node("SwiftI2V_TemporalWindows", model=wan_ti2v(graph))["model"]
    sampler = graph.node(
        "KSampler",
        picture=PREVIEW,
        model=model,
        seed=1,
        steps=10,
        cfg=5,
        sampler_name="euler",
        scheduler="simple",
        positive=positive,
        negative=negative,
        latent_image=reference,
        denoise=0.4,
    )
    output(graph, sampler["LATENT"], vae, "video/SwiftI2V_refined")


def wan_ti2v(graph: Graph) -> Output:
    """Add the loader of plain TI2V-5B."""
    return graph.node(
        "SwiftI2V_LoadStageII",
        models=model_files(WAN22, "diffusion_models", TI2V),
        model_name=TI2V,
        lora="none",
    )["model"]


def wan_prompts(graph: Graph) -> tuple[Output, Output]:
    """Add the text encoder and both prompts."""
    graph.group("Prompt", TEXT)
    graph.column(400)
    clip = graph.node(
        "CLIPLoader",
        models=model_files(WAN21, "text_encoders", UMT5),
        clip_name=UMT5,
        type="wan",
        device="default",
    )["CLIP"]
    texts = [("Positive prompt", POSITIVE), ("Negative prompt", NEGATIVE)]
    positive, negative = (
        graph.node("CLIPTextEncode", title=title, picture=100, clip=clip, text=text)["CONDITIONING"]
        for title, text in texts
    )
    return positive, negative


def wan_vae(graph: Graph, title: str, name: str) -> Output:
    """Add a VAE loader."""
    models = model_files(WAN22, "vae", name)
    return graph.node("VAELoader", title=title, models=models, vae_name=name)["VAE"]


def wan_experts(graph: Graph) -> Node:
    """Add the loader of the two Wan2.2-I2V-A14B experts with their few-step LoRAs."""
    return graph.node(
        "SwiftI2V_LoadStageI",
        models=[
            *model_files(WAN22, "diffusion_models", HIGH, LOW),
            *model_files(WAN22, "loras", HIGH_LORA, LOW_LORA),
        ],
        high_noise_model=HIGH,
        low_noise_model=LOW,
        high_noise_lora=HIGH_LORA,
        low_noise_lora=LOW_LORA,
    )


ALL = (swifti2v_demo, swifti2v_demo_model_motion, swifti2v_2k_wan22, swifti2v_refine, swifti2v_any_motion)
