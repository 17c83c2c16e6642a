"""What both ends share: the tables of states, the order of checks, sealing, ending, packing (sections 5, 6, 8)."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from math import inf
from pathlib import Path

import pytest

from rwt_protocol import codec, limits
from rwt_protocol.client import ClientRules
from rwt_protocol.codec import HEADER
from rwt_protocol.codes import CLIENT_TYPES, SERVER_TYPES, CloseCode, FrameType, Level, Suite
from rwt_protocol.connection import MESSAGE_FLAGS, Connection, State, pack_messages
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import Delivered, Published, Terminated
from rwt_protocol.frames import (
    Ack,
    AckRun,
    Bye,
    Closed,
    Confirm,
    Control,
    Err,
    Gap,
    GapNotice,
    Ping,
    Pong,
    Position,
    Publication,
    Ready,
    Reply,
    Request,
    Rotate,
    Rotated,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from rwt_protocol.record import UsageLimits, deflate, pad, unpad
from rwt_protocol.server import ServerRules
from rwt_protocol.suites import generate
from tests.pair import (
    Pair,
    Snapshot,
    dropping,
    end_code,
    ending,
    forge,
    forge_control,
    found,
    opener_of,
)

SPEC = Path(__file__).parents[2] / "conformance" / "spec" / "rwt.md"
STATES = {
    "server": ["EXPECT_HELLO", "EXPECT_CONFIRM", "OPEN", "EXPECT_REPLY"],
    "client": ["EXPECT_WELCOME", "EXPECT_READY", "OPEN", "EXPECT_ROTATED"],
}
PLACE = Position(bytes(8), 0, b"")
SHARE = generate(Suite.X25519, lambda size: bytes(range(1, size + 1))).share
READY = Ready(1, 0, 1_179_648, False, 300_000, 20_000, 1_024, 1_048_576, 60_000, 50_000)
BODIES: dict[FrameType, Control] = {
    FrameType.CONFIRM: Confirm(),
    FrameType.READY: READY,
    FrameType.ROTATE: Rotate(2, SHARE),
    FrameType.REPLY: Reply(2, SHARE),
    FrameType.ROTATED: Rotated(2, 60_000, 50_000),
    FrameType.REQUEST: Request(3),
    FrameType.WARN: Warn("rotation-deferred"),
    FrameType.BYE: Bye(1000),
    FrameType.PING: Ping(7),
    FrameType.PONG: Pong(7),
    FrameType.SUB: Sub(1, "channel"),
    FrameType.SUBOK: SubOk(1, 5, 0, PLACE, 3, 0),
    FrameType.UNSUB: Unsub(2, 5),
    FrameType.ERR: Err(2, ref=1),
    FrameType.CLOSED: Closed(5, 0, 2),
    FrameType.GAP: GapNotice(5, Gap(1, bytes(8), 1, 2, PLACE)),
    FrameType.ACK: Ack((AckRun(1, 1, 5, bytes(8), 1, 1),)),
}
PUBLISHED = codec.encode_publication(Publication(b"body", 1))
ENTRY = codec.encode_entry(1, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, b"body")


# --- the tables of section 6 -----------------------------------------------------------------------------


def table(side: str) -> dict[str, dict[str, str]]:
    """Read a table: for each frame type the cell of each state."""
    lines = iter(SPEC.read_text("utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| received by the {side} |"):
            break
    else:
        raise AssertionError(f"{SPEC} has no table of the {side}")
    states = [cell.strip() for cell in line.strip("|").split("|")][1:]
    next(lines)
    rows: dict[str, dict[str, str]] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        kind, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert kind not in rows
        rows[kind] = dict(zip(states, cells, strict=True))
    return rows


TABLES = {side: table(side) for side in STATES}
CELLS = [
    pytest.param(side, state, kind, cell, id=f"{side}-{state}-{kind}")
    for side, rows in TABLES.items()
    for kind, cells in rows.items()
    for state, cell in cells.items()
]


@pytest.mark.parametrize("side", list(STATES))
def test_a_table_has_all_rows_and_states(side: str) -> None:
    rows = TABLES[side]
    assert list(rows) and set(rows) == {kind.name for kind in FrameType} | {"extension"}
    assert all(list(cells) == STATES[side] for cells in rows.values())
    sent_to = CLIENT_TYPES if side == "server" else SERVER_TYPES
    for kind, cells in rows.items():
        never = set(cells.values()) == {"4400"}
        assert never is (kind != "extension" and FrameType[kind] not in sent_to), kind


def reach(side: str, state: str) -> tuple[Pair, Connection]:
    """Make a pair with one end in a state."""
    pair = Pair(start=False)
    if state in ("OPEN", "EXPECT_REPLY", "EXPECT_ROTATED"):
        pair.pump()
        if state != "OPEN":
            pair.server.rotate(pair.now)
            if state == "EXPECT_ROTATED":
                for frame in pair.server.bytes_to_send():
                    pair.client.receive(frame, pair.now)
    elif state in ("EXPECT_CONFIRM", "EXPECT_READY"):
        for frame in pair.client.bytes_to_send():
            pair.server.receive(frame, pair.now)
        pair.node.work(pair.server, pair.now)
        if state == "EXPECT_READY":
            for frame in pair.server.bytes_to_send():
                pair.client.receive(frame, pair.now)
    end: Connection = pair.server if side == "server" else pair.client
    assert end.state.name == state
    end.events()
    return pair, end


def frame_for(pair: Pair, end: Connection, state: str, kind: str) -> bytes:
    """Make a frame of a type that is right in everything but, perhaps, for the state."""
    if kind == "HELLO":
        return Pair(2, start=False).client.bytes_to_send()[0] if state != "EXPECT_HELLO" else hello_of(pair)
    if kind == "WELCOME":
        fresh = pair if state == "EXPECT_WELCOME" else Pair(2, start=False)
        fresh.server.receive(hello_of(fresh), fresh.now)
        fresh.node.work(fresh.server, fresh.now)
        return fresh.server.bytes_to_send()[0]
    number = 0x40 if kind == "extension" else FrameType[kind]
    if end._opener is None:
        return HEADER.pack(number, 1, 0, 0, 0) + bytes(20)
    if kind == "extension":
        return forge(end, number, b"anything")
    if kind == "MSG":
        return forge(end, number, PUBLISHED if end is pair.server else ENTRY, stream=5)
    if (state, kind) == ("EXPECT_REPLY", "REPLY"):
        pair.client.receive(pair.server.bytes_to_send()[0], pair.now)
        return pair.client.bytes_to_send()[0]
    opener = pair.client._next_opener if (state, kind) == ("EXPECT_ROTATED", "ROTATED") else None
    return forge_control(end, BODIES[FrameType(number)], opener=opener)


def hello_of(pair: Pair) -> bytes:
    (hello,) = pair.client.bytes_to_send()
    return hello


@pytest.mark.parametrize(("side", "state", "kind", "cell"), CELLS)
def test_cell(side: str, state: str, kind: str, cell: str) -> None:
    pair, end = reach(side, state)
    end.receive(frame_for(pair, end, state, kind), pair.now)
    events = end.events()
    for event in events:
        if end is pair.server:
            pair.node.answer(pair.server, event, pair.now)
    if cell.isdigit():
        assert (end.state, end_code(events)) == (State.CLOSED, int(cell))
    else:
        assert (end.state.name, end_code(events)) == (cell, 1000 if cell == "CLOSED" else 0)


@pytest.mark.parametrize("kind", [kind.name for kind in FrameType] + ["extension"])
@pytest.mark.parametrize("side", list(STATES))
def test_closed_ignores_everything(side: str, kind: str) -> None:
    pair, end = reach(side, "OPEN")
    frame = frame_for(pair, end, "OPEN", kind)
    end.close(1000, pair.now)
    end.bytes_to_send()
    end.events()
    end.receive(frame, pair.now)
    end.receive_text(pair.now)
    end.close(4400, pair.now)
    end.send_message(1, 5, PUBLISHED)
    assert end.state is State.CLOSED and end.events() == [] and end.bytes_to_send() == []
    assert not end.wants_to_send


@pytest.mark.parametrize("kind", [kind for kind in FrameType if kind in SERVER_TYPES], ids=lambda k: k.name)
def test_only_rotated_comes_under_the_new_epoch(kind: FrameType) -> None:
    """In EXPECT_ROTATED: ROTATED under the new key, all else under the old one."""
    pair, end = reach("client", "EXPECT_ROTATED")
    if kind is FrameType.WELCOME:
        frame = frame_for(pair, end, "EXPECT_ROTATED", "WELCOME")
    else:
        opener = opener_of(end) if kind is FrameType.ROTATED else pair.client._next_opener
        payload = ENTRY if kind is FrameType.MSG else codec.encode_control(BODIES[kind])
        frame = forge(end, kind, payload, opener=opener, stream=5 if kind is FrameType.MSG else 0)
    end.receive(frame, pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("side", list(STATES))
def test_extension_frames_take_a_number(side: str) -> None:
    pair, end = reach(side, "OPEN")
    for kind in (0x40, 0x55, 0x7F):
        end.receive(forge(end, kind, b"anything"), pair.now)
    end.receive(forge_control(end, Ping(1)), pair.now)
    assert end.state is State.OPEN and end.events() == []


# --- the order of checks ---------------------------------------------------------------------------------


def with_header(frame: bytes, **fields: int) -> bytes:
    names = ("kind", "flags", "epoch", "stream", "seq")
    return (
        HEADER.pack(*(dict(zip(names, HEADER.unpack_from(frame), strict=True)) | fields).values())
        + frame[16:]
    )


ALTERED: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda frame: frame[:31],
    "shorter than a header": lambda frame: frame[:15],
    "empty": lambda _: b"",
    "type 0": lambda frame: with_header(frame, kind=0),
    "reserved type KEY": lambda frame: with_header(frame, kind=0x13),
    "reserved type CAST": lambda frame: with_header(frame, kind=0x21),
    "reserved type CARD": lambda frame: with_header(frame, kind=0x30),
    "reserved type LEFT": lambda frame: with_header(frame, kind=0x33),
    "unknown type below 0x40": lambda frame: with_header(frame, kind=0x3F),
    "private type 0x80": lambda frame: with_header(frame, kind=0x80),
    "private type 0xff": lambda frame: with_header(frame, kind=0xFF),
    "reserved flag 32": lambda frame: with_header(frame, flags=33),
    "reserved flag 128": lambda frame: with_header(frame, flags=129),
    "control frame clear": lambda frame: with_header(frame, flags=0),
    "control frame padded": lambda frame: with_header(frame, flags=3),
    "epoch": lambda frame: with_header(frame, epoch=2),
    "seq too high": lambda frame: with_header(frame, seq=HEADER.unpack_from(frame)[4] + 1),
    "seq too low": lambda frame: with_header(frame, seq=0),
    "stream of a control frame": lambda frame: with_header(frame, stream=5),
    "tag": lambda frame: frame[:-1] + bytes((frame[-1] ^ 1,)),
}


@pytest.mark.parametrize("name", list(ALTERED))
@pytest.mark.parametrize("side", list(STATES))
def test_altered_frame(side: str, name: str) -> None:
    pair, end = reach(side, "OPEN")
    end.receive(ALTERED[name](forge_control(end, Ping(1))), pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("side", list(STATES))
def test_a_sealed_control_frame_with_a_stream(side: str) -> None:
    pair, end = reach(side, "OPEN")
    end.receive(forge(end, FrameType.PING, codec.encode_control(Ping(1)), stream=5), pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("flags", range(256))
@pytest.mark.parametrize("side", list(STATES))
def test_flags_of_a_message(side: str, flags: int) -> None:
    """P and R need E, B goes with neither Z nor R, bits 5 to 7 are 0."""
    e, p, z, r, b, reserved = (flags & bit for bit in (1, 2, 4, 8, 16, 224))
    valid = not reserved and (bool(e) or not (p or r)) and not (b and (z or r))
    assert MESSAGE_FLAGS[flags] is valid
    pair, end = reach(side, "OPEN")
    payload = (
        codec.join_batch([PUBLISHED if side == "server" else ENTRY])
        if b
        else (PUBLISHED if side == "server" else ENTRY)
    )
    if z:
        payload = (
            b"\x01"
            + len(payload).to_bytes(2, "little")
            + bytes(255 - byte for byte in len(payload).to_bytes(2, "little"))
            + payload
        )
    end.receive(forge(end, 0x20, pad(payload) if p else payload, flags=flags, stream=5), pair.now)
    events = end.events()
    if valid:
        assert [type(event) for event in events] == [Published if side == "server" else Delivered]
    else:
        assert end_code(events) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("side", "state", "size", "code"),
    [
        ("server", "EXPECT_HELLO", 4_129, 4413),
        ("client", "EXPECT_WELCOME", 4_129, 4413),
        ("server", "EXPECT_CONFIRM", 4_129, 4413),
        ("client", "EXPECT_READY", 4_129, 4413),
        ("server", "EXPECT_HELLO", 4_128, 4400),
        ("client", "EXPECT_WELCOME", 4_128, 4400),
        ("server", "OPEN", 1_179_649, 4413),
        ("client", "OPEN", 1_179_649, 4413),
        ("server", "OPEN", 1_179_648, 4400),
        ("client", "OPEN", 1_179_648, 4400),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [0x20, 0x01, 0xFF], ids=hex)
def test_size_comes_first(side: str, state: str, size: int, code: int, kind: int) -> None:
    pair, end = reach(side, state)
    end.receive(bytes((kind,)) + bytes(size - 1), pair.now)
    assert end_code(end.events()) == code


@pytest.mark.parametrize("side", list(STATES))
def test_limits_that_ready_told(side: str) -> None:
    pair = Pair(server=ServerRules(max_message=1_000, window=3))
    end: Connection = pair.server if side == "server" else pair.client
    assert (end.max_message, end.window) == (1_000, 3)
    snapshot = Snapshot(end)
    message = PUBLISHED if side == "server" else ENTRY
    for size, code in ((1_000 - 4, 0), (1_001 - 4, 4413)):
        snapshot.restore()
        end.receive(forge(end, 0x20, message + bytes(size), stream=5), pair.now)
        assert end_code(end.events()) == code
    for count, code in ((3, 4400 if side == "server" else 0), (4, 4413)):
        snapshot.restore()
        end.receive(forge(end, 0x20, codec.join_batch([message] * count), flags=17, stream=5), pair.now)
        assert end_code(end.events()) == code
    snapshot.restore()
    end.receive(bytes(1_000 + limits.FRAME_OVERHEAD + 1), pair.now)
    assert end_code(end.events()) == CloseCode.TOO_LARGE


@pytest.mark.parametrize("state", ["EXPECT_WELCOME", "EXPECT_READY", "OPEN", "EXPECT_ROTATED"])
def test_text_ends_the_client(state: str) -> None:
    pair, end = reach("client", state)
    end.receive_text(pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("state", ["EXPECT_HELLO", "EXPECT_CONFIRM", "OPEN", "EXPECT_REPLY"])
def test_text_ends_the_server(state: str) -> None:
    pair, end = reach("server", state)
    end.receive_text(pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR
    last = [frame[0] for frame in end.bytes_to_send()][-1:]
    assert (last == [FrameType.BYE]) is (state in ("OPEN", "EXPECT_REPLY"))


PAYLOADS = {
    "padding without an end": (3, bytes(64), 4400),
    "bad deflate stream": (5, b"\xff\xff", 4400),
    "bytes behind the deflate stream": (5, b"\x03\x00\x00", 4400),
    "empty batch": (17, b"", 4400),
    "batch cut short": (17, b"\x00\x00\x00\x09abc", 4400),
    "batch entry of one byte": (17, b"\x00\x00\x00\x01a", 4400),
    "meta beyond the payload": (1, b"\x00\x09abc", 4400),
    "no meta length": (1, b"\x00", 4400),
    "meta over 1,024": (1, b"\x04\x01" + bytes(1_025), 4400),
    "meta not a map": (1, b"\x00\x01\x00body", 4400),
}


@pytest.mark.parametrize("name", list(PAYLOADS))
@pytest.mark.parametrize("side", list(STATES))
def test_payload_of_a_message(side: str, name: str) -> None:
    flags, payload, code = PAYLOADS[name]
    pair, end = reach(side, "OPEN")
    end.receive(forge(end, 0x20, payload, flags=flags, stream=5), pair.now)
    assert end_code(end.events()) == code


@pytest.mark.parametrize("side", list(STATES))
def test_inflation_is_bounded(side: str) -> None:
    packer = zlib.compressobj(9, wbits=-15)
    bomb = packer.compress(bytes(100_000)) + packer.flush()
    pair, end = reach(side, "OPEN")
    end.receive(forge(end, 0x20, bomb, flags=5, stream=5), pair.now)
    assert end_code(end.events()) == CloseCode.TOO_LARGE


@pytest.mark.parametrize("level", list(Level), ids=lambda level: level.name)
@pytest.mark.parametrize("side", list(STATES))
def test_levels_both_ways(side: str, level: Level) -> None:
    """What one end packs the other delivers, at the same level."""
    pair, end = reach(side, "OPEN")
    sender: Connection = pair.client if side == "server" else pair.server
    bodies = [b"one", b"", b"three" * 100]
    if side == "server":
        messages = [codec.encode_publication(Publication(body, mid)) for mid, body in enumerate(bodies, 1)]
    else:
        messages = [
            codec.encode_entry(offset, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, body)
            for offset, body in enumerate(bodies, 1)
        ]
    for flags, payload, _ in pack_messages(messages, level, 10):
        sender.send_message(flags, 5, payload)
    frames = sender.bytes_to_send()
    assert len(frames) == (3 if level is Level.MAXIMUM else 1)
    for frame in frames:
        end.receive(frame, pair.now)
    events = end.events()
    got = [message.body for event in found(events, Published) for message in event.messages]
    got += [entry.body for event in found(events, Delivered) for entry in event.entries]
    assert got == bodies
    assert {event.level for event in events if isinstance(event, Published | Delivered)} == {level}
    assert {event.stream for event in events if isinstance(event, Published | Delivered)} == {5}


def test_a_compressed_message() -> None:
    pair, end = reach("server", "OPEN")
    message = codec.encode_publication(Publication(bytes(random.Random(1).choices(b"ab", k=2_000)), 1))
    packed = deflate(message)
    assert packed is not None
    end.receive(forge(end, 0x20, packed, flags=5, stream=5), pair.now)
    (event,) = found(end.events(), Published)
    assert codec.encode_publication(event.messages[0]) == message


# --- what goes out ---------------------------------------------------------------------------------------


def test_the_base_has_no_timer() -> None:
    base = Connection(State.OPEN, random.Random(1).randbytes, 5.0)
    assert (base.next_timer, base.last_received, base.epoch) == (inf, 5.0, 0)
    base.rest()
    assert base.bytes_to_send() == [] and base.events() == []


@pytest.mark.parametrize("side", list(STATES))
def test_bytes_and_events_are_taken_once(side: str) -> None:
    pair, end = reach(side, "OPEN")
    end.send_message(1, 5, PUBLISHED)
    assert end.wants_to_send
    assert len(end.bytes_to_send()) == 1
    assert end.bytes_to_send() == [] and not end.wants_to_send
    end.close(1000, pair.now)
    assert len(end.events()) == 1 and end.events() == []


@pytest.mark.parametrize("side", list(STATES))
def test_rest_forgets_nothing(side: str) -> None:
    pair, _ = reach(side, "OPEN")
    for _ in range(3):
        pair.client.rest()
        pair.server.rest()
        pair.server.rotate(pair.now)
        pair.pump()
    assert pair.client.rotations == 3


@pytest.mark.parametrize("side", list(STATES))
def test_close_says_bye(side: str) -> None:
    pair, end = reach(side, "OPEN")
    end.close(4503, pair.now, reason="x" * 500, keep=True, retry_after_ms=5)
    own = ending(end.events())
    assert own == Terminated(4503, "x" * 500, retry_after_ms=5, keep=True)
    other: Connection = pair.client if side == "server" else pair.server
    for frame in end.bytes_to_send():
        other.receive(frame, pair.now)
    told = ending(other.events())
    assert told is not None and (told.code, told.by_peer, told.sealed) == (4503, True, True)
    assert (told.reason, told.keep) == ("x" * 200, True)


@pytest.mark.parametrize(
    ("side", "state", "told"),
    [
        ("server", "EXPECT_HELLO", 0),
        ("server", "EXPECT_CONFIRM", 0),
        ("server", "OPEN", 1),
        ("server", "EXPECT_REPLY", 1),
        ("client", "EXPECT_WELCOME", 0),
        ("client", "EXPECT_READY", 1),
        ("client", "OPEN", 1),
        ("client", "EXPECT_ROTATED", 1),
    ],
    ids=str,
)
def test_an_error_is_told_without_detail(side: str, state: str, told: int) -> None:
    pair, end = reach(side, state)
    end.bytes_to_send()
    end.receive(bytes(40), pair.now)
    (event,) = found(end.events(), Terminated)
    assert (event.code, event.by_peer, event.sealed) == (4400, False, False)
    frames = end.bytes_to_send()
    assert [frame[0] for frame in frames] == [FrameType.BYE] * told
    other: Connection = pair.client if side == "server" else pair.server
    if frames and other._opener is not None and state == "OPEN":
        other.receive(frames[0], pair.now)
        (heard,) = found(other.events(), Terminated)
        assert (heard.code, heard.reason) == (4400, "")


# --- usage limits ----------------------------------------------------------------------------------------


def usage_pair(usage: UsageLimits) -> Pair:
    return Pair(server=ServerRules(usage=usage), client=ClientRules(usage=usage))


@pytest.mark.parametrize(
    "usage", [UsageLimits(stop_frames=4), UsageLimits(stop_bytes=400)], ids=["frames", "bytes"]
)
@pytest.mark.parametrize("side", list(STATES))
def test_a_sender_stops_at_the_hard_limit(side: str, usage: UsageLimits) -> None:
    pair = usage_pair(usage)
    end: Connection = pair.server if side == "server" else pair.client
    end.events()
    for _ in range(20):
        end.send_message(1, 5, bytes(150))
    assert end_code(end.events()) == CloseCode.EXPIRED
    assert end.bytes_to_send() == []


@pytest.mark.parametrize("side", list(STATES))
def test_a_control_frame_at_the_hard_limit(side: str) -> None:
    pair = usage_pair(UsageLimits(stop_frames=2))
    end: Connection = pair.server if side == "server" else pair.client
    end.receive(forge_control(end, Ping(1)), pair.now)
    assert end.state is State.OPEN
    opener_of(end)._usage = UsageLimits()
    end.receive(forge_control(end, Ping(2)), pair.now)
    assert end_code(end.events()) == CloseCode.EXPIRED
    assert not end.wants_to_send


@pytest.mark.parametrize("side", list(STATES))
def test_a_receiver_refuses_more_than_the_hard_limit(side: str) -> None:
    pair = usage_pair(UsageLimits(stop_frames=3))
    end: Connection = pair.server if side == "server" else pair.client
    for _ in range(2):
        assert end.state is State.OPEN
        end.receive(forge_control(end, Pong(0)), pair.now)
    assert end.state is State.OPEN
    end.receive(forge_control(end, Pong(0)), pair.now)
    assert end_code(end.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("side", list(STATES))
def test_no_bye_under_a_key_that_is_used_up(side: str) -> None:
    pair = usage_pair(UsageLimits(stop_frames=2))
    end: Connection = pair.server if side == "server" else pair.client
    end.send_message(1, 5, PUBLISHED)
    assert len(end.bytes_to_send()) == 1
    end.close(1000, pair.now)
    assert end_code(end.events()) == 1000 and end.bytes_to_send() == []


@pytest.mark.parametrize(
    "usage", [UsageLimits(rekey_frames=3), UsageLimits(rekey_bytes=300)], ids=["frames", "bytes"]
)
@pytest.mark.parametrize("way", ["sent", "received"])
@pytest.mark.parametrize("side", list(STATES))
def test_a_worn_key_is_renewed(side: str, way: str, usage: UsageLimits) -> None:
    """Server: ROTATE at once. Client: REQUEST with reason 2, which the server answers by ROTATE."""
    pair = Pair()
    end: Connection = pair.server if side == "server" else pair.client
    direction = end._sealer if way == "sent" else end._opener
    assert direction is not None
    direction._usage = usage
    message = (PUBLISHED if side == "server" else ENTRY) + bytes(150)
    for _ in range(3):
        assert not end.wants_to_send
        if way == "sent":
            end.send_message(1, 5, message)
            last = [frame[0] for frame in end.bytes_to_send()][1:]
        else:
            end.receive(forge(end, 0x20, message, stream=5), pair.now)
            last = [frame[0] for frame in end.bytes_to_send()]
        if last:
            break
    assert last == [FrameType.ROTATE if side == "server" else FrameType.REQUEST]
    assert end.state is (State.EXPECT_REPLY if side == "server" else State.OPEN)


# --- packing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "level", "window", "expected"),
    [
        ([], Level.STANDARD, 10, []),
        ([10], Level.STANDARD, 10, [(1, 1)]),
        ([10], Level.CLEAR, 10, [(0, 1)]),
        ([10, 10], Level.STANDARD, 10, [(17, 2)]),
        ([10, 10], Level.CLEAR, 10, [(16, 2)]),
        ([10, 10], Level.HIGH, 10, [(19, 2)]),
        ([10, 10], Level.MAXIMUM, 10, [(11, 1), (11, 1)]),
        ([10] * 25, Level.STANDARD, 10, [(17, 10), (17, 10), (17, 5)]),
        ([10] * 21, Level.STANDARD, 10, [(17, 10), (17, 10), (1, 1)]),
        ([65_532], Level.STANDARD, 10, [(1, 1)]),
        ([32_764, 32_764], Level.STANDARD, 10, [(17, 2)]),
        ([32_764, 32_765], Level.STANDARD, 10, [(1, 1), (1, 1)]),
        ([70_000, 10, 10], Level.STANDARD, 10, [(1, 1), (17, 2)]),
        ([10, 10, 70_000], Level.STANDARD, 10, [(17, 2), (1, 1)]),
        ([10] * 3, Level.STANDARD, 1, [(1, 1)] * 3),
    ],
    ids=str,
)
def test_pack(sizes: list[int], level: Level, window: int, expected: list[tuple[int, int]]) -> None:
    messages = [bytes((index % 256,)) * size for index, size in enumerate(sizes)]
    packed = pack_messages(messages, level, window)
    assert [(flags, count) for flags, _, count in packed] == expected
    unpacked: list[bytes] = []
    for flags, payload, _ in packed:
        if flags & 2:
            payload = unpad(payload)
        assert not flags & 16 or len(payload) <= limits.MAX_BATCH
        unpacked += codec.split_batch(payload, window) if flags & 16 else [payload]
    assert unpacked == messages


def test_a_frame_that_is_lost_changes_nothing() -> None:
    pair = Pair(start=False)
    pair.hook = dropping()
    pair.pump()
    assert pair.client.state is State.EXPECT_WELCOME


def test_reject_is_for_faults_found_above() -> None:
    pair = Pair()
    pair.client.reject(RWTProtocolError("an entry is not the next one of its log"), pair.now)
    pair.pump()
    assert [event.code for event in pair.client_events if isinstance(event, Terminated)] == [4400]
    ended = [event for event in pair.server_events if isinstance(event, Terminated)]
    assert [(event.code, event.sealed, event.reason) for event in ended] == [(4400, True, "")]


def test_an_extension_frame_with_a_stream() -> None:
    for end in ("server", "client"):
        pair = Pair()
        sender = pair.client if end == "server" else pair.server
        assert sender._sealer is not None
        sender._out.append(sender._sealer.seal(0x40, 1, 7, b""))
        pair.pump()
        receiver = pair.server if end == "server" else pair.client
        assert receiver.state is State.CLOSED


def test_a_control_frame_after_the_last_of_a_key() -> None:
    """BYE does not need a key that is used up, and what would follow it is not sent."""
    pair = Pair(client=ClientRules(usage=UsageLimits(stop_frames=2)))
    pair.client.ping(pair.now)
    assert pair.client.is_open
    pair.client.ping(pair.now)
    assert pair.client.state is State.CLOSED
    pair.client._send(Ping(3))
    assert not pair.client.bytes_to_send()
    ended = [event for event in pair.client.events() if isinstance(event, Terminated)]
    assert [event.code for event in ended] == [CloseCode.EXPIRED]
