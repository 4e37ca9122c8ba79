"""Prompts: width, time ranges, what they must not carry."""

import pytest
import torch
from refusals import SEGMENTS, case, guider_with, ranged

RANGES = [
    *(
        case(
            "SwiftI2V_PromptRange",
            f"start_frame is {start}",
            rule,
            f"nearest valid {near}",
            start_frame=start,
            end_frame=end,
        )
        for start, end, rule, near in (
            (40, 40, "end_frame 40, but a range must end after it starts", "end_frame is 41"),
            (40, 20, "end_frame 20, but a range must end after it starts", "end_frame is 41"),
        )
    ),
    *(
        case(
            node,
            "positive has prompts from frame 17 on",
            "the clip has 17 frames, 0 to 16",
            "nearest valid start_frame is 16",
            **{socket: make},
        )
        for node, socket, make in (
            (SEGMENTS[0], "positive", lambda kit: ranged(kit, (40, 0), (17, 30))),
            (SEGMENTS[1], "guider", lambda kit: guider_with(kit, ranged(kit, (40, 0), (17, 30)))),
        )
    ),
    case(
        "SwiftI2V_SegmentSampler",
        "negative has prompts from frame 17 on",
        negative=lambda kit: [*kit.text, *ranged(kit, (17, 30))],  # one for the whole clip does not help
    ),
    case(
        "SwiftI2V_PromptRange",
        "conditioning has a range already (start_frame 3, end_frame 9)",
        "connect it to the input before",
        conditioning=lambda kit: ranged(kit, (3, 9)),
    ),
]

CONTENT = [
    *(
        case(
            node,
            f"{socket} carries {key}",
            "no place in a window",
            "remove the node that adds them",
            **{socket: [[torch.zeros(1, 8, 4096), {key: [torch.zeros(1)]}]]},
        )
        for node, socket in (
            ("SwiftI2V_SegmentSampler", "positive"),
            ("SwiftI2V_SegmentSampler", "negative"),
            ("SwiftI2V_MotionSampler", "positive"),
        )
        for key in ("time_dim_concat", "context_latents", "reference_latents")
    ),
    *(
        case("SwiftI2V_SegmentSampler", "positive", "must be a CONDITIONING", positive=value)
        for value in ([1, 2], ["ab"], [], [[torch.zeros(1, 8, 4096), None]])
    ),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "positive is 768 wide",
        "this model reads 4096",
        guider=lambda kit: guider_with(kit, [[torch.zeros(1, 77, 768), {}]]),
    ),
    case(
        "SwiftI2V_SegmentSampler",
        "positive is 768 wide",
        "this model reads 4096",
        "umt5",
        positive=[[torch.zeros(1, 77, 768), {}]],
    ),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), RANGES + CONTENT)
def test_bad_prompts_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence
