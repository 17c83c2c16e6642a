"""Configuration of a server: frozen, checked when it is made, every refusal in one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from rwt_protocol import limits
from rwt_protocol.codes import Pattern, Policy, Suite
from rwt_protocol.rotation import RotationRules
from rwt_protocol.suites import SigningKey

SUITES = {
    "p256": Suite.P256,
    "x25519": Suite.X25519,
    "x25519mlkem768": Suite.X25519MLKEM768,
}
MIB = 1_048_576


_PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)*")
_TEN_YEARS = 315_360_000.0
_SIZE_DIGITS = 18


def _is_endpoint(url: str) -> bool:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - checked when it is read
    except ValueError:
        return False
    return parts.scheme in ("ws", "wss") and bool(parts.hostname) and not parts.query


class ConfigError(ValueError):
    """A configuration value cannot be used; the message says which, why, and what can."""


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise ConfigError(f"{name} {value!r} cannot be used: give {wanted}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much of a channel's log is kept; what is reached first counts.

    Args:
        max_bytes: Bytes.
        max_messages: Entries.
        max_age: Seconds.
    """

    max_bytes: int = 128 * MIB
    max_messages: int = 100_000
    max_age: float = 3_600.0

    def __post_init__(self) -> None:
        _check(self.max_bytes >= 65_536, "max_bytes", self.max_bytes, "at least 65536")
        _check(self.max_messages >= 1, "max_messages", self.max_messages, "at least 1")
        _check(0 < self.max_age <= _TEN_YEARS, "max_age", self.max_age, "seconds above 0, ten years at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRules:
    """Rules of the channels whose name matches `pattern` (`*` stands for anything).

    Args:
        on_full: `trim` drops the oldest entries; `pace` makes publishers wait for readers that are more than
            half the retention behind, at most 30 s.
    """

    pattern: str = "*"
    retention: Retention = field(default_factory=Retention)
    on_full: str = "trim"

    def __post_init__(self) -> None:
        _check(bool(self.pattern), "channel pattern", self.pattern, 'a pattern such as "orders.*"')
        _check(self.on_full in ("trim", "pace"), "on_full", self.on_full, '"trim" or "pace"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """All that a server can be told.

    Args:
        host, port: Where `rwt-server serve` listens; port 0 takes a free one.
        prefix: Path under which all routes lie.
        url: The full WebSocket endpoint told to clients; None: made from host and port.
        region: Name told in discovery; a ticket request for another is refused.
        origins: Values of the Origin header that browsers may send; empty: none, "*": any.
        trusted_proxies: Addresses whose X-Forwarded-For is believed.
        data_dir: Folder of the server's files.
        tls_cert, tls_key: PEM files; both or none.
        identity_keys: Private keys that sign for pinned clients.
        suites: In order of preference.
        policy: `auto`, `always` or `never`: about encryption, when a message says nothing.
        rotation_interval: Seconds, 5 to 3600; None: no rotation by time.
        rotation_pattern: `fixed`, `fibonacci` or `phi`.
        renew_threshold: Share of a lifetime after which a rotation is offered, 0.5 to 0.95.
        max_message: Bytes of one message's body, 1,024 to 16,646,144.
        ping_interval: Seconds.
        handshake_timeout: Seconds from accept to an open session.
        max_handshakes: Connections that are not authenticated yet, in all and per address.
        channels: The first pattern that matches a name decides.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    prefix: str = "/rwt"
    url: str | None = None
    region: str = "local"
    origins: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    data_dir: Path = Path("rwt-data")
    tls_cert: Path | None = None
    tls_key: Path | None = None
    identity_keys: tuple[SigningKey, ...] = ()
    suites: tuple[str, ...] = ("x25519", "p256")
    policy: str = "auto"
    rotation_interval: float | None = 60.0
    rotation_pattern: str = "fibonacci"
    renew_threshold: float = 0.8
    max_message: int = limits.MAX_MESSAGE
    ping_interval: float = 20.0
    handshake_timeout: float = 10.0
    max_handshakes: int = 1_024
    max_handshakes_per_address: int = 64
    channels: tuple[ChannelRules, ...] = ()

    def __post_init__(self) -> None:
        _check(0 <= self.port <= 65_535, "port", self.port, "0 to 65535")
        _check(bool(self.host), "host", self.host, "an address such as 127.0.0.1")
        prefix = self.prefix
        _check(_PREFIX.fullmatch(prefix) is not None, "prefix", prefix, 'a path such as "/rwt"')
        if self.url is not None:
            wanted = 'a WebSocket URL such as "wss://example.org/rwt/v2/ws"'
            _check(_is_endpoint(self.url), "url", self.url, wanted)
        _check(bool(self.region), "region", self.region, "a name")
        for name, given, other in (
            ("cert", self.tls_cert, self.tls_key),
            ("key", self.tls_key, self.tls_cert),
        ):
            lone = given is not None and other is None
            _check(not lone, f"tls_{name}", str(given), "certificate and key, both or none")
        known = ", ".join(SUITES)
        _check(bool(self.suites), "suites", self.suites, f"at least one of {known}")
        for suite in self.suites:
            _check(suite in SUITES, "suite", suite, f"one of {known}")
        _check(len(set(self.suites)) == len(self.suites), "suites", self.suites, "each suite once")
        policies = [policy.name.lower() for policy in Policy]
        _check(self.policy in policies, "policy", self.policy, f"one of {', '.join(policies)}")
        interval = self.rotation_interval
        _check(interval is None or 5 <= interval <= 3_600, "rotation_interval", interval, "5 to 3600 seconds")
        patterns = ", ".join(Pattern)
        _check(self.rotation_pattern in set(Pattern), "rotation_pattern", self.rotation_pattern, patterns)
        _check(0.5 <= self.renew_threshold <= 0.95, "renew_threshold", self.renew_threshold, "0.5 to 0.95")
        most = limits.MAX_FRAME - limits.FRAME_OVERHEAD
        _check(1_024 <= self.max_message <= most, "max_message", self.max_message, f"1024 to {most}")
        _check(1 <= self.ping_interval <= 3_600, "ping_interval", self.ping_interval, "1 to 3600 seconds")
        _check(0.5 <= self.handshake_timeout <= 60, "handshake_timeout", self.handshake_timeout, "0.5 to 60")
        _check(self.max_handshakes >= 1, "max_handshakes", self.max_handshakes, "at least 1")
        _check(
            self.max_handshakes_per_address >= 1,
            "max_handshakes_per_address",
            self.max_handshakes_per_address,
            "at least 1",
        )

    @property
    def rotation(self) -> RotationRules:
        return RotationRules(
            enabled=self.rotation_interval is not None,
            interval_ms=int((self.rotation_interval or 60.0) * 1000),
            pattern=Pattern(self.rotation_pattern),
            threshold=round(self.renew_threshold * 1000),
        )


_SIZES: Mapping[str, int] = {"": 1, "KiB": 1_024, "MiB": MIB, "GiB": 1_024 * MIB}


def parse_size(text: str) -> int:
    """Read a size such as `65536`, `512KiB` or `128MiB`.

    Raises:
        ConfigError: it is none.
    """
    for unit in ("KiB", "MiB", "GiB", ""):
        if text.endswith(unit):
            digits = text[: len(text) - len(unit)].strip()
            if digits.isascii() and digits.isdigit() and len(digits) <= _SIZE_DIGITS:
                return int(digits) * _SIZES[unit]
            break
    raise ConfigError(f"size {text!r} cannot be used: give bytes, or a number with KiB, MiB or GiB")


def parse_retention(text: str) -> Retention:
    """Read `128MiB,100000,3600`: bytes, entries, seconds; parts that are left empty keep their default.

    Raises:
        ConfigError: it is none.
    """
    default = Retention()
    parts = [part.strip() for part in text.split(",")]
    _check(len(parts) <= 3, "retention", text, '"BYTES,ENTRIES,SECONDS"')
    size, entries, age = [*parts, "", ""][:3]
    try:
        return Retention(
            max_bytes=parse_size(size) if size else default.max_bytes,
            max_messages=int(entries) if entries else default.max_messages,
            max_age=float(age) if age else default.max_age,
        )
    except ValueError as exc:
        if isinstance(exc, ConfigError):
            raise
        raise ConfigError(f'retention {text!r} cannot be used: give "BYTES,ENTRIES,SECONDS"') from exc
