"""`make demo`: a file through a server, while keys rotate and the subscriber's connection is cut once."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from .relay import Relay

SECONDS = 14.0
"""How long the file takes: long enough for some rotations."""
PATIENCE = 10.0
"""How much longer the last piece waits for rotations: longer than the longest step of a schedule of 5 s."""
DEADLINE = 60.0
CHUNK = 65_536
_TOLD = re.compile(rb"rwt: (?:published|received) (\d+) messages")


@dataclass
class Side:
    """What one of the processes has told."""

    epoch: int = 0
    rotations: int = 0
    reconnects: int = 0
    resumes: int = 0
    gaps: int = 0
    size: int = 0
    last: str = ""
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    _told: int = 0

    @property
    def messages(self) -> int:
        """What the client counted; until it tells, as many as the bytes need at least."""
        return max(self._told, -(-self.size // CHUNK))

    def hear(self, line: bytes) -> None:
        """Take one line of a client: an event, or words for people."""
        try:
            event = json.loads(line)
        except ValueError:
            self.last = line.decode(errors="replace").strip()
            if told := _TOLD.match(line):
                self._told = int(told[1])
            return
        match event.get("event"):
            case "connect":
                self.epoch = event["epoch"]
                self.resumes += event["resumed"]
            case "token-rotate":
                self.epoch = event["epoch"]
                self.rotations += 1
            case "reconnect":
                self.reconnects += event["success"]
            case "gap":
                self.gaps += 1

    def take(self, data: bytes) -> None:
        """Count and hash."""
        self.size += len(data)
        self.digest.update(data)


def find_file() -> Path:
    """A real file of some MiB that every installation has: a library of the package `cryptography`."""
    spec = find_spec("cryptography.hazmat.bindings._rust")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package cryptography has no shared library")
    return Path(spec.origin)


@asynccontextmanager
async def _process(
    *arguments: str, environment: dict[str, str], stdin: int = DEVNULL
) -> AsyncIterator[Process]:
    """Run one of our commands; it is ended whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdin=stdin, stdout=PIPE, stderr=PIPE, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            if process.stdin is not None:
                process.stdin.close()
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5):
                        await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def _line_with(name: str, process: Process, text: bytes, side: Side) -> bytes:
    """Read standard error up to a line with `text`."""
    if process.stderr is None:
        raise AssertionError("standard error is a pipe")
    while line := await process.stderr.readline():
        side.hear(line)
        if text in line:
            return line
    raise RuntimeError(f"the {name} ended early: {side.last}")


async def _follow(name: str, process: Process, side: Side, *, may_end: bool = True) -> None:
    """Hear a process to its end, which must be a good one."""
    if process.stderr is None:
        raise AssertionError("standard error is a pipe")
    while line := await process.stderr.readline():
        side.hear(line)
    status = await process.wait()
    if status or not may_end:
        raise RuntimeError(f"the {name} ended with status {status}: {side.last}")


def _bar(done: int, size: int) -> ProgressBar:
    return ProgressBar(total=size, completed=done, width=24, complete_style="cyan", finished_style="green")


class Demo:
    """One run.

    Args:
        spoil: Changes what the subscriber wrote before it is hashed; for the test of this program.
    """

    def __init__(self, spoil: Callable[[bytes], bytes] | None = None) -> None:
        self.publisher = Side()
        self.subscriber = Side()
        self.cuts = 0
        self._file = find_file().read_bytes()
        self._spoil = spoil or (lambda data: data)
        self._console = Console()
        self._alive = sys.stdout.isatty() and self._console.is_terminal and not self._console.is_dumb_terminal
        self._began = monotonic()

    async def run(self) -> int:
        """Run it, print the result, return the exit status."""
        try:
            async with asyncio.timeout(DEADLINE):
                await self._run()
        except TimeoutError:
            print(f"not finished within {DEADLINE:.0f} s: {self._facts()}")
            return 1
        return self._judge()

    async def _run(self) -> None:
        size = len(self._file)
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rwt-demo-"))
            relay = Relay()
            await relay.start()
            stack.push_async_callback(relay.stop)
            base = dict(os.environ)
            start = stack.enter_async_context
            maker = await start(
                _process("rwt_server", "keys", "create", "--data-dir", folder, environment=base)
            )
            key, complaint = (part.decode().strip() for part in await maker.communicate())
            if maker.returncode:
                raise RuntimeError(f"no key could be made: {complaint}")
            server = await start(
                _process(
                    *("rwt_server", "serve", "--port", "0", "--data-dir", folder),
                    *("--on-full", "demo=pace", "--rotation-interval", "5"),
                    *("--url", f"ws://127.0.0.1:{relay.port}/rwt/v2/ws"),
                    environment=base,
                )
            )
            host = Side()
            relay.target = json.loads(await _line_with("server", server, b'"serving"', host))["port"]
            base |= {"RWT_API_KEY": key, "RWT_URL": f"http://127.0.0.1:{relay.target}"}
            # First of the relay's connections, therefore the one that `cut(0)` cuts.
            subscriber = await start(
                _process(
                    *("rwt_client", "sub", "demo", "--raw", "--bytes", str(size), "--events"),
                    environment=base,
                )
            )
            await _line_with("subscriber", subscriber, b"rwt: subscribed to demo", self.subscriber)
            publisher = await start(
                _process(
                    *("rwt_client", "pub", "demo", "--raw", "--events", "--rotation-interval", "5"),
                    environment=base,
                    stdin=PIPE,
                )
            )
            try:
                async with asyncio.TaskGroup() as tasks:
                    beside = (self._show(), _follow("server", server, host, may_end=False))
                    besides = [tasks.create_task(work) for work in beside]
                    work = (
                        _follow("subscriber", subscriber, self.subscriber),
                        _follow("publisher", publisher, self.publisher),
                        self._feed(publisher),
                        self._receive(subscriber, relay),
                    )
                    await asyncio.wait([tasks.create_task(part) for part in work])
                    for task in besides:
                        task.cancel()
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    async def _feed(self, publisher: Process) -> None:
        """Give the file to the publisher in pieces, so that it takes `SECONDS` in all."""
        if publisher.stdin is None:
            raise AssertionError("standard input is a pipe")
        began, data = monotonic(), memoryview(self._file)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # why it ended is told by `_follow`
            for at in range(0, len(data), CHUNK):
                await asyncio.sleep(began + SECONDS * at / len(data) - monotonic())
                if at + CHUNK >= len(data):
                    await self._rotations(began + SECONDS + PATIENCE)
                piece = bytes(data[at : at + CHUNK])
                publisher.stdin.write(piece)
                await publisher.stdin.drain()
                self.publisher.take(piece)
        publisher.stdin.close()

    async def _rotations(self, until: float) -> None:
        """Wait until both clients rotated; when a rotation comes is spread at random."""
        both = (self.publisher, self.subscriber)
        while monotonic() < until and not all(side.rotations for side in both):  # noqa: ASYNC110 - a time limit too
            await asyncio.sleep(0.05)

    async def _receive(self, subscriber: Process, relay: Relay) -> None:
        """Hash what the subscriber writes; cut its connection when half of it is there."""
        if subscriber.stdout is None:
            raise AssertionError("standard output is a pipe")
        while data := await subscriber.stdout.read(CHUNK):
            self.subscriber.take(self._spoil(data))
            if not self.cuts and self.subscriber.size * 2 >= len(self._file):
                self.cuts += relay.cut(0)

    # --- what people see ---

    def _facts(self) -> str:
        publisher, subscriber, size = self.publisher, self.subscriber, len(self._file)
        return (
            f"{monotonic() - self._began:4.1f} s  published {publisher.size * 100 // size:3} %  "
            f"received {subscriber.size * 100 // size:3} %  messages {publisher.messages}/{subscriber.messages}  "
            f"epoch {publisher.epoch}/{subscriber.epoch}  "
            f"rotations {publisher.rotations}/{subscriber.rotations}  cuts {self.cuts}  "
            f"reconnects {subscriber.reconnects}  resumes {subscriber.resumes}"
        )

    def _table(self) -> Table:
        sides, size = (self.publisher, self.subscriber), len(self._file)
        table = Table(
            title=f"{size:,} bytes through RWT",
            caption=f"{monotonic() - self._began:.1f} s, connections cut: {self.cuts}",
        )
        for name in ("", "publisher", "subscriber"):
            table.add_column(name, justify="right")
        table.add_row("progress", *(_bar(side.size, size) for side in sides))
        for name, shown in (
            ("bytes", [f"{side.size:,}" for side in sides]),
            ("messages", [str(side.messages) for side in sides]),
            ("epoch", [str(side.epoch) for side in sides]),
            ("rotations", [str(side.rotations) for side in sides]),
            ("reconnects", [str(side.reconnects) for side in sides]),
            ("resumes", [str(side.resumes) for side in sides]),
        ):
            table.add_row(name, *shown)
        return table

    async def _show(self) -> None:
        """A live view on a terminal, a line every two seconds elsewhere."""
        if not self._alive:
            while True:
                print(self._facts(), flush=True)
                await asyncio.sleep(2)
        with Live(self._table(), console=self._console, refresh_per_second=8) as live:
            try:
                while True:
                    live.update(self._table())
                    await asyncio.sleep(0.1)
            finally:
                live.update(self._table())

    def _judge(self) -> int:
        publisher, subscriber = self.publisher, self.subscriber
        print(self._facts())
        print(f"sha256 sent      {publisher.digest.hexdigest()}")
        print(f"sha256 received  {subscriber.digest.hexdigest()}")
        print(f"rotations {publisher.rotations} and {subscriber.rotations}, resumes {subscriber.resumes}")
        wrong = [
            text
            for text, good in (
                ("the file was not sent whole", publisher.size == len(self._file)),
                ("the bytes differ", publisher.digest.digest() == subscriber.digest.digest()),
                ("a client never rotated", publisher.rotations > 0 and subscriber.rotations > 0),
                ("the connection was not cut", self.cuts == 1),
                ("the session was not resumed", subscriber.resumes > 0),
                ("a gap was reported", not publisher.gaps and not subscriber.gaps),
            )
            if not good
        ]
        print("; ".join(wrong) if wrong else "the same bytes arrived, none lost, none repeated")
        return 1 if wrong else 0


async def _interruptible(demo: Demo) -> int:
    """The first signal ends the run in order: processes are ended, the folder is removed."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None:
        raise AssertionError("this runs in a task")
    signals: list[int] = []

    def stop(number: int) -> None:
        signals.append(number)
        if len(signals) == 1:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    try:
        return await demo.run()
    except (asyncio.CancelledError, OSError, RuntimeError):
        if signals:
            return 128 + signals[0]
        raise


def main() -> None:
    """Entry point: exit status 0 only if the same bytes arrived."""
    try:
        sys.exit(asyncio.run(_interruptible(Demo())))
    except BrokenPipeError:
        # Whoever read our output is gone; nothing may be flushed there at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (RuntimeError, OSError) as exc:
        print(f"the demo failed: {exc}")
        sys.exit(1)


if __name__ == "__main__":
    main()
