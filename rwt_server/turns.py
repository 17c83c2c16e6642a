"""Receive what one turn of the event loop brought, as a list.

`ws.receive()` is stepped by hand: one that finishes at once is a message that was already there, one that
yields a future is the end of the turn. Only public interfaces are used.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

MOST = 1_024
"""Messages that one turn may gather."""


@types.coroutine
def _finish(coro: Coroutine[Any, Any, WSMessage], waiting_for: Any) -> Generator[Any, Any, WSMessage]:
    """Await a coroutine that was stepped already and waits for `waiting_for`."""
    while True:
        try:
            try:
                value = yield waiting_for
            except BaseException as exc:
                waiting_for = coro.throw(exc)
            else:
                waiting_for = coro.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


class TurnReader:
    """Reads one WebSocket turn by turn. `cancel` must be called before the WebSocket is closed."""

    __slots__ = ("_step", "_ws")

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self._ws = ws
        self._step: tuple[Coroutine[Any, Any, WSMessage], Any] | None = None

    async def next(self) -> list[WSMessage]:
        """Wait for at least one message and return all that are there; the last may end the connection."""
        receive = self._ws.receive
        step, self._step = self._step, None
        message = await (_finish(*step) if step is not None else receive())
        messages = [message]
        while message.type is WSMsgType.BINARY and len(messages) < MOST:
            coro = receive()
            try:
                waiting_for = coro.send(None)
            except StopIteration as stop:
                message = stop.value
                messages.append(message)
            else:
                self._step = coro, waiting_for
                break
        return messages

    def cancel(self) -> None:
        """Give up a `receive()` that waits. `close()` would leave the queue's waiter set: throw instead."""
        step, self._step = self._step, None
        if step is not None:
            try:
                step[0].throw(asyncio.CancelledError())
            except (asyncio.CancelledError, StopIteration):
                pass
