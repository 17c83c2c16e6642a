"""C9: nothing replayed, reordered, dropped, reflected or altered is delivered.

Attacker: active inside TLS. Every single bit of header, payload and tag is flipped, for encrypted, clear and
ratchet messages, in both directions. Each control breaks one rule: no tag, no header in the authenticated data,
no order, the same key in both directions.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rwt_protocol import codec, key_schedule, record
from rwt_protocol.codes import CloseCode, Level
from rwt_protocol.connection import Connection, State, pack_messages
from rwt_protocol.events import Delivered, Event, Published, Terminated
from rwt_protocol.frames import Entry, Publication
from rwt_protocol.key_schedule import EpochKeys
from rwt_protocol.record import Opener
from tests.pair import Pair, Snapshot, Way, found

LEVELS = {"E": Level.STANDARD, "clear": Level.CLEAR, "R": Level.MAXIMUM}
RULES = pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
WAYS = pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)
PROTECTIONS = pytest.mark.parametrize("level", list(LEVELS))


def write(pair: Pair, way: Way, level: Level, body: bytes) -> bytes:
    """Seal one message and return its frame."""
    if way is Way.C2S:
        sender: Connection = pair.client
        encoded = codec.encode_publication(Publication(body, 1 if body == b"first" else 2))
    else:
        sender = pair.server
        encoded = codec.encode_entry(1, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, body)
    for flags, payload, _ in pack_messages([encoded], level, 10):
        sender.send_message(flags, 5, payload)
    (frame,) = sender.bytes_to_send()
    return frame


def receiver(pair: Pair, way: Way) -> Connection:
    return pair.server if way is Way.C2S else pair.client


def delivered(events: list[Event]) -> list[tuple[int, bytes]]:
    """Stream and body of all messages that came through."""
    out = [(event.stream, message.body) for event in found(events, Published) for message in event.messages]
    return out + [(event.stream, entry.body) for event in found(events, Delivered) for entry in event.entries]


def flips(frame: bytes) -> list[bytes]:
    return [
        frame[:at] + bytes((frame[at] ^ 1 << bit,)) + frame[at + 1 :]
        for at in range(len(frame))
        for bit in range(8)
    ]


class NoTag:
    """A cipher that authenticates nothing."""

    def __init__(self, _: bytes) -> None:
        pass

    def encrypt(self, _nonce: bytes, data: bytes, _aad: bytes) -> bytes:
        return data + bytes(16)

    def decrypt(self, _nonce: bytes, data: bytes, _aad: bytes) -> bytes:
        return data[:-16]


class NoHeader:
    """Leaves the header out of the authenticated data."""

    def __init__(self, key: bytes) -> None:
        self.cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, _aad: bytes) -> bytes:
        return self.cipher.encrypt(nonce, data, None)

    def decrypt(self, nonce: bytes, data: bytes, _aad: bytes) -> bytes:
        return self.cipher.decrypt(nonce, data, None)


def try_all(pair: Pair, way: Way, frames: list[bytes]) -> tuple[list[tuple[int, bytes]], set[int]]:
    """Give each frame to the receiver in the same state: what was delivered, which codes it closed with."""
    target = receiver(pair, way)
    snapshot = Snapshot(target)
    through: list[tuple[int, bytes]] = []
    codes: set[int] = set()
    for frame in frames:
        snapshot.restore()
        target.receive(frame, pair.now)
        events = target.events()
        through += delivered(events)
        ends = found(events, Terminated)
        codes.add(ends[0].code if ends else 0)
    snapshot.restore()
    return through, codes


@WAYS
@PROTECTIONS
def test_every_bit(way: Way, level: str) -> None:
    pair = Pair()
    frame = write(pair, way, LEVELS[level], b"first")
    assert len(flips(frame)) == 8 * len(frame)
    assert try_all(pair, way, flips(frame)) == ([], {CloseCode.PROTOCOL_ERROR})
    target = receiver(pair, way)
    target.receive(frame, pair.now)
    assert delivered(target.events()) == [(5, b"first")]


@WAYS
@PROTECTIONS
def test_control_every_bit_without_a_tag(way: Way, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "AESGCM", NoTag)
    pair = Pair()
    frame = write(pair, way, LEVELS[level], b"first")
    through, _ = try_all(pair, way, flips(frame))
    assert any(body != b"first" for _, body in through)


@WAYS
def test_control_every_bit_without_the_header(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "AESGCM", NoHeader)
    pair = Pair()
    frame = write(pair, way, Level.STANDARD, b"first")
    through, _ = try_all(pair, way, flips(frame))
    assert {stream for stream, _ in through} > {4, 7}


@WAYS
@PROTECTIONS
def test_every_truncation_and_one_byte_more(way: Way, level: str) -> None:
    pair = Pair()
    frame = write(pair, way, LEVELS[level], b"first")
    altered = [frame[:size] for size in range(len(frame))] + [frame + b"\x00", frame + frame]
    assert try_all(pair, way, altered) == ([], {CloseCode.PROTOCOL_ERROR})


ORDERS: dict[str, Callable[[bytes, bytes], list[bytes]]] = {
    "replay": lambda first, _: [first, first],
    "reorder": lambda first, second: [second, first],
    "drop": lambda _, second: [second],
}


@RULES
@WAYS
@PROTECTIONS
@pytest.mark.parametrize("order", list(ORDERS))
def test_order(order: str, way: Way, level: str, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:  # the receiver believes every number
        genuine = Opener.open

        def trusting(self: Opener, data: bytes, flags: int, seq: int) -> bytes:
            self.count = seq
            return genuine(self, data, flags, seq)

        monkeypatch.setattr(Opener, "open", trusting)
    pair = Pair()
    first, second = (write(pair, way, LEVELS[level], body) for body in (b"first", b"second"))
    target = receiver(pair, way)
    wanted = [(5, b"first")] if order == "replay" else []
    for frame in ORDERS[order](first, second):
        target.receive(frame, pair.now)
    through = delivered(target.events())
    if broken and level != "R":  # the ratchet is an order of its own
        assert len(through) > len(wanted)
    else:
        assert through == wanted and target.state is State.CLOSED


@RULES
@WAYS
@PROTECTIONS
def test_reflection(way: Way, level: str, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:  # one key for both directions
        genuine = key_schedule._advance

        def one_key(salt: bytes, dh: bytes, transcript: bytes, epoch: int) -> EpochKeys:
            keys = genuine(salt, dh, transcript, epoch)
            return keys._replace(server=keys.client)

        monkeypatch.setattr(key_schedule, "_advance", one_key)
    pair = Pair()
    frame = write(pair, way, LEVELS[level], b"first")
    sender = pair.client if way is Way.C2S else pair.server
    if way is Way.C2S:  # what a client may send is no entry: only the header shows whether it opened
        monkeypatch.setattr(codec, "decode_entry", lambda data: Entry(data[7:], 1, bytes(8), 1))
    sender.receive(frame, pair.now)
    through = delivered(sender.events())
    assert bool(through) is broken
    assert broken or sender.state is State.CLOSED


@WAYS
def test_a_frame_of_another_epoch_or_session(way: Way) -> None:
    pair, other = Pair(1), Pair(2)
    old = write(pair, way, Level.STANDARD, b"first")
    receiver(pair, way).receive(old, pair.now)
    receiver(pair, way).events()
    pair.rotate()
    foreign = write(other, way, Level.STANDARD, b"first")
    assert try_all(pair, way, [old, foreign]) == ([], {CloseCode.PROTOCOL_ERROR})


@WAYS
def test_nothing_of_a_batch_is_delivered_if_its_last_message_is_wrong(way: Way) -> None:
    pair = Pair()
    sender = pair.client if way is Way.C2S else pair.server
    if way is Way.C2S:
        good = codec.encode_publication(Publication(b"first", 1))
    else:
        good = codec.encode_entry(1, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, b"first")
    sender.send_message(17, 5, codec.join_batch([good, b"\x00\x01\xff"]))
    (frame,) = sender.bytes_to_send()
    assert try_all(pair, way, [frame]) == ([], {CloseCode.PROTOCOL_ERROR})
