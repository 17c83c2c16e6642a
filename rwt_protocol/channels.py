"""Channels as a client keeps them across connections (sections 10 and 11): names, places in logs, the outbox.

An outbox assigns a mid when a message leaves it, keeps the message until its answer comes, and sends what has
no answer again after a resume, with the same mids and in order, before anything new.
"""

from __future__ import annotations

import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Generic, NamedTuple, TypeVar

from . import codec, limits
from .codes import Form, GapReason, Level, Use
from .errors import RWTProtocolError
from .frames import Ack, Entry, Gap, Position, Publication, Sub, SubOk

INBOX = ""
"""Name of the session's private log."""


def check_name(name: str) -> str | None:
    """Return why `name` is no channel name (section 10.1), or None if it is one."""
    if not name:
        return "it is empty"
    if len(name.encode("utf-8", "surrogatepass")) > limits.MAX_NAME:
        return f"it is longer than {limits.MAX_NAME} bytes"
    if name.startswith("@"):
        return 'names that begin with "@" are reserved'
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        return "it has a control character"
    if not unicodedata.is_normalized("NFC", name):
        return "it is not in Unicode normal form C"
    return None


class ChannelState(Enum):
    """Where a channel stands on the current connection."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"
    CHANGING = "changing"
    """Open, and a further SUB has no answer yet."""


class Channel:
    """One channel of a client: what it is used for, and the last entry received."""

    __slots__ = ("_known", "_repeats_until", "_tags", "name", "position", "state", "stream", "use", "wanted")

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = ChannelState.CLOSED
        self.stream = 0
        """Number on the current connection."""
        self.wanted = Use.PAUSED
        """What the application wants."""
        self.use = Use.PAUSED
        """What the server granted."""
        self.position: Position | None = None
        """The last entry received; None before the first SUBOK."""
        self._tags: deque[bytes] = deque(maxlen=limits.MAX_TAGS_HELD)
        self._known: set[bytes] = set()
        """Tags of entries that may come again, up to offset `_repeats_until`."""
        self._repeats_until = 0

    @property
    def is_open(self) -> bool:
        """Whether the server knows the channel's stream on this connection."""
        return self.state in (ChannelState.OPEN, ChannelState.CHANGING)

    def subscribe(self, ref: int, *, use: Use, history: int | None = None) -> Sub:
        """Compose SUB: behind the last entry received, or with `history` entries before the tail."""
        self.state = ChannelState.CHANGING if self.is_open else ChannelState.OPENING
        place = self.position
        return Sub(
            ref,
            self.name,
            after=place,
            history=history if place is None else None,
            use=use,
            tags_held=len(self._tags) if place is not None and self._tags else None,
        )

    def opened(self, answer: SubOk) -> Gap | None:
        """Take SUBOK; return the gap it tells of."""
        self.state = ChannelState.OPEN
        self.stream = answer.stream
        self.use = Use(answer.use)
        if answer.gap is not None:
            self._enter(answer.gap)
        if self.position is None or answer.gap is not None:
            self.position = answer.start
        return answer.gap

    def skip(self, gap: Gap) -> None:
        """Take GAP."""
        self._enter(gap)
        self.position = gap.next

    def _enter(self, gap: Gap) -> None:
        """The tags held no longer lead up to where delivery goes on."""
        if gap.reason == GapReason.DIVERGED:
            # The server lost the tail of the log and starts earlier: what survived comes again, under the
            # same tags and offsets.
            self._known |= set(self._tags)
            self._repeats_until = gap.last
        else:
            self._known.clear()
        self._tags.clear()

    def accept(self, entries: list[Entry]) -> list[Entry]:
        """Take entries in order and return those not seen before.

        Raises:
            RWTProtocolError: an offset is not the next one: something was lost or repeated without a word.
        """
        place = self.position
        if place is None:
            raise RWTProtocolError("an entry came before its subscription was granted")
        log, offset, tag = place
        fresh: list[Entry] = []
        tags, known = self._tags, self._known
        for entry in entries:
            if entry.offset != offset + 1:
                raise RWTProtocolError("an entry is not the next one of its log")
            offset, tag = entry.offset, entry.tag
            tags.append(tag)
            if not known or tag not in known:
                fresh.append(entry)
        if known and offset >= self._repeats_until:
            known.clear()
        self.position = Position(log, offset, tag)
        return fresh

    def __repr__(self) -> str:
        return f"<Channel {self.name!r} {self.state.value}>"


T = TypeVar("T")


class Outgoing(Generic[T]):
    """One message on its way. `context` is the caller's: what to tell when the answer comes."""

    __slots__ = ("body", "channel", "context", "form", "level", "mid", "sent_at", "sent_size")

    def __init__(self, channel: str, body: bytes, form: Form, level: Level, context: T) -> None:
        self.channel = channel
        self.body = body
        self.form = form
        self.level = level
        self.context = context
        self.mid = 0
        """0: not sent yet."""
        self.sent_at = 0.0
        self.sent_size = 0


class Answered(NamedTuple, Generic[T]):
    """A message and where it was stored."""

    message: Outgoing[T]
    log: bytes
    offset: int
    stored_ms: int


class Outbox(Generic[T]):
    """Messages of one session: queued, unanswered, and to be sent again."""

    __slots__ = ("_again", "_next_mid", "_queues", "_unanswered", "size", "window")

    def __init__(self) -> None:
        self.window = limits.WINDOW
        self.size = 0
        """Bytes of all bodies that are queued or unanswered."""
        self._next_mid = 1
        self._queues: dict[str, deque[Outgoing[T]]] = {}
        self._unanswered: dict[int, Outgoing[T]] = {}
        self._again: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._unanswered) + sum(map(len, self._queues.values()))

    def put(self, message: Outgoing[T], *, front: bool = False) -> None:
        """Queue a message; `front` for one that the server asked to have again."""
        queue = self._queues.setdefault(message.channel, deque())
        if front:
            queue.appendleft(message)
        else:
            queue.append(message)
        self.size += len(message.body)

    def take(self, is_open: Callable[[str], bool], most: int) -> Iterator[Outgoing[T]]:
        """Yield messages that may leave now, in order, up to `most` bytes; assigns their mids.

        After a resume nothing passes the lowest unanswered message whose channel is not open yet.
        """
        room = most
        while self._again:
            message = self._unanswered.get(self._again[0])
            if message is None:
                self._again.popleft()
                continue
            if not is_open(message.channel) or room <= 0:
                return
            self._again.popleft()
            room -= len(message.body)
            yield message
        for name in list(self._queues):
            queue = self._queues[name]
            if not is_open(name):
                continue
            while queue and room > 0 and len(self._unanswered) < self.window:
                message = queue.popleft()
                message.mid = self._next_mid
                self._next_mid += 1
                self._unanswered[message.mid] = message
                room -= len(message.body)
                yield message
            if not queue:
                del self._queues[name]

    def acknowledged(self, ack: Ack) -> list[Answered[T]]:
        """Take an ACK. A mid that is not waiting is skipped: its answer was already known."""
        found: list[Answered[T]] = []
        for first, count, _, log, offset, stored_ms in ack.runs:
            if count > self.window:
                raise RWTProtocolError("an ACK answers more messages than the window holds")
            if first + count > self._next_mid:
                raise RWTProtocolError("an ACK answers a message that was never sent")
            for index in range(count):
                message = self.remove(first + index)
                if message is not None:
                    found.append(Answered(message, log, offset + index if log else 0, stored_ms))
        return found

    def remove(self, mid: int) -> Outgoing[T] | None:
        """Take a message whose answer came out of the outbox."""
        message = self._unanswered.pop(mid, None)
        if message is not None:
            self.size -= len(message.body)
        return message

    def reconnecting(self) -> None:
        """The connection is gone: what has no answer will be sent again first."""
        self._again = deque(self._unanswered)

    def forget_session(self) -> list[Outgoing[T]]:
        """The session is gone: return what was sent and will never be answered; the queues stay."""
        lost = list(self._unanswered.values())
        self.size -= sum(len(message.body) for message in lost)
        self._unanswered.clear()
        self._again.clear()
        self._next_mid = 1
        return lost

    def give_up(self, channel: str) -> tuple[list[Outgoing[T]], list[Outgoing[T]]]:
        """The channel was refused: return its unanswered and its queued messages, and drop both."""
        sent = [message for message in self._unanswered.values() if message.channel == channel]
        for message in sent:
            del self._unanswered[message.mid]
        queued = list(self._queues.pop(channel, ()))
        self.size -= sum(len(message.body) for message in (*sent, *queued))
        return sent, queued

    def channels(self) -> list[str]:
        """Names of the channels that have anything queued or unanswered."""
        return list(dict.fromkeys([*self._queues, *(m.channel for m in self._unanswered.values())]))

    def discard(self, message: Outgoing[T]) -> bool:
        """Drop a message that has not left its queue; False if it has."""
        queue = self._queues.get(message.channel)
        if message.mid or queue is None or message not in queue:
            return False
        queue.remove(message)
        self.size -= len(message.body)
        return True


def encode_outgoing(message: Outgoing[T]) -> bytes:
    """Encode a message that has its mid: u16 meta_len || meta || body."""
    return codec.encode_publication(Publication(message.body, message.mid, message.form))
