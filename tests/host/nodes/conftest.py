"""What several tests of the nodes watch."""

import pytest


@pytest.fixture
def frequencies(monkeypatch):
    """The time part of the rotary frequencies that reach the network, per forward."""
    from comfy.ldm.wan.model import WanModel  # ComfyUI may not have been booted when this file is read

    seen = []
    forward = WanModel.forward_orig

    def spy(self, x, t, context, **kwargs):
        seen.append((x.shape[2], kwargs["freqs"], self, x))
        return forward(self, x, t, context, **kwargs)

    monkeypatch.setattr(WanModel, "forward_orig", spy)
    return seen
