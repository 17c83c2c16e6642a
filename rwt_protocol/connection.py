"""What both ends of a connection share: the order of checks on a frame, sealing, failing (sections 5, 6, 8).

Three things drive a connection (`receive`, calls, `handle_timer`) and three come out (`bytes_to_send`,
`events`, `next_timer`). It does no I/O; time, in seconds on any monotonic clock, and randomness are
arguments. What the peer does wrong never raises out of `receive`: it ends the connection.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Final, NamedTuple

from . import codec, limits
from .codec import HEADER, frame_type
from .codes import CloseCode, Flag, FrameType, Level
from .errors import RWTEncryptionError, RWTProtocolError
from .events import Event, Terminated
from .frames import Bye, Control
from .record import LEVEL_FLAGS, Opener, Sealer, inflate, pad, unpad
from .suites import RandomBytes

_E, _P, _Z, _R, _B = (int(flag) for flag in Flag)


class State(Enum):
    """States of section 6. Each end uses its own five."""

    EXPECT_HELLO = "server: nothing received"
    EXPECT_CONFIRM = "server: WELCOME sent"
    EXPECT_REPLY = "server: ROTATE sent"
    EXPECT_WELCOME = "client: HELLO sent"
    EXPECT_READY = "client: CONFIRM sent"
    EXPECT_ROTATED = "client: REPLY sent"
    OPEN = "both: open"
    CLOSED = "both: over"


def _message_flags_valid(flags: int) -> bool:
    if flags & (_P | _R) and not flags & _E:
        return False
    return not (flags & _B and flags & (_Z | _R))


MESSAGE_FLAGS: Final = tuple(_message_flags_valid(flags) for flags in range(32)) + (False,) * 224
"""Which flag bytes a MSG may have (section 5)."""

HANDSHAKE_MAX_FRAME: Final = limits.MAX_CONTROL + limits.MIN_FRAME


class Header(NamedTuple):
    """A parsed header with the frame it heads."""

    kind: int
    flags: int
    epoch: int
    stream: int
    seq: int
    data: bytes


class Connection:
    """Base of `ClientConnection` and `ServerConnection`."""

    __slots__ = (
        "_events",
        "_max_frame",
        "_max_message",
        "_now",
        "_opener",
        "_out",
        "_random",
        "_sealer",
        "epoch",
        "last_received",
        "state",
        "window",
    )

    def __init__(self, state: State, random_bytes: RandomBytes, now: float) -> None:
        self.state = state
        self.epoch = 0
        """Epoch whose keys this side sends under; 0 before the first."""
        self.last_received = now
        """When the last valid frame came."""
        self.window = limits.WINDOW
        """W: messages with a mid that may be unanswered."""
        self._now = now
        self._random = random_bytes
        self._opener: Opener | None = None
        self._sealer: Sealer | None = None
        self._max_frame = HANDSHAKE_MAX_FRAME
        self._max_message = limits.MAX_MESSAGE
        self._out: list[bytes] = []
        self._events: list[Event] = []

    # --- what comes out ---

    def bytes_to_send(self) -> list[bytes]:
        """Return and forget the frames to write, each one binary WebSocket message."""
        out, self._out = self._out, []
        return out

    @property
    def wants_to_send(self) -> bool:
        """Whether `bytes_to_send` would return anything."""
        return bool(self._out)

    def events(self) -> list[Event]:
        """Return and forget what happened."""
        events, self._events = self._events, []
        return events

    @property
    def next_timer(self) -> float:
        """When `handle_timer` is due; infinity if never."""
        return inf

    def rest(self) -> None:
        """Give back memory that an idle connection does not need."""
        if self._opener is not None:
            self._opener.rest()
        if self._sealer is not None:
            self._sealer.rest()

    @property
    def max_message(self) -> int:
        """Largest body of a message, in bytes."""
        return self._max_message

    # --- what goes in ---

    def receive(self, data: bytes, now: float) -> None:
        """Take one binary WebSocket message."""
        if self.state is State.CLOSED:
            return
        self._now = now
        try:
            self._receive(data)
        except RWTProtocolError as exc:
            self._fail(exc.close_code, str(exc))

    def receive_text(self, now: float) -> None:
        """A text WebSocket message came: it ends the connection."""
        self._now = now
        self._fail(CloseCode.PROTOCOL_ERROR, "a text message was received")

    def close(
        self,
        code: int,
        now: float,
        *,
        reason: str = "",
        keep: bool | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """End the connection from this side with a sealed BYE, if there are keys for one."""
        self._now = now
        self._end(code, reason, keep=keep, retry_after_ms=retry_after_ms)

    def reject(self, fault: RWTProtocolError, now: float) -> None:
        """What the peer sent was found wrong above this layer: end the connection as `receive` would."""
        self._now = now
        self._fail(fault.close_code, str(fault))

    # --- for the two sides ---

    def _receive(self, data: bytes) -> None:
        raise AssertionError("each side receives in its own way")

    def _parse(self, data: bytes, accepted: frozenset[FrameType]) -> Header:
        """Check what needs no key, in the order of section 5.1."""
        size = len(data)
        if size > self._max_frame:
            raise RWTProtocolError("a frame is too large", CloseCode.TOO_LARGE)
        if size < limits.MIN_CLEAR_FRAME:
            raise RWTProtocolError("a frame is too short")
        kind, flags, epoch, stream, seq = HEADER.unpack_from(data)
        header = Header(kind, flags, epoch, stream, seq, data)
        if kind not in accepted and not 0x40 <= kind < 0x80:
            raise RWTProtocolError(f"frame type {kind:#04x} is not known here")
        if kind in (FrameType.HELLO, FrameType.WELCOME):
            return header
        if size < limits.MIN_FRAME:
            raise RWTProtocolError("a frame is too short")
        if not (MESSAGE_FLAGS[flags] if kind == FrameType.MSG else flags == _E):
            raise RWTProtocolError("a frame has flags that its type may not have")
        return header

    def _open(self, header: Header, opener: Opener) -> bytes:
        """Open the next frame in order under `opener`."""
        if header.epoch != opener.epoch:
            raise RWTProtocolError("a frame has another epoch")
        payload = opener.open(header.data, header.flags, header.seq)
        self.last_received = self._now
        return payload

    def _open_control(self, header: Header, opener: Opener) -> Control:
        if header.stream:
            raise RWTProtocolError("a control frame has a stream")
        return codec.decode_control(FrameType(header.kind), self._open(header, opener))

    def _open_extension(self, header: Header, opener: Opener) -> None:
        """Verify a frame of a type that this version does not know, and ignore it."""
        if header.stream:
            raise RWTProtocolError("an extension frame has a stream")
        self._open(header, opener)

    def _unpack(self, flags: int, payload: bytes) -> list[bytes]:
        """Undo padding, compression and batching of an opened MSG; return the encoded messages."""
        if flags & _P:
            payload = unpad(payload)
        if flags & _Z:
            payload = inflate(payload, 2 + limits.MAX_META + self._max_message)
        return codec.split_batch(payload, self.window) if flags & _B else [payload]

    def _check_size(self, body: bytes) -> None:
        if len(body) > self._max_message:
            raise RWTProtocolError("a message is too large", CloseCode.TOO_LARGE)

    def _send(self, frame: Control) -> None:
        """Seal a control frame now and queue it."""
        self._send_body(frame_type(frame), codec.encode_control(frame))

    def _send_body(self, kind: FrameType, body: bytes) -> None:
        sealer = self._sealer
        if sealer is None:
            if self.state is State.CLOSED:
                return
            raise AssertionError("nothing is sent before there are keys")
        try:
            self._out.append(sealer.seal(kind, _E, 0, body))
        except RWTEncryptionError:
            self._exhausted()
            return
        if sealer.worn:
            self._on_worn()

    def send_message(self, flags: int, stream: int, payload: bytes) -> None:
        """Seal one MSG now and queue it; ends the connection if the key is used up.

        Args:
            flags: Of the level, with B for a batch or Z for a compressed payload.
            payload: Padded if `flags` has P.
        """
        sealer = self._sealer
        if sealer is None:
            return
        try:
            self._out.append(sealer.seal(0x20, flags, stream, payload))
        except RWTEncryptionError:
            self._exhausted()
            return
        if sealer.worn:
            self._on_worn()

    def _on_worn(self) -> None:
        """A key was used enough: ask for, or offer, new ones."""
        raise AssertionError("each side renews in its own way")

    def _exhausted(self) -> None:
        # No BYE: it would need the key that is used up.
        self._out.clear()
        self._terminate(Terminated(CloseCode.EXPIRED, "the traffic key has reached its limit of use"))

    def _fail(self, code: CloseCode, reason: str) -> None:
        """The peer broke a rule: end the connection, tell it the code and no detail."""
        self._end(code, reason, tell="")

    def _end(
        self,
        code: int,
        reason: str,
        *,
        tell: str | None = None,
        keep: bool | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        if self.state is State.CLOSED:
            return
        if self._sealer is not None and not self._sealer.exhausted:
            told = reason if tell is None else tell
            # Closed already where BYE would ask for new keys, or use up the last of the old ones.
            self._send(Bye(code, told[:200] or None, retry_after_ms, keep))
        self._terminate(Terminated(code, reason, retry_after_ms=retry_after_ms, keep=bool(keep)))

    def _terminate(self, event: Terminated) -> None:
        self.state = State.CLOSED
        self._opener = self._sealer = None
        self._events.append(event)


def pack_messages(messages: list[bytes], level: Level, window: int) -> list[tuple[int, bytes, int]]:
    """Pack encoded messages of one level into as few payloads as the rules allow (section 5.20).

    Returns:
        For each frame: its flags, its payload (padded if the level asks for it), its number of messages.
    """
    flags = LEVEL_FLAGS[level]
    packed: list[tuple[int, bytes, int]] = []
    start, size = 0, 0
    most = 1 if level is Level.MAXIMUM else window
    for index, message in enumerate(messages):
        need = 4 + len(message)
        if index > start and (size + need > limits.MAX_BATCH or index - start >= most):
            packed.append(_pack(messages[start:index], flags))
            start, size = index, 0
        size += need
    if start < len(messages):
        packed.append(_pack(messages[start:], flags))
    return packed


def _pack(messages: list[bytes], flags: int) -> tuple[int, bytes, int]:
    count = len(messages)
    if count > 1:
        flags |= _B
        payload = codec.join_batch(messages)
    else:
        payload = messages[0]
    return flags, pad(payload) if flags & _P else payload, count
