"""Which file may import what: the storeys of the house, read from the sources."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STOREYS = ("comfyui", "checks", "pipeline", "node files")
"""The storeys of nodes/ from the lowest to the highest; each imports itself and lower ones."""

COMFYUI = {"comfy", "comfy_api", "comfyui_version", "folder_paths", "latent_preview", "node_helpers"}
PACKAGES = {
    "nodes": {"av", "numpy", "safetensors", "torch", "comfy_api"},
    "nodes/comfyui": {"av", "numpy", "PIL", "safetensors", "torch", "tqdm", *COMFYUI},
    "swifti2v_core": {"einops", "kornia", "numpy", "safetensors", "torch"},
}
"""Packages beside Python's own that the files of a folder may import."""


def files_of(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def imports_of(path):
    """Return the files of the pack that a file imports, and the names of other modules."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            named = {base / f"{alias.name}.py" for alias in node.names}
            module = next(
                file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()
            )
            own |= {file for file in named if file.is_file()} or {module}
    return own, others


def storey_of(path):
    folder = path.relative_to(ROOT / "nodes").parts[0]
    return STOREYS.index(folder) if folder in STOREYS else STOREYS.index("node files")


@pytest.mark.parametrize("path", files_of("nodes"), ids=name_of)
def test_nodes_import_downward_only(path):
    """Node files see no other node file; nodes/__init__.py alone sees all of them."""
    own, _ = imports_of(path)
    assert all(file.is_file() for file in own)
    inside = {file for file in own if file.is_relative_to(ROOT / "nodes")}
    assert own - inside <= set(files_of("swifti2v_core"))
    if path.name == "__init__.py":
        return
    assert all(storey_of(file) <= storey_of(path) for file in inside)
    if path.parent == ROOT / "nodes":
        assert {file.stem for file in inside if file.parent == path.parent} <= {"shared_inputs"}


@pytest.mark.parametrize("path", files_of("nodes") + files_of("swifti2v_core"), ids=name_of)
def test_only_the_lowest_storey_imports_comfyui(path):
    """Others know its public API for nodes, and the core not even that."""
    _, others = imports_of(path)
    lowest = path.is_relative_to(ROOT / "nodes" / "comfyui")
    folder = "nodes/comfyui" if lowest else name_of(path).split("/")[0]
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names | PACKAGES[folder]
    assert folder == "swifti2v_core" or not others & {"importlib", "pkgutil", "runpy"}
    public = {name for name in others if name.startswith("comfy_api")}
    if lowest:
        assert public <= {"comfy_api.torch_helpers", "comfy_api.latest"}
    elif public:
        assert public == {"comfy_api.latest"}
        assert path.parent == ROOT / "nodes" or name_of(path) == "nodes/checks/widgets.py"


@pytest.mark.parametrize("path", files_of("swifti2v_core") + files_of("swifti2v_train"), ids=name_of)
def test_core_and_training_know_neither_comfyui_nor_the_nodes(path):
    own, others = imports_of(path)
    assert not {name.split(".")[0] for name in others} & (COMFYUI | {"nodes"})
    assert own <= set(files_of(name_of(path).split("/")[0]))


@pytest.mark.parametrize("folder", ["swifti2v_core", "nodes"])
def test_no_file_imports_itself_through_others(folder):
    """TopologicalSorter raises CycleError with the circle."""
    order = TopologicalSorter({path: imports_of(path)[0] for path in files_of(folder)})
    assert set(files_of(folder)) <= set(order.static_order())


def test_the_folders_of_the_core_form_no_circle():
    def folder(path):
        return name_of(path.parent)

    needed = {}
    for path in files_of("swifti2v_core"):
        if path.name != "__init__.py":
            others = {folder(file) for file in imports_of(path)[0]} - {folder(path)}
            needed.setdefault(folder(path), set()).update(others)
    assert set(needed) <= set(TopologicalSorter(needed).static_order())
