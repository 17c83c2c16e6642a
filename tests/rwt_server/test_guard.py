"""The protocol around aiohttp's: deadlines on the connection itself, word of back-pressure, bytes passed on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from rwt_server.guard import WRITE_HIGH, WRITE_LOW, Deadlines, Guard
from tests.running import until

LIMIT = 0.5


class Inner(asyncio.Protocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.told.append(data)

    def eof_received(self) -> bool | None:
        self.told.append("eof")
        return True

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")


class Place:
    """A server of one guard for each connection."""

    def __init__(self, deadlines: Deadlines) -> None:
        self.deadlines = deadlines
        self.guards: list[Guard] = []
        self.inners: list[Inner] = []
        self.port = 0

    def accept(self) -> Guard:
        self.inners.append(Inner())
        self.guards.append(Guard(self.inners[-1], self.deadlines))
        return self.guards[-1]


@asynccontextmanager
async def place(limit: float = LIMIT) -> AsyncIterator[Place]:
    found = Place(Deadlines(limit))
    server = await asyncio.get_running_loop().create_server(found.accept, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        found.deadlines.close()
        for inner in found.inners:
            assert inner.transport is not None
            inner.transport.abort()


@asynccontextmanager
async def client(found: Place) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
    await until(lambda: bool(found.guards))
    try:
        yield reader, writer
    finally:
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass


async def ended(reader: asyncio.StreamReader) -> None:
    try:
        assert await reader.read() == b""
    except ConnectionResetError:
        pass


@pytest.mark.parametrize("sent", [b"", b"GET / HT", bytes(100_000)], ids=["silence", "a little", "much"])
async def test_what_is_not_authenticated_ends_at_the_deadline(sent: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with place() as found, client(found) as (reader, writer):
        began = loop.time()
        writer.write(sent)
        async with asyncio.timeout(5):
            await ended(reader)
        assert LIMIT * 0.9 < loop.time() - began < LIMIT + 1.5
        assert found.inners[0].told[-1] == "lost" and len(found.deadlines) == 0


async def test_bytes_that_trickle_do_not_move_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    async with place() as found, client(found) as (reader, writer):
        began = loop.time()

        def trickle() -> None:
            if "lost" not in found.inners[0].told:
                writer.write(b"x")
                loop.call_later(0.05, trickle)

        trickle()
        async with asyncio.timeout(5):
            await ended(reader)
        assert loop.time() - began < LIMIT + 1.5
        assert found.inners[0].told.count(b"x") > 3


async def test_a_finished_response_starts_the_time_again() -> None:
    loop = asyncio.get_running_loop()
    async with place(1.0) as found, client(found) as (reader, _):
        began = loop.time()
        loop.call_later(0.9, found.guards[0].restart)
        async with asyncio.timeout(5):
            await ended(reader)
        assert loop.time() - began > 1.8


async def test_an_authenticated_connection_has_no_deadline() -> None:
    async with place() as found, client(found) as (stays, _):
        found.guards[0].authenticated()
        async with client(found) as (goes, _):
            async with asyncio.timeout(5):
                await ended(goes)
        assert "lost" not in found.inners[0].told and not stays.at_eof()


async def test_one_timer_that_rests_when_nobody_waits() -> None:
    async with place() as found, client(found), client(found):
        await until(lambda: len(found.deadlines) == 2)
        await until(lambda: len(found.deadlines) == 0 and found.deadlines._timer is None, 3.0)
        assert [inner.told[-1] for inner in found.inners] == ["lost", "lost"]


async def test_everything_is_passed_on_in_order() -> None:
    async with place() as found, client(found) as (reader, writer):
        inner = found.inners[0]
        writer.write(b"abc")
        await until(lambda: b"abc" in inner.told)
        assert inner.transport is not None
        inner.transport.write(b"answer")
        assert await reader.readexactly(6) == b"answer"
        writer.write_eof()
        await until(lambda: "eof" in inner.told)
        inner.transport.close()
        await until(lambda: "lost" in inner.told)
        assert inner.told == ["made", b"abc", "eof", "lost"]


async def test_back_pressure_is_told_and_its_end() -> None:
    async with place(60.0) as found, client(found) as (reader, _):
        guard, inner = found.guards[0], found.inners[0]
        assert inner.transport is not None
        inner.transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)
        resumed: list[bool] = []
        guard.on_resume = lambda: resumed.append(guard.paused)
        sent = 0
        while not guard.paused:
            inner.transport.write(bytes(65_536))
            sent += 65_536
            assert sent < 1 << 26
        assert inner.transport.get_write_buffer_size() > WRITE_HIGH and resumed == []
        async with asyncio.timeout(10):
            while sent:
                sent -= len(await reader.read(1 << 20))
        await until(lambda: not guard.paused)
        assert resumed == [False] and inner.told == ["made", "pause", "resume"]


async def test_who_waits_for_room_learns_that_the_connection_is_gone() -> None:
    async with place(60.0) as found:
        gone: list[str] = []
        async with client(found):
            found.guards[0].on_resume = lambda: gone.append("gone")
        assert found.inners[0].transport is not None
        found.inners[0].transport.abort()
        await until(lambda: bool(gone))
        assert len(found.deadlines) == 0
        assert found.inners[0].told[-1] == "lost"


async def test_a_guard_is_put_in_place_once() -> None:
    loop = asyncio.get_running_loop()
    made: list[Inner] = []

    def accept() -> Inner:
        made.append(Inner())
        return made[-1]

    server = await loop.create_server(accept, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
    await until(lambda: bool(made) and made[0].transport is not None)
    transport = made[0].transport
    assert transport is not None
    guard = Guard.of(transport)
    assert Guard.of(transport) is guard and transport.get_protocol() is guard
    writer.write(b"abc")
    await until(lambda: made[0].told == ["made", b"abc"])
    guard.abort()
    await until(lambda: "lost" in made[0].told)
    writer.close()
    server.close()
