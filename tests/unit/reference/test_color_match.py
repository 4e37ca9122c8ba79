"""Color match: casts are undone, fades stay."""

import logging

import pytest
import torch

from swifti2v_core.reference.color_match import MAX_GAIN, color_transfer
from swifti2v_core.reference.hybrid import ReferenceSettings, reference_chunks

SETTINGS = ReferenceSettings(128, 64, 17)


@pytest.fixture
def photo():
    """A photo with values of 0.1 to 0.8."""
    y, x = torch.meshgrid(torch.linspace(0.1, 0.8, 64), torch.linspace(0.1, 0.8, 128), indexing="ij")
    return torch.stack((x, y, (x + y) / 2), dim=-1)[None]


def built(photo, motion, color_match=True):
    return torch.cat(list(reference_chunks(photo, motion, SETTINGS, color_match)))


def light(*values):
    """Factors of 17 frames, linear between the values given."""
    values = torch.tensor(values)[None, None]
    return torch.nn.functional.interpolate(values, 17, mode="linear", align_corners=True).view(17, 1, 1, 1)


@pytest.mark.parametrize("white", [0.0, 1.0])
@pytest.mark.parametrize("factors", [(0.01, 1.0), (0.0, 1.0, 1.0), (1.0, 0.01), (1.0, 1.0, 0.0)])
def test_a_fade_from_or_to_black_or_white_keeps_its_frames(photo, factors, white, caplog):
    clip = photo * light(*factors) + white * (1 - light(*factors))
    with caplog.at_level(logging.INFO, "SwiftI2V"):
        matched = built(photo, clip)
    assert (matched[1:] - clip[1:]).abs().max() < 1e-5
    if factors[0] < 1:
        assert "the clip begins with a fade or a cut, so its colors stay" in caplog.text
    else:
        assert "contrast x 1.00 1.00 1.00" in caplog.text


@pytest.mark.parametrize("start", [0.4, 0.5, 0.7])
def test_a_slow_rise_of_light_turns_no_frame_white(photo, start, caplog):
    slow = torch.linspace(start, 1, 81).view(81, 1, 1, 1)
    with caplog.at_level(logging.INFO, "SwiftI2V"):
        matched = built(photo, photo * slow)
    assert (matched > 0.99).float().mean(dim=(1, 2, 3)).max() < 0.06
    assert "later frames" in caplog.text


@pytest.mark.parametrize("gain", [0.6, 0.9, 1.1])
@pytest.mark.parametrize("offset", [-0.05, 0.05])
def test_a_cast_is_undone_and_reported(photo, gain, offset, caplog):
    factors = torch.tensor([gain, 1.0, 1.0])
    with caplog.at_level(logging.INFO, "SwiftI2V"):
        matched = built(photo, (photo * factors + offset).repeat(17, 1, 1, 1).clamp(0, 1))
    assert (matched - photo).abs().mean() < 0.02
    assert f"contrast x {1 / gain:.2f} 1.00 1.00" in caplog.text
    assert len(caplog.records) == 1


def test_the_gain_is_bounded(photo):
    for factor, wanted in ((0.1, MAX_GAIN), (0.7, 1 / 0.7), (4.0, 1 / MAX_GAIN)):
        clip = (photo - 0.45) * factor + 0.45
        gain, _ = color_transfer(clip.repeat(5, 1, 1, 1), photo, clip)
        assert gain.tolist() == pytest.approx([wanted] * 3, rel=1e-3)


def test_one_odd_frame_is_no_measure(photo):
    """A flash or a black frame at the start changes nothing for the others."""
    cast = photo * 0.8 + 0.05
    for odd in (torch.zeros_like(photo), torch.ones_like(photo)):
        clip = cast.repeat(17, 1, 1, 1)
        clip[0] = odd
        assert (built(photo, clip)[1:] - photo).abs().max() < 1e-3


def test_content_that_moves_is_no_fade(photo):
    clip = torch.cat([(photo * 0.8 + 0.1).roll(4 * shift, dims=2) for shift in range(17)])
    wanted = torch.cat([photo.roll(4 * shift, dims=2) for shift in range(17)])
    assert (built(photo, clip) - wanted).abs().max() < 0.01


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_short_clips_are_matched(photo, frames):
    matched = built(photo, (photo * 0.8 + 0.1).repeat(frames, 1, 1, 1))
    assert (matched - photo).abs().max() < 1e-3


def test_alpha_and_half_precision_are_taken(photo):
    clip = torch.cat((photo * 0.8 + 0.1, torch.rand(1, 64, 128, 1)), dim=-1).repeat(17, 1, 1, 1)
    assert (built(photo, clip.half()) - photo).abs().max() < 5e-3
