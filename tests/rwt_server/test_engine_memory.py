"""Logs and sessions in memory: offsets, retention, where a reader starts (section 11.2), lives of sessions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rwt_protocol import SessionRecord, codec
from rwt_protocol.codes import GapReason, Level
from rwt_protocol.frames import Gap, Position, Publication
from rwt_protocol.key_schedule import token_id
from rwt_protocol.limits import MAX_TAGS_HELD, RESUME_WINDOW_MS
from rwt_protocol.session import Advance, Swap
from rwt_server import Retention
from rwt_server.engine import Appended
from rwt_server.engine_memory import MemoryEngine, MemoryLog, MemorySessions


class Clock:
    """Time that a test sets."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms

    @property
    def seconds(self) -> float:
        return self.ms / 1000


def make(seed: int = 1, **keep: Any) -> tuple[MemoryLog, Clock]:
    clock = Clock()
    return MemoryLog(Retention(**keep), random.Random(seed).randbytes, clock), clock


def put(log: MemoryLog, *bodies: bytes, level: Level = Level.STANDARD) -> Appended:
    done: list[Appended] = []
    log.append([Publication(body, 1) for body in bodies], level, b"", done.append)
    (answer,) = done
    return answer


def bodies(log: MemoryLog, after: int, size: int = 1 << 30, most: int = 1 << 30) -> list[bytes]:
    return [codec.decode_entry(entry.encoded).body for entry in log.read(after, size, most)]


def test_offsets_have_no_holes_and_tags_differ() -> None:
    log, clock = make()
    assert (log.first, log.tail, len(log.id)) == (1, 0, 8)
    assert put(log, b"a", b"b") == Appended(1, codec.encode_uint(clock.ms))
    clock.ms += 5
    assert put(log, *[b"%d" % n for n in range(1_000)]) == Appended(3, codec.encode_uint(clock.ms))
    assert (log.first, log.tail) == (1, 1_002)
    entries = [codec.decode_entry(entry.encoded) for entry in log.read(0, 1 << 30, 2_000)]
    assert [entry.offset for entry in entries] == list(range(1, 1_003))
    assert len({entry.tag for entry in entries}) == 1_002 and {len(entry.tag) for entry in entries} == {8}
    assert [entry.stored_ms for entry in entries[1:3]] == [clock.ms - 5, clock.ms]


def test_an_entry_keeps_its_level_and_fields() -> None:
    log, _ = make()
    sender = codec.encode_sender("ann", b"12345678")
    message = Publication(b"x", None, form=2, priority=0)
    log.append([message], Level.MAXIMUM, sender, lambda _: None)
    (stored,) = log.read(0, 1, 1)
    entry = codec.decode_entry(stored.encoded)
    assert (entry.form, entry.priority, entry.sender, entry.sender_id) == (2, 0, "ann", b"12345678")
    assert stored.level is Level.MAXIMUM and stored.tag == entry.tag


def test_reads_are_bounded_but_never_empty_handed() -> None:
    log, _ = make()
    put(log, *[bytes(1_000)] * 10)
    assert len(bodies(log, 0, most=3)) == 3
    assert len(bodies(log, 0, size=2_200)) == 2
    assert len(bodies(log, 0, size=1)) == 1
    assert bodies(log, 10) == [] and bodies(log, 9) == [bytes(1_000)]


@pytest.mark.parametrize(
    ("keep", "first"),
    [
        pytest.param({"max_messages": 10}, 91, id="entries"),
        pytest.param({"max_messages": 1}, 100, id="one entry"),
        pytest.param({"max_bytes": 65_536}, None, id="bytes"),
        pytest.param({"max_age": 1e6}, 1, id="nothing yet"),
    ],
)
def test_retention(keep: dict[str, Any], first: int | None) -> None:
    log, _ = make(**keep)
    for _ in range(100):
        put(log, bytes(4_000))
    if first is None:
        # What lies behind the oldest entry is less than the limit; with it, the limit is reached.
        assert log.size_behind(log.first) < 65_536 <= log.size_behind(log.first - 1)
        assert 80 < log.first < 90
    else:
        assert log.first == first
    assert log.tail == 100 and len(bodies(log, log.first - 1)) == 101 - log.first


def test_old_entries_go_with_the_next_append() -> None:
    log, clock = make(max_age=10.0)
    put(log, b"a")
    clock.ms += 10_000
    put(log, b"b")
    assert log.first == 1
    clock.ms += 1
    put(log, b"c")
    assert log.first == 2 and bodies(log, 1) == [b"b", b"c"]


def test_the_newest_entry_stays_whatever_its_size() -> None:
    log, _ = make(max_bytes=65_536)
    put(log, b"small")
    put(log, bytes(200_000))
    assert (log.first, log.tail) == (2, 2)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_life_against_a_model(seed: int) -> None:
    dice = random.Random(seed)
    log, _ = make(seed, max_messages=dice.choice((7, 500, 3_000)))
    truth: list[bytes] = []
    for _ in range(2_000):
        new = [dice.randbytes(dice.randint(0, 8)) for _ in range(dice.randint(1, 9))]
        assert put(log, *new).first_offset == len(truth) + 1, seed
        truth += new
        assert (log.tail, log.first) == (len(truth), max(1, len(truth) - log.retention.max_messages + 1)), (
            seed
        )
        after = dice.randint(log.first - 1, log.tail)
        assert bodies(log, after, most=20) == truth[after : after + 20], (seed, after)
    assert len(log._entries) <= 2 * log.retention.max_messages + 2_048, seed


def test_bytes_behind_a_place() -> None:
    log, _ = make(max_messages=4)
    put(log, *[bytes(1_000)] * 4)
    each = log.size_behind(3)
    assert [log.size_behind(after) // each for after in range(5)] == [4, 3, 2, 1, 0]
    put(log, *[bytes(1_000)] * 2)
    assert log.size_behind(0) == log.size_behind(2) == 4 * each and log.size_behind(6) == 0


# --- where delivery starts -------------------------------------------------------------------------------


def tags(log: MemoryLog) -> Sequence[bytes]:
    return [
        b"",
        *[b""] * (log.first - 1),
        *[entry.tag for entry in log.read(log.first - 1, 1 << 30, 1 << 30)],
    ]


@pytest.mark.parametrize(
    ("history", "start"), [(0, 20), (1, 19), (5, 15), (10, 10), (11, 10), (10_000, 10)], ids=str
)
def test_without_a_position(history: int, start: int) -> None:
    log, _ = make(max_messages=10)
    put(log, *[b""] * 20)
    found = log.start(None, history, 0)
    assert (found.position.offset, found.gap) == (start, None) and found.position.log == log.id


@pytest.mark.parametrize(
    ("offset", "tag", "held", "start", "gap"),
    [
        pytest.param(20, True, 0, 20, None, id="newest"),
        pytest.param(11, True, 0, 11, None, id="oldest"),
        pytest.param(10, True, 0, 10, None, id="before the oldest, tag kept"),
        pytest.param(9, False, 0, 10, (GapReason.TRIMMED, 10, 10), id="one is gone"),
        pytest.param(0, None, 0, 10, (GapReason.TRIMMED, 1, 10), id="from the beginning"),
        pytest.param(15, False, 0, 15, (GapReason.DIVERGED, 16, 15), id="another tag"),
        pytest.param(15, False, 3, 12, (GapReason.DIVERGED, 13, 15), id="another tag, three held"),
        pytest.param(15, False, 99, 10, (GapReason.DIVERGED, 11, 15), id="another tag, many held"),
        pytest.param(10, False, 0, 10, (GapReason.DIVERGED, 11, 10), id="another tag of the trimmed one"),
        pytest.param(21, False, 0, 20, (GapReason.DIVERGED, 21, 21), id="beyond"),
        pytest.param(25, False, 7, 18, (GapReason.DIVERGED, 19, 25), id="beyond, seven held"),
        pytest.param(10**12, False, 1, 20, (GapReason.DIVERGED, 21, 10**12), id="far beyond"),
    ],
)
def test_behind_a_position(
    offset: int, tag: bool | None, held: int, start: int, gap: tuple[GapReason, int, int] | None
) -> None:
    log, _ = make(max_messages=10)
    put(log, *[b""] * 10)
    known = {
        entry.offset: entry.tag
        for entry in map(codec.decode_entry, (e.encoded for e in log.read(0, 99999, 99)))
    }
    put(log, *[b""] * 10)
    known |= dict(enumerate(tags(log))) | {10: known[10]}
    claimed = b"" if tag is None else known[offset] if tag else b"8 others"
    found = log.start(Position(log.id, offset, claimed), 4, held)
    assert found.position == log.position(start)
    told = None if found.gap is None else (found.gap.reason, found.gap.first, found.gap.last)
    assert told == gap
    if found.gap is not None:
        assert (found.gap.log, found.gap.next) == (log.id, found.position)


def test_no_more_than_so_many_entries_are_sent_again() -> None:
    log, _ = make()
    put(log, *[b""] * 3_000)
    assert log.start(Position(log.id, 2_500, b"another!"), 0, 99_999).position.offset == 2_500 - MAX_TAGS_HELD


def test_behind_a_position_of_another_log() -> None:
    log, _ = make(max_messages=10)
    put(log, *[b""] * 20)
    found = log.start(Position(b"otherlog", 15, b"whatever"), 0, 5)
    assert found.position == log.position(10) and found.gap is not None
    assert found.gap[:4] == (GapReason.LOG_LOST, b"otherlog", 16, 0)


def test_an_empty_log_has_a_position() -> None:
    log, _ = make()
    empty = Position(log.id, 0, b"")
    assert log.start(None, 5, 0) == log.start(empty, 0, 0) == (empty, None)
    put(log, b"a")
    assert log.start(empty, 0, 0) == (empty, None)


def test_a_reader_that_was_overtaken() -> None:
    log, _ = make(max_messages=10)
    put(log, *[b""] * 30)
    gap = log.gap_before(4, GapReason.LAG_DROPPED)
    assert gap == Gap(GapReason.LAG_DROPPED, log.id, 5, 20, log.position(20))
    assert len(gap.next.tag) == 8


def test_an_engine_keeps_one_log_for_a_name_until_it_is_dropped() -> None:
    engine = MemoryEngine(random.Random(3).randbytes, lambda: 0.0, lambda: 0)
    log = engine.log("x", Retention())
    assert engine.log("x", Retention()) is log and engine.log("y", Retention()).id != log.id
    engine.drop("x")
    engine.drop("never there")
    assert engine.log("x", Retention()).id != log.id


# --- sessions --------------------------------------------------------------------------------------------

RECORD = SessionRecord(
    sid=bytes(16), user="ann", key="k", token=bytes(32), suites=(2,), expires_at=1_030.0, ends_at=90_000.0
)


async def sessions(**change: object) -> tuple[MemorySessions, Clock]:
    clock = Clock()
    store = MemorySessions(lambda: clock.seconds)
    await store.create(replace(RECORD, **change))  # type: ignore[arg-type]
    return store, clock


async def test_a_ticket_lives_as_long_as_it_says() -> None:
    store, clock = await sessions()
    clock.ms = 1_030_000
    assert await store.lookup(RECORD.sid) == RECORD
    clock.ms += 1
    assert await store.lookup(RECORD.sid) is None and len(store) == 0


async def test_a_revoked_session_stays_until_its_end() -> None:
    store, clock = await sessions()
    await store.revoke(RECORD.sid)
    clock.ms = 90_000_000
    found = await store.lookup(RECORD.sid)
    assert found is not None and found.revoked and store.purge() == []
    clock.ms += 1
    assert store.purge() == [RECORD.sid] and await store.lookup(RECORD.sid) is None


async def test_a_heartbeat_prolongs_and_never_shortens() -> None:
    store, _ = await sessions()
    await store.touch(RECORD.sid, 60_000)
    found = await store.lookup(RECORD.sid)
    assert found is not None and found.expires_at == 1_000.0 + 60.0 + RESUME_WINDOW_MS / 1000
    await store.touch(RECORD.sid, 0)
    again = await store.lookup(RECORD.sid)
    assert again is not None and again.expires_at == found.expires_at
    await store.touch(b"nobody", 1)
    assert len(store) == 1


async def test_an_ended_session_is_gone_at_once() -> None:
    store, _ = await sessions()
    await store.end(RECORD.sid)
    await store.end(RECORD.sid)
    await store.revoke(RECORD.sid)
    assert await store.lookup(RECORD.sid) is None


STEP = Advance(RECORD.sid, token_id(RECORD.token), 1, bytes(range(32)), 2, 60_000)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({}, Swap.ADVANCED, id="good"),
        pytest.param({"revoked": True}, Swap.REVOKED, id="revoked"),
        pytest.param({"token": bytes(31) + b"x"}, Swap.LOST, id="another token"),
        pytest.param({"expires_at": 980.0}, Swap.GONE, id="expired"),
        pytest.param({"ends_at": 999.0}, Swap.GONE, id="over"),
    ],
)
async def test_compare_and_swap(change: dict[str, object], expected: Swap) -> None:
    store, clock = await sessions(**change)
    before = store._records[RECORD.sid]
    assert await store.advance(STEP) is expected
    after = store._records[RECORD.sid]
    if expected is Swap.ADVANCED:
        assert (after.epoch, after.token, after.suite) == (1, STEP.token, 2)
        assert after.expires_at == clock.seconds + 60 + RESUME_WINDOW_MS / 1000
    else:
        assert after == before


async def test_a_swap_of_an_unknown_session_makes_none() -> None:
    store = MemorySessions(lambda: 0.0)
    assert await store.advance(STEP) is Swap.GONE
    assert len(store) == 0
