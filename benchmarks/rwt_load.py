"""Connections to the RWT server: real tickets, handshakes and keys; every frame is opened and checked."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable

import aiohttp

from rwt_protocol import ClientConnection, ClientRules, ClientSession
from rwt_protocol.channels import Channel
from rwt_protocol.codec import encode_publication
from rwt_protocol.codes import SUBPROTOCOL, Level, Use
from rwt_protocol.connection import pack_messages
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
    GapFound,
    Opened,
    Refused,
    RoundTrip,
    StreamClosed,
    Subscribed,
    Terminated,
)
from rwt_protocol.frames import Ack, Ping, Publication

from .peers import BODY, Peer, ignore
from .wire import Failure, WebSocket

_AT_ONCE = 32
_TIMEOUT = 15.0
_TICK = 1.0
_RULES = ClientRules()


class _Connection(ClientConnection):
    """Pings when told, not only when it is time."""

    __slots__ = ()

    def ping(self, now: float) -> None:
        self._ping_number += 1
        self._pinged_at = now
        self._send(Ping(self._ping_number))


class RwtPeer:
    """One session on one connection."""

    def __init__(self, ws: WebSocket, session: ClientSession, *, batch: bool) -> None:
        loop = asyncio.get_running_loop()
        self.arrived: Callable[[int], None] = ignore
        self.conn = _Connection(session, _RULES, os.urandom, loop.time())
        self.ready: asyncio.Future[None] = loop.create_future()
        self.channel: Channel | None = None
        self._batch = batch
        self._time = loop.time
        self._ws = ws
        self._pinging = False
        self._sent = 0
        self._answered = 0
        self._last_offset = 0
        ws.on_messages = self._on_messages
        self._flush()

    def subscribe(self, name: str, use: Use) -> None:
        """Open a channel; `ready` tells when it is open."""
        self.ready = asyncio.get_running_loop().create_future()
        self.channel = Channel(name)
        self.conn.subscribe(self.channel.subscribe(1, use=use))
        self._flush()

    def prepare(self, number: int) -> None:
        conn, channel = self.conn, self.channel
        if channel is None:
            raise AssertionError("a publisher has a channel")
        first = self._sent + 1
        self._sent += number
        messages = [encode_publication(Publication(BODY, mid)) for mid in range(first, first + number)]
        for group in [messages] if self._batch else [[message] for message in messages]:
            for flags, payload, _ in pack_messages(group, Level.STANDARD, conn.window):
                conn.send_message(flags, channel.stream, payload)

    def commit(self) -> None:
        self._flush()

    def hold(self, first: Callable[[], None]) -> None:
        self._ws.hold(first)

    def release(self) -> None:
        self._ws.release()

    def ping(self) -> None:
        self._pinging = True
        self.conn.ping(self._time())
        self._flush()

    def tick(self, now: float) -> None:
        """Do what the connection has to do by time."""
        if self.conn.next_timer <= now:
            self.conn.handle_timer(now)
            self._flush()
            self._handle(self.conn.events())

    def close(self) -> None:
        self._ws.close()

    def _flush(self) -> None:
        frames = self.conn.bytes_to_send()
        if frames:
            self._ws.send(frames)

    def _on_messages(self, messages: list[bytes]) -> None:
        now = self._time()
        receive = self.conn.receive
        for message in messages:
            receive(message, now)
        self._flush()
        self._handle(self.conn.events())

    def _handle(self, events: list[Event]) -> None:
        number = 0
        for event in events:
            match event:
                case Delivered(_, _, entries) if self.channel is not None:
                    for entry in entries:
                        if entry.body != BODY:
                            raise ValueError("a delivery is not what was sent")
                    if len(self.channel.accept(entries)) != len(entries):
                        raise ValueError("a delivery came twice")
                    number += len(entries)
                case Acknowledged(ack):
                    number += self._on_ack(ack)
                case RoundTrip() if self._pinging:
                    # The connection pings by itself as well; that is nobody's answer.
                    self._pinging = False
                    number += 1
                case Opened():
                    self.ready.set_result(None)
                case Subscribed(answer) if self.channel is not None:
                    self.channel.opened(answer)
                    self.ready.set_result(None)
                case Refused() | GapFound() | StreamClosed() | Terminated() | Delivered() | Subscribed():
                    raise ConnectionError(f"a run was disturbed: {event}")
                case _:
                    pass
        if number:
            self.arrived(number)

    def _on_ack(self, ack: Ack) -> int:
        before = self._answered
        for first_mid, number, _, _, first_offset, _ in ack.runs:
            if first_mid != self._answered + 1 or first_offset <= self._last_offset:
                raise ValueError("an ACK is not the next one")
            self._answered += number
            self._last_offset = first_offset + number - 1
        if self._answered > self._sent:
            raise ValueError("an ACK answers what was not sent")
        return self._answered - before


def _b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class RwtSide:
    """The RWT server on this machine."""

    answers_publisher = True

    def __init__(self, failure: Failure, port: int, api_key: str) -> None:
        self._failure = failure
        self._port = port
        self._api_key = api_key
        self._peers: list[RwtPeer] = []
        self._timer: asyncio.TimerHandle | None = None

    def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        try:
            for peer in self._peers:
                peer.tick(now)
        except Exception as exc:
            self._failure.report(exc)
        self._timer = loop.call_later(_TICK, self._tick)

    async def _ticket(self, http: aiohttp.ClientSession) -> ClientSession:
        url = f"http://127.0.0.1:{self._port}/rwt/v2/session"
        headers = {"Authorization": f"Bearer {self._api_key}"}
        async with http.post(url, headers=headers, raise_for_status=True) as response:
            answer = await response.json()
        return ClientSession(_b64(answer["sid"]), _b64(answer["ticket"]), tuple(answer["suites"]))

    async def _connect(
        self, number: int, *, name: str | None = None, use: Use = Use.PAUSED, batch: bool = True
    ) -> list[RwtPeer]:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TICK, self._tick)
        gate = asyncio.Semaphore(_AT_ONCE)
        async with aiohttp.ClientSession() as http:

            async def one(_: int) -> RwtPeer:
                async with gate, asyncio.timeout(_TIMEOUT):
                    session = await self._ticket(http)
                    ws = await WebSocket.connect(self._failure, self._port, "/rwt/v2/ws", SUBPROTOCOL)
                    peer = RwtPeer(ws, session, batch=batch)
                    self._peers.append(peer)
                    await self._failure.wait_for(peer.ready, _TIMEOUT)
                    if name is not None:
                        peer.subscribe(name, use)
                        await self._failure.wait_for(peer.ready, _TIMEOUT)
                    return peer

            return await asyncio.gather(*map(one, range(number)))

    async def publishers(self, number: int, *, batch: bool) -> list[Peer]:
        return list(await self._connect(number, name="publish", use=Use.PUBLISH, batch=batch))

    async def fan_out(self, subscribers: int) -> tuple[Peer, list[Peer]]:
        (publisher,) = await self._connect(1, name="fan-out", use=Use.PUBLISH)
        return publisher, list(await self._connect(subscribers, name="fan-out", use=Use.RECEIVE))

    async def idle(self, number: int) -> list[Peer]:
        return list(await self._connect(number))

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for peer in self._peers:
            peer.close()
        self._peers.clear()
