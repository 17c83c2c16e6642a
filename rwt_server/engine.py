"""What a server keeps: logs and sessions. The interface; `engine_memory` is the first implementation.

An engine's `append` is atomic: entries get consecutive offsets, and the answer is called once they are
stored in the engine's sense. Reads never block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from rwt_protocol.codes import GapReason, Level
from rwt_protocol.frames import Gap, Position, Publication
from rwt_protocol.session import SessionStore

from .config import Retention


class StoredEntry(NamedTuple):
    """One entry of a log, ready for delivery."""

    encoded: bytes
    """u16 meta_len || meta || body."""
    tag: bytes
    level: Level
    end: int
    """Bytes of the log up to and including this entry, since it began."""
    stored_ms: int


class Appended(NamedTuple):
    """Where messages were stored: consecutive offsets from `first_offset` on."""

    first_offset: int
    stored: bytes
    """Time in milliseconds since 1970, encoded for the wire."""


class Start(NamedTuple):
    """Where delivery to a subscriber starts: behind `position`, with the gap before it, if any."""

    position: Position
    gap: Gap | None


class Log(Protocol):
    """The entries of one channel, in order. Offsets begin with 1 and have no holes."""

    id: bytes
    retention: Retention

    @property
    def first(self) -> int:
        """Offset of the oldest entry kept; `tail` + 1 if there is none."""
        ...

    @property
    def tail(self) -> int:
        """Offset of the newest entry; 0 before the first."""
        ...

    def append(
        self,
        messages: Sequence[Publication],
        level: Level,
        sender: bytes,
        done: Callable[[Appended], None],
    ) -> None:
        """Append messages; `sender` is `codec.encode_sender` of the session. Calls `done` when stored."""
        ...

    def read(self, after: int, max_bytes: int, max_entries: int) -> Sequence[StoredEntry]:
        """Return entries behind offset `after`, at least one if there is any; `after` >= `first` - 1."""
        ...

    def start(self, after: Position | None, history: int, tags_held: int) -> Start:
        """Decide where a subscriber starts (section 11)."""
        ...

    def position(self, offset: int) -> Position:
        """The position of an entry that is kept, or of the place before the oldest."""
        ...

    def gap_before(self, after: int, reason: GapReason) -> Gap:
        """The gap of a reader that stands at `after` while the log was trimmed beyond it."""
        ...

    def size_behind(self, after: int) -> int:
        """Bytes of all entries behind offset `after`, trimmed ones not counted."""
        ...


class Engine(Protocol):
    """Everything that outlives a connection."""

    @property
    def sessions(self) -> SessionStore: ...

    def log(self, name: str, retention: Retention) -> Log:
        """Return the log of a channel; a new one if there is none."""
        ...

    def drop(self, name: str) -> None:
        """Forget the log of a channel."""
        ...
