"""The public names of the core: complete, typed, and cheap to import."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import swifti2v_core

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "swifti2v_core"
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in CORE.rglob("*.py"))


def test_every_public_name_is_found_and_comes_from_its_module():
    for name in swifti2v_core.__all__:
        value = getattr(swifti2v_core, name)
        assert name == "__version__" or value.__module__ == f"swifti2v_core.{swifti2v_core._MODULES[name]}"
    assert set(swifti2v_core.__all__) <= set(dir(swifti2v_core))
    with pytest.raises(AttributeError, match="no attribute 'plan_nothing'"):
        swifti2v_core.plan_nothing  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse((CORE / "__init__.py").read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert typed == swifti2v_core._MODULES
    assert (CORE / "py.typed").exists()


def test_importing_the_core_imports_neither_pytorch_nor_comfyui():
    code = "import sys, swifti2v_core; print({'torch', 'numpy', 'kornia', 'comfy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize("path", [path for path in MODULES if path != "swifti2v_core/__init__.py"])
def test_modules_of_the_core_do_not_import_its_public_names(path):
    """They import each other by module, so that there is no cycle through the package."""
    depth = path.count("/")
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and not node.module:
            assert not {alias.name for alias in node.names} & set(swifti2v_core.__all__)


def test_the_version_is_the_packages():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version and version[1] == swifti2v_core.__version__
