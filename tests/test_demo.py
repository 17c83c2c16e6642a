"""`make demo` as a process, and proof that it notices what goes wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from examples import demo
from examples.relay import Relay

_DEMO = [sys.executable, "-m", "examples.demo"]
_GOOD = "the same bytes arrived, none lost, none repeated"


def test_the_demo_succeeds() -> None:
    done = subprocess.run(_DEMO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    sums = [line.split()[-1] for line in lines if line.startswith("sha256")]
    assert len(sums) == 2 and sums[0] == sums[1] and len(sums[0]) == 64
    assert lines[-1] == _GOOD
    assert "cuts 1" in done.stdout and "\x1b" not in done.stdout and not done.stderr


async def test_control_a_changed_byte_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "SECONDS", 2.0)
    spoiled = 0

    def spoil(data: bytes) -> bytes:
        nonlocal spoiled
        spoiled += 1
        return bytes((data[0] ^ 1,)) + data[1:] if spoiled == 1 else data

    assert await demo.Demo(spoil).run() == 1
    # Nothing else was wrong: the byte alone made it fail.
    assert capsys.readouterr().out.splitlines()[-1] == "the bytes differ"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = subprocess.Popen(_DEMO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "published" in process.stdout.readline()  # all three run by now
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints, len(children)) == (128 + number, "", 3)
    assert not any(child.is_running() for child in children)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("victim", ["server", "subscriber", "publisher"])
async def test_a_process_that_dies_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    word = {"server": "serve", "subscriber": "sub", "publisher": "pub"}[victim]
    running = asyncio.ensure_future(demo.Demo().run())
    children: list[psutil.Process] = []
    async with asyncio.timeout(20):
        while len(children) < 3:
            await asyncio.sleep(0.05)
            children = psutil.Process().children()
            children = [child for child in children if {"serve", "sub", "pub"} & {*child.cmdline()}]
    next(child for child in children if word in child.cmdline()).kill()
    with pytest.raises(RuntimeError, match=f"the {victim} ended with status -9"):
        await running
    assert not any(child.is_running() for child in children)
    assert not os.listdir(tmp_path)


async def test_what_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "DEADLINE", 3.0)
    assert await demo.Demo().run() == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not finished within 3 s")


async def test_the_cut_is_a_reset() -> None:
    relay = Relay()
    await relay.start()
    far = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    relay.target = far.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    async with asyncio.timeout(5):
        while not relay.open:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert relay.cut(0) and not relay.cut(0)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    far.close()
    await relay.stop()
