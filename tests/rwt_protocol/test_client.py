"""The client's end of a connection: handshake, rotation, pins, device key, timers, what it reports."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf

import pytest

from rwt_protocol import codec, key_schedule, limits
from rwt_protocol.client import ClientConnection, ClientRules
from rwt_protocol.codes import (
    AfterClose,
    CloseCode,
    FrameType,
    Level,
    Pattern,
    Policy,
    RequestReason,
    SignatureAlgorithm,
    Suite,
    Warning,
    after_close,
)
from rwt_protocol.connection import State
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
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
    RotationTerms,
    Sub,
    SubOk,
    Unsub,
    Warn,
)
from rwt_protocol.frames import Rotated as RotatedFrame
from rwt_protocol.record import Opener, UsageLimits
from rwt_protocol.rotation import RotationRules
from rwt_protocol.server import ServerRules
from rwt_protocol.session import ClientSession
from rwt_protocol.suites import SigningKey, generate
from tests.pair import (
    START,
    Pair,
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
IDENTITIES = {algorithm: SigningKey.generate(algorithm, BYTES) for algorithm in SignatureAlgorithm}
DEVICE = SigningKey.generate(SignatureAlgorithm.ECDSA_P256, BYTES)
PLACE = Position(bytes(8), 0, b"")
GAP = Gap(1, bytes(8), 1, 2, PLACE)
ENTRY = codec.encode_entry(1, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, b"body")


def in_welcome() -> Pair:
    return Pair(start=False)


def in_ready(**rules: object) -> Pair:
    """The client has sent CONFIRM, which is lost."""
    pair = Pair(client=ClientRules(**rules), start=False)  # type: ignore[arg-type]
    pair.hook = dropping(FrameType.CONFIRM)
    pair.pump()
    assert pair.client.state is State.EXPECT_READY
    return pair


def in_rotated(pair: Pair | None = None) -> Pair:
    """The client has sent REPLY, which is lost."""
    pair = pair or Pair()
    pair.hook = dropping(FrameType.REPLY)
    pair.rotate()
    assert pair.client.state is State.EXPECT_ROTATED
    pair.client.handle_timer(pair.now)
    pair.client.bytes_to_send()
    return pair


def sent(pair: Pair) -> list[Control]:
    """Take and open what the client wrote under its current key."""
    opener = opener_of(pair.server)
    out: list[Control] = []
    for frame in pair.client.bytes_to_send():
        _, flags, _, _, seq = codec.HEADER.unpack_from(frame)
        opener.count = seq
        out.append(codec.decode_control(FrameType(frame[0]), opener.open(frame, flags, seq)))
    return out


def give(pair: Pair, frame: Control) -> list[Event]:
    pair.client.receive(forge_control(pair.client, frame), pair.now)
    return pair.client.events()


# --- handshake -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)
def test_connect_and_resume(suite: Suite) -> None:
    pair = Pair(suites=(suite,))
    for epoch in range(1, 4):
        (opened,) = found(pair.client_events, Opened)
        assert (opened.epoch, opened.resumed, opened.ready.epoch) == (epoch, epoch > 1, epoch)
        assert pair.client.epoch == epoch == pair.session.ready_epoch
        assert found(pair.server_events, Opened)[0].connection_id == opened.connection_id
        assert len(opened.connection_id) == 16
        assert pair.session.suite is suite and len(pair.session.held) == 1
        assert pair.session.held[0].token == pair.record.token
        pair.reconnect()


def test_terms_of_ready_are_taken() -> None:
    pair = Pair(server=ServerRules(window=7, max_message=5_000, ping_ms=3_000, policy=Policy.NEVER))
    assert (pair.client.window, pair.client.max_message) == (7, 5_000)
    first_ping(pair)
    assert pair.client.next_timer == START + 3


def test_a_client_is_open_and_may_subscribe() -> None:
    table = [
        (in_welcome(), False, False),
        (in_ready(), False, True),
        (in_ready(pins=frozenset({DEVICE.public})), False, False),
        (Pair(), True, True),
        (in_rotated(), True, True),
    ]
    closed = Pair()
    closed.client.close(1000, START)
    for pair, is_open, can_subscribe in [*table, (closed, False, False)]:
        assert (pair.client.is_open, pair.client.can_subscribe) == (is_open, can_subscribe)


@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
def test_the_server_policy_is_known_after_ready(policy: Policy) -> None:
    pair = Pair(server=ServerRules(policy=policy), start=False)
    assert pair.client.server_policy is Policy.AUTO
    pair.pump()
    assert pair.client.server_policy is policy


@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "tls"])
def test_what_confirm_says(pinned: bool) -> None:
    terms = RotationTerms(30_000, Pattern.PHI.value, 700)
    pins = frozenset({IDENTITIES[SignatureAlgorithm.ED25519].public}) if pinned else frozenset()
    pair = in_ready(name=("name", "1"), rotation=terms, pins=pins)
    (frame,) = frames_of(pair.tape, FrameType.CONFIRM)
    body = codec.decode_control(FrameType.CONFIRM, opener_of(pair.server).open(frame, 1, 0))
    assert body == Confirm(None, terms, None if pinned else ("name", "1"))


def test_the_token_is_held_before_its_proof_is_sent() -> None:
    pair = in_welcome()
    ticket = pair.session.held[0]
    for frame in pair.client.bytes_to_send():
        pair.server.receive(frame, pair.now)
    pair.node.work(pair.server, pair.now)
    (welcome,) = pair.server.bytes_to_send()
    pair.client.receive(welcome, pair.now)
    assert [held.epoch for held in pair.session.held] == [1, 0]
    assert pair.client.wants_to_send and pair.session.held[1] == ticket
    pair.pump()
    assert [held.epoch for held in pair.session.held] == [1]


def test_no_common_suite() -> None:
    session = ClientSession(bytes(16), bytes(32), (9,))
    with pytest.raises(RWTProtocolError) as failure:
        ClientConnection(session, ClientRules(), BYTES, 0)
    assert failure.value.close_code is CloseCode.VERSION_OR_SUITE


def test_ready_with_a_wrong_epoch() -> None:
    pair = in_ready()
    events = give(pair, Ready(2, 0, 9, False, 1, 1, 1, 1, 1))
    assert end_code(events) == CloseCode.PROTOCOL_ERROR and pair.session.ready_epoch == 0


def test_ready_after_the_family_was_picked() -> None:
    pair = Pair()
    thief = pair.thief()
    for _ in range(limits.MAX_RETIRED + 1):
        thief.reconnect()
    pair.hook = dropping(FrameType.CONFIRM)
    pair.reconnect()
    assert pair.client.state is State.EXPECT_READY and not pair.client.can_subscribe
    events = give(pair, Ready(2, 0, 9, True, 1, 1, 1, 1, 1))
    assert end_code(events) == CloseCode.PROTOCOL_ERROR
    assert [held.epoch for held in pair.session.held] == [1]


@pytest.mark.parametrize("frame", [Warn("token-reuse", "text"), Bye(4403)], ids=["WARN", "BYE"])
def test_warn_and_bye_may_come_in_place_of_ready(frame: Control) -> None:
    pair = in_ready()
    events = give(pair, frame)
    if isinstance(frame, Warn):
        assert events == [Warned("token-reuse", "text")] and pair.client.state is State.EXPECT_READY
    else:
        assert events == [Terminated(4403, "", by_peer=True, sealed=True)]


@pytest.mark.parametrize(
    ("state", "frame"),
    [
        ("EXPECT_READY", RotatedFrame(1, 9)),
        ("OPEN", Ready(1, 0, 9, False, 1, 1, 1, 1, 1)),
        ("EXPECT_ROTATED", Rotate(2, bytes(32))),
    ],
    ids=["EXPECT_READY", "OPEN", "EXPECT_ROTATED"],
)
def test_a_frame_that_the_state_does_not_allow(state: str, frame: Control) -> None:
    pair = in_ready() if state == "EXPECT_READY" else Pair()
    if state == "EXPECT_ROTATED":
        in_rotated(pair)
    assert end_code(give(pair, frame)) == CloseCode.PROTOCOL_ERROR


# --- pins and device key ---------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", list(SignatureAlgorithm), ids=lambda one: one.name)
def test_pinned_connect_rotate_resume(algorithm: SignatureAlgorithm) -> None:
    pins = frozenset({IDENTITIES[algorithm].public})
    pair = Pair(server=ServerRules(signing_keys=tuple(IDENTITIES.values())), client=ClientRules(pins=pins))
    pair.rotate()
    pair.reconnect()
    pair.rotate()
    assert pair.client.state is State.OPEN and pair.client.epoch == 4
    assert not found(pair.client_events, Warned)


def test_a_client_with_two_pins_takes_either() -> None:
    pins = frozenset(key.public for key in IDENTITIES.values())
    for key in IDENTITIES.values():
        pair = Pair(server=ServerRules(signing_keys=(key,)), client=ClientRules(pins=pins))
        pair.rotate()
        assert pair.client.rotations == 1


@pytest.mark.parametrize("state", ["READY", "ROTATE"])
@pytest.mark.parametrize("signed", ["missing", "other key", "other text"])
def test_a_wrong_server_signature(state: str, signed: str) -> None:
    identity = IDENTITIES[SignatureAlgorithm.ED25519]
    rules = ClientRules(pins=frozenset({identity.public}))
    pair = Pair(server=ServerRules(signing_keys=(identity,)), client=rules, start=False)
    pair.hook = dropping(FrameType.READY if state == "READY" else FrameType.ROTATE)
    pair.pump()
    signature = None
    if signed == "other text":
        signature = identity.sign(b"anything")
    chain = pair.client._chain
    assert chain is not None
    share = generate(Suite.X25519, BYTES).share
    if state == "READY":
        text = key_schedule.server_signature_input(chain.transcript)
        other = signature or (DEVICE.sign(text) if signed == "other key" else None)
        frame: Control = Ready(1, 0, 9, False, 1, 1, 1, 1, 1, signature=other)
    else:
        text = key_schedule.offer_signature_input(chain.transcript, 2, share)
        other = signature or (DEVICE.sign(text) if signed == "other key" else None)
        frame = Rotate(2, share, other)
    held = list(pair.session.held)
    pair.client.bytes_to_send()
    events = give(pair, frame)
    assert [event.code for event in found(events, Warned)] == [Warning.SERVER_IDENTITY]
    assert end_code(events) == CloseCode.PROTOCOL_ERROR
    assert pair.session.held == held
    assert [frame[0] for frame in pair.client.bytes_to_send()] == [FrameType.BYE]


@pytest.mark.parametrize("algorithm", list(SignatureAlgorithm), ids=lambda one: one.name)
def test_device_key(algorithm: SignatureAlgorithm) -> None:
    key = IDENTITIES[algorithm]
    pair = Pair(device=key.public, client=ClientRules(device_key=key))
    pair.rotate()
    pair.reconnect()
    assert pair.client.state is State.OPEN and pair.record.epoch == 3


# --- rotation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", list(Suite), ids=lambda suite: suite.name)
def test_rotation(suite: Suite) -> None:
    pair = Pair(suites=(suite,))
    for count in range(1, 6):
        pair.rotate()
        events = found(pair.client_events, Rotated)
        assert (len(events), events[-1].epoch) == (count, count + 1)
        assert pair.client.epoch == count + 1 == pair.session.ready_epoch
        assert pair.client.rotations == count == pair.server.rotations
        assert len(pair.session.held) == 1 and pair.session.held[0].token == pair.record.token


def test_reply_is_the_last_frame_under_the_old_key() -> None:
    pair = in_rotated()
    pair.client.send_message(1, 5, codec.encode_publication(Publication(b"x", 1)))
    pair.client.subscribe(Sub(1, "a"))
    headers = [codec.HEADER.unpack_from(frame) for frame in pair.client.bytes_to_send()]
    assert [(epoch, seq) for _, _, epoch, _, seq in headers] == [(2, 1), (2, 2)]  # behind the first PING
    (reply,) = frames_of(pair.tape, FrameType.REPLY)
    assert codec.HEADER.unpack_from(reply)[2] == 1
    assert pair.client.epoch == 2
    assert [held.epoch for held in pair.session.held] == [2, 1]


def test_data_under_the_old_key_while_rotated_is_awaited() -> None:
    pair = in_rotated()
    pair.client.receive(forge(pair.client, FrameType.MSG, ENTRY, stream=5), pair.now)
    assert [type(event) for event in pair.client.events()] == [Delivered]
    assert give(pair, Ping(3)) == []
    assert pair.client.state is State.EXPECT_ROTATED


@pytest.mark.parametrize("epoch", [0, 1, 3, limits.MAX_EPOCH])
def test_a_wrong_epoch_in_rotate_and_rotated(epoch: int) -> None:
    pair = Pair()
    assert end_code(give(pair, Rotate(epoch, generate(Suite.X25519, BYTES).share))) == 4400
    pair = in_rotated()
    frame = forge_control(pair.client, RotatedFrame(epoch, 1_000), opener=pair.client._next_opener)
    pair.client.receive(frame, pair.now)
    assert end_code(pair.client.events()) == 4400


@pytest.mark.parametrize(
    "share", [b"", bytes(32), bytes(31), b"\x01" + bytes(31)], ids=lambda share: share.hex()[:6]
)
def test_an_invalid_share(share: bytes) -> None:
    pair = Pair()
    events = give(pair, Rotate(2, share))
    assert end_code(events) == CloseCode.PROTOCOL_ERROR and len(pair.session.held) == 1


def test_request_rotation() -> None:
    pair = Pair()
    pair.client.request_rotation(RequestReason.ASKED, pair.now)
    pair.pump()
    assert pair.client.rotations == 1
    in_between = in_rotated()
    in_between.client.request_rotation(RequestReason.ASKED, in_between.now)
    assert not in_between.client.wants_to_send


def test_the_key_is_asked_for_once() -> None:
    """Usage limits: REQUEST with reason 2 once for each epoch, and not while a rotation is under way."""
    pair = Pair(client=ClientRules(usage=UsageLimits(rekey_frames=3)))
    pair.hook = dropping(FrameType.REQUEST)
    for _ in range(4):
        pair.client.send_message(1, 5, b"\x00\x00x")
    assert [frame for frame in sent_kinds(pair) if frame == FrameType.REQUEST] == [FrameType.REQUEST]
    pair.hook = dropping()
    pair = in_rotated(Pair(client=ClientRules(usage=UsageLimits(rekey_frames=3))))
    for _ in range(4):
        pair.client.send_message(1, 5, b"\x00\x00x")
    assert FrameType.REQUEST not in sent_kinds(pair)


def sent_kinds(pair: Pair) -> list[int]:
    return [frame[0] for frame in pair.client.bytes_to_send()]


def test_each_epoch_may_ask_again() -> None:
    pair = Pair(client=ClientRules(usage=UsageLimits(rekey_frames=4)))
    for _ in range(3):
        pair.now += 6
        for _ in range(4):
            pair.client.send_message(0, 5, codec.encode_publication(Publication(b"x")))
        pair.pump()
    assert pair.client.rotations == 3


def test_too_many_received_frames_ask_as_well() -> None:
    pair = Pair(client=ClientRules(usage=UsageLimits(rekey_frames=3)))
    for _ in range(2):
        pair.client.receive(forge(pair.client, FrameType.MSG, ENTRY, stream=5), pair.now)
    (request,) = sent(pair)
    assert request == Request(RequestReason.USAGE)


# --- what is reported ------------------------------------------------------------------------------------

REPORTS: dict[str, tuple[Control, Event]] = {
    "ACK": (ack := Ack((AckRun(1, 2, 5, bytes(8), 1, 1),)), Acknowledged(ack)),
    "SUBOK": (subok := SubOk(1, 5, 0, PLACE, 3, 0, GAP), Subscribed(subok)),
    "ERR of a ref": (refused := Err(1, ref=0), Refused(refused)),
    "ERR of a mid": (answered := Err(4, mid=9, text="slow", retry_after_ms=5), Refused(answered)),
    "CLOSED": (closed := Closed(5, 1), StreamClosed(closed)),
    "GAP": (notice := GapNotice(5, GAP), GapFound(notice)),
    "WARN": (Warn("unheard-of", None, ("a", "b")), Warned("unheard-of", "")),
    "BYE": (Bye(4503, "bye", 700), Terminated(4503, "bye", True, True, 700)),
    "bare BYE": (Bye(1000), Terminated(1000, "", True, True)),
    "BYE keep": (Bye(1000, keep=True), Terminated(1000, "", True, True, None, True)),
}


@pytest.mark.parametrize("name", list(REPORTS))
@pytest.mark.parametrize("state", ["OPEN", "EXPECT_ROTATED"])
def test_report(state: str, name: str) -> None:
    frame, event = REPORTS[name]
    pair = Pair() if state == "OPEN" else in_rotated()
    assert give(pair, frame) == [event]


@pytest.mark.parametrize("frame", [Err(1), Err(1, ref=1, mid=1)], ids=["neither", "both"])
def test_err_answers_exactly_one_thing(frame: Err) -> None:
    assert end_code(give(Pair(), frame)) == CloseCode.PROTOCOL_ERROR


def test_entries_are_delivered_together() -> None:
    pair = Pair()
    batch = codec.join_batch([ENTRY, ENTRY])
    pair.client.receive(forge(pair.client, FrameType.MSG, batch, flags=17, stream=0), pair.now)
    (event,) = found(pair.client.events(), Delivered)
    assert (event.stream, event.level) == (0, Level.STANDARD)
    assert [entry.body for entry in event.entries] == [b"body", b"body"]


@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
def test_clear_messages_by_policy(policy: Policy) -> None:
    pair = Pair(client=ClientRules(policy=policy))
    pair.client.receive(forge(pair.client, FrameType.MSG, ENTRY, flags=0, stream=5), pair.now)
    assert end_code(pair.client.events()) == (CloseCode.PROTOCOL_ERROR if policy is Policy.ALWAYS else 0)


@pytest.mark.parametrize("number", [0, 1, 2**64 - 1])
def test_ping_is_answered(number: int) -> None:
    pair = Pair()
    assert give(pair, Ping(number)) == []
    assert sent(pair) == [Pong(number)]


def test_own_ping_measures_the_round_trip() -> None:
    pair = Pair()
    pair.client.ping(pair.now + 1)
    assert sent(pair) == [Ping(1)]
    pair.now += 1.25
    assert give(pair, Pong(7)) == []
    assert give(pair, Pong(1)) == [RoundTrip(0.25)]
    closed = Pair()
    closed.client.close(1000, START)
    closed.client.bytes_to_send()
    closed.client.ping(START)
    assert not closed.client.wants_to_send


def test_calls_write_their_frames() -> None:
    pair = Pair()
    pair.client.subscribe(Sub(1, "a", PLACE, 3, 1, 2))
    pair.client.unsubscribe(2, 5)
    pair.client.close(1000, pair.now, reason="done", keep=True)
    assert sent(pair) == [Sub(1, "a", PLACE, 3, 1, 2), Unsub(2, 5), Bye(1000, "done", None, True)]
    assert ending(pair.client.events()) == Terminated(1000, "done", keep=True)


# --- timers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [in_welcome, in_ready], ids=["EXPECT_WELCOME", "EXPECT_READY"])
def test_handshake_timer(make: Callable[[], Pair]) -> None:
    pair = make()
    client = pair.client
    client.bytes_to_send()
    assert client.next_timer == START + 10
    client.handle_timer(START + 9.999)
    assert client.events() == []
    client.handle_timer(START + 10)
    assert end_code(client.events()) == CloseCode.EXPIRED
    assert after_close(CloseCode.EXPIRED) is AfterClose.RESUME
    assert client.next_timer == inf
    client.handle_timer(START + 11)
    assert client.events() == []


def opened(rotate_ms: int | None, expires_ms: int, ping_ms: int = 20_000) -> Pair:
    """A pair whose READY had these terms."""
    pair = in_ready()
    give(pair, Ready(1, 0, 1_179_648, False, 1, ping_ms, 1, 1_048_576, expires_ms, rotate_ms))
    assert pair.client.state is State.OPEN
    first_ping(pair)
    return pair


def first_ping(pair: Pair) -> None:
    """A client measures the round trip as soon as it is open."""
    assert pair.client.next_timer == pair.now
    pair.client.handle_timer(pair.now)
    assert sent_kinds(pair) == [FrameType.PING]


def test_request_half_way_between_fields_2_and_12() -> None:
    pair = opened(40_000, 60_000, ping_ms=1_000_000)
    client = pair.client
    assert client.next_timer == START + 50
    client.handle_timer(START + 49.9)
    assert not client.wants_to_send
    client.handle_timer(START + 50)
    assert sent(pair) == [Request(RequestReason.OVERDUE)]
    assert [event.code for event in found(client.events(), Warned)] == [Warning.ROTATION_OVERDUE]
    client.handle_timer(START + 59)
    assert not client.wants_to_send and client.next_timer == START + 60
    client.handle_timer(START + 60)
    assert end_code(client.events()) == CloseCode.EXPIRED


def test_without_field_2_there_is_no_request() -> None:
    pair = opened(None, 60_000, ping_ms=1_000_000)
    assert pair.client.next_timer == START + 60
    pair.client.handle_timer(START + 59)
    assert not pair.client.wants_to_send


def test_rotated_arms_anew() -> None:
    pair = in_rotated(Pair(server=ServerRules(ping_ms=10_000_000)))
    frame = forge_control(pair.client, RotatedFrame(2, 100_000, 80_000), opener=pair.client._next_opener)
    pair.now += 1
    pair.client.receive(frame, pair.now)
    assert pair.client.events() == [Rotated(2, 80_000, 100_000)]
    assert pair.client.next_timer == pair.now + 90


def test_no_rotated_in_time() -> None:
    pair = in_rotated()
    client = pair.client
    assert client.next_timer == START + 10
    client.handle_timer(START + 9.9)
    assert client.state is State.EXPECT_ROTATED
    client.handle_timer(START + 10)
    assert end_code(client.events()) == CloseCode.EXPIRED
    assert [held.epoch for held in pair.session.held] == [2, 1]


@pytest.mark.parametrize("make", [lambda: opened(None, 10_000), in_rotated], ids=["expiry", "ROTATED"])
def test_deadlines_are_for_silence(make: Callable[[], Pair]) -> None:
    """While valid frames keep arriving a deadline moves, by 60 s at most."""
    pair = make()
    client = pair.client
    deadline = START + 10
    while pair.now < deadline + 55:
        pair.now += 5
        give(pair, Ping(1))
        client.handle_timer(pair.now)
        assert client.is_open, pair.now
        client.bytes_to_send()
    client.handle_timer(deadline + 59.9)
    assert client.is_open
    pair.now = deadline + 60
    give(pair, Ping(1))
    client.handle_timer(pair.now)
    assert end_code(client.events()) == CloseCode.EXPIRED


def test_a_deadline_that_moved_ends_when_the_frames_end() -> None:
    pair = opened(None, 10_000)
    pair.now = START + 8
    give(pair, Ping(1))
    pair.client.handle_timer(START + 10)
    assert pair.client.is_open and pair.client.next_timer == START + 18
    pair.client.handle_timer(START + 18)
    assert end_code(pair.client.events()) == CloseCode.EXPIRED


def test_own_pings() -> None:
    pair = opened(None, 1_000_000, ping_ms=4_000)
    client = pair.client
    for number in range(2, 6):
        while not client.wants_to_send:
            pair.now = client.next_timer
            client.handle_timer(pair.now)
        assert pair.now == START + 4 * (number - 1)
        assert sent(pair) == [Ping(number)]
        pair.now += 0.5
        assert give(pair, Pong(number)) == [RoundTrip(0.5)]


def test_a_silent_server_is_dead_after_two_and_a_half_intervals() -> None:
    pair = opened(None, 1_000_000, ping_ms=4_000)
    client = pair.client
    while client.is_open:
        pair.now = client.next_timer
        client.handle_timer(pair.now)
    assert pair.now == START + 10
    code = end_code(client.events())
    assert after_close(code) is AfterClose.RESUME
    assert client.next_timer == inf


def test_any_valid_frame_is_a_sign_of_life() -> None:
    pair = opened(None, 1_000_000, ping_ms=4_000)
    pair.now = START + 6
    pair.client.receive(forge(pair.client, 0x41, b"anything"), pair.now)
    for at in (10, 15.9):
        pair.client.handle_timer(START + at)
        assert pair.client.is_open
        assert sent_kinds(pair) in ([], [FrameType.PING])
    pair.client.handle_timer(START + 16)
    assert end_code(pair.client.events()) == CloseCode.EXPIRED


def test_without_rotation_a_session_lasts_to_its_end() -> None:
    pair = Pair(server=ServerRules(rotation=RotationRules(enabled=False)))
    (opened_event,) = found(pair.client_events, Opened)
    assert opened_event.ready.rotate_ms is None
    assert opened_event.ready.expires_ms == limits.SESSION_MS


def test_a_used_up_key_ends_the_connection() -> None:
    pair = Pair(client=ClientRules(usage=UsageLimits(stop_frames=2)))
    pair.client.subscribe(Sub(1, "a"))
    pair.client.subscribe(Sub(2, "b"))
    assert end_code(pair.client.events()) == CloseCode.EXPIRED
    assert not pair.client.wants_to_send


def test_reply_of_a_pinned_device() -> None:
    """REPLY is signed over the new transcript."""
    pair = in_rotated(Pair(device=DEVICE.public, client=ClientRules(device_key=DEVICE)))
    (frame,) = frames_of(pair.tape, FrameType.REPLY)
    seq = codec.HEADER.unpack_from(frame)[4]
    chain = pair.server._chain
    assert chain is not None
    opener = Opener(chain.client, chain.epoch)
    opener.count = seq
    body = codec.decode_control(FrameType.REPLY, opener.open(frame, 1, seq))
    assert isinstance(body, Reply) and pair.client._next is not None
    transcript = pair.client._next[0].transcript
    assert DEVICE.public.verify(body.signature, key_schedule.client_signature_input(transcript))


def test_a_reply_that_would_use_up_its_key_ends_the_connection() -> None:
    pair = Pair()
    assert pair.client._sealer is not None
    pair.client._sealer._usage = UsageLimits(stop_frames=pair.client._sealer.count)
    pair.server.rotate(pair.now)
    pair.pump()
    assert pair.client.state is State.CLOSED and pair.client.next_timer == inf
    pair.client.receive(bytes(40), pair.now)
    assert end_code(pair.client_events) == CloseCode.EXPIRED
