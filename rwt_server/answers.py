"""What a session was answered for each message, so that a repeated mid gets the same answer (section 10)."""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple

from rwt_protocol import limits
from rwt_protocol.codes import ErrorCode


class Answer(NamedTuple):
    """One run of answers: stored from `first_offset` on, or refused with `error`."""

    first_mid: int
    number: int
    place: bytes
    first_offset: int
    stored: bytes
    error: ErrorCode | None = None


class Answers:
    """The newest W answers of a session, as runs in the order of their mids."""

    __slots__ = ("_known", "_runs", "highest")

    def __init__(self) -> None:
        self.highest = 0
        """Highest mid seen."""
        self._runs: list[Answer] = []
        self._known = 0

    def stored(self, first_mid: int, number: int, place: bytes, first_offset: int, stored: bytes) -> None:
        """Remember that `number` messages were stored."""
        runs = self._runs
        if runs:
            mid, before, where, offset, at, error = runs[-1]
            if (
                mid + before == first_mid
                and offset + before == first_offset
                and at == stored
                and where == place
                and error is None
                and before < limits.WINDOW
            ):
                runs[-1] = Answer(mid, before + number, place, offset, stored)
                self._grow(first_mid + number - 1, number)
                return
        runs.append(Answer(first_mid, number, place, first_offset, stored))
        self._grow(first_mid + number - 1, number)

    def refused(self, mid: int, error: ErrorCode) -> None:
        """Remember that one message was refused."""
        self._runs.append(Answer(mid, 1, b"", 0, b"", error))
        self._grow(mid, 1)

    def _grow(self, highest: int, number: int) -> None:
        self.highest = highest
        self._known += number
        # Cut in large steps: a list loses its front slowly.
        if self._known > 4 * limits.WINDOW:
            drop = 0
            while self._known - self._runs[drop].number >= limits.WINDOW:
                self._known -= self._runs[drop].number
                drop += 1
            del self._runs[:drop]

    def find(self, mid: int) -> Answer | None:
        """Return the answer of one mid, or None if it is forgotten."""
        index = bisect_right(self._runs, mid, key=_first_mid) - 1
        if index < 0:
            return None
        first, number, place, offset, stored, error = self._runs[index]
        if mid >= first + number:
            return None
        return Answer(mid, 1, place, offset + mid - first, stored, error)


def _first_mid(answer: Answer) -> int:
    return answer.first_mid
