"""The server, with programs that behave like ComfyUI."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_comfyui import event, fake_comfyui
from sentences import sentence

from devtools import comfyui_server
from devtools.comfyui_server import Server, free_port
from devtools.environment import Host
from devtools.prompts import Progress
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
    """Return a maker of servers whose program starts, answers and ends like ComfyUI."""
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


def unstarted_server() -> Server:
    return Server(Host(Path("host"), Path("python"), "0.30.0"), Path("ws"), log_path=Path("server.log"))


def wait(messages: Sequence[str | bytes], entry: Any, **options: Any) -> Any:
    """Queue and wait for a prompt, with these messages on the websocket and this entry in the history."""
    server = unstarted_server()
    with fake_comfyui(messages, entry) as port, contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        server.connect(port)
        return server.wait(server.queue({}, "me"), "me", **options)


def test_wait_shows_progress_and_returns_the_history_entry() -> None:
    messages = [
        event("executing", node="7"),
        event("progress", node="7", value=3, max=8),
        b"\0\0\0\1\0\0\0\1JPEG",
        b"\0\0\0\3text",
        event("executing", node=None),
        event("status"),
    ]
    entry = {"outputs": {"9": {}}, "status": {"status_str": "success", "messages": []}}
    seen: list[tuple[str, int]] = []

    def on_progress(now: Progress) -> None:
        seen.append((now.line({"7": "Sampler"}, 75), now.previews))

    assert wait(messages, entry, on_progress=on_progress) == entry
    step = "Sampler: step 3/8, 38 %, 1:15"
    assert seen == [("Sampler, 1:15", 0), (step, 0), *[(step, 1)] * 4]


@pytest.mark.parametrize(
    ("event_name", "words"),
    [
        ("execution_error", "The node SegmentSampler failed: M must be at least 1."),
        ("execution_interrupted", "The workflow was interrupted."),
    ],
)
def test_wait_reports_why_a_prompt_failed(event_name: str, words: str) -> None:
    data = {"node_type": "SegmentSampler", "exception_message": "M must be at least 1.\n"}
    messages = [["execution_start", {}], [event_name, data]]
    with sentence(words):
        wait([event("status")], {"status": {"status_str": "error", "messages": messages}})


def test_wait_reports_a_timeout_and_a_broken_connection(monkeypatch: Patch) -> None:
    with sentence("The workflow did not finish within 0 s."):
        wait([], None, timeout=0)
    monkeypatch.setattr(comfyui_server.time, "sleep", lambda seconds: None)
    with pytest.raises(DevError, match="connection to ComfyUI broke"):
        wait([event("executing", node="7")], None)


def test_a_refused_graph_is_a_sentence() -> None:
    server = unstarted_server()
    refusal = {"error": {"message": "Node 'Nope' not found."}, "node_errors": []}
    with fake_comfyui(refusal=refusal) as port, contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        server.connect(port)
        with sentence("ComfyUI refused the workflow: Node 'Nope' not found."):
            server.queue({}, "me")


def test_requests_need_a_running_server() -> None:
    server = unstarted_server()
    with sentence("ComfyUI is not running."):
        server.get("/system_stats")
    server.stop()
