"""The commands as processes: pipes, signals, secrets in logs, memory under a stream."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rwt_client import DragonFireClient, RWTClient
from tests.big_pipe import run
from tests.running import environment, rwt, server_process, until


def test_raw_bytes_come_out_as_they_went_in(tmp_path: Path) -> None:
    data = bytes(1_000) + os.urandom(3 * 1_048_576)
    with server_process(tmp_path, "--on-full", "files=pace") as server:
        reader = subprocess.Popen(
            [sys.executable, "-m", "rwt_client", "sub", "files", "--raw", "--bytes", str(len(data))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert reader.stdout is not None and reader.stderr is not None
        assert b"subscribed" in reader.stderr.readline()
        sent = rwt(server, "pub", "files", "--raw", stdin=data)
        assert sent.returncode == 0, sent.stderr
        assert hashlib.sha256(reader.stdout.read()).digest() == hashlib.sha256(data).digest()
        assert reader.wait(10) == 0
        reader.stderr.close()
        reader.stdout.close()


def test_lines_json_history_and_status(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        assert rwt(server, "pub", "chat", stdin="één\ntwo\n".encode()).returncode == 0
        told = rwt(server, "pub", "chat", "three", "--json")
        assert json.loads(told.stdout) == {"channel": "chat", "offset": 3, "messages": 1}
        read = rwt(server, "sub", "chat", "--history", "3", "--count", "3", "--json")
        assert [json.loads(line)["data"] for line in read.stdout.splitlines()] == ["één", "two", "three"]
        status = json.loads(rwt(server, "status", "--json").stdout)
        assert status["state"] == "connected" and status["latency_ms"] > 0
        assert (status["rotation_interval"], status["rotation_pattern"]) == (60.0, "fibonacci")
        bench = json.loads(rwt(server, "bench", "--messages", "500", "--json").stdout)
        assert bench["stored_per_s"] > 0 and bench["delivery_p99_ms"] >= bench["delivery_p50_ms"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_ends_a_subscriber_quietly(tmp_path: Path, number: int) -> None:
    with server_process(tmp_path) as server:
        reader = subprocess.Popen(
            [sys.executable, "-m", "rwt_client", "sub", "x"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert reader.stderr is not None
        first = reader.stderr.readline()
        reader.send_signal(number)
        out, err = reader.communicate(timeout=10)
        assert (reader.returncode, out, err) == (130, b"", b"") and b"subscribed" in first


def test_a_reader_of_our_output_may_go_away(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        rwt(server, "pub", "x", stdin=b"a\n" * 2_000)
        reader = subprocess.Popen(
            [sys.executable, "-m", "rwt_client", "sub", "x", "--history", "2000"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert reader.stdout is not None and reader.stderr is not None
        reader.stdout.readline()
        reader.stdout.close()
        rwt(server, "pub", "x", stdin=b"b\n" * 2_000)
        err = reader.stderr.read()
        reader.stderr.close()
        assert reader.wait(10) == 0 and b"Traceback" not in err and b"Error" not in err


async def test_sigterm_drains(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        client = RWTClient(DragonFireClient(api_key=server.key, url=server.url))
        client.configure_reconnection(enabled=False)
        ended: list[tuple[int, str]] = []
        client.on("disconnect", lambda code, reason: ended.append((code, reason)))
        await client.connect()
        server.process.send_signal(signal.SIGTERM)
        await until(lambda: bool(ended))
        assert ended == [(4503, "the server is going away")]
        await client.disconnect()
        assert server.process.wait(10) == 0
        log = server.log.read_text()
        assert "Traceback" not in log and '"event": "stopped"' in log


async def test_no_secret_is_logged(tmp_path: Path) -> None:
    with server_process(tmp_path, "--log-level", "debug") as server:
        client = RWTClient(DragonFireClient(api_key=server.key, url=server.url))
        await client.connect()
        session = client._supervisor._session
        assert session is not None
        secrets = [held.token for held in session.held] + [held.family or b"" for held in session.held]
        await client.send("a very secret body", channel="x")
        await client.disconnect()
        assert server.stop() == 0
        log = server.log.read_text()
        assert server.key.split("_", 2)[2] not in log and "very secret" not in log
        for secret in secrets:
            assert secret.hex() not in log
            assert base64.urlsafe_b64encode(secret).rstrip(b"=").decode() not in log


def test_the_first_start_says_how_to_make_a_key(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "rwt_server", "serve", "--port", "0", "--data-dir", str(tmp_path / "d")],
            stderr=output,
        )
        deadline = time.monotonic() + 15
        while b"serving" not in log.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.terminate()
        assert process.wait(10) == 0
    assert "rwt-server keys create" in log.read_text()


def test_a_stream_of_many_mebibytes_is_bounded_in_memory(tmp_path: Path) -> None:
    """A share of `python -m tests.big_pipe`: 24 MiB through a log that keeps 8."""
    report = run(24, interval=5.0, retention_mib=8, folder=tmp_path)
    assert report.sent == report.received
    assert report.growth_mib < 60, report


@pytest.mark.parametrize("arguments", [["pub", "x"], ["pub", "x", "--raw"]], ids=["lines", "raw"])
def test_a_signal_ends_a_publisher_whose_input_is_idle(tmp_path: Path, arguments: list[str]) -> None:
    with server_process(tmp_path) as server:
        writer = subprocess.Popen(
            [sys.executable, "-m", "rwt_client", *arguments, "--events"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert writer.stdin is not None and writer.stderr is not None
        assert b"connect" in writer.stderr.readline()
        writer.send_signal(signal.SIGTERM)
        assert writer.wait(5) == 130
        assert b"Traceback" not in writer.stderr.read()
        writer.stdin.close()
        writer.stderr.close()


def test_a_signal_ends_a_subscriber_whose_output_is_full(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        rwt(server, "pub", "x", "--raw", stdin=bytes(1_048_576))
        reader = subprocess.Popen(
            [sys.executable, "-m", "rwt_client", "sub", "x", "--raw", "--history", "100"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(server),
        )
        assert reader.stdout is not None and reader.stderr is not None
        assert b"subscribed" in reader.stderr.readline()
        reader.stdout.read(1)  # it has begun to write, and nobody takes the rest
        reader.send_signal(signal.SIGTERM)
        assert reader.wait(5) == 130
        assert b"Traceback" not in reader.stderr.read()
        reader.stdout.close()
        reader.stderr.close()


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        pytest.param("pub x <&-", 2, b"standard input is closed", id="stdin closed"),
        pytest.param("sub x >&-", 2, b"standard output is closed", id="stdout closed"),
        pytest.param("status >/dev/full", 1, b"no space left", id="status to a full device"),
        pytest.param(
            "sub x --history 1 --count 1 >/dev/full", 1, b"no space left", id="sub to a full device"
        ),
        pytest.param("pub x --chunk-size 5 a", 2, b"chunk-size=5", id="an option that would do nothing"),
    ],
)
def test_pipes_that_cannot_be_used(tmp_path: Path, line: str, status: int, said: bytes) -> None:
    with server_process(tmp_path) as server:
        assert rwt(server, "pub", "x", "text").returncode == 0
        done = subprocess.run(
            f"{sys.executable} -m rwt_client {line}",
            shell=True,
            capture_output=True,
            env=environment(server),
            timeout=30,
            check=False,
        )
        assert done.returncode == status and said in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith(b"rwt: ")
