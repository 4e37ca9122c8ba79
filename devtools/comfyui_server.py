"""A real ComfyUI: start it, queue prompts, follow them and stop it."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import select
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devtools.environment import Host
from devtools.programs import stop_process
from devtools.terminal import DevError, clock


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
