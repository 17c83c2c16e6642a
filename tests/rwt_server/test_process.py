"""`python -m rwt_server serve` as a process: signals, deadlines, logs without secrets, bounded memory."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from rwt_client import DragonFireClient, RWTClient
from rwt_protocol.codes import CloseCode, GapReason
from rwt_protocol.events import Opened
from rwt_protocol.frames import Position, Publication
from rwt_server import KeyFile
from tests.running import ServerProcess, server_process, until
from tests.servers import BINARY, UPGRADE, connected, frame, request, ticket, wire

MIB = 1_048_576
BODY = 16_384


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with server_process(tmp_path) as found:
        yield found


def log(server: ServerProcess) -> list[dict[str, Any]]:
    """The lines of the log; each must be JSON."""
    return [json.loads(line) for line in server.log.read_text().splitlines()]


async def gone(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end without holding up the clients of this process."""
    return await asyncio.to_thread(process.wait, 15)


def test_it_says_where_it_serves(server: ServerProcess) -> None:
    (serving,) = log(server)
    assert (serving["event"], serving["level"], serving["port"]) == ("serving", "info", server.port)
    assert serving["url"] == f"ws://127.0.0.1:{server.port}/rwt/v2/ws"
    assert server.stop() == 0
    assert [line["event"] for line in log(server)] == ["serving", "stopping", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
async def test_a_signal_sends_everybody_away_and_ends_with_0(server: ServerProcess, number: int) -> None:
    async with wire(server) as one, wire(server) as two:
        stream = (await one.sub("x")).stream
        await one.store(stream, Publication(b"stored", 1))
        began = time.monotonic()
        server.process.send_signal(number)
        for raw in (one, two):
            said, code = await raw.over()
            assert (said.code, said.sealed, code) == (CloseCode.DRAINING, True, 4503)
            assert said.retry_after_ms is not None
        assert await gone(server.process) == 0
        assert time.monotonic() - began < 5
    assert "Traceback" not in server.log.read_text() and log(server)[-1]["event"] == "stopped"


async def test_nobody_who_is_silent_keeps_it_from_ending(server: ServerProcess) -> None:
    async with (
        connected(server.port),
        connected(server.port) as half,
        connected(server.port) as idle,
        connected(server.port) as kept,
        wire(server) as quiet,
    ):
        half.writer.write(request(UPGRADE)[:40])
        assert await idle.upgrade() == 101
        kept.writer.write(request({}, "/healthz"))
        await kept.reader.readuntil(b"}")
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert (await quiet.over())[1] == 4503
        assert await gone(server.process) == 0
        assert time.monotonic() - began < 5
    assert "Traceback" not in server.log.read_text() and log(server)[-1]["event"] == "stopped"


async def test_clients_come_back_to_the_next_process(tmp_path: Path) -> None:
    with server_process(tmp_path) as first:
        async with wire(first) as raw:
            answer = await raw.sub("x")
            await raw.store(answer.stream, *(Publication(b"", mid) for mid in range(1, 4)))
            await raw.entries_come(3)
            last = raw.entries[-1]
        assert first.stop() == 0
    with server_process(tmp_path) as second:
        async with wire(second) as raw:
            position = Position(answer.start.log, last.offset, last.tag)
            gap = (await raw.sub("x", after=position)).gap
            assert gap is not None and gap[:4] == (GapReason.LOG_LOST, answer.start.log, 4, 0)
        assert second.stop() == 0


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(request(UPGRADE)[:60], id="half a header"),
        pytest.param(request(UPGRADE) + frame(BINARY, bytes(40))[:9], id="half a frame"),
        pytest.param(request(UPGRADE), id="no HELLO"),
    ],
)
async def test_the_deadline_is_on_the_connection(tmp_path: Path, sent: bytes) -> None:
    with server_process(tmp_path, "--handshake-timeout", "0.5") as server:
        async with connected(server.port) as sock:
            began = time.monotonic()
            sock.writer.write(sent)
            async with asyncio.timeout(5):
                try:
                    while await sock.reader.read(1_000):
                        pass
                except ConnectionResetError:
                    pass
            assert 0.4 < time.monotonic() - began < 2.5


async def test_a_key_is_made_and_revoked_while_it_runs(server: ServerProcess, tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, shown = keys.create("later", None)
    url, headers = f"{server.url}/rwt/v2/session", {"Authorization": f"Bearer {shown}"}
    statuses = []
    async with aiohttp.ClientSession() as http:
        for change in (lambda: None, lambda: keys.revoke(key.id)):
            change()
            async with http.post(url, headers=headers) as answer:
                statuses.append(answer.status)
    assert statuses == [200, 401]


async def test_no_secret_is_logged(tmp_path: Path) -> None:
    options = ("--log-level", "debug", "--origin", "https://a.example")
    with server_process(tmp_path, *options) as server:
        session = await ticket(server, user="ann")
        secrets: set[bytes | None] = {held.token for held in session.held}
        for number in range(1, 4):
            async with wire(server, session) as raw:
                assert raw.of(Opened)[0].resumed is (number > 1)
                secrets |= {held.token for held in session.held} | {held.family for held in session.held}
                stream = (await raw.sub("x")).stream
                await raw.store(stream, Publication(b"a very secret body", number))
        async with wire(server, session) as raw:
            raw.sock.send(b"a very secret text", opcode=1)
            await raw.over()
        async with connected(server.port) as sock:
            await sock.upgrade({**UPGRADE, "Origin": "https://evil.example", "Authorization": server.key})
        async with connected(server.port) as sock:
            await sock.upgrade(path=f"/rwt/v2/ws?api_key={server.key}")
        async with aiohttp.ClientSession() as http:
            for key in (server.key + "x", server.key[:-1]):
                headers = {"Authorization": f"Bearer {key}"}
                async with http.post(f"{server.url}/rwt/v2/session", headers=headers) as answer:
                    assert answer.status == 401
        async with RWTClient(DragonFireClient(api_key=server.key, url=server.url)) as client:
            await client.send("a very secret body", channel="x")
        assert server.stop() == 0
        events = {line["event"] for line in log(server)}
        assert {"session_open", "session_closed", "api_key_refused"} <= events
        text = server.log.read_text()
    assert len(secrets - {None, b""}) >= 5
    found = [secret for secret in secrets if secret]
    spoken = [server.key.split("_", 2)[2][:-1], "very secret"]
    spoken += [form for secret in found for form in (secret.hex(), repr(secret)[2:-1])]
    spoken += [base64.b64encode(secret).decode().rstrip("=") for secret in found]
    spoken += [base64.urlsafe_b64encode(secret).decode().rstrip("=") for secret in found]
    assert [form for form in spoken if form.lower() in text.lower()] == []


async def test_memory_is_bounded_by_the_log_and_not_by_its_slow_readers(tmp_path: Path) -> None:
    """20 MiB published; four readers do not read, and one does all the time."""
    with server_process(tmp_path) as server:
        async with AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(wire(server, receive_buffer=16_384)) for _ in range(4)]
            quick = await stack.enter_async_context(wire(server))
            writer = await stack.enter_async_context(wire(server))
            for raw in (*slow, quick):
                await raw.sub("x", use=1)
            stream = (await writer.sub("x", use=2)).stream
            process = psutil.Process(server.process.pid)
            before = process.memory_info().rss
            many, most = 20 * MIB // BODY, 0
            for first in range(1, many + 1, 16):
                await writer.store(stream, *(Publication(bytes(BODY), n) for n in range(first, first + 16)))
                await quick.entries_come(first + 15)
                most = max(most, process.memory_info().rss)
            # The log keeps the 20 MiB; had every reader a queue of its own, it would be 100.
            assert (most - before) / MIB < 45
            for raw in slow:
                await raw.entries_come(many)
                assert [entry.offset for entry in raw.entries] == list(range(1, many + 1)) and not raw.gaps
        await until(lambda: server.process.poll() is None)
        assert server.stop() == 0


def test_the_first_start_says_how_to_make_a_key(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rwt_server", "serve", "--port", "0", "--data-dir", str(tmp_path / "d")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if '"serving"' in line:
                break
        process.terminate()
        assert process.wait(10) == 0
    assert any(f"rwt-server keys create --name first --data-dir {tmp_path / 'd'}" in line for line in lines)
    assert not (tmp_path / "d").exists()
