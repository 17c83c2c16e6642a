"""`RWTChannel`: one named log, for sending and receiving."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from .inbox import MessageStream
from .options import Message, SendResult
from .subscriptions import Filter, H

if TYPE_CHECKING:
    from .client import RWTClient


class RWTChannel:
    """A channel of a client; made by `RWTClient.create_channel`.

    `async with channel:` opens and closes it; `async for message in channel:` receives.
    """

    def __init__(self, client: RWTClient, name: str) -> None:
        self._client = client
        self.name = name

    async def open(self, *, history: int = 0, timeout: float | None = 10.0) -> None:
        """Open, or open again, for sending and receiving. Once opened it stays open across reconnects.

        Args:
            history: Entries before the newest to begin with; only for a channel that was never open.
            timeout: Seconds; None: no limit.

        Raises:
            RWTSendError: the server refused; `code` says why.
            RWTTimeoutError: no answer in time.
            RWTDisconnectedError: the client is not connected and does not reconnect.
        """
        await self._client.open_channel(self.name, history=history, timeout=timeout)

    async def close(self, *, timeout: float | None = 10.0) -> None:
        """Stop sending and receiving; iterators end. What was received and not handled is dropped.

        Messages under way are waited for, as long as there is a connection and for `timeout` seconds at most;
        the rest fails with `RWTSendError` (`code` is `closed`), or `RWTOutcomeUnknown` where it had been sent.
        """
        await self._client.close_channel(self.name, timeout=timeout)

    def is_active(self) -> bool:
        """Whether the channel is open on the current connection."""
        return self._client.is_channel_active(self.name)

    async def send(
        self,
        data: Any,
        *,
        encrypt: bool | None = None,
        encryption_level: str = "standard",
        timeout: float | None = None,
    ) -> SendResult:
        """Send a message on this channel; see `RWTClient.send`."""
        return await self._client.send(
            data,
            channel=self.name,
            encrypt=encrypt,
            encryption_level=encryption_level,
            timeout=timeout,
        )

    @overload
    def on_message(self, handler: H, *, filter: Filter | None = None) -> H: ...

    @overload
    def on_message(self, *, filter: Filter | None = None) -> Callable[[H], H]: ...

    def on_message(self, handler: H | None = None, *, filter: Filter | None = None) -> H | Callable[[H], H]:
        """Call `handler(data, metadata)` for each message; also a decorator."""
        event = f"message:{self.name}"
        if handler is None:
            return self._client.on(event, filter=filter)
        return self._client.on(event, handler, filter=filter)

    async def wait_for_message(
        self,
        predicate: Callable[[Message], bool] | None = None,
        *,
        type: str | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Wait for the next message that fits; see `RWTClient.wait_for_message`."""
        return await self._client.wait_for_message(predicate, type=type, channel=self.name, timeout=timeout)

    def messages(self, *, history: int = 0) -> MessageStream:
        """Return an iterator over messages from now on; see `RWTClient.messages`."""
        return self._client.messages(self.name, history=history)

    def __aiter__(self) -> MessageStream:
        return self.messages()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<RWTChannel {self.name!r} {'active' if self.is_active() else 'closed'}>"
