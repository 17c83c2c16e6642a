"""When to come back, and how: delays as a generator, and one pure classifier of endings (section 12)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rwt_protocol.codes import ABNORMAL_CLOSURE, AfterClose, CloseCode, after_close

from .options import Reconnection

RACES = 3
"""4409 in a row that are answered at once."""
BARE_STOPS = 3
"""Stopping codes outside a sealed BYE that are taken for a broken connection."""


def delays(options: Reconnection, random: Callable[[], float]) -> Iterator[float]:
    """Yield the delay before each attempt, in seconds: growing, bounded, spread by jitter."""
    delay = options.base_delay
    while True:
        yield delay * (1 + options.jitter * (2 * random() - 1))
        delay = min(options.max_delay, delay * options.backoff_factor)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection, or an attempt at one, ended.

    Args:
        code: Close code; 1006 where there was none.
        sealed: Whether the code is the server's word under the session's keys.
        by_peer: False: this side ended it.
        retry_after: Seconds the server asked for.
        http_status: Of a refused ticket request or upgrade.
    """

    code: int = ABNORMAL_CLOSURE
    reason: str = ""
    sealed: bool = False
    by_peer: bool = True
    retry_after: float | None = None
    http_status: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do next, and whether to do it at once."""

    action: AfterClose
    at_once: bool = False


class Classifier:
    """Remembers what it must between attempts of one client."""

    def __init__(self) -> None:
        self._races = 0
        self._protocol_errors = 0
        self._bare_stops = 0
        self._session_was_ready = False

    def ready(self) -> None:
        """A session is open."""
        self._races = self._protocol_errors = self._bare_stops = 0
        self._session_was_ready = True

    def new_session(self) -> None:
        """A new ticket was taken."""
        self._session_was_ready = False

    def decide(self, ending: Ending) -> Decision:
        """Classify an ending."""
        status = ending.http_status
        if status is not None:
            retry = status in (408, 429) or status >= 500
            return Decision(AfterClose.RESUME if retry else AfterClose.STOP)
        if ending.code == CloseCode.SUPERSEDED:
            # Coming back at once is what arms theft detection when the thief moved first.
            self._races += 1
            return Decision(AfterClose.RESUME, at_once=self._races <= RACES)
        action = after_close(ending.code, self._protocol_errors)
        if ending.code == CloseCode.PROTOCOL_ERROR:
            self._protocol_errors += 1
        if (
            action is AfterClose.STOP
            and ending.by_peer
            and not ending.sealed
            and self._session_was_ready
            and self._bare_stops < BARE_STOPS
        ):
            # Anyone on the path can send a bare code.
            self._bare_stops += 1
            return Decision(AfterClose.RESUME)
        return Decision(action)
