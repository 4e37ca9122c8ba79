"""Our nodes that take a MODEL, after every node of ComfyUI that makes a MODEL of a MODEL and widgets.

Each pair gives a finite result or one sentence of ours. Left out is what ComfyUI's own sampler cannot run
with a Wan model and a photo as its first frame.
"""

import asyncio
import warnings

import comfy.samplers
import pytest
import torch
from comfy_api.latest import io
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

import nodes as host_nodes

SIMPLE = ("INT", "FLOAT", "BOOLEAN", "STRING")

OTHER_VALUES = {
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 0, "dim": 2},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 0},
    "WanContextWindowsManual": {"context_length": 5, "context_overlap": 0},
}
"""Widgets whose default changes nothing in a short clip."""

MERGES = ("ModelMergeSimple", "ModelMergeSubtract", "ModelMergeWAN2_1")
"""The other merges are these for the layers of other models."""

WINDOWS, SCHEDULE = "context windows", "has the schedule that the node {} sets"

REFUSED = {
    "ContextWindowsManual": WINDOWS,
    "LTXVContextWindows": WINDOWS,
    "WanContextWindowsManual": WINDOWS,
    **{
        f"ModelSampling{name}": SCHEDULE.format(f"ModelSampling{name}")
        for name in ("AuraFlow", "ContinuousEDM", "ContinuousV", "Discrete", "Flux", "StableCascade")
    },
    "ModelSamplingLTXV": SCHEDULE.format("ModelSamplingFlux"),
}
"""What a segment sampler refuses, and words of its sentence."""


def widgets_of(node):
    """Names of a node's MODELs and the values of its widgets; None if it needs more than these."""
    models, values = [], {}
    for name, (kind, *options) in node.INPUT_TYPES().get("required", {}).items():
        options = options[0] if options else {}
        if kind == "MODEL":
            models.append(name)
        elif isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options.get("options", [])
            if not choices:
                return None
            values[name] = options.get("default", choices[0])
        elif kind in SIMPLE:
            values[name] = options.get("default", "" if kind == "STRING" else 1)
        else:
            return None
    return (models, values) if models else None


@pytest.fixture(scope="module")
def table():
    """The nodes of ComfyUI by id: class, names of the MODELs, values of the widgets."""
    asyncio.run(host_nodes.init_builtin_extra_nodes())
    found = {}
    for name, node in sorted(host_nodes.NODE_CLASS_MAPPINGS.items()):
        merge = name.startswith("ModelMerge") and name not in MERGES
        # Compiled models have tests of their own, which take longer.
        if list(node.RETURN_TYPES) == ["MODEL"] and not merge and name != "TorchCompileModel":
            widgets = widgets_of(node)
            if widgets is not None and not name.startswith("SwiftI2V_"):
                found[name] = (node, *widgets)
    return found


def patched(name, entry, model):
    """The MODEL that a node makes; None if it does not know Wan models."""
    node, models, values = entry
    inputs = {**dict.fromkeys(models, model), **values, **OTHER_VALUES.get(name, {})}
    try:
        if issubclass(node, io.ComfyNode):
            result = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**inputs)
        else:
            result = getattr(node(), node.FUNCTION)(**inputs)
        return result[0]
    except (KeyError, AttributeError):
        return None


@pytest.fixture
def columns(run, stage_one, stage_two, vae, photo, make_latent):
    """Our nodes as functions of a MODEL, each with the MODEL to patch."""
    z_ref = make_latent(4, height=4, width=6)
    image = torch.nn.functional.interpolate(photo.movedim(-1, 1), (64, 96)).movedim(1, -1)
    prompt = [[torch.zeros(1, 8, 4096), {}]]
    mask = torch.ones(4, 1, 64, 96)
    mask[0] = 0

    def segments(model):
        options = {"steps": 2, "cfg": 3.0, "segment_frames": 2, "context": "read-only"}
        return run("SwiftI2V_SegmentSampler", model=model, z_ref=z_ref, **options)[0]["samples"]

    def segments_advanced(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(prompt, prompt)
        return run(
            "SwiftI2V_SegmentSamplerAdvanced",
            noise=Noise_RandomNoise(1),
            guider=guider,
            sampler=comfy.samplers.sampler_object("euler"),
            sigmas=torch.tensor([0.8, 0.5, 0.0]),
            z_ref=z_ref,
        )[0]["samples"]

    def motion(model):
        options = {"width": 96, "height": 64, "frames": 13, "steps": 2, "cfg": 3.0}
        return run("SwiftI2V_MotionSampler", model_high_noise=model, vae=vae, image=image, **options)[0]

    def host(model):
        latent = {**z_ref, "noise_mask": mask}
        options = (1, 2, 3.0, "euler", "simple", prompt, prompt, latent)
        return host_nodes.common_ksampler(model, *options, denoise=0.5)[0]["samples"]

    def windows(model):
        return host(run("SwiftI2V_TemporalWindows", model=model, window_frames=2)[0])

    plain = stage_one
    ours = [(segments, stage_two), (segments_advanced, plain), (motion, plain), (windows, plain)]
    return ours, (host, plain)


def outcome(function, model):
    """What a MODEL leads to: finite, not finite, or the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "finite" if torch.isfinite(function(model)).all() else "not finite"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@torch.inference_mode()
def test_every_model_node_gives_a_finite_result_or_one_sentence(table, columns):
    ours, (host, plain) = columns
    faults, refused, unknown = [], {}, []
    for name, entry in table.items():
        usual = patched(name, entry, plain)
        if usual is None:
            unknown.append(name)
            continue
        results = {f.__name__: outcome(f, patched(name, entry, model)) for f, model in ours}
        for function, result in results.items():
            if name in REFUSED and function.startswith("segments"):
                refused[name] = result
                fine = result.startswith("ValueError: ") and REFUSED[name] in result
            else:
                fine = result == "finite" or (result.startswith("ValueError: ") and "; " in result)
            # Only then, because it takes as long as the others.
            if not fine and outcome(host, usual) == "finite":
                faults.append(f"{name} > {function}: {result}")
    assert not faults, "\n".join(faults)
    assert set(refused) == REFUSED.keys() & table.keys()
    assert len(table) - len(unknown) > 30
