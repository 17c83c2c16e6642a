"""Handshake: both sides agree in every suite, and what is wrong is refused with its code (sections 7.5 and 7.9)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import pytest

from rwt_protocol import handshake, key_schedule
from rwt_protocol.codec import encode_control
from rwt_protocol.codes import CloseCode, FrameType, Policy, SignatureAlgorithm, Suite
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Hello, Welcome
from rwt_protocol.handshake import ClientHello, decode_clear, encode_clear, read_hello, server_welcome
from rwt_protocol.key_schedule import family_of, token_id
from rwt_protocol.session import ClientSession, Held, Retired, SessionRecord, StoreConflict
from rwt_protocol.suites import SigningKey

SID = bytes(range(16))
TICKET = b"t" * 32
RECORD = SessionRecord(
    sid=SID, user="ada", key="k", token=TICKET, suites=(3, 2, 1), expires_at=30.0, ends_at=86_400.0
)
SUITES = [pytest.param(suite, id=suite.name) for suite in Suite]


def ask(
    session: ClientSession, *suites: Suite, seed: int = 1, algorithms: tuple[int, ...] | None = None
) -> ClientHello:
    return handshake.client_hello(session, suites, Policy.AUTO, Random(seed).randbytes, algorithms)


def answer(record: SessionRecord | None, frame: bytes, seed: int = 2) -> tuple[bytes, Any, Any]:
    return server_welcome(record, read_hello(frame), frame, Random(seed).randbytes)


def refused(call: Callable[[], object], code: CloseCode) -> RWTProtocolError:
    with pytest.raises(RWTProtocolError) as caught:
        call()
    assert caught.value.close_code is code
    return caught.value


def hello_of(sent: ClientHello) -> Hello:
    return read_hello(sent.frame)


def welcome_of(frame: bytes) -> Welcome:
    found = decode_clear(FrameType.WELCOME, frame)
    assert isinstance(found, Welcome)
    return found


# --- both sides ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
def test_connect_then_resume(suite: Suite) -> None:
    session = ClientSession(SID, TICKET, (3, 2, 1))
    sent = ask(session, suite)
    assert hello_of(sent) == Hello((2,), (suite,), suite, sent.own.share, SID, (token_id(TICKET),), 0, 0)
    frame, server_keys, proof = answer(RECORD, sent.frame)
    keys, parent = handshake.client_keys(sent, frame)
    assert keys == server_keys and keys.epoch == 1
    assert (proof.picked, proof.secret, proof.live) == (token_id(TICKET), TICKET, True)
    assert parent == Held(0, TICKET, None)
    welcome = welcome_of(frame)
    assert (welcome.version, welcome.suite, welcome.epoch) == (2, suite, 1)
    assert keys.transcript == key_schedule.handshake_transcript(sent.frame, frame)

    session.suite = suite
    session.settle(session.hold(1, keys.token, parent))
    record = replace(
        RECORD,
        epoch=1,
        token=keys.token,
        suite=suite,
        family=family_of(keys.token),
        retired=(Retired(0, TICKET),),
    )
    again = ask(session, *Suite, seed=3)
    assert hello_of(again).epoch == 1 and hello_of(again).suite == suite
    assert hello_of(again).token_ids == (token_id(keys.token), token_id(family_of(keys.token)))
    frame, server_keys, proof = answer(record, again.frame, 4)
    resumed, parent = handshake.client_keys(again, frame)
    assert resumed == server_keys and resumed.epoch == 2 and proof.live
    assert parent == session.held[0]
    assert not {resumed.token, resumed.chain, *resumed.client} & {keys.token, keys.chain, *keys.client}


@pytest.mark.parametrize("suite", SUITES)
def test_a_family_that_was_picked_gives_keys_but_no_token_to_hold(suite: Suite) -> None:
    session = ClientSession(SID, TICKET, (3, 2, 1))
    session.suite = suite
    session.settle(session.hold(5, b"a" * 32, Held(4, b"b" * 32, b"f" * 32)))
    record = replace(RECORD, epoch=40, token=b"z" * 32, suite=suite, family=b"f" * 32)
    sent = ask(session, suite)
    frame, server_keys, proof = answer(record, sent.frame)
    assert (welcome_of(frame).picked, welcome_of(frame).epoch) == (token_id(b"f" * 32), 6)
    assert handshake.client_keys(sent, frame) == (server_keys, None)
    assert proof.live is False


@pytest.mark.parametrize("suite", SUITES)
def test_whoever_lacks_the_token_or_sees_other_bytes_gets_other_keys(suite: Suite) -> None:
    session = ClientSession(SID, TICKET, (suite,))
    sent = ask(session, suite)
    frame, server_keys, _ = answer(replace(RECORD, suites=(suite,)), sent.frame)
    thief = replace(sent, offers={token_id(TICKET): Held(0, b"guess" * 6 + b"!!", None)})
    assert handshake.client_keys(thief, frame)[0].token != server_keys.token
    changed = replace(sent, frame=encode_clear(replace(hello_of(sent), policy=2)))
    assert handshake.client_keys(changed, frame)[0].client != server_keys.client


def test_what_hello_says() -> None:
    session = ClientSession(SID, TICKET, (2, 1))
    sent = handshake.client_hello(
        session, (Suite.P256, Suite.X25519), Policy.ALWAYS, Random(1).randbytes, (2, 1)
    )
    found = hello_of(sent)
    assert found.suites == (1, 2)
    assert found.suite == 2  # the server's preference decides
    assert (found.policy, found.signature_algorithms, found.versions) == (1, (2, 1), (2,))
    assert sent.frame[:16] == b"\x01" + bytes(15)


def test_a_hello_prints_no_token() -> None:
    sent = ask(ClientSession(SID, TICKET, (2,)), Suite.X25519)
    assert repr(TICKET) not in repr(sent)


# --- refusals by the client ------------------------------------------------------------------------------


def test_no_suite_in_common() -> None:
    session = ClientSession(SID, TICKET, (2, 9))
    refused(lambda: ask(session, Suite.P256), CloseCode.VERSION_OR_SUITE)


SENT = ask(ClientSession(SID, TICKET, (2, 1)), Suite.X25519, Suite.P256)
FRAME, KEYS, _ = answer(replace(RECORD, suites=(2, 1)), SENT.frame)
WELCOME = welcome_of(FRAME)


@pytest.mark.parametrize(
    ("welcome", "message"),
    [
        pytest.param(replace(WELCOME, version=1), "", id="version 1"),
        pytest.param(replace(WELCOME, version=3), "", id="version 3"),
        pytest.param(replace(WELCOME, suite=1), "", id="another suite"),
        pytest.param(replace(WELCOME, picked=bytes(8)), "not offered", id="token not offered"),
        pytest.param(replace(WELCOME, epoch=0), "epoch", id="epoch 0"),
        pytest.param(replace(WELCOME, epoch=2), "epoch", id="epoch 2"),
        pytest.param(replace(WELCOME, share=bytes(32)), "X25519", id="zero share"),
        pytest.param(replace(WELCOME, share=WELCOME.share[1:]), "X25519", id="short share"),
    ],
)
def test_welcome_that_is_refused(welcome: Welcome, message: str) -> None:
    with pytest.raises(RWTProtocolError) as caught:
        handshake.client_keys(SENT, encode_clear(welcome))
    assert message in str(caught.value)
    if message:
        assert caught.value.close_code is CloseCode.PROTOCOL_ERROR


@pytest.mark.parametrize("epoch", [0, 5, 7, 2**32 - 1])
def test_epoch_of_a_family_is_that_of_hello_plus_1(epoch: int) -> None:
    session = ClientSession(SID, TICKET, (2,))
    session.settle(session.hold(5, b"a" * 32, Held(4, b"b" * 32, b"f" * 32)))
    sent = ask(session, Suite.X25519)
    welcome = replace(WELCOME, picked=token_id(b"f" * 32), epoch=epoch)
    refused(lambda: handshake.client_keys(sent, encode_clear(welcome)), CloseCode.PROTOCOL_ERROR)
    keys, parent = handshake.client_keys(sent, encode_clear(replace(welcome, epoch=6)))
    assert (keys.epoch, parent) == (6, None)


# --- refusals by the server ------------------------------------------------------------------------------


@pytest.mark.parametrize("versions", [(1,), (3, 4), (0,), (999,)], ids=str)
def test_no_common_version(versions: tuple[int, ...]) -> None:
    frame = encode_clear(replace(hello_of(SENT), versions=versions))
    refused(lambda: read_hello(frame), CloseCode.VERSION_OR_SUITE)


def test_a_share_of_a_suite_that_is_not_offered_is_malformed() -> None:
    frame = encode_clear(replace(hello_of(SENT), suites=(1,), suite=2, versions=(1,)))
    refused(lambda: read_hello(frame), CloseCode.PROTOCOL_ERROR)


@pytest.mark.parametrize("versions", [(2,), (1, 2, 3), (9, 2)], ids=str)
def test_common_version(versions: tuple[int, ...]) -> None:
    frame = encode_clear(replace(hello_of(SENT), versions=versions))
    assert read_hello(frame).versions == versions


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param({"token_ids": (bytes(8),)}, 4401, id="unknown token"),
        pytest.param({"share": bytes(32)}, 4401, id="zero share"),
        pytest.param({"share": bytes(31)}, 4401, id="short share"),
        pytest.param({"share": b""}, 4401, id="empty share"),
        pytest.param({"suite": 1, "suites": (1, 2)}, 4406, id="downgrade"),
        pytest.param({"suites": (3, 2, 1)}, 4406, id="the preferred suite was taken out of field 3"),
    ],
)
def test_hello_that_is_refused(change: dict[str, Any], code: int) -> None:
    frame = encode_clear(replace(hello_of(SENT), **change))
    error = refused(lambda: answer(RECORD, frame), CloseCode(code))
    if code == 4401:
        assert str(error) == "authentication failed"


def test_unknown_session_and_store_conflict() -> None:
    refused(lambda: answer(None, SENT.frame), CloseCode.AUTHENTICATION_FAILED)
    record = replace(RECORD, epoch=3, token=b"z" * 32, suite=2, family=b"f" * 32)
    frame = encode_clear(replace(hello_of(SENT), token_ids=(token_id(b"f" * 32),), epoch=4))
    error = refused(lambda: answer(record, frame), CloseCode.AUTHENTICATION_FAILED)
    assert isinstance(error, StoreConflict)


def test_a_suite_the_server_lists_and_does_not_know() -> None:
    record = replace(RECORD, suites=(9,))
    frame = encode_clear(replace(hello_of(SENT), suite=9, suites=(9,)))
    refused(lambda: answer(record, frame), CloseCode.AUTHENTICATION_FAILED)


def test_the_record_is_not_touched_before_the_proof() -> None:
    before = replace(RECORD)
    answer(RECORD, ask(ClientSession(SID, TICKET, (3, 2, 1)), *Suite).frame)
    assert before == RECORD


# --- clear frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [hello_of(SENT), WELCOME], ids=["HELLO", "WELCOME"])
def test_clear_frames(frame: Hello | Welcome) -> None:
    kind = FrameType[type(frame).__name__.upper()]
    data = encode_clear(frame)
    assert data == bytes((kind,)) + bytes(15) + encode_control(frame)
    assert decode_clear(kind, data) == frame
    for place in range(1, 16):
        for bit in range(8):
            bad = bytearray(data)
            bad[place] ^= 1 << bit
            refused(partial(decode_clear, kind, bytes(bad)), CloseCode.PROTOCOL_ERROR)
    for other in (data[:16], data[:-1], data + b"\0", data[:16] + b"\xa0"):
        refused(partial(decode_clear, kind, other), CloseCode.PROTOCOL_ERROR)


def test_a_hello_may_have_4096_bytes() -> None:
    def sized(count: int) -> bytes:
        body = encode_control(replace(hello_of(SENT), share=bytes(300)))
        return encode_clear(replace(hello_of(SENT), share=bytes(300 + count - len(body))))

    assert len(read_hello(sized(4_096)).share) > 3_000
    with pytest.raises(ValueError, match="4097"):
        sized(4_097)


# --- pins ------------------------------------------------------------------------------------------------


def test_pins() -> None:
    keys = [SigningKey.generate(algorithm, Random(1).randbytes) for algorithm in SignatureAlgorithm]
    stranger = SigningKey.generate(SignatureAlgorithm.ED25519, Random(2).randbytes)
    pins = frozenset(key.public for key in keys)
    message = key_schedule.server_signature_input(KEYS.transcript)
    for key in keys:
        assert handshake.verify_pinned(pins, key.sign(message), message)
        assert not handshake.verify_pinned(pins, key.sign(message), message + b"x")
        assert not handshake.verify_pinned(frozenset(), key.sign(message), message)
    assert not handshake.verify_pinned(pins, stranger.sign(message), message)
    assert not handshake.verify_pinned(pins, None, message)
