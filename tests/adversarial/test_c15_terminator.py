"""C15: in pinned mode an active TLS terminator reads and alters no data.

Attacker: owns the TLS end and saw the ticket, so it can play the server to the client and the client to the
server. It signs with a key of its own, not at all, or passes on what the true server signed for it. The control
is a client without pins.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from rwt_protocol import codec
from rwt_protocol.client import ClientRules
from rwt_protocol.codes import CloseCode, FrameType, SignatureAlgorithm, Warning
from rwt_protocol.events import Opened, Published, Warned
from rwt_protocol.frames import Publication, Signature, Sub
from rwt_protocol.record import Opener
from rwt_protocol.server import ServerConnection, ServerRules
from rwt_protocol.suites import SigningKey
from tests.pair import Node, Pair, Way, end_code, found

BYTES = random.Random(15).randbytes
ALGORITHM = SignatureAlgorithm.ED25519
IDENTITY = SigningKey.generate(ALGORITHM, BYTES)
MALLORY = SigningKey.generate(ALGORITHM, BYTES)
PINNED = ClientRules(pins=frozenset({IDENTITY.public}), name=("test", "1.0"))
OPEN = ClientRules(name=("test", "1.0"))


class Relay:
    """Stands where a signing key stands, and hands out a signature that was made for something else."""

    public = IDENTITY.public

    def __init__(self, signature: Signature) -> None:
        self.signature = signature

    def sign(self, _: bytes) -> Signature:
        return self.signature


def true_signature() -> Signature:
    """What the true server signs when the terminator connects to it with the ticket."""
    pair = Pair(99, server=ServerRules(signing_keys=(IDENTITY,)), client=PINNED)
    (opened,) = found(pair.client_events, Opened)
    assert opened.ready.signature is not None
    return opened.ready.signature


class Impostor(ServerConnection):
    """A server with a signer of the attacker's choice."""

    def __init__(self, signer: Any, *rest: Any) -> None:
        super().__init__(*rest)
        self.fake = signer

    def session_found(self, *arguments: Any) -> None:
        super().session_found(*arguments)
        self._signer = self.fake


def terminator(rules: ServerRules, signer: Any = None) -> Callable[..., ServerConnection]:
    def make(_: ServerRules, *rest: Any) -> ServerConnection:
        return ServerConnection(rules, *rest) if signer is None else Impostor(signer, rules, *rest)

    return make


ATTACKS: dict[str, Callable[[], Callable[..., ServerConnection]]] = {
    "unsigned": lambda: terminator(ServerRules()),
    "own key": lambda: terminator(ServerRules(signing_keys=(MALLORY,))),
    "own key under the pin's id": lambda: terminator(
        ServerRules(), Relay(MALLORY.sign(b"x")._replace(key_id=IDENTITY.public.id))
    ),
    "relayed": lambda: terminator(ServerRules(), Relay(true_signature())),
}


def talk(pair: Pair) -> None:
    """Do what an application does as soon as it may."""
    if pair.client.can_subscribe:
        pair.client.subscribe(Sub(1, "private channel"))
    if pair.client.is_open:
        pair.client.send_message(1, 5, codec.encode_publication(Publication(b"private body", 1)))
    pair.pump()


@pytest.mark.parametrize("attack", list(ATTACKS))
@pytest.mark.parametrize("pinned", [True, False], ids=["rule", "control"])
def test_terminator_in_the_handshake(attack: str, pinned: bool) -> None:
    # The node is the terminator's; it has the ticket.
    node = Node(make=ATTACKS[attack]())
    pair = Pair(15, node=node, client=PINNED if pinned else OPEN, start=False)
    plain: list[bytes] = []
    genuine = Opener.open

    def read(own: Opener, data: bytes, flags: int, seq: int) -> bytes:
        payload = genuine(own, data, flags, seq)
        plain.append(payload)
        return payload

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Opener, "open", read)
        pair.pump()
        talk(pair)
    sent = [frame[0] for way, frame in pair.tape if way is Way.C2S][-2:]
    if pinned:
        assert not pair.client.is_open and not found(pair.client_events, Opened)
        assert end_code(pair.client_events) == CloseCode.PROTOCOL_ERROR
        assert Warning.SERVER_IDENTITY in [event.code for event in found(pair.client_events, Warned)]
        assert sent == [FrameType.CONFIRM, FrameType.BYE]
        assert not any(b"private" in data or b"1.0" in data for data in plain)
    else:
        assert FrameType.MSG in sent
        assert any(b"private body" in data for data in plain)
        assert found(pair.server_events, Published)


def test_a_pinned_client_speaks_with_the_true_server() -> None:
    pair = Pair(server=ServerRules(signing_keys=(IDENTITY,)), client=PINNED)
    talk(pair)
    pair.rotate()
    assert pair.client.is_open and pair.client.rotations == 1
    assert found(pair.server_events, Published)


def test_a_pinned_client_says_nothing_before_ready() -> None:
    for rules, expected in ((PINNED, False), (OPEN, True)):
        pair = Pair(server=ServerRules(signing_keys=(IDENTITY,)), client=rules, start=False)
        pair.hook = lambda way, frame: () if frame[0] == FrameType.CONFIRM else (frame,)
        pair.pump()
        assert pair.client.can_subscribe is expected


def test_after_the_terminator_used_the_ticket_the_owner_ends_the_session() -> None:
    """It can use the ticket itself: the client's next attempt revokes."""
    pair = Pair(15, server=ServerRules(signing_keys=(IDENTITY,)), client=PINNED, start=False)
    mallory = Pair(16, node=pair.node, session=pair.steal(), start=True)
    assert mallory.client.is_open
    pair.connect()
    pair.pump()
    assert pair.record.revoked and end_code(pair.client_events) == CloseCode.REVOKED
