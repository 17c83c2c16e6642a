"""The client's end of a connection: one state machine over what a server may send (sections 6 to 10)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from . import codec, handshake, key_schedule, limits
from .codes import (
    SERVER_TYPES,
    CloseCode,
    FrameType,
    Policy,
    RequestReason,
    Suite,
    Warning,
)
from .connection import Connection, Header, State
from .errors import RWTProtocolError
from .events import (
    Acknowledged,
    Delivered,
    GapFound,
    Opened,
    Refused,
    Rotated,
    RoundTrip,
    StreamClosed,
    Subscribed,
    Terminated,
    Warned,
)
from .frames import (
    Ack,
    Bye,
    Closed,
    Confirm,
    Entry,
    Err,
    GapNotice,
    Ping,
    Pong,
    Ready,
    Reply,
    Request,
    Rotate,
    RotationTerms,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from .frames import Rotated as RotatedFrame
from .handshake import ClientHello
from .key_schedule import EpochKeys
from .record import USAGE, Opener, Sealer, UsageLimits, level_of
from .session import ClientSession, Held
from .suites import PublicKey, RandomBytes, SigningKey, respond


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientRules:
    """What a client offers and demands."""

    suites: tuple[Suite, ...] = (Suite.X25519, Suite.P256, Suite.X25519MLKEM768)
    policy: Policy = Policy.AUTO
    pins: frozenset[PublicKey] = frozenset()
    """Identity keys of the server; not empty: `pinned` mode."""
    device_key: SigningKey | None = None
    rotation: RotationTerms | None = None
    """What to ask for; None: the server's own."""
    name: tuple[str, str] | None = None
    """Name and version told to the server, but not before it is authenticated in `pinned` mode."""
    usage: UsageLimits = USAGE


class ClientConnection(Connection):
    """One connection of one session; sends HELLO at once.

    Args:
        session: Outlives the connection; tokens are held there before their proof is sent.
        rules: Of the client.
        random_bytes: A cryptographically secure source.
        now: Seconds on a monotonic clock; the same clock in every call.

    Raises:
        RWTProtocolError: 4406: no common suite.
    """

    __slots__ = (
        "_chain",
        "_dead_at",
        "_expires_at",
        "_hard_at",
        "_held",
        "_hello",
        "_next",
        "_next_opener",
        "_ping",
        "_ping_at",
        "_ping_number",
        "_pinged_at",
        "_request_at",
        "_rules",
        "_session",
        "_usage_asked",
        "rotations",
        "server_policy",
    )

    def __init__(
        self, session: ClientSession, rules: ClientRules, random_bytes: RandomBytes, now: float
    ) -> None:
        super().__init__(State.EXPECT_WELCOME, random_bytes, now)
        self.rotations = 0
        self.server_policy = Policy.AUTO
        """Told in READY: a server with `always` ends the connection at a message that is not encrypted."""
        self._session = session
        self._rules = rules
        self._hello: ClientHello = handshake.client_hello(
            session, rules.suites, rules.policy, random_bytes, self._algorithms()
        )
        self._chain: EpochKeys | None = None
        self._held: Held | None = None
        self._next: tuple[EpochKeys, Held] | None = None
        self._next_opener: Opener | None = None
        self._usage_asked = False
        self._ping = inf
        self._ping_number = 0
        self._pinged_at = now
        self._ping_at = self._request_at = self._expires_at = self._hard_at = inf
        self._dead_at = now + limits.HANDSHAKE_MS / 1000
        self._out.append(self._hello.frame)

    def _algorithms(self) -> tuple[int, ...] | None:
        if not self._rules.pins:
            return None
        return tuple(sorted({int(pin.algorithm) for pin in self._rules.pins}))

    @property
    def can_subscribe(self) -> bool:
        """Whether SUB may be sent: behind CONFIRM at once, in `pinned` mode behind READY."""
        if self.state is State.EXPECT_READY:
            return not self._rules.pins and self._held is not None
        return self.state in (State.OPEN, State.EXPECT_ROTATED)

    @property
    def is_open(self) -> bool:
        """Whether messages may be sent."""
        return self.state is State.OPEN or self.state is State.EXPECT_ROTATED

    # --- receiving ---

    def _receive(self, data: bytes) -> None:
        header = self._parse(data, SERVER_TYPES)
        match self.state, header.kind:
            case State.OPEN | State.EXPECT_ROTATED, FrameType.MSG:
                self._on_message(header)
            case State.OPEN | State.EXPECT_ROTATED, (
                FrameType.WARN
                | FrameType.BYE
                | FrameType.PING
                | FrameType.PONG
                | FrameType.SUBOK
                | FrameType.ERR
                | FrameType.CLOSED
                | FrameType.GAP
                | FrameType.ACK
            ):
                self._on_control(header)
            case State.OPEN, FrameType.ROTATE:
                self._on_rotate(header)
            case State.EXPECT_ROTATED, FrameType.ROTATED:
                self._on_rotated(header)
            case State.OPEN | State.EXPECT_ROTATED, kind if kind >= 0x40:
                self._open_extension(header, self._rx)
            case State.EXPECT_WELCOME, FrameType.WELCOME:
                self._on_welcome(data)
            case State.EXPECT_READY, FrameType.READY:
                self._on_ready(header)
            case State.EXPECT_READY, FrameType.WARN | FrameType.BYE:
                self._on_control(header)
            case _:
                raise RWTProtocolError(f"frame type {header.kind:#04x} is not allowed in {self.state.name}")
        if self._opener is not None and self._opener.worn:
            self._on_worn()

    @property
    def _rx(self) -> Opener:
        if self._opener is None:
            raise AssertionError("an open connection has keys")
        return self._opener

    def _on_message(self, header: Header) -> None:
        opener = self._rx
        if not header.flags & 1 and self._rules.policy is Policy.ALWAYS:
            raise RWTProtocolError("a message is not encrypted")
        entries: list[Entry] = []
        for encoded in self._unpack(header.flags, self._open(header, opener)):
            entry = codec.decode_entry(encoded)
            self._check_size(entry.body)
            entries.append(entry)
        self._events.append(Delivered(header.stream, level_of(header.flags), entries))

    def _on_control(self, header: Header) -> None:
        match self._open_control(header, self._rx):
            case Ack() as ack:
                self._events.append(Acknowledged(ack))
            case Ping(number):
                self._send(Pong(number))
            case Pong(number):
                if number == self._ping_number:
                    self._events.append(RoundTrip(self._now - self._pinged_at))
            case SubOk() as answer:
                self._events.append(Subscribed(answer))
            case Err() as err:
                if (err.ref is None) == (err.mid is None):
                    raise RWTProtocolError("ERR answers neither one message nor one subscription")
                self._events.append(Refused(err))
            case Closed() as closed:
                self._events.append(StreamClosed(closed))
            case GapNotice() as notice:
                self._events.append(GapFound(notice))
            case Warn(code, text, _):
                self._events.append(Warned(code, text or ""))
            case Bye(code, reason, retry_after_ms, keep):
                self._terminate(
                    Terminated(
                        code,
                        reason or "",
                        by_peer=True,
                        sealed=True,
                        retry_after_ms=retry_after_ms,
                        keep=bool(keep),
                    )
                )
            case frame:
                raise AssertionError(f"{type(frame).__name__} has a row of its own")

    # --- handshake (section 7) ---

    def _on_welcome(self, data: bytes) -> None:
        keys, parent = handshake.client_keys(self._hello, data)
        if parent is not None:
            # Held before the proof leaves: the server may be the only one to know that it arrived.
            self._held = self._session.hold(keys.epoch, keys.token, parent)
        self._chain = keys
        self.epoch = keys.epoch
        self._opener = Opener(keys.server, keys.epoch, self._rules.usage)
        self._sealer = Sealer(keys.client, keys.epoch, self._rules.usage)
        signature = None
        if self._rules.device_key is not None:
            signature = self._rules.device_key.sign(key_schedule.client_signature_input(keys.transcript))
        name = None if self._rules.pins else self._rules.name
        self.state = State.EXPECT_READY
        self._send(Confirm(signature, self._rules.rotation, name))

    def _on_ready(self, header: Header) -> None:
        keys, held = self._chain, self._held
        if keys is None:
            raise AssertionError("READY is expected after WELCOME only")
        ready = self._open_control(header, self._rx)
        if held is None or not isinstance(ready, Ready):
            raise RWTProtocolError("READY came although the server knew the family only")
        if ready.epoch != keys.epoch:
            raise RWTProtocolError("READY has a wrong epoch")
        self._check_server(ready.signature, key_schedule.server_signature_input(keys.transcript))
        self._session.settle(held)
        self._session.suite = self._hello.own.suite
        self.state = State.OPEN
        self.window = ready.window
        self.server_policy = Policy(ready.policy)
        self._max_message = ready.max_message
        self._max_frame = ready.max_frame
        self._ping = ready.ping_ms / 1000
        self._ping_at = self._now
        self._dead_at = self._now + 2.5 * self._ping
        self._arm(ready.rotate_ms, ready.expires_ms)
        self._events.append(
            Opened(key_schedule.connection_id(keys.transcript), keys.epoch, ready.resumed, ready)
        )

    def _check_server(self, signature: object, message: bytes) -> None:
        if self._rules.pins and not handshake.verify_pinned(self._rules.pins, signature, message):
            self._events.append(
                Warned(Warning.SERVER_IDENTITY, "the server did not prove the pinned identity")
            )
            raise RWTProtocolError("the server did not prove its identity")

    # --- rotation (section 9) ---

    def _arm(self, rotate_ms: int | None, expires_ms: int) -> None:
        self._expect_by(self._now + expires_ms / 1000)
        self._request_at = inf
        if rotate_ms is not None:
            self._request_at = self._now + (rotate_ms + expires_ms) / 2000

    def request_rotation(self, reason: RequestReason, now: float) -> None:
        """Ask the server to rotate now; it answers at most one request in 5 s."""
        self._now = now
        if self.state is State.OPEN:
            self._send(Request(reason))

    def _on_worn(self) -> None:
        if self.state is State.OPEN and not self._usage_asked:
            self._usage_asked = True
            self._send(Request(RequestReason.USAGE))

    def _on_rotate(self, header: Header) -> None:
        keys, held = self._chain, self._held
        if keys is None or held is None:
            raise AssertionError("an open connection has keys")
        offer = self._open_control(header, self._rx)
        if not isinstance(offer, Rotate) or offer.epoch != keys.epoch + 1:
            raise RWTProtocolError("ROTATE has a wrong epoch")
        self._check_server(
            offer.signature, key_schedule.offer_signature_input(keys.transcript, offer.epoch, offer.share)
        )
        share, dh = respond(self._hello.own.suite, offer.share, self._random)
        new = key_schedule.rotate(keys, dh, offer.share, share)
        self._next = new, self._session.hold(new.epoch, new.token, held)
        self._next_opener = Opener(new.server, new.epoch, self._rules.usage)
        signature = None
        if self._rules.device_key is not None:
            signature = self._rules.device_key.sign(key_schedule.client_signature_input(new.transcript))
        self.state = State.EXPECT_ROTATED
        self._send(Reply(new.epoch, share, signature))
        if self._sealer is None:
            return  # the old key was used up
        self._sealer = Sealer(new.client, new.epoch, self._rules.usage)
        self.epoch = new.epoch
        self._request_at = inf
        self._expect_by(self._now + limits.REPLY_MS / 1000)

    def _on_rotated(self, header: Header) -> None:
        opener, following = self._next_opener, self._next
        if opener is None or following is None:
            raise AssertionError("REPLY was sent")
        rotated = self._open_control(header, opener)
        keys, held = following
        if not isinstance(rotated, RotatedFrame) or rotated.epoch != keys.epoch:
            raise RWTProtocolError("ROTATED has a wrong epoch")
        self._opener = opener
        self._chain, self._held = keys, held
        self._next = self._next_opener = None
        self._usage_asked = False
        self._session.settle(held)
        self.rotations += 1
        self.state = State.OPEN
        self._arm(rotated.rotate_ms, rotated.expires_ms)
        self._events.append(Rotated(keys.epoch, rotated.rotate_ms, rotated.expires_ms))

    # --- calls ---

    def subscribe(self, sub: Sub) -> None:
        """Send SUB; `can_subscribe` must be true."""
        self._send(sub)

    def unsubscribe(self, ref: int, stream: int) -> None:
        """Send UNSUB."""
        self._send(Unsub(ref, stream))

    def ping(self, now: float) -> None:
        """Send PING; `RoundTrip` tells when it is answered."""
        self._now = now
        if self.is_open:
            self._ping_number += 1
            self._pinged_at = now
            self._ping_at = now + self._ping
            self._send(Ping(self._ping_number))

    # --- time ---

    @property
    def next_timer(self) -> float:
        if self.state is State.CLOSED:
            return inf
        return min(self._dead_at, self._ping_at, self._request_at, self._expires_at)

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        if self.state is State.CLOSED:
            return
        if self.state in (State.EXPECT_WELCOME, State.EXPECT_READY):
            if now >= self._dead_at:
                self._end(CloseCode.EXPIRED, "the handshake took too long")
            return
        if now >= self._dead_at:
            self._dead_at = self.last_received + 2.5 * self._ping
            if now >= self._dead_at:
                self._end(CloseCode.EXPIRED, "the server is silent")
                return
        if now >= self._expires_at:
            self._expires_at = self._extend(now)
            if now >= self._expires_at:
                self._end(CloseCode.EXPIRED, "a rotation was not offered or not completed in time")
                return
        if now >= self._request_at:
            self._request_at = inf
            self._events.append(Warned(Warning.ROTATION_OVERDUE, "no rotation came when it was due"))
            self._send(Request(RequestReason.OVERDUE))
        if now >= self._ping_at:
            self.ping(now)

    def _extend(self, now: float) -> float:
        """The deadlines are for silence: while valid frames keep arriving they move, by 60 s at most."""
        return min(self._hard_at, max(now, self.last_received + limits.REPLY_MS / 1000))

    def _expect_by(self, deadline: float) -> None:
        self._expires_at = deadline
        self._hard_at = deadline + limits.SILENCE_GRACE_MS / 1000
