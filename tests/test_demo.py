"""`make demo` as a process, and proof that it notices a byte that differs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples import demo


def test_the_demo_succeeds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    sums = [line.split()[-1] for line in lines if line.startswith("sha256")]
    assert len(sums) == 2 and sums[0] == sums[1] and len(sums[0]) == 64
    assert "the same bytes arrived, none lost, none repeated" in lines
    assert "cuts 1" in done.stdout and not done.stderr


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
    assert "the bytes differ" in capsys.readouterr().out
