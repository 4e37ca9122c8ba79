"""The server, with a program that behaves like ComfyUI."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentences import sentence

from devtools import comfyui_server
from devtools.comfyui_server import Progress, Server, WebSocket, free_port, refusal_sentences
from devtools.environment import Host
from devtools.terminal import DevError

Patch = pytest.MonkeyPatch
NewServer = Callable[..., Server]


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
    monkeypatch.setattr(comfyui_server, "has_accelerator", lambda python: False)
    host = Host(home, Path(sys.executable), "0.30.0")
    return lambda *extra: Server(host, home / "ws", log_path=home / "server.log", extra_args=extra)


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
    free = free_port()
    with new_server() as other:
        ports = [other.port, free]
        monkeypatch.setattr(comfyui_server, "free_port", lambda: ports.pop(0))
        with new_server() as server:
            assert server.port == free
        monkeypatch.setattr(comfyui_server, "free_port", lambda: other.port)
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
    client = WebSocket(port, "/ws?clientId=me")
    assert [client.receive(5) for _ in payloads] == [(2, payload) for payload in payloads]
    with pytest.raises(ConnectionError):
        client.receive(5)
    client.close()


def test_websocket_refusal_is_one_sentence() -> None:
    with pytest.raises(DevError, match="refused the websocket"):
        WebSocket(websocket(b"", "403 Forbidden"), "/ws?clientId=me")


def wait(data: bytes, monkeypatch: Patch, entry: Any, **options: Any) -> Any:
    """Wait for a prompt with what the websocket sends and the history that follows."""
    host = Host(Path("host"), Path("python"), "0.30.0")
    server = Server(host, Path("ws"), log_path=Path("server.log"))
    server._sockets["me"] = WebSocket(websocket(data), "/ws?clientId=me")
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

    def on_progress(now: Progress) -> None:
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
    monkeypatch.setattr(comfyui_server.time, "sleep", lambda seconds: None)
    with pytest.raises(DevError, match="connection to ComfyUI broke"):
        wait(event("executing", node="7"), monkeypatch, None)


def test_refused_graphs_give_one_sentence_per_problem() -> None:
    missing = {"message": "Value not in list", "details": "vae_name: 'x' not in []"}
    empty = {"message": "Prompt has no image", "details": ""}
    nodes = {"4": {"class_type": "VAELoader", "errors": [missing, empty]}}
    body: dict[str, Any] = {"error": {"message": "Node 'Nope' not found."}, "node_errors": nodes}
    assert refusal_sentences(json.dumps(body).encode()).splitlines() == [
        "Node 4 (VAELoader): Value not in list: vae_name: 'x' not in []",
        "Node 4 (VAELoader): Prompt has no image",
    ]
    body["node_errors"] = []
    words = "ComfyUI refused the workflow: Node 'Nope' not found."
    assert refusal_sentences(json.dumps(body).encode()) == words
