"""C18: a fleet of sessions that connects at one instant rotates evenly spread.

10,000 sessions, rotations counted per 100 ms over several intervals: the busiest slot has at most 1.3 times the
mean. Controls: no phase, and phases from a random generator.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import takewhile

import pytest

from rwt_protocol.codes import Pattern
from rwt_protocol.rotation import Schedule

SESSIONS = 10_000
SLOT_MS = 100
INTERVAL_MS = 60_000
SEED = 18
PATTERNS = pytest.mark.parametrize("pattern", list(Pattern), ids=str)


def step(pattern: Pattern) -> int:
    """One period of the pattern at threshold 800: a grid step, or a cycle of five."""
    return INTERVAL_MS * 8 // 10 * (5 if pattern is Pattern.FIBONACCI else 1)


def peak_to_mean(pattern: Pattern, sessions: list[int], first: int, last: int) -> float:
    """Busiest slot over the mean, from `first` to `last` ms behind the common start."""
    slots: Counter[int] = Counter()
    for session in sessions:
        schedule = Schedule(interval_ms=INTERVAL_MS, pattern=pattern, session=session)
        for due in takewhile(lambda at: at < last, schedule.times()):
            if due >= first:
                slots[(due - first) // SLOT_MS] += 1
    return max(slots.values()) * ((last - first) / SLOT_MS) / sum(slots.values())


@PATTERNS
@pytest.mark.parametrize("start", [0, 5_000_000], ids=["first sessions", "later sessions"])
def test_rule(pattern: Pattern, start: int) -> None:
    sessions = list(range(start, start + SESSIONS))
    length = step(pattern)
    assert peak_to_mean(pattern, sessions, length, 3 * length) <= 1.3


@PATTERNS
def test_control_without_a_phase(pattern: Pattern) -> None:
    length = step(pattern)
    assert peak_to_mean(pattern, [0] * (SESSIONS // 10), length, 3 * length) > 100


@PATTERNS
def test_control_random_phase(pattern: Pattern) -> None:
    chosen = random.Random(SEED)
    sessions = [chosen.getrandbits(48) for _ in range(SESSIONS)]
    length = step(pattern)
    assert peak_to_mean(pattern, sessions, length, 3 * length) > 1.3, f"seed {SEED}"
