"""One connection of a client: a reader, a writer, and time, between a socket and its `ClientConnection`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from rwt_protocol import ClientConnection, ClientRules, ClientSession, State
from rwt_protocol.codes import ABNORMAL_CLOSURE
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import Event, Terminated
from rwt_protocol.suites import RandomBytes

from .reconnect import Ending
from .transport import Socket

_CLOSE_TIMEOUT = 3.0
"""Seconds for the last word, and again for the closing handshake."""


class Link:
    """Runs one connection to its end.

    Args:
        socket: Open, nothing sent yet.
        on_event: Called for every event but `Terminated`, in order.
        fill: Called when the writer is idle: seals waiting messages into the connection.
    """

    def __init__(
        self,
        socket: Socket,
        session: ClientSession,
        rules: ClientRules,
        random_bytes: RandomBytes,
        on_event: Callable[[Event], None],
        fill: Callable[[], None],
    ) -> None:
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self.conn = ClientConnection(session, rules, random_bytes, self._loop.time())
        self._on_event = on_event
        self._fill = fill
        self._work = asyncio.Event()
        self._work.set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._over: Terminated | None = None

    def wake(self) -> None:
        """There is something to write."""
        self._work.set()

    def now(self) -> float:
        return self._loop.time()

    def ping(self) -> None:
        """Measure a round trip; its end is an event."""
        self.conn.ping(self.now())
        self._drain()

    def close(self, code: int, reason: str) -> None:
        """Say goodbye; `run` returns when it is said."""
        self.conn.close(code, self.now(), reason=reason)
        self._drain()

    async def run(self) -> Ending:
        """Read and write until the connection is over."""
        reader = self._loop.create_task(self._read(), name="rwt-reader")
        writer = self._loop.create_task(self._write(), name="rwt-writer")
        both = (reader, writer)
        try:
            self._arm()
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._over is not None:
                # The last word is worth a moment.
                await asyncio.wait((writer,), timeout=_CLOSE_TIMEOUT)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for task in both:
                task.cancel()
            results = await asyncio.gather(*both, return_exceptions=True)
            # Also when cancelled: nothing of the connection stays behind.
            await self._close_socket()
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, ConnectionError):
                raise result
        over = self._over
        if over is None:
            return Ending(code=results[0] if isinstance(results[0], int) else ABNORMAL_CLOSURE)
        return Ending(
            code=int(over.code),
            reason=over.reason,
            sealed=over.sealed,
            by_peer=over.by_peer,
            retry_after=None if over.retry_after_ms is None else over.retry_after_ms / 1000,
        )

    async def _close_socket(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._socket.close(int(self._over.code) if self._over is not None else 1000)
        except (TimeoutError, ConnectionError):
            pass

    async def _read(self) -> int:
        """Read until the connection is over; return the close code of the WebSocket."""
        conn, receive = self.conn, self._socket.receive
        while conn.state is not State.CLOSED:
            message = await receive()
            if isinstance(message, bytes):
                conn.receive(message, self.now())
            elif isinstance(message, str):
                conn.receive_text(self.now())
            else:
                return message
            self._drain()
        return ABNORMAL_CLOSURE

    async def _write(self) -> None:
        conn, send = self.conn, self._socket.send
        while True:
            frames = conn.bytes_to_send()
            if not frames and conn.is_open:
                self._fill()
                frames = conn.bytes_to_send()
            if frames:
                for frame in frames:
                    await send(frame)
            elif conn.state is State.CLOSED:
                return
            else:
                self._work.clear()
                await self._work.wait()

    def _drain(self) -> None:
        """Tell what happened, and write what came of it."""
        while events := self.conn.events():
            for event in events:
                if isinstance(event, Terminated):
                    self._over = event
                    continue
                try:
                    self._on_event(event)
                except RWTProtocolError as exc:
                    self.conn.reject(exc, self.now())
        self._work.set()
        self._arm()

    def _arm(self) -> None:
        due = self.conn.next_timer
        if due != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self._loop.call_at(due, self._on_timer) if due < inf else None

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = inf
        self.conn.handle_timer(self.now())
        self._drain()
