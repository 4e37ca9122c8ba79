"""The digest does not depend on where a node pack lies or on the names of our modules."""

import importlib
import shutil
import sys
import types
from pathlib import Path

import pytest

from swifti2v_core.resume.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parents[3]
NODES = """
from dataclasses import dataclass
from enum import Enum

from ..swifti2v_core.stage_two.segments import Segment, plan_segments


class Context(Enum):
    READ_ONLY = 1
    BIDIRECTIONAL = 2


@dataclass
class Options:
    segment: Segment
    context: Context

    def shift(self):
        return 5.0


def patched(scale):
    def patch(value):
        return value * scale

    return patch


def values():
    options = Options(plan_segments(9)[1], Context.READ_ONLY)
    return {
        "object": options,
        "class": Options,
        "class of the core": Segment,
        "enum": Context.BIDIRECTIONAL,
        "method": options.shift,
        "closure": patched(0.5),
        "closure over an object": patched(options),
        "generic type": list[Options],
    }
"""


def load_pack(name, folder):
    """Register a folder as a package under a name that may be a path, as ComfyUI does."""
    package = types.ModuleType(name)
    package.__path__ = [str(folder)]
    sys.modules[name] = package
    return package


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Load a copy of the pack under a package name; returns its digest and the values to digest."""
    before = set(sys.modules)

    def load(name, nodes="nodes.options"):
        folder = tmp_path / str(len(sys.modules))
        shutil.copytree(ROOT / "swifti2v_core", folder / "swifti2v_core")
        file = folder.joinpath(*nodes.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True)
        file.write_text(NODES.replace("from ..", "from " + "." * (nodes.count(".") + 1)))
        load_pack(name, folder)
        digest = importlib.import_module(f"{name}.swifti2v_core.resume.fingerprint").fingerprint
        return digest, importlib.import_module(f"{name}.{nodes}").values()

    yield load
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("renamed_pack", "nodes.options"),
        ("/elsewhere/custom_nodes/SwiftI2V-main", "nodes.options"),
        ("C:\\ComfyUI\\custom_nodes\\swifti2v", "nodes.options"),
        ("swifti2v_pack", "nodes.pipeline.moved"),
    ],
)
def test_the_same_values_have_equal_digests_in_a_pack_of_another_name(loaded, name, nodes):
    digest, values = loaded("swifti2v")
    other_digest, other_values = loaded(name, nodes)
    assert type(values["object"]) is not type(other_values["object"])
    expected = {key: digest(value) for key, value in values.items()}
    assert {key: other_digest(value) for key, value in other_values.items()} == expected
    assert len(set(expected.values())) == len(expected)


def test_the_core_alone_gives_the_same_digest(loaded):
    from swifti2v_core.stage_two.segments import plan_segments

    digest, values = loaded("swifti2v")
    assert fingerprint(plan_segments(9)) == digest(sys.modules["swifti2v.nodes.options"].plan_segments(9))
    assert fingerprint(type(plan_segments(9)[0])) == digest(values["class of the core"])


def kind(module):
    return type("Options", (), {"__module__": module})


def test_another_pack_counts_by_its_own_name_wherever_it_lies(loaded):
    digest, values = loaded("swifti2v")
    here, there = kind("/here/custom_nodes/gguf.ops"), kind("D:\\there\\custom_nodes\\gguf.ops")
    assert digest(here) == digest(there) and digest(here()) == digest(there())
    others = [
        "/here/custom_nodes/gguf.nodes",
        "/here/custom_nodes/swift.ops",
        "nodes.options",
        "swifti2v_2.ops",
    ]
    digests = {digest(kind(module)) for module in others}
    assert len(digests | {digest(here), digest(values["class"])}) == len(others) + 2
