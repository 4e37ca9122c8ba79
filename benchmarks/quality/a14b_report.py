"""Stage I with the channels of Wan2.2-I2V-A14B: what its own inputs do to a clip.

The model and the VAE have random weights: the figures show that an input acts, and how strongly, not how a
clip looks. PSNR of frame 0 is against the first row's frame 0::

    OMP_NUM_THREADS=1 python -m benchmarks.quality.a14b_report --comfyui FOLDER
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.command_line import comfyui_version
from benchmarks.quality.tiny_comfyui import comfyui, parser, run_node
from swifti2v_train.data.photos import read_photo
from swifti2v_train.evaluation.figures import Row, quality_table
from swifti2v_train.evaluation.metrics import fidelity

VARIANTS: dict[str, dict[str, Any]] = {
    "off": {},
    "motion_strength 1.15": {"motion_strength": 1.15},
    "motion_strength 1.3": {"motion_strength": 1.3},
    "motion_strength 1.5": {"motion_strength": 1.5},
    "loop": {"loop": True},
}
"""Inputs of the motion sampler."""

COLUMNS = {"motion": 3, "PSNR of frame 0": 2, "last to first": 2}
"""Decimals by column."""


def random_weights(network: Any, seed: int) -> dict[str, torch.Tensor]:
    """Return small random weights of a network."""
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}


def random_a14b() -> tuple[Any, Any]:
    """Return a MODEL with 36 input channels and the shift 5, and a VAE with 16, once ComfyUI is booted."""
    import comfy.ops
    import comfy.sd
    from comfy.ldm.wan.model import WanModel
    from comfy.ldm.wan.vae import WanVAE
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    options = {"in_dim": 36, "out_dim": 16, "dim": 128, "ffn_dim": 64, "num_heads": 1, "num_layers": 2}
    network = WanModel(operations=comfy.ops.manual_cast, **options)
    model = comfy.sd.load_diffusion_model_state_dict(random_weights(network, 0))
    (model,) = ModelSamplingSD3().patch(model, 5.0)
    narrow = {"dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "dropout": 0.0}
    encoder = WanVAE(attn_scales=[], temperal_downsample=[False, True, True], **narrow)
    weights = {k: v + k.endswith("gamma") for k, v in random_weights(encoder, 2).items()}
    return model, comfy.sd.VAE(sd=weights)


def main() -> None:
    """Make every variant of a clip from every photo and print the mean figures."""
    options = parser(__doc__).parse_args()
    rows: list[Row] = []
    with comfyui(options.comfyui) as pack:
        model, vae = random_a14b()
        inputs = {"model_high_noise": model, "vae": vae, "width": 128, "height": 64, "frames": 17}
        for path in sorted(options.photos.glob("*.jpg")):
            photo, first = read_photo(path), None
            for variant, given in VARIANTS.items():
                made = run_node(pack, "SwiftI2V_MotionSampler", image=photo, **inputs, **given)
                clip = made[0].clamp(0, 1)
                first = clip[0] if first is None else first
                row = {"frames": len(clip), "clip": path.stem, "variant": variant}
                motion = float(clip.diff(dim=0).abs().mean()) * 255
                row |= {"motion": motion, "PSNR of frame 0": fidelity(clip[0], first).psnr}
                rows.append({**row, "last to first": float((clip[-1] - clip[0]).abs().mean()) * 255})
    print(f"ComfyUI {comfyui_version(options.comfyui)}, torch {torch.__version__}, random weights\n")
    print(quality_table(rows, COLUMNS))


if __name__ == "__main__":
    main()
