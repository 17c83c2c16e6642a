"""Connections to the raw aiohttp server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from .peers import BODY, Peer, ignore
from .wire import Failure, WebSocket, frame

_AT_ONCE = 32


class _RawPeer:
    def __init__(self, ws: WebSocket) -> None:
        self.arrived: Callable[[int], None] = ignore
        self._ws = ws
        self._frame = frame(BODY)
        self._prepared = b""
        self._ping = frame(b"ping")
        ws.on_messages = self._on_messages

    def prepare(self, number: int) -> None:
        self._prepared = self._frame * number

    def commit(self) -> None:
        self._ws.write(self._prepared)

    def hold(self, first: Callable[[], None]) -> None:
        self._ws.hold(first)

    def release(self) -> None:
        self._ws.release()

    def ping(self) -> None:
        self._ws.write(self._ping)

    def close(self) -> None:
        self._ws.close()

    def _on_messages(self, messages: list[bytes]) -> None:
        for message in messages:
            if message != BODY and message != b"ping":
                raise ValueError("an answer is not what was sent")
        self.arrived(len(messages))


class RawSide:
    """The raw server on this machine."""

    answers_publisher = False

    def __init__(self, failure: Failure, port: int) -> None:
        self._failure = failure
        self._port = port
        self._peers: list[_RawPeer] = []

    async def _connect(self, paths: Sequence[str]) -> list[Peer]:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(path: str) -> _RawPeer:
            async with gate:
                return _RawPeer(await WebSocket.connect(self._failure, self._port, path))

        peers = await asyncio.gather(*map(one, paths))
        self._peers += peers
        return list(peers)

    async def publishers(self, number: int, *, batch: bool) -> list[Peer]:
        return await self._connect(["/echo"] * number)

    async def fan_out(self, subscribers: int) -> tuple[Peer, list[Peer]]:
        publisher, *others = await self._connect(["/publish", *["/subscribe"] * subscribers])
        return publisher, others

    async def idle(self, number: int) -> list[Peer]:
        return await self._connect(["/echo"] * number)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()
