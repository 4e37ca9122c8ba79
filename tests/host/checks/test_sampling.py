"""Schedules, segments and the sockets of custom sampling."""

import logging

import pytest
import torch
from refusals import SAMPLERS, SEGMENTS, case, cases, samples

SCHEDULES = [
    case(
        "SwiftI2V_SegmentSampler",
        "denoise is -0.1",
        "from 0 to 1",
        "nearest valid value is 0",
        denoise=-0.1,
    ),
    *(
        case(node, f'timesteps is "{text}"', rule, '"1000, 750, 500, 250"', timesteps=text)
        for node in SAMPLERS
        for text, rule in (
            ("1000, many", "numbers separated by commas"),
            ("250, 500", "must fall from at most 1000 to more than 0"),
            ("500, 500", "must fall"),
            ("1200, 500", "at most 1000"),
            ("500, 0", "more than 0"),
            (",", "must fall"),
        )
    ),
    *cases(SAMPLERS, 'timesteps is "nan"', "1000, 750, 500, 250", timesteps="nan"),
    case("SwiftI2V_MotionSampler", "starts at 900", "first timestep is 1000", timesteps="900, 500"),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            *words,
            "fall at every step",
            "use a scheduler node with this model",
            sigmas=torch.tensor(values),
        )
        for values, words in (
            ([14.6, 3.0, 0.0], ("sigmas begins 14.6, 3, 0",)),
            ([1.01, 0.0], ("sigmas begins 1.01, 0",)),
            ([0.0, 0.5, 1.0], ("sigmas begins 0, 0.5, 1",)),
            ([1.0, 0.5, 0.5, 0.0], ("sigmas begins 1, 0.5, 0.5, 0",)),
            ([1.0, 0.5, -0.1], ("sigmas begins 1, 0.5, -0.1",)),
            ([1.0, float("nan"), 0.0], ("sigmas begins 1, nan, 0",)),
        )
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            "sigmas holds no step",
            "denoise 0 makes such a schedule",
            "at least one",
            sigmas=torch.tensor(values),
        )
        for values in ([], [0.0])
    ),
]

SEGMENT_PLANS = [
    *(
        case(
            node,
            f"neighbors (N) is {n}",
            "a clip of 5 latent frames",
            "between 0 and 3",
            f"nearest valid value is {near}",
            neighbors=n,
        )
        for node in SEGMENTS
        for n, near in ((4, 3), (100, 3))
    ),
    *cases(
        SEGMENTS,
        "window has 33 latent frames",
        "at most 31",
        "segment_frames + neighbors of at most 30",
        z_ref=samples(1, 48, 33, 2, 2),
        segment_frames=32,
        time_positions="clamped",
    ),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "start_segment is 1",
        "no latent holds the segments before it",
        "connect the latent",
        "or start at 0",
        start_segment=1,
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            f"start_segment is {start} and end_segment {end}",
            "the clip has 2 segments",
            "a start from 0 to 1",
            "an end above it, at most 2",
            start_segment=start,
            end_segment=given,
            latent=lambda kit: kit.latent,
        )
        for start, given, end in ((2, 0, 2), (0, 3, 3))
    ),
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "end_segment is 1, but must be above start_segment, which is 1, or 0 for all",
        "the nearest valid value is 2",
        start_segment=1,
        end_segment=1,
        latent=lambda kit: kit.latent,
    ),
]

RETAKES = [
    *(
        case(node, f'retake is "{text}"', rule, f'"{nearest}"', retake=text, latent=lambda kit: kit.latent)
        for node in SEGMENTS
        for text, rule, nearest in (
            ("5, 0", "the clip has 2 segments, numbered from 0 to 1", "0, 1"),
            ("first", "must be numbers of segments separated by commas, from 0 to 1", "1"),
        )
    ),
    *cases(SEGMENTS, 'retake is "1"', "no latent holds the finished clip", "or leave", retake="1"),
    *cases(
        SEGMENTS,
        "latent has shape (1, 48, 4, 8, 12)",
        "must be the same clip",
        retake="1",
        latent=samples(1, 48, 4, 8, 12),
    ),
    *(
        case(
            "SwiftI2V_SegmentSamplerAdvanced",
            f'retake is "1", but start_segment {start} and end_segment {end} choose segments, too',
            "set both to 0",
            retake="1",
            latent=lambda kit: kit.latent,
            start_segment=start,
            end_segment=end,
        )
        for start, end in ((1, 0), (0, 1))
    ),
]

SOCKETS = [
    case(
        "SwiftI2V_SegmentSamplerAdvanced",
        "sampler is a",
        "must be a SAMPLER",
        sampler=lambda kit: kit.values["GUIDER"],
    ),
]


@pytest.mark.parametrize(("node_id", "bad", "words"), SCHEDULES + SEGMENT_PLANS + RETAKES + SOCKETS)
def test_samplings_that_cannot_run_are_refused(refused, node_id, bad, words):
    sentence = refused(node_id, **bad)
    assert all(word in sentence for word in words), sentence


def test_plain_weights_with_denoise_1_give_a_warning(guard, run, kit, caplog):
    inputs = {**kit.good["SwiftI2V_SegmentSampler"], "model": kit.stage_one}
    with (
        caplog.at_level(logging.WARNING, logger="SwiftI2V"),
        pytest.raises(AssertionError, match="model work"),
    ):
        run("SwiftI2V_SegmentSampler", **inputs, denoise=1.0)
    assert "the motion reference has no influence; 0.4 to 0.6 keeps the motion." in caplog.text
    caplog.clear()
    for denoise in (0.5, 0.0):
        with pytest.raises(AssertionError, match="model work"):
            run("SwiftI2V_SegmentSampler", **inputs, denoise=denoise)
        assert not caplog.text
