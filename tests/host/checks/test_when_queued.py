"""Wrong constants are refused when a graph is queued, by the sentence that the node itself has for them."""

import asyncio
import math
import uuid

import av
import pytest

ANCHOR, MOTION, CAMERA = "SwiftI2V_AnchorEncode", "SwiftI2V_MotionSampler", "SwiftI2V_CameraMotion"
SEGMENTS, ADVANCED = "SwiftI2V_SegmentSampler", "SwiftI2V_SegmentSamplerAdvanced"
VIDEO = "SwiftI2V_DecodeToVideo"

WRONG = [
    (CAMERA, {"width": 1290}),
    (CAMERA, {"height": 1080}),
    (CAMERA, {"frames": 80}),
    (CAMERA, {"frames": 4005}),
    (ANCHOR, {"height": 1080}),
    (ANCHOR, {"frames": 80}),
    (ANCHOR, {"keyframe_times": "soon"}),
    (ANCHOR, {"keyframe_times": "8, 4"}),
    (ANCHOR, {"keyframe_times": "9", "frames": 9}),
    (MOTION, {"width": 650}),
    (MOTION, {"frames": 80}),
    (MOTION, {"timesteps": "x"}),
    (MOTION, {"timesteps": "900, 500"}),
    (MOTION, {"chunk_frames": 20}),
    (MOTION, {"chunk_frames": 21, "overlap_frames": 6}),
    (MOTION, {"frames": 81, "chunk_frames": 21, "reshift_steps": 2}),
    (MOTION, {"reshift_steps": 4, "steps": 4}),
    (MOTION, {"reshift_steps": 2, "timesteps": "1000, 500"}),
    (SEGMENTS, {"timesteps": "x"}),
    (SEGMENTS, {"timesteps": "500, 1000"}),
    (SEGMENTS, {"denoise": 1.5}),
    (SEGMENTS, {"denoise": math.nan}),
    (SEGMENTS, {"checkpoint": "a/b"}),
    (ADVANCED, {"checkpoint": "con"}),
    (ADVANCED, {"start_segment": 3, "end_segment": 3}),
    ("SwiftI2V_PromptRange", {"start_frame": 5, "end_frame": 3}),
    ("SwiftI2V_TemporalWindows", {"window_frames": 5}),
    (VIDEO, {"crf": 60}),
    (VIDEO, {"crf": 52, "codec": "hevc"}),
    (VIDEO, {"codec": "h265"}),
    (VIDEO, {"bit_depth": "12"}),
    (VIDEO, {"filename_prefix": "../../x"}),
    (VIDEO, {"filename_prefix": "a/"}),
]


@pytest.fixture
def queued(pack, monkeypatch):
    """Validate a graph with one node as the server does on /prompt; return what is said about the node.

    All its sockets are linked, unless named, and its widgets have their defaults, unless given.
    """
    import execution

    import nodes as host_nodes

    class Source:
        RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "make", ""

        @classmethod
        def INPUT_TYPES(cls):
            return {}

    class Sink:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "take", "", True

        @classmethod
        def INPUT_TYPES(cls):
            return {"required": {"value": ("*",)}}

    for node in (Source, Sink):
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, node.__name__, node)

    def queue(node_id, unconnected=(), **inputs):
        given = {}
        for each in pack.nodes[node_id].GET_SCHEMA().inputs:
            default = getattr(each, "default", None)
            given[each.id] = ["source", 0] if default is None else default
        given = {name: value for name, value in given.items() if name not in unconnected} | inputs
        prompt = {
            "source": {"class_type": "Source", "inputs": {}},
            "node": {"class_type": node_id, "inputs": given},
            "sink": {"class_type": "Sink", "inputs": {"value": ["node", 0]}},
        }
        valid, _, _, errors = asyncio.run(execution.validate_prompt(uuid.uuid4().hex, prompt, None))
        said = errors.get("node", {"errors": []})["errors"] if errors else []
        assert valid != bool(said)
        assert {each["type"] for each in said} <= {"custom_validation_failed"}
        assert all(given[each["extra_info"]["input_name"]] is not None for each in said)
        return {each["details"].split(" - ", 1)[1] for each in said}

    return queue


@pytest.mark.parametrize(("node_id", "bad"), WRONG, ids=str)
def test_a_wrong_constant_is_refused_by_the_nodes_own_sentence(queued, refused, kit, node_id, bad):
    keyframes = {"keyframes": kit.image} if "keyframe_times" in bad else {}
    latent = {"latent": kit.latent} if "start_segment" in bad else {}
    usual = {name: value for name, value in kit.good[node_id].items() if isinstance(value, int)}
    assert queued(node_id, **usual | bad) == {refused(node_id, **bad, **keyframes, **latent)}


@pytest.mark.parametrize(("node_id", "bad"), WRONG, ids=str)
def test_what_a_link_brings_is_judged_when_the_node_runs(queued, node_id, bad):
    assert queued(node_id, **{name: ["source", 0] for name in bad}) == set()


@pytest.mark.parametrize(
    "node_id",
    (CAMERA, ANCHOR, MOTION, SEGMENTS, ADVANCED, VIDEO, "SwiftI2V_PromptRange", "SwiftI2V_TemporalWindows"),
)
def test_the_defaults_may_be_queued(queued, node_id):
    assert queued(node_id) == set()


def test_what_is_not_connected_is_known(queued, refused):
    assert queued(ANCHOR, ["keyframes"], keyframe_times="5") == {refused(ANCHOR, keyframe_times="5")}
    assert queued(ANCHOR, keyframe_times="5") == set()
    assert queued(ADVANCED, ["latent"], start_segment=1) == {refused(ADVANCED, start_segment=1)}
    assert queued(ADVANCED, start_segment=1) == set()
    assert queued(MOTION, ["chunk_frames"], overlap_frames=6, frames=81) == set()


def test_an_input_that_is_left_out_has_its_default(queued):
    assert queued(VIDEO, ["bit_depth", "audio"]) == set()
    assert len(queued(MOTION, ["timesteps"], reshift_steps=4, steps=4)) == 1


def test_a_bit_depth_that_the_encoder_lacks(queued, refused):
    if "yuv420p10le" in [each.name for each in av.Codec("libvpx-vp9", "w").video_formats]:
        pytest.skip("this PyAV writes vp9 with 10 bits")
    bad = {"codec": "vp9", "bit_depth": "10"}
    assert queued(VIDEO, **bad) == {refused(VIDEO, **bad)}
    assert queued(VIDEO, codec="av1", bit_depth="10") == set()


def test_placeholders_are_judged_when_they_are_filled_in(queued):
    assert queued(VIDEO, filename_prefix="%date:yyyy-MM-dd%/%KSampler.seed%") == set()
