"""The command `rwt-server`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from rwt_protocol import __version__
from rwt_protocol.suites import SigningKey

from . import log
from .config import SUITES, ChannelRules, ConfigError, Retention, ServerConfig, parse_retention, parse_size
from .keys import ApiKey, KeyFile
from .serve import serve as run_server

F = TypeVar("F", bound=Callable[..., Any])


class _Group(click.Group):
    """Turns a value that cannot be used into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as exc:
            raise click.ClickException(str(exc)) from exc


def _data_dir(function: F) -> F:
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("rwt-data"),
        show_default=True,
        envvar="RWT_DATA_DIR",
        help="Folder of the server's files.",
    )(function)


def _keys(data_dir: Path) -> KeyFile:
    return KeyFile(data_dir / "keys.json")


@click.group(cls=_Group)
@click.version_option(__version__)
def cli() -> None:
    """Serve Rotational WebSockets, and manage the keys that open them.

    \b
    Example:
      rwt-server keys create --name demo      # shows the key once
      rwt-server serve --port 8765
    """


# --- serve -----------------------------------------------------------------------------------------------


def _split(option: str, text: str) -> tuple[str, str]:
    pattern, equals, value = text.rpartition("=")
    if not equals or not pattern or not value:
        raise ConfigError(f'{option} {text!r} cannot be used: give "PATTERN=VALUE"')
    return pattern, value


def _channel_rules(on_full: tuple[str, ...], retention: tuple[str, ...]) -> tuple[ChannelRules, ...]:
    """One rule for each pattern, in the order in which patterns appear."""
    full = dict(_split("--on-full", text) for text in on_full)
    kept = {
        pattern: parse_retention(value) for pattern, value in (_split("--retention", t) for t in retention)
    }
    return tuple(
        ChannelRules(
            pattern=pattern,
            on_full=full.get(pattern, "trim"),
            retention=kept.get(pattern, Retention()),
        )
        for pattern in dict.fromkeys((*full, *kept))
    )


def _identity(path: Path) -> SigningKey:
    try:
        return SigningKey.from_pem(path.read_bytes())
    except OSError as exc:
        raise ConfigError(f"identity key {str(path)!r} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError(
            f"identity key {str(path)!r} cannot be used: give a PKCS #8 PEM of P-256 or Ed25519, unencrypted"
        ) from exc


@cli.command()
@_data_dir
@click.option(
    "--host", default="127.0.0.1", show_default=True, envvar="RWT_HOST", help="Address to listen on."
)
@click.option(
    "--port", type=int, default=8765, show_default=True, envvar="RWT_PORT", help="0: any free port."
)
@click.option(
    "--url", envvar="RWT_PUBLIC_URL", help="WebSocket endpoint told to clients, if a proxy stands before."
)
@click.option("--prefix", default="/rwt", show_default=True, help="Path under which all routes lie.")
@click.option(
    "--region", default="local", show_default=True, envvar="RWT_REGION", help="Name of this region."
)
@click.option("--origin", multiple=True, help="Origin that browsers may come from; repeat; * for any.")
@click.option("--trusted-proxy", multiple=True, help="Address whose X-Forwarded-For is believed; repeat.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM file; with --tls-key.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM file; with --tls-cert.")
@click.option(
    "--identity-key", type=click.Path(path_type=Path), multiple=True, help="PEM for pinned clients."
)
@click.option("--suites", default="x25519,p256", show_default=True, help=f"In order, of {', '.join(SUITES)}.")
@click.option("--policy", default="auto", show_default=True, help="Encryption: auto, always or never.")
@click.option("--rotation-interval", default="60", show_default=True, help="Seconds, 5 to 3600, or off.")
@click.option("--rotation-pattern", default="fibonacci", show_default=True, help="fixed, fibonacci or phi.")
@click.option("--renew-threshold", type=float, default=0.8, show_default=True, help="0.5 to 0.95.")
@click.option("--max-message", default="1MiB", show_default=True, help="Largest message.")
@click.option("--ping-interval", type=float, default=20.0, show_default=True, help="Seconds.")
@click.option("--handshake-timeout", type=float, default=10.0, show_default=True, help="Seconds.")
@click.option("--max-handshakes", type=int, default=1024, show_default=True, help="Not authenticated yet.")
@click.option("--max-handshakes-per-address", type=int, default=64, show_default=True, help="The same, each.")
@click.option("--on-full", multiple=True, metavar="PATTERN=trim|pace", help="What a full log does; repeat.")
@click.option(
    "--retention", multiple=True, metavar="PATTERN=BYTES,ENTRIES,SECONDS", help="What logs keep; repeat."
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info")
def serve(
    data_dir: Path,
    suites: str,
    identity_key: tuple[Path, ...],
    rotation_interval: str,
    max_message: str,
    on_full: tuple[str, ...],
    retention: tuple[str, ...],
    origin: tuple[str, ...],
    trusted_proxy: tuple[str, ...],
    log_level: str,
    **rest: Any,
) -> None:
    """Serve until SIGTERM or Ctrl-C; logs go to standard error.

    \b
    Example:
      rwt-server serve --port 8765 --on-full "files.*=pace" --retention "files.*=32MiB,,"
    """
    try:
        interval = None if rotation_interval == "off" else float(rotation_interval)
    except ValueError as exc:
        raise ConfigError(
            f"rotation_interval {rotation_interval!r} cannot be used: give 5 to 3600 seconds, or off"
        ) from exc
    config = ServerConfig(
        data_dir=data_dir,
        suites=tuple(name.strip() for name in suites.split(",")),
        identity_keys=tuple(_identity(path) for path in identity_key),
        rotation_interval=interval,
        max_message=parse_size(max_message),
        channels=_channel_rules(on_full, retention),
        origins=origin,
        trusted_proxies=trusted_proxy,
        **rest,
    )
    log.configure(log_level)
    keys = _keys(data_dir)
    if not any(not key.revoked for key in keys.all()):
        click.echo(
            "No API key yet. Make one, in another terminal, with:\n"
            f"  rwt-server keys create --name first --data-dir {data_dir}\n"
            f"Data lies in {data_dir.resolve()}; messages and sessions are kept in memory only.",
            err=True,
        )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(run_server(config, keys))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it is installed (extra `speed`)."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


# --- keys ------------------------------------------------------------------------------------------------


@cli.group(cls=_Group)
def keys() -> None:
    """Make, list and revoke API keys. A key opens sessions; only its SHA-256 is stored."""


@keys.command()
@_data_dir
@click.option("--name", default="", help="For your own memory.")
@click.option(
    "--channels", multiple=True, metavar="PATTERN", help="Channels it may use; repeat; default: all."
)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable answer.")
def create(data_dir: Path, name: str, channels: tuple[str, ...], as_json: bool) -> None:
    """Make a key and show it, once.

    \b
    Example:
      export RWT_API_KEY=$(rwt-server keys create --name chat --channels "chat.*")
    """
    for pattern in channels:
        if not pattern.strip():
            raise ConfigError(
                f'channel pattern {pattern!r} cannot be used: give a pattern such as "orders.*"'
            )
    key, presented = _keys(data_dir).create(name, channels or None)
    if as_json:
        click.echo(json.dumps({"id": key.id, "key": presented, "name": key.name, "channels": key.channels}))
    else:
        click.echo(presented)
        if sys.stdout.isatty():
            click.echo(f"Key {key.id}. It is not shown again.", err=True)


def _row(key: ApiKey) -> dict[str, Any]:
    made = datetime.fromtimestamp(key.created_ms / 1000, UTC)
    return {
        "id": key.id,
        "name": key.name,
        "created": made.isoformat(timespec="seconds"),
        "channels": key.channels,
        "revoked": key.revoked,
    }


@keys.command("list")
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="Machine-readable answer.")
def list_keys(data_dir: Path, as_json: bool) -> None:
    """List all keys, oldest first."""
    rows = [_row(key) for key in _keys(data_dir).all()]
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        click.echo("no keys; make one with `rwt-server keys create`", err=True)
    for row in rows:
        channels = "all channels" if row["channels"] is None else " ".join(row["channels"])
        state = "revoked" if row["revoked"] else "active"
        click.echo(f"{row['id']}  {row['created']}  {state:8}  {row['name'] or '-'}  {channels}")


@keys.command()
@_data_dir
@click.argument("key_id", metavar="ID")
def revoke(data_dir: Path, key_id: str) -> None:
    """Revoke a key by its id; a running server ends its sessions within a minute."""
    _keys(data_dir).revoke(key_id)
    click.echo(f"revoked {key_id}")


def main() -> None:
    """Entry point of `rwt-server`: usage errors and values that cannot be used exit with status 2."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as exc:
        click.echo(f"rwt-server: {' '.join(exc.format_message().split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
