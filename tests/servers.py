"""A client that says just what a test wants, over a real socket; the servers of `tests.running` to say it to."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from rwt_protocol import ClientConnection, ClientRules, ClientSession, State, codec
from rwt_protocol.codes import Level
from rwt_protocol.connection import pack_messages
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
    GapFound,
    Refused,
    StreamClosed,
    Subscribed,
    Terminated,
)
from rwt_protocol.frames import Closed, Entry, Err, Gap, Publication, Sub, SubOk
from rwt_server import KeyFile, ServerConfig, create_app
from rwt_server.app import NODE
from rwt_server.node import Node

K = TypeVar("K")

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
    "Sec-WebSocket-Protocol": "rwt.v2",
}
PATIENCE = 15.0
"""Seconds that any condition may take."""


class Address(Protocol):
    """Where a server is, and a key for it: `Running` and `ServerProcess` are such."""

    url: str
    port: int
    key: str


@dataclass
class Embedded:
    """An application of someone else that serves RWT, too; `node` is what does."""

    url: str
    port: int
    key: str
    node: Node


@asynccontextmanager
async def embedded(folder: Path, mount: str) -> AsyncIterator[Embedded]:
    """Serve RWT by aiohttp's own server: under `mount` of another application, or as the application."""
    port = unused_port()
    keys = KeyFile(folder / "keys.json")
    _, key = keys.create("embedded", None)
    app = create_app(ServerConfig(url=f"ws://127.0.0.1:{port}{mount}/rwt/v2/ws", data_dir=folder), keys)
    outer = app
    if mount:
        outer = web.Application()
        outer.add_subapp(mount, app)
    async with TestServer(outer, host="127.0.0.1", port=port):
        yield Embedded(f"http://127.0.0.1:{port}{mount}", port, key, app[NODE])


def request(headers: dict[str, str], path: str = "/rwt/v2/ws") -> bytes:
    """The bytes of an HTTP GET."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode()


def frame(opcode: int, data: bytes, announced: int | None = None) -> bytes:
    """One WebSocket frame of a client, masked with zeros."""
    size = len(data) if announced is None else announced
    if size < 126:
        head = struct.pack(">BB", 0x80 | opcode, 0x80 | size)
    elif size < 65_536:
        head = struct.pack(">BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack(">BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + bytes(4) + data


class Socket:
    """A WebSocket client that hides nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.headers: dict[str, str] = {}
        self.status = 0
        self.code: int | None = None
        """Close code, once it came; 1006 if the connection ended without one."""

    async def upgrade(self, headers: dict[str, str] = UPGRADE, path: str = "/rwt/v2/ws") -> int:
        """Ask for the upgrade and return the status of the answer."""
        self.writer.write(request(headers, path))
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in head[1:] if line)}
        return self.status

    def send(self, data: bytes, opcode: int = BINARY) -> None:
        self.writer.write(frame(opcode, data))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame; after the end (CLOSE, b"")."""
        try:
            first, second = await self.reader.readexactly(2)
            size = second & 0x7F
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
            data = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.code = self.code or 1006
            return CLOSE, b""
        opcode = first & 0x0F
        if opcode == CLOSE:
            self.code = int.from_bytes(data[:2], "big") if data else 1005
            self.send(data[:2], CLOSE)
        return opcode, data

    async def end(self) -> int:
        """Read to the end and return the close code."""
        async with asyncio.timeout(PATIENCE):
            while self.code is None:
                await self.receive()
        return self.code

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


@asynccontextmanager
async def connected(port: int, *, receive_buffer: int | None = None) -> AsyncIterator[Socket]:
    """A TCP connection to a server; a small `receive_buffer` lets a reader be slow at once."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    found = Socket(*await asyncio.open_connection(sock=sock))
    try:
        yield found
    finally:
        await found.close()


async def ticket(server: Address, **body: Any) -> ClientSession:
    """Ask for a ticket and make a client's session of it."""
    async with aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {server.key}"}
        async with http.post(f"{server.url}/rwt/v2/session", headers=headers, json=body) as answer:
            assert answer.status == 200, await answer.text()
            found = await answer.json()
    sid, token = (base64.urlsafe_b64decode(found[name] + "==") for name in ("sid", "ticket"))
    return ClientSession(sid, token, tuple(found["suites"]))


class Wire:
    """A session on one connection; nothing is read, written or answered but in `until`."""

    def __init__(self, sock: Socket, session: ClientSession) -> None:
        self.sock = sock
        self.session = session
        self.conn = ClientConnection(session, ClientRules(), os.urandom, 0.0)
        self.seen: list[Event] = []
        self._refs = 0

    def flush(self) -> None:
        """Write what is ready, at once: the server is likely to find it in one turn."""
        if frames := self.conn.bytes_to_send():
            self.sock.writer.write(b"".join(frame(BINARY, data) for data in frames))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Go on until `condition()` is true."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.flush()
                self.seen += self.conn.events()
                if condition():
                    return
                assert self.sock.code is None, (self.sock.code, self.seen[-5:])
                opcode, data = await self.sock.receive()
                if opcode == BINARY:
                    self.conn.receive(data, 0.0)

    async def over(self) -> tuple[Terminated, int]:
        """Go on to the end: what the peer said under the session's keys, and the close code."""
        await self.until(lambda: self.conn.state is State.CLOSED)
        (said,) = self.of(Terminated)
        return said, await self.sock.end()

    def of(self, kind: type[K]) -> list[K]:
        return [event for event in self.seen if isinstance(event, kind)]

    def ask(self, name: str, **more: Any) -> int:
        """Queue a SUB and return its reference."""
        self._refs += 1
        self.conn.subscribe(Sub(self._refs, name, **more))
        return self._refs

    async def answer(self, ref: int) -> SubOk | Err | Closed:
        """The answer to a SUB or UNSUB."""

        def answers() -> list[SubOk | Err | Closed]:
            found: list[SubOk | Err | Closed] = [event.answer for event in self.of(Subscribed)]
            found += [event.err for event in self.of(Refused)]
            found += [event.closed for event in self.of(StreamClosed)]
            return [answer for answer in found if answer.ref == ref]

        await self.until(answers)
        return answers()[0]

    async def sub(self, name: str, **more: Any) -> SubOk:
        """Open a channel, or change how it is used."""
        answer = await self.answer(self.ask(name, **more))
        assert isinstance(answer, SubOk), answer
        return answer

    async def refused(self, name: str, **more: Any) -> int:
        """The error code that a SUB is answered with."""
        answer = await self.answer(self.ask(name, **more))
        assert isinstance(answer, Err), answer
        return answer.code

    async def unsub(self, stream: int) -> SubOk | Err | Closed:
        self._refs += 1
        self.conn.unsubscribe(self._refs, stream)
        return await self.answer(self._refs)

    def publish(self, stream: int, *messages: Publication, level: Level = Level.STANDARD) -> None:
        encoded = [codec.encode_publication(message) for message in messages]
        for flags, payload, _ in pack_messages(encoded, level, 1_024):
            self.conn.send_message(flags, stream, payload)

    async def store(self, stream: int, *messages: Publication) -> list[int]:
        """Publish and return the offsets of the ACKs."""
        self.publish(stream, *messages)
        mids = [message.mid for message in messages]
        await self.until(lambda: self.acks.keys() >= set(mids))
        return [self.acks[mid] for mid in mids if mid is not None]

    async def entries_come(self, number: int) -> None:
        """Go on until so many entries came, and no more."""
        await self.until(lambda: len(self.entries) >= number)
        assert len(self.entries) == number

    @property
    def acks(self) -> dict[int, int]:
        """Offset of every acknowledged mid."""
        return {
            run.first_mid + index: run.first_offset + index
            for event in self.of(Acknowledged)
            for run in event.ack.runs
            for index in range(run.number)
        }

    @property
    def errors(self) -> list[tuple[int, int]]:
        """(mid, code) of every refused message."""
        return [(event.err.mid, event.err.code) for event in self.of(Refused) if event.err.mid is not None]

    @property
    def entries(self) -> list[Entry]:
        return [entry for event in self.of(Delivered) for entry in event.entries]

    @property
    def bodies(self) -> list[bytes]:
        return [entry.body for entry in self.entries]

    @property
    def gaps(self) -> list[Gap]:
        return [event.notice.gap for event in self.of(GapFound)]


@asynccontextmanager
async def wire(
    server: Address, session: ClientSession | None = None, *, receive_buffer: int | None = None, **body: Any
) -> AsyncIterator[Wire]:
    """An open session: a new one, or `session` taken up again."""
    async with connected(server.port, receive_buffer=receive_buffer) as sock:
        found = Wire(sock, session or await ticket(server, **body))
        assert await sock.upgrade() == 101
        await found.until(lambda: found.conn.state is State.OPEN)
        yield found
