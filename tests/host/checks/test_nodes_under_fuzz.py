"""Every node under bad input: every way for every input, and random pairs of ways."""

import random
import shutil

import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from nodes_under_fuzz import Bench

NODES = (
    "SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII", "SwiftI2V_MotionSampler", "SwiftI2V_CameraMotion",
    "SwiftI2V_AnchorEncode", "SwiftI2V_PromptRange", "SwiftI2V_SegmentSampler",
    "SwiftI2V_SegmentSamplerAdvanced", "SwiftI2V_TemporalWindows", "SwiftI2V_TiledVAEDecode",
    "SwiftI2V_DecodeToVideo",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(pack, stage_one, stage_two, vae, streaming_vae):
    generator = torch.Generator().manual_seed(0)
    text = [[torch.randn(1, 4, 4096, generator=generator), {}]]
    guider = comfy.samplers.CFGGuider(stage_two)
    guider.set_conds(text, text)
    clip = {"samples": torch.randn(1, 48, 3, 2, 2, generator=generator)}
    keyframes = {"samples": clip["samples"][:, :, :1].clone(), "swifti2v_keyframe_times": [1]}
    examples = {
        "IMAGE": torch.rand(1, 32, 32, 3, generator=generator),
        "LATENT": clip,
        "MODEL": stage_two,
        "VAE": vae,
        "CONDITIONING": text,
        "NOISE": Noise_RandomNoise(0),
        "GUIDER": guider,
        "SAMPLER": comfy.samplers.sampler_object("euler"),
        "SIGMAS": torch.tensor([1.0, 0.5, 0.0]),
        "AUDIO": {"waveform": torch.rand(1, 2, 4410, generator=generator), "sample_rate": 44100},
        "width": 32,
        "height": 32,
        "frames": 5,
        "steps": 1,
        **dict.fromkeys(("low_noise_model", "high_noise_lora", "low_noise_lora", "lora"), "none"),
        "high_noise_model": "tiny_stage1_motion.safetensors",
        "model_name": "tiny_stage2_detail.safetensors",
        ("SwiftI2V_AnchorEncode", "vae"): streaming_vae,
        ("SwiftI2V_DecodeToVideo", "vae"): streaming_vae,
        ("SwiftI2V_AnchorEncode", "motion"): torch.rand(5, 16, 24, 3, generator=generator),
        ("SwiftI2V_MotionSampler", "model_high_noise"): stage_one,
        ("SwiftI2V_MotionSampler", "model_low_noise"): stage_one,
        ("SwiftI2V_MotionSampler", "overlap_frames"): 4,
        ("SwiftI2V_SegmentSampler", "keyframes"): keyframes,
        ("SwiftI2V_SegmentSamplerAdvanced", "keyframes"): keyframes,
    }
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(pack.nodes, examples, patch)


@pytest.fixture
def judge(bench, workspace):
    """Run a case and see that it writes videos into the output folder alone."""
    output = workspace / "output"
    outside = sorted(path for path in workspace.iterdir() if path != output)

    def run(node_id, *changes):
        shutil.rmtree(output)
        output.mkdir()
        verdict = bench.judge(node_id, bench.spoil(node_id, *changes))
        assert sorted(path for path in workspace.iterdir() if path != output) == outside
        if node_id == "SwiftI2V_DecodeToVideo":
            # One file, or two where the judge runs the node again with plain inputs.
            written = [path.suffix for path in output.rglob("*") if path.is_file()]
            assert bool(written) == (verdict == "works") and set(written) <= {".mp4", ".webm"}, written
        return verdict

    return run


@pytest.mark.parametrize("node_id", NODES)
def test_every_way_for_every_input(bench, judge, node_id):
    """No way ends in anything but a right result or a sentence; all that fail are reported at once."""
    assert judge(node_id) == "works"
    failed, sentences = [], 0
    for change in bench.ways(node_id):
        try:
            sentences += judge(node_id, change) != "works"
        except Exception as error:
            failed.append(f"{change[0].id} {change[1]}: {type(error).__name__}: {str(error)[:300]}")
    assert not failed, "\n".join(failed)
    assert sentences > 0


@pytest.mark.parametrize("node_id", NODES)
def test_random_pairs_of_ways(bench, judge, node_id):
    draw, ways = random.Random(0), bench.ways(node_id)
    for _ in range(30):
        one, other = draw.sample(ways, 2)
        judge(node_id, one, *([] if one[0] is other[0] else [other]))
