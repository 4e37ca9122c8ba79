"""What compile_blocks needs, said before a model is loaded."""

import comfy.model_management
import pytest
import torch
from swifti2v.nodes.checks import compiler
from swifti2v.nodes.comfyui import memory
from torch.torch_version import TorchVersion


def facts(pack, monkeypatch, device, triton, compilers, platform):
    """Another machine: its device, whether Triton is installed, its compilers and system."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(device))
    monkeypatch.setattr(compiler, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: name if name in compilers else None)
    monkeypatch.setattr(compiler.sys, "platform", platform)


@pytest.mark.parametrize(
    ("device", "triton", "compilers", "platform", "words"),
    [
        ("cuda", False, ["g++"], "linux", ("Triton", "triton-windows")),
        ("cuda", True, [], "linux", ("gcc, clang, cc, g++",)),
        ("cuda", False, [], "win32", ("Triton", "triton-windows")),
        ("cpu", True, ["gcc"], "linux", ("none of g++, clang++, c++, cl",)),
    ],
)
@pytest.mark.parametrize("node_id", ["SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"])
def test_a_missing_compiler_is_said_before_loading(
    pack, refused, monkeypatch, node_id, device, triton, compilers, platform, words
):
    facts(pack, monkeypatch, device, triton, compilers, platform)
    sentence = refused(node_id, compile_blocks=True)
    for word in ("compile_blocks is on", "switch compile_blocks off", *words):
        assert word in sentence


@pytest.mark.parametrize("node_id", ["SwiftI2V_LoadStageI", "SwiftI2V_LoadStageII"])
def test_an_old_pytorch_is_said_before_loading(pack, refused, monkeypatch, node_id):
    facts(pack, monkeypatch, "cpu", True, ["g++"], "linux")
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1+cu128"))
    assert "needs PyTorch 2.8 and this is 2.7.1+cu128; update" in refused(node_id, compile_blocks=True)


@pytest.mark.parametrize(
    ("device", "triton", "compilers", "platform"),
    [
        ("cuda", True, ["gcc"], "linux"),
        ("cuda", True, [], "win32"),  # Triton for Windows brings its compiler
        ("cpu", False, ["cl"], "win32"),
        ("cpu", False, ["clang++"], "darwin"),
    ],
)
def test_what_is_enough_to_compile(pack, monkeypatch, device, triton, compilers, platform):
    facts(pack, monkeypatch, device, triton, compilers, platform)
    compiler.check_can_compile(memory.device_type())
