"""The command `rwt` as processes: values that cannot be used, pipes, signals, exit statuses."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import click
import pytest

from rwt_client.cli import cli
from rwt_server import KeyFile
from tests.running import ServerProcess, environment, rwt, server_process

RWT = [sys.executable, "-m", "rwt_client"]
SECRET = "ThEsEcReT"
KEY = f"rwt_0123_{SECRET}"
CHANNELS = ["", "@reserved", "a\nb", "x" * 256, "e\u0301"]

COMMON: Mapping[str, list[str]] = {
    "--url": ["ftp://x", "http://", "example.org", "http://h:99999", "http://example.org", "http://h/?key=1"],
    "--api-key": [SECRET, f"rwt_{SECRET}", f"rwt_x_{SECRET} y", f"rwt_x_{SECRET}é", ""],
    "--user": [],
    "--region": [],
    "--allow-insecure": [],
    "--rotation-interval": ["4.9", "3601", "nan", "often"],
    "--events": [],
    "--timeout": ["0", "-1", "nan", "soon"],
}
"""Options of every command. Which users and regions can be used, only a server knows."""
OWN: Mapping[str, Mapping[str, list[str]]] = {
    "pub": {
        "channel": CHANNELS,
        "text": [],
        "--raw": [],
        "--chunk-size": ["0", "-1", "1048577", "big"],
        "--quiet": [],
        "--json": [],
    },
    "sub": {
        "channel": CHANNELS,
        "--raw": [],
        "--json": [],
        "--history": ["-1", "1.5", "all"],
        "--count": ["0", "-1", "x"],
        "--bytes": ["0", "-1", "x"],
        "--quiet": [],
    },
    "status": {"--json": []},
    "bench": {
        "--messages": ["0", "10000001", "x"],
        "--size": ["0", "1048577", "x"],
        "--window": ["0", "1025", "x"],
        "--channel": CHANNELS,
        "--json": [],
    },
}
"""Options and arguments of one command. Any text can be sent."""

Case = tuple[str, str, str]
CASES: list[Case] = [("status", option, value) for option, values in COMMON.items() for value in values] + [
    (command, option, value) for command, own in OWN.items() for option, vs in own.items() for value in vs
]
USAGE: list[list[str]] = [
    ["pub"],
    ["sub"],
    ["pub", "x", "y", "z"],
    ["pub", "x", "text", "--raw"],
    ["sub", "x", "--raw", "--json"],
    ["sub", "x", "--count"],
    ["status", "--fast"],
    ["fly"],
]


def words(case: Case) -> list[str]:
    """The command line of a case."""
    command, option, value = case
    key = [] if option == "--api-key" else ["--api-key", KEY]
    channel = ["chat"] if "channel" in OWN[command] and option != "channel" else []
    given = ["--", value] if option == "channel" else [option, value]
    return [command, *channel, *key, *given]


def run(arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run one command without a server."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RWT_")}
    return subprocess.run(
        [*RWT, *arguments], capture_output=True, env=env, timeout=30, stdin=subprocess.DEVNULL
    )


Runs = Callable[[list[str]], subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """Results of commands without a server; two run at a time."""
    with ThreadPoolExecutor(2) as pool:
        futures: dict[tuple[str, ...], Future[subprocess.CompletedProcess[bytes]]] = {}
        for arguments in [*map(words, CASES), *USAGE]:
            futures[tuple(arguments)] = pool.submit(run, arguments)
        yield lambda arguments: futures[tuple(arguments)].result()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), "--on-full", "paced.*=pace") as found:
        yield found


@contextmanager
def started(
    server: ServerProcess, *arguments: str, stdin: int | None = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs; what it did not say yet can be read from its pipes."""
    process = subprocess.Popen(
        [*RWT, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(server),
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.readline()


# --- values that cannot be used ---


def test_the_tables_miss_no_option_and_no_argument() -> None:
    assert set(cli.commands) == set(OWN)
    for name, command in cli.commands.items():
        found = {
            param.opts[0] if isinstance(param, click.Option) else param.name
            for param in command.params
            if "--help" not in param.opts
        }
        assert found == {*COMMON, *OWN[name]}, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((*case[:2], ascii(case[2][:20]))))
def test_a_value_that_cannot_be_used(runs: Runs, case: Case) -> None:
    _, option, value = case
    done = runs(words(case))
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("rwt: ") and "Traceback" not in line
    if option == "--api-key":
        assert SECRET not in line and ("api_key" in line or "API key" in line)
    else:
        assert any(shown in line for shown in (value or "''", repr(value))), line


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_usage(runs: Runs, arguments: list[str]) -> None:
    done = runs(arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("rwt: ")


# --- pipes ---


def test_bytes_come_out_as_they_went_in(server: ServerProcess) -> None:
    """`rwt pub files --raw < data` and `rwt sub files --raw > data`, a pipe at each end."""
    seed = random.randrange(2**32)
    data = random.Random(seed).randbytes(3 * 1_048_576)
    data = data[:1_000_000] + bytes(100_000) + b"\n\r\n" + data[1_100_003:]
    with started(server, "sub", "paced.files", "--raw", "--quiet", "--bytes", str(len(data))) as reader:
        assert first_line(reader) == b"rwt: subscribed to paced.files\n"
        assert reader.stdout is not None
        with (
            started(server, "pub", "paced.files", "--raw", stdin=subprocess.PIPE) as writer,
            ThreadPoolExecutor(1) as pool,
        ):
            read = pool.submit(reader.stdout.read)
            _, told = writer.communicate(data, timeout=30)
            got = read.result(30)
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest(), f"seed {seed}"
        assert (writer.returncode, reader.wait(10)) == (0, 0)
        assert str(len(data)).encode() in told and told.startswith(b"rwt: published ")


@pytest.mark.parametrize("size", ["1", "1000", "1048576"])
def test_chunks(server: ServerProcess, size: str) -> None:
    channel, data = f"chunks {size}", bytes(range(256)) * 8
    sent = rwt(server, "pub", channel, "--raw", "--chunk-size", size, "--json", "--quiet", stdin=data)
    assert (sent.returncode, sent.stderr) == (0, b"")
    number = -(-len(data) // int(size))
    assert json.loads(sent.stdout) == {"channel": channel, "offset": number, "messages": number}
    read = rwt(server, "sub", channel, "--raw", "--history", str(number), "--bytes", str(len(data)))
    assert (read.returncode, read.stdout) == (0, data)


def test_lines_and_history(server: ServerProcess) -> None:
    sent = rwt(server, "pub", "lines", stdin="één\n\ntwo words\r\n  last".encode())
    assert sent.returncode == 0 and b"published 4 messages" in sent.stderr
    read = rwt(server, "sub", "lines", "--history", "9", "--count", "4")
    assert (read.returncode, read.stdout.decode()) == (0, "één\n\ntwo words\n  last\n")
    assert read.stderr == b"rwt: subscribed to lines\n"
    read = rwt(server, "sub", "lines", "--history", "2", "--count", "1")
    assert read.stdout == b"two words\n"


def test_nothing_to_send(server: ServerProcess) -> None:
    for options in ([], ["--raw"]):
        sent = rwt(server, "pub", "none", "--json", *options)
        assert (sent.returncode, sent.stdout) == (0, b"")


def test_json(server: ServerProcess) -> None:
    sent = rwt(server, "pub", "json", "grüße", "--json", "--user", "ada")
    assert sent.stderr == b"" and json.loads(sent.stdout) == {"channel": "json", "offset": 1, "messages": 1}
    rwt(server, "pub", "json", "--raw", stdin=b"\x00\xff")
    read = rwt(server, "sub", "json", "--json", "--history", "2", "--count", "2")
    first, second = map(json.loads, read.stdout.splitlines())
    assert first.keys() == {"data", "channel", "offset", "sender", "timestamp"}
    assert (first["data"], first["channel"], first["offset"], first["sender"]) == ("grüße", "json", 1, "ada")
    assert (second["data"], second["offset"]) == ({"hex": "00ff"}, 2)


def test_standard_input_that_is_no_text(server: ServerProcess) -> None:
    sent = rwt(server, "pub", "text", "--quiet", stdin=b"good\n\xff\n")
    assert sent.returncode == 2
    (line,) = sent.stderr.decode().splitlines()
    assert line.startswith("rwt: standard input is not UTF-8 text") and "--raw" in line


# --- looking ---


def test_status(server: ServerProcess) -> None:
    told = rwt(server, "status", "--json", "--rotation-interval", "7.5")
    facts = json.loads(told.stdout)
    assert (told.returncode, told.stderr) == (0, b"")
    assert (facts["state"], facts["epoch"], facts["rotation_interval"]) == ("connected", 1, 7.5)
    assert facts["latency_ms"] > 0 and len(facts["connection_id"]) == 16
    text = rwt(server, "status").stdout.decode()
    assert "rotation pattern   fibonacci" in text and len(text.splitlines()) == len(facts)


def test_bench(server: ServerProcess) -> None:
    told = rwt(server, "bench", "--messages", "300", "--size", "8", "--window", "16", "--json")
    facts = json.loads(told.stdout)
    assert (told.returncode, told.stderr) == (0, b"")
    assert (facts["messages"], facts["size"], facts["window"]) == (300, 8, 16)
    assert 0 < facts["ack_p50_ms"] <= facts["ack_p99_ms"] and facts["stored_per_s"] > 0
    table = rwt(server, "bench", "--messages", "50", "--channel", "other.bench").stdout.decode()
    assert "delivery p99 ms" in table and "50 messages of 128 bytes" in table


def test_events(server: ServerProcess) -> None:
    told = rwt(server, "status", "--json", "--events")
    (event,) = map(json.loads, told.stderr.splitlines())
    assert (event["event"], event["epoch"], event["resumed"]) == ("connect", 1, False)
    assert event["id"] == json.loads(told.stdout)["connection_id"]


# --- failures ---


def test_failures_have_one_line_and_no_secret(server: ServerProcess, unused_tcp_port: int) -> None:
    _, narrow = KeyFile(server.log.parent / "keys.json").create("narrow", ("chat.*",))
    url = f"http://127.0.0.1:{unused_tcp_port}"
    cases: list[tuple[list[str], int, str]] = [
        (["status", "--url", url], 1, "connection refused"),
        (["pub", "x", "y", "--url", f"{server.url}/elsewhere"], 1, "is not an RWT server"),
        (["status", "--region", "mars"], 1, "'mars'"),
        (["status", "--api-key", KEY], 2, "rwt_0123_***"),
        (["pub", "other", "y", "--api-key", narrow], 1, "not-authorised"),
        (["sub", "other", "--api-key", narrow], 1, "not-authorised"),
    ]
    for arguments, status, text in cases:
        done = rwt(server, *arguments)
        assert (done.returncode, done.stdout) == (status, b""), arguments
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("rwt: ") and text in line
        assert SECRET not in line and narrow.split("_", 2)[2] not in line


# --- signals and broken pipes ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("arguments", [["sub", "quiet"], ["sub", "quiet", "--json"]], ids=" ".join)
def test_a_signal_ends_a_reader_quietly(server: ServerProcess, number: int, arguments: list[str]) -> None:
    with started(server, *arguments) as process:
        assert b"subscribed" in first_line(process)
        process.send_signal(number)
        assert (*process.communicate(timeout=10), process.returncode) == (b"", b"", 130)


@pytest.mark.parametrize("more", [[], ["--raw"]], ids=["lines", "raw"])
def test_a_signal_ends_a_writer_whose_input_is_open(server: ServerProcess, more: list[str]) -> None:
    with started(server, "pub", "quiet", "--quiet", "--events", *more, stdin=subprocess.PIPE) as process:
        assert b"connect" in first_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stdout is not None and process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


def test_a_reader_of_our_output_may_go_away(server: ServerProcess) -> None:
    rwt(server, "pub", "many", stdin=b"line\n" * 500)
    with started(server, "sub", "many", "--history", "500") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        rwt(server, "pub", "many", stdin=b"more\n" * 500)
        assert process.wait(10) == 0
        assert process.stderr.read() == b"rwt: subscribed to many\n"


def test_help() -> None:
    told = run(["--help"])
    assert told.returncode == 0 and all(name in told.stdout.decode() for name in OWN)
