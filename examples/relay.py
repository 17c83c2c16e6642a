"""A TCP relay on this machine that can cut what it carries."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct


class Relay:
    """Carries connections to one port; `cut` resets one of them, as a broken network would."""

    def __init__(self) -> None:
        self.port = 0
        self.target = 0
        self._server: asyncio.Server | None = None
        self._pairs: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything and stop listening."""
        for index in range(len(self._pairs)):
            self.cut(index)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @property
    def open(self) -> list[int]:
        """Numbers of the connections that are carried now."""
        return [index for index, pair in enumerate(self._pairs) if not any(w.is_closing() for w in pair)]

    def cut(self, index: int) -> bool:
        """Reset both sides of the connection that was the `index`th to come; tell whether it was open."""
        was_open = index in self.open
        for writer in self._pairs[index]:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        return was_open

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        self._pairs.append((writer, far_writer))
        await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()
