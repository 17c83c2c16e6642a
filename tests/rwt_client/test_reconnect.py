"""Delays between attempts, and what follows each ending (section 12.1)."""

from __future__ import annotations

from itertools import islice

import pytest

from rwt_client.options import Reconnection
from rwt_client.reconnect import BARE_STOPS, RACES, Classifier, Decision, Ending, delays
from rwt_protocol.codes import ABNORMAL_CLOSURE, AfterClose, CloseCode

RESUME, NEW, STOP = AfterClose.RESUME, AfterClose.NEW_TICKET, AfterClose.STOP


@pytest.mark.parametrize(
    ("options", "chance", "expected"),
    [
        (Reconnection(jitter=0), 0.0, [1.0, 1.5, 2.25, 3.375]),
        (Reconnection(base_delay=4, max_delay=10, backoff_factor=2, jitter=0), 0.9, [4.0, 8.0, 10.0, 10.0]),
        (Reconnection(base_delay=2, backoff_factor=1, jitter=0.5), 0.0, [1.0, 1.0, 1.0, 1.0]),
        (Reconnection(base_delay=2, backoff_factor=1, jitter=0.5), 1.0, [3.0, 3.0, 3.0, 3.0]),
        (Reconnection(base_delay=2, backoff_factor=1, jitter=1), 0.5, [2.0, 2.0, 2.0, 2.0]),
        (Reconnection(base_delay=0, jitter=1), 0.7, [0.0, 0.0, 0.0, 0.0]),
    ],
    ids=["defaults", "bounded", "shortest", "longest", "in the middle", "none"],
)
def test_delays(options: Reconnection, chance: float, expected: list[float]) -> None:
    assert list(islice(delays(options, lambda: chance), 4)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("code", "action"),
    [
        (ABNORMAL_CLOSURE, RESUME),
        (1000, RESUME),
        (1001, RESUME),
        (1011, RESUME),
        (CloseCode.AUTHENTICATION_FAILED, NEW),
        (CloseCode.REVOKED, STOP),
        (CloseCode.VERSION_OR_SUITE, STOP),
        (CloseCode.EXPIRED, RESUME),
        (CloseCode.SESSION_ENDED, NEW),
        (CloseCode.TOO_LARGE, STOP),
        (CloseCode.RATE, RESUME),
        (CloseCode.INTERNAL, RESUME),
        (CloseCode.DRAINING, RESUME),
    ],
    ids=str,
)
def test_a_sealed_close_code_decides(code: int, action: AfterClose) -> None:
    classifier = Classifier()
    classifier.ready()
    assert classifier.decide(Ending(code=code, sealed=True)) == Decision(action)


def test_losing_a_race_is_answered_at_once_three_times() -> None:
    classifier = Classifier()
    superseded = Ending(code=CloseCode.SUPERSEDED, sealed=True)
    at_once = [classifier.decide(superseded) for _ in range(RACES + 2)]
    assert at_once == [Decision(RESUME, at_once=True)] * RACES + [Decision(RESUME)] * 2
    classifier.ready()
    assert classifier.decide(superseded) == Decision(RESUME, at_once=True)


def test_a_protocol_error_is_tried_once_more() -> None:
    classifier = Classifier()
    ending = Ending(code=CloseCode.PROTOCOL_ERROR, sealed=True)
    assert [classifier.decide(ending).action for _ in range(2)] == [RESUME, STOP]
    classifier.ready()
    assert classifier.decide(ending).action is RESUME


@pytest.mark.parametrize("code", [CloseCode.REVOKED, CloseCode.VERSION_OR_SUITE], ids=str)
def test_a_bare_stop_is_a_broken_connection_at_first(code: CloseCode) -> None:
    classifier = Classifier()
    classifier.ready()
    bare = Ending(code=code)
    assert [classifier.decide(bare).action for _ in range(BARE_STOPS + 1)] == [RESUME] * BARE_STOPS + [STOP]
    classifier.ready()
    assert classifier.decide(bare).action is RESUME


@pytest.mark.parametrize(
    ("ready", "ending"),
    [
        (False, Ending(code=CloseCode.REVOKED)),
        (True, Ending(code=CloseCode.REVOKED, sealed=True)),
        (True, Ending(code=CloseCode.REVOKED, by_peer=False)),
    ],
    ids=["never open", "sealed", "by this side"],
)
def test_a_stop_that_is_no_strangers_word(ready: bool, ending: Ending) -> None:
    classifier = Classifier()
    classifier.ready()
    if not ready:
        classifier.new_session()
    assert classifier.decide(ending).action is STOP


@pytest.mark.parametrize(
    ("status", "action"),
    [
        *((status, STOP) for status in (201, 302, 400, 401, 403, 404)),
        *((status, RESUME) for status in (408, 429, 500, 502, 503)),
    ],
    ids=str,
)
def test_http_statuses(status: int, action: AfterClose) -> None:
    assert Classifier().decide(Ending(http_status=status)) == Decision(action)
