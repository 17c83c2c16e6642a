"""Channels of this process: who receives, who publishes, and one flush for what a turn brought (section 10).

Nothing is queued for a subscriber: its place in the log is an offset. Those that stand at the tail get what
the turn appended, sealed from one shared payload; those that lag read on from the log when their transport
has room again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from rwt_protocol import codec, limits
from rwt_protocol.channels import INBOX, check_name
from rwt_protocol.codes import ErrorCode, GapReason, Level, Use
from rwt_protocol.connection import pack_messages
from rwt_protocol.events import Published
from rwt_protocol.frames import Publication, Sub, SubOk, Unsub

from .answers import Answer
from .config import ChannelRules
from .engine import Appended, Engine, Log, StoredEntry
from .keys import may_use

if TYPE_CHECKING:
    from .driver import Driver

MAX_CHANNELS = 100_000
"""Channels of one process."""
MAX_STREAMS = 1_024
"""Channels open on one connection."""
PACE_LIMIT = 30.0
"""Seconds that an ACK waits for slow readers at most."""
_CATCH_UP_BYTES = 1_048_576
"""What one connection may take from logs before others have a turn."""
_IDEMPOTENCY_MS = 300_000
_IDLE = 600.0
"""Seconds after which a channel that never had an entry and has no subscriber is dropped."""

Pack = tuple[int, bytes, int]


class Subscription:
    """One channel open on one connection."""

    __slots__ = ("at", "channel", "driver", "held_place", "use")

    def __init__(self, driver: Driver, channel: Channel, use: Use, at: int) -> None:
        self.driver = driver
        self.channel = channel
        self.use = use
        self.at = at
        """Offset of the last entry written to the transport."""
        self.held_place = False
        """Paused by its reader, who still counts for `pace`."""


class HeldAck(NamedTuple):
    """An answer that waits for slow readers."""

    due: float
    driver: Driver
    first_mid: int
    number: int
    first_offset: int
    stored: bytes


class Channel:
    """A name, its log, and who has it open."""

    __slots__ = (
        "delivered",
        "dirty",
        "held",
        "idempotent",
        "idle_since",
        "log",
        "name",
        "pace",
        "parked",
        "place",
        "readers",
        "stream",
        "subscriptions",
    )

    def __init__(self, name: str, stream: int, log: Log, rules: ChannelRules, now: float) -> None:
        self.name = name
        self.stream = stream
        self.log = log
        self.pace = rules.on_full == "pace"
        self.place = codec.encode_place(stream, log.id)
        self.subscriptions: dict[Driver, Subscription] = {}
        self.readers: dict[Driver, Subscription] = {}
        """Those of them that receive."""
        self.delivered = log.tail
        """Offset up to which the turns so far were fanned out."""
        self.dirty = False
        self.idle_since = now
        self.held: deque[HeldAck] = deque()
        self.parked: dict[bytes, tuple[int, float]] = {}
        """Places of readers that are away, by session, and until when they count for `pace`."""
        self.idempotent: dict[tuple[str, bytes], tuple[bytes, int, bytes, int]] = {}
        """(user, key) to content digest, offset, time encoded, expiry in ms."""

    def too_far_behind(self, now: float) -> bool:
        """Whether a reader is more than half the retention behind."""
        log = self.log
        places = [sub.at for sub in self.subscriptions.values() if sub.use & Use.RECEIVE or sub.held_place]
        if self.parked:
            for sid in [sid for sid, (_, until) in self.parked.items() if until <= now]:
                del self.parked[sid]
            places += [at for at, _ in self.parked.values()]
        if not places:
            return False
        slowest = min(places)
        keep = log.retention
        return log.tail - slowest > keep.max_messages // 2 or log.size_behind(slowest) > keep.max_bytes // 2


class Hub:
    """All channels of one process.

    Args:
        rules: The first whose pattern matches a name decides; the last must match every name.
        resume_window: Seconds that the place of a reader that is away counts for `pace`.
    """

    def __init__(self, engine: Engine, rules: Sequence[ChannelRules], resume_window: float) -> None:
        self._engine = engine
        self._rules = (*rules, ChannelRules())
        self._resume_window = resume_window
        self._loop = asyncio.get_running_loop()
        self.channels: dict[str, Channel] = {}
        self._streams = 0
        self._dirty: list[Channel] = []
        self._writers: list[Driver] = []
        self._behind: dict[Driver, None] = {}
        self._scheduled = False
        self._pace_timer: asyncio.TimerHandle | None = None
        self._paced: dict[Channel, None] = {}

    # --- subscriptions ---

    def _channel(self, name: str) -> Channel | None:
        channel = self.channels.get(name)
        if channel is None:
            if len(self.channels) >= MAX_CHANNELS:
                return None
            self._streams += 1
            rules = next(rules for rules in self._rules if may_use((rules.pattern,), name))
            log = self._engine.log(name, rules.retention)
            channel = Channel(name, self._streams, log, rules, self._loop.time())
            self.channels[name] = channel
        return channel

    def subscribe(self, driver: Driver, sub: Sub) -> None:
        """Answer SUB: SUBOK, or the reason why not."""
        refuse = driver.conn.refuse
        if sub.name == INBOX:
            channel: Channel | None = driver.inbox()
            use = Use.RECEIVE
        else:
            problem = check_name(sub.name)
            if problem is not None:
                refuse(ErrorCode.BAD_NAME, ref=sub.ref, text=problem)
                return
            channel = self.channels.get(sub.name)
            use = Use.BOTH if sub.use is None else Use(sub.use)
        held = driver.streams.get(channel.stream) if channel is not None else None
        if use is Use.PAUSED and held is None:
            refuse(ErrorCode.NOT_OPEN, ref=sub.ref)
            return
        if held is None and len(driver.streams) >= MAX_STREAMS:
            refuse(ErrorCode.LIMIT, ref=sub.ref, text=f"at most {MAX_STREAMS} channels on a connection")
            return
        if sub.name != INBOX and not driver.may(sub.name):
            if held is None:
                refuse(ErrorCode.NOT_AUTHORISED, ref=sub.ref)
            else:
                self._close(held)
                driver.conn.unsubscribed(held.channel.stream, ref=sub.ref, code=ErrorCode.NOT_AUTHORISED)
            return
        channel = channel or self._channel(sub.name)
        if channel is None:
            refuse(ErrorCode.LIMIT, ref=sub.ref, text=f"at most {MAX_CHANNELS} channels on a server")
            return
        log = channel.log
        if held is not None and (held.use & Use.RECEIVE or (sub.after is None and sub.history is None)):
            # Who receives already stays where it is: to be sent back would repeat entries.
            start = log.start(log.position(held.at), 0, 0)
        else:
            history = log.tail if sub.name == INBOX else sub.history or 0
            start = log.start(sub.after, history, sub.tags_held or 0)
        answer = SubOk(sub.ref, channel.stream, 0, start.position, use, 0, start.gap)
        if held is None:
            held = Subscription(driver, channel, use, start.position.offset)
            driver.streams[channel.stream] = held
            channel.subscriptions[driver] = held
            channel.parked.pop(driver.conn.sid, None)
        elif use & Use.RECEIVE:
            held.at = start.position.offset
            held.held_place = False
        else:
            held.held_place = held.held_place or bool(held.use & Use.RECEIVE)
        held.use = use
        if use & Use.RECEIVE:
            if not channel.readers:
                channel.delivered = channel.log.tail  # nobody was there to deliver to
            channel.readers[driver] = held
        else:
            channel.readers.pop(driver, None)
        driver.conn.subscribed(answer)
        driver.receives = any(sub.use & Use.RECEIVE for sub in driver.streams.values())
        if use & Use.RECEIVE and held.at < channel.log.tail:
            self.catch_up_soon(driver)

    def unsubscribe(self, driver: Driver, unsub: Unsub) -> None:
        """Answer UNSUB."""
        held = driver.streams.get(unsub.stream)
        if held is None:
            driver.conn.refuse(ErrorCode.NOT_OPEN, ref=unsub.ref)
            return
        self._close(held)
        driver.conn.unsubscribed(unsub.stream, ref=unsub.ref)

    def _close(self, held: Subscription) -> None:
        driver, channel = held.driver, held.channel
        del driver.streams[channel.stream]
        del channel.subscriptions[driver]
        channel.readers.pop(driver, None)
        channel.idle_since = self._loop.time()
        driver.receives = any(sub.use & Use.RECEIVE for sub in driver.streams.values())
        self._release(channel)

    def leave(self, driver: Driver, *, coming_back: bool) -> None:
        """A connection is gone; if its session may come back, its places count for `pace`."""
        now = self._loop.time()
        for held in list(driver.streams.values()):
            channel = held.channel
            self._close(held)
            if coming_back and channel.pace and (held.use & Use.RECEIVE or held.held_place):
                sid = driver.conn.sid
                # A newer connection of the session may have taken the place already.
                if not any(other.conn.sid == sid for other in channel.subscriptions):
                    channel.parked[sid] = held.at, now + self._resume_window
        self._behind.pop(driver, None)

    # --- publishing ---

    def publish(self, driver: Driver, event: Published) -> None:
        """Append the messages of one frame and answer them."""
        stream, level, messages = event
        held = driver.streams.get(stream)
        answers = driver.answers
        error = None
        if held is None:
            error = ErrorCode.NOT_OPEN
        elif not held.use & Use.PUBLISH:
            error = ErrorCode.NOT_AUTHORISED
        fresh: list[Publication] = []
        for message in messages:
            _, mid, _, _, key, scheme, reply = message
            if mid is not None and mid <= answers.highest:
                driver.repeat(mid, answers.find(mid))
            elif error is not None or key is not None or scheme is not None or reply:
                if fresh and held is not None:
                    self._append(driver, held.channel, level, fresh)
                    fresh = []
                self._special(driver, held, level, message, error)
            else:
                fresh.append(message)
        if fresh and held is not None:
            self._append(driver, held.channel, level, fresh)

    def _special(
        self,
        driver: Driver,
        held: Subscription | None,
        level: Level,
        message: Publication,
        error: ErrorCode | None,
    ) -> None:
        """A message that is refused, or has an idempotency key."""
        if error is None and message.e2e_scheme is not None:
            error = ErrorCode.POLICY
        if error is None and message.reply_wanted:
            error = ErrorCode.NO_HANDLER
        if error is None and held is not None and message.idempotency_key is not None:
            error = self._idempotent(driver, held.channel, level, message, message.idempotency_key)
        if error is not None and message.mid is not None:
            driver.answers.refused(message.mid, error)
            driver.conn.refuse(error, mid=message.mid)

    def _idempotent(
        self, driver: Driver, channel: Channel, level: Level, message: Publication, key: bytes
    ) -> ErrorCode | None:
        now_ms = int(self._loop.time() * 1000)
        known = channel.idempotent
        for scope in [scope for scope, found in known.items() if found[3] <= now_ms]:
            del known[scope]
        digest = hashlib.sha256(bytes((message.form,)) + message.body).digest()
        scope = driver.user, key
        before = known.get(scope)
        if before is not None:
            if before[0] != digest:
                return ErrorCode.IDEMPOTENCY_CONFLICT
            if message.mid is not None:
                self._answer(driver, channel, message.mid, 1, before[1], before[2])
            return None

        def done(appended: Appended) -> None:
            known[scope] = digest, appended.first_offset, appended.stored, now_ms + _IDEMPOTENCY_MS

        self._append(driver, channel, level, [message], done)
        return None

    def _append(
        self,
        driver: Driver,
        channel: Channel,
        level: Level,
        messages: list[Publication],
        also: object = None,
    ) -> None:
        def done(appended: Appended) -> None:
            offset, stored = appended
            if callable(also):
                also(appended)
            first, last = messages[0].mid, messages[-1].mid
            if (
                first is not None
                and last is not None
                and last - first == len(messages) - 1
                and None not in [message[1] for message in messages]
            ):
                self._answer(driver, channel, first, len(messages), offset, stored)
            else:
                for index, message in enumerate(messages):
                    if message.mid is not None:
                        self._answer(driver, channel, message.mid, 1, offset + index, stored)
            if not channel.dirty and channel.readers:
                channel.dirty = True
                self._dirty.append(channel)
                self._schedule()

        channel.log.append(messages, level, driver.sender, done)

    def _answer(
        self, driver: Driver, channel: Channel, mid: int, number: int, offset: int, stored: bytes
    ) -> None:
        driver.answers.stored(mid, number, channel.place, offset, stored)
        if channel.pace and (channel.held or channel.too_far_behind(self._loop.time())):
            due = self._loop.time() + PACE_LIMIT
            channel.held.append(HeldAck(due, driver, mid, number, offset, stored))
            self._paced[channel] = None
            if self._pace_timer is None:
                self._pace_timer = self._loop.call_later(1.0, self._on_pace_timer)
        else:
            driver.conn.acknowledge(mid, number, channel.place, offset, stored)

    def _release(self, channel: Channel) -> None:
        """Send the ACKs that waited, if readers caught up or time is up."""
        if not channel.held:
            return
        now = self._loop.time()
        behind = channel.too_far_behind(now)
        while channel.held and (not behind or channel.held[0].due <= now):
            _, driver, mid, number, offset, stored = channel.held.popleft()
            driver.conn.acknowledge(mid, number, channel.place, offset, stored)
            self.write_soon(driver)
        if not channel.held:
            self._paced.pop(channel, None)

    def _on_pace_timer(self) -> None:
        self._pace_timer = None
        for channel in list(self._paced):
            self._release(channel)
        if self._paced:
            self._pace_timer = self._loop.call_later(1.0, self._on_pace_timer)

    # --- one flush for each turn ---

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def write_soon(self, driver: Driver) -> None:
        """Write what a connection has to send at the end of this turn."""
        self._writers.append(driver)
        self._schedule()

    @property
    def flush_pending(self) -> bool:
        """Whether a flush is scheduled for this turn."""
        return self._scheduled

    def catch_up_soon(self, driver: Driver) -> None:
        """Let a connection read on from its logs at the end of this turn."""
        self._behind[driver] = None
        self._schedule()

    def _flush(self) -> None:
        self._scheduled = False
        dirty, self._dirty = self._dirty, []
        for channel in dirty:
            channel.dirty = False
            self._fan_out(channel)
            if channel.held:
                self._release(channel)
        behind, self._behind = self._behind, {}
        for driver in behind:
            self._catch_up(driver)
        writers, self._writers = self._writers, []
        for driver in writers:
            driver.flush()

    def _fan_out(self, channel: Channel) -> None:
        log, start = channel.log, channel.delivered
        tail = channel.delivered = log.tail
        if not channel.readers or tail == start:
            return
        stream = channel.stream
        packs: list[Pack] | None = None
        if start >= log.first - 1:
            entries = log.read(start, limits.MAX_BATCH, limits.WINDOW)
            if len(entries) == tail - start:
                packs = _pack(entries)
        for driver, held in channel.readers.items():
            if packs is not None and held.at == start and not driver.guard.paused:
                driver.send(stream, packs)
                held.at = tail
            elif held.at < tail and not driver.guard.paused:
                self._behind[driver] = None

    def _catch_up(self, driver: Driver) -> None:
        """Read on from the logs, a batch of each channel in turn, while the transport has room."""
        room = _CATCH_UP_BYTES
        waiting = deque(held for held in driver.streams.values() if held.use & Use.RECEIVE)
        while waiting and not driver.guard.paused and not driver.closed:
            if room <= 0:
                self.catch_up_soon(driver)
                return
            held = waiting.popleft()
            channel, log = held.channel, held.channel.log
            if held.at < log.first - 1:
                gap = log.gap_before(held.at, GapReason.LAG_DROPPED)
                driver.conn.gap(channel.stream, gap)
                held.at = gap.next.offset
            entries = log.read(held.at, limits.MAX_BATCH, limits.WINDOW)
            if entries:
                driver.send(channel.stream, _pack(entries))
                held.at += len(entries)
                room -= sum(len(entry.encoded) for entry in entries)
                waiting.append(held)
            elif channel.held:
                self._release(channel)
        if driver.conn.wants_to_send:
            driver.flush()
        for held in waiting:
            if held.channel.held:
                self._release(held.channel)

    def close(self) -> None:
        """Stop the timer of waiting answers."""
        if self._pace_timer is not None:
            self._pace_timer.cancel()
            self._pace_timer = None

    def purge(self) -> None:
        """Drop channels that nobody has used for long."""
        horizon = self._loop.time() - _IDLE
        for name, channel in list(self.channels.items()):
            if not channel.subscriptions and not channel.log.tail and channel.idle_since < horizon:
                del self.channels[name]
                self._engine.drop(name)


def _pack(entries: Sequence[StoredEntry]) -> list[Pack]:
    """Payloads for entries in order; a change of level begins a new one."""
    packs: list[Pack] = []
    begin = 0
    level = entries[0].level
    for index, entry in enumerate(entries):
        if entry.level is not level:
            packs += pack_messages([e.encoded for e in entries[begin:index]], level, limits.WINDOW)
            begin, level = index, entry.level
    packs += pack_messages([e.encoded for e in entries[begin:]], level, limits.WINDOW)
    return packs


__all__ = ["Answer", "Channel", "Hub", "Subscription"]
