"""Contact sheets of frames and of latents."""

import torch

from swifti2v_train.evaluation.contact_sheets import latent_drawer, strip


class Enlarging:
    """Stands in for an autoencoder: each pixel shows the latent cell it lies in."""

    def decode(self, latents):
        frames = latents[:, :3].repeat_interleave(4, dim=2)[:, :, 3:]
        return frames.repeat_interleave(16, dim=3).repeat_interleave(16, dim=4)


def test_a_sheet_shows_the_middle_of_every_latent_frame_row_by_row():
    latents = torch.zeros(48, 3, 44, 80)
    latents[:3, :, 10:34, 20:60] = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    sheet = latent_drawer(Enlarging())([latents, latents + 0.5])
    assert sheet.shape == (int(48 * 16 * 1600 / 1920), 1600, 3)
    for row, offset in ((10, 0.0), (400, 0.5)):
        shown = sheet[row, [10, 800, 1500], 0]  # one place in each of the three columns
        torch.testing.assert_close(shown, torch.tensor([0.1, 0.2, 0.3]) + offset)


def test_without_an_autoencoder_three_channels_are_shown():
    sheet = latent_drawer(None)([torch.full((48, 2, 4, 6), 1.5)])
    torch.testing.assert_close(sheet, torch.full((4, 12, 3), 0.75))


def test_a_strip_shows_the_first_and_the_last_frame():
    clip = torch.linspace(0, 1, 9)[:, None, None, None].expand(-1, 8, 16, 3)
    made = strip("ramp", clip, columns=3, cell_width=32)
    assert made.size == (96, 16 + 14)
    assert [made.getpixel((16 + 32 * column, 20))[0] for column in range(3)] == [0, 128, 255]
