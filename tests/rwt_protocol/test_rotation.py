"""Rotation times: the formulas of section 9.4 in exact fractions, their bounds, the skip rule, the grant."""

from bisect import bisect_left
from fractions import Fraction
from itertools import accumulate, islice, pairwise
from math import floor, isqrt

import pytest

from rwt_protocol.codes import Pattern
from rwt_protocol.frames import RotationTerms
from rwt_protocol.rotation import WEYL, RotationRules, Schedule, expiry_ms

SESSIONS = (0, 1, 2, 3, 7, 1_000, 999_999, 2**40 + 1)
INTERVALS = (5_000, 60_000, 61_803, 3_600_000)
THRESHOLDS = (500, 800, 950)
GRID = [
    pytest.param(k, interval, threshold, id=f"k={k}-{interval}-{threshold}")
    for k in SESSIONS
    for interval in INTERVALS
    for threshold in THRESHOLDS
]
EVERY = pytest.mark.parametrize("pattern", list(Pattern), ids=str)
PHI = Fraction(10**18 + isqrt(5 * 10**36), 2 * 10**18)


def phase(x: int) -> Fraction:
    """Fraction of a turn: x * W64 mod 2^64, over 2^64."""
    return Fraction(x * 11400714819323198485 % 2**64, 2**64)


def independent(pattern: Pattern, k: int, interval: int, threshold: int, count: int) -> list[int]:
    """The first times of section 9.4, minus t0."""
    thr = Fraction(threshold, 1000)
    if pattern is Pattern.FIXED:
        return [floor(thr * interval * (n + phase(k))) for n in range(count)]
    if pattern is Pattern.PHI:
        return [floor(thr * interval * (n + phase(k + n))) for n in range(count)]
    unit = Fraction(5 * interval, 19)
    weights = [1, 2, 3, 5, 8] * (count // 5 + 2)
    ends = [total * unit - 5 * interval * phase(k) for total in accumulate(weights)]
    return [due for end in ends if (due := floor(thr * end)) > 0][:count]


def times(pattern: Pattern, k: int, interval: int, threshold: int, count: int, start: int = 0) -> list[int]:
    schedule = Schedule(interval_ms=interval, pattern=pattern, threshold=threshold, session=k, start_ms=start)
    return list(islice(schedule.times(), count))


@EVERY
@pytest.mark.parametrize(("k", "interval", "threshold"), GRID)
def test_formula(pattern: Pattern, k: int, interval: int, threshold: int) -> None:
    assert times(pattern, k, interval, threshold, 40) == independent(pattern, k, interval, threshold, 40)


@pytest.mark.parametrize(
    ("pattern", "k", "expected"),
    [
        pytest.param(Pattern.FIXED, 1, [29_665, 77_665, 125_665, 173_665], id="fixed 1"),
        pytest.param(Pattern.PHI, 1, [29_665, 59_331, 136_996, 166_662], id="phi 1"),
        pytest.param(Pattern.FIBONACCI, 1, [91_671, 104_303, 129_566, 167_461], id="fibonacci 1"),
        pytest.param(Pattern.FIXED, 2, [11_331, 59_331], id="fixed 2"),
        pytest.param(Pattern.PHI, 2, [11_331, 88_996], id="phi 2"),
        pytest.param(Pattern.FIBONACCI, 2, [19_133, 82_291], id="fibonacci 2"),
    ],
)
def test_examples_of_the_specification(pattern: Pattern, k: int, expected: list[int]) -> None:
    assert times(pattern, k, 60_000, 800, len(expected)) == expected


@EVERY
def test_start_moves_everything(pattern: Pattern) -> None:
    assert times(pattern, 5, 60_000, 800, 20, start=12_345) == [
        12_345 + due for due in times(pattern, 5, 60_000, 800, 20)
    ]


def test_weyl_is_odd_and_the_floor_of_2_64_over_phi() -> None:
    assert WEYL == (isqrt(5 << 128) - (1 << 64)) // 2 == 0x9E3779B97F4A7C15
    assert WEYL % 2 == 1


def lifetimes(pattern: Pattern, k: int, interval: int, threshold: int, count: int = 200) -> list[Fraction]:
    """Distances divided by the threshold; each floor moves one by less than 1 ms."""
    found = times(pattern, k, interval, threshold, count)
    return [Fraction((later - sooner) * 1000, threshold) for sooner, later in pairwise(found)]


@pytest.mark.parametrize(("k", "interval", "threshold"), GRID)
def test_lifetimes_of_phi_take_two_values_in_the_order_of_the_fibonacci_word(
    k: int, interval: int, threshold: int
) -> None:
    found = lifetimes(Pattern.PHI, k, interval, threshold)
    slack = 2 * Fraction(1000, threshold)
    short, long = interval / PHI, interval * PHI
    word = "".join(
        "L" if abs(life - long) < slack else "S" if abs(life - short) < slack else "?" for life in found
    )
    assert set(word) == {"L", "S"}
    assert "LL" not in word and "SSS" not in word
    assert abs(sum(found, Fraction(0)) / len(found) - interval) < Fraction(interval, 100)


@pytest.mark.parametrize(("k", "interval", "threshold"), GRID)
def test_lifetimes_of_fibonacci(k: int, interval: int, threshold: int) -> None:
    found = lifetimes(Pattern.FIBONACCI, k, interval, threshold)
    slack = 2 * Fraction(1000, threshold)
    unit = Fraction(5 * interval, 19)
    weights: list[int] = [
        min((1, 2, 3, 5, 8), key=lambda weight: abs(life - weight * unit)) for life in found
    ]
    assert all(abs(life - weight * unit) < slack for life, weight in zip(found, weights, strict=True))
    assert unit - slack < min(found) and max(found) < 8 * unit + slack  # 5I/19 and 40I/19
    at = weights.index(1)
    assert weights[at : at + 10] == [1, 2, 3, 5, 8] * 2
    assert abs(sum(found[at : at + 50], Fraction(0)) - 50 * interval) < slack


@pytest.mark.parametrize(("k", "interval", "threshold"), GRID)
def test_lifetimes_of_fixed(k: int, interval: int, threshold: int) -> None:
    slack = 2 * Fraction(1000, threshold)
    assert all(abs(life - interval) < slack for life in lifetimes(Pattern.FIXED, k, interval, threshold))


@EVERY
@pytest.mark.parametrize("interval", [5_000, 7_001, 20_000, 60_000, 3_600_000])
def test_a_time_that_is_too_near_is_skipped(pattern: Pattern, interval: int) -> None:
    nearest = min(5_000, interval // 4)
    start = 1_000_000
    for k in (0, 1, 2, 12_345):
        schedule = Schedule(interval_ms=interval, pattern=pattern, threshold=800, session=k, start_ms=start)
        grid = list(islice(schedule.times(), 120))
        assert grid == sorted(set(grid))
        moments = {
            start,
            start + 1,
            *(due + shift for due in grid[:50] for shift in (-nearest - 1, -nearest)),
        }
        moments |= {due + shift for due in grid[:50] for shift in (1 - nearest, -1, 0, 1)}
        for now in moments:
            expected = grid[bisect_left(grid, now + nearest)]
            assert schedule.next_after(now) == expected, (k, now)


@EVERY
def test_a_distant_time_is_on_the_grid(pattern: Pattern) -> None:
    hours = 4 * 3_600_000
    schedule = Schedule(interval_ms=5_000, pattern=pattern, threshold=500, session=3, start_ms=77)
    due = schedule.next_after(hours)
    grid = independent(pattern, 3, 5_000, 500, hours // 2_400)
    assert due - 77 == grid[bisect_left(grid, hours + 1_250 - 77)]


@EVERY
def test_a_fleet_rotates_evenly(pattern: Pattern) -> None:
    """10,000 sessions that connect in one instant: peak over mean in steps of 100 ms, from the 2nd minute on."""
    counts = dict.fromkeys(range(600, 3_000), 0)
    for k in range(10_000):
        schedule = Schedule(pattern=pattern, session=k)
        for due in schedule.times():
            if due >= 300_000:
                break
            if due >= 60_000:
                counts[due // 100] += 1
    assert max(counts.values()) / (sum(counts.values()) / len(counts)) <= 1.3


@pytest.mark.parametrize(
    ("rotate", "threshold", "expected"),
    [
        pytest.param(48_000, 800, 60_000, id="lifetime"),
        pytest.param(4_000, 800, 14_000, id="10 s more"),
        pytest.param(40_000, 800, 50_000, id="both the same"),
        pytest.param(40_001, 800, 50_001, id="just above"),
        pytest.param(100_000, 950, 110_000, id="10 s more at 950"),
        pytest.param(1_000_000, 950, 1_052_631, id="floor"),
        pytest.param(0, 500, 10_000, id="now"),
    ],
)
def test_expiry(rotate: int, threshold: int, expected: int) -> None:
    assert expiry_ms(rotate, threshold) == expected


OWN = RotationRules()


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        pytest.param(None, (60_000, "fibonacci", 800), id="nothing"),
        pytest.param((30_000, "golden", 700), (60_000, "fibonacci", 800), id="unknown pattern"),
        pytest.param((30_000, "", 700), (60_000, "fibonacci", 800), id="no pattern"),
        pytest.param((30_000, "Phi", 700), (60_000, "fibonacci", 800), id="wrong case"),
        pytest.param((30_000, "phi", 700), (30_000, "phi", 700), id="as asked"),
        pytest.param((5_000, "fixed", 500), (5_000, "fixed", 500), id="lower bounds"),
        pytest.param((4_999, "fixed", 499), (5_000, "fixed", 500), id="below"),
        pytest.param((0, "fixed", 0), (5_000, "fixed", 500), id="zero"),
        pytest.param((3_600_000, "phi", 950), (3_600_000, "phi", 950), id="upper bounds"),
        pytest.param((3_600_001, "phi", 951), (3_600_000, "phi", 950), id="above"),
        pytest.param((2**64 - 1, "fibonacci", 2**64 - 1), (3_600_000, "fibonacci", 950), id="2^64-1"),
    ],
)
def test_grant(asked: tuple[int, str, int] | None, granted: tuple[int, str, int]) -> None:
    assert OWN.grant(RotationTerms(*asked) if asked else None) == granted


def test_grant_of_a_server_with_its_own_terms() -> None:
    rules = RotationRules(
        interval_ms=10_000, pattern=Pattern.PHI, threshold=900, min_interval_ms=8_000, max_interval_ms=20_000
    )
    assert rules.grant(None) == (10_000, "phi", 900)
    assert rules.grant(RotationTerms(1, "fixed", 800)) == (8_000, "fixed", 800)
    assert rules.grant(RotationTerms(10**9, "fixed", 800)) == (20_000, "fixed", 800)
