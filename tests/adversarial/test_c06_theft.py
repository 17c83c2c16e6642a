"""C6: two holders of a session are noticed, whoever comes first: it is revoked, and the owner is told.

Attacker: has a copy of the token. Mechanisms: the list of retired tokens, the one resume after 4409, and the
family, which a thief who resumes more often than the list is long cannot push out.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from rwt_protocol import limits, session
from rwt_protocol.codes import AfterClose, CloseCode, Warning, after_close
from rwt_protocol.events import Warned
from rwt_protocol.server import ServerConnection
from rwt_protocol.session import Advance, SessionRecord
from tests.pair import Pair, end_code, ending, found
from tests.rotation_fuzz import Mutation, run


def told(pair: Pair) -> bool:
    """Whether this client learned, under the session's keys, that a token was used twice."""
    end = ending(pair.client_events)
    warned = Warning.TOKEN_REUSE in [event.code for event in found(pair.client_events, Warned)]
    return warned and end is not None and end.code == CloseCode.REVOKED and end.sealed


def forget_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server keeps neither retired tokens nor the family."""
    genuine = session.swap

    def swap(
        record: SessionRecord | None, step: Advance, now: float
    ) -> tuple[session.Swap, SessionRecord | None]:
        outcome, new = genuine(record, step, now)
        return outcome, None if new is None else replace(new, retired=(), family=None)

    monkeypatch.setattr("tests.pair.swap", swap)


def forget_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server does not know families."""
    genuine = ServerConnection.session_found

    def found_without(
        self: ServerConnection, record: SessionRecord | None, now: float, ends_in: float = 0.0
    ) -> None:
        genuine(self, record and replace(record, family=None), now, ends_in)

    monkeypatch.setattr(ServerConnection, "session_found", found_without)


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_thief_first(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        forget_retired(monkeypatch)
    pair = Pair()
    thief = pair.thief()
    assert thief.client.is_open
    pair.pump()
    code = end_code(pair.client_events)
    assert code == CloseCode.SUPERSEDED and after_close(code) is AfterClose.RESUME
    pair.reconnect()  # the one resume that follows 4409
    assert pair.record.revoked is not broken
    assert told(pair) is not broken
    thief.pump()
    assert told(thief) is not broken
    assert thief.client.is_open is broken


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_owner_first(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        forget_retired(monkeypatch)
    pair = Pair()
    copy = pair.steal()
    pair.rotate()
    thief = Pair(9, node=pair.node, session=copy, now=pair.now)
    assert not thief.client.is_open
    assert pair.record.revoked is not broken
    pair.pump()
    assert told(pair) is not broken
    assert pair.client.is_open is broken


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_thief_who_resumes_seventeen_times_does_not_flush_the_trace(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken:
        forget_family(monkeypatch)
    pair = Pair()
    pair.rotate()
    thief = pair.thief()
    for _ in range(limits.MAX_RETIRED + 1):
        thief.reconnect()
        assert thief.client.is_open
    assert pair.session.held[0].token not in [retired.token for retired in pair.record.retired]
    pair.reconnect()
    assert pair.record.revoked is not broken
    assert told(pair) is not broken


@pytest.mark.parametrize("uses", [1, 2, 16, 17, 40])
def test_any_number_of_uses_is_told(uses: int) -> None:
    pair = Pair()
    thief = pair.thief()
    for _ in range(uses - 1):
        thief.reconnect()
    pair.reconnect()
    assert pair.record.revoked and told(pair)
    assert not pair.client.is_open


def test_owner_who_was_offline_is_told_by_the_tombstone() -> None:
    pair = Pair()
    copy = pair.steal()
    pair.reconnect()
    Pair(9, node=pair.node, session=copy, now=pair.now)
    assert pair.record.revoked
    pair.now += 3 * 3_600
    pair.reconnect()
    assert told(pair)
    assert pair.record.revoked


def test_tombstone_says_nothing_to_who_has_no_token() -> None:
    pair = Pair()
    copy = pair.steal()
    pair.reconnect()
    Pair(9, node=pair.node, session=copy, now=pair.now)
    stranger = pair.steal(token=pair.session.held[0]._replace(token=bytes(32), family=None))
    other = Pair(10, node=pair.node, session=stranger, now=pair.now)
    assert end_code(other.server_events) == CloseCode.AUTHENTICATION_FAILED
    assert not found(other.client_events, Warned)


def test_client_takes_no_ready_when_the_family_was_picked() -> None:
    pair = Pair()
    thief = pair.thief()
    for _ in range(limits.MAX_RETIRED + 1):
        thief.reconnect()
    held = list(pair.session.held)
    pair.reconnect()
    assert pair.session.held == held


class NoFamily(ServerConnection):
    """Does not know families."""

    def session_found(self, record: SessionRecord | None, now: float, ends_in: float = 0.0) -> None:
        super().session_found(record and replace(record, family=None), now, ends_in)


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_thieves_in_the_fuzz(broken: bool) -> None:
    rules = Mutation(server=NoFamily) if broken else Mutation()
    counts = run(60, 6, rules=rules, theft_every=1, stop=broken)
    assert bool(counts.failures) is broken, counts.failures[:3]
    assert broken or counts.thefts > 30
