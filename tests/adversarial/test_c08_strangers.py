"""C8: who knows sid and ids but no token changes nothing, and does not disturb the owner.

Attacker: a stranger who saw HELLO (sid and all ids) and sends CONFIRMs that prove nothing. The record is
compared before and after, and the owner goes on. The control opens every CONFIRM.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rwt_protocol import handshake, key_schedule, limits
from rwt_protocol.codec import HEADER
from rwt_protocol.codes import CloseCode, FrameType
from rwt_protocol.connection import State
from rwt_protocol.events import Terminated
from rwt_protocol.frames import Hello, Welcome
from rwt_protocol.record import Opener, Sealer
from rwt_protocol.server import ServerConnection
from rwt_protocol.suites import generate, shared_secret
from tests.pair import Pair, found

SEED = 8


def ids_of(pair: Pair) -> dict[str, bytes]:
    """What a stranger may know: the names of the live token, a retired one and the family."""
    record = pair.record
    assert record.family is not None
    return {
        "live": key_schedule.token_id(record.token),
        "retired": key_schedule.token_id(record.retired[0].token),
        "family": key_schedule.token_id(record.family),
    }


def approach(pair: Pair, chosen: random.Random, picked: bytes) -> tuple[ServerConnection, Sealer]:
    """Run the handshake as far as a stranger can; return the best sealer it can make."""
    server = pair.node.accept(chosen.randbytes, pair.now, 0)
    suite = pair.client._hello.own.suite
    own = generate(suite, chosen.randbytes)
    hello = handshake.encode_clear(
        Hello((2,), (suite,), suite, own.share, pair.session.sid, (picked,), 0, pair.record.epoch)
    )
    server.receive(hello, pair.now)
    pair.node.work(server, pair.now)
    (welcome,) = server.bytes_to_send()
    answer = handshake.decode_clear(FrameType.WELCOME, welcome)
    assert isinstance(answer, Welcome)
    dh = shared_secret(own, answer.share)
    transcript = key_schedule.handshake_transcript(hello, welcome)
    # The id in place of the token: the stranger has nothing better.
    keys = key_schedule.connect(picked, dh, transcript, answer.epoch)
    return server, Sealer(keys.client, keys.epoch)


def garbage(chosen: random.Random, sealer: Sealer) -> dict[str, bytes]:
    head = HEADER.pack(FrameType.CONFIRM, 1, sealer.epoch, 0, 0)
    return {
        "wrong keys": sealer.seal(FrameType.CONFIRM, 1, 0, b"\xa0"),
        "random": head + chosen.randbytes(40),
        "zeros": head + bytes(17),
        "no body": head + bytes(16),
        "long": head + chosen.randbytes(limits.MAX_CONTROL),
    }


@pytest.mark.parametrize("picked", ["live", "retired", "family"])
@pytest.mark.parametrize("shape", ["wrong keys", "random", "zeros", "no body", "long"])
@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_garbage_confirm(shape: str, picked: str, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        monkeypatch.setattr(Opener, "open", lambda *_: b"\xa0")
    pair = Pair()
    if not broken:
        pair.rotate()
    chosen = random.Random(SEED)
    server, sealer = approach(pair, chosen, ids_of(pair)[picked])
    before = pair.record
    server.receive(garbage(chosen, sealer)[shape], pair.now)
    events = server.events()
    for event in events:
        pair.node.answer(server, event, pair.now)
    assert (pair.record != before) is broken
    if broken:
        return
    assert [event.code for event in found(events, Terminated)] == [CloseCode.AUTHENTICATION_FAILED]
    assert server.bytes_to_send() == []
    pair.pump()
    assert pair.client.is_open


def test_control_the_owner_of_the_token_is_believed() -> None:
    pair = Pair()
    thief = pair.thief()
    assert thief.client.is_open and pair.record.epoch == 2


def test_the_owner_connects_and_rotates_during_a_flood() -> None:
    pair = Pair()
    chosen = random.Random(SEED)
    for number in range(100):
        names = ids_of(pair)
        server, sealer = approach(pair, chosen, chosen.choice(list(names.values())))
        if number % 3:
            frame = chosen.choice(list(garbage(chosen, sealer).values()))
            server.receive(frame, pair.now)
            pair.node.work(server, pair.now)
        if number % 10 == 0:
            pair.reconnect()
        else:
            pair.rotate()
        assert pair.client.state is State.OPEN and pair.server.state is State.OPEN, f"seed {SEED}: {number}"
    assert pair.record.epoch == 101
    assert not replace(pair.record).revoked


@pytest.mark.parametrize("known", [True, False], ids=["known sid", "unknown sid"])
def test_a_stranger_without_ids_learns_nothing(known: bool) -> None:
    pair = Pair()
    chosen = random.Random(SEED)
    own = generate(pair.client._hello.own.suite, chosen.randbytes)
    sid = pair.session.sid if known else bytes(16)
    server = pair.node.accept(chosen.randbytes, pair.now, 0)
    server.receive(
        handshake.encode_clear(
            Hello((2,), (own.suite,), own.suite, own.share, sid, (chosen.randbytes(8),), 0, 0)
        ),
        pair.now,
    )
    pair.node.work(server, pair.now)
    (end,) = found(pair.node.log[server], Terminated)
    assert (end.code, server.bytes_to_send()) == (CloseCode.AUTHENTICATION_FAILED, [])
