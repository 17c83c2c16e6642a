"""C5: ticket and token open a session once.

Attacker: replays what opened a session, with and without the secret. With the secret its second proof revokes;
without it (a recorded CONFIRM, the same frames again) nothing changes. The control turns the compare-and-swap
into a plain store.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from rwt_protocol.codes import CloseCode, FrameType
from rwt_protocol.connection import State
from rwt_protocol.events import Opened, RevocationWanted
from rwt_protocol.session import Advance, ClientSession, Held, Proof, SessionRecord, Swap
from tests.pair import Pair, end_code, found, frames_of


def store(record: SessionRecord | None, step: Advance, now: float) -> tuple[Swap, SessionRecord | None]:
    """A store that does not compare."""
    assert record is not None and now >= 0
    return Swap.ADVANCED, replace(record, epoch=step.epoch, token=step.token)


def again(pair: Pair, held: Held) -> Pair:
    """Open the session with one secret once more."""
    return Pair(9, node=pair.node, session=pair.steal(token=held), now=pair.now)


@pytest.mark.parametrize("use", ["ticket", "token"])
def test_second_proof_revokes(use: str) -> None:
    pair = Pair(start=False)
    ticket = pair.session.held[0]
    pair.pump()
    token = pair.session.held[0]
    if use == "token":
        pair.rotate()
    thief = again(pair, ticket if use == "ticket" else token)
    assert found(thief.server_events, RevocationWanted) and pair.record.revoked
    assert not found(thief.client_events, Opened)
    assert end_code(thief.client_events) == CloseCode.REVOKED
    pair.pump()
    assert end_code(pair.client_events) == CloseCode.REVOKED


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_two_handshakes_with_one_ticket_open_one_session(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both HELLOs come while the ticket is live; the compare-and-swap lets one through."""
    if broken:
        monkeypatch.setattr("tests.pair.swap", store)
    pair = Pair(start=False)
    second = Pair(9, node=pair.node, session=pair.steal(), start=False)
    welcomes = []
    for one in (pair, second):
        for frame in one.client.bytes_to_send():
            one.server.receive(frame, one.now)
            one.node.work(one.server, one.now)
        welcomes.append(one.server.bytes_to_send())
    for one, frames in zip((pair, second), welcomes, strict=True):
        for frame in frames:
            one.client.receive(frame, one.now)
        one.pump()
    assert pair.client.state in (State.OPEN, State.CLOSED)
    assert bool(found(second.client_events, Opened)) is broken
    assert (end_code(second.client_events) == CloseCode.SUPERSEDED) is not broken
    assert found(pair.client_events, Opened)


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_retired_token_is_known_for_what_it_is(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:  # every known token counts as live: the compare-and-swap still refuses, but nobody is told
        monkeypatch.setattr(
            "rwt_protocol.session.Proof", lambda picked, secret, epoch, _: Proof(picked, secret, epoch, True)
        )
    pair = Pair()
    held = pair.session.held[0]
    pair.rotate()
    thief = again(pair, held)
    assert not found(thief.client_events, Opened)
    assert pair.record.revoked is not broken


@pytest.mark.parametrize("where", ["new connection", "same connection"])
def test_recorded_frames_without_the_secret_change_nothing(where: str) -> None:
    pair = Pair()
    (hello,) = frames_of(pair.tape, FrameType.HELLO)
    (confirm,) = frames_of(pair.tape, FrameType.CONFIRM)
    before = pair.record
    server = (
        pair.server if where == "same connection" else pair.node.accept(pair.random.randbytes, pair.now, 0)
    )
    for frame in (hello, confirm):
        server.receive(frame, pair.now)
        pair.node.work(server, pair.now)
    assert pair.record == before
    expected = CloseCode.PROTOCOL_ERROR if where == "same connection" else CloseCode.AUTHENTICATION_FAILED
    assert end_code(pair.node.log[server]) == expected


def test_an_expired_ticket_opens_nothing() -> None:
    pair = Pair(start=False)
    pair.now += 31
    pair.pump()
    assert end_code(pair.server_events) == CloseCode.AUTHENTICATION_FAILED
    assert pair.record.epoch == 0


def test_a_guessed_secret_for_a_known_id_is_not_asked_for() -> None:
    pair = Pair()
    stranger = ClientSession(pair.session.sid, bytes(32), pair.session.suites)
    other = Pair(9, node=pair.node, session=stranger, now=pair.now)
    assert end_code(other.server_events) == CloseCode.AUTHENTICATION_FAILED
    assert not pair.record.revoked
