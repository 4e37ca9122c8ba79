"""10-bit Y'CbCr against the formulas of ITU-R BT.709-6."""

import pytest
import torch

from swifti2v_core.images import to_words
from swifti2v_core.yuv import to_yuv420_10

RAMP = torch.linspace(0, 1, 1024, dtype=torch.float64)


def test_words_keep_sixteen_bits():
    levels = torch.arange(65536, dtype=torch.float64) / 65535
    assert torch.equal(to_words(levels), torch.arange(-32768, 32768).to(torch.int16))
    outside = torch.tensor([-0.5, 0.0, 1.0, 1.5])
    assert to_words(outside).tolist() == [-32768, -32768, 32767, 32767]


def test_every_gray_of_a_ramp_is_its_nearest_level():
    frame = to_words(RAMP.float()[None, :, None].expand(4, 1024, 3))
    luma, cb, cr = to_yuv420_10(frame)
    exact = 64 + 876 * RAMP
    assert (luma - exact).abs().max() < 0.5 + 0.01  # words round by less than a hundredth of a level
    assert torch.equal(luma.unique(), torch.arange(64, 941, dtype=torch.int16))
    assert cb.shape == cr.shape == (2, 512) and (cb == 512).all() and (cr == 512).all()


@pytest.mark.parametrize("color", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.2, 0.4, 0.9)])
def test_colors_are_the_standards(color):
    red, green, blue = color
    gray = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    planes = to_yuv420_10(to_words(torch.tensor(color).expand(4, 6, 3)))
    exact = (64 + 876 * gray, 512 + 896 * (blue - gray) / 1.8556, 512 + 896 * (red - gray) / 1.5748)
    for plane, level in zip(planes, exact, strict=True):
        assert (plane - level).abs().max() < 0.51


def test_a_color_sample_lies_between_two_rows_on_the_left_column():
    """A color that grows linearly is, at that place, the mean of what is around it."""
    column, row = torch.arange(32.0), torch.arange(8.0)
    ramp = 0.25 + column[None] / 128 + row[:, None] / 64
    frame = torch.stack((ramp, 0.5 - 0.2126 * ramp / 0.7152, torch.full_like(ramp, 0.5)), dim=-1)
    _, _, cr = to_yuv420_10(to_words(frame))
    gray = 0.7152 * 0.5 + 0.0722 * 0.5
    here = 0.25 + column[0::2][None] / 128 + (row[0::2] + 0.5)[:, None] / 64
    exact = 512 + 896 * (here - gray) / 1.5748
    assert (cr - exact)[:, 1:].abs().max() < 0.52
