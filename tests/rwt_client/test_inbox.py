"""Received messages on their way to handlers and iterators; bytes that nobody handled are counted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rwt_client.inbox import ChannelInbox, MessageStream, to_message
from rwt_client.options import Message
from rwt_protocol.codes import Form, Level
from rwt_protocol.errors import RWTDisconnectedError, RWTEncodingError
from rwt_protocol.events import Delivered
from rwt_protocol.frames import Entry

OWN = b"own sender id   "


def entry(body: bytes, offset: int = 1, **more: Any) -> Entry:
    return Entry(body, offset, b"tag%05d" % offset, 1_500, **more)


def message(body: bytes, offset: int = 1) -> Message:
    return to_message("x", Level.STANDARD, entry(body, offset), OWN)


class Counted:
    """An inbox, and how often it told of a change."""

    def __init__(self) -> None:
        self.changes = 0
        self.inbox = ChannelInbox(self.changed)

    def changed(self) -> None:
        self.changes += 1

    def put(self, *bodies: bytes, level: Level = Level.STANDARD) -> None:
        entries = [entry(body, offset) for offset, body in enumerate(bodies, 1)]
        self.inbox.put(Delivered(1, level, entries), entries)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.mark.parametrize(
    ("more", "level", "expected"),
    [
        ({}, Level.STANDARD, (b"1", None, False, "normal", "standard", "bytes")),
        ({"form": Form.TEXT}, Level.CLEAR, ("1", None, False, "normal", "clear", "text")),
        ({"form": Form.JSON, "priority": 0}, Level.HIGH, (1, None, False, "high", "high", "json")),
        ({"priority": 2, "sender": "ada"}, Level.MAXIMUM, (b"1", "ada", False, "low", "maximum", "bytes")),
        (
            {"sender": "ada", "sender_id": OWN},
            Level.STANDARD,
            (b"1", "ada", True, "normal", "standard", "bytes"),
        ),
        ({"sender_id": b"another"}, Level.STANDARD, (b"1", None, False, "normal", "standard", "bytes")),
    ],
    ids=["bytes", "clear text", "high json", "low maximum", "own", "another's"],
)
def test_what_applications_see(more: dict[str, Any], level: Level, expected: tuple[Any, ...]) -> None:
    found = to_message("x", level, entry(b"1", 3, **more), OWN)
    meta = found.metadata
    seen = (found.data, meta.sender, meta.own, meta.priority, meta.level, meta.form)
    assert seen == expected and type(found.data) is type(expected[0])
    assert (meta.channel, meta.offset, meta.timestamp, found.size) == ("x", 3, 1.5, 1)


def test_a_body_that_is_not_its_form() -> None:
    with pytest.raises(RWTEncodingError):
        to_message("x", Level.STANDARD, entry(b"\xff", form=Form.TEXT), OWN)


async def test_entries_come_out_in_order_and_are_counted(counted: Counted) -> None:
    inbox = counted.inbox
    counted.put(b"a", b"bb", level=Level.HIGH)
    counted.put(b"ccc")
    assert (inbox.waiting, inbox.unhandled) == (3, 6)
    taken = [item for _ in range(3) if (item := await inbox.next()) is not None]
    assert [(level, found.body) for level, found in taken] == [
        (Level.HIGH, b"a"),
        (Level.HIGH, b"bb"),
        (Level.STANDARD, b"ccc"),
    ]
    assert (inbox.waiting, inbox.unhandled, counted.changes) == (1, 6, 0)  # the last is being handled
    for _, found in taken:
        inbox.handled(len(found.body))
    assert (inbox.waiting, inbox.unhandled, counted.changes) == (0, 0, 3)


async def test_next_waits(counted: Counted) -> None:
    waiting = asyncio.create_task(counted.inbox.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    counted.put(b"a")
    found = await waiting
    assert found is not None and found[1].body == b"a"


async def test_each_iterator_gets_every_message_and_counts(counted: Counted) -> None:
    inbox = counted.inbox
    one, two = inbox.open_stream(), inbox.open_stream()
    for offset, body in enumerate((b"a", b"bb"), 1):
        inbox.give(message(body, offset))
    assert (inbox.unhandled, one.pending, two.pending) == (6, 3, 3)
    assert [(await anext(one)).data for _ in range(2)] == [b"a", b"bb"]
    assert (inbox.unhandled, one.pending) == (3, 0)
    two.close()
    assert (inbox.unhandled, two.pending, inbox.streams) == (0, 0, [one])
    inbox.give(message(b"c", 3))
    assert (await anext(one)).data == b"c"
    with pytest.raises(StopAsyncIteration):
        await anext(two)


async def test_what_waits_is_read_before_the_end(counted: Counted) -> None:
    stream = counted.inbox.open_stream()
    counted.inbox.give(message(b"a"))
    counted.inbox.end(None)
    assert [found.data async for found in stream] == [b"a"]


async def test_an_end_with_a_reason_is_raised(counted: Counted) -> None:
    stream = counted.inbox.open_stream()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    error = RWTDisconnectedError("gone")
    counted.inbox.end(error)
    with pytest.raises(RWTDisconnectedError) as raised:
        await waiting
    assert raised.value is error


async def test_leaving_the_block_closes(counted: Counted) -> None:
    async with counted.inbox.open_stream() as stream:
        counted.inbox.give(message(b"a"))
    assert counted.inbox.streams == [] and counted.inbox.unhandled == 0
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_cancelled_reader_takes_no_wake_up_with_it() -> None:
    taken: list[int] = []
    stream = MessageStream(taken.append, lambda _: None)
    first, second = (asyncio.ensure_future(anext(stream)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    stream.put(message(b"abc"))
    assert (await second).data == b"abc" and first.cancelled() and taken == [3]


async def test_two_readers_share_one_iterator() -> None:
    stream = MessageStream(lambda _: None, lambda _: None)
    readers = [asyncio.ensure_future(anext(stream)) for _ in range(3)]
    await asyncio.sleep(0)
    for offset in range(1, 4):
        stream.put(message(b"%d" % offset, offset))
    assert sorted([(await reader).data for reader in readers]) == [b"1", b"2", b"3"]
