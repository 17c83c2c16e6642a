"""CPU seconds and memory of a process, cores, and what many rounds say together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil

_POLL = 0.2
_STILL = 4
_STILL_BYTES = 32_768
_SETTLE_LIMIT = 10.0


def _cores() -> tuple[int, int] | None:
    if not hasattr(os, "sched_getaffinity"):
        return None
    found = sorted(os.sched_getaffinity(0))
    return (found[0], found[1]) if len(found) > 1 else None


CORES = _cores()
"""Core of the servers and core of the generator; None where they cannot be had."""


def pin(pid: int, core: int) -> None:
    """Keep a process on one core; 0 is this one."""
    os.sched_setaffinity(pid, {core})


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads; to the nanosecond where the kernel tells."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except FileNotFoundError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


async def settled_memory(pid: int) -> int:
    """Resident bytes, once they have stopped changing."""
    process = psutil.Process(pid)
    deadline = asyncio.get_running_loop().time() + _SETTLE_LIMIT
    last, still = process.memory_info().rss, 0
    while still < _STILL and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_POLL)
        now = process.memory_info().rss
        still = still + 1 if abs(now - last) <= _STILL_BYTES else 0
        last = now
    return last


class Sample(NamedTuple):
    """One measured interval of one server."""

    messages: int
    cpu: float
    wall: float

    @property
    def micros(self) -> float:
        """Microseconds of server CPU for each message."""
        return self.cpu / self.messages * 1e6

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.messages / self.wall


class Spread(NamedTuple):
    """Median and extremes over rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        return cls(median(values), min(values), max(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
