"""Moves bytes and time between one WebSocket and its `ServerConnection`."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING

import structlog
from aiohttp import WSMsgType, web

from rwt_protocol import ServerConnection, State, codec, key_schedule
from rwt_protocol.codes import CloseCode, ErrorCode, Policy
from rwt_protocol.events import (
    AdvanceWanted,
    Event,
    Opened,
    Published,
    RevocationWanted,
    Rotated,
    SessionWanted,
    SubscribeRequested,
    Terminated,
    UnsubscribeRequested,
    Warned,
)
from rwt_protocol.session import Swap

from .answers import Answer, Answers
from .guard import WRITE_HIGH, WRITE_LOW, Guard
from .hub import Channel, Pack, Subscription
from .keys import may_use
from .turns import TurnReader

if TYPE_CHECKING:
    from .node import Node, Session

log = structlog.get_logger()

_HEADER2 = struct.Struct(">BBH")
_HEADER8 = struct.Struct(">BBQ")
_BINARY = 0x82
_CLOSE_TIMEOUT = 2.0
"""Seconds for the last bytes and the closing handshake."""


def frame_binary(message: bytes) -> bytes:
    """One unfragmented, unmasked binary WebSocket frame (RFC 6455 section 5.2)."""
    size = len(message)
    if size < 126:
        return bytes((_BINARY, size)) + message
    if size < 65_536:
        return _HEADER2.pack(_BINARY, 126, size) + message
    return _HEADER8.pack(_BINARY, 127, size) + message


def _continues(before: Published, event: Published) -> bool:
    """Whether the messages of two frames can be appended as one run: same place, and nothing sent again."""
    last, first = before.messages[-1].mid, event.messages[0].mid
    return (
        before.stream == event.stream
        and before.level is event.level
        and last is not None
        and first is not None
        and first > last
    )


class Driver:
    """One connection on the server."""

    __slots__ = (
        "_address",
        "_answers",
        "_over",
        "_reader",
        "_session",
        "_task",
        "_transport",
        "_ws",
        "conn",
        "guard",
        "node",
        "queued_timer",
        "receives",
        "sender",
        "streams",
        "user",
    )

    def __init__(
        self, node: Node, ws: web.WebSocketResponse, transport: asyncio.Transport, address: str
    ) -> None:
        self.node = node
        self.conn = ServerConnection(
            node.rules, node.random_bytes, node.loop.time(), node.next_session_number()
        )
        self.guard = Guard.of(transport)
        self.guard.on_resume = self._on_room
        self.streams: dict[int, Subscription] = {}
        self.receives = False
        """Whether any open channel delivers to this connection."""
        self.user = ""
        self.sender = b""
        self.queued_timer = float("inf")
        """When the node will look at this connection's timer."""
        self._ws = ws
        self._transport = transport
        self._address = address
        self._reader = TurnReader(ws)
        self._session: Session | None = None
        self._answers: Answers | None = None
        self._over: Terminated | None = None
        self._task = asyncio.current_task()
        transport.set_write_buffer_limits(WRITE_HIGH, WRITE_LOW)

    # --- what the hub asks ---

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        # A closing transport drops what it is given and shows no pressure.
        return self.conn.state is State.CLOSED or self._transport.is_closing()

    def may(self, channel: str) -> bool:
        """Whether this session may use a channel."""
        session = self._live()
        return may_use(session.channels, channel) and may_use(session.scopes, channel)

    @property
    def answers(self) -> Answers:
        """The remembered answers of this session."""
        return self._answers or self._first_answers()

    def _first_answers(self) -> Answers:
        session = self._live()
        if session.answers is None:
            session.answers = Answers()
        self._answers = session.answers
        return session.answers

    def inbox(self) -> Channel:
        """The private channel of this session."""
        return self.node.inbox(self._live())

    def _live(self) -> Session:
        if self._session is None:
            raise AssertionError("an open connection has a session")
        return self._session

    def repeat(self, mid: int, answer: Answer | None) -> None:
        """Answer a mid that was answered before, or whose answer is forgotten."""
        if answer is None:
            self.conn.refuse(ErrorCode.OUTCOME_UNKNOWN, mid=mid)
        elif answer.error is not None:
            self.conn.refuse(answer.error, mid=mid)
        else:
            self.conn.acknowledge(mid, 1, answer.place, answer.first_offset, answer.stored)

    # --- writing ---

    def send(self, stream: int, packs: list[Pack]) -> None:
        """Seal payloads that are shared by many subscribers, and write them."""
        conn = self.conn
        always = conn.client_policy is Policy.ALWAYS
        for flags, payload, _ in packs:
            conn.send_message(flags | 1 if always else flags, stream, payload)
        self.flush()

    def flush(self) -> None:
        """Write all that is ready, with one call."""
        conn = self.conn
        conn.flush_acks()
        frames = conn.bytes_to_send()
        if frames:
            transport = self._transport
            if transport.is_closing():
                return
            if len(frames) == 1:
                transport.write(frame_binary(frames[0]))
            else:
                transport.write(b"".join([frame_binary(frame) for frame in frames]))
        if conn.state is State.CLOSED and self._task is not None:
            self.node.loop.call_soon(self._interrupt)

    def _on_room(self) -> None:
        if self.receives and not self.closed:
            self.node.hub.catch_up_soon(self)

    def _interrupt(self) -> None:
        """End `run` while it waits for the peer."""
        if self._task is not None:
            self._task.cancel()

    # --- life ---

    async def run(self) -> None:
        """Serve the connection to its end."""
        node = self.node
        node.watch(self, self._address)
        try:
            while self.conn.state is not State.CLOSED:
                if not await self._turn():
                    break
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.conn.state is not State.CLOSED or task is None:
                raise
            task.uncancel()
        finally:
            self._task = None
            self._reader.cancel()
            for event in self.conn.events():
                if isinstance(event, Terminated):
                    await self._terminated(event)
            node.forget(self)
        await self._finish()

    async def _turn(self) -> bool:
        """Take what one turn brought; False when the peer is gone."""
        conn, hub, loop = self.conn, self.node.hub, self.node.loop
        messages = await self._reader.next()
        now = loop.time()
        published: Published | None = None
        busy = False
        for message in messages:
            if message.type is not WSMsgType.BINARY:
                if message.type is not WSMsgType.TEXT:
                    return False
                conn.receive_text(now)
                break
            conn.receive(message.data, now)
            while events := conn.events():
                for event in events:
                    if type(event) is Published:
                        busy = True
                        if published is not None and _continues(published, event):
                            published.messages.extend(event.messages)
                            continue
                        if published is not None:
                            hub.publish(self, published)
                        published = event
                        continue
                    if published is not None:
                        hub.publish(self, published)
                        published = None
                    await self._handle(event)
        if published is not None:
            hub.publish(self, published)
        if self.receives and hub.flush_pending:
            hub.write_soon(self)
        else:
            self.flush()
        if not busy:
            conn.rest()
        # A REPLY may have come between messages: the next rotation may be due earlier than planned.
        if conn.next_timer < self.queued_timer:
            self.node.rewatch(self)
        return True

    async def _handle(self, event: Event) -> None:
        node, conn = self.node, self.conn
        sessions = node.engine.sessions
        match event:
            case SessionWanted(sid):
                try:
                    record = await sessions.lookup(sid)
                except ConnectionError as exc:
                    node.store_failed(exc)
                    conn.close(
                        CloseCode.INTERNAL, node.loop.time(), reason="the session store does not answer"
                    )
                    return
                if record is not None:
                    self.user = record.user
                    self.sender = codec.encode_sender(record.user, key_schedule.sender_id(sid))
                    self._session = node.session(record)
                ends_in = 0.0 if record is None else record.ends_at - node.clock()
                conn.session_found(record, node.loop.time(), ends_in)
            case AdvanceWanted(step):
                try:
                    outcome = await sessions.advance(step)
                except ConnectionError as exc:
                    node.store_failed(exc)
                    outcome = Swap.UNKNOWN
                conn.advanced(outcome, node.loop.time())
            case RevocationWanted(sid):
                await node.revoke(sid, keep=self)
            case Opened(connection_id, epoch, resumed, _):
                self.guard.authenticated()
                node.opened(self)
                log.info(
                    "session_open", connection=connection_id, epoch=epoch, resumed=resumed, user=self.user
                )
            case Rotated(epoch):
                node.rotations += 1
                log.debug("token_rotated", epoch=epoch, user=self.user)
            case SubscribeRequested(sub):
                node.hub.subscribe(self, sub)
            case UnsubscribeRequested(unsub):
                node.hub.unsubscribe(self, unsub)
            case Warned(code, text):
                log.warning(
                    "security_warning", code=str(code), text=text, user=self.user, address=self._address
                )
            case Terminated():
                await self._terminated(event)
            case _:
                raise AssertionError(f"{type(event).__name__} is an event of clients")

    async def _terminated(self, event: Terminated) -> None:
        self._over = event
        if event.by_peer and event.code == 1000 and not event.keep:
            await self.node.end_session(self.conn.sid)
        log.info(
            "session_closed",
            code=int(event.code),
            reason=event.reason,
            by_peer=event.by_peer,
            user=self.user,
            address=self._address,
        )

    @property
    def coming_back(self) -> bool:
        """Whether the session may be resumed on another connection."""
        over = self._over
        if over is None:
            return True
        if over.by_peer:
            return over.keep or over.code != 1000
        return over.code not in (CloseCode.REVOKED, CloseCode.SESSION_ENDED)

    def tick(self, now: float) -> None:
        """The node's timer for this connection."""
        self.conn.handle_timer(now, drained=self._transport.get_write_buffer_size() == 0)
        self.conn.rest()
        self.flush()

    def end(self, code: CloseCode, reason: str, *, retry_after_ms: int | None = None) -> None:
        """End the connection from outside its own task."""
        self.conn.close(code, self.node.loop.time(), reason=reason, retry_after_ms=retry_after_ms)
        self.flush()

    async def _finish(self) -> None:
        """Write what is left and close the WebSocket with the code of the end."""
        self.flush()
        if self.conn.state is not State.CLOSED or self._over is None:
            return
        code = int(self._over.code)
        if code != 1000 and not 3000 <= code < 5000:
            code = 1000
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._ws.close(code=code)
        except TimeoutError:
            self._transport.abort()
