"""The blocking client, against a server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from fake_comfyui import fake_comfyui

from devtools.comfyui_client import Client, HttpError
from devtools.comfyui_server import free_port
from devtools.terminal import DevError

Patch = pytest.MonkeyPatch


@contextmanager
def client_of(port: int) -> Iterator[Client]:
    with closing(Client(f"http://127.0.0.1:{port}")) as client:
        yield client


def test_websocket_reads_every_length() -> None:
    payloads = [bytes(size) for size in (0, 1, 125, 126, 127, 65535, 65536, 200_000, 5_000_000)]
    with fake_comfyui(payloads) as port, client_of(port) as client:
        websocket = client.websocket("/ws?clientId=me")
        assert [websocket.receive(5) for _ in payloads] == payloads
        with pytest.raises(ConnectionError):
            websocket.receive(5)
        websocket.close()


def test_websocket_refusal_is_one_sentence() -> None:
    with (
        fake_comfyui(websocket_status=403) as port,
        client_of(port) as client,
        pytest.raises(DevError, match="refused the websocket"),
    ):
        client.websocket("/ws?clientId=me")


def test_answers_are_json_or_none_and_errors_carry_the_body() -> None:
    with fake_comfyui(entry=1, refusal={"error": "no"}) as port, client_of(port) as client:
        assert client.request("GET", "/history/p") == {"p": 1}
        assert client.request("POST", "/interrupt", {}) is None
        with pytest.raises(HttpError, match="answered /prompt with HTTP status 400") as error:
            client.request("POST", "/prompt", {"client_id": "me"})
    assert json.loads(error.value.body) == {"error": "no"}


def test_a_port_without_a_server_is_a_connection_error() -> None:
    with client_of(free_port()) as client, pytest.raises(ConnectionError):
        client.request("GET", "/history/p", timeout=5)


def test_proxies_are_ignored(monkeypatch: Patch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with fake_comfyui(entry=1) as port, client_of(port) as client:
        assert client.request("GET", "/history/p") == {"p": 1}


def test_the_caller_may_be_inside_an_event_loop() -> None:
    """As in the browser tests, where playwright runs one."""

    async def inside(client: Client) -> None:
        assert client.request("GET", "/history/p") == {"p": 1}

    with fake_comfyui(entry=1) as port, client_of(port) as client:
        asyncio.run(inside(client))
