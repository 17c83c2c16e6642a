"""C2: against an attacker who takes part in the rotation: detected in pinned mode, prevented with a device key.

Attacker: holds all keys of epoch e and sits on the wire. It answers the client with a ROTATE of its own and the
server with a REPLY of its own (the rotation is split). Without pins and device key it goes on with the session.
"""

from __future__ import annotations

import random

import pytest

from rwt_protocol import codec, key_schedule
from rwt_protocol.client import ClientRules
from rwt_protocol.codes import CloseCode, FrameType, SignatureAlgorithm, Warning
from rwt_protocol.connection import State
from rwt_protocol.events import RevocationWanted, Warned
from rwt_protocol.frames import Publication, Reply, Rotate
from rwt_protocol.key_schedule import EpochKeys
from rwt_protocol.record import Opener
from rwt_protocol.server import ServerRules
from rwt_protocol.suites import PublicKey, SigningKey, generate, respond, shared_secret
from tests.pair import Pair, end_code, forge_control, found, opener_of

BYTES = random.Random(2).randbytes
IDENTITY = SigningKey.generate(SignatureAlgorithm.ED25519, BYTES)
DEVICE = SigningKey.generate(SignatureAlgorithm.ECDSA_P256, BYTES)


def chain_of(pair: Pair) -> EpochKeys:
    chain = pair.client._chain
    assert chain is not None
    return chain


def make(*, pinned: bool = False, device: bool = False) -> Pair:
    return Pair(
        server=ServerRules(signing_keys=(IDENTITY,)),
        client=ClientRules(
            pins=frozenset({IDENTITY.public}) if pinned else frozenset(),
            device_key=DEVICE if device else None,
        ),
        device=DEVICE.public if device else None,
    )


def offer_to_client(pair: Pair) -> EpochKeys | None:
    """Send the client a ROTATE with the attacker's share; return the keys shared with it, if it answers."""
    keys = chain_of(pair)
    own = generate(pair.client._hello.own.suite, BYTES)
    opener = Opener(keys.client, keys.epoch)
    opener.count = opener_of(pair.server).count
    pair.client.receive(forge_control(pair.client, Rotate(keys.epoch + 1, own.share)), pair.now)
    pair.client_events += pair.client.events()
    replies = [frame for frame in pair.client.bytes_to_send() if frame[0] == FrameType.REPLY]
    if not replies:
        return None
    body = codec.decode_control(FrameType.REPLY, opener.open(replies[0], 1, opener.count))
    assert isinstance(body, Reply)
    return key_schedule.rotate(keys, shared_secret(own, body.share), own.share, body.share)


def answer_server(pair: Pair) -> EpochKeys:
    """Take the server's ROTATE from the wire and answer it in the client's place."""
    keys = chain_of(pair)
    reader = Opener(keys.server, keys.epoch)
    reader.count = opener_of(pair.client).count
    pair.server.rotate(pair.now)
    (frame,) = pair.server.bytes_to_send()
    offer = codec.decode_control(FrameType.ROTATE, reader.open(frame, 1, reader.count))
    assert isinstance(offer, Rotate)
    share, dh = respond(pair.client._hello.own.suite, offer.share, BYTES)
    pair.server.receive(forge_control(pair.server, Reply(offer.epoch, share)), pair.now)
    pair.node.work(pair.server, pair.now)
    return key_schedule.rotate(keys, dh, offer.share, share)


@pytest.mark.parametrize("pinned", [True, False], ids=["rule", "control"])
def test_split_at_the_client_is_detected_by_the_pin(pinned: bool) -> None:
    pair = make(pinned=pinned)
    stolen = offer_to_client(pair)
    if pinned:
        assert stolen is None
        assert end_code(pair.client_events) == CloseCode.PROTOCOL_ERROR
        assert Warning.SERVER_IDENTITY in [event.code for event in found(pair.client_events, Warned)]
        return
    assert stolen is not None and pair.client.state is State.EXPECT_ROTATED
    message = codec.encode_publication(Publication(b"for the server"))
    pair.client.send_message(1, 5, message)
    (frame,) = pair.client.bytes_to_send()
    assert Opener(stolen.client, stolen.epoch).open(frame, 1, 0) == message


@pytest.mark.parametrize("device", [True, False], ids=["rule", "control"])
def test_split_at_the_server_is_prevented_by_the_device_key(device: bool) -> None:
    pair = make(device=device)
    before = pair.record
    stolen = answer_server(pair)
    if device:
        assert pair.record == before
        assert end_code(pair.server_events) == CloseCode.PROTOCOL_ERROR
    else:
        assert pair.record.token == stolen.token


def test_without_device_key_the_owner_ends_the_theft_when_it_connects_next() -> None:
    pair = make(pinned=True)
    answer_server(pair)
    pair.reconnect()
    assert pair.record.revoked and found(pair.server_events, RevocationWanted)
    assert end_code(pair.client_events) == CloseCode.REVOKED
    assert Warning.TOKEN_REUSE in [event.code for event in found(pair.client_events, Warned)]


def other_key(algorithm: SignatureAlgorithm) -> PublicKey:
    return SigningKey.generate(algorithm, random.Random(3).randbytes).public


@pytest.mark.parametrize("algorithm", list(SignatureAlgorithm), ids=lambda one: one.name)
@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_a_signature_by_another_key_is_refused(
    algorithm: SignatureAlgorithm, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        monkeypatch.setattr(PublicKey, "verify", lambda *_: True)
    identity = SigningKey.generate(algorithm, BYTES)
    pair = Pair(
        server=ServerRules(signing_keys=(identity,)),
        client=ClientRules(pins=frozenset({other_key(algorithm)})),
    )
    assert pair.client.is_open is broken
    assert end_code(pair.client_events) == (0 if broken else CloseCode.PROTOCOL_ERROR)
