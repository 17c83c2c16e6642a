"""`rwt-server`: every option with values that cannot be used, and what the commands for keys say."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from rwt_server import KeyFile
from rwt_server.cli import cli, main

ANY = "every text is a value"
FLAG = "takes no value"
CHOSEN = "{folder}"
"""Stands for a folder of the test in values."""

Bad = list[str] | str
SERVE: dict[str, Bad] = {
    "--data-dir": ["/dev/null/x", "{folder}/text"],
    "--host": ["256.0.0.1", "no.such.host.invalid", "a..b", "192.0.2.1", "x y"],
    "--port": ["-1", "65536", "eighty", "80.5", ""],
    "--url": ["http://h/p", "wss://", "ws:///p", "ws://h/p?token=1", "h", ""],
    "--prefix": ["rwt", "/rwt/", "/", "/{{x}}"],
    "--region": [""],
    "--origin": ANY,
    "--trusted-proxy": ANY,
    "--tls-cert": ["/no/such.pem", "{folder}", "{folder}/text"],
    "--tls-key": ["/no/such.pem", "{folder}", "{folder}/text"],
    "--identity-key": ["/no/such.pem", "{folder}", "{folder}/text"],
    "--suites": ["rsa", "", "x25519,x25519", "p256,", "P256"],
    "--policy": ["sometimes", "", "Auto"],
    "--rotation-interval": ["1", "4.9", "3601", "nan", "inf", "-5", "soon", "", "OFF"],
    "--rotation-pattern": ["golden", "", "Phi"],
    "--renew-threshold": ["0.49", "0.96", "80", "nan", "half", ""],
    "--max-message": ["1023", "16646145", "1TiB", "1 .5MiB", "-1", "many", ""],
    "--ping-interval": ["0.5", "3601.5", "nan", "never", ""],
    "--handshake-timeout": ["0.25", "60.5", "nan", "now", ""],
    "--max-handshakes": ["0", "-7", "1.5", "many"],
    "--max-handshakes-per-address": ["0", "-7", "1.5", "many"],
    "--on-full": ["x", "x=drop", "=pace", "x=", "=", ""],
    "--retention": [
        "x",
        "=1MiB",
        "x=1",
        "x=1MiB,0",
        "x=,-5",
        "x=,,never",
        "x=,,nan",
        "x=,,0",
        "x=1,2,3,4",
        "x=",
    ],
    "--log-level": ["loud", "", "INFO"],
}
KEYS: dict[str, dict[str, Bad]] = {
    "create": {
        "--data-dir": ["/dev/null/x", "{folder}/text"],
        "--name": ANY,
        "--channels": ["", " ", "\t"],
        "--json": FLAG,
    },
    "list": {"--data-dir": ["/dev/null/x", "{folder}/text"], "--json": FLAG},
    "revoke": {"--data-dir": ["/dev/null/x", "{folder}/text"], "ID": ["nobody", "", "a\nb"]},
}
COMPANIONS = {"--tls-cert": ["--tls-key", "/no/key"], "--tls-key": ["--tls-cert", "{folder}/text"]}
"""What must be given besides for the value to be looked at."""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the command in this process; gives exit status, output and errors."""
    (tmp_path / "text").write_text("no key, no certificate")
    for name in ("RWT_DATA_DIR", "RWT_HOST", "RWT_PORT", "RWT_PUBLIC_URL", "RWT_REGION"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["rwt-server", *arguments])
        status = 0
        try:
            main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            status = ended.code
        out, err = capsys.readouterr()
        return status, out, err

    KeyFile(tmp_path / "data" / "keys.json").create("test", None)
    yield call


def commands() -> dict[str, click.Command]:
    keys = cli.commands["keys"]
    assert isinstance(keys, click.Group) and set(cli.commands) == {"serve", "keys"}
    return {"serve": cli.commands["serve"], **keys.commands}


def names(command: click.Command) -> set[str]:
    return {
        param.opts[0] if isinstance(param, click.Option) else param.make_metavar(click.Context(command))
        for param in command.params
    }


def refused(answer: tuple[int, str, str], value: str) -> str:
    status, out, err = answer
    assert (status, out) == (2, "") and "Traceback" not in err, answer
    assert err.startswith("rwt-server: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert value in err or repr(value) in err, (value, err)
    return err


def cases(table: dict[str, Bad]) -> list[tuple[str, str]]:
    return [(name, value) for name, values in table.items() if isinstance(values, list) for value in values]


def test_the_tables_miss_no_option() -> None:
    assert {name: names(command) for name, command in commands().items()} == {
        "serve": set(SERVE),
        **{name: set(table) for name, table in KEYS.items()},
    }
    for name, command in commands().items():
        table = SERVE if name == "serve" else KEYS[name]
        flags = {
            param.opts[0] for param in command.params if isinstance(param, click.Option) and param.is_flag
        }
        assert flags == {option for option, values in table.items() if values == FLAG}, name


@pytest.mark.parametrize(("option", "value"), cases(SERVE), ids=repr)
def test_serve(run: Run, tmp_path: Path, option: str, value: str) -> None:
    value = value.format(folder=tmp_path)
    more = [word.format(folder=tmp_path) for word in COMPANIONS.get(option, [])]
    base = {"--port": "0", "--data-dir": str(tmp_path / "data")}
    base.pop(option, None)
    given = [word for pair in base.items() for word in pair]
    shown = value
    if option == "--suites" and "," in value:
        shown = repr(tuple(value.split(","))) if value == "x25519,x25519" else "''"
    if option in ("--on-full", "--retention") and value.partition("=")[0] and value.partition("=")[2]:
        # The part that is wrong: behind the pattern, or one of the three.
        shown = {"x=1MiB,0": "0", "x=,-5": "-5", "x=,,nan": "nan", "x=,,0": "0.0"}.get(value, value[2:])
    refused(run("serve", *given, option, value, *more), shown)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [(command, *case) for command, table in KEYS.items() for case in cases(table)],
    ids=repr,
)
def test_keys(run: Run, tmp_path: Path, command: str, option: str, value: str) -> None:
    value = value.format(folder=tmp_path)
    folder = [] if option == "--data-dir" else ["--data-dir", str(tmp_path / "data")]
    argument = ["some-id"] if command == "revoke" and option != "ID" else []
    given = ["--", value] if option == "ID" else [option, value]
    refused(run("keys", command, *folder, *argument, *given), value)


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("RWT_PORT", "eighty", ("serve",)),
        ("RWT_HOST", "256.0.0.1", ("serve", "--port", "0")),
        ("RWT_PUBLIC_URL", "http://x", ("serve", "--port", "0")),
        ("RWT_DATA_DIR", "/dev/null/x", ("keys", "list")),
    ],
    ids=str,
)
def test_values_from_the_environment(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv("RWT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv(name, value)
    refused(run(*command), value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("fly",), "fly"),
        (("serve", "--up"), "--up"),
        (("serve", "x"), "x"),
        (("serve", "--port"), "--port"),
        (("keys", "lose"), "lose"),
        (("keys", "revoke"), "ID"),
        (("keys", "create", "x"), "x"),
    ],
    ids=" ".join,
)
def test_usage(run: Run, arguments: tuple[str, ...], named: str) -> None:
    refused(run(*arguments), named)


def test_a_port_that_is_taken(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "in use" in refused(run("serve", "--port", port, "--data-dir", str(tmp_path / "data")), port)


@pytest.mark.parametrize("command", [("list",), ("create",), ("revoke", "x")], ids=" ".join)
def test_a_damaged_key_file(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "data" / "keys.json").write_text("{")
    refused(run("keys", *command, "--data-dir", str(tmp_path / "data")), "keys.json is damaged")
    refused(run("serve", "--port", "0", "--data-dir", str(tmp_path / "data")), "keys.json is damaged")


def test_as_a_process(tmp_path: Path) -> None:
    """The same through the interpreter: nothing is written at exit, either."""
    command = [sys.executable, "-m", "rwt_server", "serve", "--policy", "sometimes"]
    folder = ["--port", "0", "--data-dir", str(tmp_path)]
    ended = subprocess.run([*command, *folder], capture_output=True, text=True, check=False, timeout=30)
    refused((ended.returncode, ended.stdout, ended.stderr), "sometimes")
    assert list(tmp_path.iterdir()) == []


def test_keys_are_made_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    folder = ("--data-dir", str(tmp_path / "new" / "folder"))
    assert run("keys", "list", *folder) == (0, "", "no keys; make one with `rwt-server keys create`\n")
    status, out, err = run("keys", "create", "--name", "a", "--channels", "x.*", "--channels", "y", *folder)
    key_id = out.split("_")[1]
    assert (status, err) == (0, "") and out.startswith("rwt_") and out.count("\n") == 1
    status, second, err = run("keys", "create", "--json", *folder)
    made = json.loads(second)
    assert set(made) == {"id", "key", "name", "channels"} and made["channels"] is None
    assert run("keys", "revoke", key_id, *folder) == (0, f"revoked {key_id}\n", "")
    _, text, _ = run("keys", "list", *folder)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == [key_id, made["id"]]
    assert (
        "revoked" in lines[0] and "x.* y" in lines[0] and "active" in lines[1] and "all channels" in lines[1]
    )
    _, text, _ = run("keys", "list", "--json", *folder)
    rows = json.loads(text)
    assert [(row["id"], row["revoked"], row["channels"]) for row in rows] == [
        (key_id, True, ["x.*", "y"]),
        (made["id"], False, None),
    ]
    stored = (tmp_path / "new" / "folder" / "keys.json").read_text()
    for shown in (out.strip(), made["key"]):
        assert shown.split("_", 2)[2] not in stored + text


@pytest.mark.parametrize("command", [("--help",), ("serve", "--help"), ("keys", "--help")], ids=" ".join)
def test_help(run: Run, command: tuple[str, ...]) -> None:
    status, out, err = run(*command)
    assert (status, err) == (0, "") and out
