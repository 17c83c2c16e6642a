"""Bytes and values: the frame header, strict CBOR, control bodies, message meta (sections 4 and 5).

The tables are the wire format. This is the only module that knows CBOR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar

import cbor2

from . import frames, limits
from .codes import CloseCode, ErrorCode, FrameType, GapReason
from .errors import RWTProtocolError
from .frames import AckRun, Control, Entry, Gap, Position, Publication, RotationTerms, Signature

HEADER: Final = struct.Struct(">BBHIQ")
"""type, flags, epoch, stream, seq (section 5)."""

_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
MAX_UINT: Final = 2**64 - 1

# --- strict CBOR -----------------------------------------------------------------------------------------


def _refuse(*_: object) -> Any:
    raise ValueError("tags are not allowed")


# Built-in tag decoders run before `tag_hook` is asked, and some are costly (bignums) or dangerous (regular
# expressions, cycles): every tag cbor2 knows is overridden, the rest meets the hook.
_TAGS = dict.fromkeys((*range(6), 24, 25, *range(28, 38), 100, *range(256, 262), 1004, 43000, 55799), _refuse)


def _check_item(item: object, depth: int) -> None:
    kind = type(item)
    if kind is int:
        if item < 0:  # type: ignore[operator]
            raise RWTProtocolError("a negative integer is not allowed")
    elif kind is list:
        if depth == 2:
            raise RWTProtocolError("arrays are nested deeper than two")
        for part in item:  # type: ignore[attr-defined]
            _check_item(part, depth + 1)
    elif kind is not bytes and kind is not str and kind is not bool:
        raise RWTProtocolError("a value has a type that is not allowed")


def decode_map(data: bytes, max_size: int) -> dict[int, Any]:
    """Decode one definite CBOR map of the profile of section 4.

    Raises:
        RWTProtocolError: `data` is too large, malformed, or not the one deterministic encoding of its value.
    """
    if len(data) > max_size:
        raise RWTProtocolError(f"a body of {len(data)} bytes is over its limit of {max_size}")
    if not data or not 0xA0 <= data[0] <= 0xA0 + limits.MAX_PAIRS:
        raise RWTProtocolError("a body is not a map of at most 23 pairs")
    try:
        value = cbor2.loads(
            data,
            max_depth=3,
            allow_indefinite=False,
            allow_duplicate_keys=False,
            semantic_decoders=_TAGS,
            tag_hook=_refuse,
        )
    except Exception as exc:  # cbor2 lets more than its own errors out
        raise RWTProtocolError("a body is not valid CBOR") from exc
    for key, item in value.items():
        if type(key) is not int or key < 0:
            raise RWTProtocolError("a map key is not an unsigned integer")
        _check_item(item, 0)
    # One comparison finds trailing bytes, long heads and unsorted keys.
    if cbor2.dumps(value, canonical=True) != data:
        raise RWTProtocolError("a body is not in deterministic encoding")
    return value  # type: ignore[no-any-return]


def encode_map(fields: dict[int, Any]) -> bytes:
    """Encode a map deterministically (RFC 8949 section 4.2)."""
    return cbor2.dumps(fields, canonical=True)


# --- typed readers of one item ---------------------------------------------------------------------------

T = TypeVar("T")
Reader: TypeAlias = Callable[[Any], T]


def _wrong(what: str) -> RWTProtocolError:
    return RWTProtocolError(f"a field is not {what}")


def between(least: int, most: int) -> Reader[int]:
    def read(item: Any) -> int:
        if type(item) is not int or not least <= item <= most:
            raise _wrong(f"an unsigned integer of {least} to {most}")
        return item

    return read


def uint(item: Any) -> int:
    if type(item) is not int:  # True is an int, 1.0 equals 1
        raise _wrong("an unsigned integer")
    return item


def small(top: int) -> Reader[int]:
    return between(0, top)


positive = between(1, MAX_UINT)


def boolean(item: Any) -> bool:
    if type(item) is not bool:
        raise _wrong("a boolean")
    return item


def text(item: Any) -> str:
    if type(item) is not str:
        raise _wrong("a text string")
    return item


def blob(item: Any) -> bytes:
    if type(item) is not bytes:
        raise _wrong("a byte string")
    return item


def sized(size: int) -> Reader[bytes]:
    def read(item: Any) -> bytes:
        if type(item) is not bytes or len(item) != size:
            raise _wrong(f"a byte string of {size} bytes")
        return item

    return read


def array(reader: Reader[T], least: int, most: int) -> Reader[tuple[T, ...]]:
    def read(item: Any) -> tuple[T, ...]:
        if type(item) is not list or not least <= len(item) <= most:
            raise _wrong(f"an array of {least} to {most} items")
        return tuple([reader(part) for part in item])

    return read


def _row(item: Any, *readers: Reader[Any]) -> list[Any]:
    if type(item) is not list or len(item) != len(readers):
        raise _wrong(f"an array of {len(readers)} items")
    return [reader(part) for reader, part in zip(readers, item, strict=True)]


bytes8 = sized(8)
uint32 = small(limits.MAX_EPOCH)
_GAP_REASONS: Final = frozenset(GapReason)


def _tag(item: Any) -> bytes:
    if type(item) is not bytes or len(item) not in (0, 8):
        raise _wrong("an entry tag of 8 bytes or none")
    return item


def _log_or_none(item: Any) -> bytes:
    if type(item) is not bytes or len(item) not in (0, 8):
        raise _wrong("a log id of 8 bytes or none")
    return item


def position(item: Any) -> Position:
    found = Position(*_row(item, bytes8, uint, _tag))
    if bool(found.tag) != bool(found.offset):
        raise _wrong("a position: offset 0 has no tag, every other has one")
    return found


def gap(item: Any) -> Gap:
    found = Gap(*_row(item, uint, bytes8, positive, uint, position))
    if found.reason not in _GAP_REASONS:
        raise _wrong("a gap with a known reason")
    return found


def signature(item: Any) -> Signature:
    return Signature(*_row(item, bytes8, sized(64)))


def rotation_wish(item: Any) -> RotationTerms:
    return RotationTerms(*_row(item, uint, text, uint))


_granted_interval = between(limits.MIN_INTERVAL_MS, limits.MAX_INTERVAL_MS)
_granted_threshold = between(limits.MIN_THRESHOLD, limits.MAX_THRESHOLD)


def rotation_grant(item: Any) -> RotationTerms:
    return RotationTerms(*_row(item, _granted_interval, text, _granted_threshold))


def client_info(item: Any) -> tuple[str, str]:
    name, version = _row(item, text, text)
    return name, version


def ack_run(item: Any) -> AckRun:
    run = AckRun(*_row(item, positive, positive, uint32, _log_or_none, uint, uint))
    if bool(run.log) != bool(run.first_offset):
        raise _wrong("an ACK run: offset 0 has no log, every other has one")
    return run


# --- control bodies --------------------------------------------------------------------------------------


class Field(NamedTuple):
    """One row of a wire table: map key, attribute, reader, whether it must be there."""

    key: int
    name: str
    read: Reader[Any]
    required: bool = True


def _optional(key: int, name: str, read: Reader[Any]) -> Field:
    return Field(key, name, read, required=False)


_policy = small(2)
_MAX_ERROR: Final = max(ErrorCode)

WIRE: Final[dict[FrameType, tuple[type[Control], tuple[Field, ...]]]] = {
    FrameType.HELLO: (
        frames.Hello,
        (
            Field(1, "versions", array(uint, 1, limits.MAX_CONTROL)),
            Field(2, "suites", array(uint, 1, limits.MAX_CONTROL)),
            Field(3, "suite", uint),
            Field(4, "share", blob),
            Field(5, "sid", sized(16)),
            Field(6, "token_ids", array(bytes8, 1, limits.MAX_OFFERED_IDS)),
            Field(7, "policy", _policy),
            Field(8, "epoch", uint32),
            _optional(9, "signature_algorithms", array(uint, 1, limits.MAX_CONTROL)),
        ),
    ),
    FrameType.WELCOME: (
        frames.Welcome,
        (
            Field(1, "version", uint),
            Field(3, "suite", uint),
            Field(4, "share", blob),
            Field(5, "epoch", uint32),
            Field(6, "picked", bytes8),
        ),
    ),
    FrameType.CONFIRM: (
        frames.Confirm,
        (
            _optional(1, "signature", signature),
            _optional(2, "rotation", rotation_wish),
            _optional(3, "client", client_info),
        ),
    ),
    FrameType.READY: (
        frames.Ready,
        (
            Field(1, "epoch", uint32),
            _optional(2, "rotate_ms", uint),
            Field(3, "policy", _policy),
            Field(4, "max_frame", small(limits.MAX_FRAME)),
            Field(5, "resumed", boolean),
            _optional(6, "signature", signature),
            Field(7, "resume_window_ms", uint),
            Field(8, "ping_ms", positive),
            _optional(9, "granted", rotation_grant),
            Field(10, "window", positive),
            Field(11, "max_message", positive),
            Field(12, "expires_ms", uint),
        ),
    ),
    FrameType.ROTATE: (
        frames.Rotate,
        (Field(1, "epoch", uint32), Field(2, "share", blob), _optional(3, "signature", signature)),
    ),
    FrameType.REPLY: (
        frames.Reply,
        (Field(1, "epoch", uint32), Field(2, "share", blob), _optional(3, "signature", signature)),
    ),
    FrameType.ROTATED: (
        frames.Rotated,
        (Field(1, "epoch", uint32), _optional(2, "rotate_ms", uint), Field(12, "expires_ms", uint)),
    ),
    FrameType.REQUEST: (frames.Request, (Field(1, "reason", uint),)),
    FrameType.WARN: (
        frames.Warn,
        (
            Field(1, "code", text),
            _optional(2, "text", text),
            _optional(3, "facts", array(text, 0, limits.MAX_CONTROL)),
        ),
    ),
    FrameType.BYE: (
        frames.Bye,
        (
            Field(1, "code", between(1_000, 4_999)),
            _optional(2, "reason", text),
            _optional(3, "retry_after_ms", uint),
            _optional(4, "keep", boolean),
        ),
    ),
    FrameType.PING: (frames.Ping, (Field(1, "number", uint),)),
    FrameType.PONG: (frames.Pong, (Field(1, "number", uint),)),
    FrameType.SUB: (
        frames.Sub,
        (
            Field(1, "ref", uint),
            Field(2, "name", text),
            _optional(3, "after", position),
            _optional(4, "history", uint),
            _optional(5, "use", small(3)),
            _optional(6, "tags_held", uint),
        ),
    ),
    FrameType.SUBOK: (
        frames.SubOk,
        (
            Field(1, "ref", uint),
            Field(2, "stream", uint32),
            Field(3, "mode", small(0)),
            Field(4, "start", position),
            Field(5, "use", small(3)),
            _optional(7, "gap", gap),
            Field(8, "policy", _policy),
        ),
    ),
    FrameType.UNSUB: (frames.Unsub, (Field(1, "ref", uint), Field(2, "stream", uint32))),
    FrameType.ERR: (
        frames.Err,
        (
            _optional(1, "ref", uint),
            _optional(8, "mid", positive),
            Field(9, "code", between(1, _MAX_ERROR)),
            _optional(10, "text", text),
            _optional(11, "retry_after_ms", uint),
        ),
    ),
    FrameType.CLOSED: (
        frames.Closed,
        (_optional(1, "ref", uint), Field(2, "stream", uint32), Field(9, "code", small(_MAX_ERROR))),
    ),
    FrameType.GAP: (frames.GapNotice, (Field(2, "stream", uint32), Field(7, "gap", gap))),
    FrameType.ACK: (frames.Ack, (Field(1, "runs", array(ack_run, 1, limits.MAX_CONTROL)),)),
}
"""Every control body: its class and its fields in the order of their keys (section 5)."""

_TYPE_OF: Final[dict[type, FrameType]] = {cls: kind for kind, (cls, _) in WIRE.items()}


def frame_type(frame: Control) -> FrameType:
    """Return the frame type of a control value."""
    return _TYPE_OF[type(frame)]


def decode_control(kind: FrameType, data: bytes) -> Control:
    """Decode the body of a control frame.

    Raises:
        RWTProtocolError: malformed, too large, a required field is missing or a field has the wrong type.
    """
    cls, fields = WIRE[kind]
    found = decode_map(data, limits.MAX_CONTROL)
    values: dict[str, Any] = {}
    for key, name, read, required in fields:
        if key in found:
            values[name] = read(found[key])
        elif required:
            raise RWTProtocolError(f"{kind.name} lacks field {key}")
    return cls(**values)


def encode_control(frame: Control) -> bytes:
    """Encode the body of a control frame.

    Raises:
        ValueError: the body would be over its limit.
    """
    _, fields = WIRE[_TYPE_OF[type(frame)]]
    body = {key: value for key, name, _, _ in fields if (value := getattr(frame, name)) is not None}
    data = encode_map(body)
    if len(data) > limits.MAX_CONTROL:
        raise ValueError(f"a {type(frame).__name__} of {len(data)} bytes is over {limits.MAX_CONTROL}")
    return data


class StoredRun(NamedTuple):
    """An ACK run whose constant parts are encoded already: `encode_place` and `encode_uint` of the time."""

    first_mid: int
    number: int
    place: bytes
    first_offset: int
    stored: bytes


def encode_place(stream: int, log: bytes) -> bytes:
    """Encode stream and log of an ACK run; made once for each channel."""
    return _head(stream) + bytes((0x40 + len(log),)) + log


def encode_ack(runs: list[StoredRun]) -> bytes:
    """Encode the body of ACK by hand: one leaves in nearly every turn (section 5.17)."""
    count = len(runs)
    parts = [b"\xa1\x01%c" % (0x80 + count) if count < 24 else b"\xa1\x01\x98%c" % count]
    for first_mid, number, place, first_offset, stored in runs:
        parts.append(
            b"\x86%b%b%b%b%b" % (_head(first_mid), _head(number), place, _head(first_offset), stored)
        )
    return b"".join(parts)


# --- messages: u16 meta_len || meta || body --------------------------------------------------------------

_PUBLISH: Final = (
    Field(1, "mid", positive),
    Field(2, "form", small(2)),
    Field(3, "priority", small(2)),
    Field(4, "idempotency_key", blob),
    Field(5, "e2e_scheme", uint),
    Field(6, "reply_wanted", boolean),
)
_ENTRY: Final = (
    Field(2, "form", small(2)),
    Field(3, "priority", small(2)),
    Field(7, "offset", positive),
    Field(8, "tag", bytes8),
    Field(9, "stored_ms", uint),
    Field(10, "sender", text),
    Field(11, "sender_id", bytes8),
    Field(12, "channel", text),
)


_SHORT = [bytes((number,)) if number < 24 else bytes((0x18, number)) for number in range(256)]


def _head(number: int) -> bytes:
    if number < 0x100:
        return _SHORT[number]
    if number < 0x10000:
        return b"\x19" + _U16.pack(number)
    if number < 0x100000000:
        return b"\x1a" + number.to_bytes(4, "big")
    return b"\x1b" + number.to_bytes(8, "big")


def encode_publication(message: Publication) -> bytes:
    """Encode a client's message: u16 meta_len || meta || body."""
    body, mid, form, priority, key, scheme, reply = message
    if mid is not None and key is None and scheme is None and not reply and priority == 1:
        # The common shape by hand: a third of the cost of the general encoder.
        packed = b"\xa2\x01" + _head(mid) + b"\x02" + bytes((form,)) if form else b"\xa1\x01" + _head(mid)
        return _U16.pack(len(packed)) + packed + body
    fields: dict[int, Any] = {}
    if mid is not None:
        fields[1] = mid
    if form:
        fields[2] = form
    if priority != 1:
        fields[3] = priority
    if key is not None:
        fields[4] = key
    if scheme is not None:
        fields[5] = scheme
    if reply:
        fields[6] = True
    packed = encode_map(fields) if fields else b""
    return _U16.pack(len(packed)) + packed + body


def _split(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < 2:
        raise RWTProtocolError("a message lacks its meta length")
    end = 2 + ((data[0] << 8) | data[1])
    if end > len(data):
        raise RWTProtocolError("a meta length is beyond the message")
    return data[2:end], data[end:]


def _read_meta(packed: bytes, fields: tuple[Field, ...]) -> dict[str, Any]:
    found = decode_map(packed, limits.MAX_META) if packed else {}
    return {name: read(found[key]) for key, name, read, _ in fields if key in found}


def decode_publication(data: bytes) -> Publication:
    """Decode a client's message (section 5.20)."""
    # The common shape {1: mid} with a mid under 2^16, in its one deterministic encoding.
    if data[:4] == b"\x00\x05\xa1\x01" and data[4:5] == b"\x19" and len(data) >= 7 and data[5]:
        return Publication(data[7:], (data[5] << 8) | data[6])
    packed, body = _split(data)
    found = Publication(body, **_read_meta(packed, _PUBLISH))
    key = found.idempotency_key
    if key is not None and not 1 <= len(key) <= limits.MAX_IDEMPOTENCY_KEY:
        raise RWTProtocolError("an idempotency key is not 1 to 64 bytes")
    return found


def encode_sender(sender: str | None, sender_id: bytes | None) -> bytes:
    """Encode the fields of an entry's meta that are the same for all messages of one session."""
    packed = b""
    if sender is not None:
        packed += b"\x0a" + cbor2.dumps(sender)
    if sender_id is not None:
        packed += b"\x0b\x48" + sender_id
    return packed


def encode_entry(
    offset: int, tag: bytes, stored: bytes, form: int, priority: int, sender: bytes, fields: int, body: bytes
) -> bytes:
    """Encode a log entry for delivery: u16 meta_len || meta || body.

    Args:
        stored: `encode_uint` of the time in milliseconds; made once for all entries of one turn.
        sender: `encode_sender` of the publishing session.
        fields: How many fields `sender` holds.
    """
    count = 3 + fields
    first = b""
    if form or priority != 1:
        if form:
            count += 1
            first = b"\x02" + _SHORT[form]
        if priority != 1:
            count += 1
            first += b"\x03" + _SHORT[priority]
    meta = b"%c%b\x07%b\x08\x48%b\x09%b%b" % (0xA0 + count, first, _head(offset), tag, stored, sender)
    return b"%b%b%b" % (_U16.pack(len(meta)), meta, body)


encode_uint = _head
"""Encode one unsigned integer in the shortest CBOR form."""


def decode_entry(data: bytes) -> Entry:
    """Decode a log entry (section 5.20)."""
    packed, body = _split(data)
    values = _read_meta(packed, _ENTRY)
    if not values.keys() >= {"offset", "tag", "stored_ms"}:
        raise RWTProtocolError("an entry lacks its offset, tag or time")
    return Entry(body, **values)


def join_batch(messages: list[bytes]) -> bytes:
    """Join encoded messages: a sequence of u32 length || message."""
    pack = _U32.pack
    parts: list[bytes] = []
    for message in messages:
        parts.append(pack(len(message)))
        parts.append(message)
    return b"".join(parts)


def split_batch(data: bytes, most: int) -> list[bytes]:
    """Split a batch into its encoded messages.

    Raises:
        RWTProtocolError: it is empty, an entry is cut short, or it has more than `most` entries (4413).
    """
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < 4:
            raise RWTProtocolError("a batch ends inside a length")
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if size < 2 or size > end - at:
            raise RWTProtocolError("a batch entry is too short or beyond the batch")
        found.append(data[at : at + size])
        at += size
        if len(found) > most:
            raise RWTProtocolError(f"a batch has more than {most} messages", CloseCode.TOO_LARGE)
    if not found:
        raise RWTProtocolError("a batch is empty")
    return found
