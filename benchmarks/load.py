"""The loads: who sends when. The same code drives both sides.

A window of W means W messages in one write, and the next W when all of them are answered. That suits a server
that answers one by one as well: it gets all W with one read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import perf_counter, sleep

from .peers import Peer, ignore
from .wire import Failure

_PATIENCE = 30.0
_NAP = 0.001


class Wave:
    """All peers send W messages each; the next wave leaves when everything is answered.

    A wave is sealed before its first byte is written, and what comes is kept until every answer has begun, and
    opened and checked only then: while the server works, the generator does nothing but write and read, for
    both sides alike. So the generator's own speed does not enter.
    """

    def __init__(self, peers: Sequence[Peer], receivers: Sequence[Peer], each: int) -> None:
        self._peers = peers
        self._receivers = receivers
        self._each = each
        """Arrivals for each message of a wave."""
        self._missing = 0
        self._silent = 0
        self._reached: asyncio.Future[None] | None = None
        self._done: asyncio.Future[None] | None = None
        for peer in {*peers, *receivers}:
            peer.arrived = self._arrived

    def _first(self) -> None:
        self._silent -= 1
        if self._silent == 0 and self._reached is not None:
            self._reached.set_result(None)

    def _arrived(self, number: int) -> None:
        self._missing -= number
        if self._missing == 0 and self._done is not None:
            self._done.set_result(None)
        elif self._missing < 0:
            raise ValueError("more came than was sent")

    async def run(self, window: int, seconds: float, failure: Failure) -> int:
        """Send waves until the time is up; return how many there were."""
        loop = asyncio.get_running_loop()
        until = perf_counter() + seconds
        waves = 0
        while not waves or perf_counter() < until:
            self._done, self._reached = loop.create_future(), loop.create_future()
            self._missing = window * len(self._peers) * self._each
            self._silent = len(self._receivers)
            for peer in self._peers:
                peer.prepare(window)
            for receiver in self._receivers:
                receiver.hold(self._first)
            for peer in self._peers:
                peer.commit()
            await self._sleep_until(self._reached)
            await failure.wait_for(self._reached, _PATIENCE)
            for receiver in self._receivers:
                receiver.release()
            await failure.wait_for(self._done, _PATIENCE)
            waves += 1
        return waves

    @staticmethod
    async def _sleep_until(reached: asyncio.Future[None]) -> None:
        """Sleep as a process, not in the event loop: a server that wakes its peer with every write pays for it,
        and the slower of two servers would pay more often.
        """
        until = perf_counter() + _PATIENCE
        while not reached.done() and perf_counter() < until:
            for _ in range(3):  # what was committed leaves, what came is read
                await asyncio.sleep(0)
            sleep(_NAP)  # noqa: ASYNC251 - that is the point


async def publish(peers: Sequence[Peer], window: int, seconds: float, failure: Failure) -> int:
    """Every connection publishes; return how many messages were sent and answered."""
    waves = await Wave(peers, peers, 1).run(window, seconds, failure)
    for peer in peers:
        peer.arrived = ignore
    return waves * window * len(peers)


class FanOut:
    """Bursts: W messages of one publisher leave when all earlier ones have arrived everywhere."""

    def __init__(self, publisher: Peer, subscribers: Sequence[Peer], *, answered: bool) -> None:
        self._receivers = len(subscribers)
        self._wave = Wave([publisher], subscribers, self._receivers + answered)

    async def run(self, window: int, seconds: float, failure: Failure) -> int:
        """Send bursts; return the number of deliveries."""
        return await self._wave.run(window, seconds, failure) * window * self._receivers


async def ping(peer: Peer, seconds: float, failure: Failure) -> list[float]:
    """One connection asks and waits, again and again; return the seconds of each round trip."""
    loop = asyncio.get_running_loop()
    found: list[float] = []
    done: asyncio.Future[None] = loop.create_future()
    until = perf_counter() + seconds
    sent = 0.0

    def arrived(_: int) -> None:
        nonlocal sent
        now = perf_counter()
        found.append(now - sent)
        if now < until:
            sent = perf_counter()
            peer.ping()
        else:
            done.set_result(None)

    peer.arrived = arrived
    sent = perf_counter()
    peer.ping()
    await failure.wait_for(done, seconds + _PATIENCE)
    peer.arrived = ignore
    return found
