"""The other side: a plain aiohttp WebSocket server, written the way a Python programmer writes one."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys

import uvloop
from aiohttp import WSMsgType, web

_SUBSCRIBERS: web.AppKey[dict[web.WebSocketResponse, None]] = web.AppKey("subscribers", dict)


async def _echo(request: web.Request) -> web.StreamResponse:
    """Answer each message with one message."""
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        if msg.type is WSMsgType.BINARY:
            await ws.send_bytes(msg.data)
        elif msg.type is WSMsgType.TEXT:
            await ws.send_str(msg.data)
    return ws


async def _subscribe(request: web.Request) -> web.StreamResponse:
    """Receive what publishers send."""
    subscribers = request.app[_SUBSCRIBERS]
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    subscribers[ws] = None
    try:
        async for _ in ws:
            pass
    finally:
        del subscribers[ws]
    return ws


async def _publish(request: web.Request) -> web.StreamResponse:
    """Send each message to every subscriber."""
    subscribers = request.app[_SUBSCRIBERS]
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for msg in ws:
        if msg.type is WSMsgType.BINARY:
            for subscriber in list(subscribers):
                await subscriber.send_bytes(msg.data)
    return ws


async def _serve() -> None:
    app = web.Application()
    app[_SUBSCRIBERS] = {}
    app.router.add_get("/echo", _echo)
    app.router.add_get("/subscribe", _subscribe)
    app.router.add_get("/publish", _publish)
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    sock = socket.create_server(("127.0.0.1", 0), backlog=1_024)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    print(json.dumps({"event": "serving", "port": sock.getsockname()[1]}), file=sys.stderr, flush=True)
    try:
        await stopping.wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as main:
        main.run(_serve())
