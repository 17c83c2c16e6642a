"""`RWTClient`: what applications use. One session over connections that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, overload

from rwt_protocol.codes import Policy
from rwt_protocol.errors import RWTDisconnectedError, RWTError, RWTSendError, RWTTimeoutError
from rwt_protocol.suites import PublicKey

from .channel import RWTChannel
from .channels import Channels
from .dragonfire import DragonFireClient
from .emitter import Emitter
from .inbox import MessageStream
from .options import (
    ConnectionState,
    Message,
    Reconnection,
    RWTConnection,
    RWTConnectionStatus,
    SendResult,
    TokenRotation,
    require,
)
from .publisher import Publisher
from .subscriptions import Filter, H, Handler
from .supervisor import Supervisor

_GOODBYE = 5.0
"""Seconds that saying goodbye may take."""


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
        chosen = Policy[policy.upper()]
        self._dragonfire = dragonfire
        self._emitter = Emitter()
        self._channels = Channels(self._emitter, self._channel_lost, self._handled)
        self._publisher = Publisher(self._emitter, self._channels, chosen)
        self._supervisor = Supervisor(
            dragonfire, self._emitter, self._channels, self._publisher, chosen, frozenset(pins)
        )
        self._task: asyncio.Task[None] | None = None
        self._opened: asyncio.Future[RWTConnection] | None = None

    def _channel_lost(self, name: str, error: RWTError) -> bool:
        return self._publisher.give_up(name, error)

    def _handled(self) -> None:
        self._publisher.room.tell()

    # --- configuration ---

    def configure_token_rotation(
        self, *, interval: float = 60.0, pattern: str = "fibonacci", renew_threshold: float = 0.8
    ) -> None:
        """Ask the server for a rotation schedule; takes effect with the next connection.

        What it grants is in `RWTConnection.rotation`. See `TokenRotation` for units and limits.

        Raises:
            ValueError: a value is out of range.
        """
        self._supervisor.rotation = TokenRotation(
            interval=interval, pattern=pattern, renew_threshold=renew_threshold
        )

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
        """Say how to come back after a lost connection; takes effect with the next `connect`.

        See `Reconnection` for units and limits.

        Raises:
            ValueError: a value is out of range.
        """
        self._supervisor.reconnection = Reconnection(
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
        if self._task is not None and self._task.done():
            await self._stop()  # it had given up
        if self._task is None:
            self._dragonfire.hold()
            self._supervisor.failure = None
            loop = asyncio.get_running_loop()
            self._opened = loop.create_future()
            self._task = loop.create_task(self._supervisor.run(self._opened), name="rwt-client")
        if self._opened is None:
            raise AssertionError("a running client has a future for its first connection")
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._opened)
        except TimeoutError:
            await self._stop()
            raise RWTTimeoutError(
                f"connecting took longer than {timeout} s", operation="connect", details={"sent": False}
            ) from None
        except (asyncio.CancelledError, RWTError):
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
        """End the session and release everything. A client that is not connected does nothing.

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
        late = wait_for_pending and not await self._settled(timeout)
        if self._supervisor.link is not None and self._task is not None:
            self._supervisor.say_goodbye(code, reason)
            await asyncio.wait((self._task,), timeout=_GOODBYE)
        await self._stop()
        if late:
            raise RWTTimeoutError(
                f"messages were still pending after {timeout} s",
                operation="disconnect",
                details={"sent": True},
            )

    async def _settled(self, timeout: float | None) -> bool:
        """Wait until nothing is pending; False if that took too long."""
        task = self._task
        try:
            async with asyncio.timeout(timeout):
                while task is not None and not task.done():
                    if not self._publisher.pending and not self._channels.waiting:
                        break
                    room = self._publisher.room.add()
                    await asyncio.wait((room, task), return_when=asyncio.FIRST_COMPLETED)
                    if room.done():
                        room.exception()  # that the client gave up is found by the loop
        except TimeoutError:
            return False
        return True

    async def _stop(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(
                RWTDisconnectedError("the client was disconnected while connecting", operation="connect")
            )
            self._opened.exception()  # perhaps nobody waits for it
        await self._channels.stop()
        await self._emitter.stop()
        self._supervisor.forget()
        await self._dragonfire.release()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.disconnect(wait_for_pending=kind is None)

    def get_status(self) -> RWTConnectionStatus:
        """Return the state of the connection, now."""
        supervisor, publisher = self._supervisor, self._publisher
        connection, link = supervisor.connection, supervisor.link
        state: ConnectionState = "connecting"
        if connection is not None:
            state = "connected"
        elif supervisor.failure is not None:
            state = "error"
        elif self._task is None:
            state = "disconnected"
        return RWTConnectionStatus(
            state=state,
            latency=publisher.latency,
            uptime=link.now() - supervisor.connected_at if link is not None and connection else 0.0,
            token_rotations=supervisor.rotations,
            compression_ratio=publisher.bytes_sent / publisher.bytes_given if publisher.bytes_given else 1.0,
            reconnects=supervisor.reconnects,
            epoch=link.conn.epoch if link is not None else 0,
            pending=publisher.pending,
            connection_id=connection.connection_id if connection is not None else None,
        )

    async def ping(self, *, timeout: float | None = 10.0) -> float:
        """Measure a round trip to the server, in seconds.

        Raises:
            RWTDisconnectedError: there is no connection.
            RWTTimeoutError: no answer in time.
        """
        link = self._supervisor.link
        if link is None or not link.conn.is_open:
            raise RWTDisconnectedError("the client is not connected", operation="ping")
        link.ping()
        try:
            async with asyncio.timeout(timeout):
                await self._supervisor.pongs.add()
        except TimeoutError:
            raise RWTTimeoutError(f"no answer within {timeout} s", operation="ping") from None
        return self._publisher.latency or 0.0

    def _check_running(self, operation: str) -> None:
        supervisor = self._supervisor
        if supervisor.failure is not None:
            raise supervisor.failure
        if self._task is None:
            raise RWTDisconnectedError("the client is not connected: call connect()", operation=operation)
        if supervisor.connection is None and not supervisor.reconnection.preserve_session:
            raise RWTDisconnectedError(
                "the connection is lost, and preserve_session is off", operation=operation
            )

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
            ValueError: an option cannot be used.
            RWTEncodingError: the value cannot be encoded, or is too large; nothing was sent.
            RWTSendError: the server refused the message; `code` says why.
            RWTOutcomeUnknown: the session ended before the answer came.
            RWTDisconnectedError: the client is not connected and does not reconnect.
            RWTTimeoutError: no answer in time.

        Waits while more than 4 MiB are queued or unanswered. Cancelling it withdraws a message that has not
        left yet; one that has is stored or not, as the server decides.
        """
        self._check_running("send")
        message = self._publisher.compose(data, channel, encrypt, encryption_level)
        return await self._publisher.put_and_wait(message, timeout)

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
            ValueError, RWTEncodingError, RWTDisconnectedError: as `send`.
        """
        self._check_running("send")
        message = self._publisher.compose(data, channel, encrypt, encryption_level)
        return self._publisher.put_nowait(message)

    # --- channels ---

    def create_channel(self, name: str) -> RWTChannel:
        """Return a channel; it is opened by `open()`, `async with`, by sending, or by receiving from it.

        Raises:
            ValueError: the name cannot be used.
        """
        self._channels.use(name)
        return RWTChannel(self, name)

    def get_channels(self) -> list[RWTChannel]:
        """Return the channels that are open on the current connection."""
        return [RWTChannel(self, name) for name in self._channels.names()]

    def is_channel_active(self, name: str) -> bool:
        """Whether a channel is open on the current connection."""
        return self._channels.is_open(name)

    async def open_channel(self, name: str, *, history: int = 0, timeout: float | None = 10.0) -> None:
        """Open a channel for sending and receiving; see `RWTChannel.open`."""
        self._check_running("open")
        await self._channels.open(name, history, timeout)

    async def close_channel(self, name: str, *, timeout: float | None = 10.0) -> None:
        """Close a channel; see `RWTChannel.close`."""
        try:
            async with asyncio.timeout(timeout):
                await self._publisher.settled(name)
        except TimeoutError:
            pass  # those that are left are told below
        await self._channels.close(name, timeout)
        error = RWTSendError(f"channel {name!r} was closed", code="closed", operation="send")
        self._publisher.give_up(name, error)

    # --- receiving ---

    def messages(self, channel: str = "default", *, history: int = 0) -> MessageStream:
        """Return an iterator over the messages of a channel from now on; opens it to receive.

        Args:
            history: Entries before the newest to begin with; only for a channel that was never open.

        It survives reconnects and ends when the channel is closed, the client is disconnected, or gives up
        (then it raises why). What waits in it counts for back-pressure: read it, or `close()` it.
        """
        self._check_running("receive")
        return self._channels.messages(channel, history)

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
            RWTDisconnectedError: the channel was closed.
        """
        stream = self.messages(channel)
        try:
            async with asyncio.timeout(timeout):
                async for message in stream:
                    data = message.data
                    if type is not None and not (isinstance(data, dict) and data.get("type") == type):
                        continue
                    if predicate is None or predicate(message):
                        return message
        except TimeoutError:
            raise RWTTimeoutError(
                f"no message on {channel!r} within {timeout} s", operation="wait_for_message"
            ) from None
        finally:
            stream.close()
        raise RWTDisconnectedError(f"channel {channel!r} was closed", operation="wait_for_message")

    # --- events ---

    @overload
    def on(self, event: str, handler: H, *, filter: Filter | None = None) -> H: ...

    @overload
    def on(self, event: str, *, filter: Filter | None = None) -> Callable[[H], H]: ...

    def on(
        self, event: str, handler: H | None = None, *, filter: Filter | None = None
    ) -> H | Callable[[H], H]:
        """Call `handler` at every `event`; without a handler, a decorator. `message:x` opens channel x.

        Handlers may be async; those of messages run one after another for each channel. One that raises
        becomes an `error` event.

        Args:
            filter: Called with the first argument; False: the handler is not called.

        Raises:
            ValueError: the event does not exist.
        """
        return self._listen(event, handler, filter, once=False)

    @overload
    def once(self, event: str, handler: H, *, filter: Filter | None = None) -> H: ...

    @overload
    def once(self, event: str, *, filter: Filter | None = None) -> Callable[[H], H]: ...

    def once(
        self, event: str, handler: H | None = None, *, filter: Filter | None = None
    ) -> H | Callable[[H], H]:
        """As `on`, for one call."""
        return self._listen(event, handler, filter, once=True)

    def _listen(
        self, event: str, handler: H | None, filter: Filter | None, *, once: bool
    ) -> H | Callable[[H], H]:
        def add(function: H) -> H:
            channel = event.removeprefix("message:")
            if channel and channel != event:
                self._channels.use(channel)  # a name that cannot be used adds nothing
            self._emitter.subscriptions.add(event, function, once=once, filter=filter)
            if channel != event:
                self._channels.receive(channel)
            return function

        return add if handler is None else add(handler)

    def off(self, event: str, handler: Handler | None = None) -> None:
        """Remove a handler of an event, or all of them."""
        self._emitter.subscriptions.remove(event, handler)

    def off_all(self) -> None:
        """Remove all handlers of all events."""
        self._emitter.subscriptions.clear()
