"""One asyncio protocol around aiohttp's own: deadlines on the connection itself, and word of back-pressure.

aiohttp has no time limit for half a request header or half a WebSocket frame, and does not say when a
transport's buffer fills or empties. Both are known to the protocol of the transport, so this one stands
between, and passes everything on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

WRITE_HIGH = 131_072
"""Bytes that may wait in a transport before its connection counts as lagging (section 10)."""
WRITE_LOW = 32_768
_SWEEP = 0.5


class Deadlines:
    """Connections that are not authenticated yet, and one timer for all of them.

    Args:
        limit: Seconds from accept, or from the last finished HTTP response, to an authenticated session.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._waiting: dict[Guard, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def start(self, guard: Guard) -> None:
        """Start, or start again, the time of a connection."""
        loop = asyncio.get_running_loop()
        self._waiting[guard] = loop.time() + self.limit
        if self._timer is None:
            self._timer = loop.call_later(_SWEEP, self._sweep)

    def stop(self, guard: Guard) -> None:
        """The connection is authenticated, or gone."""
        self._waiting.pop(guard, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for guard in [guard for guard, due in self._waiting.items() if due <= now]:
            del self._waiting[guard]
            guard.abort()
        self._timer = loop.call_later(_SWEEP, self._sweep) if self._waiting else None


class Guard(asyncio.Protocol):
    """Passes everything to `inner`, the protocol of aiohttp."""

    __slots__ = ("_deadlines", "_inner", "_transport", "data_received", "on_resume", "paused")

    def __init__(self, inner: asyncio.Protocol, deadlines: Deadlines | None = None) -> None:
        self._inner = inner
        self._deadlines = deadlines
        self._transport: asyncio.Transport | None = None
        self.data_received = inner.data_received  # type: ignore[method-assign]
        self.paused = False
        """Whether the transport holds more than it should."""
        self.on_resume: Callable[[], None] | None = None

    @classmethod
    def of(cls, transport: asyncio.Transport) -> Guard:
        """Return the guard of a transport; in an application that someone else serves, put one in place."""
        protocol = transport.get_protocol()
        if isinstance(protocol, Guard):
            return protocol
        guard = cls(cast(asyncio.Protocol, protocol))
        guard._transport = transport
        transport.set_protocol(guard)
        return guard

    def restart(self) -> None:
        """A response was finished: the connection may wait for its next request as long again."""
        if self._deadlines is not None and self._transport is not None:
            self._deadlines.start(self)

    def authenticated(self) -> None:
        """The session is open: no deadline any more."""
        if self._deadlines is not None:
            self._deadlines.stop(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked with isinstance: the transports of uvloop do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self.restart()

    def connection_lost(self, exc: Exception | None) -> None:
        self.authenticated()
        self._transport = None
        self._inner.connection_lost(exc)
        # Whoever waits for room learns from the transport that it is gone.
        if self.on_resume is not None:
            self.on_resume()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self.paused = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self.paused = False
        self._inner.resume_writing()
        if self.on_resume is not None:
            self.on_resume()
