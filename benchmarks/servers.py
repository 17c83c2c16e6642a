"""The two server processes: started, pinned to their core, and ended whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rwt_server.keys import KeyFile

from .measure import CORES, pin

_ROOT = Path(__file__).resolve().parent.parent
_START_LIMIT = 20.0
_STOP_LIMIT = 15.0


class Server(NamedTuple):
    """A server that runs."""

    pid: int
    port: int
    api_key: str


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for the line in which a server tells its port."""
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"serving"' in line and line.endswith("}"):
                return int(json.loads(line)["port"])
        if process.poll() is not None:
            break
        time.sleep(0.02)
    raise RuntimeError(f"a server did not start:\n{log.read_text()[-2_000:]}")


@contextmanager
def _run(
    arguments: list[str], folder: Path, api_key: str = "", profile: Path | None = None
) -> Iterator[Server]:
    profiler = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    log = folder / "server.log"
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *profiler, *arguments], stdout=output, stderr=output, env=environment
        )
        try:
            if CORES is not None:
                pin(process.pid, CORES[0])
            yield Server(process.pid, _port(process, log), api_key)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def rwt(profile: Path | None = None) -> Iterator[Server]:
    """`rwt-server serve` with its defaults; only the number of handshakes at once is raised."""
    with TemporaryDirectory(prefix="rwt-bench-") as name:
        folder = Path(name)
        _, api_key = KeyFile(folder / "keys.json").create("bench", None)
        arguments = ["-m", "rwt_server", "serve", "--port", "0", "--data-dir", name]
        arguments += ["--max-handshakes-per-address", "1024", "--log-level", "info"]
        with _run(arguments, folder, api_key, profile) as server:
            yield server


@contextmanager
def raw() -> Iterator[Server]:
    """The raw aiohttp server."""
    with (
        TemporaryDirectory(prefix="rwt-bench-") as name,
        _run(["-m", "benchmarks.baseline"], Path(name)) as server,
    ):
        yield server
