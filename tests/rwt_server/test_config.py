"""Configuration of a server: what is accepted, and one line for what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from rwt_protocol.codes import Pattern
from rwt_protocol.limits import FRAME_OVERHEAD, MAX_FRAME
from rwt_server import ChannelRules, ConfigError, Retention, ServerConfig
from rwt_server.config import MIB, parse_retention, parse_size

MOST = MAX_FRAME - FRAME_OVERHEAD
REFUSED: list[tuple[str, Any]] = [
    ("port", -1),
    ("port", 65_536),
    ("prefix", "rwt"),
    ("prefix", "/rwt/"),
    ("prefix", "/{x}"),
    ("url", "http://h/p"),
    ("url", "ws://"),
    ("url", "wss://h/p?token=1"),
    ("region", ""),
    ("suites", ()),
    ("suites", ("rsa",)),
    ("suites", ("p256", "p256")),
    ("policy", "sometimes"),
    ("policy", "AUTO"),
    ("rotation_interval", 4.999),
    ("rotation_interval", 3_600.001),
    ("rotation_interval", float("nan")),
    ("rotation_pattern", "golden"),
    ("renew_threshold", 0.49),
    ("renew_threshold", 0.96),
    ("max_message", 1_023),
    ("max_message", MOST + 1),
    ("ping_interval", 0.9),
    ("ping_interval", float("inf")),
    ("handshake_timeout", 0.4),
    ("handshake_timeout", 61),
    ("max_handshakes", 0),
    ("max_handshakes_per_address", 0),
]
ACCEPTED: list[tuple[str, Any]] = [
    ("port", 0),
    ("port", 65_535),
    ("prefix", ""),
    ("prefix", "/a/b"),
    ("url", "wss://h/p"),
    ("suites", ("x25519mlkem768",)),
    ("policy", "always"),
    ("rotation_interval", 5),
    ("rotation_interval", 3_600),
    ("rotation_interval", None),
    ("rotation_pattern", "phi"),
    ("renew_threshold", 0.5),
    ("renew_threshold", 0.95),
    ("max_message", 1_024),
    ("max_message", MOST),
    ("handshake_timeout", 0.5),
]


def refuse(kind: Callable[..., object], name: str, value: object) -> None:
    kind(**{name: value})


@pytest.mark.parametrize(("name", "value"), REFUSED, ids=str)
def test_a_refusal_is_one_line_with_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="cannot be used: give ") as refused:
        ServerConfig(**{name: value})
    text = str(refused.value)
    shown = value[0] if isinstance(value, tuple) and value == ("rsa",) else value
    assert "\n" not in text and repr(shown) in text and text.startswith(name.rstrip("s")[:5])


@pytest.mark.parametrize(("name", "value"), ACCEPTED, ids=str)
def test_limits_are_inclusive(name: str, value: Any) -> None:
    assert getattr(ServerConfig(**{name: value}), name) == value


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_certificate_and_key_belong_together(given: str) -> None:
    with pytest.raises(ConfigError, match="both or none"):
        refuse(ServerConfig, given, Path("x.pem"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_bytes", 65_535),
        ("max_messages", 0),
        ("max_age", 0.0),
        ("max_age", float("inf")),
        ("max_age", float("nan")),
    ],
    ids=str,
)
def test_retentions_that_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        Retention(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("pattern", ""), ("on_full", "drop")], ids=str)
def test_channel_rules_that_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=repr(value)):
        refuse(ChannelRules, name, value)


def test_defaults_of_the_specification() -> None:
    """Sections 9.4 and 10.1."""
    config, keep = ServerConfig(), Retention()
    assert (keep.max_bytes, keep.max_messages, keep.max_age) == (134_217_728, 100_000, 3_600.0)
    rotation = config.rotation
    assert (rotation.enabled, rotation.interval_ms) == (True, 60_000)
    assert (rotation.pattern, rotation.threshold) == (Pattern.FIBONACCI, 800)
    assert config.max_handshakes_per_address == 64 and config.origins == ()


def test_rotation_can_be_off_and_is_told_in_permille() -> None:
    assert not ServerConfig(rotation_interval=None).rotation.enabled
    rotation = ServerConfig(rotation_interval=7.5, renew_threshold=0.657, rotation_pattern="fixed").rotation
    assert (rotation.interval_ms, rotation.threshold, rotation.pattern) == (7_500, 657, Pattern.FIXED)


def test_a_configuration_does_not_change() -> None:
    config = ServerConfig()
    with pytest.raises(FrozenInstanceError):
        config.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("65536", 65_536), ("1KiB", 1_024), ("2 MiB", 2 * MIB), ("3GiB", 3_072 * MIB)],
    ids=str,
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5MiB", "1MB", "1mib", "²", "0x10"], ids=repr)
def test_texts_that_are_no_size(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (",,", Retention()),
        ("1MiB", Retention(max_bytes=MIB)),
        ("32MiB,,", Retention(max_bytes=32 * MIB)),
        (",5", Retention(max_messages=5)),
        (",,0.5", Retention(max_age=0.5)),
        ("1MiB, 7 ,60", Retention(max_bytes=MIB, max_messages=7, max_age=60.0)),
    ],
    ids=str,
)
def test_retentions(text: str, expected: Retention) -> None:
    assert parse_retention(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("1,2,3,4", "1,2,3,4"),
        ("x", "'x'"),
        (",x", "',x'"),
        (",,x", "',,x'"),
        (",0", "0"),
        ("1", "1"),
        (",,nan", "nan"),
    ],
    ids=str,
)
def test_texts_that_are_no_retention(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_retention(text)
    assert named in str(refused.value) and "\n" not in str(refused.value)
