"""A blocking client of ComfyUI's HTTP routes and websocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import aiohttp

from devtools.terminal import DevError

Result = TypeVar("Result")


class HttpError(OSError):
    """An answer with an error status; `body` is what the server sent."""

    def __init__(self, status: int, path: str, body: bytes) -> None:
        super().__init__(f"ComfyUI answered {path} with HTTP status {status}.")
        self.body = body


class Client:
    """JSON requests and websockets to one server, for callers that block.

    The event loop of aiohttp runs in its own thread, because the caller may already be inside another
    loop, as every user of playwright is. Proxies from the environment are ignored.

    Parameters
    ----------
    url
        Of the server, without a path.
    """

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._session = self.run(self._open(url))

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Return the result of a coroutine; raise ConnectionError when the connection fails."""
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()
        except aiohttp.ClientError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    def request(self, method: str, path: str, payload: Any = None, timeout: float = 120) -> Any:
        """Return the JSON answer, None when it is empty.

        Raises
        ------
        HttpError
            The status is 400 or above.
        ConnectionError
            There is no answer within `timeout` seconds.
        """
        body = self.run(self._request(method, path, payload, timeout))
        return json.loads(body) if body else None

    def websocket(self, path: str) -> WebSocket:
        """Open a websocket; raise DevError when the server refuses it."""
        return WebSocket(self, self.run(self._connect(path)))

    def close(self) -> None:
        """Close all connections and end the thread."""
        self.run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, url: str) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(url, trust_env=False)

    async def _request(self, method: str, path: str, payload: Any, timeout: float) -> bytes:
        limit = aiohttp.ClientTimeout(total=timeout)
        try:
            async with self._session.request(method, path, json=payload, timeout=limit) as answer:
                body = await answer.read()
        except asyncio.TimeoutError:
            raise ConnectionError(f"ComfyUI did not answer {path} within {timeout:g} s.") from None
        if answer.status >= 400:
            raise HttpError(answer.status, path, body)
        return body

    async def _connect(self, path: str) -> aiohttp.ClientWebSocketResponse[bool]:
        limits = aiohttp.ClientWSTimeout(ws_close=1.0)
        try:
            return await self._session.ws_connect(path, max_msg_size=0, timeout=limits)
        except aiohttp.WSServerHandshakeError:
            raise DevError("The server refused the websocket for live progress.") from None


class WebSocket:
    """An open websocket, made by `Client.websocket`."""

    def __init__(self, client: Client, connection: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._client = client
        self._connection = connection

    def receive(self, timeout: float) -> str | bytes | None:
        """Return the next message, or None after `timeout` seconds without one.

        Raises
        ------
        ConnectionError
            The server closed the websocket.
        """
        message = self._client.run(self._receive(timeout))
        if message is None:
            return None
        if message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            raise ConnectionError("The server closed the websocket.")
        content: str | bytes = message.data
        return content

    async def _receive(self, timeout: float) -> Any:
        with contextlib.suppress(asyncio.TimeoutError):
            return await self._connection.receive(timeout)
        return None

    def close(self) -> None:
        """Close the websocket; wait a second at most for the server to do the same."""
        self._client.run(self._close())

    async def _close(self) -> None:
        await self._connection.close()
