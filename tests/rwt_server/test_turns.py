"""What one turn of the loop brought comes as one list, in order, and nothing waits or is lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import WSMessage, WSMsgType, web

from rwt_server.turns import MOST, TurnReader
from tests.running import until
from tests.servers import BINARY, CLOSE, TEXT, Socket, connected, frame

Turns = list[list[WSMessage]]


@asynccontextmanager
async def reading(
    after: Callable[[web.WebSocketResponse, TurnReader, Turns], Awaitable[None]] | None = None,
) -> AsyncIterator[tuple[Socket, Turns]]:
    """A WebSocket whose server gathers turns, until it is told that the peer is gone."""
    turns: Turns = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("rwt.v2",), compress=False)
        await ws.prepare(request)
        reader = TurnReader(ws)
        if after is not None:
            await after(ws, reader, turns)
            return ws
        while not turns or turns[-1][-1].type is WSMsgType.BINARY or turns[-1][-1].type is WSMsgType.TEXT:
            turns.append(await reader.next())
        return ws

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listening).start()
    try:
        async with connected(listening.getsockname()[1]) as sock:
            assert await sock.upgrade(path="/") == 101
            yield sock, turns
    finally:
        await runner.cleanup()


def numbers(turn: list[WSMessage]) -> list[int]:
    return [int(message.data) for message in turn if message.type is WSMsgType.BINARY]


async def test_messages_that_came_together_are_one_turn() -> None:
    async with reading() as (sock, turns):
        sock.writer.write(b"".join(frame(BINARY, b"%d" % n) for n in range(5)))
        await until(lambda: sum(len(turn) for turn in turns) == 5)
        assert [numbers(turn) for turn in turns] == [[0, 1, 2, 3, 4]]


async def test_a_message_alone_does_not_wait_for_another() -> None:
    async with reading() as (sock, turns):
        for number in range(3):
            sock.send(b"%d" % number)
            await until(lambda number=number: len(turns) == number + 1)
        assert [numbers(turn) for turn in turns] == [[0], [1], [2]]


async def test_half_a_message_is_kept_for_the_next_turn() -> None:
    async with reading() as (sock, turns):
        second = frame(BINARY, b"22222")
        sock.writer.write(frame(BINARY, b"1") + second[:8])
        await until(lambda: len(turns) == 1)
        sock.writer.write(second[8:] + frame(BINARY, b"3"))
        await until(lambda: sum(len(turn) for turn in turns) == 3)
        assert [numbers(turn) for turn in turns] == [[1], [22222, 3]]


async def test_a_turn_is_bounded_and_nothing_is_lost() -> None:
    async with reading() as (sock, turns):
        many = 3 * MOST + 7
        sock.writer.write(b"".join(frame(BINARY, b"%d" % n) for n in range(many)))
        await until(lambda: sum(len(turn) for turn in turns) == many)
        assert max(len(turn) for turn in turns) <= MOST and len(turns) < many / 4
        assert [number for turn in turns for number in numbers(turn)] == list(range(many))


async def test_what_is_not_binary_ends_a_turn() -> None:
    async with reading() as (sock, turns):
        parts = (frame(BINARY, b"1"), frame(TEXT, b"two"), frame(BINARY, b"3"), frame(CLOSE, b"\x03\xe8"))
        sock.writer.write(b"".join(parts))
        await until(lambda: bool(turns) and turns[-1][-1].type is WSMsgType.CLOSE)
        kinds = [[message.type for message in turn] for turn in turns]
        assert kinds == [[WSMsgType.BINARY, WSMsgType.TEXT], [WSMsgType.BINARY, WSMsgType.CLOSE]]


async def test_a_peer_that_is_gone_ends_the_reading() -> None:
    async with reading() as (sock, turns):
        sock.send(b"1")
        await until(lambda: len(turns) == 1)
        sock.writer.transport.abort()
        await until(lambda: len(turns) == 2)
        assert turns[1][-1].type in (WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR)


async def test_after_cancel_the_websocket_can_be_closed_and_read() -> None:
    closed = asyncio.Event()

    async def after(ws: web.WebSocketResponse, reader: TurnReader, turns: Turns) -> None:
        turns.append(await reader.next())  # and a receive() that waits is left behind
        reader.cancel()
        reader.cancel()
        assert await ws.close(code=4409)
        closed.set()

    async with reading(after) as (sock, turns):
        sock.send(b"1")
        async with asyncio.timeout(5):
            assert await sock.end() == 4409
            await closed.wait()
        assert [numbers(turn) for turn in turns] == [[1]]


async def test_a_task_that_is_cancelled_while_it_waits() -> None:
    cancelled = asyncio.Event()

    async def after(ws: web.WebSocketResponse, reader: TurnReader, turns: Turns) -> None:
        turns.append(await reader.next())
        task = asyncio.create_task(reader.next())
        done, _ = await asyncio.wait((task,), timeout=0.05)
        assert not done
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            cancelled.set()
        reader.cancel()
        await ws.close(code=4503)

    async with reading(after) as (sock, _):
        sock.send(b"1")
        async with asyncio.timeout(5):
            assert await sock.end() == 4503
        assert cancelled.is_set()
