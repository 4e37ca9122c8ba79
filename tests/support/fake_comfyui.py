"""A server on loopback that answers like ComfyUI, without a process of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from aiohttp import web


def event(name: str, **data: Any) -> str:
    """Return a text message of ComfyUI's websocket."""
    return json.dumps({"type": name, "data": data})


@contextmanager
def fake_comfyui(
    messages: Sequence[str | bytes] = (),
    entry: Any = None,
    refusal: dict[str, Any] | None = None,
    websocket_status: int = 101,
) -> Iterator[int]:
    """Serve until the end of the `with` block; yield the port.

    The websocket of the client "me" gets `messages` and is closed. The only prompt is "p", with `entry` in
    its history; `refusal` is the answer to a queued graph instead of its id.
    """

    async def websocket(request: web.Request) -> web.StreamResponse:
        if websocket_status != 101:
            return web.Response(status=websocket_status)
        assert request.query_string == "clientId=me"
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for message in messages:
            await (answer.send_str(message) if isinstance(message, str) else answer.send_bytes(message))
        await answer.close()
        return answer

    async def prompt(request: web.Request) -> web.Response:
        assert (await request.json())["client_id"] == "me"
        if refusal:
            return web.json_response(refusal, status=400)
        return web.json_response({"prompt_id": "p"})

    async def history(_: web.Request) -> web.Response:
        return web.json_response({"p": entry})

    async def interrupt(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/ws", websocket)
    app.router.add_post("/prompt", prompt)
    app.router.add_get("/history/p", history)
    app.router.add_post("/interrupt", interrupt)
    loop, runner = asyncio.new_event_loop(), web.AppRunner(app)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    try:
        yield asyncio.run_coroutine_threadsafe(start(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
