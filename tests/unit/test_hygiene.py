"""What is shipped must pass the registry's scanner and the project's own rules."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = [
    line.strip()
    for line in (ROOT / ".comfyignore").read_text().splitlines()
    if line.strip()[:1] not in ("", "#")
]


def shipped():
    """The files of the archive: tracked by git, minus .comfyignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        inside_folder = any(rule.endswith("/") and name.startswith(rule) for rule in IGNORED)
        if not inside_folder and name not in IGNORED and (ROOT / name).is_file():
            yield ROOT / name


FILES = list(shipped())
PYTHON = [path for path in FILES if path.suffix == ".py"]
BANNED_IMPORTS = {
    "subprocess",
    "urllib",
    "requests",
    "socket",
    "http",
    "pickle",
    "ctypes",
    "shelve",
    "marshal",
}


def test_the_archive_holds_what_users_need_and_nothing_else():
    top = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert top <= {
        "__init__.py", "nodes", "swifti2v_core", "workflows", "web", "requirements.txt", "pyproject.toml",
        "README.md", "LICENSE", "CHANGELOG.md",
    }  # fmt: skip
    assert {"__init__.py", "nodes", "swifti2v_core", "workflows", "web", "pyproject.toml", "LICENSE"} <= top
    assert sum(path.stat().st_size for path in FILES) < 2_000_000
    assert not [path for path in FILES if path.suffix in (".safetensors", ".js", ".sh", ".pt")]


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_code_does_nothing_the_registry_blocks(path):
    source = path.read_text(encoding="utf-8")
    source.encode("cp1252")  # some Windows tools read Python files so
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & BANNED_IMPORTS
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in BANNED_IMPORTS
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "print", "compile", "__import__"}
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            assert dotted not in {"os.environ", "os.getenv", "os.system", "torch.load"}
            assert not dotted.endswith((".eval", ".cuda", ".empty_cache"))


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms(path):
    """The core knows no host, and only nodes/host.py knows the host's internals."""
    room = path.relative_to(ROOT).parts[0]
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level:
            modules.add((node.module or "").split(".")[0])
    internals = {
        "comfy",
        "folder_paths",
        "latent_preview",
        "execution",
        "server",
        "node_helpers",
        "comfy_extras",
    }
    if room == "swifti2v_core":
        assert not modules & (internals | {"comfy_api", "nodes"})
        assert modules <= {
            "__future__", "collections", "dataclasses", "itertools", "math", "typing", "torch", "kornia",
            "einops", "numpy", "safetensors",
        }  # fmt: skip
    elif path.name != "host.py":
        assert not modules & internals


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.suffix != ".jpg"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_path_of_one_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.:/])/(root|work|tmp|home|Users)/", text)


def test_nothing_to_install():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line.strip() and not line.startswith("#")] == []
    assert "dependencies = []" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_shipped_knows_the_training(path):
    """It is not in the archive and needs packages that users do not have."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if ".train" in alias.name]
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            assert "train" not in [*(node.module or "").split("."), *names]
