"""The engine that keeps everything in memory: fast, and gone with the process."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from rwt_protocol import codec, limits
from rwt_protocol.codes import GapReason, Level
from rwt_protocol.frames import Gap, Position, Publication
from rwt_protocol.session import Advance, SessionRecord, Swap, swap
from rwt_protocol.suites import RandomBytes

from .config import Retention
from .engine import Appended, Start, StoredEntry

_COMPACT = 1_024
_TAG_POOL = 256
_TRIMMED = StoredEntry(b"", b"", Level.STANDARD, 0, 0)
"""Stands in for a trimmed entry until the front of the list is cut off: its bytes are free at once."""


class MemoryLog:
    """Entries in a list whose front is cut off in large pieces."""

    __slots__ = (
        "_clock_ms",
        "_entries",
        "_head",
        "_max_age_ms",
        "_next_tag",
        "_now",
        "_offset",
        "_random",
        "_stored",
        "_tags",
        "_total",
        "_trim_bytes",
        "_trim_ms",
        "_trim_offset",
        "_trimmed",
        "id",
        "retention",
    )

    def __init__(self, retention: Retention, random_bytes: RandomBytes, clock_ms: Callable[[], int]) -> None:
        self.id = random_bytes(8)
        self.retention = retention
        self._random = random_bytes
        self._clock_ms = clock_ms
        self._entries: list[StoredEntry] = []
        self._head = 0
        """Index of the oldest entry kept."""
        self._offset = 1
        """Offset of the entry at index 0."""
        self._total = 0
        self._trimmed = (0, b"")
        """Bytes up to the newest trimmed entry, and its tag."""
        self._tags = b""
        self._next_tag = _TAG_POOL
        self._now = 0
        self._stored = b""
        """`_now`, encoded."""
        self._max_age_ms = int(retention.max_age * 1000)
        self._trim_bytes = self._trim_offset = self._trim_ms = 0
        """Marks of bytes, offset and time at which the oldest entry has to go."""

    @property
    def first(self) -> int:
        return self._offset + self._head

    @property
    def tail(self) -> int:
        return self._offset + len(self._entries) - 1

    def append(
        self,
        messages: Sequence[Publication],
        level: Level,
        sender: bytes,
        done: Callable[[Appended], None],
    ) -> None:
        now = self._clock_ms()
        if now != self._now:
            self._now, self._stored = now, codec.encode_uint(now)
        entries = self._entries
        first = offset = self._offset + len(entries)
        total = self._total
        stored = self._stored
        fields = 2 if sender else 0
        encode = codec.encode_entry
        tags, at = self._tags, self._next_tag
        for message in messages:
            if at == _TAG_POOL:
                # One call to the source of randomness for many tags.
                tags, at = self._random(8 * _TAG_POOL), 0
            tag = tags[8 * at : 8 * at + 8]
            at += 1
            encoded = encode(
                offset, tag, stored, message.form, message.priority, sender, fields, message.body
            )
            total += len(encoded)
            entries.append(StoredEntry(encoded, tag, level, total, now))
            offset += 1
        self._total = total
        self._tags, self._next_tag = tags, at
        if total >= self._trim_bytes or offset > self._trim_offset or now > self._trim_ms:
            self._trim(now)
        done(Appended(first, stored))

    def _trim(self, now: int) -> None:
        """Drop what the retention does not keep, and set the marks at which the next entry has to go."""
        keep, entries = self.retention, self._entries
        bytes_floor = self._total - keep.max_bytes
        age_floor = now - self._max_age_ms
        head, newest = self._head, len(entries) - 1
        oldest = max(head, len(entries) - keep.max_messages)
        # An entry goes when what lies behind it alone fills the limit. The newest always stays.
        while oldest < newest and (
            entries[oldest].end <= bytes_floor or entries[oldest].stored_ms < age_floor
        ):
            oldest += 1
        if oldest > head:
            gone = entries[oldest - 1]
            self._trimmed = gone.end, gone.tag
            if oldest >= _COMPACT and oldest * 2 > len(entries):
                del entries[:oldest]
                self._offset += oldest
                oldest = 0
            else:
                entries[head:oldest] = [_TRIMMED] * (oldest - head)
            self._head = oldest
        self._trim_bytes = entries[oldest].end + keep.max_bytes
        self._trim_ms = entries[oldest].stored_ms + self._max_age_ms
        self._trim_offset = self.first + keep.max_messages

    def read(self, after: int, max_bytes: int, max_entries: int) -> Sequence[StoredEntry]:
        entries = self._entries
        start = after + 1 - self._offset
        if start >= len(entries):
            return []
        begin = entries[start - 1].end if start > self._head else self._trimmed[0]
        end = bisect_right(entries, begin + max_bytes, start, len(entries), key=_end_of)
        return entries[start : min(max(end, start + 1), start + max_entries)]

    def _tag_at(self, offset: int) -> bytes | None:
        if offset == self.first - 1:
            return self._trimmed[1]
        if self.first <= offset <= self.tail:
            return self._entries[offset - self._offset].tag
        return None

    def position(self, offset: int) -> Position:
        return Position(self.id, offset, self._tag_at(offset) or b"")

    def start(self, after: Position | None, history: int, tags_held: int) -> Start:
        oldest, tail = self.first - 1, self.tail
        if after is None:
            return Start(self.position(max(oldest, tail - history)), None)
        if after.log != self.id:
            begin = self.position(oldest)
            return Start(begin, Gap(GapReason.LOG_LOST, after.log, after.offset + 1, 0, begin))
        offset = after.offset
        if offset < oldest:
            return Start(self.position(oldest), self.gap_before(offset, GapReason.TRIMMED))
        if offset <= tail and (after.tag == self._tag_at(offset) or (offset == 0 and not after.tag)):
            return Start(self.position(offset), None)
        back = min(tags_held, limits.MAX_TAGS_HELD)
        begin = self.position(min(tail, max(oldest, offset - back)))
        return Start(begin, Gap(GapReason.DIVERGED, self.id, begin.offset + 1, offset, begin))

    def gap_before(self, after: int, reason: GapReason) -> Gap:
        begin = self.position(self.first - 1)
        return Gap(reason, self.id, after + 1, begin.offset, begin)

    def size_behind(self, after: int) -> int:
        index = after - self._offset
        if index < self._head:
            return self._total - self._trimmed[0]
        return self._total - self._entries[index].end


def _end_of(entry: StoredEntry) -> int:
    return entry.end


class MemorySessions:
    """Session records in a dictionary."""

    def __init__(self, clock: Callable[[], float], resume_window_ms: int = limits.RESUME_WINDOW_MS) -> None:
        self._clock = clock
        self._resume_window_ms = resume_window_ms
        self._records: dict[bytes, SessionRecord] = {}

    def __len__(self) -> int:
        return len(self._records)

    async def create(self, record: SessionRecord) -> None:
        self._records[record.sid] = record

    async def lookup(self, sid: bytes) -> SessionRecord | None:
        record = self._records.get(sid)
        if record is not None and self._gone(record):
            del self._records[sid]
            return None
        return record

    def _gone(self, record: SessionRecord) -> bool:
        now = self._clock()
        return now > record.ends_at or (not record.revoked and now > record.expires_at)

    async def advance(self, step: Advance) -> Swap:
        outcome, record = swap(self._records.get(step.sid), step, self._clock(), self._resume_window_ms)
        if outcome is Swap.ADVANCED and record is not None:
            self._records[step.sid] = record
        return outcome

    async def revoke(self, sid: bytes) -> None:
        record = self._records.get(sid)
        if record is not None:
            self._records[sid] = replace(record, revoked=True)

    async def touch(self, sid: bytes, lifetime_ms: int) -> None:
        record = self._records.get(sid)
        if record is not None:
            until = self._clock() + (lifetime_ms + self._resume_window_ms) / 1000
            self._records[sid] = replace(record, expires_at=max(record.expires_at, until))

    async def end(self, sid: bytes) -> None:
        self._records.pop(sid, None)

    def purge(self) -> list[bytes]:
        """Drop and return what is over."""
        gone = [sid for sid, record in self._records.items() if self._gone(record)]
        for sid in gone:
            del self._records[sid]
        return gone


class MemoryEngine:
    """Logs and sessions of one process.

    Args:
        random_bytes: A cryptographically secure source.
        clock: Seconds, monotonic: for lifetimes.
        clock_ms: Milliseconds since 1970: told to readers.
    """

    def __init__(
        self,
        random_bytes: RandomBytes,
        clock: Callable[[], float],
        clock_ms: Callable[[], int],
    ) -> None:
        self._sessions = MemorySessions(clock)
        self._random = random_bytes
        self._clock_ms = clock_ms
        self._logs: dict[str, MemoryLog] = {}

    @property
    def sessions(self) -> MemorySessions:
        return self._sessions

    def log(self, name: str, retention: Retention) -> MemoryLog:
        found = self._logs.get(name)
        if found is None:
            found = self._logs[name] = MemoryLog(retention, self._random, self._clock_ms)
        return found

    def drop(self, name: str) -> None:
        self._logs.pop(name, None)
