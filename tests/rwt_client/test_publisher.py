"""Sending: results, order, levels, refusals, limits, back-pressure, cancelling."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rwt_client import (
    RWTEncodingError,
    RWTSendError,
    RWTTimeoutError,
    SendResult,
)
from rwt_client.options import SEND_BUFFER
from rwt_server.config import ChannelRules
from rwt_server.hub import Channel as HubChannel
from tests.running import Running, running, until

VALUES: list[Any] = [
    b"",
    b"\x00\xff",
    "",
    "grüße 🐉",
    None,
    False,
    {},
    [],
    2**53 + 1,
    1.5,
    {"schlüssel": [{"": [[[["tief"]]]]}]},
]


@pytest.mark.parametrize("level", ["clear", "standard", "high", "maximum"])
async def test_every_value_at_every_level(server: Running, level: str) -> None:
    options: dict[str, Any] = {"encrypt": False} if level == "clear" else {"encryption_level": level}
    async with server.client(user="ada") as sender, server.client(user="bob") as receiver:
        iterator = receiver.messages("x")
        await receiver.open_channel("x")
        before = time.time()
        for number, value in enumerate(VALUES, 1):
            result = await sender.send(value, channel="x", **options)
            assert isinstance(result, SendResult)
            assert (result.message_id, result.offset, result.channel) == (number, number, "x")
            assert abs(result.timestamp - before) < 60 and 0 < result.round_trip < 10 and result.size >= 2
            message = await anext(iterator)
            assert message.data == value and type(message.data) is type(value)
            meta = message.metadata
            assert (meta.offset, meta.sender, meta.own, meta.level) == (number, "ada", False, level)
            assert meta.timestamp == result.timestamp


async def test_bytes_like_values_arrive_as_bytes(server: Running) -> None:
    async with server.client() as client:
        iterator = client.messages()
        for value in (bytearray(b"a\x00"), memoryview(b"xa\x00")[1:]):
            await client.send(value)
            message = await anext(iterator)
            assert message.data == b"a\x00" and type(message.data) is bytes and message.metadata.own


async def test_a_changed_value_changes_nothing_that_was_sent(server: Running) -> None:
    async with server.client() as client:
        iterator = client.messages("x")
        value, document = bytearray(b"before"), {"a": 1}
        answers = [client.send_nowait(value, channel="x"), client.send_nowait(document, channel="x")]
        value[:] = b"after!"
        document["a"] = 2
        await asyncio.gather(*answers)
        assert [(await anext(iterator)).data for _ in range(2)] == [b"before", {"a": 1}]


@pytest.mark.parametrize("value", [float("nan"), {1}, "\ud800", [b"x"]], ids=["NaN", "set", "text", "bytes"])
async def test_what_cannot_be_encoded_is_refused_before_anything_is_sent(
    server: Running, value: object
) -> None:
    async with server.client() as client:
        for attempt in (client.send, client.send_nowait):
            with pytest.raises(RWTEncodingError):
                await attempt(value, channel="x")
        assert client.get_status().pending == 0 and not client._channels._uses["x"].core.wanted
        assert "x" not in server.node.hub.channels


async def test_the_largest_message(tmp_path: Path) -> None:
    async with running(tmp_path, max_message=65_536) as server, server.client() as client:
        iterator = client.messages("x")
        body = os.urandom(65_536)
        await client.send(body, channel="x", encryption_level="high")
        assert (await anext(iterator)).data == body
        for value in (body + b"x", "ü" * 32_769):
            with pytest.raises(
                RWTEncodingError, match="over the server's limit of 65536: split it"
            ) as refused:
                await client.send(value, channel="x")
            assert refused.value.code == "too-large" and refused.value.details["limit"] == 65_536
        assert (await client.send(b"", channel="x")).offset == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"encryption_level": "low"},
            "encryption_level='low' cannot be used: give one of standard, high, maximum",
        ),
        ({"encryption_level": ""}, "encryption_level='' cannot be used"),
        ({"encrypt": False, "encryption_level": "high"}, "encrypt=False and encryption_level='high' exclude"),
        ({"channel": "@x"}, "channel '@x' cannot be used"),
    ],
    ids=["level", "no level", "both", "channel"],
)
async def test_options_that_cannot_be_used(server: Running, options: dict[str, Any], text: str) -> None:
    async with server.client() as client:
        for attempt in (client.send, client.send_nowait):
            with pytest.raises(ValueError, match=text):
                await attempt(1, **options)


async def test_many_pipelined_messages_keep_their_order(server: Running) -> None:
    async with server.client() as sender, server.client() as receiver:
        iterator = receiver.messages("x")
        await receiver.open_channel("x")
        answers = [sender.send_nowait(number, channel="x") for number in range(3_000)]
        tasks = [asyncio.create_task(sender.send(number, channel="x")) for number in range(3_000, 5_000)]
        results = await asyncio.gather(*answers, *tasks)
        assert [result.offset for result in results] == list(range(1, 5_001))
        assert [result.message_id for result in results] == list(range(1, 5_001))
        assert [(await anext(iterator)).data for _ in range(5_000)] == list(range(5_000))
        assert sender.get_status().pending == 0


async def test_levels_and_channels_mixed(server: Running) -> None:
    """Each change of channel or level begins a new frame; order holds within each channel."""
    levels = ["standard", "high", "maximum"]
    async with server.client() as client:
        iterators = {name: client.messages(name) for name in ("a", "b")}
        answers = [
            client.send_nowait(number, channel="ab"[number % 2], encryption_level=levels[number % 3])
            for number in range(600)
        ]
        await asyncio.gather(*answers)
        for start, name in enumerate("ab"):
            got = [await anext(iterators[name]) for _ in range(300)]
            assert [message.data for message in got] == list(range(start, 600, 2))
            assert [message.metadata.level for message in got] == [
                levels[n % 3] for n in range(start, 600, 2)
            ]


async def test_a_refused_channel_refuses_its_messages_only(server: Running) -> None:
    _, key = server.keys.create("narrow", ("chat.*",))
    async with server.client(api_key=key) as client:
        refused = [client.send_nowait(number, channel="other") for number in range(3)]
        stored = [client.send_nowait(number, channel="chat.x") for number in range(3)]
        assert [result.offset for result in await asyncio.gather(*stored)] == [1, 2, 3]
        for error in await asyncio.gather(*refused, return_exceptions=True):
            assert isinstance(error, RWTSendError) and error.code == "not-authorised"
            assert error.recovery.strategy == "fix-input"


async def test_buffer_full(server: Running) -> None:
    body = bytes(1_048_576)
    async with server.client() as client:
        answers = [client.send_nowait(body, channel="x") for _ in range(4)]
        for size in (1, 1_048_576):
            with pytest.raises(RWTSendError, match="wait for earlier results") as full:
                client.send_nowait(bytes(size), channel="x")
            assert full.value.code == "buffer-full"
            assert full.value.details == {"bytes": SEND_BUFFER, "limit": SEND_BUFFER}
        await asyncio.gather(*answers)
        assert (await client.send_nowait(body, channel="x")).offset == 5


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A server that holds every message back while the list has an element."""
    holding = [True]
    monkeypatch.setattr(HubChannel, "too_far_behind", lambda *_: bool(holding))
    return holding


PACED = (ChannelRules(pattern="*", on_full="pace"),)


async def test_send_waits_while_too_much_is_under_way(server: Running) -> None:
    body = bytes(262_144)
    async with server.client() as client:
        tasks = [asyncio.create_task(client.send(body, channel="x")) for _ in range(64)]
        most = 0
        while not all(task.done() for task in tasks):
            most = max(most, client.get_status().pending)
            await asyncio.sleep(0)
        results = await asyncio.gather(*tasks)
        assert 1 < most <= 16
        assert [result.offset for result in results] == list(range(1, 65))


async def test_a_timeout_tells_whether_anything_left(tmp_path: Path, held: list[bool]) -> None:
    async with running(tmp_path, channels=PACED) as server, server.client() as client:
        await client.open_channel("x")
        with pytest.raises(RWTTimeoutError, match=r"no answer within 0\.05 s") as late:
            await client.send("sent", channel="x", timeout=0.05)
        assert late.value.details == {"sent": True, "channel": "x"}
        held.clear()


async def test_what_has_not_left_is_withdrawn(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server.client() as client:
        await client.send(0, channel="open")
        with monkeypatch.context() as patch:
            patch.setattr(server.node.hub, "subscribe", lambda *_: None)
            with pytest.raises(RWTTimeoutError) as late:
                await client.send("never", channel="x", timeout=0.05)
            assert late.value.details == {"sent": False, "channel": "x"}
            task = asyncio.create_task(client.send("never", channel="x"))
            await asyncio.sleep(0)
            assert client.get_status().pending == 1
            task.cancel()
            await asyncio.wait([task])
        assert client.get_status().pending == 0


async def test_the_status_counts(server: Running) -> None:
    async with server.client() as client:
        answers = [client.send_nowait(b"abc", channel="x") for _ in range(7)]
        assert client.get_status().pending == 7
        await asyncio.gather(*answers)
        status = client.get_status()
        assert status.pending == 0 and status.latency is not None and status.compression_ratio == 1.0
        await until(lambda: client.get_status().uptime > 0)
