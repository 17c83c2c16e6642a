"""What is measured, and what each figure has to reach."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

CONNECTIONS = 64
"""Publishers at once."""
SUBSCRIBERS = 1_000
IDLE = 1_000


class Kind(Enum):
    """How a scenario is run."""

    PING = "ping"
    PUBLISH = "publish"
    FAN_OUT = "fan-out"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Args:
        window: Messages that leave at once; the next when all are answered, or delivered everywhere.
        batch: Whether the client puts them into one frame.
        least: Smallest good ratio of server CPU, raw to RWT.
        most: Largest good figure of RWT itself.
    """

    name: str
    title: str
    kind: Kind
    window: int = 1
    batch: bool = True
    least: float | None = None
    most: float | None = None

    @property
    def target(self) -> str:
        """For people."""
        if self.least is not None:
            return f">= {self.least:g} x"
        return f"<= {self.most:g} KiB" if self.most is not None else "-"


SCENARIOS = (
    Scenario("ping", "ping, 1 connection", Kind.PING),
    Scenario("batches", "publish+ACK, window 16, batches", Kind.PUBLISH, 16, least=2.0),
    Scenario("frames", "publish+ACK, window 16, no batches", Kind.PUBLISH, 16, batch=False, least=1.2),
    Scenario("window-1", "publish+ACK, window 1", Kind.PUBLISH, 1, least=0.7),
    Scenario("fan-out-1", f"fan-out to {SUBSCRIBERS:,}, bursts of 1", Kind.FAN_OUT, 1, least=0.7),
    Scenario("fan-out-4", f"fan-out to {SUBSCRIBERS:,}, bursts of 4", Kind.FAN_OUT, 4, least=2.5),
    Scenario("fan-out-16", f"fan-out to {SUBSCRIBERS:,}, bursts of 16", Kind.FAN_OUT, 16, least=6.0),
    Scenario("memory", "idle memory per connection, KiB", Kind.MEMORY, most=20.0),
)
