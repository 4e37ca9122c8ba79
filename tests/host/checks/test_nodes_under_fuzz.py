"""Every node under bad input: a table of every way for every input, and random pairs of them.

``SWIFTI2V_FUZZ_CASES=10000 python -m pytest -s -k random_pairs`` on this file runs that many random cases
instead of the few hundred that always run, and prints how they ended.
"""

import os
from collections import Counter

import comfy.ops
import comfy.samplers
import comfy.sd
import pytest
import torch
from bad_values import ANYTHING, WAYS, Bad
from comfy.ldm.wan.model import WanModel
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nodes_under_fuzz import Bench, forget_files
from safetensors.torch import save_file
from swifti2v.nodes.comfyui import memory, models

NODES = (
    "SwiftI2V_LoadStageI",
    "SwiftI2V_LoadStageII",
    "SwiftI2V_MotionSampler",
    "SwiftI2V_CameraMotion",
    "SwiftI2V_AnchorEncode",
    "SwiftI2V_PromptRange",
    "SwiftI2V_SegmentSampler",
    "SwiftI2V_SegmentSamplerAdvanced",
    "SwiftI2V_TemporalWindows",
    "SwiftI2V_TiledVAEDecode",
    "SwiftI2V_DecodeToVideo",
)
CASES = int(os.environ.get("SWIFTI2V_FUZZ_CASES", "0"))
QUICK = {
    "width": (32, 64, 96, 80),
    "height": (32, 64, 96, 80),
    "frames": (5, 9, 13, 10),
    "steps": (1, 2, 3),
    "chunk_frames": (0, 5, 9),
    "overlap_frames": (4, 8),
    "window_frames": (2, 4, 6),
    "crf": (0, 17, 51, 63),
}
"""Numbers that are mostly valid and quick."""


def small_weights(channels):
    network = WanModel(
        model_type="t2v",
        in_dim=channels,
        out_dim=48,
        dim=128,
        ffn_dim=128,
        num_heads=1,
        num_layers=1,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(channels)
    return {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in network.state_dict().items()}


@pytest.fixture(scope="module")
def bench(pack, workspace, vae, streaming_vae):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    folder = workspace / "models" / "diffusion_models"
    files = [folder / f"fuzz_{channels}.safetensors" for channels in (48, 96)]
    files.append(workspace / "models" / "loras" / "fuzz_lora.safetensors")
    for path, channels in zip(files, (48, 96), strict=False):
        save_file(small_weights(channels), path)
    save_file({"blocks.0.self_attn.q.diff": torch.zeros(128, 128)}, files[-1])
    plain, concat = (comfy.sd.load_diffusion_model_state_dict(small_weights(n)) for n in (48, 96))
    plain, concat = models.with_shift(plain, 5.0), models.with_shift(concat, 5.0)
    generator = torch.Generator().manual_seed(0)
    text = [[torch.randn(1, 4, 4096, generator=generator), {}]]
    guider = comfy.samplers.CFGGuider(concat)
    guider.set_conds(text, text)
    clip = {"samples": torch.randn(1, 48, 3, 2, 2, generator=generator)}
    keyframes = {"samples": clip["samples"][:, :, :1].clone(), "swifti2v_keyframe_times": [1]}
    kinds = {
        "IMAGE": torch.rand(1, 32, 32, 3, generator=generator),
        "LATENT": clip,
        "MODEL": concat,
        "VAE": vae,
        "CONDITIONING": text,
        "NOISE": Noise_RandomNoise(0),
        "GUIDER": guider,
        "SAMPLER": comfy.samplers.sampler_object("euler"),
        "SIGMAS": torch.tensor([1.0, 0.5, 0.0]),
        "width": 32,
        "height": 32,
        "frames": 5,
        "steps": 1,
        ("SwiftI2V_AnchorEncode", "vae"): streaming_vae,
        ("SwiftI2V_DecodeToVideo", "vae"): streaming_vae,
        ("SwiftI2V_AnchorEncode", "motion"): torch.rand(5, 16, 24, 3, generator=generator),
        ("SwiftI2V_MotionSampler", "model_high_noise"): plain,
        ("SwiftI2V_MotionSampler", "model_low_noise"): plain,
        ("SwiftI2V_SegmentSampler", "keyframes"): keyframes,
        ("SwiftI2V_SegmentSamplerAdvanced", "keyframes"): keyframes,
        ("SwiftI2V_LoadStageI", "high_noise_model"): "fuzz_48.safetensors",
        ("SwiftI2V_LoadStageI", "low_noise_model"): "none",
        ("SwiftI2V_LoadStageI", "high_noise_lora"): "none",
        ("SwiftI2V_LoadStageI", "low_noise_lora"): "none",
        ("SwiftI2V_LoadStageII", "model_name"): "fuzz_96.safetensors",
        ("SwiftI2V_LoadStageII", "lora"): "none",
    }
    with pytest.MonkeyPatch.context() as patch:
        # A small machine: what is too large for it ends quickly.
        patch.setattr(memory, "total_bytes", lambda device: 2**30)
        yield Bench(pack, kinds, patch)
    for path in files:
        path.unlink()


@pytest.fixture(scope="module")
def judge(bench, workspace):
    """Run a case and see that it writes inside the output folder alone."""
    outside = sorted(path for path in workspace.iterdir() if path.name != "output")
    verdicts = Counter()

    def run(node_id, *changes):
        forget_files(workspace / "output")
        verdict = bench.judge(node_id, bench.spoil(node_id, *changes))
        assert sorted(path for path in workspace.iterdir() if path.name != "output") == outside
        if node_id == "SwiftI2V_DecodeToVideo":
            written = [path for path in (workspace / "output").rglob("*") if path.is_file()]
            assert bool(written) == (verdict == "works"), written
            assert all(path.suffix in (".mp4", ".webm") for path in written)
        verdicts["works" if verdict == "works" else "sentence"] += 1
        return verdict

    yield run
    print(f"\n{verdicts.total()} cases:", dict(verdicts))


@pytest.mark.parametrize("node_id", NODES)
def test_the_examples_work(judge, node_id):
    assert judge(node_id) == "works"


@pytest.mark.parametrize("node_id", NODES)
def test_every_way_for_every_input(bench, judge, node_id):
    """No way may end in anything but a right result or a sentence; all that fail are told at once."""
    failed, verdicts = [], Counter()
    for each, way in bench.ways(node_id):
        try:
            verdicts[judge(node_id, (each, way)) == "works"] += 1
        except Exception as error:  # the table goes on
            failed.append(f"{each.id} {way}: {type(error).__name__}: {str(error)[:300]}")
    assert not failed, "\n".join(failed)
    assert verdicts[False] > 0


def values(each):
    """Return a strategy of `Bad` values for an input: of its type's table, or drawn and mostly valid."""
    table = st.sampled_from(WAYS.get(each.io_type, ANYTHING))
    name = each.io_type
    if name == "INT":
        small = st.integers(each.min, min(each.max, each.min + 20))
        valid, drawn = st.sampled_from(QUICK[each.id]) if each.id in QUICK else small, st.integers()
    elif name == "FLOAT":
        valid, drawn = st.floats(each.min, each.max), st.floats()
    elif name == "STRING":
        valid, drawn = (
            st.from_regex(r"([0-9]{1,3}, ?){0,3}[0-9]{1,4}", fullmatch=True),
            st.text(max_size=40),
        )
    elif name == "COMBO":
        valid, drawn = st.sampled_from(each.options or ["none"]), st.text(max_size=10)
    elif name == "BOOLEAN":
        valid, drawn = st.booleans(), st.integers()
    else:
        return table
    made = st.one_of(valid, valid, drawn).map(lambda value: Bad(repr(value), lambda _: value))
    return st.one_of(made, made, table)


@settings(
    max_examples=CASES or 300,
    derandomize=not CASES,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_random_pairs(bench, judge, data):
    node_id = data.draw(st.sampled_from(NODES))
    inputs = data.draw(
        st.lists(st.sampled_from(bench.inputs(node_id)), min_size=1, max_size=2, unique_by=id)
    )
    judge(node_id, *((each, data.draw(values(each))) for each in inputs))
