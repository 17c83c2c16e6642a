"""`RWTClient`: one session over connections that come and go."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rwt_protocol import ClientRules, ClientSession
from rwt_protocol.channels import (
    Answered,
    Channel,
    ChannelState,
    Outbox,
    Outgoing,
    check_name,
    encode_outgoing,
)
from rwt_protocol.codes import AfterClose, CloseCode, ErrorCode, GapReason, Level, Policy, Use, Warning
from rwt_protocol.connection import pack_messages
from rwt_protocol.errors import (
    RWTAuthenticationError,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTEncodingError,
    RWTError,
    RWTOutcomeUnknown,
    RWTProtocolError,
    RWTSendError,
    RWTTimeoutError,
)
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
    GapFound,
    Opened,
    Refused,
    Rotated,
    RoundTrip,
    StreamClosed,
    Subscribed,
    Warned,
)
from rwt_protocol.frames import Err, Gap, RotationTerms
from rwt_protocol.key_schedule import sender_id
from rwt_protocol.suites import PublicKey

from .channel import RWTChannel
from .dragonfire import DragonFireClient
from .inbox import ChannelInbox, MessageStream, to_message
from .link import Link
from .options import (
    LEVELS,
    MAX_UNHANDLED,
    SEND_BUFFER,
    Lost,
    Message,
    Reconnection,
    RWTConnection,
    RWTConnectionStatus,
    SendResult,
    TokenRotation,
    require,
)
from .reconnect import Classifier, Ending, delays
from .subscriptions import Handler, Subscriptions
from .transport import HTTPRefusal
from .values import encode_value

log = logging.getLogger("rwt_client")

_FILL_BYTES = 131_072
"""Bytes that are sealed at once: control frames wait behind these at most."""
_NAME = ("dragonfire-rwt", "0.1.0")

Answer = asyncio.Future[SendResult]


@dataclass(slots=True)
class _ChannelUse:
    """What the client keeps of one channel across connections."""

    core: Channel
    inbox: ChannelInbox
    history: int = 0
    opening: list[asyncio.Future[None]] = field(default_factory=list)
    closing: list[asyncio.Future[None]] = field(default_factory=list)
    dispatcher: asyncio.Task[None] | None = None


class RWTClient:
    """Secure realtime messaging over one WebSocket at a time.

    Args:
        dragonfire: Where the service is and who we are.
        pins: Identity keys of the server; given, it must prove one of them (`pinned` mode).
        policy: `auto`, `always` or `never`: encryption where a message says nothing. Every frame is
            authenticated in any case.

    Events, for `on`: `connect(RWTConnection)`, `disconnect(code, reason)`, `reconnect(attempt, success)`,
    `error(exception)`, `message(data, metadata)`, `message:{channel}(data, metadata)`,
    `send(data, SendResult)`, `token-rotate(dict)`, `key-rotate(dict)`, `security-warning(dict)`,
    `resume(RWTConnection)`, `gap(Lost)`, `pressure(dict)`, `giving-up(exception)`.
    """

    def __init__(
        self,
        dragonfire: DragonFireClient,
        *,
        pins: frozenset[PublicKey] = frozenset(),
        policy: str = "auto",
    ) -> None:
        names = [known.name.lower() for known in Policy]
        require(policy in names, "policy", policy, f"one of {', '.join(names)}")
        self._dragonfire = dragonfire
        self._pins = frozenset(pins)
        self._policy = Policy[policy.upper()]
        self._rotation: TokenRotation | None = None
        self._reconnection = Reconnection()
        self._subscriptions = Subscriptions()
        self._channels: dict[str, _ChannelUse] = {}
        self._refs: dict[int, str] = {}
        self._next_ref = 1
        self._outbox: Outbox[tuple[Any, Answer]] = Outbox()
        self._room: list[asyncio.Future[None]] = []
        self._session: ClientSession | None = None
        self._url = ""
        self._own_id = b""
        self._link: Link | None = None
        self._connection: RWTConnection | None = None
        self._connected_at = 0.0
        self._latency: float | None = None
        self._rotations = 0
        self._reconnects = 0
        self._bodies = 0
        self._sent = 0
        self._warned: list[str] = []
        self._failure: RWTError | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[RWTConnection] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._ending: tuple[int, str] | None = None

    # --- configuration ---

    def configure_token_rotation(
        self, *, interval: float = 60.0, pattern: str = "fibonacci", renew_threshold: float = 0.8
    ) -> None:
        """Ask the server for a rotation schedule; takes effect with the next connection.

        What it grants is in `RWTConnection.rotation`. See `TokenRotation` for units and limits.

        Raises:
            ValueError: a value is out of range.
        """
        self._rotation = TokenRotation(interval=interval, pattern=pattern, renew_threshold=renew_threshold)

    def configure_reconnection(
        self,
        *,
        enabled: bool = True,
        max_attempts: int | None = None,
        base_delay: float = 1.0,
        max_delay: float = 30.0,
        backoff_factor: float = 1.5,
        jitter: float = 0.2,
        preserve_session: bool = True,
    ) -> None:
        """Say how to come back after a lost connection. See `Reconnection` for units and limits.

        Raises:
            ValueError: a value is out of range.
        """
        self._reconnection = Reconnection(
            enabled=enabled,
            max_attempts=max_attempts,
            base_delay=base_delay,
            max_delay=max_delay,
            backoff_factor=backoff_factor,
            jitter=jitter,
            preserve_session=preserve_session,
        )

    # --- connection ---

    async def connect(self, *, timeout: float | None = 10.0) -> RWTConnection:
        """Connect; from then on the client comes back by itself until `disconnect`.

        Args:
            timeout: Seconds; None: no limit.

        Raises:
            RWTConnectionError: the server cannot be reached, or refuses.
            RWTAuthenticationError: the credentials are refused.
            RWTTimeoutError: it took longer than `timeout`.

        Cancelling it stops the attempt and leaves nothing behind.
        """
        if self._supervisor is None:
            self._failure = None
            self._ending = None
            self._ready = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name="rwt-client")
        if self._ready is None:
            raise AssertionError("a running client has a future for its first connection")
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            await self._stop()
            raise RWTTimeoutError(
                f"connecting took longer than {timeout} s", operation="connect", details={"sent": False}
            ) from None
        except asyncio.CancelledError:
            await self._stop()
            raise
        except RWTError:
            await self._stop()
            raise

    async def disconnect(
        self,
        *,
        wait_for_pending: bool = True,
        code: int = 1000,
        reason: str = "",
        timeout: float | None = 10.0,
    ) -> None:
        """End the session and release everything.

        Args:
            wait_for_pending: Wait until all messages are answered and all received ones are handled.
            code: Close code, 1000 or 3000 to 4999; 1000 ends the session on the server too.
            reason: Told to the server, at most 100 bytes.
            timeout: Seconds to wait for pending messages; None: no limit.

        Raises:
            ValueError: `code` or `reason` cannot be used.
            RWTTimeoutError: messages were still pending; the client is disconnected all the same.
        """
        require(code == 1000 or 3000 <= code <= 4999, "code", code, "1000 or 3000 to 4999")
        require(len(reason.encode()) <= 100, "reason", reason, "at most 100 bytes")
        late = False
        if wait_for_pending and self._supervisor is not None and self._failure is None:
            try:
                async with asyncio.timeout(timeout):
                    await self._settled()
            except TimeoutError:
                late = True
        self._ending = code, reason
        if self._link is not None:
            self._link.close(code, reason, keep=False)
            if self._supervisor is not None:
                await asyncio.wait((self._supervisor,), timeout=5.0)
        await self._stop()
        if late:
            raise RWTTimeoutError(
                f"messages were still pending after {timeout} s",
                operation="disconnect",
                details={"sent": True},
            )

    async def _settled(self) -> None:
        """Wait until nothing is pending; ends at once when the client has given up."""
        while (len(self._outbox) or self._unhandled()) and self._supervisor is not None:
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._room.append(room)
            await asyncio.wait((room, self._supervisor), return_when=asyncio.FIRST_COMPLETED)
            if self._supervisor is not None and self._supervisor.done():
                return

    def _unhandled(self) -> int:
        # Iterators that nobody reads any more must not hold the goodbye back.
        return sum(use.inbox.waiting for use in self._channels.values())

    async def _stop(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        doomed = [task for task in (supervisor, *self._tasks) if task is not None]
        doomed += [use.dispatcher for use in self._channels.values() if use.dispatcher is not None]
        current = asyncio.current_task()
        doomed = [task for task in doomed if task is not current]
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        for use in self._channels.values():
            use.dispatcher = None
        if self._ready is not None and not self._ready.done():
            self._ready.cancel()
        self._session = None
        self._drop_all(RWTDisconnectedError("the client was disconnected", operation="send"), None)
        await self._dragonfire.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect(wait_for_pending=kind is None)

    def get_status(self) -> RWTConnectionStatus:
        """Return the state of the connection, now."""
        connection, link = self._connection, self._link
        up = 0.0 if connection is None else asyncio.get_running_loop().time() - self._connected_at
        if connection is not None:
            state = "connected"
        elif self._failure is not None:
            state = "error"
        else:
            state = "disconnected" if self._supervisor is None else "connecting"
        return RWTConnectionStatus(
            state=state,  # type: ignore[arg-type]
            latency=self._latency,
            uptime=up,
            token_rotations=self._rotations,
            compression_ratio=self._sent / self._bodies if self._bodies else 1.0,
            reconnects=self._reconnects,
            epoch=link.conn.epoch if link is not None else 0,
            pending=len(self._outbox),
            connection_id=connection.connection_id if connection is not None else None,
        )

    # --- the supervisor: one connection after another ---

    async def _supervise(self) -> None:
        classifier = Classifier()
        waits = delays(self._reconnection, random.random)
        attempt = 0
        try:
            while True:
                opened_before = self._connection_count
                ending = await self._attempt(classifier)
                if self._ending is not None:
                    return
                if self._connection_count > opened_before:
                    attempt = 0
                    waits = delays(self._reconnection, random.random)
                decision = classifier.decide(ending)
                first = self._ready is not None and not self._ready.done()
                if decision.action is AfterClose.STOP or (first and not _may_wait(ending)):
                    raise _error_of(ending, self._dragonfire)
                if decision.action is AfterClose.NEW_TICKET or not self._reconnection.preserve_session:
                    self._lose_session(ending)
                armed = ending.code == CloseCode.SUPERSEDED or Warning.SERVER_IDENTITY in self._warned
                if not self._reconnection.enabled and not first and not (armed and decision.at_once):
                    raise _error_of(ending, self._dragonfire)
                attempt += 1
                limit = self._reconnection.max_attempts
                if limit is not None and attempt > limit:
                    error = _error_of(ending, self._dragonfire)
                    self._emit("giving-up", error)
                    raise error
                if attempt > 1:
                    self._emit("reconnect", attempt - 1, False)
                if not decision.at_once:
                    await asyncio.sleep(next(waits) if ending.retry_after is None else ending.retry_after)
                self._attempts = attempt
        except RWTError as exc:
            self._give_up(exc)
        except Exception as exc:
            log.exception("the client failed")
            self._give_up(RWTConnectionError(f"the client failed: {type(exc).__name__}", operation="connect"))

    _connection_count = 0
    _attempts = 0

    async def _attempt(self, classifier: Classifier) -> Ending:
        """One connection, from the ticket to its end."""
        self._classifier = classifier
        self._warned = []
        transport = self._dragonfire.transport
        session = self._session
        if session is None or session.spent:
            if session is not None:
                self._lose_session(Ending(reason="too many attempts without an answer"))
            try:
                ticket = await self._dragonfire.ticket()
            except RWTError as exc:
                return _ending_of(exc)
            classifier.new_session()
            session = self._session = ticket.session
            self._url = ticket.url
            self._own_id = sender_id(session.sid)
        try:
            socket = await transport.open(self._url)
        except HTTPRefusal as refusal:
            return Ending(reason=str(refusal), http_status=refusal.status, retry_after=refusal.retry_after)
        except RWTConnectionError:
            raise
        except (ConnectionError, OSError) as exc:
            return Ending(reason=f"{self._url} cannot be reached: {exc}")
        rules = ClientRules(
            policy=self._policy,
            pins=self._pins,
            device_key=self._dragonfire.device_key,
            rotation=self._rotation.terms if self._rotation is not None else None,
            name=_NAME,
        )
        try:
            link = self._link = Link(socket, session, rules, os.urandom, self._on_event, self._fill)
        except RWTProtocolError as exc:
            await socket.close(1000)
            return Ending(code=exc.close_code, reason=str(exc), by_peer=False)
        self._subscribed_on: set[str] = set()
        try:
            ending = await link.run()
        finally:
            self._link = None
            self._disconnected()
        if self._connection_was is not None:
            self._connection_was = None
            self._emit("disconnect", ending.code, ending.reason)
        return ending

    _connection_was: RWTConnection | None = None

    def _disconnected(self) -> None:
        if self._connection is not None:
            self._connection_was = self._connection
        self._connection = None
        self._refs.clear()
        for use in self._channels.values():
            use.core.state = ChannelState.CLOSED
            for waiter in use.closing:
                if not waiter.done():
                    waiter.set_result(None)
            use.closing.clear()
        self._outbox.reconnecting()
        if not self._reconnection.preserve_session:
            self._drop_all(
                RWTDisconnectedError("the connection was lost", operation="send"),
                RWTOutcomeUnknown("the connection was lost before the answer came", operation="send"),
            )

    def _lose_session(self, ending: Ending) -> None:
        """The session cannot be resumed: what was sent without an answer has an unknown outcome."""
        self._session = None
        for message in self._outbox.forget_session():
            self._settle(
                message,
                RWTOutcomeUnknown(
                    "the session ended before the answer came: the message may or may not be stored",
                    operation="send",
                    details={"channel": message.channel, "close_code": ending.code},
                ),
            )
        self._make_room()

    def _give_up(self, error: RWTError) -> None:
        self._failure = error
        self._lose_session(Ending(reason=str(error)))
        self._drop_all(error, None)
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()
        else:
            self._emit("error", error)

    def _drop_all(self, error: RWTError, unknown: RWTError | None) -> None:
        """Fail everything that waits for the server."""
        for name, use in self._channels.items():
            sent, queued = self._outbox.give_up(name)
            for message in sent:
                self._settle(
                    message, unknown or RWTOutcomeUnknown(f"no answer came: {error}", operation="send")
                )
            for message in queued:
                self._settle(message, error)
            for waiter in (*use.opening, *use.closing):
                if not waiter.done():
                    waiter.set_exception(error)
            use.opening.clear()
            use.closing.clear()
            if self._supervisor is None or self._failure is not None:
                use.inbox.end(self._failure)
        self._make_room()

    # --- events of the connection ---

    def _on_event(self, event: Event) -> None:
        match event:
            case Delivered():
                self._on_delivered(event)
            case Acknowledged(ack):
                for answered in self._outbox.acknowledged(ack):
                    self._on_stored(answered)
                self._make_room()
            case RoundTrip(seconds):
                self._latency = seconds
            case Subscribed(answer):
                name = self._refs.pop(answer.ref, None)
                use = self._channels.get(name) if name is not None else None
                if use is not None:
                    self._on_subscribed(use, use.core.opened(answer))
            case GapFound(notice):
                for use in self._channels.values():
                    if use.core.is_open and use.core.stream == notice.stream:
                        use.core.skip(notice.gap)
                        self._on_gap(use.core.name, notice.gap)
            case Refused(err):
                self._on_refused(err)
            case StreamClosed(closed):
                self._on_stream_closed(closed.stream, closed.ref, closed.code)
            case Rotated(epoch, rotate_ms, _):
                self._rotations += 1
                following = None if rotate_ms is None else rotate_ms / 1000
                self._emit("token-rotate", {"epoch": epoch, "next_in": following})
                self._emit("key-rotate", {"scope": "session", "epoch": epoch})
            case Warned(code, text):
                self._warned.append(str(code))
                self._emit("security-warning", {"code": str(code), "text": text})
            case Opened():
                self._on_opened(event)
            case _:
                raise AssertionError(f"{type(event).__name__} is an event of servers")
        self._subscribe_all()

    def _on_opened(self, event: Opened) -> None:
        granted = event.ready.granted
        connection = RWTConnection(
            connection_id=event.connection_id,
            epoch=event.epoch,
            resumed=event.resumed,
            rotation=None if granted is None else _granted(granted),
        )
        self._connection = connection
        self._connected_at = asyncio.get_running_loop().time()
        self._outbox.window = event.ready.window
        self._classifier.ready()
        self._connection_count += 1
        if self._connection_count > 1:
            self._reconnects += 1
            self._emit("reconnect", max(1, self._attempts), True)
        self._emit("connect", connection)
        if event.resumed:
            self._emit("resume", connection)
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(connection)

    def _subscribe_all(self) -> None:
        """Send one SUB for every channel that the application wants and this connection does not have."""
        link = self._link
        if link is None or not link.conn.can_subscribe:
            return
        for use in self._channels.values():
            core = use.core
            if core.state is ChannelState.CLOSED and core.wanted is not Use.PAUSED:
                self._sub(use, self._use_now(use))

    def _use_now(self, use: _ChannelUse) -> Use:
        """What to ask for now: no receiving while too much waits for its handlers."""
        core = use.core
        return Use(core.wanted & ~Use.RECEIVE) if use.inbox.unhandled > MAX_UNHANDLED else core.wanted

    def _sub(self, use: _ChannelUse, wanted: Use) -> None:
        link = self._link
        if link is None:
            return
        ref = self._next_ref
        self._next_ref += 1
        self._refs[ref] = use.core.name
        link.conn.subscribe(use.core.subscribe(ref, use=wanted, history=use.history or None))
        link.wake()

    def _on_subscribed(self, use: _ChannelUse, gap: Gap | None) -> None:
        if gap is not None:
            self._on_gap(use.core.name, gap)
        for waiter in use.opening:
            if not waiter.done():
                waiter.set_result(None)
        use.opening.clear()
        self._relieve(use)
        if self._link is not None:
            self._link.wake()

    def _on_gap(self, name: str, gap: Gap) -> None:
        self._emit(
            "gap",
            Lost(
                channel=name,
                reason=GapReason(gap.reason).name.lower().replace("_", "-")
                if gap.reason in set(GapReason)
                else str(gap.reason),
                first=gap.first,
                last=gap.last or None,
            ),
        )

    def _on_refused(self, err: Err) -> None:
        if err.ref is not None:
            name = self._refs.pop(err.ref, None)
            if name is not None:
                self._channel_lost(name, _refusal(err.code, err.text, f"channel {name!r}"))
            return
        message = self._outbox.remove(err.mid or 0)
        if message is None:
            return
        if err.retry_after_ms is not None:
            message.mid = 0
            asyncio.get_running_loop().call_later(err.retry_after_ms / 1000, self._again, message)
        else:
            self._settle(message, _refusal(err.code, err.text, f"a message on {message.channel!r}"))
        self._make_room()

    def _again(self, message: Outgoing[tuple[Any, Answer]]) -> None:
        self._outbox.put(message, front=True)
        if self._link is not None:
            self._link.wake()

    def _on_stream_closed(self, stream: int, ref: int | None, code: int) -> None:
        if ref is not None:
            self._refs.pop(ref, None)
        for name, use in list(self._channels.items()):
            if use.core.is_open and use.core.stream == stream:
                use.core.state = ChannelState.CLOSED
                if code:
                    self._channel_lost(name, _refusal(code, None, f"channel {name!r}"))
                for waiter in use.closing:
                    if not waiter.done():
                        waiter.set_result(None)
                use.closing.clear()

    def _channel_lost(self, name: str, error: RWTError) -> None:
        use = self._channels[name]
        use.core.state = ChannelState.CLOSED
        use.core.wanted = Use.PAUSED
        sent, queued = self._outbox.give_up(name)
        for message in sent:
            self._settle(message, RWTOutcomeUnknown(str(error), operation="send", details=error.details))
        for message in queued:
            self._settle(message, error)
        waiting, use.opening = use.opening, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
        use.inbox.end(error)
        if not waiting and not sent and not queued:
            self._emit("error", error)
        self._make_room()

    # --- sending ---

    async def send(
        self,
        data: Any,
        *,
        channel: str = "default",
        encrypt: bool | None = None,
        encryption_level: str = "standard",
        timeout: float | None = None,
    ) -> SendResult:
        """Send a message and wait until the server has stored it.

        Args:
            data: Bytes-like, text, or a JSON value; arrives as what it was sent as.
            channel: Opened for sending if it is not open.
            encrypt: False: authenticated clear text, if both sides' policies permit it; None: the policy.
            encryption_level: `standard`; `high` hides the length; `maximum` uses one key for each message.
            timeout: Seconds; None: no limit. `details["sent"]` of the error says whether anything left.

        Raises:
            RWTEncodingError: the value cannot be encoded, or is too large; nothing was sent.
            RWTSendError: the server refused the message; `code` says why.
            RWTOutcomeUnknown: the session ended before the answer came.
            RWTDisconnectedError: the client is not connected and does not reconnect.
            RWTTimeoutError: no answer in time.

        Waits while more than 4 MiB are queued or unanswered. Cancelling it withdraws a message that has not
        left yet; one that has is stored or not, as the server decides.
        """
        message = self._compose(data, channel, encrypt, encryption_level)
        answer = message.context[1]
        try:
            async with asyncio.timeout(timeout):
                while self._outbox.size + len(message.body) > SEND_BUFFER and len(self._outbox):
                    self._check_running("send")
                    room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._room.append(room)
                    await room
                self._put(message)
                return await answer
        except TimeoutError:
            raise RWTTimeoutError(
                f"no answer within {timeout} s",
                operation="send",
                details={"sent": bool(message.mid), "channel": channel},
            ) from None
        finally:
            if not answer.done() or answer.cancelled():
                answer.cancel()
                self._outbox.discard(message)
                self._make_room()

    def send_nowait(
        self,
        data: Any,
        *,
        channel: str = "default",
        encrypt: bool | None = None,
        encryption_level: str = "standard",
    ) -> asyncio.Future[SendResult]:
        """Queue a message and return a future of its `SendResult`: for many messages without many tasks.

        Raises:
            RWTSendError: more than 4 MiB are queued or unanswered (`code` is `buffer-full`).
            RWTEncodingError, RWTDisconnectedError: as `send`.
        """
        message = self._compose(data, channel, encrypt, encryption_level)
        if self._outbox.size + len(message.body) > SEND_BUFFER and len(self._outbox):
            raise RWTSendError(
                f"{self._outbox.size} bytes are queued or unanswered: wait for earlier results",
                code="buffer-full",
                operation="send",
                details={"bytes": self._outbox.size, "limit": SEND_BUFFER},
            )
        self._put(message)
        return message.context[1]

    def _compose(
        self, data: Any, channel: str, encrypt: bool | None, encryption_level: str
    ) -> Outgoing[tuple[Any, Answer]]:
        self._check_running("send")
        _check_channel(channel)
        require(
            encryption_level in LEVELS, "encryption_level", encryption_level, f"one of {', '.join(LEVELS)}"
        )
        level = LEVELS[encryption_level]
        if encrypt is False or (encrypt is None and self._policy is Policy.NEVER):
            if level is not Level.STANDARD and encrypt is False:
                raise ValueError(
                    f"encrypt=False and encryption_level={encryption_level!r} exclude each other"
                )
            if self._policy is Policy.ALWAYS:
                raise RWTSendError(
                    "encrypt=False is against this client's policy 'always'", code="policy", operation="send"
                )
            level = Level.CLEAR if level is Level.STANDARD else level
        form, body = encode_value(data)
        most = self._link.conn.max_message if self._link is not None else 16 * 1_048_576
        if len(body) > most:
            raise RWTEncodingError(
                f"a message of {len(body)} bytes is over the server's limit of {most}: split it",
                code="too-large",
                operation="send",
                details={"size": len(body), "limit": most},
            )
        answer: Answer = asyncio.get_running_loop().create_future()
        return Outgoing(channel, body, form, level, (data, answer))

    def _check_running(self, operation: str) -> None:
        if self._failure is not None:
            raise self._failure
        if self._supervisor is None or (
            self._connection is None
            and self._ready is not None
            and self._ready.done()
            and not self._reconnection.preserve_session
        ):
            raise RWTDisconnectedError("the client is not connected: call connect()", operation=operation)

    def _put(self, message: Outgoing[tuple[Any, Answer]]) -> None:
        self._check_running("send")
        use = self._use(message.channel)
        if not use.core.wanted & Use.PUBLISH:
            self._want(use, Use.PUBLISH)
        self._outbox.put(message)
        if self._link is not None:
            self._link.wake()

    def _fill(self) -> None:
        """Seal what may leave now: one batch for each run of messages on a channel."""
        link = self._link
        if link is None:
            return
        now = link.now()
        run: list[Outgoing[tuple[Any, Answer]]] = []
        for message in self._outbox.take(self._is_open, _FILL_BYTES):
            if run and (run[0].channel != message.channel or run[0].level is not message.level):
                self._seal(link, run)
                run = []
            message.sent_at = now
            run.append(message)
        if run:
            self._seal(link, run)

    def _is_open(self, name: str) -> bool:
        return self._channels[name].core.is_open

    def _seal(self, link: Link, run: list[Outgoing[tuple[Any, Answer]]]) -> None:
        encoded = []
        for message in run:
            data = encode_outgoing(message)
            message.sent_size = len(data)
            self._bodies += len(message.body)
            self._sent += len(message.body)
            encoded.append(data)
        stream = self._channels[run[0].channel].core.stream
        for flags, payload, _ in pack_messages(encoded, run[0].level, link.conn.window):
            link.conn.send_message(flags, stream, payload)

    def _on_stored(self, answered: Answered[tuple[Any, Answer]]) -> None:
        message = answered.message
        data, answer = message.context
        if answer.done():
            return
        result = SendResult(
            message_id=message.mid,
            channel=message.channel,
            offset=answered.offset,
            timestamp=answered.stored_ms / 1000,
            size=message.sent_size,
            round_trip=(self._link.now() if self._link is not None else message.sent_at) - message.sent_at,
        )
        self._latency = result.round_trip
        answer.set_result(result)
        if self._subscriptions.has("send"):
            self._emit("send", data, result)

    def _settle(self, message: Outgoing[tuple[Any, Answer]], error: RWTError) -> None:
        answer = message.context[1]
        if not answer.done():
            answer.set_exception(error)

    def _make_room(self) -> None:
        waiting, self._room = self._room, []
        for room in waiting:
            if not room.done():
                room.set_result(None)

    # --- channels ---

    def create_channel(self, name: str) -> RWTChannel:
        """Return a channel; it is opened by `open()`, `async with`, or by receiving from it.

        Raises:
            ValueError: the name cannot be used.
        """
        self._use(name)
        return RWTChannel(self, name)

    def get_channels(self) -> list[RWTChannel]:
        """Return the channels that are open on the current connection."""
        return [RWTChannel(self, name) for name, use in self._channels.items() if use.core.is_open]

    def is_channel_active(self, name: str) -> bool:
        """Whether a channel is open on the current connection."""
        return name in self._channels and self._channels[name].core.is_open

    async def open_channel(self, name: str, *, history: int = 0, timeout: float | None = 10.0) -> None:
        """Open a channel for sending and receiving; see `RWTChannel.open`."""
        require(history >= 0, "history", history, "0 or more")
        self._check_running("open")
        use = self._use(name)
        use.history = history
        if use.core.wanted is Use.BOTH and use.core.is_open:
            return
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        use.opening.append(opened)
        self._want(use, Use.BOTH)
        try:
            async with asyncio.timeout(timeout):
                await opened
        except TimeoutError:
            raise RWTTimeoutError(
                f"channel {name!r} was not opened within {timeout} s",
                operation="open",
                details={"sent": True},
            ) from None

    async def close_channel(self, name: str, *, timeout: float | None = 10.0) -> None:
        """Close a channel; see `RWTChannel.close`."""
        use = self._channels.get(name)
        if use is None:
            return
        link, core = self._link, use.core
        core.wanted = Use.PAUSED
        use.inbox.end(None)
        if use.dispatcher is not None and use.dispatcher is not asyncio.current_task():
            use.dispatcher.cancel()
        use.dispatcher = None
        use.inbox = self._new_inbox(name)
        if link is None or not core.is_open:
            return
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        use.closing.append(closed)
        ref, self._next_ref = self._next_ref, self._next_ref + 1
        link.conn.unsubscribe(ref, core.stream)
        link.wake()
        try:
            async with asyncio.timeout(timeout):
                await closed
        except TimeoutError:
            raise RWTTimeoutError(
                f"channel {name!r} was not closed within {timeout} s",
                operation="close",
                details={"sent": True},
            ) from None

    def _use(self, name: str) -> _ChannelUse:
        use = self._channels.get(name)
        if use is None:
            _check_channel(name)
            use = self._channels[name] = _ChannelUse(Channel(name), self._new_inbox(name))
        return use

    def _new_inbox(self, name: str) -> ChannelInbox:
        return ChannelInbox(lambda: self._relieve(self._channels[name]))

    def _want(self, use: _ChannelUse, more: Use) -> None:
        use.core.wanted = Use(use.core.wanted | more)
        if use.core.is_open:
            self._sub(use, self._use_now(use))
        else:
            self._subscribe_all()

    # --- receiving ---

    def _on_delivered(self, event: Delivered) -> None:
        for use in self._channels.values():
            if use.core.is_open and use.core.stream == event.stream:
                break
        else:
            return  # closed by us; the server does not know yet
        fresh = use.core.accept(event.entries)
        if not use.core.wanted & Use.RECEIVE:
            return
        use.inbox.put(event, fresh)
        if use.dispatcher is None:
            loop = asyncio.get_running_loop()
            use.dispatcher = loop.create_task(self._dispatch(use), name=f"rwt-dispatch {use.core.name}")
        self._relieve(use)

    def _relieve(self, use: _ChannelUse) -> None:
        """Pause a channel whose messages are handled too slowly, and open it again below half."""
        core = use.core
        if core.state is not ChannelState.OPEN or not core.wanted & Use.RECEIVE:
            self._make_room()
            return
        receiving = bool(core.use & Use.RECEIVE)
        if receiving and use.inbox.unhandled > MAX_UNHANDLED:
            self._emit("pressure", {"channel": core.name, "unhandled": use.inbox.unhandled})
            self._sub(use, Use(core.wanted & ~Use.RECEIVE))
        elif not receiving and use.inbox.unhandled < MAX_UNHANDLED // 2:
            self._sub(use, core.wanted)
        self._make_room()

    async def _dispatch(self, use: _ChannelUse) -> None:
        """Hand the messages of one channel to handlers, one after another."""
        name, inbox = use.core.name, use.inbox
        while True:
            level, entry = await inbox.next()
            try:
                message = to_message(name, level, entry, self._own_id)
            except RWTError as exc:
                self._emit("error", exc)
            else:
                inbox.give(message)
                for event in ("message", f"message:{name}"):
                    if self._subscriptions.has(event):
                        await self._call(event, message.data, message.metadata)
            inbox.handled(len(entry.body))

    def messages(self, channel: str = "default") -> MessageStream:
        """Return an iterator over the messages of a channel from now on; opens it to receive.

        It survives reconnects and ends when the channel is closed, the client is disconnected, or gives up
        (then it raises why). What waits in it counts for back-pressure: read it, or `close()` it.
        """
        self._check_running("receive")
        use = self._use(channel)
        stream = use.inbox.open_stream()
        if not use.core.wanted & Use.RECEIVE:
            self._want(use, Use.BOTH)
        return stream

    async def wait_for_message(
        self,
        predicate: Callable[[Message], bool] | None = None,
        *,
        type: str | None = None,
        channel: str = "default",
        timeout: float | None = None,
    ) -> Message:
        """Wait for the next message of a channel that fits.

        Args:
            predicate: Called with each message.
            type: The message is a JSON object whose member "type" is this.
            timeout: Seconds; None: no limit.

        Raises:
            RWTTimeoutError: none came in time.
        """
        with_stream = self.messages(channel)
        try:
            async with asyncio.timeout(timeout):
                async for message in with_stream:
                    if type is not None and not (
                        isinstance(message.data, dict) and message.data.get("type") == type
                    ):
                        continue
                    if predicate is None or predicate(message):
                        return message
        except TimeoutError:
            raise RWTTimeoutError(
                f"no message on {channel!r} within {timeout} s", operation="wait_for_message"
            ) from None
        finally:
            with_stream.close()
        raise RWTDisconnectedError("the channel was closed", operation="wait_for_message")

    # --- events ---

    def on(
        self,
        event: str,
        handler: Handler | None = None,
        *,
        filter: Callable[[Any], bool] | None = None,
    ) -> Any:
        """Call `handler` at every `event`; without a handler, a decorator. `message:x` opens channel x.

        Handlers may be async. One that raises becomes an `error` event.

        Raises:
            ValueError: the event does not exist.
        """
        return self._listen(event, handler, filter, once=False)

    def once(
        self,
        event: str,
        handler: Handler | None = None,
        *,
        filter: Callable[[Any], bool] | None = None,
    ) -> Any:
        """As `on`, for one call."""
        return self._listen(event, handler, filter, once=True)

    def _listen(
        self, event: str, handler: Handler | None, filter: Callable[[Any], bool] | None, *, once: bool
    ) -> Any:
        def add(function: Handler) -> Handler:
            self._subscriptions.add(event, function, once=once, filter=filter)
            if event.startswith("message:"):
                use = self._use(event.removeprefix("message:"))
                if not use.core.wanted & Use.RECEIVE:
                    self._want(use, Use.BOTH)
            return function

        return add if handler is None else add(handler)

    def off(self, event: str, handler: Handler | None = None) -> None:
        """Remove a handler of an event, or all of them."""
        self._subscriptions.remove(event, handler)

    def off_all(self) -> None:
        """Remove all handlers of all events."""
        self._subscriptions.clear()

    def _emit(self, event: str, *args: Any) -> None:
        """Call handlers now; what they leave to await runs in a task of its own."""
        if event == "error" and not self._subscriptions.has("error"):
            log.error("%s", args[0], exc_info=args[0])
        for handler in self._matching(event, args[0]):
            try:
                result = handler(*args)
            except Exception as exc:
                self._handler_failed(event, exc)
            else:
                if inspect.iscoroutine(result):
                    self._background(event, result)

    async def _call(self, event: str, *args: Any) -> None:
        """Call handlers one after another and wait for each."""
        for handler in self._matching(event, args[0]):
            try:
                result = handler(*args)
                if inspect.isawaitable(result):
                    await result
            except Exception as exc:
                self._handler_failed(event, exc)

    def _matching(self, event: str, first: Any) -> list[Handler]:
        try:
            return self._subscriptions.matching(event, first)
        except Exception as exc:
            self._handler_failed(event, exc)
            return []

    def _background(self, event: str, coroutine: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await coroutine
            except Exception as exc:
                self._handler_failed(event, exc)

        task = asyncio.get_running_loop().create_task(run(), name=f"rwt-handler {event}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _handler_failed(self, event: str, exc: Exception) -> None:
        if event == "error":
            log.error("a handler of the error event failed", exc_info=exc)
        else:
            self._emit("error", exc)


def _check_channel(name: str) -> None:
    problem = check_name(name)
    if problem is not None:
        raise ValueError(f"channel {name!r} cannot be used: {problem}")


def _granted(terms: RotationTerms) -> TokenRotation | None:
    # A server may grant what this client would not ask for; it is told as it is.
    granted = object.__new__(TokenRotation)
    object.__setattr__(granted, "interval", terms.interval_ms / 1000)
    object.__setattr__(granted, "pattern", terms.pattern)
    object.__setattr__(granted, "renew_threshold", terms.threshold / 1000)
    return granted


def _refusal(code: int, text: str | None, what: str) -> RWTSendError:
    name = ErrorCode(code).name.lower().replace("_", "-") if code in set(ErrorCode) else str(code)
    kind = RWTOutcomeUnknown if code == ErrorCode.OUTCOME_UNKNOWN else RWTSendError
    return kind(
        f"the server refused {what}: {name}" + (f" ({text})" if text else ""),
        code=name,
        operation="send",
        details={"error_code": code},
    )


def _may_wait(ending: Ending) -> bool:
    """Whether a first connection goes on trying: the server is there and asks for patience."""
    return ending.http_status in (429, 503) or ending.code in (
        CloseCode.SUPERSEDED,
        CloseCode.RATE,
        CloseCode.DRAINING,
    )


def _ending_of(exc: RWTError) -> Ending:
    status = exc.details.get("http_status")
    if isinstance(exc, RWTConnectionError) and not isinstance(status, int):
        if exc.code in ("unreachable",):
            return Ending(reason=str(exc))
        raise exc
    return Ending(
        reason=str(exc),
        http_status=status if isinstance(status, int) else 401,
        retry_after=exc.retry_after,
    )


def _error_of(ending: Ending, dragonfire: DragonFireClient) -> RWTError:
    details = {"close_code": int(ending.code), "http_status": ending.http_status}
    if ending.http_status in (401, 403) or ending.code in (
        CloseCode.AUTHENTICATION_FAILED,
        CloseCode.REVOKED,
    ):
        text = ending.reason or "the session is revoked"
        return RWTAuthenticationError(text, operation="connect", details=details)
    text = ending.reason or f"the connection was closed with code {int(ending.code)}"
    return RWTConnectionError(text, operation="connect", details=details, retry_after=ending.retry_after)


__all__ = ["RWTClient"]
