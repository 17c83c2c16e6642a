"""Defects of the client that were found once, one smallest example each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from rwt_client import (
    DragonFireClient,
    MessageMetadata,
    RWTClient,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTSendError,
)
from rwt_client import supervisor as supervisor_module
from tests.running import Running, until


def _own_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks()]
    return sorted(name for name in names if name.startswith("rwt-") and name != "rwt-heartbeat")


async def test_disconnect_waits_for_the_handler_that_runs(server: Running) -> None:
    done: list[Any] = []
    started = asyncio.Event()
    client = server.client()
    await client.connect()

    async def handler(data: Any, _: MessageMetadata) -> None:
        started.set()
        await asyncio.sleep(0.05)
        done.append(data)

    client.on("message:x", handler)
    await client.send(1, channel="x")
    await started.wait()
    await client.disconnect()
    assert done == [1]


async def test_iterators_of_an_earlier_connection_take_nothing(server: Running) -> None:
    client = server.client()
    await client.connect()
    old = client.messages("x")
    await client.open_channel("x")
    await client.disconnect()
    await client.connect()
    messages = client.messages("x")
    await client.open_channel("x")
    for number in range(40):
        await client.send(number.to_bytes(1, "big") + bytes(65_536), channel="x")
        assert (await anext(messages)).data[0] == number
    with pytest.raises(StopAsyncIteration):
        await anext(old)
    await client.disconnect()


async def test_a_handler_that_cancels_itself_is_an_error_event(server: Running) -> None:
    errors: list[Exception] = []
    good: list[Any] = []
    async with server.client() as client:
        client.on("error", errors.append)

        async def handler(data: Any, _: MessageMetadata) -> None:
            if data == 1:
                raise asyncio.CancelledError
            good.append(data)

        client.on("message:x", handler)
        for number in range(3):
            await client.send(number, channel="x")
        await until(lambda: good == [0, 2])
        assert [type(error) for error in errors] == [RuntimeError]


@pytest.mark.parametrize("how", ["close", "disconnect"])
async def test_a_handler_may_end_its_own_channel(server: Running, how: str) -> None:
    client = server.client()
    await client.connect()
    ended = asyncio.Event()

    async def handler(*_: Any) -> None:
        if how == "close":
            await client.close_channel("x")
        else:
            await client.disconnect(timeout=5)
        ended.set()

    client.on("message:x", handler)
    await client.open_channel("x")
    for number in range(3):
        client.send_nowait(number, channel="x")
    async with asyncio.timeout(3):
        await ended.wait()
    await client.disconnect()
    await until(lambda: not _own_tasks())


async def test_a_channel_closed_while_it_opens_stays_closed(server: Running) -> None:
    async with server.client() as client:
        opening = asyncio.create_task(client.open_channel("x"))
        await asyncio.sleep(0)
        await client.close_channel("x")
        with pytest.raises(RWTDisconnectedError, match="closed"):
            await opening
        await client.send(1, channel="y")
        await until(lambda: not server.node.hub.channels["x"].subscriptions)
        assert not client.is_channel_active("x")


async def test_closing_a_channel_settles_what_was_sent_on_it(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server.client() as client:
        answers = [client.send_nowait(number, channel="x") for number in range(3_000)]
        await client.close_channel("x")
        assert [answer.result().offset for answer in answers] == list(range(1, 3_001))
        held = [client.send_nowait(1, channel="x2")]
        server.node.hub.publish = lambda *_: None  # type: ignore[method-assign]
        await client.close_channel("x2", timeout=0.05)
        with pytest.raises(RWTSendError):
            await held[0]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


async def test_two_callers_of_connect(silent: str) -> None:
    client = RWTClient(DragonFireClient(api_key="rwt_0_x", url=silent))
    first, second = [asyncio.create_task(client.connect(timeout=None)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(RWTDisconnectedError, match="while connecting"):
        async with asyncio.timeout(3):
            await second
    assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_an_iterator_may_be_closed_twice(server: Running) -> None:
    async with server.client() as client:
        async with client.messages("x") as messages:
            messages.close()
        messages.close()
        with pytest.raises(StopAsyncIteration):
            await anext(messages)


async def test_messages_begin_with_the_call(server: Running) -> None:
    async with server.client() as client:
        await client.send("old", channel="x")
        messages = client.messages("x")
        await client.open_channel("x")
        await client.send("new", channel="x")
        assert (await anext(messages)).data == "new"


async def test_one_dragonfire_client_serves_two(server: Running) -> None:
    dragonfire = DragonFireClient(api_key=server.key, url=server.url)
    one, other = RWTClient(dragonfire), RWTClient(dragonfire)
    await one.connect()
    await other.connect()
    await one.disconnect()
    assert (await other.send(1)).offset == 1
    await other.disconnect()


@pytest.mark.parametrize("history", [-1, 1.5, 2**70, "5", True], ids=str)
async def test_history_is_a_number_of_entries(server: Running, history: Any) -> None:
    async with server.client() as client:
        with pytest.raises(ValueError, match="history="):
            client.messages("x", history=history)


async def test_a_name_that_cannot_be_used_adds_no_handler(server: Running) -> None:
    async with server.client() as client:
        with pytest.raises(ValueError, match="@x"):
            client.on("message:@x", print)
        assert not client._emitter.subscriptions.has("message:@x")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"url": "http://[::1"}, "http://[::1"),
        ({"url": "http://me:secret@127.0.0.1"}, "***@127.0.0.1"),
        ({"user": ""}, "user=''"),
        ({"user": "a\nb"}, "user='a\\nb'"),
        ({"user": "x" * 256}, "1 to 255 bytes"),
        ({"region": ""}, "region=''"),
    ],
    ids=str,
)
def test_values_that_only_the_server_refused(options: dict[str, str], shown: str) -> None:
    with pytest.raises(ValueError, match="cannot be used") as refused:
        DragonFireClient(api_key="rwt_0_x", **options)  # type: ignore[arg-type]
    assert shown in str(refused.value) and "secret" not in str(refused.value)


async def _served(handler: Any) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_route("*", "/{any:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def test_an_answer_in_two_pieces(server: Running) -> None:
    """A ticket response that comes in two TCP segments is one answer."""
    (key, *_) = server.keys.all()

    async def handler(request: web.Request) -> web.StreamResponse:
        ticket = await server.node.issue_ticket(key, user=None, scopes=None, device_key=None)
        whole = web.json_response(ticket).body
        assert isinstance(whole, bytes)
        response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
        await response.prepare(request)
        await response.write(whole[:40])
        await asyncio.sleep(0.02)
        await response.write(whole[40:])
        return response

    runner, url = await _served(handler)
    async with RWTClient(DragonFireClient(api_key="rwt_0_x", url=url)) as client:
        assert (await client.send(1)).offset == 1
    await runner.cleanup()


async def test_a_websocket_is_not_redirected(server: Running) -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{server.url}/rwt/v2/ws")

    runner, url = await _served(handler)

    async def provider() -> dict[str, Any]:
        (key, *_) = server.keys.all()
        ticket = await server.node.issue_ticket(key, user=None, scopes=None, device_key=None)
        return {**ticket, "url": url.replace("http", "ws") + "/rwt/v2/ws"}

    with pytest.raises(RWTConnectionError, match="redirects"):
        await RWTClient(DragonFireClient(credentials=provider, url=url)).connect()
    await runner.cleanup()


async def test_an_attempt_at_a_silent_server_ends(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_ATTEMPT", 0.05)
    with pytest.raises(RWTConnectionError, match="no ticket came"):
        async with asyncio.timeout(5):
            await RWTClient(DragonFireClient(api_key="rwt_0_x", url=silent)).connect(timeout=None)
