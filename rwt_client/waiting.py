"""Futures that wait for the same thing."""

from __future__ import annotations

import asyncio


class Waiters:
    """Those who wait for one condition; told together."""

    def __init__(self) -> None:
        self._futures: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self._futures)

    def add(self) -> asyncio.Future[None]:
        """Return a future to await."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        return future

    def tell(self, error: BaseException | None = None) -> None:
        """Wake all, or fail them with `error`."""
        futures, self._futures = self._futures, []
        for future in futures:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
