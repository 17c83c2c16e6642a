"""Every option out of range is refused in one line that names the value and what can be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from rwt_client import DragonFireClient, Reconnection, RWTClient, TokenRotation
from rwt_client.options import Message, MessageMetadata
from rwt_protocol.frames import RotationTerms

NAN, INF = float("nan"), float("inf")

ROTATION: Mapping[str, tuple[list[Any], list[Any], str]] = {
    "interval": ([5, 60.5, 3_600], [4.999, 3_601, 0, -5, NAN, INF, "60", None], "5 to 3600 s"),
    "pattern": (["fixed", "fibonacci", "phi"], ["golden", "", "FIXED", None], "one of fixed, fibonacci, phi"),
    "renew_threshold": ([0.5, 0.8, 0.95], [0.49, 0.96, 1, NAN, "0.8", None], "0.5 to 0.95"),
}
RECONNECTION: Mapping[str, tuple[list[Any], list[Any], str]] = {
    "max_attempts": ([1, 1_000, None], [0, -1, NAN], "a whole number of at least 1, or None"),
    "base_delay": ([0, 0.5, 30], [-0.1, NAN, INF, "1", None], "seconds, 0 or more"),
    "max_delay": ([1, 1e9], [0.5, NAN, INF, "30", None], "at least base_delay"),
    "backoff_factor": ([1, 2.5], [0.99, 0, NAN, INF, "2", None], "at least 1"),
    "jitter": ([0, 0.2, 1], [-0.1, 1.1, NAN, "0", None], "0 to 1"),
}
BOTH = [
    (TokenRotation, "configure_token_rotation", ROTATION),
    (Reconnection, "configure_reconnection", RECONNECTION),
]


@pytest.fixture
def client() -> RWTClient:
    return RWTClient(DragonFireClient(api_key="rwt_id_secret"))


@pytest.mark.parametrize(("kind", "method", "table"), BOTH, ids=["rotation", "reconnection"])
def test_the_table_misses_no_option(kind: type[Any], method: str, table: Mapping[str, Any]) -> None:
    switches = {field.name for field in dataclasses.fields(kind) if field.type == "bool"}
    assert {field.name for field in dataclasses.fields(kind)} == {*table, *switches}
    assert callable(getattr(RWTClient, method))


@pytest.mark.parametrize(
    ("kind", "method", "name", "value", "wanted"),
    [
        (kind, method, name, value, wanted)
        for kind, method, table in BOTH
        for name, (_, bad, wanted) in table.items()
        for value in bad
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", repr(value)),
)
def test_out_of_range(
    client: RWTClient, kind: type[Any], method: str, name: str, value: Any, wanted: str
) -> None:
    for refuse in (kind, getattr(client, method)):
        with pytest.raises(ValueError) as refused:
            refuse(**{name: value})
        assert str(refused.value) == f"{name}={value!r} cannot be used: give {wanted}"


@pytest.mark.parametrize(("kind", "method", "table"), BOTH, ids=["rotation", "reconnection"])
def test_in_range(client: RWTClient, kind: type[Any], method: str, table: Mapping[str, Any]) -> None:
    for name, (good, _, _) in table.items():
        for value in good:
            more = {"max_delay": 100.0} if name == "base_delay" else {}
            assert getattr(kind(**{name: value}, **more), name) == value
            getattr(client, method)(**{name: value}, **more)


@pytest.mark.parametrize(("kind", "method", "table"), BOTH, ids=["rotation", "reconnection"])
def test_the_defaults_are_those_of_the_client(kind: type[Any], method: str, table: Mapping[str, Any]) -> None:
    client = RWTClient(DragonFireClient(api_key="rwt_id_secret"))
    getattr(client, method)()
    supervisor = client._supervisor
    assert kind() in (supervisor.rotation, supervisor.reconnection)


def test_a_maximum_delay_is_not_below_the_first() -> None:
    with pytest.raises(ValueError, match=r"max_delay=30\.0 cannot be used: give at least base_delay"):
        Reconnection(base_delay=31)


def test_terms_are_milliseconds_and_permille() -> None:
    assert TokenRotation(interval=5.5, pattern="phi", renew_threshold=0.625).terms == RotationTerms(
        5_500, "phi", 625
    )


def test_what_is_granted_may_be_more_than_what_may_be_asked_for() -> None:
    granted = TokenRotation.granted(RotationTerms(7_200_000, "lunar", 990))
    assert (granted.interval, granted.pattern, granted.renew_threshold) == (7_200.0, "lunar", 0.99)


@pytest.mark.parametrize("value", [TokenRotation(), Reconnection()], ids=["rotation", "reconnection"])
def test_options_are_frozen(value: Any) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, 1)


@pytest.mark.parametrize("policy", ["", "AUTO", "sometimes"])
def test_policy(policy: str) -> None:
    with pytest.raises(ValueError) as refused:
        RWTClient(DragonFireClient(api_key="rwt_id_secret"), policy=policy)
    assert str(refused.value) == f"policy={policy!r} cannot be used: give one of auto, always, never"


def test_a_message_tells_its_channel_and_offset() -> None:
    metadata = MessageMetadata(
        channel="x",
        offset=7,
        timestamp=0.0,
        sender=None,
        own=False,
        priority="normal",
        level="high",
        form="text",
    )
    message = Message(data="a", metadata=metadata, size=1)
    assert (message.channel, message.offset) == ("x", 7)
