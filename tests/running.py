"""Servers for tests: one in this process on a real socket, one as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from rwt_client import DragonFireClient, RWTClient
from rwt_server import KeyFile, ServerConfig, create_app
from rwt_server.app import NODE
from rwt_server.guard import Guard
from rwt_server.node import Node


@dataclass
class Running:
    """A server in this process."""

    url: str
    port: int
    key: str
    keys: KeyFile
    node: Node

    def client(self, **options: Any) -> RWTClient:
        """A client of this server that comes back quickly."""
        wanted = {"api_key": self.key, "url": self.url, **options}
        client = RWTClient(
            DragonFireClient(**{k: v for k, v in wanted.items() if k not in ("pins", "policy")}),
            **{k: v for k, v in wanted.items() if k in ("pins", "policy")},
        )
        client.configure_reconnection(base_delay=0.01, max_delay=0.1)
        return client


@asynccontextmanager
async def running(
    folder: Path, *, public_port: int | None = None, port: int = 0, **options: Any
) -> AsyncIterator[Running]:
    """Run a server; `public_port` is what clients are told, for a relay before it."""
    sock = socket.create_server(("127.0.0.1", port))
    port = sock.getsockname()[1]
    url = f"ws://127.0.0.1:{public_port or port}/rwt/v2/ws"
    keys = KeyFile(folder / "keys.json")
    _, key = keys.create("test", None)
    app = create_app(replace(ServerConfig(url=url, data_dir=folder), **options), keys)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=5.0, shutdown_timeout=1.0)
    await runner.setup()
    factory = runner.server
    assert factory is not None
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Guard(factory(), app[NODE].deadlines), sock=sock)
    try:
        yield Running(f"http://127.0.0.1:{port}", port, key, keys, app[NODE])
    finally:
        server.close()
        await runner.cleanup()


@dataclass
class ServerProcess:
    """A server as a process."""

    process: subprocess.Popen[bytes]
    url: str
    port: int
    key: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(15)


@contextmanager
def server_process(folder: Path, *options: str) -> Iterator[ServerProcess]:
    """Run `rwt-server serve` on a free port."""
    _, key = KeyFile(folder / "keys.json").create("test", None)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rwt_server", "serve", "--port", "0", "--data-dir", str(folder), *options],
            stdout=output,
            stderr=output,
        )
        try:
            port = _port(process, log)
            yield ServerProcess(process, f"http://127.0.0.1:{port}", port, key, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if '"serving"' in line and line.endswith("}"):
                return int(json.loads(line)["port"])
        time.sleep(0.02)
    raise AssertionError(f"the server did not start: {log.read_text()}")


def environment(server: ServerProcess) -> dict[str, str]:
    """What the commands of a client need."""
    return {**os.environ, "RWT_URL": server.url, "RWT_API_KEY": server.key}


def rwt(server: ServerProcess, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one `rwt` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "rwt_client", *arguments],
        input=stdin,
        capture_output=True,
        env=environment(server),
        timeout=60,
        check=False,
    )


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions of many kinds
            await asyncio.sleep(0.005)
