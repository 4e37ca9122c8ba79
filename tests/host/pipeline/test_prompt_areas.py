"""Prompts for a part of the picture, in both contexts, against ComfyUI's own sampling."""

import comfy.samplers
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise
from comfy_extras.nodes_video_model import ConditioningSetAreaPercentageVideo
from swifti2v.nodes.comfyui import conditioning
from swifti2v.swifti2v_core.attention import read_only

import nodes

SIGMAS = torch.tensor([0.8, 0.5, 0.0])


@pytest.fixture(scope="module")
def reader():
    """A small random plain model that reads its prompts."""
    import comfy.ops
    import comfy.sd
    from swifti2v.nodes.comfyui.models import with_shift

    network = WanModel(
        in_dim=48,
        out_dim=48,
        dim=128,
        ffn_dim=64,
        num_heads=1,
        num_layers=2,
        operations=comfy.ops.manual_cast,
    )
    generator = torch.Generator().manual_seed(5)
    state = {k: torch.randn(v.shape, generator=generator) * 0.08 for k, v in network.state_dict().items()}
    return with_shift(comfy.sd.load_diffusion_model_state_dict(state), 5.0)


@pytest.fixture
def z_ref(make_latent):
    return make_latent(5, height=18, width=20)


def percentage(prompt, width=1.0, height=1.0, x=0.0, y=0.0, strength=1.0):
    return nodes.ConditioningSetAreaPercentage().append(prompt, width, height, x, y, strength)[0]


def of_a_video(prompt, width=1.0, height=1.0, temporal=1.0, x=0.0, y=0.0, z=0.0, strength=1.0):
    node = ConditioningSetAreaPercentageVideo()
    return node.append(prompt, width, height, temporal, x, y, z, strength)[0]


def pixels(prompt, width, height, x, y, strength=1.0):
    return nodes.ConditioningSetArea().append(prompt, width, height, x, y, strength)[0]


def masked(prompt, mask, area="default", strength=1.0):
    return nodes.ConditioningSetMask().append(prompt, mask, area, strength)[0]


def guider_of(model, positive, negative, cfg=1.0):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def sampled(run, model, positive, negative, z_ref, cfg=1.0, **options):
    return run(
        "SwiftI2V_SegmentSamplerAdvanced",
        noise=Noise_RandomNoise(3),
        guider=guider_of(model, positive, negative, cfg),
        sampler=comfy.samplers.sampler_object("euler"),
        sigmas=SIGMAS,
        z_ref=z_ref,
        **{"drift_control": 0.0, "segment_frames": 4, **options},
    )[0]["samples"]


@torch.inference_mode()
def host_sampling(model, positive, negative, z_ref, cfg=1.0):
    samples = z_ref["samples"]
    mask = torch.ones(1, 1, *samples.shape[2:])
    mask[:, :, 0] = 0
    return guider_of(model, positive, negative, cfg).sample(
        Noise_RandomNoise(3).generate_noise(z_ref),
        samples,
        comfy.samplers.sampler_object("euler"),
        SIGMAS,
        denoise_mask=mask,
        seed=3,
    )


def half_mask():
    mask = torch.zeros(1, 288, 320)
    mask[:, 64:200, :160] = 1
    return mask


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(
    "part",
    [
        lambda prompt: of_a_video(prompt, width=0.5),
        lambda prompt: of_a_video(prompt, width=0.45, height=0.4, x=0.3, y=0.5),  # odd numbers of cells
        lambda prompt: masked(prompt, half_mask()),
    ],
)
def test_one_segment_is_the_hosts_own_sampling(run, reader, text, z_ref, part, cfg):
    positive = part(text[0]) + text[1]
    ours = sampled(run, reader, positive, text[1], z_ref, cfg)
    theirs = host_sampling(reader, positive, text[1], z_ref, cfg)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - sampled(run, reader, text[1], text[1], z_ref, cfg)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("part", "same"),
    [
        (lambda p: percentage(p, 0.5, 0.4, 0.3, 0.5), lambda p: of_a_video(p, 0.5, 0.4, 1.0, 0.3, 0.5)),
        (lambda p: pixels(p, 160, 144, 64, 96), lambda p: of_a_video(p, 0.5, 0.5, 1.0, 0.2, 1 / 3)),
        # 1 on 160 of 320 pixels, and ComfyUI enlarges the mask by half a cell
        (
            lambda p: masked(p, half_mask(), "mask bounds"),
            lambda p: masked(of_a_video(p, 0.5, 9 / 18, 1.0, 0.0, 4 / 18), half_mask()),
        ),
    ],
)
def test_areas_of_pictures_are_areas_of_the_video(run, reader, text, z_ref, part, same):
    ours = sampled(run, reader, part(text[0]) + text[1], text[1], z_ref, 3.0)
    assert torch.equal(ours, sampled(run, reader, same(text[0]) + text[1], text[1], z_ref, 3.0))


@pytest.fixture
def counted(monkeypatch):
    """(tokens in the sequence, tokens taken for clean) of every forward of a whole window."""
    seen, attend = set(), read_only.ReadOnlyContext.attend_window

    def spy(self, run, q, k, v, **kwargs):
        seen.add((k.shape[kwargs["token_dim"]], self.clean_tokens))
        return attend(self, run, q, k, v, **kwargs)

    monkeypatch.setattr(read_only.ReadOnlyContext, "attend_window", spy)
    return seen


@pytest.mark.parametrize(("width", "tokens"), [(0.5, 9 * 5), (0.9, 9 * 9), (0.45, 9 * 5), (1.0, 9 * 10)])
def test_read_only_context_counts_the_clean_tokens_that_the_network_sees(
    run, reader, text, z_ref, counted, width, tokens
):
    result = sampled(
        run, reader, of_a_video(text[0], width), text[1], z_ref, context="read-only", segment_frames=2
    )
    assert torch.isfinite(result).all()
    assert counted == {(3 * tokens, tokens), (4 * tokens, 2 * tokens)}


@pytest.mark.parametrize("alone", [False, True])
def test_kept_keys_of_areas_change_nothing(run, reader, text, z_ref, monkeypatch, alone):
    """Positive and negative for one area share ComfyUI's id, also where they do not fit into one batch."""
    positive = of_a_video(text[0], 0.45, 0.4, x=0.3) + text[1]
    options = {"cfg": 3.0, "context": "read-only", "segment_frames": 2}
    if alone:
        monkeypatch.setattr(type(reader), "get_free_memory", lambda self, device: 0)
    kept = sampled(run, reader, positive, text[1], z_ref, **options)
    monkeypatch.setattr(read_only.ReadOnlyContext, "holds", lambda self, conditioning: False)
    fresh = sampled(run, reader, positive, text[1], z_ref, **options)
    assert (kept - fresh).abs().max() < 1e-5


@pytest.mark.parametrize("node", ["simple", "advanced"])
@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
@pytest.mark.parametrize(("temporal", "z"), [(0.5, 0.0), (1.0, 0.5)])
def test_a_part_of_the_time_is_refused(run, reader, text, z_ref, node, context, temporal, z):
    positive = of_a_video(text[0], temporal=temporal, z=z)
    with pytest.raises(ValueError, match=r"^positive has an area for a part of the time.*Time Range"):
        if node == "simple":
            run("SwiftI2V_SegmentSampler", model=reader, positive=positive, z_ref=z_ref, context=context)
        else:
            sampled(run, reader, positive, text[1], z_ref, context=context)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"area": "all"}, 'for the area "all", but an area has 4 or 6 numbers'),
        ({"area": ("percentage", 0.5)}, "an area has 4 or 6 numbers"),
        ({"area": (2, 9, 9, 0, 0, 0)}, "for a part of the time"),
        (
            {"area": (20, 20, 0, 40)},
            "320 from the left.*320x288 pixels; the nearest valid begin is 0 and",
        ),
        ({"area": ("percentage", 0.5, 0.5, 1.0, 0.0)}, "begins 288 pixels from the top"),
        ({"mask": torch.ones(5, 18, 20)}, "a mask of 5 pictures"),
        ({"mask": torch.full((1, 18, 20), float("nan"))}, "mask of positive holds NaN"),
        ({"mask": [1]}, "must be a MASK"),
        ({"gligen": ("position", None, [])}, "GLIGEN"),
    ],
)
def test_what_windows_cannot_show_is_refused(run, reader, text, z_ref, options, words):
    positive = [[text[0][0][0], options]]
    with pytest.raises(ValueError, match=words):
        sampled(run, reader, positive, text[1], z_ref)


def test_an_area_over_all_frames_of_a_window_is_an_area_of_the_picture(run, reader, text, z_ref):
    of_frames = [[text[0][0][0], {"area": (5, 9, 10, 0, 0, 4)}]]
    of_picture = [[text[0][0][0], {"area": (18, 20, 0, 8)}]]
    assert conditioning.area_in_cells(of_picture[0][1]["area"], 18, 20) == (9, 10, 0, 4)
    ours = sampled(run, reader, of_frames, text[1], z_ref)
    assert torch.equal(ours, sampled(run, reader, of_picture, text[1], z_ref))


def test_an_empty_mask_counts_for_nothing(run, reader, text, z_ref):
    empty = masked(text[0], torch.zeros(1, 18, 20), "mask bounds")
    ours = sampled(run, reader, empty + text[1], text[1], z_ref)
    assert (ours - sampled(run, reader, text[1], text[1], z_ref)).abs().max() < 1e-5
