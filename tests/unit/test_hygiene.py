"""What is shipped must pass the registry's scanner and the project's own rules."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def git(*arguments, names=()):
    """Run git at the root with `names` on its standard input; return the names it prints."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=ROOT,
        input="".join(f"{name}\0" for name in names),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr  # check-ignore returns 1 if it matches nothing
    return [name for name in done.stdout.split("\0") if name]


def left_out(names):
    """Return those of the names that .comfyignore drops, by git's own reading of its rules."""
    rules = f"core.excludesFile={ROOT / '.comfyignore'}"
    return set(git("-c", rules, "check-ignore", "--no-index", "--stdin", "-z", names=names))


def shipped():
    """Return the files of the archive: those of the repository that .comfyignore does not drop."""
    names = git("ls-files", "-co", "--exclude-standard", "-z")
    dropped = left_out(names)
    return [ROOT / name for name in names if name not in dropped and (ROOT / name).is_file()]


FILES = shipped()
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


def test_the_help_pages_are_in_the_archive():
    pages = {path for path in FILES if path.parent == ROOT / "web" / "docs"}
    assert pages == set((ROOT / "web" / "docs").glob("*.md")) and len(pages) == 11


def test_the_developers_files_are_not_in_the_archive():
    names = {
        "devtools/suites.py", "dev.py", "swifti2v_train/config.py", "swifti2v_train/recipes/tiny.yaml",
        "docs/ARCHITECTURE.md", "tests/unit/test_hygiene.py", "benchmarks/RESULTS.md", "CONTRIBUTING.md",
        ".pre-commit-config.yaml", ".comfyignore", ".gitignore", ".github/workflows/test.yml", ".ci/run",
    }  # fmt: skip
    assert left_out(names | {"web/docs/SwiftI2V_SegmentSampler.md", "nodes/docs/page.md"}) == names


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


def modules_of(tree):
    """Every module that a file names to import it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cache_outlives_a_run(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.ImportFrom) and node.module == "functools":
            assert not {alias.name for alias in node.names} & {"cache", "lru_cache"}
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("functools.cache", "functools.lru_cache")


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms(path):
    """The core knows no host; the nodes import its public API, and nodes/internals.py looks up the rest."""
    room, modules = path.relative_to(ROOT).parts[0], set(modules_of(ast.parse(path.read_text())))
    packages = {module.split(".")[0] for module in modules}
    if room == "swifti2v_core":
        assert packages <= sys.stdlib_module_names | {"torch", "kornia", "einops", "numpy", "safetensors"}
        return
    known = sys.stdlib_module_names | {"av", "numpy", "safetensors", "torch", "tqdm", "PIL"}
    assert {module for module in modules if module.split(".")[0] not in known} <= {"comfy_api.latest"}
    assert not modules & {"importlib", "runpy"}
    assert "pkgutil" not in modules or path.name == "internals.py"


def literal_calls(tree, name):
    """The last argument, a literal, of every call of a function by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node.args[-1].value


def test_every_internal_is_in_the_table_and_every_row_is_used():
    """No name of ComfyUI's is imported (see above), so what is asked for here is all that is reached."""
    sources = [path.read_text() for path in (ROOT / "nodes").rglob("*.py") if path.name != "internals.py"]
    tables = {
        node.target.id: {key.value for key in node.value.keys}
        for node in ast.parse((ROOT / "nodes" / "comfyui" / "internals.py").read_text()).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    }
    for function, table in (("internal", "INTERNALS"), ("of_model", "MODEL_INTERNALS")):
        asked = {name for source in sources for name in literal_calls(ast.parse(source), function)}
        assert asked and asked <= tables[table]
        # The others are reached as attributes of objects, but for what ComfyUI itself calls.
        for name in tables[table] - asked - {"comfy.ldm.modules.attention.wrap_attn"}:
            assert any(f".{name.rpartition('.')[2]}" in source for source in sources), name


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
            assert not [alias.name for alias in node.names if alias.name.startswith("swifti2v_train")]
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            assert "swifti2v_train" not in [*(node.module or "").split("."), *names]
