"""A real ComfyUI: start it, queue prompts, follow them and stop it."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from devtools.comfyui_client import Client, HttpError, WebSocket
from devtools.environment import Host
from devtools.programs import stop_process
from devtools.prompts import Progress, refusal_sentences, succeeded
from devtools.terminal import DevError


class Server:
    """A ComfyUI process on a free loopback port, for the length of a `with` block.

    Parameters
    ----------
    host
        The ComfyUI folder and its Python.
    workspace
        The base directory, see `prepare_workspace`.
    log_path
        The file for ComfyUI's output, overwritten at every start.
    extra_args
        Further command-line arguments for ComfyUI.

    Raises
    ------
    DevError
        On entering: ComfyUI ends, does not answer or finds no free port.
    """

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
        # Several servers can run at once, so each has its own temporary folder and database.
        self._temporary = tempfile.TemporaryDirectory(prefix="swifti2v-", ignore_cleanup_errors=True)
        self._client: Client | None = None
        self._websockets: dict[str, WebSocket] = {}

    @property
    def url(self) -> str:
        """The address of the web page."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        """The connection; raises DevError unless ComfyUI runs."""
        if self._client is None:
            raise DevError("ComfyUI is not running.")
        return self._client

    # Start and stop

    def __enter__(self) -> Server:
        try:
            for _ in range(self.PORT_TRIES):
                self.connect(free_port())
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

    def connect(self, port: int) -> None:
        """Send requests to this port from now on."""
        self._disconnect()
        self.port = port
        self._client = Client(self.url)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

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
            # Another program that answers on this port does not know our temporary folder.
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
        """Raise DevError with the end of ComfyUI's log if the process has ended."""
        code = self.process.poll() if self.process else None
        if code is not None:
            tail = "\n".join(self._log().splitlines()[-12:])
            raise DevError(f"ComfyUI stopped by itself (exit code {code}); its last words:\n{tail}")

    def _log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """Stop the process, close the connection and remove the temporary files."""
        try:
            if self.process is not None:
                stop_process(self.process)
        finally:
            self._disconnect()
            self._temporary.cleanup()

    # Requests

    def get(self, path: str, timeout: float = 120) -> Any:
        """GET a path and return the JSON answer."""
        return self.client.request("GET", path, timeout=timeout)

    def post(self, path: str, payload: Any) -> Any:
        """POST a JSON payload and return the JSON answer, None when it is empty."""
        return self.client.request("POST", path, payload)

    def queue(
        self, prompt: dict[str, Any], client_id: str, extra_data: dict[str, Any] | None = None
    ) -> str:
        """Queue an API-format graph and return its prompt id; a refusal becomes a DevError."""
        # Opened before the prompt is queued, so that no message is missed; `wait` closes it.
        self._websockets[client_id] = self.client.websocket(f"/ws?clientId={client_id}")
        payload = {"prompt": prompt, "client_id": client_id, "extra_data": extra_data or {}}
        try:
            return str(self.post("/prompt", payload)["prompt_id"])
        except HttpError as error:
            self._websockets.pop(client_id).close()
            raise DevError(refusal_sentences(error.body)) from None

    def wait(
        self,
        prompt_id: str,
        client_id: str,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        timeout: float = math.inf,
    ) -> dict[str, Any]:
        """Follow a queued prompt to its end; return its history entry or raise DevError."""
        progress, deadline = Progress(), time.monotonic() + timeout
        with contextlib.closing(self._websockets.pop(client_id)) as messages:
            while time.monotonic() < deadline:
                try:
                    message = messages.receive(1.0)
                    event = "status" if message is None else progress.update(message)
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
    """Return whether torch sees a GPU; without one ComfyUI needs --cpu to start."""
    code = "import sys, torch; sys.exit(not torch.accelerator.is_available())"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
