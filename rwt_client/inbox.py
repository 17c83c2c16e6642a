"""Received messages of one channel on their way to handlers and iterators, in order, off the read loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from rwt_protocol.codes import Form, Level, Priority
from rwt_protocol.events import Delivered
from rwt_protocol.frames import Entry

from .options import Message, MessageMetadata
from .values import decode_value


def to_message(channel: str, level: Level, entry: Entry, own_id: bytes) -> Message:
    """Turn an entry into what applications see.

    Raises:
        RWTEncodingError: the body is not what its form says.
    """
    return Message(
        data=decode_value(entry.form, entry.body),
        metadata=MessageMetadata(
            channel=channel,
            offset=entry.offset,
            timestamp=entry.stored_ms / 1000,
            sender=entry.sender,
            own=entry.sender_id == own_id,
            priority=Priority(entry.priority).name.lower(),
            level=level.name.lower(),
            form=Form(entry.form).name.lower(),
        ),
        size=len(entry.body),
    )


class MessageStream(AsyncIterator[Message]):
    """An iterator over the messages of a channel; survives reconnects, ends with the channel or client.

    `close()` ends it early. `async with` does that for you.
    """

    def __init__(self, on_taken: Callable[[int], None], on_close: Callable[[MessageStream], None]) -> None:
        self._messages: deque[Message] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._on_taken = on_taken
        self._on_close = on_close
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False

    @property
    def pending(self) -> int:
        """Bytes that wait in this iterator."""
        return sum(message.size for message in self._messages)

    def put(self, message: Message) -> None:
        """Add a message."""
        self._messages.append(message)
        self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """No more messages will come; `error` is raised when those that wait are taken."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> MessageStream:
        return self

    async def __anext__(self) -> Message:
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            if self._waiter is None:
                self._waiter = asyncio.get_running_loop().create_future()
            # Shielded: a cancelled reader must not take the wake-up of another with it.
            await asyncio.shield(self._waiter)
        message = self._messages.popleft()
        self._on_taken(message.size)
        return message

    def close(self) -> None:
        """End the iterator and drop what waits in it; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        taken = self.pending
        self._messages.clear()
        self.end()
        self._on_close(self)
        self._on_taken(taken)

    async def __aenter__(self) -> MessageStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()


class ChannelInbox:
    """Entries that were received and not handled yet, and how many bytes they are.

    Args:
        on_change: Called whenever `unhandled` shrank: the channel may be opened again for receiving.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self.unhandled = 0
        """Bytes received and not yet taken by everybody."""
        self.streams: list[MessageStream] = []
        self.ended = False
        """Nothing more is handed out: the channel was closed, or the client is gone."""
        self._handling = False
        self._waiting: deque[tuple[Level, Entry]] = deque()
        self._arrived = asyncio.Event()
        self._on_change = on_change

    @property
    def waiting(self) -> int:
        """Messages that no handler has seen yet."""
        return len(self._waiting) + self._handling

    def put(self, delivered: Delivered, fresh: list[Entry]) -> None:
        """Add entries of one frame."""
        for entry in fresh:
            self._waiting.append((delivered.level, entry))
            self.unhandled += len(entry.body)
        self._arrived.set()

    async def next(self) -> tuple[Level, Entry] | None:
        """Wait for the next entry; None: there will be none."""
        while not self._waiting and not self.ended:
            self._arrived.clear()
            await self._arrived.wait()
        if self.ended:
            return None
        self._handling = True
        return self._waiting.popleft()

    def handled(self, size: int) -> None:
        """Handlers returned for `size` bytes."""
        self._handling = False
        self._taken(size)

    def _taken(self, size: int) -> None:
        self.unhandled -= size
        self._on_change()

    def give(self, message: Message) -> None:
        """Hand a message to all iterators."""
        for stream in self.streams:
            self.unhandled += message.size
            stream.put(message)

    def open_stream(self) -> MessageStream:
        """Return a new iterator."""
        stream = MessageStream(self._taken, self._forget)
        self.streams.append(stream)
        return stream

    def end(self, error: BaseException | None) -> None:
        """End all iterators, and whoever waits for the next entry."""
        streams, self.streams = self.streams, []
        for stream in streams:
            stream.end(error)
        self._waiting.clear()
        self.ended = True
        self._arrived.set()

    def _forget(self, stream: MessageStream) -> None:
        if stream in self.streams:
            self.streams.remove(stream)
