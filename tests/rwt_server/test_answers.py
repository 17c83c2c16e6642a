"""Remembered answers of a session (section 10.4): the same again, or forgotten; never another."""

from __future__ import annotations

import random

import pytest

from rwt_protocol.codes import ErrorCode
from rwt_protocol.limits import WINDOW
from rwt_server.answers import Answer, Answers

X, Y, T = b"place x", b"place y", b"time"


def test_nothing_is_known_at_first() -> None:
    answers = Answers()
    assert answers.highest == 0
    assert [answers.find(mid) for mid in (0, 1, 2**60)] == [None, None, None]


def test_runs_and_refusals_are_found_by_mid() -> None:
    answers = Answers()
    answers.stored(1, 3, X, 10, T)
    answers.refused(4, ErrorCode.NOT_OPEN)
    answers.stored(7, 1, Y, 1, T)
    assert answers.highest == 7
    assert [answers.find(mid) for mid in range(9)] == [
        None,
        Answer(1, 1, X, 10, T),
        Answer(2, 1, X, 11, T),
        Answer(3, 1, X, 12, T),
        Answer(4, 1, b"", 0, b"", ErrorCode.NOT_OPEN),
        None,
        None,
        Answer(7, 1, Y, 1, T),
        None,
    ]


@pytest.mark.parametrize(
    ("place", "offset", "stored"),
    [
        pytest.param(X, 3, T, id="goes on"),
        pytest.param(Y, 3, T, id="another place"),
        pytest.param(X, 9, T, id="another offset"),
        pytest.param(X, 3, b"later", id="another time"),
    ],
)
def test_a_run_that_follows(place: bytes, offset: int, stored: bytes) -> None:
    answers = Answers()
    answers.stored(1, 2, X, 1, T)
    answers.stored(3, 2, place, offset, stored)
    assert answers.find(2) == Answer(2, 1, X, 2, T)
    assert answers.find(4) == Answer(4, 1, place, offset + 1, stored)


@pytest.mark.parametrize("seed", range(5))
def test_the_newest_window_is_always_known_and_memory_is_bounded(seed: int) -> None:
    dice = random.Random(seed)
    answers, truth, mid, offset = Answers(), dict[int, Answer](), 0, 0
    for _ in range(3_000):
        mid += dice.choice((1, 1, 1, 5))
        if dice.random() < 0.2:
            answers.refused(mid, ErrorCode.NOT_AUTHORISED)
            truth[mid] = Answer(mid, 1, b"", 0, b"", ErrorCode.NOT_AUTHORISED)
            continue
        number, place = dice.randint(1, 20), dice.choice((X, Y))
        answers.stored(mid, number, place, offset + 1, T)
        truth |= {mid + n: Answer(mid + n, 1, place, offset + 1 + n, T) for n in range(number)}
        mid, offset = mid + number - 1, offset + number
    assert answers.highest == mid, seed
    newest = sorted(truth)[-WINDOW:]
    assert all(answers.find(known) == truth[known] for known in newest), seed
    for known in range(mid + 2):
        assert answers.find(known) in (None, truth.get(known)), (seed, known)
    kept = sum(answers.find(known) is not None for known in truth)
    assert kept <= 6 * WINDOW and answers.find(1) is None, (seed, kept)
