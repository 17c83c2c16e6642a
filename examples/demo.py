"""`make demo`: a file through a server, while keys rotate and one connection is cut.

A server, a publisher and a subscriber run as processes of their own; this one feeds the publisher, hashes what
the subscriber writes, and cuts the subscriber's TCP connection once, half-way.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
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
DEADLINE = 60.0
CHUNK = 65_536


@dataclass
class Side:
    """What one of the two clients has told."""

    epoch: int = 0
    rotations: int = 0
    resumes: int = 0
    gaps: int = 0
    size: int = 0
    messages: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def hear(self, line: bytes) -> None:
        """Take one line of a client's `--events`."""
        try:
            event = json.loads(line)
        except ValueError:
            return
        match event.get("event"):
            case "connect":
                self.epoch = event["epoch"]
                self.resumes += event["resumed"]
            case "token-rotate":
                self.epoch = event["epoch"]
                self.rotations += 1
            case "gap":
                self.gaps += 1

    def take(self, data: bytes) -> None:
        """Count and hash."""
        self.size += len(data)
        self.messages = -(-self.size // CHUNK)
        self.digest.update(data)


def find_file() -> Path:
    """A real file of some MiB that every installation has: a library of the package `cryptography`."""
    spec = find_spec("cryptography.hazmat.bindings._rust")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package cryptography has no shared library")
    return Path(spec.origin)


@asynccontextmanager
async def _process(
    *arguments: str, environment: dict[str, str], stdin: int | None = None
) -> AsyncIterator[Process]:
    """Run one of our commands; it is ended whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdin=stdin, stdout=PIPE, stderr=PIPE, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


async def _line_with(process: Process, text: bytes, hear: Callable[[bytes], None] | None = None) -> bytes:
    """Read standard error up to a line with `text`."""
    if process.stderr is None:
        raise AssertionError("standard error is a pipe")
    seen = b""
    while line := await process.stderr.readline():
        seen += line
        if hear is not None:
            hear(line)
        if text in line:
            return line
    raise RuntimeError(f"a process ended early: {seen.decode(errors='replace').strip()[-500:]}")


async def _listen(process: Process, side: Side) -> None:
    if process.stderr is None:
        raise AssertionError("standard error is a pipe")
    while line := await process.stderr.readline():
        side.hear(line)


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
            key = (await maker.communicate())[0].decode().strip()
            server = await start(
                _process(
                    *("rwt_server", "serve", "--port", "0", "--data-dir", folder),
                    *("--on-full", "demo=pace", "--rotation-interval", "5"),
                    *("--url", f"ws://127.0.0.1:{relay.port}/rwt/v2/ws"),
                    environment=base,
                )
            )
            relay.target = json.loads(await _line_with(server, b'"serving"'))["port"]
            base |= {"RWT_API_KEY": key, "RWT_URL": f"http://127.0.0.1:{relay.target}"}
            tasks = await start(asyncio.TaskGroup())
            quiet = tasks.create_task(_listen(server, Side()))
            subscriber = await start(
                _process(
                    *("rwt_client", "sub", "demo", "--raw", "--bytes", str(size), "--events"),
                    environment=base,
                )
            )
            await _line_with(subscriber, b"subscribed to demo", self.subscriber.hear)
            publisher = await start(
                _process("rwt_client", "pub", "demo", "--raw", "--events", environment=base, stdin=PIPE)
            )
            listening = [
                tasks.create_task(_listen(subscriber, self.subscriber)),
                tasks.create_task(_listen(publisher, self.publisher)),
            ]
            feeding = tasks.create_task(self._feed(publisher))
            showing = tasks.create_task(self._show())
            await self._receive(subscriber, relay)
            await feeding
            await asyncio.gather(subscriber.wait(), publisher.wait(), *listening)
            for task in (showing, quiet):
                task.cancel()

    async def _feed(self, publisher: Process) -> None:
        """Give the file to the publisher in pieces, so that it takes `SECONDS` in all."""
        if publisher.stdin is None:
            raise AssertionError("standard input is a pipe")
        began, data = monotonic(), memoryview(self._file)
        for at in range(0, len(data), CHUNK):
            piece = bytes(data[at : at + CHUNK])
            publisher.stdin.write(piece)
            await publisher.stdin.drain()
            self.publisher.take(piece)
            await asyncio.sleep(max(0.0, began + SECONDS * at / len(data) - monotonic()))
        publisher.stdin.close()

    async def _receive(self, subscriber: Process, relay: Relay) -> None:
        """Hash what the subscriber writes; cut its connection when half of it is there."""
        if subscriber.stdout is None:
            raise AssertionError("standard output is a pipe")
        while data := await subscriber.stdout.read(CHUNK):
            self.subscriber.take(self._spoil(data))
            if not self.cuts and self.subscriber.size * 2 >= len(self._file):
                self.cuts = 1
                relay.cut(0)

    # --- what people see ---

    def _facts(self) -> str:
        publisher, subscriber, size = self.publisher, self.subscriber, len(self._file)
        return (
            f"{monotonic() - self._began:4.1f} s  published {publisher.size * 100 // size:3} %  "
            f"received {subscriber.size * 100 // size:3} %  messages {subscriber.messages}  "
            f"epoch {publisher.epoch}/{subscriber.epoch}  rotations {publisher.rotations}/{subscriber.rotations}  "
            f"cuts {self.cuts}  resumes {subscriber.resumes}"
        )

    def _table(self) -> Table:
        table = Table(title=f"{len(self._file)} bytes through RWT, keys rotating, one cut")
        for name in ("", "progress", "messages", "epoch", "rotations", "resumes"):
            table.add_column(name, justify="right")
        for name, side in (("publisher", self.publisher), ("subscriber", self.subscriber)):
            bar = ProgressBar(total=len(self._file), completed=side.size, width=30)
            facts = (side.messages, side.epoch, side.rotations, side.resumes)
            table.add_row(name, bar, *map(str, facts))
        return table

    async def _show(self) -> None:
        """A live view on a terminal, a line every two seconds elsewhere."""
        if not self._console.is_terminal:
            while True:
                print(self._facts(), flush=True)
                await asyncio.sleep(2)
        with Live(self._table(), console=self._console, refresh_per_second=8) as live:
            while True:
                live.update(self._table())
                await asyncio.sleep(0.1)

    def _judge(self) -> int:
        publisher, subscriber = self.publisher, self.subscriber
        print(self._facts())
        print(f"sha256 sent      {publisher.digest.hexdigest()}")
        print(f"sha256 received  {subscriber.digest.hexdigest()}")
        print(f"rotations {publisher.rotations} and {subscriber.rotations}, resumes {subscriber.resumes}")
        wrong = [
            text
            for text, good in (
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


def main() -> None:
    """Entry point: exit status 0 only if the same bytes arrived."""
    try:
        sys.exit(asyncio.run(Demo().run()))
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, OSError) as exc:
        print(f"the demo failed: {exc}")
        sys.exit(1)


if __name__ == "__main__":
    main()
