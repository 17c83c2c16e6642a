"""A TCP relay on this machine that can cut what it carries with a reset, refuse, and freeze."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]

_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Carries connections from `port` to `target`, both of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.target = 0
        self.refusing = False
        """Whether new connections are reset at once."""
        self.accepted = 0
        """Connections that came, refused ones too."""
        self._moving = asyncio.Event()
        self._moving.set()
        self._pairs: list[Pair] = []

    @property
    def open(self) -> int:
        """How many connections are carried now."""
        return len(self._pairs)

    def cut(self, index: int | None = None) -> None:
        """Reset both sides of the connection that came as the `index`th of the open ones; None: of all."""
        doomed = list(self._pairs) if index is None else [self._pairs[index]]
        for pair in doomed:
            self._pairs.remove(pair)
            for writer in pair:
                _reset(writer)

    def freeze(self) -> None:
        """Carry nothing until `thaw`; connections stay open and new ones are accepted."""
        self._moving.clear()

    def thaw(self) -> None:
        self._moving.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection to its end."""
        self.accepted += 1
        if self.refusing:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        pair = (writer, far_writer)
        self._pairs.append(pair)
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            if pair in self._pairs:
                self._pairs.remove(pair)
            for end in pair:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await self._moving.wait()
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


@asynccontextmanager
async def relaying() -> AsyncIterator[Relay]:
    """Run a relay on a free port; its `target` may be set later."""
    sock = socket.create_server(("127.0.0.1", 0))
    relay = Relay(sock.getsockname()[1])
    tasks: set[asyncio.Task[None]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        await relay.carry(reader, writer)

    server = await asyncio.start_server(carry, sock=sock)
    try:
        yield relay
    finally:
        server.close()
        relay.thaw()
        relay.cut()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
