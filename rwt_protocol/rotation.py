"""When tokens and keys rotate (section 9): public integer arithmetic, no secrets, no clock.

The schedules spread rotations of many sessions evenly over time. They add no secrecy: keys come from fresh
Diffie-Hellman exchanges only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from . import limits
from .codes import Pattern
from .frames import RotationTerms

WEYL: Final = 0x9E3779B97F4A7C15
"""floor(2^64 / phi), odd."""
_TURN: Final = 1 << 64
_WEIGHTS: Final = (1, 2, 3, 5, 8)
_CYCLE: Final = sum(_WEIGHTS)
_PATTERNS: Final = frozenset(pattern.value for pattern in Pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The grid of send times of ROTATE for one session.

    Args:
        interval_ms: Mean lifetime of an epoch, in milliseconds.
        pattern: `fixed`, `fibonacci` or `phi`.
        threshold: Share of a lifetime after which ROTATE is sent, in permille.
        session: The node's session counter; spreads sessions over the interval.
        start_ms: Time of READY on the caller's clock, in milliseconds.
    """

    interval_ms: int = limits.DEFAULT_INTERVAL_MS
    pattern: Pattern = Pattern.FIBONACCI
    threshold: int = limits.DEFAULT_THRESHOLD
    session: int = 0
    start_ms: int = 0

    def times(self) -> Iterator[int]:
        """Yield S_0, S_1, ... in milliseconds on the caller's clock, exactly as section 9 defines them."""
        return self._fibonacci() if self.pattern is Pattern.FIBONACCI else self._linear(0)

    def next_after(self, now_ms: int) -> int:
        """Return the first S_n that is not nearer to `now_ms` than min(5 s, I/4)."""
        earliest = now_ms + min(5_000, self.interval_ms // 4)
        times = (
            self._fibonacci() if self.pattern is Pattern.FIBONACCI else self._linear(self._guess(earliest))
        )
        for due in times:
            if due >= earliest:
                return due
        raise AssertionError("a schedule has no end")

    def _guess(self, earliest: int) -> int:
        # Two steps before the step that holds `earliest`: phases are below one step.
        step = self.threshold * self.interval_ms
        return max(0, (earliest - self.start_ms) * 1000 // step - 2)

    def _linear(self, n: int) -> Iterator[int]:
        step = self.threshold * self.interval_ms
        while True:
            phase = (self.session + n if self.pattern is Pattern.PHI else self.session) * WEYL % _TURN
            yield self.start_ms + step * (n * _TURN + phase) // (1000 * _TURN)
            n += 1

    def _fibonacci(self) -> Iterator[int]:
        scale = self.threshold * len(_WEIGHTS) * self.interval_ms
        phase = _CYCLE * (self.session * WEYL % _TURN)
        total = 0
        while True:
            for weight in _WEIGHTS:
                total += weight
                due = scale * (total * _TURN - phase) // (1000 * _CYCLE * _TURN)
                if due > 0:
                    yield self.start_ms + due


def expiry_ms(rotate_ms: int, threshold: int) -> int:
    """Field 12 of READY and ROTATED: milliseconds until the epoch expires, from those until ROTATE."""
    return max(rotate_ms * 1000 // threshold, rotate_ms + limits.REPLY_MS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationRules:
    """What a server uses by default and what it grants (section 9).

    Args:
        enabled: False: no ROTATE by time; keys still change at every connect, on request and by use.
        interval_ms, pattern, threshold: Used when a client asks for nothing.
        min_interval_ms, max_interval_ms: Bounds for what clients may ask.
    """

    enabled: bool = True
    interval_ms: int = limits.DEFAULT_INTERVAL_MS
    pattern: Pattern = Pattern.FIBONACCI
    threshold: int = limits.DEFAULT_THRESHOLD
    min_interval_ms: int = limits.MIN_INTERVAL_MS
    max_interval_ms: int = limits.MAX_INTERVAL_MS

    def grant(self, asked: RotationTerms | None) -> RotationTerms:
        """Clamp what a client asks for; without a question, or with an unknown pattern, our own terms."""
        if asked is None or asked.pattern not in _PATTERNS:
            return RotationTerms(self.interval_ms, self.pattern.value, self.threshold)
        return RotationTerms(
            min(max(asked.interval_ms, self.min_interval_ms), self.max_interval_ms),
            asked.pattern,
            min(max(asked.threshold, limits.MIN_THRESHOLD), limits.MAX_THRESHOLD),
        )
