"""C11: versions and suites cannot be lowered.

Attacker: edits the answer of the control plane (the list of suites) or HELLO. Controls: a server that takes any
suite it knows, and a transcript that leaves HELLO out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rwt_protocol import codec, key_schedule
from rwt_protocol.client import ClientRules
from rwt_protocol.codes import CloseCode, FrameType, Suite, Warning
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import Opened, Warned
from rwt_protocol.server import ServerConnection
from rwt_protocol.session import ClientSession, SessionRecord
from rwt_protocol.suites import generate
from tests.pair import Pair, altering, end_code, found

RULES = pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])


def any_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server forgets the order of the list it sent."""
    genuine = ServerConnection.session_found

    def found_any(
        self: ServerConnection, record: SessionRecord | None, now: float, ends_in: float = 0.0
    ) -> None:
        genuine(self, record and replace(record, suites=record.suites[::-1]), now, ends_in)

    monkeypatch.setattr(ServerConnection, "session_found", found_any)


@RULES
@pytest.mark.parametrize(
    ("true", "edited"), [((2, 1), (1, 2)), ((2, 1), (1,)), ((3, 1), (1,))], ids=["order", "less", "mlkem"]
)
def test_edited_ticket_answer(
    true: tuple[int, ...], edited: tuple[int, ...], broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        any_suite(monkeypatch)
    pair = Pair(suites=true, start=False)
    pair.session = ClientSession(pair.session.sid, pair.session.held[0].token, edited)
    pair.connect()
    pair.pump()
    if broken:
        assert pair.client.is_open and pair.record.suite == 1
        return
    assert end_code(pair.server_events) == CloseCode.VERSION_OR_SUITE
    assert Warning.DOWNGRADE in [event.code for event in found(pair.server_events, Warned)]
    assert pair.record.epoch == 0 and not pair.record.revoked


def edit(change: Callable[[dict[int, Any]], None]) -> Callable[[bytes], bytes]:
    def edited(frame: bytes) -> bytes:
        body = codec.decode_map(frame[16:], 4096)
        change(body)
        return frame[:16] + codec.encode_map(body)

    return edited


def lower_suite(body: dict[int, Any]) -> None:
    """Take the preferred suite away and put a share of the attacker's in its place."""
    body[2], body[3] = [1], 1
    body[4] = generate(Suite.P256, lambda size: bytes(range(size))).share


EDITS: dict[str, tuple[Callable[[dict[int, Any]], None], int]] = {
    "suite": (lower_suite, 0),
    "list of suites": (lambda body: body.update({2: [2]}), CloseCode.AUTHENTICATION_FAILED),
    "older version": (lambda body: body.update({1: [1]}), CloseCode.VERSION_OR_SUITE),
    "more versions": (lambda body: body.update({1: [2, 1]}), CloseCode.AUTHENTICATION_FAILED),
    "no signatures": (lambda body: body.update({9: [9]}), CloseCode.AUTHENTICATION_FAILED),
    "unknown key": (lambda body: body.update({20: 1}), CloseCode.AUTHENTICATION_FAILED),
}


@RULES
@pytest.mark.parametrize("name", list(EDITS))
def test_edited_hello(name: str, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    change, code = EDITS[name]
    if broken:
        genuine = key_schedule.handshake_transcript
        monkeypatch.setattr(key_schedule, "handshake_transcript", lambda _, welcome: genuine(b"", welcome))
    pair = Pair(start=False)
    pair.hook = altering(FrameType.HELLO, edit(change))
    pair.pump()
    if broken and code == CloseCode.AUTHENTICATION_FAILED:
        assert found(pair.server_events, Opened)
        return
    assert not found(pair.client_events, Opened) and pair.record.epoch == 0
    if code:
        assert end_code(pair.server_events) == code
    else:  # WELCOME answers what this client did not offer
        assert end_code(pair.client_events) in (CloseCode.PROTOCOL_ERROR, CloseCode.VERSION_OR_SUITE)


@pytest.mark.parametrize("field", [1, 3, 4, 5, 6], ids=["version", "suite", "share", "epoch", "picked"])
def test_edited_welcome(field: int) -> None:
    other = generate(Suite.X25519, lambda size: bytes(range(size))).share
    values: dict[int, Any] = {1: 1, 3: 1, 4: other, 5: 2, 6: bytes(8)}
    pair = Pair(start=False)
    pair.hook = altering(FrameType.WELCOME, edit(lambda body: body.update({field: values[field]})))
    pair.pump()
    assert not found(pair.client_events, Opened) and not found(pair.server_events, Opened)
    assert pair.record.epoch == 0


@RULES
def test_suite_of_a_session_is_fixed(broken: bool) -> None:
    pair = Pair(suites=(2, 1))
    if broken:
        pair.node.records[pair.session.sid] = replace(pair.record, suite=None, suites=(1,))
    pair.session.suite = Suite.P256
    pair.reconnect()
    assert pair.client.is_open is broken
    assert end_code(pair.server_events) == (0 if broken else CloseCode.VERSION_OR_SUITE)


def test_a_client_without_a_common_suite_does_not_begin() -> None:
    with pytest.raises(RWTProtocolError) as failure:
        Pair(suites=(3,), client=ClientRules(suites=(Suite.P256,)))
    assert failure.value.close_code is CloseCode.VERSION_OR_SUITE
