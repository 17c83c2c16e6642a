"""Codec: strict CBOR, every control body, message meta and batches (sections 4 and 5)."""

import struct
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import cbor2
import pytest
from cbor2 import CBORSimpleValue, CBORTag, undefined
from hypothesis import given, settings
from hypothesis import strategies as st

from rwt_protocol import codec, frames, limits
from rwt_protocol.codec import HEADER, WIRE, StoredRun, decode_control, decode_map, encode_control, encode_map
from rwt_protocol.codes import CloseCode, FrameType
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import AckRun, Control, Entry, Gap, Position, Publication, RotationTerms, Signature

BOUNDARIES = (0, 1, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1)
POSITIVE = BOUNDARIES[1:]
TOP = 2**64 - 1
U32 = 2**32 - 1

LOG = bytes(range(8))
TAG = bytes(range(8, 16))
START = Position(LOG, 0, b"")
PLACE = Position(LOG, 7, TAG)
GAP = Gap(3, LOG, 8, 9, PLACE)
SIGNATURE = Signature(TAG, bytes(64))
TERMS = RotationTerms(60_000, "fibonacci", 800)
SHARE = bytes(range(32))

SAMPLES: list[Control] = [
    frames.Hello((2,), (2, 1), 2, SHARE, bytes(16), (TAG,), 0, 0),
    frames.Hello((1, 2), (1,), 1, bytes(65), bytes(16), tuple([LOG] * 24), 2, U32, (1, 2)),
    frames.Welcome(2, 2, SHARE, 1, TAG),
    frames.Confirm(),
    frames.Confirm(SIGNATURE, TERMS, ("rwt", "0.1.0")),
    frames.Ready(1, 0, 1_179_648, False, 300_000, 20_000, 1_024, 1_048_576, 60_000),
    frames.Ready(U32, 2, limits.MAX_FRAME, True, TOP, TOP, TOP, TOP, TOP, TOP, SIGNATURE, TERMS),
    frames.Rotate(2, SHARE),
    frames.Rotate(2, SHARE, SIGNATURE),
    frames.Reply(2, SHARE),
    frames.Reply(2, SHARE, SIGNATURE),
    frames.Rotated(2, 60_000),
    frames.Rotated(2, 60_000, 48_000),
    frames.Request(1),
    frames.Warn("token-reuse"),
    frames.Warn("token-reuse", "twö", ("sid", "00")),
    frames.Warn("token-reuse", facts=()),
    frames.Bye(4400),
    frames.Bye(1000, "done", 5, True),
    frames.Bye(1000, keep=False),
    frames.Ping(0),
    frames.Pong(TOP),
    frames.Sub(1, "news"),
    frames.Sub(TOP, "", PLACE, 10, 0, 3),
    frames.Sub(2, "news", START, 0, 3, 0),
    frames.SubOk(1, 5, 0, START, 3, 0),
    frames.SubOk(1, 0, 0, PLACE, 0, 2, GAP),
    frames.Unsub(1, U32),
    frames.Err(2, ref=1),
    frames.Err(14, mid=1, text="no", retry_after_ms=0),
    frames.Closed(5, 0, 1),
    frames.Closed(5, 1),
    frames.GapNotice(5, GAP),
    frames.Ack((AckRun(1, 2, 5, LOG, 9, 10),)),
    frames.Ack((AckRun(1, 1, 0, b"", 0, 0), AckRun(TOP, TOP, U32, LOG, TOP, TOP))),
]
FULL: dict[FrameType, Control] = {codec.frame_type(frame): frame for frame in SAMPLES}
"""The last sample of each type."""
FULL |= {
    codec.frame_type(frame): frame
    for frame in (SAMPLES[15], SAMPLES[18], SAMPLES[23], SAMPLES[29], SAMPLES[30])
}


def name_of(frame: Control) -> str:
    return f"{type(frame).__name__}-{SAMPLES.index(frame)}"


def raw(frame: Control) -> dict[int, Any]:
    body = cbor2.loads(encode_control(frame))
    assert isinstance(body, dict)
    return body


def refused(call: Callable[[], object], code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
    with pytest.raises(RWTProtocolError) as caught:
        call()
    assert caught.value.close_code is code


# --- strict CBOR -----------------------------------------------------------------------------------------

NINES = "ff" * 8
TRAPS = {
    "nothing": "",
    "bare uint": "00",
    "bare bytes": "40",
    "bare text": "60",
    "array": "80",
    "null": "f6",
    "tagged map": "d9d9f7a0",
    "break alone": "ff",
    "map with a long head": "b80100 00",
    "24 pairs": "b818" + "".join(f"{key:02x}00" for key in range(24)),
    "map of 2^32 pairs": "ba ffffffff",
    "map of 2^64 pairs": "bb" + NINES,
    "indefinite map": "bf0100ff",
    "map cut short": "a1",
    "pair cut short": "a101",
    "second pair missing": "a20100",
    "trailing byte": "a1010000",
    "trailing map": "a0a0",
    "duplicate key": "a201000100",
    "duplicate key, other value": "a201000101",
    "unsorted keys": "a202000100",
    "key in a long head": "a1180100",
    "key 24 in 2 bytes": "a119001800",
    "negative key": "a12000",
    "text key": "a1616100",
    "bytes key": "a1416100",
    "bool key": "a1f500",
    "null key": "a1f600",
    "float key": "a1f93c0000",
    "NaN key": "a1f97e0000",
    "array key": "a1810000",
    "map key": "a1a000",
    "bignum key": "a1c2490100000000000000 0000",
    "uint 1 byte too long": "a1011817",
    "uint 24 in 2 bytes": "a101190018",
    "uint 255 in 2 bytes": "a1011900ff",
    "uint 65535 in 4 bytes": "a1011a0000ffff",
    "uint 2^32-1 in 8 bytes": "a1011b00000000ffffffff",
    "head with additional 28": "a1011c",
    "head with additional 31": "a1011f",
    "negative": "a10120",
    "negative -2^64": "a1013b" + NINES,
    "2^64 as bignum": "a101c249010000000000000000",
    "1 as bignum": "a101c24101",
    "negative bignum": "a101c34101",
    "null value": "a101f6",
    "undefined": "a101f7",
    "simple 0": "a101e0",
    "simple 32": "a101f820",
    "true in 2 bytes": "a101f815",
    "half float 1.0": "a101f93c00",
    "half float -0.0": "a101f98000",
    "NaN": "a101f97e00",
    "infinity": "a101f97c00",
    "single float 1.0": "a101fa3f800000",
    "double float 1.0": "a101fb3ff0000000000000",
    "nested map": "a101a0",
    "nested map in an array": "a10181a0",
    "indefinite bytes": "a1015f4100ff",
    "indefinite text": "a1017f6161ff",
    "indefinite array": "a1019f00ff",
    "break as a value": "a101ff",
    "bytes with a long head": "a101580100",
    "text with a long head": "a101780161",
    "array with a long head": "a101980100",
    "bytes of 2^64-1": "a1015b" + NINES,
    "bytes of 2^63": "a1015b8000000000000000",
    "text of 4 GiB": "a1017b0000000100000000",
    "text of 2^64-1": "a1017b" + NINES,
    "array of 2^32": "a1019b0000000100000000",
    "array of 2^63": "a1019b8000000000000000",
    "array of 2^64-1": "a1019b" + NINES,
    "bytes cut short": "a1014461",
    "text is not UTF-8": "a10162c328",
    "text with a surrogate": "a10163eda080",
    "text over-long": "a10162c080",
    "text above U+10FFFF": "a10164f4908080",
    "three arrays deep": "a10181818100",
    "three empty arrays deep": "a101818180",
    "depth 17": "a101" + "81" * 17 + "00",
    "depth 401": "a101" + "81" * 401 + "00",
    "depth 4000": "a101" + "81" * 4000 + "00",
    "depth 4000, open": "a101" + "81" * 4000,
    "bad item behind good ones": "a2010002" + "8300 01 20",
    "shared value": "a101d81c00",
    "cycle": "a101d81c81d81d00",
    "regular expression": "a101d82363612b2b",
    "huge tag number": "a101db" + NINES + "00",
    "tag without a value": "a101c1",
} | {
    f"tag {number}": (b"\xa1\x01" + cbor2.dumps(CBORTag(number, 1))).hex()
    for number in (
        *range(6),
        21,
        22,
        23,
        24,
        25,
        *range(28, 38),
        100,
        *range(256, 262),
        999,
        1004,
        43000,
        55799,
    )
}


@pytest.mark.parametrize("data", [pytest.param(bytes.fromhex(text), id=name) for name, text in TRAPS.items()])
def test_trap(data: bytes) -> None:
    refused(lambda: decode_map(data, limits.MAX_CONTROL))


@pytest.mark.parametrize(
    "data",
    [pytest.param(bytes.fromhex(text), id=name) for name, text in TRAPS.items() if text.startswith("a101")],
)
def test_trap_below_an_unknown_key(data: bytes) -> None:
    refused(lambda: decode_control(FrameType.PING, b"\xa2\x01\x00\x18\x63" + data[2:]))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        pytest.param("a0", {}, id="empty"),
        pytest.param("a10000", {0: 0}, id="key 0"),
        pytest.param("a101f5", {1: True}, id="true"),
        pytest.param("a101f4", {1: False}, id="false"),
        pytest.param("a101818100", {1: [[0]]}, id="two arrays deep"),
        pytest.param("a1018180", {1: [[]]}, id="an empty array in an array"),
        pytest.param("a10163e282ac", {1: "€"}, id="text"),
        pytest.param("a10164f09f9880", {1: "\U0001f600"}, id="text outside the BMP"),
        pytest.param("a11b" + NINES + "1b" + NINES, {TOP: TOP}, id="2^64-1"),
        pytest.param(
            "b7" + "".join(f"{key:02x}00" for key in range(23)), dict.fromkeys(range(23), 0), id="23"
        ),
        pytest.param("a21700181800", {23: 0, 24: 0}, id="keys by length"),
    ],
)
def test_well_formed(data: str, value: dict[int, Any]) -> None:
    assert decode_map(bytes.fromhex(data), 4096) == value
    assert encode_map(value).hex() == data


@pytest.mark.parametrize("most", [64, limits.MAX_META, limits.MAX_CONTROL])
def test_size_limit_of_a_map(most: int) -> None:
    def sized(size: int) -> bytes:
        data = next(
            encoded for length in range(size) if len(encoded := encode_map({1: bytes(length)})) >= size
        )
        assert len(data) == size
        return data

    assert decode_map(sized(most - 1), most)
    assert decode_map(sized(most), most)
    refused(lambda: decode_map(sized(most + 1), most))


def fill(head: str, unit: str, tail: str = "") -> bytes:
    """Repeat `unit` until a control body is full."""
    room = limits.MAX_CONTROL - len(bytes.fromhex(head)) - len(bytes.fromhex(tail))
    return (
        bytes.fromhex(head) + bytes.fromhex(unit) * (room // len(bytes.fromhex(unit))) + bytes.fromhex(tail)
    )


def colliding(count: int, step: int = 2**61 - 1) -> bytes:
    """A map of integer keys that fall into one bucket of a hash table."""
    return cbor2.dumps({step * index % 2**64: 0 for index in range(1, count + 1)})


HOSTILE = {
    "nested arrays": fill("a101", "81"),
    "nested maps": fill("a101", "a100"),
    "tag flood": fill("a101", "c1"),
    "bignum tags": fill("a101", "c2"),
    "regex tags": fill("a101", "d823"),
    "shared tags": fill("a101990fff", "d81c"),
    "nulls": fill("a101990ff9", "f6"),
    "negatives": fill("a101990ff9", "20"),
    "empty arrays": fill("a101990ff9", "80"),
    "uints": fill("a101990ff9", "00"),
    "big heads": fill("a101990fff", "5b" + NINES),
    "big array heads": fill("a1019901c6", "9b" + NINES),
    "bignums": fill("a10199016c", "c2490100000000000000aa"),
    "bignum of 4 KiB": fill("a101c2590ff6", "ff"),
    "bignum keys in a nested map": b"\xa1\x01"
    + cbor2.dumps({2**64 + index * (2**61 - 1): 0 for index in range(1, 320)}),
    "colliding keys in a nested map": b"\xa1\x01" + colliding(400),
    "colliding keys in nested maps": b"\xa2\x01" + colliding(200) + b"\x02" + colliding(200),
    "colliding negative keys": b"\xa1\x01"
    + cbor2.dumps({-1 - (2**61 - 1) * index: 0 for index in range(1, 8)}),
    "text of 4 KiB that is not UTF-8": fill("a101790ffb", "ff"),
    "8000 colliding keys": colliding(8000),
    "100000 arrays": b"\xa1\x01" + b"\x81" * 100_000,
}


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in HOSTILE.items()])
@pytest.mark.parametrize("kind", [FrameType.HELLO, FrameType.ACK, FrameType.MSG], ids=lambda kind: kind.name)
def test_hostile_input_is_refused_within_5_ms(data: bytes, kind: FrameType) -> None:
    def decode() -> object:
        if kind is FrameType.MSG:
            return codec.decode_publication(struct.pack(">H", min(len(data), 65_535)) + data)
        return decode_control(kind, data)

    took = []
    trace = sys.gettrace()
    sys.settrace(None)  # a tracer would be measured, too
    try:
        for _ in range(5):
            before = time.process_time()
            refused(decode)
            took.append(time.process_time() - before)
    finally:
        sys.settrace(trace)
    assert min(took) < 0.005


# --- control frames --------------------------------------------------------------------------------------


def test_every_control_frame_has_samples_with_every_field() -> None:
    assert set(FULL) == set(WIRE) == set(FrameType) - {FrameType.MSG}
    for kind, (_, fields) in WIRE.items():
        seen = set().union(*(raw(frame) for frame in SAMPLES if codec.frame_type(frame) is kind))
        assert seen == {field.key for field in fields}, kind.name


@pytest.mark.parametrize("frame", SAMPLES, ids=name_of)
def test_round_trip(frame: Control) -> None:
    kind = codec.frame_type(frame)
    data = encode_control(frame)
    assert decode_control(kind, data) == frame
    assert decode_map(data, limits.MAX_CONTROL) == raw(frame)
    assert 0xA0 <= data[0] <= 0xB7


@pytest.mark.parametrize("value", BOUNDARIES)
def test_round_trip_of_boundary_integers(value: int) -> None:
    number = max(value, 1)
    for frame in (
        frames.Ping(value),
        frames.Sub(value, "x", Position(LOG, number, TAG), value, 3, value),
        frames.Ack((AckRun(number, number, min(value, U32), LOG, number, value),)),
        frames.Rotated(min(value, U32), value, value),
    ):
        assert decode_control(codec.frame_type(frame), encode_control(frame)) == frame


def paths(item: object, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Where the items of a body are: map key, then indices."""
    pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, part in pairs:
        yield (*path, key)
        yield from paths(part, (*path, key))


def replaced(body: dict[int, Any], path: tuple[int, ...], item: object) -> bytes:
    copy: Any = deepcopy(body)
    inner = copy
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = item
    return cbor2.dumps(copy, canonical=True)


def at(body: Any, path: tuple[int, ...]) -> Any:
    for step in path:
        body = body[step]
    return body


WRONG = {
    "true": True,
    "-1": -1,
    "2^64": 2**64,
    "1.0": 1.0,
    "-0.0": -0.0,
    "[]": [],
    "null": None,
    "undefined": undefined,
    "simple": CBORSimpleValue(32),
    "{}": {},
    "tag": CBORTag(999, 1),
    "epoch tag": CBORTag(1, 1),
    "uint": 1,
    "text": "1",
    "bytes": b"1",
    "array": [1],
}
PLACES = [(kind, path) for kind, frame in FULL.items() for path in paths(raw(frame))]


@pytest.mark.parametrize("wrong", [pytest.param(item, id=name) for name, item in WRONG.items()])
def test_one_wrong_item(wrong: object) -> None:
    tried = 0
    for kind, path in PLACES:
        body = raw(FULL[kind])
        good = at(body, path)
        if type(good) is type(wrong) and not (wrong == [] and (kind, path) != (FrameType.WARN, (3,))):
            continue
        with pytest.raises(RWTProtocolError) as caught:
            raise AssertionError(f"{kind.name} {path}: {decode_control(kind, replaced(body, path, wrong))}")
        assert caught.value.close_code is CloseCode.PROTOCOL_ERROR
        tried += 1
    assert tried >= 40


@pytest.mark.parametrize("kind", list(WIRE), ids=lambda kind: kind.name)
def test_missing_and_unknown_fields(kind: FrameType) -> None:
    frame = FULL[kind]
    cls, fields = WIRE[kind]
    for field in fields:
        body = raw(frame)
        body.pop(field.key, None)  # ERR has one of fields 1 and 8
        data = encode_map(body)
        if field.required:
            refused(partial(decode_control, kind, data))
        else:
            found = decode_control(kind, data)
            assert isinstance(found, cls) and getattr(found, field.name) is None
    for extra in (0, TOP, "", b"x", True, [], [[1, "a"], b"x"]):
        body = raw(frame) | {99: extra, TOP: extra}
        assert decode_control(kind, encode_map(body)) == frame


def test_rows_have_their_exact_length() -> None:
    for kind, path in PLACES:
        body = raw(FULL[kind])
        row = at(body, path)
        free = {(FrameType.HELLO, (key,)) for key in (1, 2, 6, 9)} | {
            (FrameType.WARN, (3,)),
            (FrameType.ACK, (1,)),
        }
        if isinstance(row, list) and (kind, path) not in free:
            for other in (row[:-1], [*row, 0], [*row, row[-1]]):
                data = replaced(body, path, other)
                refused(partial(decode_control, kind, data))


H, S, R = FrameType.HELLO, FrameType.SUBOK, FrameType.READY


@pytest.mark.parametrize(
    ("kind", "path", "good", "bad"),
    [
        pytest.param(H, (1,), [[2]], [[]], id="versions"),
        pytest.param(H, (2,), [[1]], [[]], id="suites"),
        pytest.param(H, (5,), [bytes(16)], [bytes(15), bytes(17), b""], id="sid"),
        pytest.param(H, (6,), [[TAG], [TAG] * 24], [[], [TAG] * 25, [bytes(7)], [bytes(9)]], id="token ids"),
        pytest.param(H, (7,), [0, 2], [3, TOP], id="policy"),
        pytest.param(H, (8,), [0, U32], [U32 + 1], id="epoch"),
        pytest.param(H, (9,), [[1], [2, 1]], [[]], id="signature algorithms"),
        pytest.param(FrameType.WELCOME, (5,), [0, U32], [U32 + 1], id="epoch made"),
        pytest.param(FrameType.WELCOME, (6,), [bytes(8)], [bytes(7), bytes(9)], id="picked"),
        pytest.param(FrameType.CONFIRM, (1, 0), [bytes(8)], [bytes(7), bytes(9), b""], id="key id"),
        pytest.param(FrameType.CONFIRM, (1, 1), [bytes(64)], [bytes(63), bytes(65), b""], id="signature"),
        pytest.param(R, (3,), [0, 2], [3], id="server policy"),
        pytest.param(R, (8,), [1, TOP], [0], id="ping"),
        pytest.param(R, (10,), [1, TOP], [0], id="window"),
        pytest.param(R, (11,), [1, TOP], [0], id="max message"),
        pytest.param(FrameType.SUB, (5,), [0, 3], [4], id="use"),
        pytest.param(FrameType.SUB, (3, 0), [bytes(8)], [bytes(7), b"", bytes(9)], id="log"),
        pytest.param(FrameType.SUB, (3, 2), [bytes(8)], [bytes(7), bytes(9), b""], id="no tag at offset 7"),
        pytest.param(S, (2,), [0, U32], [U32 + 1], id="stream"),
        pytest.param(S, (3,), [0], [1, 2], id="mode"),
        pytest.param(S, (4,), [[LOG, 0, b""], [LOG, 1, TAG]], [[LOG, 1, b""]], id="position"),
        pytest.param(S, (5,), [0, 3], [4], id="use granted"),
        pytest.param(S, (8,), [0, 2], [3], id="channel policy"),
        pytest.param(FrameType.ERR, (8,), [1, TOP], [0], id="mid"),
        pytest.param(FrameType.ACK, (1, 0, 0), [1, TOP], [0], id="first mid"),
        pytest.param(FrameType.ACK, (1, 0, 1), [1, TOP], [0], id="number"),
        pytest.param(FrameType.ACK, (1, 1, 3), [bytes(8)], [bytes(7), bytes(9)], id="log of a run"),
        pytest.param(FrameType.ACK, (1,), [[[1, 1, 0, b"", 0, 0]]], [[]], id="runs"),
    ],
)
def test_range(kind: FrameType, path: tuple[int, ...], good: list[object], bad: list[object]) -> None:
    body = raw(FULL[kind])
    for item in good:
        assert decode_control(kind, replaced(body, path, item))
    for item in bad:
        refused(partial(decode_control, kind, replaced(body, path, item)))


def test_size_limit_of_a_control_body() -> None:
    room = limits.MAX_CONTROL - len(encode_control(frames.Bye(1000, "x" * 300))) + 300
    frame = frames.Bye(1000, "x" * room)
    data = encode_control(frame)
    assert len(data) == limits.MAX_CONTROL
    assert decode_control(FrameType.BYE, data) == frame
    with pytest.raises(ValueError, match="4097 bytes is over 4096"):
        encode_control(frames.Bye(1000, "x" * (room + 1)))
    refused(lambda: decode_control(FrameType.BYE, encode_map({1: 1000, 2: "x" * (room + 1)})))


def test_header() -> None:
    data = HEADER.pack(0x20, 0x1F, 0xABCD, 0x01020304, 0x05060708090A0B0C)
    assert data.hex() == "201fabcd0102030405060708090a0b0c"
    assert HEADER.size == limits.HEADER_SIZE


# --- any bytes -------------------------------------------------------------------------------------------

MANY = settings(derandomize=True, max_examples=300, deadline=None, database=None)
KINDS = st.sampled_from(sorted(WIRE))


@st.composite
def mutants(draw: st.DrawFn) -> tuple[FrameType, bytes]:
    """A valid body with up to three bytes changed, put in or taken out."""
    frame = draw(st.sampled_from(SAMPLES))
    data = bytearray(encode_control(frame))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return codec.frame_type(frame), bytes(data)


def check_malleability(kind: FrameType, data: bytes) -> None:
    try:
        found = decode_control(kind, data)
    except RWTProtocolError as exc:
        assert exc.close_code is CloseCode.PROTOCOL_ERROR
        return
    body = decode_map(data, limits.MAX_CONTROL)
    assert encode_map(body) == data
    known = {field.key for field in WIRE[kind][1]}
    assert encode_control(found) == encode_map({key: item for key, item in body.items() if key in known})


@given(kind=KINDS, data=st.binary(max_size=80))
@MANY
def test_any_bytes(kind: FrameType, data: bytes) -> None:
    check_malleability(kind, data)


@given(kind=KINDS, data=st.binary(max_size=60))
@MANY
def test_any_bytes_in_a_map(kind: FrameType, data: bytes) -> None:
    check_malleability(kind, bytes((0xA0 + len(data) % 24,)) + data)


@given(mutants())
@settings(MANY, max_examples=1000)
def test_mutants(mutant: tuple[FrameType, bytes]) -> None:
    check_malleability(*mutant)


@given(st.dictionaries(st.integers(0, TOP), st.integers(0, TOP) | st.binary() | st.text() | st.booleans()))
@MANY
def test_any_map_round_trips(fields: dict[int, Any]) -> None:
    data = encode_map(fields)
    if len(fields) > limits.MAX_PAIRS:
        refused(lambda: decode_map(data, 2**20))
    else:
        assert decode_map(data, 2**20) == fields


@given(st.binary(max_size=64))
@MANY
def test_any_bytes_as_a_message(data: bytes) -> None:
    for decode in (codec.decode_publication, codec.decode_entry):
        try:
            found = decode(data)
        except RWTProtocolError as exc:
            assert exc.close_code is CloseCode.PROTOCOL_ERROR
        else:
            assert data.endswith(found.body)
            assert int.from_bytes(data[:2], "big") + len(found.body) + 2 == len(data)


# --- messages --------------------------------------------------------------------------------------------


def message(meta: dict[int, Any], body: bytes = b"body") -> bytes:
    packed = cbor2.dumps(meta, canonical=True) if meta else b""
    return struct.pack(">H", len(packed)) + packed + body


PUBLICATIONS = [
    Publication(b"body", mid, form, priority, key, scheme, reply)
    for mid in (None, *POSITIVE)
    for form in (0, 1, 2)
    for priority, key, scheme, reply in ((1, None, None, False), (0, None, None, False), (2, b"k", 1, True))
]


def publication_meta(item: Publication) -> dict[int, Any]:
    fields = {1: item.mid, 2: item.form, 3: item.priority, 4: item.idempotency_key, 5: item.e2e_scheme}
    defaults = {2: 0, 3: 1}
    meta: dict[int, Any] = {
        key: value for key, value in fields.items() if value is not None and value != defaults.get(key)
    }
    return meta | ({6: True} if item.reply_wanted else {})


def test_publication_by_hand_agrees_with_the_general_encoder() -> None:
    for item in PUBLICATIONS:
        data = message(publication_meta(item), item.body)
        assert codec.encode_publication(item) == data, item
        assert codec.decode_publication(data) == item


@pytest.mark.parametrize(
    "mid", [pytest.param(mid, id=str(mid)) for mid in (*POSITIVE, 257, 511, 512, 65_280)]
)
def test_fast_path_agrees_with_the_general_decoder(mid: int) -> None:
    for body in (b"", b"\x00", b"body" * 50):
        expected = Publication(body, mid)
        assert codec.decode_publication(message({1: mid}, body)) == expected
        # The same with an unknown key goes the general way.
        assert codec.decode_publication(message({1: mid, 40: 0}, body)) == expected


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("0005a1011900ff", id="255 in 2 bytes"),
        pytest.param("0005a101190000", id="0 in 2 bytes"),
        pytest.param("0005a1011901", id="cut short"),
        pytest.param("0005a10119", id="cut after the head"),
        pytest.param("0005a101", id="cut before the mid"),
        pytest.param("0004a101190100", id="meta ends inside the mid"),
        pytest.param("0006a101190100", id="meta reaches beyond"),
        pytest.param("0006a10119010000", id="trailing byte in the meta"),
    ],
)
def test_fast_path_refuses_what_the_general_decoder_refuses(data: str) -> None:
    refused(lambda: codec.decode_publication(bytes.fromhex(data)))


@pytest.mark.parametrize("value", BOUNDARIES)
def test_encode_uint(value: int) -> None:
    assert codec.encode_uint(value) == cbor2.dumps(value)


SENDERS = [(None, None), ("ada", None), (None, TAG), ("", TAG), ("ä" * 200, TAG)]


@pytest.mark.parametrize(
    ("sender", "sender_id"), SENDERS, ids=["none", "name", "id", "empty name", "long name"]
)
def test_entry_by_hand_agrees_with_the_general_encoder(sender: str | None, sender_id: bytes | None) -> None:
    packed = codec.encode_sender(sender, sender_id)
    count = (sender is not None) + (sender_id is not None)
    for offset in BOUNDARIES:
        for stored in BOUNDARIES:
            for form, priority in ((0, 1), (1, 1), (2, 0), (0, 2)):
                data = codec.encode_entry(
                    offset, TAG, codec.encode_uint(stored), form, priority, packed, count, b"body"
                )
                fields: dict[int, Any] = {2: form or None, 3: None if priority == 1 else priority}
                fields |= {7: offset, 8: TAG, 9: stored, 10: sender, 11: sender_id}
                assert data == message({key: item for key, item in fields.items() if item is not None})
                if offset:
                    expected = Entry(b"body", offset, TAG, stored, form, priority, sender, sender_id)
                    assert codec.decode_entry(data) == expected


def test_entry_of_the_inbox_names_its_channel() -> None:
    data = message({7: 1, 8: TAG, 9: 2, 12: "news", 13: 4})
    assert codec.decode_entry(data) == Entry(b"body", 1, TAG, 2, channel="news")


@pytest.mark.parametrize("count", [1, 2, 23, 24, 60, 255])
def test_ack_by_hand_agrees_with_the_general_encoder(count: int) -> None:
    numbers = [BOUNDARIES[index % len(BOUNDARIES)] for index in range(count + 4)]
    runs, stored = [], []
    for index in range(count):
        mid, number, offset, ms, stream = (numbers[index + step] for step in range(5))
        log = LOG if index % 3 else b""
        runs.append([mid, number, stream & U32, log, offset, ms])
        place = codec.encode_place(stream & U32, log)
        stored.append(StoredRun(mid, number, place, offset, codec.encode_uint(ms)))
    assert codec.encode_ack(stored) == cbor2.dumps({1: runs}, canonical=True)


def test_ack_by_hand_decodes() -> None:
    place = codec.encode_place(5, LOG)
    data = codec.encode_ack([StoredRun(1, 2, place, 3, codec.encode_uint(4))])
    assert decode_control(FrameType.ACK, data) == frames.Ack((AckRun(1, 2, 5, LOG, 3, 4),))


PUBLISH_META: dict[int, Any] = {1: 7, 2: 2, 3: 0, 4: b"key", 5: 1, 6: True}
ENTRY_META: dict[int, Any] = {2: 2, 3: 0, 7: 1, 8: TAG, 9: 3, 10: "ada", 11: TAG, 12: "news"}


@pytest.mark.parametrize("wrong", [pytest.param(item, id=name) for name, item in WRONG.items()])
def test_one_wrong_item_in_a_meta(wrong: object) -> None:
    for decode, meta in ((codec.decode_publication, PUBLISH_META), (codec.decode_entry, ENTRY_META)):
        assert decode(message(meta))
        for key in meta:
            if type(meta[key]) is not type(wrong):
                data = message(meta | {key: wrong})
                with pytest.raises(RWTProtocolError):
                    raise AssertionError(f"{decode.__name__} {key}: {decode(data)}")


@pytest.mark.parametrize(
    ("decode", "key", "good", "bad"),
    [
        pytest.param(codec.decode_publication, 1, [1, TOP], [0], id="mid"),
        pytest.param(codec.decode_publication, 2, [0, 2], [3, TOP], id="form"),
        pytest.param(codec.decode_publication, 3, [0, 1, 2], [3], id="priority"),
        pytest.param(codec.decode_publication, 4, [b"k", bytes(64)], [b"", bytes(65)], id="idempotency key"),
        pytest.param(codec.decode_publication, 6, [False, True], [0], id="reply wanted"),
        pytest.param(codec.decode_entry, 2, [0, 2], [3], id="form of an entry"),
        pytest.param(codec.decode_entry, 3, [0, 2], [3], id="priority of an entry"),
        pytest.param(codec.decode_entry, 7, [1, TOP], [0], id="offset"),
        pytest.param(codec.decode_entry, 8, [bytes(8)], [b"", bytes(7), bytes(9)], id="tag"),
        pytest.param(codec.decode_entry, 9, [0, TOP], [], id="time"),
        pytest.param(codec.decode_entry, 11, [bytes(8)], [b"", bytes(7), bytes(9)], id="sender id"),
    ],
)
def test_range_in_a_meta(
    decode: Callable[[bytes], object], key: int, good: list[object], bad: list[object]
) -> None:
    meta = PUBLISH_META if decode is codec.decode_publication else ENTRY_META
    for item in good:
        assert decode(message(meta | {key: item}))
    for item in bad:
        refused(partial(decode, message(meta | {key: item})))


def test_what_a_meta_may_lack() -> None:
    assert codec.decode_publication(b"\x00\x00body") == Publication(b"body")
    assert codec.decode_publication(b"\x00\x01\xa0") == Publication(b"")
    for key in ENTRY_META:
        data = message({other: item for other, item in ENTRY_META.items() if other != key})
        if key in (7, 8, 9):
            refused(partial(codec.decode_entry, data))
        else:
            assert codec.decode_entry(data)
    refused(lambda: codec.decode_entry(b"\x00\x00"))


def test_keys_of_the_other_direction_and_unknown_ones_are_ignored() -> None:
    assert codec.decode_publication(message({1: 1, 7: "x", 13: 4, 200: [[1]]})) == Publication(b"body", 1)
    assert codec.decode_entry(message(ENTRY_META | {1: "x", 4: 5, 13: 9})).offset == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("00", id="1 byte"),
        pytest.param("0001", id="meta missing"),
        pytest.param("0002a0", id="meta cut short"),
        pytest.param("ffffa0", id="meta of 65535"),
    ],
)
def test_meta_length(data: str) -> None:
    refused(lambda: codec.decode_publication(bytes.fromhex(data)))
    refused(lambda: codec.decode_entry(bytes.fromhex(data)))


def test_size_limit_of_a_meta() -> None:
    def sized(size: int) -> bytes:
        room = size - len(cbor2.dumps({1: 1, 40: bytes(300)})) + 300
        return message({1: 1, 40: bytes(room)})

    assert codec.decode_publication(sized(limits.MAX_META)) == Publication(b"body", 1)
    refused(lambda: codec.decode_publication(sized(limits.MAX_META + 1)))


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[2], [2, 3], [100, 2, 65_536]], ids=str)
def test_batch_round_trip(sizes: list[int]) -> None:
    messages = [bytes((index,)) * size for index, size in enumerate(sizes)]
    data = codec.join_batch(messages)
    assert data == b"".join(struct.pack(">I", len(item)) + item for item in messages)
    assert codec.split_batch(data, len(sizes)) == messages


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="empty"),
        pytest.param("000000", id="cut inside a length"),
        pytest.param("00000000", id="entry of 0"),
        pytest.param("0000000100", id="entry of 1"),
        pytest.param("000000030000", id="entry beyond the end"),
        pytest.param("ffffffff0000", id="entry of 4 GiB"),
        pytest.param("00000002000000", id="a byte left over"),
        pytest.param("000000020000" + "000000", id="three bytes left over"),
        pytest.param("000000020000" + "00000001ff", id="second entry of 1"),
    ],
)
def test_batch_is_malformed(data: str) -> None:
    refused(lambda: codec.split_batch(bytes.fromhex(data), 1024))


def test_batch_has_at_most_w_messages() -> None:
    data = codec.join_batch([b"\x00\x00"] * 8)
    assert len(codec.split_batch(data, 8)) == 8
    refused(lambda: codec.split_batch(data, 7), CloseCode.TOO_LARGE)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param(FrameType.GAP, {2: 5, 7: [4, LOG, 1, 2, [LOG, 2, TAG]]}, id="gap reason 4"),
        pytest.param(FrameType.GAP, {2: 5, 7: [9, LOG, 1, 2, [LOG, 2, TAG]]}, id="gap reason 9"),
        pytest.param(FrameType.GAP, {2: 5, 7: [1, LOG, 0, 2, [LOG, 2, TAG]]}, id="gap from offset 0"),
        pytest.param(FrameType.GAP, {2: 5, 7: [1, LOG, 1, 2, [LOG, 0, TAG]]}, id="offset 0 with a tag"),
        pytest.param(FrameType.GAP, {2: 5, 7: [1, LOG, 1, 2, [LOG, 2, b""]]}, id="offset 2 without a tag"),
        pytest.param(FrameType.ACK, {1: [[1, 1, 5, b"", 5, 9]]}, id="ACK run with an offset and no log"),
        pytest.param(FrameType.ACK, {1: [[1, 1, 5, LOG, 0, 9]]}, id="ACK run with a log and offset 0"),
        pytest.param(FrameType.BYE, {1: 999}, id="close code 999"),
        pytest.param(FrameType.BYE, {1: 5000}, id="close code 5000"),
        pytest.param(FrameType.ERR, {1: 1, 9: 0}, id="ERR code 0"),
        pytest.param(FrameType.ERR, {1: 1, 9: 15}, id="ERR code 15"),
        pytest.param(FrameType.CLOSED, {2: 5, 9: 15}, id="CLOSED code 15"),
    ],
)
def test_values_out_of_range(kind: FrameType, body: dict[int, Any]) -> None:
    with pytest.raises(RWTProtocolError):
        decode_control(kind, encode_map(body))
