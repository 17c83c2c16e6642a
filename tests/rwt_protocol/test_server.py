"""The server's end of a connection: handshake, every outcome of the store, rotation, answers, timers, limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import inf

import pytest

from rwt_protocol import codec, handshake, limits
from rwt_protocol.client import ClientRules
from rwt_protocol.codes import (
    CloseCode,
    ErrorCode,
    FrameType,
    Level,
    Pattern,
    Policy,
    RequestReason,
    SignatureAlgorithm,
    Suite,
    Warning,
)
from rwt_protocol.connection import State
from rwt_protocol.events import (
    AdvanceWanted,
    Event,
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
    Reply,
    Request,
    Rotate,
    RotationTerms,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from rwt_protocol.record import UsageLimits
from rwt_protocol.rotation import RotationRules, Schedule
from rwt_protocol.server import ServerConnection, ServerRules
from rwt_protocol.session import Swap
from rwt_protocol.suites import SigningKey, generate
from tests.pair import (
    START,
    Pair,
    altering,
    dropping,
    end_code,
    ending,
    forge,
    forge_control,
    found,
    frames_of,
    opener_of,
)

BYTES = random.Random(1).randbytes
KEYS = {algorithm: SigningKey.generate(algorithm, BYTES) for algorithm in SignatureAlgorithm}
PLACE = Position(bytes(8), 0, b"")
STORED = codec.encode_uint(1_700_000_000_000)
IN_FIVE = codec.encode_place(5, bytes(8))
IN_SIX = codec.encode_place(6, bytes(8))
STILL = RotationRules(enabled=False)


def give(pair: Pair, frame: Control) -> list[Event]:
    pair.server.receive(forge_control(pair.server, frame), pair.now)
    return pair.server.events()


def publish(pair: Pair, *messages: Publication, flags: int = 1, stream: int = 5) -> list[Event]:
    encoded = [codec.encode_publication(message) for message in messages]
    payload = codec.join_batch(encoded) if flags & 16 else encoded[0]
    pair.server.receive(forge(pair.server, FrameType.MSG, payload, flags=flags, stream=stream), pair.now)
    return pair.server.events()


def sent(pair: Pair) -> list[Control]:
    """Take and open what the server wrote under the key that the client has."""
    opener = opener_of(pair.client)
    out: list[Control] = []
    for frame in pair.server.bytes_to_send():
        _, flags, _, _, seq = codec.HEADER.unpack_from(frame)
        opener.count = seq
        out.append(codec.decode_control(FrameType(frame[0]), opener.open(frame, flags, seq)))
    return out


def confirmed(pair: Pair | None = None) -> Pair:
    """CONFIRM has opened; the store has not answered."""
    pair = pair or Pair(start=False)
    for _ in range(2):
        for frame in pair.client.bytes_to_send():
            pair.server.receive(frame, pair.now)
        for event in pair.server.events():
            if isinstance(event, SessionWanted):
                pair.node.answer(pair.server, event, pair.now)
        for frame in pair.server.bytes_to_send():
            pair.client.receive(frame, pair.now)
    assert pair.server.state is State.EXPECT_CONFIRM and pair.server.epoch
    return pair


def replied() -> Pair:
    """REPLY has opened; the store has not answered."""
    pair = Pair()
    pair.server.rotate(pair.now)
    for frame in pair.server.bytes_to_send():
        pair.client.receive(frame, pair.now)
    for frame in pair.client.bytes_to_send():
        pair.server.receive(frame, pair.now)
    assert [type(event) for event in pair.server.events()] == [AdvanceWanted]
    return pair


# --- handshake -------------------------------------------------------------------------------------------


def test_events_of_a_connect() -> None:
    pair = Pair()
    wanted, advance, opened = pair.server_events
    assert wanted == SessionWanted(pair.session.sid)
    assert isinstance(advance, AdvanceWanted) and isinstance(opened, Opened)
    assert (advance.step.epoch, advance.step.suite) == (1, Suite.X25519)
    assert (opened.epoch, opened.resumed) == (1, False)
    assert pair.server.sid == pair.session.sid
    pair.reconnect()
    assert found(pair.server_events, Opened)[0].resumed


def test_ready_says_the_terms() -> None:
    rules = ServerRules(
        max_message=2_000, window=9, ping_ms=4_000, resume_window_ms=60_000, policy=Policy.ALWAYS
    )
    ready = found(Pair(server=rules).client_events, Opened)[0].ready
    assert (ready.max_message, ready.max_frame, ready.window) == (2_000, 2_000 + limits.FRAME_OVERHEAD, 9)
    assert (ready.ping_ms, ready.resume_window_ms, ready.policy) == (4_000, 60_000, Policy.ALWAYS)
    assert ready.granted == RotationTerms(60_000, "fibonacci", 800)


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (None, (60_000, "fibonacci", 800)),
        (RotationTerms(30_000, "fixed", 600), (30_000, "fixed", 600)),
        (RotationTerms(1, "phi", 1), (5_000, "phi", 500)),
        (RotationTerms(2**60, "phi", 999), (3_600_000, "phi", 950)),
        (RotationTerms(30_000, "unknown", 600), (60_000, "fibonacci", 800)),
    ],
    ids=["absent", "as asked", "below", "above", "unknown pattern"],
)
def test_granted_rotation(asked: RotationTerms | None, granted: tuple[int, str, int]) -> None:
    ready = found(Pair(client=ClientRules(rotation=asked)).client_events, Opened)[0].ready
    assert ready.granted == RotationTerms(*granted)


@pytest.mark.parametrize("pattern", list(Pattern), ids=str)
@pytest.mark.parametrize("number", [0, 1, 2, 77])
def test_fields_2_and_12(pattern: Pattern, number: int) -> None:
    rules = RotationRules(interval_ms=40_000, pattern=pattern, threshold=750)
    ready = found(Pair(server=ServerRules(rotation=rules), number=number).client_events, Opened)[0].ready
    grid = Schedule(interval_ms=40_000, pattern=pattern, threshold=750, session=number, start_ms=0)
    first = next(due for due in grid.times() if due >= 5_000)
    assert ready.rotate_ms == first
    assert ready.expires_ms == max(first * 1_000 // 750, first + 10_000)


def test_without_rotation_by_time() -> None:
    pair = Pair(server=ServerRules(rotation=STILL))
    ready = found(pair.client_events, Opened)[0].ready
    assert (ready.rotate_ms, ready.granted, ready.expires_ms) == (None, None, limits.SESSION_MS)
    pair.rotate()
    (rotated,) = found(pair.client_events, Rotated)
    assert (rotated.rotate_ms, rotated.expires_ms) == (None, limits.SESSION_MS)


@pytest.mark.parametrize("number", [1, 2], ids=["ECDSA", "Ed25519"])
def test_the_first_own_key_that_fits_signs(number: int) -> None:
    pins = frozenset({KEYS[SignatureAlgorithm(number)].public})
    pair = Pair(server=ServerRules(signing_keys=tuple(KEYS.values())), client=ClientRules(pins=pins))
    signature = found(pair.client_events, Opened)[0].ready.signature
    assert signature is not None and signature.key_id == KEYS[SignatureAlgorithm(number)].public.id
    pair.server.rotate(pair.now)
    (offer,) = sent(pair)
    assert isinstance(offer, Rotate) and offer.signature is not None
    assert offer.signature.key_id == signature.key_id


def test_nobody_asked_for_a_signature() -> None:
    pair = Pair(server=ServerRules(signing_keys=tuple(KEYS.values())))
    assert found(pair.client_events, Opened)[0].ready.signature is None
    other = Pair(client=ClientRules(pins=frozenset({KEYS[SignatureAlgorithm.ED25519].public})))
    assert end_code(other.client_events) == CloseCode.PROTOCOL_ERROR


def edited_hello(**changes: object) -> Callable[[bytes], bytes]:
    def edit(frame: bytes) -> bytes:
        hello = handshake.read_hello(frame)
        return handshake.encode_clear(replace(hello, **changes))  # type: ignore[arg-type]

    return edit


HELLOS: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "unknown sid": (edited_hello(sid=bytes(16)), 4401),
    "unknown ids": (edited_hello(token_ids=(bytes(8),)), 4401),
    "no version": (edited_hello(versions=(1, 3)), 4406),
    "suite not offered": (edited_hello(suite=9), 4400),
    "not the preferred suite": (edited_hello(suite=1), 4406),
    "share too short": (edited_hello(share=bytes(31)), 4401),
    "share of zeros": (edited_hello(share=bytes(32)), 4401),
    "header flags": (lambda frame: frame[:1] + b"\x01" + frame[2:], 4400),
    "header epoch": (lambda frame: frame[:3] + b"\x01" + frame[4:], 4400),
    "header stream": (lambda frame: frame[:7] + b"\x01" + frame[8:], 4400),
    "header seq": (lambda frame: frame[:15] + b"\x01" + frame[16:], 4400),
    "body": (lambda frame: frame + b"\x00", 4400),
    "too short": (lambda frame: frame[:16], 4400),
}


@pytest.mark.parametrize("name", list(HELLOS))
def test_refused_hello(name: str) -> None:
    change, code = HELLOS[name]
    pair = Pair(start=False)
    pair.hook = altering(FrameType.HELLO, change)
    before = pair.record
    pair.pump()
    end = ending(pair.server_events)
    assert end is not None and end.code == code
    assert pair.record == before
    assert [frame for way, frame in pair.tape if way.name == "S2C"] == []
    warned = [event.code for event in found(pair.server_events, Warned)]
    assert warned == ([Warning.DOWNGRADE] if name == "not the preferred suite" else [])


def test_every_failure_before_proof_has_the_same_words() -> None:
    reasons = set()
    for name in ("unknown sid", "unknown ids", "share too short", "share of zeros"):
        pair = Pair(start=False)
        pair.hook = altering(FrameType.HELLO, HELLOS[name][0])
        pair.pump()
        end = ending(pair.server_events)
        assert end is not None
        reasons.add((end.code, end.reason))
    assert reasons == {(4401, "authentication failed")}


def test_a_store_that_was_rolled_back() -> None:
    pair = Pair()
    early = pair.record
    for _ in range(3):
        pair.rotate()
    pair.node.records[pair.session.sid] = early
    pair.reconnect()
    assert [event.code for event in found(pair.server_events, Warned)] == [Warning.STORE_CONFLICT]
    assert end_code(pair.server_events) == CloseCode.AUTHENTICATION_FAILED
    assert pair.record == early


def test_the_last_epoch() -> None:
    pair = Pair()
    pair.node.records[pair.session.sid] = replace(pair.record, epoch=limits.MAX_EPOCH)
    pair.reconnect()
    assert end_code(pair.server_events) == CloseCode.SESSION_ENDED
    pair = Pair()
    chain = pair.server._chain
    assert chain is not None
    pair.server._chain = chain._replace(epoch=limits.MAX_EPOCH)
    pair.server.rotate(pair.now)
    assert sent(pair) == [Bye(4410, "the last epoch is reached")]


def test_hello_twice() -> None:
    pair = Pair(start=False)
    (hello,) = pair.client.bytes_to_send()
    pair.server.receive(hello, pair.now)
    pair.server.receive(hello, pair.now)
    assert end_code(pair.server.events()) == CloseCode.PROTOCOL_ERROR


def test_an_answer_for_a_connection_that_is_over_is_ignored() -> None:
    pair = Pair(start=False)
    (hello,) = pair.client.bytes_to_send()
    pair.server.receive(hello, pair.now)
    pair.server.close(CloseCode.DRAINING, pair.now)
    pair.server.session_found(pair.record, pair.now)
    assert not pair.server.wants_to_send
    pair = confirmed()
    pair.server.close(CloseCode.DRAINING, pair.now)
    pair.server.bytes_to_send()
    pair.server.advanced(Swap.ADVANCED, pair.now)
    assert not pair.server.wants_to_send and pair.server.state is State.CLOSED


def test_an_answer_without_a_question() -> None:
    pair = Pair()
    with pytest.raises(RuntimeError):
        pair.server.session_found(pair.record, pair.now)
    with pytest.raises(RuntimeError):
        pair.server.advanced(Swap.ADVANCED, pair.now)


# --- CONFIRM and the store -------------------------------------------------------------------------------


def test_a_confirm_with_a_stream() -> None:
    pair = Pair(start=False)
    pair.hook = altering(FrameType.CONFIRM, lambda frame: frame[:7] + b"\x01" + frame[8:])
    pair.pump()
    assert [event.code for event in pair.server_events if isinstance(event, Terminated)] == [4401]
    assert pair.record.epoch == 0


def test_a_confirm_that_does_not_open_is_bare_4401() -> None:
    pair = Pair(start=False)
    pair.hook = altering(FrameType.CONFIRM, lambda frame: frame[:-1] + bytes((frame[-1] ^ 1,)))
    before = pair.record
    pair.pump()
    assert end_code(pair.server_events) == CloseCode.AUTHENTICATION_FAILED
    assert not frames_of(pair.tape, FrameType.BYE) and pair.record == before


def test_confirm_twice() -> None:
    pair = confirmed()
    pair.server.receive(forge_control(pair.server, Confirm()), pair.now)
    assert end_code(pair.server.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("signed", ["missing", "other key", "other text"])
@pytest.mark.parametrize("algorithm", list(SignatureAlgorithm), ids=lambda one: one.name)
def test_a_wrong_device_signature_in_confirm(algorithm: SignatureAlgorithm, signed: str) -> None:
    device = KEYS[algorithm]
    other = SigningKey.generate(algorithm, BYTES)
    pair = Pair(device=device.public, start=False)
    if signed == "other key":
        pair = Pair(device=device.public, client=ClientRules(device_key=other), start=False)
    elif signed == "other text":
        pair.hook = lambda _, frame: (
            (forge_control(pair.server, Confirm(device.sign(b"anything"))),) if frame[0] == 3 else (frame,)
        )
    before = pair.record
    pair.pump()
    assert end_code(pair.server_events) == CloseCode.AUTHENTICATION_FAILED and pair.record == before


OUTCOMES: list[tuple[Swap, list[Control], int]] = [
    (Swap.LOST, [Bye(4409, "another connection of this session was faster")], 4409),
    (
        Swap.REVOKED,
        [Warn("token-reuse", "the session is revoked"), Bye(4403, "the session is revoked")],
        4403,
    ),
    (Swap.GONE, [Bye(4410, "the session has ended")], 4410),
    (Swap.UNKNOWN, [Bye(4500, "the session store did not answer")], 4500),
]


@pytest.mark.parametrize(
    ("outcome", "frames", "code"), OUTCOMES, ids=lambda value: getattr(value, "name", "")
)
@pytest.mark.parametrize("make", [confirmed, replied], ids=["CONFIRM", "REPLY"])
def test_outcome_of_the_store(
    make: Callable[[], Pair], outcome: Swap, frames: list[Control], code: int
) -> None:
    pair = make()
    pair.server.advanced(outcome, pair.now)
    assert sent(pair) == frames
    events = pair.server.events()
    assert end_code(events) == code
    assert not found(events, Opened) and not found(events, Rotated)


def test_nothing_is_sent_before_the_store_answered() -> None:
    for pair in (confirmed(), replied()):
        assert not pair.server.wants_to_send
        pair.server.advanced(Swap.ADVANCED, pair.now)
        assert pair.server.wants_to_send and pair.server.state is State.OPEN


@pytest.mark.parametrize("who", ["retired", "tombstone"])
def test_reuse(who: str) -> None:
    pair = Pair()
    copy = pair.steal()
    pair.rotate()
    if who == "tombstone":
        pair.node.revoke(pair.session.sid, pair.now)
    thief = Pair(9, node=pair.node, session=copy, now=pair.now)
    assert found(thief.server_events, RevocationWanted) == [RevocationWanted(pair.session.sid)]
    assert [event.code for event in found(thief.server_events, Warned)] == [Warning.TOKEN_REUSE]
    assert end_code(thief.server_events) == end_code(thief.client_events) == CloseCode.REVOKED


def test_the_other_connections_are_told() -> None:
    pair = Pair()
    pair.server.warn_reuse(pair.now)
    warn, bye = sent(pair)
    assert isinstance(warn, Warn) and warn.code == "token-reuse"
    assert isinstance(bye, Bye) and bye.code == CloseCode.REVOKED
    pair.server.warn_reuse(pair.now)
    assert not pair.server.wants_to_send
    fresh = Pair(start=False)
    fresh.server.warn_reuse(fresh.now)
    assert end_code(fresh.server.events()) == CloseCode.REVOKED and not fresh.server.wants_to_send


def test_an_outcome_that_is_none_opens_nothing() -> None:
    pair = confirmed()
    pair.server.advanced("advanced", pair.now)  # type: ignore[arg-type]
    assert pair.server.state is State.EXPECT_CONFIRM and not pair.server.wants_to_send


@pytest.mark.parametrize(
    ("make", "frame"),
    [
        (lambda: Pair(start=False), b"\x0b\x01" + bytes(40)),
        (confirmed, b"\x10\x01" + bytes(40)),
        (Pair, b"\x06\x01" + bytes(40)),
        (replied, b"\x03\x01" + bytes(40)),
    ],
    ids=["EXPECT_HELLO", "EXPECT_CONFIRM", "OPEN", "EXPECT_REPLY"],
)
def test_a_frame_that_the_state_does_not_allow(make: Callable[[], Pair], frame: bytes) -> None:
    pair = make()
    pair.server.receive(frame, pair.now)
    assert end_code(pair.server.events()) == CloseCode.PROTOCOL_ERROR


def test_an_extension_frame_is_ignored() -> None:
    pair = Pair()
    pair.server.receive(forge(pair.server, 0x7F, b"anything"), pair.now)
    assert pair.server.events() == [] and pair.server.state is State.OPEN


# --- rotation --------------------------------------------------------------------------------------------


def test_rotation_on_time() -> None:
    pair = Pair()
    ready = found(pair.client_events, Opened)[0].ready
    assert ready.rotate_ms is not None
    pair.advance(ready.rotate_ms / 1000 - 0.1)
    assert pair.server.rotations == 0
    pair.advance(0.2)
    assert pair.server.rotations == 1 == pair.client.rotations


def test_one_offer_at_a_time() -> None:
    pair = Pair()
    for _ in range(3):
        pair.server.rotate(pair.now)
    assert [type(frame) for frame in sent(pair)] == [Rotate]
    early = Pair(start=False)
    early.server.rotate(early.now)
    assert not early.server.wants_to_send


def test_the_server_goes_on_under_the_old_key_until_rotated() -> None:
    pair = replied()
    pair.server.send_message(1, 5, b"\x00\x00x")
    (frame,) = pair.server.bytes_to_send()
    assert codec.HEADER.unpack_from(frame)[2] == 1
    pair.server.advanced(Swap.ADVANCED, pair.now)
    (frame,) = pair.server.bytes_to_send()
    kind, _, epoch, _, seq = codec.HEADER.unpack_from(frame)
    assert (kind, epoch, seq) == (FrameType.ROTATED, 2, 0)
    assert [type(event) for event in pair.server.events()] == [Rotated]


def test_reply_twice() -> None:
    pair = replied()
    pair.server.receive(forge_control(pair.server, Reply(2, bytes(32))), pair.now)
    assert end_code(pair.server.events()) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("epoch", "share"),
    [(1, None), (3, None), (0, None), (2, b""), (2, bytes(32)), (2, bytes(33))],
    ids=["old", "too new", "zero", "no share", "share of zeros", "long share"],
)
def test_a_wrong_reply(epoch: int, share: bytes | None) -> None:
    pair = Pair()
    pair.server.rotate(pair.now)
    value = generate(Suite.X25519, BYTES).share if share is None else share
    before = pair.record
    assert end_code(give(pair, Reply(epoch, value))) == CloseCode.PROTOCOL_ERROR
    assert pair.record == before


@pytest.mark.parametrize("signed", ["missing", "other key", "other text"])
def test_a_wrong_device_signature_in_reply(signed: str) -> None:
    device = KEYS[SignatureAlgorithm.ED25519]
    other = SigningKey.generate(SignatureAlgorithm.ED25519, BYTES)
    pair = Pair(device=device.public, client=ClientRules(device_key=device))
    pair.server.rotate(pair.now)
    signature = {"missing": None, "other key": other.sign(b"x"), "other text": device.sign(b"x")}[signed]
    before = pair.record
    assert end_code(give(pair, Reply(2, generate(Suite.X25519, BYTES).share, signature))) == 4400
    assert pair.record == before


def test_a_rotation_does_not_move_the_grid() -> None:
    pair = Pair(server=ServerRules(rotation=RotationRules(pattern=Pattern.FIXED)))
    ready = found(pair.client_events, Opened)[0].ready
    assert ready.rotate_ms is not None
    due = pair.now + ready.rotate_ms / 1000
    pair.now += 3
    pair.rotate()
    (rotated,) = found(pair.client_events, Rotated)
    assert rotated.rotate_ms is not None
    assert pair.now + rotated.rotate_ms / 1000 == pytest.approx(due, abs=0.002)


@pytest.mark.parametrize("reason", [*RequestReason, 99], ids=str)
def test_request_is_answered_by_rotate(reason: int) -> None:
    pair = Pair()
    events = give(pair, Request(reason))
    overdue = [Warning.ROTATION_OVERDUE] if reason == RequestReason.OVERDUE else []
    assert [event.code for event in found(events, Warned)] == overdue
    assert [type(frame) for frame in sent(pair)] == [Rotate]
    assert pair.server.state is State.EXPECT_REPLY


def test_one_request_in_five_seconds_is_answered() -> None:
    pair = Pair()
    answered = []
    for tenth in range(0, 101, 5):
        pair.now = START + tenth / 10
        pair.client.request_rotation(RequestReason.ASKED, pair.now)
        before = pair.server.rotations
        pair.pump()
        if pair.server.rotations > before:
            answered.append(tenth / 10)
    assert answered == [0, 5, 10]


def test_more_than_sixty_requests_a_minute() -> None:
    pair = Pair()
    for _ in range(60):
        pair.now += 0.5
        assert end_code(give(pair, Request(3))) == 0
    assert end_code(give(pair, Request(3))) == CloseCode.RATE
    pair = Pair()
    for _ in range(90):
        pair.now += 1.1
        assert end_code(give(pair, Request(3))) == 0


# --- messages and answers --------------------------------------------------------------------------------


def test_a_message() -> None:
    message = Publication(b"body", 300, 1, 2, b"key")
    assert publish(Pair(), message) == [Published(5, Level.STANDARD, [message])]


def test_a_batch() -> None:
    messages = [Publication(b"a", 1), Publication(b"b"), Publication(b"c", 2)]
    assert publish(Pair(), *messages, flags=17) == [Published(5, Level.STANDARD, messages)]


@pytest.mark.parametrize("mids", [(1, 1), (2, 1), (1, 3, 2)], ids=str)
def test_mids_of_a_batch_ascend(mids: tuple[int, ...]) -> None:
    events = publish(Pair(), *(Publication(b"x", mid) for mid in mids), flags=17)
    assert (len(events), end_code(events)) == (1, CloseCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("state", ["OPEN", "EXPECT_REPLY"])
def test_stream_0_is_fatal(state: str) -> None:
    pair = Pair()
    if state == "EXPECT_REPLY":
        pair.server.rotate(pair.now)
    assert end_code(publish(pair, Publication(b"x", 1), stream=0)) == CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
def test_clear_messages_by_policy(policy: Policy) -> None:
    pair = Pair(server=ServerRules(policy=policy))
    events = publish(pair, Publication(b"x", 1), flags=0)
    assert end_code(events) == (CloseCode.PROTOCOL_ERROR if policy is Policy.ALWAYS else 0)


@pytest.mark.parametrize("size", [100, 101])
def test_size_of_a_body(size: int) -> None:
    pair = Pair(server=ServerRules(max_message=100))
    assert end_code(publish(pair, Publication(bytes(size), 1))) == (0 if size == 100 else 4413)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x20" + bytes(30), 4400),
        (b"\x20\x01" + bytes(200_000), 4413),
        (b"\x20\x02" + bytes(40), 4400),
        (b"\x20\x01\x00\x02" + bytes(40), 4400),
        (b"\x20\x01\x00\x01" + bytes(40), 4400),
    ],
    ids=["short", "large", "flags", "epoch", "tag"],
)
def test_a_wrong_message_frame(frame: bytes, code: int) -> None:
    pair = Pair(server=ServerRules(max_message=10_000))
    pair.server.receive(frame, pair.now)
    events = pair.server.events()
    assert (len(events), end_code(events)) == (1, code)


def test_window() -> None:
    """At most W messages with a mid have no answer, over all frames; an answer makes room."""
    pair = Pair(server=ServerRules(window=4))
    for mid in range(1, 5):
        assert end_code(publish(pair, Publication(b"x", mid))) == 0
    for _ in range(9):
        assert end_code(publish(pair, Publication(b"without mid"))) == 0
    pair.server.acknowledge(1, 1, IN_FIVE, 1, STORED)
    assert end_code(publish(pair, Publication(b"x", 5))) == 0
    pair.server.refuse(ErrorCode.RATE, mid=2)
    assert end_code(publish(pair, Publication(b"x", 6))) == 0
    pair.server.refuse(ErrorCode.LIMIT, ref=2)
    assert end_code(publish(pair, Publication(b"x", 7))) == CloseCode.TOO_LARGE


def test_a_batch_above_the_window() -> None:
    for count, code in ((4, 0), (5, 4413)):
        for mids in (True, False):
            pair = Pair(server=ServerRules(window=4))
            messages = [Publication(b"x", mid if mids else None) for mid in range(1, count + 1)]
            assert end_code(publish(pair, *messages, flags=17)) == code


def test_subscriptions_are_asked_for() -> None:
    pair = Pair()
    sub, unsub = Sub(1, "name", PLACE, 3, 1, 2), Unsub(2, 5)
    assert give(pair, sub) == [SubscribeRequested(sub)]
    assert give(pair, unsub) == [UnsubscribeRequested(unsub)]
    assert give(pair, Pong(5)) == []
    assert give(pair, Ping(5)) == []
    assert sent(pair) == [Pong(5)]
    assert give(pair, Bye(1000, "done", None, True)) == [Terminated(1000, "done", True, True, None, True)]


def call_all(server: ServerConnection) -> None:
    server.subscribed(SubOk(1, 5, 0, PLACE, 3, 0))
    server.refuse(ErrorCode.NOT_OPEN, ref=1)
    server.refuse(ErrorCode.RATE, mid=2, text="slow", retry_after_ms=9)
    server.unsubscribed(5, ref=2)
    server.unsubscribed(5, code=1)
    server.gap(5, Gap(1, bytes(8), 1, 2, PLACE))
    server.acknowledge(1, 2, IN_FIVE, 1, STORED)
    server.flush_acks()
    server.flush_acks()


def test_answers() -> None:
    pair = Pair()
    call_all(pair.server)
    assert sent(pair) == [
        SubOk(1, 5, 0, PLACE, 3, 0),
        Err(2, ref=1),
        Err(4, mid=2, text="slow", retry_after_ms=9),
        Closed(5, 0, 2),
        Closed(5, 1),
        GapNotice(5, Gap(1, bytes(8), 1, 2, PLACE)),
        Ack((AckRun(1, 2, 5, bytes(8), 1, 1_700_000_000_000),)),
    ]
    pair.server.acknowledge(3, 1, IN_FIVE, 3, STORED)
    pair.server.close(1000, pair.now)
    pair.server.bytes_to_send()
    call_all(pair.server)
    assert not pair.server.wants_to_send


@pytest.mark.parametrize(
    ("second", "joined"),
    [
        ((3, 1, IN_FIVE, 12, STORED), True),
        ((4, 1, IN_FIVE, 12, STORED), False),
        ((3, 1, IN_FIVE, 13, STORED), False),
        ((3, 1, IN_SIX, 12, STORED), False),
        ((3, 1, IN_FIVE, 12, codec.encode_uint(1)), False),
    ],
    ids=["next", "mid", "offset", "place", "time"],
)
def test_acks_are_joined_into_runs(second: tuple[int, int, bytes, int, bytes], joined: bool) -> None:
    pair = Pair()
    pair.server.acknowledge(1, 2, IN_FIVE, 10, STORED)
    pair.server.acknowledge(*second)
    pair.server.flush_acks()
    (ack,) = sent(pair)
    assert isinstance(ack, Ack)
    assert [run.number for run in ack.runs] == ([3] if joined else [2, 1])


def test_many_runs_take_several_frames() -> None:
    pair = Pair()
    huge = codec.encode_uint(2**64 - 1)
    place = codec.encode_place(limits.MAX_EPOCH, bytes(8))
    for number in range(150):
        pair.server.acknowledge(2**63 + 3 * number, 1, place, 2**63 + 5 * number, huge)
    pair.server.flush_acks()
    acks = found_acks(sent(pair))
    assert [len(ack.runs) for ack in acks] == [64, 64, 22]
    assert [run.first_mid for ack in acks for run in ack.runs] == [
        2**63 + 3 * number for number in range(150)
    ]


def found_acks(frames: list[Control]) -> list[Ack]:
    return [frame for frame in frames if isinstance(frame, Ack)]


@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
@pytest.mark.parametrize("level", list(Level), ids=lambda level: level.name)
def test_flags_for_a_client(policy: Policy, level: Level) -> None:
    pair = Pair(client=ClientRules(policy=policy))
    expected = 1 if policy is Policy.ALWAYS and level is Level.CLEAR else 0
    assert pair.server.flags_for(level) == expected


# --- timers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["EXPECT_HELLO", "EXPECT_CONFIRM", "confirmed"])
def test_handshake_timer(state: str) -> None:
    pair = Pair(start=False)
    if state == "EXPECT_CONFIRM":
        pair.hook = dropping(FrameType.CONFIRM)
        pair.pump()
    elif state == "confirmed":
        confirmed(pair)
    server = pair.server
    server.bytes_to_send()
    assert server.next_timer == START + 10
    server.handle_timer(START + 9.9)
    assert server.state is not State.CLOSED
    server.handle_timer(START + 10)
    assert end_code(server.events() + pair.server_events) == CloseCode.EXPIRED
    assert [frame[0] for frame in server.bytes_to_send()] == ([FrameType.BYE] if state == "confirmed" else [])
    server.handle_timer(START + 11)
    assert server.events() == []


def test_ping_at_every_interval() -> None:
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=STILL))
    pair.client.handle_timer(pair.now)
    seen: list[float] = []
    while len(seen) < 4:
        pair.now = max(pair.now, pair.server.next_timer)
        pair.server.handle_timer(pair.now)
        for frame in pair.server.bytes_to_send():
            if frame[0] == FrameType.PING:
                seen.append(pair.now)
            pair.client.receive(frame, pair.now)
        for frame in pair.client.bytes_to_send():
            pair.server.receive(frame, pair.now)
    assert seen == [START + 4 * number for number in range(1, 5)]


def test_a_silent_client_is_dead_after_two_and_a_half_intervals() -> None:
    """One look at the timer after the silence; a PING that is stuck in the transport moves it."""
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=STILL))
    pair.server.handle_timer(START + 10)
    assert end_code(pair.server.events()) == CloseCode.EXPIRED
    assert pair.server.next_timer == inf


def test_any_valid_frame_is_a_sign_of_life() -> None:
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=STILL))
    pair.now += 9
    publish(pair, Publication(b"x"))
    pair.server.handle_timer(START + 10)
    assert pair.server.state is State.OPEN


def test_expiry() -> None:
    """ROTATE has no answer: 4408 at the expiry, and the session can be resumed."""
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    ready = found(pair.client_events, Opened)[0].ready
    assert ready.rotate_ms is not None
    pair.server.handle_timer(START + ready.rotate_ms / 1000)
    assert [type(frame) for frame in sent(pair)] == [Rotate]
    pair.server.handle_timer(START + ready.rotate_ms / 1000)  # it left at once
    expiry = START + ready.expires_ms / 1000
    pair.server.handle_timer(expiry - 0.1)
    assert pair.server.state is State.EXPECT_REPLY and pair.server.lifetime_ms in (99, 100)
    pair.server.handle_timer(expiry)
    assert end_code(pair.server.events()) == CloseCode.EXPIRED
    pair.now = expiry
    pair.reconnect()
    assert pair.client.is_open


def test_rotate_that_leaves_late_has_ten_seconds() -> None:
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    ready = found(pair.client_events, Opened)[0].ready
    expiry = START + ready.expires_ms / 1000
    pair.server.rotate(expiry - 1)
    pair.server.handle_timer(expiry - 0.75)
    pair.server.handle_timer(expiry + 9.1)
    assert pair.server.state is State.EXPECT_REPLY
    pair.server.handle_timer(expiry + 9.25)
    assert end_code(pair.server.events()) == CloseCode.EXPIRED


def test_clocks_start_when_the_transport_is_drained() -> None:
    """The clock of ROTATE starts when the bytes before it have left, at most 60 s late."""
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    server = pair.server
    server.rotate(START)
    for second in range(60):
        server.handle_timer(START + second, drained=False)
        assert server.next_timer == START + second + 0.25
        assert server.state is State.EXPECT_REPLY
    server.handle_timer(START + 60, drained=False)
    assert server.state is State.EXPECT_REPLY and server.next_timer == START + 70
    server.handle_timer(START + 70, drained=False)
    assert end_code(server.events()) == CloseCode.EXPIRED


def test_a_transport_that_drains_early() -> None:
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    pair.server.rotate(START)
    pair.server.handle_timer(START + 30, drained=False)
    pair.server.handle_timer(START + 31)
    assert pair.server.next_timer == START + 41


def test_a_ping_that_waits_in_the_transport() -> None:
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=STILL))
    pair.server.handle_timer(START + 4)
    assert sent(pair) == [Ping(1)]
    pair.server.handle_timer(START + 9.9, drained=False)
    pair.server.handle_timer(START + 12)
    assert pair.server.state is State.OPEN


def test_a_session_ends_after_24_hours() -> None:
    pair = Pair(server=ServerRules(ping_ms=100_000_000, rotation=STILL))
    pair.server.handle_timer(START + 86_399)
    assert pair.server.state is State.OPEN
    pair.server.handle_timer(START + 86_400)
    assert sent(pair) == [Bye(4410, "a session lasts 24 hours")]
    assert end_code(pair.server.events()) == CloseCode.SESSION_ENDED


def test_lifetime() -> None:
    pair = Pair()
    ready = found(pair.client_events, Opened)[0].ready
    assert abs(pair.server.lifetime_ms - ready.expires_ms) <= 1
    assert Pair(start=False).server.lifetime_ms == 0


# --- a store in trouble ----------------------------------------------------------------------------------


def test_no_rotate_while_the_store_does_not_answer() -> None:
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    server = pair.server
    server.store_lost(START)
    server.store_lost(START + 1)
    server.rotate(START + 1)
    pair.now = START + 2
    give(pair, Request(RequestReason.ASKED))
    warn, *rest = sent(pair)
    assert isinstance(warn, Warn) and warn.code == Warning.ROTATION_DEFERRED and not rest
    server.handle_timer(START + 3_599)
    assert server.state is State.OPEN and not server.wants_to_send
    server.handle_timer(START + 3_600)
    assert end_code(server.events()) == CloseCode.DRAINING


def test_the_store_is_back() -> None:
    pair = Pair(server=ServerRules(ping_ms=10_000_000))
    server = pair.server
    server.store_back(START)
    server.store_lost(START)
    server.handle_timer(START + 1_000)
    server.store_back(START + 1_000)
    assert server.next_timer <= START + 1_000
    server.handle_timer(START + 1_000)
    assert [type(frame) for frame in sent(pair)] == [Rotate]
    server.handle_timer(START + 1_000.25)
    server.handle_timer(START + 1_010.2)
    assert server.state is State.EXPECT_REPLY
    server.handle_timer(START + 1_010.25)
    assert end_code(server.events()) == CloseCode.EXPIRED


def test_an_outage_during_the_handshake() -> None:
    pair = Pair(start=False)
    pair.server.store_lost(START + 1)
    assert pair.server.next_timer == START + 10


def test_rotate_and_ping_due_at_once() -> None:
    pair = Pair(server=ServerRules(ping_ms=6_000))
    pair.server.handle_timer(START + 13)
    assert [type(frame) for frame in sent(pair)] == [Rotate, Ping]


def test_an_outage_does_not_stop_pings() -> None:
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=STILL))
    pair.server.store_lost(START)
    pair.server.handle_timer(START + 4)
    assert sent(pair) == [Ping(1)]


# --- usage limits ----------------------------------------------------------------------------------------


def test_a_worn_key_is_replaced_at_once() -> None:
    for usage in (UsageLimits(rekey_frames=4), UsageLimits(rekey_bytes=500)):
        pair = Pair(server=ServerRules(usage=usage))
        for number in range(1, 30):
            pair.client.send_message(1, 5, codec.encode_publication(Publication(bytes(100))))
            pair.pump()
            pair.server.send_message(
                1, 5, codec.encode_entry(number, bytes(8), b"\x01", 0, 1, b"", 0, bytes(100))
            )
            pair.pump()
        assert pair.server.rotations > 5 and pair.server.state is State.OPEN


def test_messages_while_reply_is_awaited() -> None:
    pair = Pair(server=ServerRules(usage=UsageLimits(rekey_frames=2)))
    for _ in range(5):
        publish(pair, Publication(b"x"))
    assert [type(frame) for frame in sent(pair)] == [Rotate]


def test_names_of_frames_in_ready() -> None:
    """READY and ROTATED name the epoch, and the header its low 16 bits."""
    pair = Pair()
    pair.node.records[pair.session.sid] = replace(pair.record, epoch=0x1_FFFF)
    pair.session.held[0] = pair.session.held[0]._replace(epoch=0x1_FFFF)
    pair.tape.clear()
    pair.reconnect()
    (ready,) = frames_of(pair.tape, FrameType.READY)
    assert codec.HEADER.unpack_from(ready)[2] == 0
    assert found(pair.client_events, Opened)[0].ready.epoch == 0x2_0000
    pair.rotate()
    assert pair.record.epoch == 0x2_0001 and pair.client.is_open


# --- defects that were found once ------------------------------------------------------------------------


def run_timers(pair: Pair, seconds: float, *, drained: bool = True) -> int:
    """Drive the server's timers alone, as for a client that has gone silent; return how many there were."""
    until, count = pair.now + seconds, 0
    while pair.server.next_timer <= until:
        pair.now = max(pair.now, pair.server.next_timer)
        pair.server.handle_timer(pair.now, drained=drained)
        pair.server.bytes_to_send()
        count += 1
        assert count < 100_000, "a timer that does not move"
    return count


@pytest.mark.parametrize("drained", [True, False], ids=["drained", "never drained"])
def test_a_silent_client_is_found_by_the_timers_alone(drained: bool) -> None:
    pair = Pair(server=ServerRules(ping_ms=4_000, rotation=RotationRules(enabled=False)))
    began = pair.now
    run_timers(pair, 1_000, drained=drained)
    (over,) = [e for e in pair.server.events() if isinstance(e, Terminated)]
    assert over.code == CloseCode.EXPIRED
    assert pair.server.next_timer == inf
    assert pair.now - began <= (13 if drained else 150)


def test_a_store_outage_does_not_spin_and_ends_after_an_hour() -> None:
    pair = Pair()
    pair.server.store_lost(pair.now)
    for _ in range(200):  # the client goes on answering PINGs
        pair.server.last_received = pair.now
        if run_timers(pair, 20.0) > 10:
            pytest.fail("the timers spin")
    assert end_code(pair.server.events()) == CloseCode.DRAINING


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_key_that_is_used_up_by_a_rotation_ends_the_connection(side: str) -> None:
    usage = UsageLimits(stop_frames=1)
    pair = Pair(
        server=ServerRules(usage=usage) if side == "server" else None,
        client=ClientRules(usage=usage) if side == "client" else None,
    )
    pair.server.rotate(pair.now)
    pair.pump()
    end = pair.server if side == "server" else pair.client
    assert end.state is State.CLOSED
    end.receive(bytes(40), pair.now)
    if isinstance(end, ServerConnection):
        end.flush_acks()
    assert end.state is State.CLOSED


def test_a_request_that_was_ignored_does_not_count() -> None:
    pair = Pair()
    pair.hook = dropping(FrameType.ROTATE)
    pair.server.rotate(pair.now)
    pair.pump()
    assert pair.server.state is State.EXPECT_REPLY
    pair.client.request_rotation(RequestReason.ASKED, pair.now)
    pair.pump()
    assert pair.server._last_request == -inf


@pytest.mark.parametrize("side", ["server", "client"])
def test_control_frames_wear_a_key_too(side: str) -> None:
    usage = UsageLimits(rekey_frames=6)
    pair = Pair(
        server=ServerRules(usage=usage) if side == "server" else None,
        client=ClientRules(usage=usage) if side == "client" else None,
    )
    for _ in range(6):
        pair.client.ping(pair.now)
        pair.pump()
    assert pair.server.rotations == pair.client.rotations >= 1
