"""What is shipped must pass the registry's scanner and the project's own rules."""

import ast
import re
import subprocess
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
        "__init__.py", "nodes", "swifti2v_core", "workflows", "web", "locales", "requirements.txt",
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md",
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


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_cache_outlives_a_run(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Global)
        if isinstance(node, ast.ImportFrom) and node.module == "functools":
            assert not {alias.name for alias in node.names} & {"cache", "lru_cache"}
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("functools.cache", "functools.lru_cache")


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


MOST_LINES = 450
TRANSLATED = r"goes on behin[d]|ane[w]|gone on wit[h]|to be tol[d]|tells? apar[t]|shal[l] "
"""Words of a translation; written so that this file does not hold them."""


def test_no_file_is_longer_than_a_reader_can_hold():
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in git("ls-files", "-co", "--exclude-standard", "-z", "*.py")
        if (ROOT / name).is_file()
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nobody_writes_like_a_translation():
    """The license and the history of changes stay as they are."""
    everywhere = ("--", ".", ":!LICENSE", ":!CHANGELOG.md")
    assert git("grep", "-IlzE", TRANSLATED, *everywhere) == []
