"""Workflows from strangers through ComfyUI's own validation."""

import asyncio
import math
import uuid

import pytest


def validated(prompt):
    """Validate an API prompt as the server does on /prompt."""
    import execution

    return asyncio.run(execution.validate_prompt(uuid.uuid4().hex, prompt, None))


@pytest.fixture
def workflow(pack):
    """A workflow with our nodes from the model file to the video file, with some inputs changed."""

    def node(node_id, **inputs):
        widgets = (each for each in pack.nodes[node_id].GET_SCHEMA().inputs if hasattr(each, "default"))
        known = {each.id: each.default for each in widgets if each.default is not None}
        return {"class_type": node_id, "inputs": {**known, **inputs}}

    def make(**changed):
        load = {"model_name": "tiny_stage2_detail.safetensors", "lora": "none"}
        empty = {"width": 128, "height": 96, "batch_size": 1}
        prompt = {
            "load": node("SwiftI2V_LoadStageII", **load),
            "vae": {"class_type": "VAELoader", "inputs": {"vae_name": "tiny_vae48.safetensors"}},
            "empty": {"class_type": "EmptyLatentImage", "inputs": empty},
            "sample": node("SwiftI2V_SegmentSampler", model=["load", 0], z_ref=["empty", 0]),
            "save": node("SwiftI2V_DecodeToVideo", samples=["sample", 0], vae=["vae", 0]),
        }
        for each in prompt.values():
            each["inputs"].update({name: changed[name] for name in changed.keys() & each["inputs"].keys()})
        return prompt

    return make


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "tiny_stage2_detail.safetensors\x00"])
@pytest.mark.parametrize("widget", ["model_name", "lora", "weight_dtype", "sampler_name", "context"])
def test_the_server_refuses_names_outside_the_list(workflow, widget, name):
    assert validated(workflow())[0]
    valid, _, _, errors = validated(workflow(**{widget: name}))
    assert not valid
    assert [each["type"] for node in errors.values() for each in node["errors"]] == ["value_not_in_list"]


def test_the_server_lets_nan_pass(workflow):
    """Why widgets are checked once more: a text becomes a number, and NaN is in every range."""
    prompt = workflow(cfg="nan")
    assert validated(prompt)[0] and math.isnan(prompt["sample"]["inputs"]["cfg"])


def test_no_other_input_of_a_workflow_is_a_path(pack):
    """Texts that a workflow brings reach files in two places, which are tested here; lists are closed."""
    texts = {
        (node_id, each.id)
        for node_id, node in pack.nodes.items()
        for each in node.GET_SCHEMA().inputs
        if each.io_type == "STRING"
    }
    parsed = ("timesteps", "keyframe_times", "retake")
    assert {each for each in texts if each[1] not in parsed} == {
        ("SwiftI2V_DecodeToVideo", "filename_prefix"),
        ("SwiftI2V_SegmentSampler", "checkpoint"),
        ("SwiftI2V_SegmentSamplerAdvanced", "checkpoint"),
    }
