"""A small, fast WebSocket client, the same for both servers, so that the generator is never the story."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Callable
from typing import cast

_HEADER2 = struct.Struct(">BBH4x")
_HEADER8 = struct.Struct(">BBQ4x")
_BINARY = 0x82
_CLOSE, _PING, _PONG = 0x88, 0x89, 0x8A
_TIMEOUT = 15.0


def frame(payload: bytes, first: int = _BINARY) -> bytes:
    """One client frame. Its masking key is zero, so that masking costs the generator nothing."""
    size = len(payload)
    if size < 126:
        return bytes((first, 0x80 | size, 0, 0, 0, 0)) + payload
    if size < 65_536:
        return _HEADER2.pack(first, 0x80 | 126, size) + payload
    return _HEADER8.pack(first, 0x80 | 127, size) + payload


class Failure:
    """The first thing that went wrong on any connection of a run."""

    def __init__(self) -> None:
        self._found: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def report(self, exc: Exception) -> None:
        """Something is wrong: whoever waits raises it."""
        if not self._found.done():
            self._found.set_exception(exc)
            self._found.exception()

    async def wait_for(self, done: asyncio.Future[None], timeout: float) -> None:
        """Wait for `done`, or raise what went wrong."""
        await asyncio.wait((done, self._found), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._found.done():
            self._found.result()
        if not done.done():
            raise TimeoutError(f"a run did not end within {timeout:.0f} s")
        done.result()


class WebSocket(asyncio.Protocol):
    """One connection; tells of all messages that one read brought at once."""

    def __init__(self, failure: Failure, path: str, subprotocol: str | None) -> None:
        self.on_messages: Callable[[list[bytes]], None] = self._unexpected
        self._failure = failure
        self._path = path
        self._subprotocol = subprotocol
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._closing = False
        self._kept: list[bytes] | None = None
        self._first: Callable[[], None] | None = None

    @classmethod
    async def connect(
        cls, failure: Failure, port: int, path: str, subprotocol: str | None = None
    ) -> WebSocket:
        """Open a WebSocket on this machine."""
        loop = asyncio.get_running_loop()
        _, ws = await loop.create_connection(lambda: cls(failure, path, subprotocol), "127.0.0.1", port)
        async with asyncio.timeout(_TIMEOUT):
            await ws._open
        return ws

    def send(self, payloads: list[bytes]) -> None:
        """Send messages with one write."""
        self.write(frame(payloads[0]) if len(payloads) == 1 else b"".join(map(frame, payloads)))

    def write(self, data: bytes) -> None:
        """Send frames that are made already."""
        if self._transport is None:
            raise ConnectionError("the connection is gone")
        self._transport.write(data)

    def hold(self, first: Callable[[], None]) -> None:
        """Keep messages until `release`; tell when the first comes."""
        self._kept = []
        self._first = first

    def release(self) -> None:
        """Hand over what was kept, and from now on all that comes at once."""
        kept, self._kept = self._kept, None
        if kept:
            self.on_messages(kept)

    def close(self) -> None:
        """Cut the connection."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _unexpected(self, messages: list[bytes]) -> None:
        raise ConnectionError(f"{len(messages)} messages came that nobody waits for")

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: the transports of uvloop do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        lines = [
            f"GET {self._path} HTTP/1.1",
            "Host: 127.0.0.1",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        ]
        if self._subprotocol is not None:
            lines.append(f"Sec-WebSocket-Protocol: {self._subprotocol}")
        self._transport.write("\r\n".join([*lines, "", ""]).encode())

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if not self._closing:
            self._fail(exc or ConnectionError("the server closed a connection"))

    def _fail(self, exc: Exception) -> None:
        if not self._open.done():
            self._open.set_exception(exc)
        self._failure.report(exc)

    def data_received(self, data: bytes) -> None:
        try:
            if self._rest:
                data = self._rest + data
                self._rest = b""
            if not self._open.done():
                head, found, data = data.partition(b"\r\n\r\n")
                if not found:
                    self._rest = head
                    return
                if not head.startswith(b"HTTP/1.1 101 "):
                    raise ConnectionError(f"no WebSocket: {head[:64]!r}")
                self._open.set_result(None)
            messages = self._frames(data)
            if self._kept is not None:
                self._kept += messages
                if messages and self._first is not None:
                    first, self._first = self._first, None
                    first()
            elif messages:
                self.on_messages(messages)
        except Exception as exc:
            self._fail(exc)
            self.close()

    def _frames(self, data: bytes) -> list[bytes]:
        """Cut whole frames off; keep what is left."""
        messages: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= 2:
            start, size = at + 2, data[at + 1]
            if size == 126:
                start = at + 4
                size = int.from_bytes(data[at + 2 : start], "big")
            elif size == 127:
                start = at + 10
                size = int.from_bytes(data[at + 2 : start], "big")
            if start + size > end:
                break
            if data[at] == _BINARY:
                messages.append(data[start : start + size])
            else:
                self._control(data[at], data[start : start + size])
            at = start + size
        if at < end:
            self._rest = data[at:]
        return messages

    def _control(self, first: int, payload: bytes) -> None:
        if first == _PING:
            self.write(frame(payload, _PONG))
        elif first == _CLOSE:
            raise ConnectionError(f"the server closed with code {int.from_bytes(payload[:2], 'big')}")
        elif first != _PONG:
            raise ConnectionError(f"a frame begins with {first:#04x}")
