"""Seeded fuzz of frames: whatever arrives, only documented outcomes, quickly, and one encoding for each value.

    python -m tests.frame_fuzz --frames 1000000 --seed 1

Valid frames of every type are altered on the wire (bits, length, splices, header) or before they are sealed with
the right keys, so that they reach the decoder. Each frame goes to the codec and to a connection in one of the
eight live states. A connection may end, but never raise; what decodes encodes to the same bytes.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import cbor2

from rwt_protocol import codec
from rwt_protocol.codec import HEADER
from rwt_protocol.codes import CloseCode, FrameType, Suite
from rwt_protocol.connection import Connection, State
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import SessionWanted, Terminated
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
    RotationTerms,
    Signature,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from rwt_protocol.record import Opener, pad
from rwt_protocol.suites import generate

from .pair import Pair, Snapshot, dropping, forge, frames_of

MOST_SECONDS: Final = 1.0
ALLOWED: Final = frozenset(CloseCode)
LIVE: Final = frozenset(State) - {State.CLOSED}
_PLACE = Position(b"logloglo", 9, b"tagtagta")
_GAP = Gap(1, b"logloglo", 1, 8, _PLACE)


class Broken(Exception):
    """A frame had an outcome that is not documented."""


@dataclass
class Counts:
    """What became of the frames."""

    frames: int = 0
    sealed: int = 0
    decoded: int = 0
    refused: int = 0
    accepted: int = 0
    closed: Counter[int] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    failures: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str]]:
        rows = [(name, f"{getattr(self, name):,}") for name in ("frames", "sealed", "decoded", "refused")]
        rows.append(("accepted", f"{self.accepted:,}"))
        rows += [(f"closed with {code}", f"{count:,}") for code, count in sorted(self.closed.items())]
        return [*rows, ("slowest, ms", f"{self.slowest_ms:.1f}"), ("failures", f"{len(self.failures):,}")]


# --- what is altered -------------------------------------------------------------------------------------


def controls(chosen: random.Random) -> list[Control]:
    """A valid value of each sealed control frame, with all optional fields and with none."""
    share = generate(Suite.X25519, chosen.randbytes).share
    return [
        Confirm(),
        Confirm(Signature(bytes(8), bytes(64)), RotationTerms(60_000, "phi", 800), ("name", "1")),
        Ready(1, 0, 1_179_648, False, 300_000, 20_000, 1_024, 1_048_576, 60_000),
        Ready(1, 0, 1_179_648, True, 1, 1, 1, 1, 1, 1, None, RotationTerms(60_000, "fixed", 800)),
        Rotate(2, share),
        Reply(2, share, Signature(bytes(8), bytes(64))),
        Rotated(2, 60_000, 50_000),
        Request(3),
        Warn("token-reuse", "text", ("a", "b")),
        Bye(1000),
        Bye(4503, "reason", 700, True),
        Ping(2**64 - 1),
        Pong(0),
        Sub(1, "channel"),
        Sub(300, "Kanal ü", _PLACE, 10, 3, 64),
        SubOk(1, 5, 0, _PLACE, 3, 0, _GAP),
        Unsub(70_000, 5),
        Err(1, ref=4),
        Err(4, mid=2**33, text="slow", retry_after_ms=5),
        Closed(5, 0, 1),
        GapNotice(5, _GAP),
        Ack((AckRun(1, 2, 5, b"logloglo", 1, 1_700_000_000_000), AckRun(9, 1, 6, b"", 0, 1))),
    ]


def messages(chosen: random.Random) -> tuple[list[bytes], list[bytes]]:
    """Valid encoded messages of a client and of a server."""
    stored = codec.encode_uint(1_700_000_000_000)
    bodies = [b"", b"body", chosen.randbytes(300)]
    up = [
        codec.encode_publication(Publication(body, mid, form, priority, key))
        for body in bodies
        for mid, form, priority, key in (
            (None, 0, 1, None),
            (7, 0, 1, None),
            (700, 1, 0, b"key"),
            (7, 2, 2, None),
        )
    ]
    sender = codec.encode_sender("user", bytes(8))
    down = [
        codec.encode_entry(offset, b"tagtagta", stored, form, priority, sender, 2, body)
        for body in bodies
        for offset, form, priority in ((1, 0, 1), (2**40, 2, 0))
    ]
    return up, down


VALUES: Final[tuple[Any, ...]] = (
    0, 1, 2, 3, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63, 2**64 - 1, 2**64, -1, -(2**64),
    b"", bytes(7), bytes(8), bytes(16), bytes(32), bytes(64), bytes(65), "", "text", "ü" * 200, True, False,
    None, 1.5, [], [[]], [[[]]], [1], [bytes(8)], [bytes(8), 0, b""], [bytes(8), 1, bytes(8)], ["a", "b"],
    [bytes(8), bytes(64)], [60_000, "phi", 800], [[1, 1, 5, bytes(8), 1, 1]], {}, {1: 1}, cbor2.CBORTag(2, b"1"),
)  # fmt: skip


def other_map(chosen: random.Random) -> bytes:
    """A map of any values under any keys."""
    pairs = {chosen.randrange(14): chosen.choice(VALUES) for _ in range(chosen.randrange(9))}
    return cbor2.dumps(pairs, canonical=True)


def other_fields(chosen: random.Random, body: bytes) -> bytes:
    """The same map with one field changed, added or taken away."""
    fields = codec.decode_map(body, 70_000)
    key = chosen.choice([*fields, chosen.randrange(24)])
    if key in fields and chosen.random() < 0.3:
        del fields[key]
    else:
        fields[key] = chosen.choice(VALUES)
    return cbor2.dumps(fields, canonical=True)


def other_bytes(chosen: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """The same bytes with flipped bits, cut, longer, spliced, or with bytes taken out, put in or doubled."""
    size = len(data)
    if not size:
        return chosen.randbytes(chosen.randrange(4))
    at = chosen.randrange(size)
    match chosen.randrange(8):
        case 0:
            return data[:at] + bytes((data[at] ^ 1 << chosen.randrange(8),)) + data[at + 1 :]
        case 1:
            changed = bytearray(data)
            for _ in range(chosen.randrange(1, 9)):
                changed[chosen.randrange(size)] = chosen.randrange(256)
            return bytes(changed)
        case 2:
            return data[:at]
        case 3:
            return data + chosen.randbytes(chosen.choice((1, 2, 16, 500)))
        case 4:
            other = chosen.choice(others)
            return data[:at] + other[chosen.randrange(len(other) + 1) :]
        case 5:
            return data[:at] + data[at + chosen.randrange(1, 9) :]
        case 6:
            return data[:at] + chosen.randbytes(chosen.randrange(1, 9)) + data[at:]
        case _:
            return data[:at] * 2 + data[at:]


def other_header(chosen: random.Random, frame: bytes) -> bytes:
    """The same frame with one header field changed."""
    if len(frame) < 16:
        return frame
    row = list(HEADER.unpack_from(frame))
    at = chosen.randrange(5)
    top = (255, 255, 65_535, 2**32 - 1, 2**64 - 1)[at]
    row[at] = chosen.choice(
        (0, 1, 2, top, chosen.randrange(top + 1), (row[at] + 1) & top, (row[at] - 1) & top)
    )
    return HEADER.pack(*row) + frame[16:]


def packed(chosen: random.Random, parts: list[bytes]) -> tuple[int, bytes]:
    """Flags and payload of a MSG: single or batch, padded, compressed, or with flags that do not fit."""
    part = chosen.choice(parts)
    match chosen.randrange(8):
        case 0:
            return 17, codec.join_batch([chosen.choice(parts) for _ in range(chosen.randrange(1, 5))])
        case 1:
            return 3, pad(part)
        case 2:
            return 11, pad(part)
        case 3:
            packer = zlib.compressobj(6, wbits=-15)
            raw = part + bytes(chosen.choice((0, 10, 5_000)))
            return 5, packer.compress(raw) + packer.flush()
        case 4:
            return 0, part
        case 5:
            return chosen.randrange(256), part
        case _:
            return 1, part


# --- where it goes ---------------------------------------------------------------------------------------


class Target:
    """One end in one state, and what its peer would write in that state."""

    def __init__(self, pair: Pair, end: Connection, valid: list[bytes]) -> None:
        self.pair = pair
        self.end = end
        self.snapshot = Snapshot(end)
        self.valid = valid
        """Frames as they would be written, for alterations on the wire."""
        self.is_server = end is pair.server
        self.openers: list[Opener] = [one for one in (end._opener,) if one is not None]
        following = None if self.is_server else pair.client._next_opener
        if following is not None:
            self.openers.append(following)

    def take(self, frame: bytes) -> int:
        """Give the frame to the connection; return the code it closed with, 0 if it is open."""
        end, pair = self.end, self.pair
        self.snapshot.restore()
        end.receive(frame, pair.now)
        events = end.events()
        if self.is_server and events and isinstance(events[0], SessionWanted):
            pair.server.session_found(pair.node.lookup(events[0].sid, pair.now), pair.now)
            events += end.events()
        ends = [event for event in events if isinstance(event, Terminated)]
        if (end.state is State.CLOSED) is not bool(ends) or len(ends) > 1:
            raise Broken(f"state {end.state.name} with {len(ends)} endings")
        if not ends:
            return 0
        if ends[0].by_peer:
            return -1
        if ends[0].code not in ALLOWED:
            raise Broken(f"closed with {ends[0].code}")
        return ends[0].code


def targets(seed: int) -> list[Target]:
    """Both ends in each of their live states; the open ones several times, to come more often."""
    found: list[Target] = []
    for number, suite in enumerate((2, 1, 3)):
        fresh = Pair(seed + number, suites=(suite,), start=False)
        (hello,) = fresh.client.bytes_to_send()
        found.append(Target(fresh, fresh.server, [hello]))
        waiting = Pair(seed + number, suites=(suite,), start=False)
        waiting.hook = dropping(FrameType.WELCOME)
        waiting.pump()
        found.append(Target(waiting, waiting.client, frames_of(waiting.tape, FrameType.WELCOME)))
    unconfirmed = Pair(seed, start=False)
    unconfirmed.hook = dropping(FrameType.CONFIRM)
    unconfirmed.pump()
    found.append(Target(unconfirmed, unconfirmed.server, frames_of(unconfirmed.tape, FrameType.CONFIRM)))
    unready = Pair(seed, start=False)
    unready.hook = dropping(FrameType.READY)
    unready.pump()
    found.append(Target(unready, unready.client, frames_of(unready.tape, FrameType.READY)))
    both = Pair(seed)
    rotating = Pair(seed)
    rotating.hook = dropping(FrameType.REPLY)
    rotating.rotate()
    renewed = Pair(seed)
    renewed.hook = dropping(FrameType.ROTATED)
    renewed.rotate()
    opened = [
        Target(both, both.server, []),
        Target(both, both.client, []),
        Target(rotating, rotating.server, frames_of(rotating.tape, FrameType.REPLY)),
        Target(renewed, renewed.client, frames_of(renewed.tape, FrameType.ROTATED)),
    ]
    return found + opened * 4


# --- the codec -------------------------------------------------------------------------------------------


def _same(first: bytes, second: bytes, what: str) -> None:
    if first != second:
        raise Broken(f"{what} {first.hex()} encodes to {second.hex()}")


def check_control(kind: FrameType, body: bytes) -> bool:
    """Decode a control body; what decodes, and has no unknown key, encodes to the same bytes."""
    try:
        frame = codec.decode_control(kind, body)
    except RWTProtocolError:
        return False
    again = codec.encode_control(frame)
    if codec.decode_map(body, 4_096).keys() <= {row.key for row in codec.WIRE[kind][1]}:
        _same(body, again, kind.name)
    elif codec.decode_control(kind, again) != frame:
        raise Broken(f"{kind.name} {body.hex()} is another value after encoding")
    return True


def _plain_meta(data: bytes, known: frozenset[int], defaults: dict[int, Any]) -> bool:
    """Whether a meta has neither unknown keys nor defaults written out."""
    size = int.from_bytes(data[:2], "big")
    if not size:
        return True
    meta = codec.decode_map(data[2 : 2 + size], 1_024)
    return (
        bool(meta)
        and meta.keys() <= known
        and not any(meta.get(key) == value for key, value in defaults.items())
    )


def check_message(data: bytes, *, is_server: bool) -> bool:
    """Decode a message; what decodes encodes to the same value, and to the same bytes if nothing was idle."""
    try:
        if is_server:
            message = codec.decode_publication(data)
            again = codec.encode_publication(message)
            if codec.decode_publication(again) != message:
                raise Broken(f"message {data.hex()} is another value after encoding")
            plain = _plain_meta(data, frozenset(range(1, 7)), {2: 0, 3: 1, 6: False})
        else:
            entry = codec.decode_entry(data)
            if entry.channel is not None:
                return True
            again = codec.encode_entry(
                entry.offset,
                entry.tag,
                codec.encode_uint(entry.stored_ms),
                entry.form,
                entry.priority,
                codec.encode_sender(entry.sender, entry.sender_id),
                (entry.sender is not None) + (entry.sender_id is not None),
                entry.body,
            )
            plain = _plain_meta(data, frozenset({2, 3, 7, 8, 9, 10, 11}), {2: 0, 3: 1})
    except RWTProtocolError:
        return False
    if plain:
        _same(data, again, "message")
    return True


class Fuzz:
    """All targets, and one random source."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.targets = targets(seed)
        self.controls = [
            (codec.frame_type(frame), codec.encode_control(frame)) for frame in controls(self.random)
        ]
        self.bodies = [body for _, body in self.controls]
        self.up, self.down = messages(self.random)
        self.counts = Counts()

    def sealed(self, target: Target) -> bytes:
        """Alter a frame before it is sealed with the right keys; give its parts to the codec as well."""
        chosen, counts = self.random, self.counts
        opener = chosen.choice(target.openers)
        if chosen.random() < 0.45:
            parts = self.up if target.is_server else self.down
            flags, payload = packed(chosen, parts)
            if chosen.random() < 0.6:
                payload = other_bytes(chosen, payload, parts)
            counts.sealed += 1
            self.tell(check_message(payload, is_server=target.is_server))
            return forge(
                target.end, 0x20, payload, flags=flags, stream=chosen.choice((5, 5, 0)), opener=opener
            )
        kind, body = chosen.choice(self.controls)
        draw = chosen.random()
        if draw < 0.4:
            body = other_bytes(chosen, body, self.bodies)
        elif draw < 0.75:
            body = other_fields(chosen, body)
        elif draw < 0.85:
            body = other_map(chosen)
        counts.sealed += 1
        self.tell(check_control(kind, body))
        number = kind if chosen.random() < 0.95 else chosen.randrange(256)
        stream = 0 if chosen.random() < 0.97 else 5
        return forge(target.end, number, body, stream=stream, opener=opener)

    def tell(self, decoded: bool) -> None:
        self.counts.decoded += decoded
        self.counts.refused += not decoded

    def on_wire(self, target: Target) -> bytes:
        """Alter a frame that is already sealed, or one that is never sealed."""
        chosen = self.random
        if target.valid and (not target.openers or chosen.random() < 0.6):
            frame = chosen.choice(target.valid)
        else:
            frame = self.sealed(target) if target.openers else chosen.randbytes(chosen.randrange(80))
        draw = chosen.random()
        if draw < 0.3:
            frame = other_header(chosen, frame)
        elif draw < 0.6 and not target.openers:
            frame = self.clear(frame)
        else:
            frame = other_bytes(chosen, frame, target.valid or [frame])
        return frame

    def clear(self, frame: bytes) -> bytes:
        """Alter the body of HELLO or WELCOME."""
        body = frame[16:]
        try:
            return frame[:16] + other_fields(self.random, body)
        except RWTProtocolError:
            return frame[:16] + other_map(self.random)

    def one(self) -> tuple[str, bytes, Callable[[], int]]:
        target = self.random.choice(self.targets)
        target.snapshot.restore()
        if target.openers and self.random.random() < 0.7:
            frame = self.sealed(target)
        else:
            frame = self.on_wire(target)
            kind = FrameType.HELLO if target.is_server else FrameType.WELCOME
            if not target.openers:
                self.tell(check_control(kind, frame[16:]))
        side = "server" if target.is_server else "client"
        return f"{side} {target.end.state.name}", frame, lambda: target.take(frame)

    def run(self, frames: int, progress: Callable[[int], None] | None = None) -> Counts:
        counts = self.counts
        clock = time.perf_counter
        for number in range(1, frames + 1):
            where, frame = "codec", b""
            start = clock()
            try:
                where, frame, give = self.one()
                code = give()
            except Exception as failure:
                counts.failures.append(f"frame {number} at {where}: {frame.hex()}: {failure!r}")
                code = 0
            taken = clock() - start
            if taken > MOST_SECONDS:
                counts.failures.append(f"frame {number} at {where}: {frame.hex()}: took {taken:.1f} s")
            counts.slowest_ms = max(counts.slowest_ms, taken * 1000)
            counts.frames += 1
            if code > 0:
                counts.closed[code] += 1
            else:
                counts.accepted += 1
            if progress is not None:
                progress(number)
        return counts


def _say(number: int) -> None:
    if number % 100_000 == 0:
        print(f"... {number:,} frames", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frame_fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    start = time.perf_counter()
    counts = Fuzz(given.seed).run(given.frames, _say)
    for name, value in [*counts.rows(), ("seconds", f"{time.perf_counter() - start:.1f}")]:
        print(f"{name:18} {value:>12}")
    for line in counts.failures[:10]:
        print(line)
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
