"""Encoding through the nodes, with ComfyUI's VAE around the autoencoder."""

import torch
from swifti2v.swifti2v_core.reference import hybrid
from swifti2v.swifti2v_core.vae import strips as streaming


def test_the_reference_is_encoded_in_pieces(run, host_vae, autoencoder, photo, monkeypatch):
    motion = torch.rand(13, 32, 48, 3, generator=torch.Generator().manual_seed(4))
    settings = hybrid.ReferenceSettings(96, 64, 13)
    clip = torch.cat(list(hybrid.reference_chunks(photo, motion, settings)))
    with torch.inference_mode():
        expected = autoencoder.encode((clip * 2 - 1).movedim(-1, 0)[None])
    options = {"image": photo, "motion": motion, "vae": host_vae, "width": 96, "height": 64, "frames": 13}
    streamed = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
    assert (streamed - expected).abs().max() <= 1e-5 * expected.abs().max()

    encoder = streaming.StripEncoder
    front, tried, enough = encoder._front, [], 0

    def failing(self, x, *args):
        strips = self._plan.strips
        tried.append(strips)
        if strips < enough or (len(x[0]) == 4 and strips < 2 * enough):
            raise torch.OutOfMemoryError("injected")
        return front(self, x, *args)

    monkeypatch.setattr(encoder, "_front", failing)
    for enough, last in ((1, 2), (4, 8), (8, 16)):  # noqa: B007 (read in failing)
        again = run("SwiftI2V_AnchorEncode", **options)[0]["samples"]
        assert (again - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert tried[-1] == last
