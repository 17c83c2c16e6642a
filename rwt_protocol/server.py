"""The server's end of a connection: one state machine over what a client may send (sections 6 to 10)."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from . import codec, handshake, key_schedule, limits
from .codec import StoredRun
from .codes import (
    CLIENT_TYPES,
    CloseCode,
    ErrorCode,
    FrameType,
    Level,
    Pattern,
    Policy,
    RequestReason,
    Suite,
    Warning,
)
from .connection import MESSAGE_FLAGS, Connection, Header, State
from .errors import RWTProtocolError
from .events import (
    AdvanceWanted,
    Opened,
    Published,
    RevocationWanted,
    Rotated,
    SessionWanted,
    SubscribeRequested,
    Terminated,
    UnsubscribeRequested,
    Warned,
)
from .frames import (
    Bye,
    Closed,
    Confirm,
    Err,
    Gap,
    GapNotice,
    Hello,
    Ping,
    Pong,
    Publication,
    Ready,
    Reply,
    Request,
    Rotate,
    RotationTerms,
    Signature,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from .frames import Rotated as RotatedFrame
from .key_schedule import EpochKeys
from .record import USAGE, Opener, Sealer, UsageLimits, level_of
from .rotation import RotationRules, Schedule, expiry_ms
from .session import Advance, Proof, SessionRecord, StoreConflict, Swap
from .suites import KeyShare, PublicKey, RandomBytes, SigningKey, generate, shared_secret

_RUNS_PER_ACK = 64
"""Runs that fit one ACK whatever their numbers are."""
_TRANSPORT_POLL = 0.25
"""Seconds between looks at a transport that still holds a PING or ROTATE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRules:
    """What a server offers and demands; the same for all its connections."""

    suites: tuple[Suite, ...] = (Suite.X25519, Suite.P256)
    """In order of preference."""
    policy: Policy = Policy.AUTO
    rotation: RotationRules = field(default_factory=RotationRules)
    max_message: int = limits.MAX_MESSAGE
    window: int = limits.WINDOW
    ping_ms: int = limits.PING_MS
    resume_window_ms: int = limits.RESUME_WINDOW_MS
    signing_keys: tuple[SigningKey, ...] = ()
    """Identity keys for pinned clients; one for each algorithm at most."""
    usage: UsageLimits = USAGE

    @property
    def max_frame(self) -> int:
        return self.max_message + limits.FRAME_OVERHEAD


@dataclass(slots=True)
class _Step:
    """An epoch that was proved but is not stored yet."""

    keys: EpochKeys
    rotate_ms: int | None
    expires_ms: int


class ServerConnection(Connection):
    """One connection of one session, from HELLO to the end.

    Args:
        rules: Of the server.
        random_bytes: A cryptographically secure source.
        now: Seconds on a monotonic clock; the same clock in every call.
        session_number: The node's counter of sessions; spreads rotations over time.
    """

    __slots__ = (
        "_chain",
        "_dead_at",
        "_deadline",
        "_device_key",
        "_ends_at",
        "_excused",
        "_expires_at",
        "_handshake",
        "_last_request",
        "_offer",
        "_ping_at",
        "_pings",
        "_requests",
        "_resumed",
        "_rotate_at",
        "_rules",
        "_runs",
        "_schedule",
        "_session_number",
        "_signer",
        "_step",
        "_store_lost_at",
        "_suite",
        "_unanswered",
        "_unsent_since",
        "client_policy",
        "rotations",
        "sid",
    )

    def __init__(
        self, rules: ServerRules, random_bytes: RandomBytes, now: float, session_number: int = 0
    ) -> None:
        super().__init__(State.EXPECT_HELLO, random_bytes, now)
        self.sid = b""
        self.client_policy = Policy.AUTO
        self.rotations = 0
        self._rules = rules
        self.window = rules.window
        self._max_message = rules.max_message
        self._session_number = session_number
        self._handshake: tuple[Hello, bytes] | tuple[EpochKeys, Proof] | None = None
        self._device_key: PublicKey | None = None
        self._suite = Suite.X25519
        self._resumed = False
        self._signer: SigningKey | None = None
        self._chain: EpochKeys | None = None
        self._offer: KeyShare | None = None
        self._step: _Step | None = None
        self._schedule: Schedule | None = None
        self._runs: list[StoredRun] = []
        self._unanswered = 0
        self._pings = 0
        self._excused = -inf
        self._last_request = -inf
        self._requests: list[float] = []
        self._unsent_since: float | None = None
        self._store_lost_at: float | None = None
        self._rotate_at = self._ping_at = self._expires_at = self._ends_at = inf
        self._dead_at = now + limits.HANDSHAKE_MS / 1000
        self._deadline = self._dead_at

    # --- receiving ---

    def _receive(self, data: bytes) -> None:
        # The hot row first: a message on an open connection, without building a header value.
        if data[:1] == b"\x20" and (self.state is State.OPEN or self.state is State.EXPECT_REPLY):
            size = len(data)
            if size > self._max_frame:
                raise RWTProtocolError("a frame is too large", CloseCode.TOO_LARGE)
            if size < limits.MIN_FRAME:
                raise RWTProtocolError("a frame is too short")
            _, flags, epoch, stream, seq = codec.HEADER.unpack_from(data)
            if not MESSAGE_FLAGS[flags]:
                raise RWTProtocolError("a frame has flags that its type may not have")
            opener = self._opener
            if opener is None or epoch != opener.epoch:
                raise RWTProtocolError("a frame has another epoch")
            payload = opener.open(data, flags, seq)
            self.last_received = self._now
            self._on_message(flags, stream, payload)
            if opener.worn:
                self._on_worn()
            return
        header = self._parse(data, CLIENT_TYPES)
        match self.state, header.kind:
            case State.OPEN | State.EXPECT_REPLY, (
                FrameType.REQUEST
                | FrameType.BYE
                | FrameType.PING
                | FrameType.PONG
                | FrameType.SUB
                | FrameType.UNSUB
            ):
                self._on_control(header)
            case State.EXPECT_REPLY, FrameType.REPLY:
                self._on_reply(header)
            case State.OPEN | State.EXPECT_REPLY, kind if kind >= 0x40:
                self._open_extension(header, self._rx)
            case State.EXPECT_HELLO, FrameType.HELLO:
                self._on_hello(data)
            case State.EXPECT_CONFIRM, FrameType.CONFIRM:
                self._on_confirm(header)
            case _:
                raise RWTProtocolError(f"frame type {header.kind:#04x} is not allowed in {self.state.name}")
        if self._opener is not None and self._opener.worn:
            self._on_worn()

    @property
    def _rx(self) -> Opener:
        if self._opener is None:
            raise AssertionError("an open connection has keys")
        return self._opener

    def _on_message(self, flags: int, stream: int, payload: bytes) -> None:
        if stream == 0:
            raise RWTProtocolError("a message has stream 0")
        if not flags & 1 and self._rules.policy is Policy.ALWAYS:
            raise RWTProtocolError("a message is not encrypted")
        messages: list[Publication] = []
        last = 0
        wanted = 0
        most = self._max_message
        for encoded in self._unpack(flags, payload):
            message = codec.decode_publication(encoded)
            if len(message.body) > most:
                raise RWTProtocolError("a message is too large", CloseCode.TOO_LARGE)
            mid = message.mid
            if mid is not None:
                if mid <= last:
                    raise RWTProtocolError("mids of a batch do not ascend")
                last = mid
                wanted += 1
            messages.append(message)
        self._unanswered += wanted
        if self._unanswered > self.window:
            raise RWTProtocolError("more messages are unanswered than the window allows", CloseCode.TOO_LARGE)
        self._events.append(Published(stream, level_of(flags), messages))

    def _on_control(self, header: Header) -> None:
        match self._open_control(header, self._rx):
            case Ping(number):
                self._send(Pong(number))
            case Pong():
                pass
            case Sub() as sub:
                self._events.append(SubscribeRequested(sub))
            case Unsub() as unsub:
                self._events.append(UnsubscribeRequested(unsub))
            case Request(reason):
                self._on_request(reason)
            case Bye(code, reason, _, keep):
                self._terminate(Terminated(code, reason or "", by_peer=True, sealed=True, keep=bool(keep)))
            case frame:
                raise AssertionError(f"{type(frame).__name__} has a row of its own")

    # --- handshake (section 7) ---

    def _on_hello(self, data: bytes) -> None:
        if self._handshake is not None:
            raise RWTProtocolError("HELLO was sent twice")
        hello = handshake.read_hello(data)
        self._handshake = hello, data
        self._events.append(SessionWanted(hello.sid))

    def session_found(self, record: SessionRecord | None, now: float, ends_in: float = inf) -> None:
        """Answer `SessionWanted`.

        Args:
            ends_in: Seconds until the session's 24 h end.
        """
        self._now = now
        if self.state is State.CLOSED:
            return
        hello, data = self._handshake or (None, b"")
        if not isinstance(hello, Hello) or not isinstance(data, bytes):
            raise RuntimeError("session_found answers SessionWanted only")
        try:
            welcome, keys, proof = handshake.server_welcome(record, hello, data, self._random)
        except RWTProtocolError as exc:
            if isinstance(exc, StoreConflict):
                self._events.append(Warned(Warning.STORE_CONFLICT, str(exc)))
            if exc.close_code is CloseCode.VERSION_OR_SUITE:
                self._events.append(Warned(Warning.DOWNGRADE, str(exc)))
            self._fail(exc.close_code, str(exc))
            return
        if record is None:
            raise AssertionError("an unknown session has no proof")
        self._device_key = record.device_key
        self._suite = Suite(hello.suite)
        self._resumed = record.epoch > 0
        self._ends_at = now + ends_in
        self.sid = hello.sid
        self.client_policy = Policy(hello.policy)
        for key in self._rules.signing_keys:
            if key.public.algorithm in (hello.signature_algorithms or ()):
                self._signer = key
                break
        self._handshake = keys, proof
        self._opener = Opener(keys.client, keys.epoch, self._rules.usage)
        self._out.append(welcome)
        self.state = State.EXPECT_CONFIRM

    def _on_confirm(self, header: Header) -> None:
        keys, proof = self._handshake or (None, None)
        if not isinstance(keys, EpochKeys) or not isinstance(proof, Proof):
            raise RWTProtocolError("CONFIRM was sent twice")
        try:
            if header.stream:
                raise RWTProtocolError("a control frame has a stream")
            body = self._open(header, self._rx)
        except RWTProtocolError as exc:
            # Until CONFIRM opens, every failure looks the same.
            raise RWTProtocolError(str(exc), CloseCode.AUTHENTICATION_FAILED) from exc
        # From here on the peer knows the secret; what it is told is sealed.
        self._handshake = None
        self._sealer = Sealer(keys.server, keys.epoch, self._rules.usage)
        self.epoch = keys.epoch
        confirm = codec.decode_control(FrameType.CONFIRM, body)
        if not isinstance(confirm, Confirm):
            raise AssertionError("the header says CONFIRM")
        self._check_device(confirm.signature, keys, CloseCode.AUTHENTICATION_FAILED)
        if not proof.live:
            self._reuse()
            return
        granted = self._rules.rotation.grant(confirm.rotation)
        self._schedule = Schedule(
            interval_ms=granted.interval_ms,
            pattern=Pattern(granted.pattern),
            threshold=granted.threshold,
            session=self._session_number,
            start_ms=int(self._now * 1000),
        )
        self._want_advance(keys, proof.picked)

    def _check_device(
        self, signature: Signature | None, keys: EpochKeys, code: CloseCode = CloseCode.PROTOCOL_ERROR
    ) -> None:
        if self._device_key is not None and not self._device_key.verify(
            signature, key_schedule.client_signature_input(keys.transcript)
        ):
            raise RWTProtocolError("a device signature is missing or wrong", code)

    def _reuse(self) -> None:
        self._events.append(RevocationWanted(self.sid))
        self._warn(Warning.TOKEN_REUSE, "a token that is not current was used: the session is revoked")
        self._end(CloseCode.REVOKED, "token reuse")

    def _warn(self, code: Warning, text: str) -> None:
        self._send(Warn(code.value, text))
        self._events.append(Warned(code, text))

    def _want_advance(self, keys: EpochKeys, expected: bytes) -> None:
        rotate_ms, expires_ms = self._terms()
        self._step = _Step(keys, rotate_ms, expires_ms)
        self._events.append(
            AdvanceWanted(Advance(self.sid, expected, keys.epoch, keys.token, self._suite, expires_ms))
        )

    def advanced(self, outcome: Swap, now: float) -> None:
        """Answer `AdvanceWanted`."""
        self._now = now
        if self.state is State.CLOSED:
            return
        step, self._step = self._step, None
        if step is None:
            raise RuntimeError("advanced answers AdvanceWanted only")
        connecting = self.state is State.EXPECT_CONFIRM
        match outcome:
            case Swap.ADVANCED if connecting:
                self._open_session(step)
            case Swap.ADVANCED:
                self._finish_rotation(step)
            case Swap.LOST:
                self._end(CloseCode.SUPERSEDED, "another connection of this session was faster")
            case Swap.REVOKED:
                self._warn(Warning.TOKEN_REUSE, "the session is revoked")
                self._end(CloseCode.REVOKED, "the session is revoked")
            case Swap.GONE:
                self._end(CloseCode.SESSION_ENDED, "the session has ended")
            case Swap.UNKNOWN:
                self._end(CloseCode.INTERNAL, "the session store did not answer")

    def _terms(self) -> tuple[int | None, int]:
        """Fields 2 and 12 of READY and ROTATED: milliseconds until the next ROTATE and until expiry."""
        schedule = self._schedule
        if schedule is None:
            raise AssertionError("a proved session has a schedule")
        if not self._rules.rotation.enabled:
            return None, max(0, int((self._ends_at - self._now) * 1000))
        now_ms = int(self._now * 1000)
        rotate_ms = schedule.next_after(now_ms) - now_ms
        return rotate_ms, expiry_ms(rotate_ms, schedule.threshold)

    def _arm(self, step: _Step) -> None:
        self._rotate_at = inf if step.rotate_ms is None else self._now + step.rotate_ms / 1000
        self._expires_at = self._now + step.expires_ms / 1000

    def _open_session(self, step: _Step) -> None:
        rules, schedule = self._rules, self._schedule
        if schedule is None:
            raise AssertionError("a proved session has a schedule")
        keys = step.keys
        self._chain = keys
        self._max_frame = rules.max_frame
        self.state = State.OPEN
        signature = None
        if self._signer is not None:
            signature = self._signer.sign(key_schedule.server_signature_input(keys.transcript))
        granted = None
        if step.rotate_ms is not None:
            granted = RotationTerms(schedule.interval_ms, schedule.pattern.value, schedule.threshold)
        ready = Ready(
            epoch=keys.epoch,
            policy=rules.policy,
            max_frame=rules.max_frame,
            resumed=self._resumed,
            resume_window_ms=rules.resume_window_ms,
            ping_ms=rules.ping_ms,
            window=self.window,
            max_message=rules.max_message,
            expires_ms=step.expires_ms,
            rotate_ms=step.rotate_ms,
            signature=signature,
            granted=granted,
        )
        self._send(ready)
        self._arm(step)
        self._ping_at = self._now + rules.ping_ms / 1000
        self._dead_at = self._now + 2.5 * rules.ping_ms / 1000
        self._rearm()
        self._events.append(
            Opened(key_schedule.connection_id(keys.transcript), keys.epoch, ready.resumed, ready)
        )

    # --- rotation (section 9) ---

    def rotate(self, now: float) -> None:
        """Offer a rotation now, if none is outstanding."""
        self._now = now
        self._offer_rotation()

    def _on_worn(self) -> None:
        self._offer_rotation()

    def _offer_rotation(self) -> None:
        keys = self._chain
        if self.state is not State.OPEN or keys is None or self._store_lost_at is not None:
            return
        if keys.epoch >= limits.MAX_EPOCH:
            self._end(CloseCode.SESSION_ENDED, "the last epoch is reached")
            return
        offer = self._offer = generate(self._suite, self._random)
        epoch = keys.epoch + 1
        signature = None
        if self._signer is not None:
            signature = self._signer.sign(
                key_schedule.offer_signature_input(keys.transcript, epoch, offer.share)
            )
        self.state = State.EXPECT_REPLY
        self._rotate_at = inf
        self._expires_at = max(self._expires_at, self._now + limits.REPLY_MS / 1000)
        self._unsent_since = self._now
        self._rearm()
        self._send(Rotate(epoch, offer.share, signature))

    def _on_request(self, reason: int) -> None:
        now = self._now
        self._requests = [at for at in self._requests if at > now - 60]
        self._requests.append(now)
        if len(self._requests) > limits.MAX_REQUESTS_PER_MINUTE:
            self._end(CloseCode.RATE, "too many REQUEST frames")
            return
        if self.state is State.EXPECT_REPLY or now - self._last_request < limits.REQUEST_MS / 1000:
            return
        self._last_request = now
        if reason == RequestReason.OVERDUE:
            self._events.append(Warned(Warning.ROTATION_OVERDUE, "the client waited for ROTATE in vain"))
        if self._store_lost_at is not None:
            self._warn(Warning.ROTATION_DEFERRED, "the session store does not answer")
            return
        self._offer_rotation()

    def _on_reply(self, header: Header) -> None:
        keys, offer = self._chain, self._offer
        if self._step is not None or keys is None or offer is None:
            raise RWTProtocolError("REPLY was sent twice")
        reply = self._open_control(header, self._rx)
        if not isinstance(reply, Reply):
            raise AssertionError("the header says REPLY")
        if reply.epoch != keys.epoch + 1:
            raise RWTProtocolError("REPLY has a wrong epoch")
        new = key_schedule.rotate(keys, shared_secret(offer, reply.share), offer.share, reply.share)
        self._check_device(reply.signature, new)
        self._offer = None
        self._want_advance(new, key_schedule.token_id(keys.token))

    def _finish_rotation(self, step: _Step) -> None:
        keys = step.keys
        usage = self._rules.usage
        self._opener = Opener(keys.client, keys.epoch, usage)
        self._sealer = Sealer(keys.server, keys.epoch, usage)
        self._chain = keys
        self.epoch = keys.epoch
        self.rotations += 1
        self.state = State.OPEN
        self._send(RotatedFrame(keys.epoch, step.expires_ms, step.rotate_ms))
        self._arm(step)
        self._rearm()
        self._events.append(Rotated(keys.epoch, step.rotate_ms, step.expires_ms))

    def warn_reuse(self, now: float) -> None:
        """The session was revoked on another connection: tell this one and end it."""
        self._now = now
        if self.state is State.CLOSED:
            return
        if self._sealer is not None:
            self._warn(Warning.TOKEN_REUSE, "a token that is not current was used: the session is revoked")
        self._end(CloseCode.REVOKED, "token reuse")

    @property
    def lifetime_ms(self) -> int:
        """Milliseconds until the current epoch expires."""
        return max(0, int((self._expires_at - self._now) * 1000)) if self._expires_at < inf else 0

    # --- answers (section 10) ---

    def subscribed(self, answer: SubOk) -> None:
        """Answer `SubscribeRequested`."""
        if self.state is not State.CLOSED:
            self._send(answer)

    def refuse(
        self,
        code: ErrorCode,
        *,
        ref: int | None = None,
        mid: int | None = None,
        text: str | None = None,
        retry_after_ms: int | None = None,
    ) -> None:
        """Refuse one subscription (`ref`) or answer one message (`mid`)."""
        if self.state is State.CLOSED:
            return
        if mid is not None:
            self._unanswered -= 1
        self._send(Err(code, ref, mid, text, retry_after_ms))

    def unsubscribed(self, stream: int, *, ref: int | None = None, code: int = 0) -> None:
        """Tell the client that a stream is closed: its UNSUB (`ref`), or why (`code`)."""
        if self.state is not State.CLOSED:
            self._send(Closed(stream, code, ref))

    def gap(self, stream: int, gap: Gap) -> None:
        """Tell the client, in stream order, that entries will not come."""
        if self.state is not State.CLOSED:
            self._send(GapNotice(stream, gap))

    def acknowledge(
        self, first_mid: int, number: int, place: bytes, first_offset: int, stored: bytes
    ) -> None:
        """Messages are stored; the ACK leaves with `flush_acks`, joined into runs.

        Args:
            place: `codec.encode_place` of the channel.
            stored: `codec.encode_uint` of the time in milliseconds.
        """
        if self.state is State.CLOSED:
            return
        self._unanswered -= number
        runs = self._runs
        if runs:
            mid, before, where, offset, at = runs[-1]
            if (
                mid + before == first_mid
                and offset + before == first_offset
                and where == place
                and at == stored
            ):
                runs[-1] = StoredRun(mid, before + number, place, offset, stored)
                return
        runs.append(StoredRun(first_mid, number, place, first_offset, stored))

    def flush_acks(self) -> None:
        """Queue the ACKs of this turn."""
        runs = self._runs
        if not runs or self.state is State.CLOSED:
            return
        self._runs = []
        for start in range(0, len(runs), _RUNS_PER_ACK):
            self._send_body(FrameType.ACK, codec.encode_ack(runs[start : start + _RUNS_PER_ACK]))

    def flags_for(self, level: Level) -> int:
        """Bits to add to the flags of a message: a client with policy `always` gets E=1 only."""
        return 1 if level is Level.CLEAR and self.client_policy is Policy.ALWAYS else 0

    # --- time ---

    @property
    def next_timer(self) -> float:
        return inf if self.state is State.CLOSED else self._deadline

    def _rearm(self) -> None:
        if self.state in (State.EXPECT_HELLO, State.EXPECT_CONFIRM):
            self._deadline = self._dead_at
        else:
            if self._store_lost_at is not None:
                due = self._store_lost_at + limits.STORE_OUTAGE_MS / 1000
            else:
                due = min(self._rotate_at, self._expires_at)
            self._deadline = min(due, self._ping_at, self._dead_at, self._ends_at)
            if self._unsent_since is not None:
                self._deadline = min(self._deadline, self._now + _TRANSPORT_POLL)

    def handle_timer(self, now: float, *, drained: bool = True) -> None:
        """Do what is due.

        Args:
            drained: Whether all bytes given to the transport have left it. The clocks of ROTATE and PING
                start only then, at most 60 s late.
        """
        self._now = now
        if self.state is State.CLOSED:
            return
        if self.state in (State.EXPECT_HELLO, State.EXPECT_CONFIRM):
            if now >= self._dead_at:
                self._fail(CloseCode.EXPIRED, "the handshake took too long")
            return
        if self._unsent_since is not None:
            if not drained and now < self._unsent_since + limits.SILENCE_GRACE_MS / 1000:
                self._rearm()
                self._deadline = now + _TRANSPORT_POLL
                return
            late = now - self._unsent_since > 2 * _TRANSPORT_POLL
            self._unsent_since = None
            if late and self._excused != self.last_received:
                # The PING left late: its answer may, too. Once for each silence, or a dead link never ends.
                self._excused = self.last_received
                self._dead_at = max(self._dead_at, now + 1.5 * self._rules.ping_ms / 1000)
            if self.state is State.EXPECT_REPLY:
                self._expires_at = max(self._expires_at, now + limits.REPLY_MS / 1000)
        self._open_timers(now)
        self._rearm()

    def _open_timers(self, now: float) -> None:
        ping = self._rules.ping_ms / 1000
        if now >= self._ends_at:
            self._end(CloseCode.SESSION_ENDED, "a session lasts 24 hours")
            return
        if self._store_lost_at is not None:
            if now >= self._store_lost_at + limits.STORE_OUTAGE_MS / 1000:
                self._end(CloseCode.DRAINING, "the session store does not answer")
                return
        elif now >= self._expires_at:
            self._end(CloseCode.EXPIRED, "the token expired")
            return
        if now >= self._dead_at:
            self._dead_at = self.last_received + 2.5 * ping
            if now >= self._dead_at:
                self._end(CloseCode.EXPIRED, "the client is silent")
                return
        if now >= self._rotate_at and self._store_lost_at is None:
            self._offer_rotation()
        if now >= self._ping_at:
            self._pings += 1
            self._send(Ping(self._pings))
            self._ping_at = now + ping
            if self._unsent_since is None:
                self._unsent_since = now

    def store_lost(self, now: float) -> None:
        """The session store does not answer: no ROTATE is sent and no lifetime ends, for an hour at most."""
        self._now = now
        if self._store_lost_at is None:
            self._store_lost_at = now
            self._rearm()

    def store_back(self, now: float) -> None:
        """The session store answers again."""
        self._now = now
        if self._store_lost_at is not None:
            self._store_lost_at = None
            self._expires_at = max(self._expires_at, now + limits.REPLY_MS / 1000)
            self._rearm()
