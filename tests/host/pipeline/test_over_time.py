"""What stays behind after runs, and models that ComfyUI unloads whenever it likes."""

import comfy.model_management as management
import psutil
import pytest
import torch
from comfy.ldm.wan.model import WanModel
from swifti2v.nodes.comfyui import progress

RUNS = 20
WARM = 5
"""The run after which nothing may grow."""

FAILURES = {
    6: management.InterruptProcessingException,
    9: ValueError,
    12: lambda: torch.OutOfMemoryError("CUDA out of memory."),
    14: management.InterruptProcessingException,
    17: MemoryError,
}
"""Runs that end in the middle of a segment, and how."""

STOPPED = (management.InterruptProcessingException, ValueError, RuntimeError)


@pytest.fixture
def kit(run, stage_two, vae, photo):
    """Every node between a photo and a file, one after the other."""

    def make(seed, between=lambda: None, **options):
        size = {"width": 64, "height": 64, "frames": (13, 9)[seed % 2]}
        motion = run("SwiftI2V_CameraMotion", image=photo[:, ::8, ::8], seed=seed, **size)[0]
        between()
        z_ref = run("SwiftI2V_AnchorEncode", image=photo[:, ::8, ::8], motion=motion, vae=vae, **size)[0]
        between()
        sampling = {"model": stage_two, "steps": 2, "segment_frames": 1, "seed": seed, **options}
        latent = run("SwiftI2V_SegmentSampler", z_ref=z_ref, **sampling)[0]
        between()
        run("SwiftI2V_DecodeToVideo", samples=latent, vae=vae)
        between()
        return latent["samples"], run("SwiftI2V_TiledVAEDecode", samples=latent, vae=vae)[0]

    return make


def containers(pack):
    """Sizes of all collections that belong to a module of the pack."""
    return {
        (module, name): len(value)
        for module, content in pack.modules.items()
        for name, value in vars(content).items()
        if isinstance(value, (dict, list, set)) and not name.startswith("__")
    }


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_nothing_stays_behind(pack, kit, workspace, live_tensors, monkeypatch, context):
    """Neither after runs that end well nor after runs that were stopped or ran out of something."""
    forward, counts, sizes = WanModel.forward_orig, [], containers(pack)
    for number in range(1, RUNS + 1):
        calls, failure = [], FAILURES.get(number)

        def failing(self, *args, calls=calls, failure=failure, **kwargs):
            calls.append(None)
            if failure and len(calls) == 3:  # in the second segment
                raise failure()
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(WanModel, "forward_orig", failing)
        if failure:
            with pytest.raises(STOPPED):
                kit(number, context=context)
        else:
            kit(number, context=context)
        assert len(calls) >= 3
        counts.append((live_tensors(), psutil.Process().num_fds()))
    assert counts[WARM - 1 :] == [counts[WARM - 1]] * (RUNS - WARM + 1)
    assert containers(pack) == sizes
    assert not list((workspace / "output").rglob("*.part"))


@pytest.mark.parametrize("context", ["bidirectional", "read-only"])
def test_models_may_be_unloaded_between_nodes_and_segments(pack, kit, monkeypatch, context):
    expected = kit(1, context=context)
    unloaded, finish = [], progress.SamplingProgress.finish

    def unload(*args):
        unloaded.append(len(management.current_loaded_models))
        management.unload_all_models()
        assert not management.current_loaded_models
        if args:
            finish(*args)

    monkeypatch.setattr(progress.SamplingProgress, "finish", unload)
    made = kit(1, unload, context=context)
    assert len([count for count in unloaded if count]) >= 4  # models were there: VAE, two segments, VAE
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))
