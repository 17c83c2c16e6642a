"""Command line: `python -m benchmarks [--quick] [--only NAME] [--json FILE] [--check] [--profile NAME]`."""

from __future__ import annotations

import asyncio
import pstats
import resource
import signal
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import uvloop

from . import report, run
from .measure import CORES, pin
from .scenarios import SCENARIOS

_PROFILE_SECONDS = 5.0
_PROFILE_ROWS = 30
_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
_NAMES = click.Choice(list(_BY_NAME))


def _stop(number: int, _: object) -> None:
    # An ordinary exit, so that the servers are ended.
    sys.exit(128 + number)


def _prepare() -> None:
    signal.signal(signal.SIGTERM, _stop)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if CORES is not None:
        pin(0, CORES[1])


def _progress(title: str) -> None:
    click.echo(f"running: {title}", err=True)


def _profile(name: str) -> None:
    with (
        TemporaryDirectory(prefix="rwt-bench-") as folder,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as main,
    ):
        file = Path(folder) / "profile"
        main.run(run.profile(_BY_NAME[name], file, _PROFILE_SECONDS))
        pstats.Stats(str(file)).strip_dirs().sort_stats("tottime").print_stats(_PROFILE_ROWS)


@click.command(help="Measure RWT against a raw aiohttp server that does the same work in clear text.")
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds.")
@click.option("--only", type=_NAMES, multiple=True, help="Only this scenario; repeat.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a target is missed.")
@click.option(
    "--profile", "profile_name", type=_NAMES, help="Profile the RWT server of one scenario instead."
)
def main(
    quick: bool, only: tuple[str, ...], json_file: Path | None, check: bool, profile_name: str | None
) -> None:
    _prepare()
    if profile_name is not None:
        _profile(profile_name)
        return
    scenarios = [scenario for scenario in SCENARIOS if not only or scenario.name in only]
    plan = run.QUICK if quick else run.FULL
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcomes = runner.run(run.run(scenarios, plan, _progress))
    click.echo(report.table(outcomes, plan))
    if json_file is not None:
        json_file.write_text(report.as_json(outcomes, plan))
    if check and any(report.verdict(outcome) == "MISS" for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
