"""Runs scenarios in rounds that alternate between the two servers, so that drift hits both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from . import load, servers
from .measure import Sample, cpu_seconds, settled_memory
from .peers import Peer, Side
from .raw_load import RawSide
from .rwt_load import RwtSide
from .scenarios import CONNECTIONS, IDLE, SUBSCRIBERS, Kind, Scenario
from .servers import Server
from .wire import Failure

_WARM_UP = 0.3
_FIRST_IDLE = 100
"""Connections that are open before memory is looked at: they pay for what all share."""


class Plan(NamedTuple):
    """How much is measured."""

    rounds: int
    seconds: float
    memory_rounds: int


FULL = Plan(rounds=5, seconds=0.8, memory_rounds=2)
QUICK = Plan(rounds=2, seconds=0.4, memory_rounds=1)


@dataclass
class Outcome:
    """What one scenario measured, round by round."""

    scenario: Scenario
    rwt: list[float] = field(default_factory=list)
    """Microseconds of server CPU per message, or KiB per connection."""
    raw: list[float] = field(default_factory=list)
    rwt_rates: list[float] = field(default_factory=list)
    """Messages per second."""
    raw_rates: list[float] = field(default_factory=list)
    rwt_trips: list[float] = field(default_factory=list)
    """Seconds of each round trip; ping only."""
    raw_trips: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Raw to RWT, round by round."""
        return [raw / rwt for rwt, raw in zip(self.rwt, self.raw, strict=True)]


class Bench:
    """One server with its generator's connections."""

    def __init__(self, server: Server, side: Side, failure: Failure) -> None:
        self.trips: list[float] = []
        self._pid = server.pid
        self._side = side
        self._failure = failure
        self._peers: list[Peer] = []
        self._fan: load.FanOut | None = None
        self._opened: tuple[Kind, bool] | None = None

    async def open(self, scenario: Scenario) -> None:
        """Open the connections of a scenario; those of a fan-out serve the next one too."""
        wanted = scenario.kind, scenario.batch
        if wanted == self._opened:
            return
        self.close()
        if scenario.kind is Kind.FAN_OUT:
            publisher, subscribers = await self._side.fan_out(SUBSCRIBERS)
            self._peers = [publisher, *subscribers]
            self._fan = load.FanOut(publisher, subscribers, answered=self._side.answers_publisher)
        else:
            number = 1 if scenario.kind is Kind.PING else CONNECTIONS
            self._peers = await self._side.publishers(number, batch=scenario.batch)
        self._opened = wanted

    async def measure(self, scenario: Scenario, seconds: float) -> Sample:
        """Run one interval; it begins and ends with nothing under way."""
        cpu, start = cpu_seconds(self._pid), perf_counter()
        messages = await self._work(scenario, seconds)
        wall = perf_counter() - start
        return Sample(messages, cpu_seconds(self._pid) - cpu, wall)

    async def _work(self, scenario: Scenario, seconds: float) -> int:
        if self._fan is not None:
            return await self._fan.run(scenario.window, seconds, self._failure)
        if scenario.kind is Kind.PING:
            self.trips = await load.ping(self._peers[0], seconds, self._failure)
            return len(self.trips)
        return await load.publish(self._peers, scenario.window, seconds, self._failure)

    async def memory_per_connection(self) -> float:
        """KiB by which the server grows with each idle connection."""
        await self._side.idle(_FIRST_IDLE)
        before = await settled_memory(self._pid)
        await self._side.idle(IDLE)
        return (await settled_memory(self._pid) - before) / IDLE / 1024

    def close(self) -> None:
        """Cut all connections, so that the server has nothing to wait for."""
        self._side.close()
        self._peers = []
        self._fan = self._opened = None


@asynccontextmanager
async def rwt_bench(profile: Path | None = None) -> AsyncIterator[Bench]:
    """An RWT server and its generator."""
    with servers.rwt(profile) as server:
        failure = Failure()
        bench = Bench(server, RwtSide(failure, server.port, server.api_key), failure)
        try:
            yield bench
        finally:
            bench.close()
            await asyncio.sleep(0)


@asynccontextmanager
async def raw_bench() -> AsyncIterator[Bench]:
    """A raw aiohttp server and its generator."""
    with servers.raw() as server:
        failure = Failure()
        bench = Bench(server, RawSide(failure, server.port), failure)
        try:
            yield bench
        finally:
            bench.close()
            await asyncio.sleep(0)


async def _rounds(scenario: Scenario, plan: Plan, rwt: Bench, raw: Bench) -> Outcome:
    outcome = Outcome(scenario)
    for bench in (rwt, raw):
        await bench.open(scenario)
        await bench.measure(scenario, _WARM_UP)
    for number in range(plan.rounds):
        # The order changes from round to round as well.
        for bench in (rwt, raw) if number % 2 == 0 else (raw, rwt):
            sample = await bench.measure(scenario, plan.seconds)
            if bench is rwt:
                outcome.rwt.append(sample.micros)
                outcome.rwt_rates.append(sample.rate)
                outcome.rwt_trips += bench.trips
            else:
                outcome.raw.append(sample.micros)
                outcome.raw_rates.append(sample.rate)
                outcome.raw_trips += bench.trips
    for bench in (rwt, raw):
        bench.trips = []
    return outcome


async def _memory(scenario: Scenario, plan: Plan) -> Outcome:
    outcome = Outcome(scenario)
    for _ in range(plan.memory_rounds):
        async with rwt_bench() as rwt:
            outcome.rwt.append(await rwt.memory_per_connection())
        async with raw_bench() as raw:
            outcome.raw.append(await raw.memory_per_connection())
    return outcome


async def run(scenarios: Sequence[Scenario], plan: Plan, progress: Callable[[str], None]) -> list[Outcome]:
    """Run scenarios and return what they measured."""
    outcomes: list[Outcome] = []
    loads = [scenario for scenario in scenarios if scenario.kind is not Kind.MEMORY]
    if loads:
        async with rwt_bench() as rwt, raw_bench() as raw:
            for scenario in loads:
                progress(scenario.title)
                outcomes.append(await _rounds(scenario, plan, rwt, raw))
    for scenario in scenarios:
        if scenario.kind is Kind.MEMORY:
            progress(scenario.title)
            outcomes.append(await _memory(scenario, plan))
    return outcomes


async def profile(scenario: Scenario, file: Path, seconds: float) -> None:
    """Run the RWT server of one scenario under cProfile; the statistics are in `file` afterwards."""
    async with rwt_bench(file) as rwt:
        if scenario.kind is Kind.MEMORY:
            await rwt.memory_per_connection()
        else:
            await rwt.open(scenario)
            await rwt.measure(scenario, seconds)
