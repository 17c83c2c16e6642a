"""The table, and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .measure import CORES, Spread, percentile
from .run import Outcome, Plan
from .scenarios import Kind

_HEADS = (
    "scenario",
    "RWT us CPU/msg",
    "raw aiohttp us CPU/msg",
    "ratio",
    "target",
    "",
    "RWT msg/s",
    "raw msg/s",
)


def verdict(outcome: Outcome) -> str:
    """`ok`, `MISS`, or nothing where there is no target."""
    scenario = outcome.scenario
    if scenario.least is not None:
        return "ok" if Spread.of(outcome.ratios).median >= scenario.least else "MISS"
    if scenario.most is not None:
        return "ok" if Spread.of(outcome.rwt).median <= scenario.most else "MISS"
    return ""


def _spread(values: Sequence[float], digits: int) -> str:
    middle, least, most = Spread.of(values)
    return f"{middle:.{digits}f} ({least:.{digits}f}-{most:.{digits}f})"


def _rate(values: Sequence[float]) -> str:
    if not values:
        return "-"
    middle, least, most = Spread.of(values)
    return f"{middle:,.0f} ({least:,.0f}-{most:,.0f})"


def _row(outcome: Outcome) -> tuple[str, ...]:
    scenario = outcome.scenario
    return (
        scenario.title,
        _spread(outcome.rwt, 2),
        _spread(outcome.raw, 2),
        _spread(outcome.ratios, 2),
        scenario.target,
        verdict(outcome),
        _rate(outcome.rwt_rates),
        _rate(outcome.raw_rates),
    )


def _trips(values: Sequence[float]) -> str:
    return f"p50 {percentile(values, 0.5) * 1e6:.0f} us, p99 {percentile(values, 0.99) * 1e6:.0f} us"


def table(outcomes: Sequence[Outcome], plan: Plan) -> str:
    """All outcomes, for people. Ratios are raw to RWT: more is better for RWT."""
    rows = [_HEADS, *map(_row, outcomes)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    lines = [line.rstrip() for line in lines]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for outcome in outcomes:
        if outcome.rwt_trips:
            lines.append(f"ping latency: RWT {_trips(outcome.rwt_trips)}; raw {_trips(outcome.raw_trips)}")
    pinned = "each server on one core, the generator on another" if CORES else "no core is reserved"
    lines.append(
        f"Median (least-most) of {plan.rounds} rounds of {plan.seconds:g} s. Messages of 128 B; RWT encrypts, "
        f"raw aiohttp does not; {pinned}. Ratio: server CPU of raw aiohttp by that of RWT. "
        "msg/s holds the generator's own work and pauses between waves: it is no limit of a server."
    )
    return "\n".join(lines)


def _facts() -> dict[str, Any]:
    packages = ("aiohttp", "uvloop", "cryptography", "cbor2")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in packages},
    }


def as_json(outcomes: Sequence[Outcome], plan: Plan) -> str:
    """All outcomes with the figures of every round, for machines."""
    found: list[dict[str, Any]] = []
    for outcome in outcomes:
        scenario = outcome.scenario
        unit = "KiB_per_connection" if scenario.kind is Kind.MEMORY else "us_cpu_per_message"
        row: dict[str, Any] = {
            "name": scenario.name,
            "title": scenario.title,
            "unit": unit,
            "rwt": outcome.rwt,
            "raw": outcome.raw,
            "ratios": outcome.ratios,
            "ratio": Spread.of(outcome.ratios).median,
            "target": {"ratio_at_least": scenario.least, "rwt_at_most": scenario.most},
            "verdict": verdict(outcome) or None,
            "rwt_messages_per_second": outcome.rwt_rates,
            "raw_messages_per_second": outcome.raw_rates,
        }
        for side, trips in (("rwt", outcome.rwt_trips), ("raw", outcome.raw_trips)):
            if trips:
                shares = {"p50": percentile(trips, 0.5), "p99": percentile(trips, 0.99)}
                row[f"{side}_latency_us"] = {name: value * 1e6 for name, value in shares.items()}
        found.append(row)
    return json.dumps({"plan": plan._asdict(), "facts": _facts(), "scenarios": found}, indent=2) + "\n"
