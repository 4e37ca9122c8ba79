"""Ids, socket order and widget order are an interface: once released they do not change."""

import json
from pathlib import Path

GOLDEN = Path(__file__).with_name("schema.json")
LISTS = (
    "sampler_name",
    "model_name",
    "lora",
    *(f"{a}_noise_{b}" for a in ("high", "low") for b in ("model", "lora")),
)
"""Combos whose options are the user's files or the host's samplers."""


def described(pack):
    """Everything a saved workflow relies on, per node; file lists and samplers are the host's."""
    nodes = {}
    for node_id, node in pack.nodes.items():
        schema = node.GET_SCHEMA()
        nodes[node_id] = {
            "inputs": [
                {
                    "id": entry.id,
                    "type": entry.get_io_type(),
                    "optional": entry.optional,
                    "default": getattr(entry, "default", None),
                    "min": getattr(entry, "min", None),
                    "max": getattr(entry, "max", None),
                    "options": None if entry.id in LISTS else getattr(entry, "options", None),
                    "seed_control": bool(getattr(entry, "control_after_generate", None)),
                }
                for entry in schema.inputs
            ],
            "outputs": [{"name": entry.display_name, "type": entry.io_type} for entry in schema.outputs],
            "output_node": schema.is_output_node,
        }
    return nodes


def test_the_interface_is_the_released_one(pack):
    """New inputs go to the end and are optional; rewrite schema.json only for those."""
    golden, now = json.loads(GOLDEN.read_text()), described(pack)
    assert golden.keys() <= now.keys()
    for node_id, released in golden.items():
        current = now[node_id]
        count = len(released["inputs"])
        assert current["inputs"][:count] == released["inputs"], node_id
        assert all(entry["optional"] for entry in current["inputs"][count:]), node_id
        assert current["outputs"][: len(released["outputs"])] == released["outputs"], node_id
        assert current["output_node"] == released["output_node"], node_id


def test_every_node_is_in_the_golden_file(pack):
    assert json.loads(GOLDEN.read_text()).keys() == described(pack).keys()


def test_defaults_of_schema_and_execute_agree(pack):
    import inspect

    for node in pack.nodes.values():
        parameters = inspect.signature(node.execute).parameters
        for entry in node.GET_SCHEMA().inputs:
            default = parameters[entry.id].default
            if default is not inspect.Parameter.empty and getattr(entry, "default", None) is not None:
                assert default == entry.default, (node, entry.id)
            assert (default is not inspect.Parameter.empty) == bool(entry.optional), (node, entry.id)


def test_display_names(pack):
    names = {node_id: node.GET_SCHEMA().display_name for node_id, node in pack.nodes.items()}
    assert all(name.startswith("SwiftI2V ") for name in names.values())
    assert names["SwiftI2V_SegmentSampler"] == "SwiftI2V CSG Segment Sampler (Stage II)"
    assert len(set(names.values())) == len(names) == 11
