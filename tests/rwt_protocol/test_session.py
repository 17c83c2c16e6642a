"""Sessions: what a HELLO proves, the compare-and-swap, and the client's tokens (sections 7.3 to 7.6)."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest

from rwt_protocol import limits
from rwt_protocol.codes import CloseCode
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Hello
from rwt_protocol.key_schedule import family_of, token_id
from rwt_protocol.session import (
    Advance,
    ClientSession,
    Held,
    Proof,
    Retired,
    SessionRecord,
    StoreConflict,
    Swap,
    pick_proof,
    swap,
)

SID = bytes(16)
NOW = 1_000.0
DAY = 86_400.0


def token(epoch: int) -> bytes:
    return bytes((epoch % 256, epoch // 256)) * 16


FAMILY = family_of(token(1))
TICKET = SessionRecord(
    sid=SID, user="ada", key="k", token=token(0), suites=(2, 1), expires_at=NOW + 30, ends_at=NOW + DAY
)
RECORD = replace(
    TICKET,
    epoch=9,
    token=token(9),
    suite=2,
    family=FAMILY,
    retired=tuple(Retired(epoch, token(epoch)) for epoch in range(8, 5, -1)),
    expires_at=NOW + 360,
)


def hello(
    offers: Sequence[bytes], *, suite: int = 2, suites: tuple[int, ...] = (2, 1), epoch: int = 0
) -> Hello:
    """A HELLO that offers the ids of these secrets."""
    ids = tuple(token_id(secret) for secret in offers)
    return Hello((2,), suites, suite, bytes(32), SID, ids, 0, epoch)


def refused(record: SessionRecord | None, question: Hello, code: CloseCode) -> RWTProtocolError:
    with pytest.raises(RWTProtocolError) as caught:
        pick_proof(record, question)
    assert caught.value.close_code is code
    return caught.value


# --- pick ------------------------------------------------------------------------------------------------

TOMBSTONE = replace(RECORD, revoked=True)
PICKS = {
    # record, secrets offered, HELLO field 8, secret picked, epoch made, live
    "ticket": (TICKET, [token(0)], 0, token(0), 1, True),
    "current alone": (RECORD, [token(9)], 9, token(9), 10, True),
    "current among others": (RECORD, [token(10), token(9), token(8), FAMILY], 8, token(9), 10, True),
    "current though a retired one is newer in the list": (
        RECORD,
        [token(8), token(9)],
        9,
        token(9),
        10,
        True,
    ),
    "retired": (RECORD, [token(7), FAMILY], 7, token(7), 8, False),
    "newest retired": (RECORD, [token(6), token(7), token(8)], 6, token(8), 9, False),
    "retired though ahead": (RECORD, [token(6), FAMILY], 77, token(6), 7, False),
    "family, behind": (RECORD, [token(3), FAMILY], 3, FAMILY, 4, False),
    "family, same epoch": (RECORD, [token(30), FAMILY], 9, FAMILY, 10, False),
    "family, never ready": (RECORD, [token(1), token(0), FAMILY], 0, FAMILY, 1, False),
    "one of several families": (RECORD, [token(30), family_of(token(2)), FAMILY], 0, FAMILY, 1, False),
    "tombstone, current": (TOMBSTONE, [token(9), FAMILY], 9, token(9), 10, False),
    "tombstone, retired": (TOMBSTONE, [token(7), FAMILY], 7, token(7), 8, False),
    "tombstone, family": (TOMBSTONE, [token(3), FAMILY], 3, FAMILY, 4, False),
    "tombstone, family, ahead": (TOMBSTONE, [token(30), FAMILY], 30, FAMILY, 31, False),
    "tombstone of a ticket": (replace(TICKET, revoked=True), [token(0)], 0, token(0), 1, False),
    "last epoch": (
        replace(RECORD, epoch=2**32 - 2),
        [token(9)],
        2**32 - 2,
        token(9),
        2**32 - 1,
        True,
    ),
}


@pytest.mark.parametrize(
    ("record", "offers", "epoch", "secret", "made", "live"),
    [pytest.param(*row, id=name) for name, row in PICKS.items()],
)
def test_pick(
    record: SessionRecord, offers: list[bytes], epoch: int, secret: bytes, made: int, live: bool
) -> None:
    assert pick_proof(record, hello(offers, epoch=epoch)) == Proof(token_id(secret), secret, made, live)


@pytest.mark.parametrize(
    ("record", "offers", "epoch"),
    [
        pytest.param(None, [token(9)], 9, id="unknown session"),
        pytest.param(RECORD, [token(3)], 3, id="unknown token"),
        pytest.param(RECORD, [token(3), family_of(token(2))], 3, id="unknown family"),
        pytest.param(TICKET, [token(1), FAMILY], 0, id="ticket without family"),
        pytest.param(TOMBSTONE, [token(3)], 3, id="tombstone, unknown token"),
    ],
)
def test_nothing_known(record: SessionRecord | None, offers: list[bytes], epoch: int) -> None:
    error = refused(record, hello(offers, epoch=epoch), CloseCode.AUTHENTICATION_FAILED)
    assert not isinstance(error, StoreConflict)
    assert str(error) == "authentication failed"  # the same for every reason


def test_family_of_a_client_that_is_ahead_is_a_store_conflict() -> None:
    error = refused(RECORD, hello([token(30), FAMILY], epoch=10), CloseCode.AUTHENTICATION_FAILED)
    assert isinstance(error, StoreConflict)


FRESH = replace(TICKET, suites=(3, 2, 1))
FIXED = replace(RECORD, suites=(3, 2, 1), suite=1)


@pytest.mark.parametrize(
    ("record", "suite", "suites", "ok"),
    [
        pytest.param(FRESH, 3, (1, 2, 3), True, id="preferred"),
        pytest.param(FRESH, 2, (1, 2), True, id="best common"),
        pytest.param(FRESH, 1, (1,), True, id="only common"),
        pytest.param(FRESH, 2, (3, 2), False, id="downgrade"),
        pytest.param(FRESH, 1, (1, 2), False, id="downgrade to 1"),
        pytest.param(FRESH, 9, (9,), False, id="unknown suite"),
        pytest.param(FRESH, 9, (9, 2), False, id="unknown suite, known list"),
        pytest.param(FIXED, 1, (1, 2, 3), True, id="resume with the suite of the session"),
        pytest.param(FIXED, 2, (1, 2, 3), False, id="resume with another suite"),
        pytest.param(FIXED, 3, (3,), False, id="resume with a better suite"),
    ],
)
def test_suite(record: SessionRecord, suite: int, suites: tuple[int, ...], ok: bool) -> None:
    question = hello([record.token], suite=suite, suites=suites, epoch=record.epoch)
    if ok:
        assert pick_proof(record, question).secret == record.token
    else:
        refused(record, question, CloseCode.VERSION_OR_SUITE)


@pytest.mark.parametrize(
    ("record", "offers", "epoch"),
    [
        pytest.param(replace(RECORD, epoch=2**32 - 1), [token(9)], 2**32 - 1, id="current"),
        pytest.param(replace(RECORD, retired=(Retired(2**32 - 1, token(5)),)), [token(5)], 0, id="retired"),
        pytest.param(replace(RECORD, epoch=2**32 - 1), [FAMILY], 2**32 - 1, id="family"),
    ],
)
def test_there_is_no_epoch_behind_the_last_one(
    record: SessionRecord, offers: list[bytes], epoch: int
) -> None:
    refused(record, hello(offers, epoch=epoch), CloseCode.SESSION_ENDED)


def test_nothing_changes_by_a_pick() -> None:
    before = repr(RECORD), RECORD.token, RECORD.retired
    pick_proof(RECORD, hello([token(9)]))
    assert before == (repr(RECORD), RECORD.token, RECORD.retired)


# --- swap ------------------------------------------------------------------------------------------------


def step(record: SessionRecord, new: bytes, *, lifetime_ms: int = 60_000) -> Advance:
    return Advance(SID, token_id(record.token), record.epoch + 1, new, 2, lifetime_ms)


def test_first_swap_sets_suite_family_and_retires_the_ticket() -> None:
    outcome, after = swap(TICKET, step(TICKET, token(1)), NOW)
    assert outcome is Swap.ADVANCED
    assert after == replace(
        TICKET,
        epoch=1,
        token=token(1),
        suite=2,
        family=FAMILY,
        retired=(Retired(0, token(0)),),
        expires_at=NOW + 60 + 300,
    )


def test_later_swaps_keep_the_family() -> None:
    outcome, after = swap(RECORD, step(RECORD, token(10), lifetime_ms=14_500), NOW, resume_window_ms=1_500)
    assert outcome is Swap.ADVANCED
    assert after == replace(
        RECORD,
        epoch=10,
        token=token(10),
        retired=(Retired(9, token(9)), *RECORD.retired),
        expires_at=NOW + 16,
    )


def test_retired_tokens_are_kept_newest_first_and_the_ticket_and_family_for_ever() -> None:
    record: SessionRecord | None = TICKET
    for epoch in range(1, 40):
        assert record is not None
        outcome, record = swap(record, step(record, token(epoch)), NOW + epoch)
        assert outcome is Swap.ADVANCED
    assert record is not None
    ticket = Retired(0, TICKET.token)
    assert record.retired == (*(Retired(epoch, token(epoch)) for epoch in range(38, 23, -1)), ticket)
    assert record.family == FAMILY
    assert pick_proof(record, hello([token(24)], epoch=24)).live is False
    refused(record, hello([token(23)], epoch=23), CloseCode.AUTHENTICATION_FAILED)
    assert pick_proof(record, hello([token(23), FAMILY], epoch=23)).picked == token_id(FAMILY)
    # An owner whose first connect a thief overtook knows nothing but the ticket.
    assert pick_proof(record, hello([TICKET.token], epoch=0)).live is False


@pytest.mark.parametrize(
    ("record", "now", "outcome"),
    [
        pytest.param(None, NOW, Swap.GONE, id="unknown"),
        pytest.param(replace(RECORD, revoked=True), NOW, Swap.REVOKED, id="revoked"),
        pytest.param(replace(RECORD, revoked=True), NOW + 2 * DAY, Swap.REVOKED, id="revoked and expired"),
        pytest.param(RECORD, NOW + 360, Swap.ADVANCED, id="at its expiry"),
        pytest.param(RECORD, NOW + 360.001, Swap.GONE, id="expired"),
        pytest.param(replace(RECORD, expires_at=NOW + 2 * DAY), NOW + DAY + 1, Swap.GONE, id="24 h end"),
        pytest.param(replace(RECORD, token=token(10)), NOW, Swap.LOST, id="another token"),
        pytest.param(
            replace(RECORD, token=token(10), epoch=9), NOW, Swap.LOST, id="another token, same epoch"
        ),
        pytest.param(TICKET, NOW, Swap.LOST, id="rolled back to the ticket"),
    ],
)
def test_swap_outcomes(record: SessionRecord | None, now: float, outcome: Swap) -> None:
    found, after = swap(record, step(RECORD, token(99)), now)
    assert found is outcome
    if outcome is not Swap.ADVANCED:
        assert after == record


@pytest.mark.parametrize(
    ("late", "outcome"),
    [(30.0, Swap.ADVANCED), (40.0, Swap.ADVANCED), (40.001, Swap.GONE)],
    ids=["in time", "handshake outlives the ticket", "too late"],
)
def test_a_ticket_is_judged_when_hello_arrives(late: float, outcome: Swap) -> None:
    assert swap(TICKET, step(TICKET, token(1)), NOW + late)[0] is outcome


def test_the_grace_of_a_ticket_ends_with_the_session() -> None:
    record = replace(TICKET, ends_at=NOW + 30)
    assert swap(record, step(record, token(1)), NOW + 31)[0] is Swap.GONE


def test_only_a_ticket_has_grace() -> None:
    assert swap(RECORD, step(RECORD, token(10)), NOW + 365)[0] is Swap.GONE


def test_a_swap_that_was_made_already_has_succeeded() -> None:
    once = step(RECORD, token(10))
    outcome, after = swap(RECORD, once, NOW)
    assert outcome is Swap.ADVANCED and after is not None
    assert swap(after, once, NOW + 1) == (Swap.ADVANCED, after)


def test_one_of_two_racing_swaps_wins() -> None:
    first, second = step(RECORD, token(10)), step(RECORD, token(11))
    _, after = swap(RECORD, first, NOW)
    assert swap(after, second, NOW) == (Swap.LOST, after)


def test_secrets_do_not_print() -> None:
    for value in (
        RECORD,
        step(RECORD, token(10)),
        Held(1, token(1), FAMILY),
        ClientSession(SID, token(0), (2,)),
    ):
        for secret in (token(9), token(10), token(1), token(0), FAMILY, token(8)):
            assert repr(secret) not in repr(value) and secret.hex() not in repr(value)


# --- client ----------------------------------------------------------------------------------------------


def ids(session: ClientSession) -> list[bytes]:
    return list(session.offers())


def test_a_ticket_offers_one_id() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    assert session.offers() == {token_id(token(0)): Held(0, token(0), None)}
    assert (session.suite, session.ready_epoch, session.spent) == (None, 0, False)


def test_every_unfinished_attempt_on_a_ticket_adds_a_token_and_a_family() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    ticket = session.held[0]
    for attempt in range(1, limits.MAX_UNFINISHED + 1):
        assert not session.spent
        new = session.hold(1, token(attempt), ticket)
        assert new == Held(1, token(attempt), family_of(token(attempt)))
    assert session.spent
    newest = range(limits.MAX_UNFINISHED, 0, -1)
    assert ids(session) == [
        *(token_id(token(attempt)) for attempt in (*newest, 0)),
        *(token_id(family_of(token(attempt))) for attempt in newest),
    ]
    assert len(ids(session)) <= limits.MAX_OFFERED_IDS


def test_a_family_is_inherited_and_offered_once() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    session.settle(session.hold(1, token(1), session.held[0]))
    parent = session.held[0]
    for epoch in (2, 3):
        parent = session.hold(epoch, token(epoch), parent)
        assert parent.family == FAMILY
    assert ids(session) == [token_id(secret) for secret in (token(3), token(2), token(1), FAMILY)]
    assert session.offers()[token_id(FAMILY)] == FAMILY


def test_settle_erases_all_other_tokens() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    for attempt in (1, 2, 3):
        session.hold(1, token(attempt), session.held[-1])
    kept = session.held[1]
    session.settle(kept)
    assert session.held == [kept]
    assert (session.ready_epoch, session.spent) == (1, False)
    assert ids(session) == [token_id(token(2)), token_id(family_of(token(2)))]


def test_attempts_are_counted_since_the_last_ready_only() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    for _ in range(limits.MAX_UNFINISHED - 1):
        session.hold(1, Random(len(session.held)).randbytes(32), session.held[-1])
    session.settle(session.held[0])
    for epoch in range(2, 2 + limits.MAX_UNFINISHED):
        session.hold(epoch, token(epoch), session.held[0])
    assert not session.spent  # after a READY only the number of tokens counts


def test_too_many_tokens_need_a_new_ticket() -> None:
    session = ClientSession(SID, token(0), (2, 1))
    session.settle(session.hold(1, token(1), session.held[0]))
    for epoch in range(2, limits.MAX_CANDIDATES):
        session.hold(epoch, token(epoch), session.held[0])
    assert len(session.held) == limits.MAX_CANDIDATES - 1 and not session.spent
    for epoch in (100, 101):
        session.hold(epoch, token(epoch), session.held[0])
    assert len(session.held) == limits.MAX_CANDIDATES + 1 and session.spent


def test_the_current_token_is_always_offered() -> None:
    """Whatever is lost on the way, the server's token is among those the client offers (section 7.6)."""
    for seed in range(200):
        random = Random(seed)
        session = ClientSession(SID, random.randbytes(32), (2, 1))
        record: SessionRecord | None = replace(TICKET, token=session.held[0].token)
        late: list[Advance] = []
        for turn in range(60):
            assert record is not None
            if session.spent:
                break
            if late and random.random() < 0.2:  # an old proof arrives after all
                _, record = swap(record, late.pop(random.randrange(len(late))), NOW)
                continue
            question = replace(hello([]), token_ids=tuple(ids(session)), epoch=session.ready_epoch)
            proof = pick_proof(record, question)
            assert proof.live, f"seed {seed}, turn {turn}: a false alarm"
            parent = session.offers()[proof.picked]
            assert isinstance(parent, Held)
            new = session.hold(proof.epoch, random.randbytes(32), parent)
            advance = Advance(SID, proof.picked, proof.epoch, new.token, 2, 60_000)
            fate = random.random()
            if fate < 0.3:
                late.append(advance)
            elif fate < 0.9:
                outcome, record = swap(record, advance, NOW)
                assert outcome is Swap.ADVANCED, f"seed {seed}, turn {turn}"
                if fate < 0.6:
                    session.settle(new)
