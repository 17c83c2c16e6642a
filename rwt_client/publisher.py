"""The sending half of a client: values in, one sealed batch for each turn out, answers to their futures."""

from __future__ import annotations

import asyncio
from typing import Any

from rwt_protocol.channels import Outbox, Outgoing, encode_outgoing
from rwt_protocol.codes import Level, Policy, Use
from rwt_protocol.connection import pack_messages
from rwt_protocol.errors import (
    RWTEncodingError,
    RWTError,
    RWTOutcomeUnknown,
    RWTSendError,
    RWTTimeoutError,
)
from rwt_protocol.frames import Ack, Err

from .channels import Channels
from .emitter import Emitter
from .link import Link
from .options import LEVELS, SEND_BUFFER, SendResult, require
from .refusals import refusal
from .values import encode_value
from .waiting import Waiters

_FILL_BYTES = 131_072
"""Bytes that are sealed at once: control frames wait behind these at most."""
_MOST_BEFORE_READY = 16 * 1_048_576
"""Largest message before the server has said its own limit."""

Answer = asyncio.Future[SendResult]
Item = Outgoing[tuple[Any, Answer]]


class Publisher:
    """The outbox of one client, and what callers wait for."""

    def __init__(self, emitter: Emitter, channels: Channels, policy: Policy) -> None:
        self.link: Link | None = None
        self.latency: float | None = None
        """Seconds from a message to its answer, or of a PING."""
        self.room = Waiters()
        """Those who wait for anything to be answered or handled."""
        self.bytes_given = 0
        self.bytes_sent = 0
        self._emitter = emitter
        self._channels = channels
        self._policy = policy
        self._outbox: Outbox[tuple[Any, Answer]] = Outbox()
        self._later: dict[Item, asyncio.TimerHandle] = {}
        """Messages that the server asked to have again after a while."""

    @property
    def pending(self) -> int:
        """Messages that are queued or not answered yet."""
        return len(self._outbox) + len(self._later)

    async def settled(self, channel: str) -> None:
        """Wait until nothing of a channel is queued or unanswered, as long as there is a connection."""
        while self.link is not None and channel in self._outbox.channels():
            await self.room.add()

    # --- what callers do ---

    def compose(self, data: Any, channel: str, encrypt: bool | None, encryption_level: str) -> Item:
        """Check and encode a message; nothing is sent yet."""
        self._channels.use(channel)
        require(
            encryption_level in LEVELS, "encryption_level", encryption_level, f"one of {', '.join(LEVELS)}"
        )
        level = LEVELS[encryption_level]
        if encrypt is False:
            if level is not Level.STANDARD:
                raise ValueError(
                    f"encrypt=False and encryption_level={encryption_level!r} exclude each other"
                )
            for whose, policy in (("this client's", self._policy), ("the server's", self._server_policy)):
                if policy is Policy.ALWAYS:
                    raise RWTSendError(
                        f"encrypt=False is against {whose} policy 'always'", code="policy", operation="send"
                    )
            level = Level.CLEAR
        elif encrypt is None and level is Level.STANDARD and self._policy is Policy.NEVER:
            level = Level.CLEAR
        form, body = encode_value(data)
        most = self.link.conn.max_message if self.link is not None else _MOST_BEFORE_READY
        if len(body) > most:
            raise RWTEncodingError(
                f"a message of {len(body)} bytes is over the server's limit of {most}: split it",
                code="too-large",
                operation="send",
                details={"size": len(body), "limit": most},
            )
        answer: Answer = asyncio.get_running_loop().create_future()
        return Outgoing(channel, body, form, level, (data, answer))

    @property
    def _server_policy(self) -> Policy:
        return self.link.conn.server_policy if self.link is not None else Policy.AUTO

    def put(self, message: Item) -> Answer:
        """Queue a message; opens its channel for sending."""
        self._channels.want(message.channel, Use.PUBLISH)
        self._outbox.put(message)
        self._wake()
        return message.context[1]

    def put_nowait(self, message: Item) -> Answer:
        """As `put`, but refuse when too much is under way."""
        if not self._fits(message):
            raise RWTSendError(
                f"{self._outbox.size} bytes are queued or unanswered: wait for earlier results",
                code="buffer-full",
                operation="send",
                details={"bytes": self._outbox.size, "limit": SEND_BUFFER},
            )
        return self.put(message)

    async def put_and_wait(self, message: Item, timeout: float | None) -> SendResult:
        """Wait for room, queue the message, wait for its answer."""
        answer = message.context[1]
        try:
            async with asyncio.timeout(timeout):
                while not self._fits(message):
                    await self.room.add()
                return await self.put(message)
        except TimeoutError:
            raise RWTTimeoutError(
                f"no answer within {timeout} s",
                operation="send",
                details={"sent": bool(message.mid), "channel": message.channel},
            ) from None
        finally:
            if not answer.done() or answer.cancelled():
                # Given up by its caller: withdrawn, if it has not left yet.
                answer.cancel()
                self._outbox.discard(message)
                self.room.tell()

    def _fits(self, message: Item) -> bool:
        return not len(self._outbox) or self._outbox.size + len(message.body) <= SEND_BUFFER

    def _wake(self) -> None:
        if self.link is not None:
            self.link.wake()

    # --- what the connection does ---

    def opened(self, link: Link) -> None:
        """A session is open on `link`."""
        self._outbox.window = link.conn.window
        self.link = link

    def fill(self) -> None:
        """Seal what may leave now: one batch for each run of messages on a channel."""
        if self.link is None:
            return
        now = self.link.now()
        run: list[Item] = []
        for message in self._outbox.take(self._channels.is_open, _FILL_BYTES):
            if run and (run[0].channel != message.channel or run[0].level is not message.level):
                self._seal(self.link, run)
                run = []
            message.sent_at = now
            run.append(message)
        if run:
            self._seal(self.link, run)

    def _seal(self, link: Link, run: list[Item]) -> None:
        encoded = []
        for message in run:
            data = encode_outgoing(message)
            message.sent_size = len(data)
            self.bytes_given += len(message.body)
            self.bytes_sent += len(message.body)
            encoded.append(data)
        stream, level = self._channels.stream(run[0].channel), run[0].level
        if level is Level.CLEAR and link.conn.server_policy is Policy.ALWAYS:
            level = Level.STANDARD  # composed before this server had said what it wants
        for flags, payload, _ in pack_messages(encoded, level, link.conn.window):
            link.conn.send_message(flags, stream, payload)

    def on_ack(self, ack: Ack) -> None:
        """Take ACK."""
        now = self.link.now() if self.link is not None else 0.0
        tell = self._emitter.subscriptions.has("send")
        for message, _, offset, stored_ms in self._outbox.acknowledged(ack):
            data, answer = message.context
            self.latency = now - message.sent_at
            if answer.done():
                continue
            result = SendResult(
                message_id=message.mid,
                channel=message.channel,
                offset=offset,
                timestamp=stored_ms / 1000,
                size=message.sent_size,
                round_trip=self.latency,
            )
            answer.set_result(result)
            if tell:
                self._emitter.emit("send", data, result)
        self._wake()  # the window has room again
        self.room.tell()

    def on_refused(self, err: Err) -> None:
        """Take the ERR of a message."""
        message = self._outbox.remove(err.mid or 0)
        if message is None:
            return
        if err.retry_after_ms is not None:
            message.mid = 0
            loop = asyncio.get_running_loop()
            self._later[message] = loop.call_later(err.retry_after_ms / 1000, self._again, message)
        else:
            _settle(message, refusal(err.code, err.text, f"a message on {message.channel!r}", "send"))
        self.room.tell()

    def _again(self, message: Item) -> None:
        del self._later[message]
        if not message.context[1].done():
            self._outbox.put(message, front=True)
            self._wake()

    def disconnected(self) -> None:
        """The connection is gone: what has no answer is sent again first on the next one."""
        self.link = None
        self.room.tell()
        self._outbox.reconnecting()

    def session_lost(self, why: str) -> None:
        """The session cannot be resumed: what was sent without an answer has an unknown outcome."""
        for message in self._outbox.forget_session():
            _settle(
                message,
                RWTOutcomeUnknown(
                    f"the session ended before the answer came ({why}): the message may or may not be stored",
                    operation="send",
                    details={"channel": message.channel},
                ),
            )
        self.room.tell()

    def give_up(self, channel: str, error: RWTError) -> bool:
        """A channel was refused: fail its messages; returns whether there were any."""
        sent, queued = self._outbox.give_up(channel)
        for message in sent:
            _settle(message, RWTOutcomeUnknown(str(error), operation="send", details=error.details))
        for message in queued:
            _settle(message, error)
        self.room.tell()
        return bool(sent or queued)

    def fail(self, error: RWTError) -> None:
        """The server will not be reached: fail all that is queued, and those who wait for room."""
        for channel in self._outbox.channels():
            self.give_up(channel, error)
        later, self._later = self._later, {}
        for message, timer in later.items():
            timer.cancel()
            _settle(message, error)
        self.room.tell(error)


def _settle(message: Item, error: RWTError) -> None:
    answer = message.context[1]
    if not answer.done():
        answer.set_exception(error)
