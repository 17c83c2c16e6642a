"""Channels (section 10): subscriptions, answers, fan-out, positions and gaps, pacing of publishers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rwt_protocol.codes import CloseCode, ErrorCode, GapReason, Level, Use
from rwt_protocol.events import Delivered, Refused, StreamClosed
from rwt_protocol.frames import Closed, Err, Position, Publication
from rwt_server import ChannelRules, Retention, hub
from tests.running import Running, running, until
from tests.servers import Wire, ticket, wire


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


def tail(server: Running, channel: str = "x") -> int:
    return server.node.hub.channels[channel].log.tail


def numbered(first: int, last: int, size: int = 0) -> list[Publication]:
    return [Publication(b"%d" % mid + bytes(size), mid) for mid in range(first, last + 1)]


# --- SUB and UNSUB ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "use", "code"),
    [
        pytest.param("@x", None, ErrorCode.BAD_NAME, id="reserved"),
        pytest.param("a\x00b", None, ErrorCode.BAD_NAME, id="control character"),
        pytest.param("e\u0301", None, ErrorCode.BAD_NAME, id="not NFC"),
        pytest.param("é" * 128, None, ErrorCode.BAD_NAME, id="256 bytes"),
        pytest.param("@x", 0, ErrorCode.BAD_NAME, id="reserved, paused"),
        pytest.param("chat.a", 0, ErrorCode.NOT_OPEN, id="paused and not open"),
        pytest.param("other", 0, ErrorCode.NOT_OPEN, id="paused, not open, not authorised"),
        pytest.param("other", None, ErrorCode.NOT_AUTHORISED, id="not authorised"),
        pytest.param("other", 1, ErrorCode.NOT_AUTHORISED, id="not authorised to receive"),
    ],
)
async def test_refused_subscriptions(server: Running, name: str, use: int | None, code: ErrorCode) -> None:
    async with wire(server, scopes=["chat.*", "@*", "a*", "e*", "é*"]) as raw:
        assert await raw.refused(name, use=use) == code
        assert name not in server.node.hub.channels
        assert (await raw.sub("chat.a")).use == 3  # and the connection goes on


@pytest.mark.parametrize("name", ["x", "é" * 127, " ", "日本", "a@b", "x" * 255], ids=ascii)
async def test_names(server: Running, name: str) -> None:
    async with wire(server) as raw:
        answer = await raw.sub(name)
        assert (answer.stream, answer.mode, answer.use, answer.policy, answer.gap) == (1, 0, 3, 0, None)


async def test_streams_are_of_the_node_and_never_given_again(server: Running) -> None:
    async with wire(server) as one, wire(server) as two:
        a, b = await one.sub("a"), await two.sub("b")
        assert (await two.sub("a")).stream == a.stream != b.stream
        await one.unsub(a.stream)
        await two.unsub(a.stream)
        assert (await one.sub("c")).stream not in (a.stream, b.stream)
        assert (await one.sub("a")).stream == a.stream


async def test_unsub_is_answered_and_ends_delivery(server: Running) -> None:
    async with wire(server) as raw, wire(server) as writer:
        stream = (await raw.sub("x")).stream
        answer = await raw.unsub(stream)
        assert isinstance(answer, Closed) and (answer.stream, answer.code) == (stream, 0)
        again, never = await raw.unsub(stream), await raw.unsub(12_345)
        assert isinstance(again, Err) and isinstance(never, Err)
        assert again.code == never.code == ErrorCode.NOT_OPEN
        await writer.store((await writer.sub("x", use=2)).stream, Publication(b"late", 1))
        raw.publish(stream, Publication(b"refused", 1))
        await raw.until(lambda: bool(raw.errors))
        assert raw.errors == [(1, ErrorCode.NOT_OPEN)] and not raw.entries and tail(server) == 1


async def test_the_inbox_is_stream_0_and_receives_only(server: Running) -> None:
    async with wire(server, scopes=[]) as raw:
        answer = await raw.sub("", use=3)
        assert (answer.stream, answer.use, answer.start.offset) == (0, 1, 0)
        raw.conn.send_message(1, 0, b"\0\0body")
        said, code = await raw.over()
        assert (said.code, said.sealed, code) == (4400, True, 4400)


async def test_no_more_streams_than_the_limit(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwt_server.hub.MAX_STREAMS", 2)
    monkeypatch.setattr("rwt_server.hub.MAX_CHANNELS", 3)
    async with wire(server) as one, wire(server) as two:
        streams = [(await one.sub(name)).stream for name in ("a", "b")]
        assert await one.refused("c") == ErrorCode.LIMIT
        assert (await one.sub("a", use=1)).use == 1
        await one.unsub(streams[0])
        assert (await one.sub("c")).use == 3
        assert await two.refused("d") == ErrorCode.LIMIT


# --- MSG -------------------------------------------------------------------------------------------------


async def test_every_answer_to_a_message(server: Running) -> None:
    async with wire(server) as raw:
        reads, stream = (await raw.sub("r", use=1)).stream, (await raw.sub("x", use=2)).stream
        raw.publish(999, Publication(b"", 1), Publication(b"dropped"), Publication(b"", 2))
        raw.publish(reads, Publication(b"", 3))
        raw.publish(reads, Publication(b"", 4, e2e_scheme=1))  # the first rule that fits
        raw.publish(stream, Publication(b"", 5, e2e_scheme=1, reply_wanted=True))
        raw.publish(stream, Publication(b"", 6, reply_wanted=True))
        raw.publish(stream, Publication(b"stored", 9), Publication(b"no answer"))
        raw.publish(stream, Publication(b"", 8))
        raw.publish(stream, Publication(b"", 10))
        await raw.until(lambda: len(raw.acks) == 2 and len(raw.errors) == 7)
        assert raw.errors == [
            (1, ErrorCode.NOT_OPEN),
            (2, ErrorCode.NOT_OPEN),
            (3, ErrorCode.NOT_AUTHORISED),
            (4, ErrorCode.NOT_AUTHORISED),
            (5, ErrorCode.POLICY),
            (6, ErrorCode.NO_HANDLER),
            (8, ErrorCode.OUTCOME_UNKNOWN),
        ]
        assert raw.acks == {9: 1, 10: 3} and tail(server) == 3 and tail(server, "r") == 0


async def test_a_publisher_that_receives_gets_its_own(server: Running) -> None:
    async with wire(server) as raw:
        stream = (await raw.sub("x")).stream
        raw.publish(stream, Publication(b"no mid"), *numbered(1, 3))
        await raw.until(lambda: len(raw.entries) == 4 and len(raw.acks) == 3)
        assert raw.bodies == [b"no mid", b"1", b"2", b"3"] and raw.acks == {1: 2, 2: 3, 3: 4}


@pytest.mark.parametrize("level", list(Level), ids=lambda level: level.name)
async def test_levels_and_fields_arrive(server: Running, level: Level) -> None:
    async with wire(server) as raw, wire(server) as reader:
        await reader.sub("x", use=1)
        stream = (await raw.sub("x", use=2)).stream
        raw.publish(stream, Publication(b"{}", 1, form=2, priority=0), Publication(b"", 2), level=level)
        await raw.until(lambda: len(raw.acks) == 2)
        await reader.entries_come(2)
        assert {event.level for event in reader.of(Delivered)} == {level}
        assert [(e.offset, e.form, e.priority) for e in reader.entries] == [(1, 2, 0), (2, 0, 1)]


async def test_idempotency_keys(server: Running) -> None:
    async with wire(server, user="ann") as ann, wire(server, user="ann") as again, wire(server) as bob:
        x, y = (await ann.sub("x", use=2)).stream, (await ann.sub("y", use=2)).stream
        await again.sub("x", use=2)
        await bob.sub("x", use=2)
        first = Publication(b"a", 1, idempotency_key=b"k")
        assert await ann.store(x, first) == [1]
        assert await ann.store(x, first._replace(mid=2), first._replace(mid=3)) == [1, 1]
        assert await again.store(x, first) == [1]  # of the user, not of the session
        assert await bob.store(x, first) == [2]
        assert await ann.store(x, first._replace(mid=4, idempotency_key=b"l")) == [3]
        assert await ann.store(y, first._replace(mid=5, body=b"z")) == [1]
        ann.publish(x, first._replace(mid=6, body=b"b"), first._replace(mid=7, form=1))
        await ann.until(lambda: len(ann.errors) == 2)
        assert ann.errors == [(6, ErrorCode.IDEMPOTENCY_CONFLICT), (7, ErrorCode.IDEMPOTENCY_CONFLICT)]
        assert (tail(server), tail(server, "y")) == (3, 1)


async def test_a_repeated_mid_gets_the_same_answer_and_appends_nothing(server: Running) -> None:
    session = await ticket(server)
    async with wire(server, session) as raw:
        stream = (await raw.sub("x", use=2)).stream
        assert await raw.store(stream, *numbered(1, 3)) == [1, 2, 3]
        raw.publish(999, Publication(b"", 4))
        await raw.until(lambda: bool(raw.errors))
        assert await raw.store(stream, *numbered(2, 2)) == [2]  # on the same connection, too
    async with wire(server, session) as raw, wire(server) as other:
        stream = (await raw.sub("x", use=2)).stream
        await other.store((await other.sub("x", use=2)).stream, Publication(b"between", 1))
        raw.publish(stream, *numbered(1, 5))  # repeated and new ones in one frame
        await raw.until(lambda: len(raw.acks) == 4 and bool(raw.errors))
        assert raw.acks == {1: 1, 2: 2, 3: 3, 5: 5} and raw.errors == [(4, ErrorCode.NOT_OPEN)]
        assert tail(server) == 5


async def test_frames_of_one_turn_that_overlap(server: Running) -> None:
    async with wire(server) as raw:
        stream = (await raw.sub("x")).stream
        for first, last in ((1, 2), (3, 3), (2, 4), (4, 4), (5, 6)):
            raw.publish(stream, *numbered(first, last))
        await raw.until(lambda: len(raw.acks) == 6)
        await raw.entries_come(6)
        assert raw.acks == {mid: mid for mid in range(1, 7)} and tail(server) == 6
        assert raw.bodies == [b"1", b"2", b"3", b"4", b"5", b"6"]


async def test_an_answer_older_than_the_window_is_forgotten(server: Running) -> None:
    async with wire(server) as raw:
        stream = (await raw.sub("x", use=2)).stream
        for first in range(1, 6_001, 1_000):
            await raw.store(stream, *numbered(first, first + 999))
        raw.publish(stream, Publication(b"1", 1))
        raw.publish(stream, Publication(b"5000", 5_000))
        await raw.until(lambda: bool(raw.errors))
        assert raw.errors == [(1, ErrorCode.OUTCOME_UNKNOWN)] and tail(server) == 6_000


async def test_two_sessions_do_not_share_answers(server: Running) -> None:
    async with wire(server) as one, wire(server) as two:
        stream = (await one.sub("x", use=2)).stream
        await two.sub("x", use=2)
        assert await one.store(stream, Publication(b"", 7)) == [1]
        assert await two.store(stream, Publication(b"", 1)) == [2]


# --- delivery --------------------------------------------------------------------------------------------


async def test_all_readers_get_every_entry_in_one_order(server: Running) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(wire(server)) for _ in range(5)]
        writers = [await stack.enter_async_context(wire(server)) for _ in range(3)]
        for reader in readers:
            await reader.sub("x", use=1)
        streams = [(await writer.sub("x", use=2)).stream for writer in writers]
        for first in range(1, 201, 10):
            for writer, stream in zip(writers, streams, strict=True):
                writer.publish(stream, *numbered(first, first + 9))
                writer.flush()
        for reader in readers:
            await reader.entries_come(600)
        orders = [[(e.offset, e.tag, e.body) for e in reader.entries] for reader in readers]
        assert all(order == orders[0] for order in orders)
        assert [offset for offset, _, _ in orders[0]] == list(range(1, 601))


async def test_history(server: Running) -> None:
    async with wire(server) as writer, wire(server) as reader:
        await writer.store((await writer.sub("x", use=2)).stream, *numbered(1, 20))
        answer = await reader.sub("x", use=1, history=3)
        assert answer.start.offset == 17
        await reader.entries_come(3)
        assert reader.bodies == [b"18", b"19", b"20"]


async def test_a_reader_that_pauses_goes_on_where_it_was(server: Running) -> None:
    async with wire(server) as reader, wire(server) as writer:
        await reader.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        await writer.store(stream, *numbered(1, 2))
        await reader.entries_come(2)
        for use in (Use.PAUSED, Use.PUBLISH):
            assert (await reader.sub("x", use=use)).use == use
            await writer.store(stream, Publication(b"", max(writer.acks) + 1))
            await reader.sub("y")  # an answer behind which nothing may be on its way
        assert len(reader.entries) == 2
        assert (await reader.sub("x", use=3)).start.offset == 2
        await reader.entries_come(4)
        assert [entry.offset for entry in reader.entries] == [1, 2, 3, 4]
        assert reader.gaps == []


async def test_a_reader_resumes_right_behind_its_position(server: Running) -> None:
    session = await ticket(server)
    async with wire(server) as writer:
        stream = (await writer.sub("x", use=2)).stream
        async with wire(server, session) as reader:
            log = (await reader.sub("x", use=1)).start.log
            await writer.store(stream, *numbered(1, 3))
            await reader.entries_come(3)
            last = reader.entries[-1]
        await writer.store(stream, *numbered(4, 7))
        async with wire(server, session) as reader:
            answer = await reader.sub("x", use=1, after=Position(log, last.offset, last.tag))
            assert (answer.start.offset, answer.gap) == (3, None)
            await reader.entries_come(4)
            assert reader.bodies == [b"4", b"5", b"6", b"7"]


async def test_positions_that_do_not_fit_any_more(tmp_path: Path) -> None:
    rules = ChannelRules(retention=Retention(max_messages=5))

    async def start(
        server: Running, after: Position, tags_held: int = 0
    ) -> tuple[int, GapReason, int, int, list[bytes]]:
        async with wire(server) as reader:
            answer = await reader.sub("x", use=1, after=after, tags_held=tags_held or None)
            gap = answer.gap
            assert gap is not None and gap.next == answer.start
            await reader.entries_come(8 - answer.start.offset)
            return answer.start.offset, GapReason(gap.reason), gap.first, gap.last, reader.bodies

    async with running(tmp_path, channels=(rules,)) as server, wire(server) as writer:
        answer = await writer.sub("x")
        log = answer.start.log
        for mid in range(1, 9):
            await writer.store(answer.stream, Publication(b"%d" % mid, mid))
        await writer.entries_come(8)
        tags = {entry.offset: entry.tag for entry in writer.entries}
        kept = [b"4", b"5", b"6", b"7", b"8"]
        trimmed, lost, diverged = GapReason.TRIMMED, GapReason.LOG_LOST, GapReason.DIVERGED
        assert await start(server, Position(log, 1, tags[1])) == (3, trimmed, 2, 3, kept)
        assert await start(server, Position(log, 0, b"")) == (3, trimmed, 1, 3, kept)
        assert await start(server, Position(b"otherlog", 6, tags[6])) == (3, lost, 7, 0, kept)
        assert await start(server, Position(log, 7, b"wrongtag"), 2) == (5, diverged, 6, 7, kept[2:])
        assert await start(server, Position(log, 99, b"wrongtag"), 1) == (8, diverged, 9, 99, [])


async def test_a_log_is_another_one_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as server, wire(server) as raw:
        answer = await raw.sub("x")
        await raw.store(answer.stream, *numbered(1, 4))
        await raw.entries_come(4)
        last = raw.entries[-1]
    async with running(tmp_path) as server, wire(server) as raw:
        again = await raw.sub("x", after=Position(answer.start.log, last.offset, last.tag))
        assert again.gap is not None and again.start.log != answer.start.log
        assert again.gap[:4] == (GapReason.LOG_LOST, answer.start.log, 5, 0)
        assert again.start == again.gap.next == Position(again.start.log, 0, b"")


async def test_entries_trimmed_under_a_paused_reader_are_told(tmp_path: Path) -> None:
    rules = ChannelRules(retention=Retention(max_messages=5))
    async with running(tmp_path, channels=(rules,)) as server, wire(server) as reader, wire(server) as writer:
        await reader.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        await writer.store(stream, Publication(b"", 1))
        await reader.entries_come(1)
        await reader.sub("x", use=0)
        await writer.store(stream, *numbered(2, 20))
        answer = await reader.sub("x", use=1)
        assert answer.gap is not None and answer.gap[2:4] == (2, 15) and answer.start.offset == 15
        await reader.entries_come(6)
        assert [entry.offset for entry in reader.entries] == [1, 16, 17, 18, 19, 20]


# --- two connections of one session ----------------------------------------------------------------------


async def test_the_older_connection_is_told_and_appends_nothing_more(server: Running) -> None:
    session = await ticket(server)
    async with wire(server, session) as older:
        stream = (await older.sub("x")).stream
        await older.store(stream, *numbered(1, 2))
        async with wire(server, session) as newer:
            older.publish(stream, *numbered(3, 9))
            said, code = await older.over()
            assert (said.code, said.sealed, said.by_peer, code) == (4409, True, True, 4409)
            assert older.acks == {1: 1, 2: 2} and tail(server) == 2
            assert (await newer.sub("x")).start.offset == 2
            assert await newer.store(stream, *numbered(3, 3)) == [3]  # not seen before
            assert newer.conn.epoch == 2


# --- pace ------------------------------------------------------------------------------------------------

PACE = ChannelRules(pattern="p*", on_full="pace", retention=Retention(max_messages=20))


@pytest.fixture
async def paced(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, channels=(PACE,)) as found:
        yield found


async def answered(server: Running, writer: Wire) -> int:
    """Answers that came before that of a later SUB on another channel."""
    await writer.sub("other")
    return len(writer.acks)


async def test_answers_wait_for_a_reader_that_pauses_and_come_when_it_has_caught_up(paced: Running) -> None:
    async with wire(paced) as writer, wire(paced) as reader:
        await reader.sub("p", use=1)
        stream = (await writer.sub("p", use=2)).stream
        await reader.sub("p", use=0)
        for mid in range(1, 16):
            writer.publish(stream, Publication(b"", mid))
            writer.flush()
            await until(lambda mid=mid: tail(paced, "p") == mid)
        assert await answered(paced, writer) == 10  # half the retention
        await reader.sub("p", use=1)
        await reader.entries_come(15)
        await writer.until(lambda: len(writer.acks) == 15)
        assert writer.acks == {mid: mid for mid in range(1, 16)} and not reader.gaps


@pytest.mark.parametrize(
    "goes",
    [
        pytest.param("cut", id="the connection is cut"),
        pytest.param("keep", id="it says that it comes back"),
    ],
)
async def test_answers_wait_for_a_reader_that_is_away(paced: Running, goes: str) -> None:
    session = await ticket(paced)
    async with wire(paced) as writer:
        stream = (await writer.sub("p", use=2)).stream
        async with wire(paced, session) as reader:
            start = (await reader.sub("p", use=1)).start
            if goes == "keep":
                reader.conn.close(1000, 0.0, keep=True)
                reader.flush()
                assert await reader.sock.end() == 1000
        await until(lambda: paced.node.connections == 1)
        for mid in range(1, 13):
            writer.publish(stream, Publication(b"", mid))
            writer.flush()
            await until(lambda mid=mid: tail(paced, "p") == mid)
        assert await answered(paced, writer) == 10
        async with wire(paced, session) as reader:
            await reader.sub("p", use=1, after=start)
            await reader.entries_come(12)
            await writer.until(lambda: len(writer.acks) == 12)


@pytest.mark.parametrize("how", ["unsub", "bye"])
async def test_nobody_waits_for_a_reader_that_has_left(paced: Running, how: str) -> None:
    async with wire(paced) as writer, wire(paced) as reader:
        held = (await reader.sub("p", use=1)).stream
        stream = (await writer.sub("p", use=2)).stream
        await reader.sub("p", use=0)
        for mid in range(1, 16):
            writer.publish(stream, Publication(b"", mid))
            writer.flush()
            await until(lambda mid=mid: tail(paced, "p") == mid)
        assert await answered(paced, writer) == 10
        began = asyncio.get_running_loop().time()
        if how == "unsub":
            await reader.unsub(held)
        else:
            reader.conn.close(1000, 0.0)
            reader.flush()
        await writer.until(lambda: len(writer.acks) == 15)
        assert asyncio.get_running_loop().time() - began < 0.7  # at once, not when a timer looks


async def test_an_answer_does_not_wait_for_ever(paced: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwt_server.hub.PACE_LIMIT", 0.2)
    loop = asyncio.get_running_loop()
    async with wire(paced) as writer, wire(paced) as reader:
        await reader.sub("p", use=1)
        stream = (await writer.sub("p", use=2)).stream
        await reader.sub("p", use=0)
        began = loop.time()
        writer.publish(stream, *numbered(1, 15))
        await writer.until(lambda: len(writer.acks) == 15)
        assert 0.2 <= loop.time() - began < 3.0


def test_the_limit_of_waiting_is_that_of_the_specification() -> None:
    assert hub.PACE_LIMIT == 30.0


async def test_other_channels_do_not_wait(paced: Running) -> None:
    async with wire(paced) as writer, wire(paced) as reader:
        for name in ("p1", "p2", "x"):
            await reader.sub(name, use=1)
            await reader.sub(name, use=0)
        await reader.sub("p2", use=1)
        streams = [(await writer.sub(name, use=2)).stream for name in ("p1", "p2", "x")]
        for index, stream in enumerate(streams):
            writer.publish(stream, *numbered(15 * index + 1, 15 * index + 15))
        writer.flush()
        await reader.entries_come(15)
        await writer.until(lambda: len(writer.acks) == 30)
        assert await answered(paced, writer) == 30 and min(writer.acks) == 16


async def test_more_messages_unanswered_than_the_window_are_fatal(paced: Running) -> None:
    async with wire(paced) as writer, wire(paced) as reader:
        await reader.sub("p", use=1)
        await reader.sub("p", use=0)
        stream = (await writer.sub("p", use=2)).stream
        writer.publish(stream, *numbered(1, 1_024))
        assert await answered(paced, writer) == 0
        writer.publish(stream, *numbered(1_025, 1_025))
        said, code = await writer.over()
        assert (said.code, said.sealed, code) == (CloseCode.TOO_LARGE, True, 4413)
        assert tail(paced, "p") == 1_024


async def test_a_publisher_that_left_does_not_stop_the_others(paced: Running) -> None:
    async with wire(paced) as reader, wire(paced) as stays:
        await reader.sub("p", use=1)
        await reader.sub("p", use=0)
        stream = (await stays.sub("p", use=2)).stream
        async with wire(paced) as leaves:
            await leaves.sub("p", use=2)
            leaves.publish(stream, *numbered(1, 15))
            leaves.flush()
            await until(lambda: tail(paced, "p") == 15)
        stays.publish(stream, *numbered(1, 2))
        stays.flush()
        await until(lambda: tail(paced, "p") == 17)
        assert await answered(paced, stays) == 0
        await reader.sub("p", use=1)
        await stays.until(lambda: stays.acks == {1: 16, 2: 17})


async def test_the_answers_that_waited_are_repeated_after_a_resume(paced: Running) -> None:
    session = await ticket(paced)
    async with wire(paced) as reader:
        await reader.sub("p", use=1)
        await reader.sub("p", use=0)
        async with wire(paced, session) as writer:
            stream = (await writer.sub("p", use=2)).stream
            writer.publish(stream, *numbered(1, 15))
            writer.flush()
            await until(lambda: tail(paced, "p") == 15)
        async with wire(paced, session) as writer:
            await writer.sub("p", use=2)
            assert await writer.store(stream, *numbered(1, 15)) == list(range(1, 16))
            assert tail(paced, "p") == 15 and not writer.of(Refused) and not writer.of(StreamClosed)
