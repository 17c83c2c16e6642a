"""What a load needs of one side, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

BODY = bytes(range(128))
"""What every message carries."""


class Peer(Protocol):
    """One open connection; checks all that comes."""

    arrived: Callable[[int], None]
    """Told how many answers, deliveries or pongs came."""

    def prepare(self, number: int) -> None:
        """Encode and seal messages, so that only the write is left."""
        ...

    def commit(self) -> None:
        """Send what was prepared with one write."""
        ...

    def hold(self, first: Callable[[], None]) -> None:
        """Keep all that comes, unchecked, until `release`; tell when the first comes."""
        ...

    def release(self) -> None:
        """Check what was kept, and from now on all that comes at once."""
        ...

    def ping(self) -> None:
        """Ask for one answer as small as the protocol allows."""
        ...


class Side(Protocol):
    """Opens connections to one of the two servers."""

    answers_publisher: bool
    """Whether the publisher of a fan-out gets an answer for each message."""

    async def publishers(self, number: int, *, batch: bool) -> list[Peer]:
        """Connections whose messages are answered one by one."""
        ...

    async def fan_out(self, subscribers: int) -> tuple[Peer, list[Peer]]:
        """A publisher, and subscribers that get each of its messages."""
        ...

    async def idle(self, number: int) -> list[Peer]:
        """Connections that do nothing."""
        ...

    def close(self) -> None:
        """Cut all connections."""
        ...


def ignore(_: int) -> None:
    """For arrivals that nobody counts."""
