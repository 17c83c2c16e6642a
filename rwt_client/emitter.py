"""Calls the handlers of events; one that fails becomes an `error` event and stops nothing."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from typing import Any

from .subscriptions import Handler, Subscriptions

log = logging.getLogger("rwt_client")


class Emitter:
    """Events of one client."""

    def __init__(self) -> None:
        self.subscriptions = Subscriptions()
        self._tasks: set[asyncio.Task[None]] = set()

    def emit(self, event: str, *args: Any) -> None:
        """Call handlers now; what async ones leave to await runs in a task of its own."""
        if event == "error" and not self.subscriptions.has("error"):
            log.error("%s", args[0], exc_info=args[0])
        for handler in self._matching(event, args[0]):
            try:
                result = handler(*args)
            except Exception as exc:
                self._failed(event, exc)
            else:
                if inspect.iscoroutine(result):
                    self._background(event, result)

    async def call(self, event: str, *args: Any) -> None:
        """Call handlers one after another and wait for each."""
        for handler in self._matching(event, args[0]):
            try:
                result = handler(*args)
                if inspect.isawaitable(result):
                    await result
            except Exception as exc:
                self._failed(event, exc)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                self._failed(event, RuntimeError(f"a handler of {event} was cancelled from inside"))

    async def stop(self) -> None:
        """Cancel what handlers left to await."""
        doomed = self._tasks - {asyncio.current_task()}  # a handler may be the one who disconnects
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)

    def _matching(self, event: str, first: Any) -> list[Handler]:
        try:
            return self.subscriptions.matching(event, first)
        except Exception as exc:
            self._failed(event, exc)
            return []

    def _background(self, event: str, coroutine: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await coroutine
            except Exception as exc:
                self._failed(event, exc)

        task = asyncio.get_running_loop().create_task(run(), name=f"rwt-handler {event}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, event: str, exc: Exception) -> None:
        if event == "error":
            log.error("a handler of the error event failed", exc_info=exc)
        else:
            self.emit("error", exc)
