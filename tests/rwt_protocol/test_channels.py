"""Channels and the outbox: names, places in logs, gaps, and the order in which messages leave (sections 10, 11)."""

import unicodedata
from random import Random

import pytest

from rwt_protocol import codec, limits
from rwt_protocol.channels import INBOX, Channel, ChannelState, Outbox, Outgoing, check_name, encode_outgoing
from rwt_protocol.codes import Form, GapReason, Level, Use
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Ack, AckRun, Entry, Gap, Position, Publication, Sub, SubOk

LOG, OTHER = bytes(8), b"other id"


def tag(offset: int, history: str = "a") -> bytes:
    return f"{history}{offset % 10**7:07}".encode()


def place(offset: int, history: str = "a", log: bytes = LOG) -> Position:
    return Position(log, offset, tag(offset, history) if offset else b"")


def entries(first: int, last: int, history: str = "a") -> list[Entry]:
    return [Entry(b"x", offset, tag(offset, history), 0) for offset in range(first, last + 1)]


def offsets(found: list[Entry]) -> list[int]:
    return [entry.offset for entry in found]


# --- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("news", id="plain"),
        pytest.param("a", id="1 byte"),
        pytest.param("x" * 255, id="255 bytes"),
        pytest.param("é" * 127, id="254 bytes of 2"),
        pytest.param("\U0001f600" * 63, id="252 bytes of 4"),
        pytest.param("../etc/passwd", id="dots and slashes"),
        pytest.param("a@b", id="@ inside"),
        pytest.param(" ", id="space"),
        pytest.param("\u202eabc", id="override is category Cf"),
        pytest.param("\u00a0", id="no-break space"),
        pytest.param("CON.txt", id="case"),
        pytest.param("日本語", id="CJK"),
        pytest.param("é", id="composed"),
    ],
)
def test_good_name(name: str) -> None:
    assert check_name(name) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("", "empty", id="empty"),
        pytest.param("x" * 256, "255", id="256 bytes"),
        pytest.param("é" * 128, "255", id="256 bytes of 2"),
        pytest.param("\U0001f600" * 64, "255", id="256 bytes of 4"),
        pytest.param("@", "reserved", id="@ alone"),
        pytest.param("@admin", "reserved", id="leading @"),
        pytest.param("a\0b", "control", id="NUL"),
        pytest.param("a\r\nb", "control", id="CR LF"),
        pytest.param("a\tb", "control", id="tab"),
        pytest.param("a\x7fb", "control", id="DEL"),
        pytest.param("a\x85b", "control", id="NEL of C1"),
        pytest.param("a\ud800b", "", id="lone surrogate"),
        pytest.param("e\u0301", "form C", id="decomposed"),
        pytest.param("\u212b", "form C", id="Angstrom sign"),
        pytest.param("\u1100\u1161", "form C", id="Hangul letters"),
    ],
)
def test_bad_name(name: str, reason: str) -> None:
    found = check_name(name)
    assert found is not None and reason in found


def test_every_control_character_is_refused() -> None:
    for number in range(0x110):
        expected = unicodedata.category(chr(number)) == "Cc"
        if chr(number) != "@":
            assert (check_name(chr(number)) is not None) is expected, hex(number)


# --- places ----------------------------------------------------------------------------------------------


def open_channel(start: Position, *, stream: int = 5, gap: Gap | None = None, use: int = 3) -> Channel:
    channel = Channel("news")
    channel.subscribe(1, use=Use.BOTH)
    channel.opened(SubOk(1, stream, 0, start, use, 0, gap))
    return channel


def test_states_of_a_channel() -> None:
    channel = Channel("news")
    assert (channel.state, channel.position, channel.wanted, channel.use) == (ChannelState.CLOSED, None, 0, 0)
    assert channel.subscribe(7, use=Use.BOTH, history=10) == Sub(7, "news", history=10, use=3)
    assert channel.state is ChannelState.OPENING
    assert channel.opened(SubOk(7, 5, 0, place(3), 1, 0)) is None
    assert (channel.state, channel.stream, channel.use) == (ChannelState.OPEN, 5, Use.RECEIVE)
    assert channel.position == place(3)
    assert repr(channel) == "<Channel 'news' open>"


def test_a_further_sub_keeps_the_channel_open() -> None:
    channel = Channel("news")
    assert not channel.is_open
    channel.subscribe(1, use=Use.BOTH)
    assert not channel.is_open
    channel.opened(SubOk(1, 5, 0, place(3), 3, 0))
    assert channel.is_open
    for ref in (2, 3):
        channel.subscribe(ref, use=Use.PAUSED)
        assert channel.state is ChannelState.CHANGING and channel.is_open
    assert channel.accept(entries(4, 4)) == entries(4, 4)
    channel.opened(SubOk(2, 5, 0, place(4), 0, 0))
    assert channel.state is ChannelState.OPEN
    assert (channel.use, channel.stream, channel.position) == (Use.PAUSED, 5, place(4))


def test_an_entry_before_subok_is_an_error() -> None:
    channel = Channel("news")
    channel.subscribe(1, use=Use.BOTH)
    with pytest.raises(RWTProtocolError):
        channel.accept(entries(1, 1))


@pytest.mark.parametrize("start", [0, 3, 2**64 - 3])
def test_entries_follow_their_position(start: int) -> None:
    channel = open_channel(place(start))
    batch = entries(start + 1, start + 2)
    assert channel.accept(batch) == batch
    assert channel.position == place(start + 2)


@pytest.mark.parametrize("offset", [1, 3, 5, 2**64 - 1], ids=["first", "repeated", "one missing", "far"])
def test_an_entry_that_is_not_the_next_one_is_an_error(offset: int) -> None:
    channel = open_channel(place(3))
    with pytest.raises(RWTProtocolError):
        channel.accept(entries(offset, offset))
    with pytest.raises(RWTProtocolError):
        channel.accept([*entries(4, 4), *entries(offset + 1, offset + 1)])
    assert channel.accept(entries(4, 5)) == entries(4, 5)


def test_a_resume_goes_on_behind_the_last_entry_and_ignores_history() -> None:
    channel = open_channel(place(3))
    assert channel.subscribe(2, use=Use.RECEIVE, history=9) == Sub(2, "news", after=place(3), use=1)
    channel.accept(entries(4, 8))
    assert channel.subscribe(3, use=Use.BOTH) == Sub(3, "news", after=place(8), use=3, tags_held=5)
    channel.opened(SubOk(3, 6, 0, place(8), 3, 0))
    assert (channel.stream, channel.position) == (6, place(8))
    assert channel.accept(entries(9, 9)) == entries(9, 9)


def test_at_most_1024_tags_are_held() -> None:
    channel = open_channel(place(0))
    channel.accept(entries(1, 3_000))
    assert channel.subscribe(2, use=Use.BOTH).tags_held == limits.MAX_TAGS_HELD == 1_024


GAPS = [
    pytest.param(GapReason.TRIMMED, LOG, 4, 9, place(9), id="trimmed"),
    pytest.param(GapReason.LAG_DROPPED, LOG, 4, 9, place(9), id="lag dropped"),
    pytest.param(GapReason.LOG_LOST, LOG, 4, 0, place(0, log=OTHER), id="log lost"),
    pytest.param(GapReason.LOG_LOST, LOG, 4, 0, place(20, log=OTHER), id="log lost, trimmed"),
    pytest.param(GapReason.DIVERGED, LOG, 2, 3, place(1, "b"), id="diverged"),
]


@pytest.mark.parametrize(("reason", "log", "first", "last", "after"), GAPS)
def test_delivery_goes_on_behind_a_gap(
    reason: int, log: bytes, first: int, last: int, after: Position
) -> None:
    gap = Gap(reason, log, first, last, after)
    running = open_channel(place(3))
    running.skip(gap)
    resumed = open_channel(place(3))
    resumed.subscribe(2, use=Use.BOTH)
    assert resumed.opened(SubOk(2, 9, 0, after, 3, 0, gap)) == gap
    for channel in (running, resumed):
        assert channel.position == after
        found = channel.accept(entries(after.offset + 1, after.offset + 2, "b"))
        assert offsets(found) == [after.offset + 1, after.offset + 2]
        assert channel.position == Position(after.log, after.offset + 2, tag(after.offset + 2, "b"))


def test_a_gap_in_the_first_subok() -> None:
    channel = open_channel(place(9), gap=Gap(1, LOG, 1, 9, place(9)))
    assert channel.position == place(9)


@pytest.mark.parametrize("in_subok", [True, False], ids=["in SUBOK", "as GAP"])
def test_after_a_roll_back_known_entries_are_dropped_and_only_those(in_subok: bool) -> None:
    channel = open_channel(place(0))
    channel.accept(entries(1, 10))
    # The log was rolled back to 6 and written anew; the server starts 8 entries before 10.
    gap = Gap(3, LOG, 3, 10, place(2))
    if in_subok:
        channel.subscribe(2, use=Use.BOTH)
        channel.opened(SubOk(2, 5, 0, place(2), 3, 0, gap))
    else:
        channel.skip(gap)
    assert offsets(channel.accept([*entries(3, 6), *entries(7, 8, "b")])) == [7, 8]
    assert offsets(channel.accept(entries(9, 12, "b"))) == [9, 10, 11, 12]
    assert channel.position == place(12, "b")


def test_the_overlap_ends() -> None:
    channel = open_channel(place(0))
    channel.accept(entries(1, 10))
    channel.skip(Gap(3, LOG, 11, 10, place(10)))
    channel.accept(entries(11, 10 + limits.MAX_TAGS_HELD, "b"))
    # Beyond what a server may repeat, a tag that happens to be known is no repeat.
    last = 11 + limits.MAX_TAGS_HELD
    assert len(channel.accept([Entry(b"x", last, tag(last - 1, "b"), 0)])) == 1


def test_a_lost_log_makes_the_held_tags_worthless() -> None:
    channel = open_channel(place(0))
    channel.accept(entries(1, 10))
    channel.skip(Gap(2, LOG, 11, 0, place(0, log=OTHER)))
    assert channel.subscribe(2, use=Use.BOTH).tags_held is None
    assert offsets(channel.accept(entries(1, 3))) == [1, 2, 3]


# --- outbox ----------------------------------------------------------------------------------------------

Message = Outgoing[str]


def message(channel: str, context: str, size: int = 10) -> Message:
    return Outgoing(channel, bytes(size), Form.BYTES, Level.STANDARD, context)


def outbox(*queued: str) -> Outbox[str]:
    """Messages named by channel and number, such as "a1"."""
    box: Outbox[str] = Outbox()
    for name in queued:
        box.put(message(name[0], name))
    return box


def take(box: Outbox[str], open_channels: str, most: int = 10**6) -> list[str]:
    return [item.context for item in box.take(lambda name: name in open_channels, most)]


def mids(box: Outbox[str], open_channels: str) -> list[int]:
    return [item.mid for item in box.take(lambda name: name in open_channels, 10**6)]


def ack(first: int, count: int = 1, offset: int = 100) -> Ack:
    return Ack((AckRun(first, count, 5, LOG, offset, 9),))


def test_mids_are_given_when_messages_leave() -> None:
    box = outbox("a1", "b1", "a2")
    first = box.take(lambda name: True, 10**6)
    assert [(item.context, item.mid) for item in first] == [("a1", 1), ("a2", 2), ("b1", 3)]
    assert (len(box), box.size) == (3, 30)
    assert take(box, "ab") == []


def test_a_channel_that_is_not_open_waits() -> None:
    box = outbox("a1", "b1", "a2")
    assert take(box, "b") == ["b1"]
    assert take(box, "") == []
    assert mids(box, "ab") == [2, 3]


def test_take_stops_when_its_room_is_used() -> None:
    box = outbox("a1", "a2", "a3", "a4")
    assert take(box, "a", 0) == []
    assert take(box, "a", 1) == ["a1"]
    assert take(box, "a", 11) == ["a2", "a3"]
    assert take(box, "a", 10) == ["a4"]


def test_no_more_unanswered_than_the_window() -> None:
    box = outbox(*(f"a{index}" for index in range(10)))
    box.window = 4
    assert take(box, "a") == ["a0", "a1", "a2", "a3"]
    assert take(box, "a") == []
    box.acknowledged(ack(1, 2))
    assert take(box, "a") == ["a4", "a5"]
    assert box.remove(6) is not None
    assert take(box, "a") == ["a6"]


def test_answers() -> None:
    box = outbox("a1", "a2", "a3", "a4")
    take(box, "a")
    found = box.acknowledged(Ack((AckRun(3, 2, 5, LOG, 7, 9), AckRun(1, 1, 5, OTHER, 1, 8))))
    assert [(item.message.context, item.log, item.offset, item.stored_ms) for item in found] == [
        ("a3", LOG, 7, 9),
        ("a4", LOG, 8, 9),
        ("a1", OTHER, 1, 8),
    ]
    assert (len(box), box.size) == (1, 10)
    # A run may cover mids that were answered before; each is told once.
    assert [item.message.context for item in box.acknowledged(ack(1, 4))] == ["a2"]
    assert box.acknowledged(ack(1, 4)) == []
    assert box.remove(2) is None
    assert (len(box), box.size) == (0, 0)


def test_an_ack_of_more_than_the_window_is_refused_at_once() -> None:
    box = outbox("a1")
    take(box, "a")
    assert len(box.acknowledged(ack(1))) == 1
    for count in (box.window + 1, 2**64 - 1):
        with pytest.raises(RWTProtocolError):
            box.acknowledged(ack(1, count))


def test_channels_with_anything_under_way() -> None:
    box = outbox("b1", "a1", "b2")
    assert sorted(box.channels()) == ["a", "b"]
    take(box, "a")
    assert sorted(box.channels()) == ["a", "b"]
    box.acknowledged(ack(1))
    assert box.channels() == ["b"]


def test_an_ack_of_a_message_that_was_never_sent_is_refused() -> None:
    box = outbox("a1", "a2")
    take(box, "a")
    for first, count in ((3, 1), (2, 2), (1, 3)):
        with pytest.raises(RWTProtocolError):
            box.acknowledged(ack(first, count))
    assert len(box.acknowledged(ack(1, 2))) == 2


def test_two_roll_backs_repeat_nothing() -> None:
    """Section 11: after a gap `diverged` what survived comes again; a second one must not undo the first."""

    def entries(first: int, last: int, mark: int) -> list[Entry]:
        return [Entry(b"", n, bytes((mark,)) + n.to_bytes(7, "big"), 9) for n in range(first, last + 1)]

    channel = Channel("x")
    channel.opened(SubOk(1, 5, 0, Position(LOG, 0, b""), 3, 0))
    old = entries(1, 1024, 1)
    assert channel.accept(old) == old
    back = Gap(GapReason.DIVERGED, LOG, 1, 1024, Position(LOG, 0, b""))
    channel.skip(back)
    new = entries(1001, 1024, 2)
    assert channel.accept([*old[:1000], *new]) == new
    channel.skip(back)
    assert channel.accept([*old[:1000], *new]) == []
    later = entries(1025, 1026, 3)
    assert channel.accept(later) == later


def test_after_a_gap_only_later_tags_are_held() -> None:
    channel = Channel("x")
    channel.opened(SubOk(1, 5, 0, Position(LOG, 0, b""), 3, 0))
    channel.accept([Entry(b"", n, bytes((n,)) * 8, 9) for n in range(1, 6)])
    channel.skip(Gap(GapReason.LAG_DROPPED, LOG, 6, 9, Position(LOG, 9, b"9" * 8)))
    assert channel.subscribe(2, use=Use.BOTH).tags_held is None
    channel.accept([Entry(b"", 10, b"a" * 8, 9)])
    assert channel.subscribe(3, use=Use.BOTH).tags_held == 1


def test_after_a_resume_the_unanswered_go_first_with_their_mids() -> None:
    box = outbox("a1", "b1", "a2")
    take(box, "a")
    take(box, "b")
    box.put(message("a", "a3"))
    box.acknowledged(ack(2))
    box.reconnecting()
    assert [(item.context, item.mid) for item in box.take(lambda name: True, 10**6)] == [
        ("a1", 1),
        ("b1", 3),
        ("a3", 4),
    ]


def test_nothing_passes_the_lowest_unanswered_one() -> None:
    box = outbox("a1", "b1", "a2")
    take(box, "a")
    take(box, "b")  # a1, a2, b1 have the mids 1, 2, 3
    box.put(message("b", "b2"))
    box.put(message("c", "c1"))
    box.reconnecting()
    assert take(box, "bc") == []
    assert take(box, "abc", 1) == ["a1"]
    assert take(box, "bc") == []
    assert take(box, "abc") == ["a2", "b1", "b2", "c1"]


def test_what_was_answered_or_given_up_holds_nobody_up() -> None:
    box = outbox("a1", "b1")
    take(box, "a")
    take(box, "b")
    box.put(message("b", "b2"))
    box.reconnecting()
    box.remove(1)
    assert take(box, "b") == ["b1", "b2"]

    box = outbox("a1", "b1")
    take(box, "a")
    take(box, "b")
    box.reconnecting()
    assert take(box, "b") == []
    box.give_up("a")
    assert take(box, "b") == ["b1"]


def test_reconnecting_in_the_middle_of_a_resume_starts_anew() -> None:
    box = outbox("a1", "a2", "a3")
    take(box, "a")
    box.reconnecting()
    assert take(box, "a", 1) == ["a1"]
    box.reconnecting()
    assert take(box, "a") == ["a1", "a2", "a3"]
    assert take(box, "a") == []


def test_the_window_does_not_hold_up_what_is_sent_again() -> None:
    box = outbox("a1", "a2", "a3")
    take(box, "a")
    box.put(message("a", "a4"))
    box.window = 2  # the new connection grants less
    box.reconnecting()
    assert take(box, "a") == ["a1", "a2", "a3"]
    box.acknowledged(ack(1, 2))
    assert take(box, "a") == ["a4"]


def test_a_new_session_loses_what_was_sent_and_keeps_the_queues() -> None:
    box = outbox("a1", "b1")
    take(box, "a")
    box.reconnecting()
    assert [item.context for item in box.forget_session()] == ["a1"]
    assert (len(box), box.size) == (1, 10)
    assert [(item.context, item.mid) for item in box.take(lambda name: True, 10**6)] == [("b1", 1)]
    assert box.forget_session()[0].context == "b1"
    assert box.forget_session() == []


def test_give_up() -> None:
    box = outbox("a1", "b1", "a2")
    take(box, "a", 1)
    sent, queued = box.give_up("a")
    assert [item.context for item in sent] == ["a1"]
    assert [item.context for item in queued] == ["a2"]
    assert (len(box), box.size) == (1, 10)
    assert box.give_up("a") == ([], [])
    assert take(box, "ab") == ["b1"]


def test_discard() -> None:
    box = outbox("a1")
    sent = next(iter(box.take(lambda name: True, 10)))
    waiting, stranger = message("a", "a2"), message("a", "a3")
    box.put(waiting)
    assert not box.discard(sent)
    assert not box.discard(stranger)
    assert not box.discard(message("z", "z1"))
    assert box.size == 20
    assert box.discard(waiting)
    assert not box.discard(waiting)
    assert (len(box), box.size, take(box, "a")) == (1, 10, [])


def test_put_in_front() -> None:
    box = outbox("a1", "a2")
    box.put(message("a", "a0"), front=True)
    assert take(box, "a") == ["a0", "a1", "a2"]


@pytest.mark.parametrize("form", list(Form), ids=lambda form: form.name)
def test_encode_outgoing(form: Form) -> None:
    item: Message = Outgoing("a", b"body", form, Level.STANDARD, "")
    item.mid = 9
    assert codec.decode_publication(encode_outgoing(item)) == Publication(b"body", 9, form)


def test_the_inbox_has_no_name() -> None:
    assert INBOX == ""


def test_random_histories_keep_the_order() -> None:
    """mids only grow on a connection, per channel nothing overtakes, sizes add up, and nothing is lost."""
    for seed in range(60):
        random = Random(seed)
        box: Outbox[str] = Outbox()
        box.window = random.choice((2, 5, 50))
        put = dict.fromkeys("abc", 0)
        last = highest = 0
        sent, told = dict.fromkeys("abc", 0), set()
        for _ in range(120):
            where = f"seed {seed}"
            move = random.random()
            if move < 0.4:
                name = random.choice("abc")
                put[name] += 1
                box.put(message(name, f"{name}{put[name]}", random.randrange(20)))
            elif move < 0.7:
                ready = "".join(random.sample("abc", random.randrange(4)))
                for item in box.take(ready.__contains__, random.randrange(60)):
                    assert item.mid > last, where
                    last = item.mid
                    highest = max(highest, last)
                    number = int(item.context[1:])
                    assert number <= sent[item.channel] + 1, where
                    sent[item.channel] = max(sent[item.channel], number)
            elif move < 0.9:
                first = random.randrange(1, highest + 2)
                number = min(random.randrange(1, box.window + 1), highest + 1 - first)
                if number < 1:
                    continue
                for answered in box.acknowledged(ack(first, number)):
                    assert answered.message.context not in told, where
                    told.add(answered.message.context)
            else:
                box.reconnecting()
                last = 0
        box.reconnecting()
        while rest := list(box.take(lambda name: True, 10**6)):
            for item in rest:
                box.remove(item.mid)
                told.add(item.context)
        assert told == {f"{name}{index}" for name in "abc" for index in range(1, put[name] + 1)}, (
            f"seed {seed}"
        )
        assert (len(box), box.size) == (0, 0), f"seed {seed}"
