"""Channels: opening, closing, opening again, history, iterators, back-pressure of slow handlers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rwt_client import MessageMetadata, RWTSendError, RWTTimeoutError
from rwt_client.options import MAX_UNHANDLED
from rwt_protocol.codes import Use
from tests.running import Running, until

GOOD = ["x", "a/b:c*", "grüße 🐉", "x" * 255, " "]
BAD = ["", "@x", "a\nb", "a\x00", "\x7f", "x" * 256, "ü" * 128, "e\u0301", "\ud800"]


@pytest.mark.parametrize("name", GOOD)
async def test_names(server: Running, name: str) -> None:
    async with server.client() as client, client.create_channel(name) as channel:
        result = await channel.send("hi")
        assert (result.channel, result.offset) == (name, 1)


@pytest.mark.parametrize("name", BAD, ids=ascii)
async def test_names_that_cannot_be_used(server: Running, name: str) -> None:
    async with server.client() as client:
        for call in (client.create_channel, client.messages):
            with pytest.raises(ValueError) as refused:
                call(name)
            text = str(refused.value)
            assert text.startswith(f"channel {name!r} cannot be used: ") and "\n" not in text
        for attempt in (client.send(1, channel=name), client.open_channel(name)):
            with pytest.raises(ValueError, match="cannot be used"):
                await attempt
        await client.close_channel(name)
        assert client.get_channels() == []


async def test_open_close_and_open_again(server: Running) -> None:
    async with server.client() as client, server.client() as other:
        channel = client.create_channel("room")
        assert not channel.is_active() and repr(channel) == "<RWTChannel 'room' closed>"
        await channel.close()
        await channel.open()
        await channel.open()
        assert channel.is_active() and repr(channel) == "<RWTChannel 'room' active>"
        assert [found.name for found in client.get_channels()] == ["room"]
        seen: list[Any] = []
        channel.on_message(lambda data, _: seen.append(data))
        iterator = channel.messages()
        await channel.send(1)
        await until(lambda: seen == [1])
        await channel.close()
        assert not channel.is_active() and client.get_channels() == []
        assert [message.data async for message in iterator] == [1]
        await other.send("meanwhile", channel="room")
        async with channel:
            await until(lambda: seen == [1, "meanwhile"])
            assert (await channel.send(2)).offset == 3
            await until(lambda: seen == [1, "meanwhile", 2])
        assert not channel.is_active()


async def test_sending_opens_a_channel_that_receives_nothing(server: Running) -> None:
    async with server.client() as client, server.client() as other:
        await client.send(1, channel="x")
        (use,) = client._channels._uses.values()
        assert client.is_channel_active("x") and use.core.use is Use.PUBLISH
        await other.send(2, channel="x")
        await client.ping()
        assert use.core.position is not None and use.core.position.offset == 0


@pytest.mark.parametrize(
    ("history", "expected"), [(0, []), (1, [4]), (3, [2, 3, 4]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])]
)
async def test_history(server: Running, history: int, expected: list[int]) -> None:
    async with server.client() as client:
        for number in range(5):
            await client.send(number, channel="log")
    async with server.client() as client:
        iterator = client.messages("log", history=history)
        await client.open_channel("log")
        await client.send("end", channel="log")
        got = [(await anext(iterator)).data for _ in range(len(expected) + 1)]
        assert got == [*expected, "end"]


async def test_history_of_open(server: Running) -> None:
    seen: list[int] = []
    async with server.client() as client:
        await client.send(1, channel="log")
    async with server.client() as client:
        client.on("message", lambda data, _: seen.append(data))
        await client.create_channel("log").open(history=1)
        await until(lambda: seen == [1])
        with pytest.raises(ValueError, match="history=-1 cannot be used: give 0 to 4294967295"):
            await client.open_channel("log", history=-1)
        with pytest.raises(ValueError, match="history=-1 cannot be used"):
            client.messages("log", history=-1)


async def test_what_a_key_may_not_use(server: Running) -> None:
    _, key = server.keys.create("narrow", ("chat.*",))
    async with server.client(api_key=key) as client:
        iterator = client.messages("other")
        attempts = (client.open_channel("other"), client.send(1, channel="other"), anext(iterator))
        for attempt in attempts:
            with pytest.raises(RWTSendError) as refused:
                await attempt
            error = refused.value
            assert error.code == "not-authorised" and not error.can_retry() and "'other'" in str(error)
        iterator.close()
        assert not client.is_channel_active("other")
        assert (await client.send(2, channel="chat.a")).offset == 1
        errors: list[Exception] = []
        client.on("error", errors.append)
        client.on("message:secret", lambda *_: None)
        await until(lambda: bool(errors))
        assert isinstance(errors[0], RWTSendError) and errors[0].code == "not-authorised"


async def test_no_answer_in_time(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server.client() as client:
        await client.open_channel("shut")
        monkeypatch.setattr(server.node.hub, "subscribe", lambda *_: None)
        monkeypatch.setattr(server.node.hub, "unsubscribe", lambda *_: None)
        with pytest.raises(RWTTimeoutError, match=r"'x' was not opened within 0\.05 s"):
            await client.open_channel("x", timeout=0.05)
        with pytest.raises(RWTTimeoutError, match=r"'shut' was not closed within 0\.05 s"):
            await client.close_channel("shut", timeout=0.05)


async def test_several_iterators_and_handlers_see_the_same(server: Running) -> None:
    async with server.client() as client:
        one, two = client.messages("x"), client.create_channel("x").__aiter__()
        seen: list[int] = []
        client.on("message:x", lambda data, _: seen.append(data))
        for number in range(10):
            await client.send(number, channel="x")
        for iterator in (one, two):
            assert [(await anext(iterator)).data for _ in range(10)] == list(range(10))
        assert seen == list(range(10))


async def test_channels_do_not_wait_for_each_other(server: Running) -> None:
    gate = asyncio.Event()
    async with server.client() as client:

        async def stuck(*_: Any) -> None:
            await gate.wait()

        client.on("message:slow", stuck)
        iterator = client.messages("fast")
        await client.send(1, channel="slow")
        for number in range(50):
            await client.send(number, channel="fast")
            assert (await anext(iterator)).data == number
        gate.set()


@pytest.mark.parametrize("how", ["handler", "iterator"])
async def test_a_slow_reader_pauses_its_channel_and_loses_nothing(server: Running, how: str) -> None:
    """64 KiB x 128 is eight times what a client takes before it asks for a pause."""
    bodies = [number.to_bytes(2, "big") + bytes(65_534) for number in range(128)]
    gate = asyncio.Event()
    got: list[int] = []
    pressed: list[dict[str, Any]] = []
    async with server.client() as sender, server.client() as receiver:
        receiver.on("pressure", pressed.append)

        async def slow(data: bytes, _: MessageMetadata) -> None:
            await gate.wait()
            got.append(int.from_bytes(data[:2], "big"))

        async def read() -> None:
            await gate.wait()
            async for message in iterator:
                got.append(int.from_bytes(message.data[:2], "big"))

        iterator = receiver.messages("x")
        if how == "handler":
            iterator.close()
            receiver.on("message:x", slow)
        await receiver.open_channel("x")
        reading = asyncio.create_task(read() if how == "iterator" else gate.wait())
        await asyncio.gather(*[sender.send(body, channel="x") for body in bodies])
        (use,) = receiver._channels._uses.values()
        await until(lambda: use.core.use is Use.PUBLISH)
        (first, *_) = pressed
        assert first["channel"] == "x" and MAX_UNHANDLED < first["unhandled"] <= use.inbox.unhandled
        assert use.inbox.unhandled < 4 * MAX_UNHANDLED and receiver.is_channel_active("x")
        await receiver.send(bytes(2), channel="x")  # it may send while it is paused
        gate.set()
        await until(lambda: len(got) == 129)
        assert got == [*range(128), 0]
        await until(lambda: use.core.use is Use.BOTH and use.inbox.unhandled == 0)
        reading.cancel()


async def test_closing_drops_what_was_not_handled(server: Running) -> None:
    seen: list[int] = []
    gate = asyncio.Event()
    async with server.client() as client:

        async def stuck(data: int, _: MessageMetadata) -> None:
            seen.append(data)
            await gate.wait()

        client.on("message:x", stuck)
        for number in range(3):
            await client.send(number, channel="x")
        await until(lambda: client._channels.waiting == 3)
        await client.close_channel("x")
        assert client._channels.waiting == 0 and seen == [0]
        gate.set()
        await client.open_channel("x")
        await client.send(3, channel="x")
        await until(lambda: seen == [0, 3])
