"""A stream of many MiB through real processes while tokens rotate: same bytes, bounded memory of the server.

`python -m tests.big_pipe --mib 256` runs it whole; a share of it is in the tests.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click
import psutil

from tests.running import environment, server_process

MIB = 1_048_576
CHUNK = 65_536
MAX_GROWTH = 160.0


@dataclass(frozen=True)
class Report:
    """What was measured; sizes in MiB."""

    sent: str
    received: str
    rotations: tuple[int, int]
    """Of publisher and subscriber."""
    before_mib: float
    peak_mib: float
    seconds: float

    @property
    def growth_mib(self) -> float:
        return self.peak_mib - self.before_mib


def _rotations(stream: IO[bytes], found: list[int]) -> None:
    for line in stream:
        try:
            found[0] += json.loads(line)["event"] == "token-rotate"
        except (ValueError, KeyError):
            continue


def _watch(process: psutil.Process, over: threading.Event, peak: list[float]) -> None:
    while not over.wait(0.1):
        peak[0] = max(peak[0], process.memory_info().rss / MIB)


def run(
    mib: int, *, interval: float, retention_mib: int, folder: Path, least: float = 0.0, seed: int = 1
) -> Report:
    """Run it once; the stream is spread over `least` seconds, so that rotations fall into it."""
    size = mib * MIB
    dice = random.Random(seed)
    sent, received = hashlib.sha256(), hashlib.sha256()
    rules = ["--on-full", "big=pace", "--retention", f"big={retention_mib}MiB,,"]
    with server_process(folder, *rules, "--rotation-interval", str(interval)) as server:
        process = psutil.Process(server.process.pid)
        command = [sys.executable, "-m", "rwt_client"]
        subscriber = subprocess.Popen(
            [*command, "sub", "big", "--raw", "--bytes", str(size), "--events"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert subscriber.stdout is not None and subscriber.stderr is not None
        while b"subscribed" not in subscriber.stderr.readline():
            assert subscriber.poll() is None
        before = process.memory_info().rss / MIB
        publisher = subprocess.Popen(
            [*command, "pub", "big", "--raw", "--events"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert publisher.stdin is not None and publisher.stderr is not None
        over, peak, rotations = threading.Event(), [before], ([0], [0])
        began = time.monotonic()

        def read() -> None:
            assert subscriber.stdout is not None
            while data := subscriber.stdout.read(CHUNK):
                received.update(data)

        threads = [
            threading.Thread(target=_watch, args=(process, over, peak)),
            threading.Thread(target=_rotations, args=(publisher.stderr, rotations[0])),
            threading.Thread(target=_rotations, args=(subscriber.stderr, rotations[1])),
            threading.Thread(target=read),
        ]
        for thread in threads:
            thread.start()
        for index in range(size // CHUNK):
            time.sleep(max(0.0, began + least * index * CHUNK / size - time.monotonic()))
            block = dice.randbytes(CHUNK)
            sent.update(block)
            publisher.stdin.write(block)
        publisher.stdin.close()
        publisher.wait(600)
        subscriber.wait(600)
        seconds = time.monotonic() - began
        over.set()
        for thread in threads:
            thread.join()
        for stream in (publisher.stderr, subscriber.stderr, subscriber.stdout):
            stream.close()
    return Report(
        sent.hexdigest(), received.hexdigest(), (rotations[0][0], rotations[1][0]), before, peak[0], seconds
    )


@click.command()
@click.option("--mib", type=click.IntRange(1, 4_096), default=256, show_default=True)
@click.option("--interval", type=float, default=5.0, show_default=True, help="Seconds between rotations.")
@click.option("--retention", type=click.IntRange(1, 4_096), default=32, show_default=True, help="MiB.")
@click.option("--least", type=float, default=20.0, show_default=True, help="Seconds to spread it over.")
def main(mib: int, interval: float, retention: int, least: float) -> None:
    """Stream MIB random MiB; exit status 1 unless the same bytes arrive in bounded memory."""
    with tempfile.TemporaryDirectory(prefix="rwt-big-") as folder:
        report = run(mib, interval=interval, retention_mib=retention, folder=Path(folder), least=least)
    click.echo(f"sha256 sent      {report.sent}")
    click.echo(f"sha256 received  {report.received}")
    click.echo(f"rotations {report.rotations[0]} (publisher), {report.rotations[1]} (subscriber)")
    click.echo(f"{report.seconds:.1f} s")
    click.echo(
        f"server RSS {report.before_mib:.1f} MiB before, {report.peak_mib:.1f} MiB peak, "
        f"growth {report.growth_mib:.1f} MiB"
    )
    if report.sent != report.received or report.growth_mib > MAX_GROWTH:
        sys.exit(1)


if __name__ == "__main__":
    main()
