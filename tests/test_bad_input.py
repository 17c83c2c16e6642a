"""Every option and argument with a value that cannot be used: one clear line, exit status 2, no traceback."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from rwt_client import DragonFireClient, RWTClient
from rwt_client.cli import cli as client_cli
from rwt_client.cli import main as client_main
from rwt_server.cli import cli as server_cli
from rwt_server.cli import main as server_main
from rwt_server.config import ConfigError, Retention, ServerConfig

KEY = "rwt_0123_secret"

SERVE: dict[str, list[str]] = {
    "--data-dir": ["/dev/null/x"],
    "--host": ["256.0.0.1", "no.such.host.invalid"],
    "--port": ["70000", "-1", "eighty"],
    "--url": ["http://x", "wss://", "ws://h/p?token=1"],
    "--prefix": ["rwt", "/rwt/"],
    "--region": [""],
    "--origin": [],
    "--trusted-proxy": [],
    "--tls-cert": ["/no/such.pem"],
    "--tls-key": ["/no/such.pem"],
    "--identity-key": ["/no/such.pem", "{file}"],
    "--suites": ["rsa", "", "x25519,x25519"],
    "--policy": ["sometimes"],
    "--rotation-interval": ["1", "4000", "nan", "soon"],
    "--rotation-pattern": ["golden"],
    "--renew-threshold": ["0.1", "1", "half"],
    "--max-message": ["10", "1TiB", "many", "64MiB"],
    "--ping-interval": ["0", "1e9"],
    "--handshake-timeout": ["0", "100"],
    "--max-handshakes": ["0"],
    "--max-handshakes-per-address": ["-5"],
    "--on-full": ["x", "x=drop", "=pace"],
    "--retention": ["x", "x=1", "x=1MiB,0", "x=,,never", "x=1,2,3,4"],
    "--log-level": ["loud"],
}
"""Any value of Origin and of a proxy's address is a text to compare with: none is wrong."""

COMMON: dict[str, list[str]] = {
    "--url": ["ftp://x", "http://", "http://h:99999", "http://example.org", "http://h/?key=1"],
    "--api-key": ["secret", "rwt_x", "rwt_x_ y", ""],
    "--user": [],
    "--region": [],
    "--allow-insecure": [],
    "--rotation-interval": ["1", "5000", "often", "nan"],
    "--events": [],
    "--timeout": ["0", "-1", "soon"],
}
CLIENT: dict[str, dict[str, list[str]]] = {
    "pub": {"--raw": [], "--chunk-size": ["0", "2000000", "big"], "--quiet": [], "--json": []},
    "sub": {
        "--raw": [],
        "--json": [],
        "--history": ["-1", "all"],
        "--count": ["0", "x"],
        "--bytes": ["0", "x"],
        "--quiet": [],
    },
    "status": {"--json": []},
    "bench": {
        "--messages": ["0", "99999999", "x"],
        "--size": ["0", "2000000"],
        "--window": ["0", "5000"],
        "--channel": ["", "@x", "a\u0301"],
        "--json": [],
    },
}
CHANNELS = ["", "@reserved", "a\nb", "x" * 256, "e\u0301"]


def run(
    main: object, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run a command in this process and return its one line."""
    assert callable(main)
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    monkeypatch.delenv("RWT_API_KEY", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2, (arguments, out, err)
    lines = [line for line in err.splitlines() if line]
    assert not out and "Traceback" not in err
    if lines[0].startswith("No API key yet"):
        lines = lines[-1:]
    assert len(lines) == 1, lines
    return lines[0]


def options(command: click.Command) -> set[str]:
    return {opt for param in command.params for opt in param.opts if opt.startswith("--")} - {"--help"}


def test_the_tables_miss_no_option() -> None:
    assert options(server_cli.commands["serve"]) == set(SERVE)
    assert set(client_cli.commands) == set(CLIENT)
    for name, command in client_cli.commands.items():
        assert options(command) == {*COMMON, *CLIENT[name]}, name
    keys = server_cli.commands["keys"]
    assert isinstance(keys, click.Group)
    assert {name: options(command) for name, command in keys.commands.items()} == {
        "create": {"--data-dir", "--name", "--channels", "--json"},
        "list": {"--data-dir", "--json"},
        "revoke": {"--data-dir"},
    }


@pytest.mark.parametrize(
    ("option", "value"), [(option, value) for option, values in SERVE.items() for value in values]
)
def test_serve(
    option: str,
    value: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if value == "{file}":
        (tmp_path / "key.pem").write_text("no key")
        value = str(tmp_path / "key.pem")
    more = {"--tls-cert": ["--tls-key", "/no/key"], "--tls-key": ["--tls-cert", "/no/cert"]}.get(option, [])
    folder = [] if option == "--data-dir" else ["--data-dir", str(tmp_path)]
    port = [] if option == "--port" else ["--port", "0"]
    line = run(server_main, ["serve", *folder, *port, option, value, *more], monkeypatch, capsys)
    shown = value.rpartition("=")[2] if option in ("--on-full", "--retention") and value != "x" else value
    assert line.startswith("rwt-server: "), line
    shown = {"64MiB": "67108864", "1e9": "1000000000.0"}.get(shown, shown)
    assert any(part in line for part in (shown, *filter(None, shown.split(",")))) or not shown, line


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        (command, option, value)
        for command, own in CLIENT.items()
        for option, values in {**COMMON, **own}.items()
        for value in values
    ],
)
def test_client(
    command: str,
    option: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key = [] if option == "--api-key" else ["--api-key", KEY]
    channel = ["chat"] if command in ("pub", "sub") else []
    line = run(client_main, [command, *channel, *key, option, value], monkeypatch, capsys)
    assert line.startswith("rwt: "), line
    shown = (
        "of 6 characters"
        if value == "secret"
        else value.rpartition("_")[0]
        if option == "--api-key"
        else value
    )
    assert shown in line or repr(value) in line or f"{float(value)}" in line, line


@pytest.mark.parametrize("command", ["pub", "sub"])
@pytest.mark.parametrize("channel", CHANNELS)
def test_channel_names(
    command: str, channel: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run(client_main, [command, "--api-key", KEY, "--", channel], monkeypatch, capsys)
    assert line.startswith("rwt: channel ") and repr(channel) in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["pub"],
        ["sub"],
        ["pub", "x", "--raw", "text"],
        ["sub", "x", "--raw", "--json"],
        ["fly"],
        ["sub", "--up"],
    ],
    ids=" ".join,
)
def test_client_usage(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--api-key", KEY] if arguments[0] != "fly" else []
    assert run(client_main, [*arguments, *more], monkeypatch, capsys).startswith("rwt: ")


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ["--data-dir", str(tmp_path)]
    assert "'nobody'" in run(server_main, ["keys", "revoke", "nobody", *folder], monkeypatch, capsys)
    assert "''" in run(server_main, ["keys", "create", "--channels", "", *folder], monkeypatch, capsys)
    (tmp_path / "keys.json").write_text("{")
    for command in (["list"], ["create"], ["revoke", "x"]):
        line = run(server_main, ["keys", *command, *folder], monkeypatch, capsys)
        assert "keys.json" in line and "damaged" in line
    line = run(server_main, ["keys", "create", "--data-dir", "/dev/null/x"], monkeypatch, capsys)
    assert "/dev/null/x" in line


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    folder = ["--data-dir", str(tmp_path)]
    runner = CliRunner()
    made = runner.invoke(server_cli, ["keys", "create", "--name", "a", "--channels", "x.*", *folder])
    assert made.exit_code == 0
    secret = made.stdout.strip()
    stored = (tmp_path / "keys.json").read_text()
    assert secret.split("_", 2)[2] not in stored and (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    listed = runner.invoke(server_cli, ["keys", "list", *folder]).stdout
    assert "active" in listed and "x.*" in listed and secret not in listed
    runner.invoke(server_cli, ["keys", "revoke", secret.split("_")[1], *folder])
    assert "revoked" in runner.invoke(server_cli, ["keys", "list", *folder]).stdout


@pytest.mark.parametrize(
    "options",
    [{"port": 99_999}, {"suites": ("x",)}, {"prefix": "x"}, {"max_message": 1}, {"region": ""}],
    ids=str,
)
def test_configuration_as_a_library(options: dict[str, object]) -> None:
    (value,) = options.values()
    with pytest.raises(ConfigError, match="give") as refused:
        ServerConfig(**options)  # type: ignore[arg-type]
    text = value[0] if isinstance(value, tuple) else value
    assert repr(text) in str(refused.value) and "\n" not in str(refused.value)


def test_retention_as_a_library() -> None:
    with pytest.raises(ConfigError, match="max_messages 0"):
        Retention(max_messages=0)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("configure_token_rotation", {"interval": 1}),
        ("configure_token_rotation", {"interval": float("nan")}),
        ("configure_token_rotation", {"pattern": "golden"}),
        ("configure_token_rotation", {"renew_threshold": 1.5}),
        ("configure_reconnection", {"max_attempts": 0}),
        ("configure_reconnection", {"base_delay": -1}),
        ("configure_reconnection", {"max_delay": 0}),
        ("configure_reconnection", {"backoff_factor": 0.5}),
        ("configure_reconnection", {"jitter": 2}),
    ],
    ids=str,
)
def test_options_of_the_client(method: str, options: dict[str, object]) -> None:
    client = RWTClient(DragonFireClient(api_key=KEY))
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match="give") as refused:
        getattr(client, method)(**options)
    assert f"{name}={value!r}" in str(refused.value)


def test_secrets_do_not_print() -> None:
    dragonfire = DragonFireClient(api_key=KEY)
    assert "secret" not in repr(dragonfire) + repr(RWTClient(dragonfire))
