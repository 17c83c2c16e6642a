"""Connecting, failing to, disconnecting; events and handlers; nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from rwt_client import (
    DragonFireClient,
    MessageMetadata,
    RWTAuthenticationError,
    RWTClient,
    RWTConnection,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTError,
    RWTSendError,
    RWTTimeoutError,
    SendResult,
)
from tests.running import Running, running, until


def at_rest() -> tuple[frozenset[asyncio.Task[Any]], int]:
    """Tasks and file descriptors of this process."""
    return frozenset(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))


@asynccontextmanager
async def nothing_stays() -> AsyncIterator[None]:
    before = at_rest()
    yield
    await until(lambda: at_rest() == before)


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def listen(client: RWTClient, *events: str) -> list[tuple[Any, ...]]:
    """Everything that a client tells from now on."""
    seen: list[tuple[Any, ...]] = []

    def on(event: str) -> Callable[..., None]:
        return lambda *args: seen.append((event, *args))

    for event in events:
        client.on(event, on(event))
    return seen


# --- connecting ---


async def test_from_connect_to_disconnect(server: Running) -> None:
    async with nothing_stays():
        client = server.client()
        seen = listen(client, "connect", "disconnect", "reconnect", "resume", "error")
        assert client.get_status().state == "disconnected" and client.get_status().connection_id is None
        connecting = asyncio.ensure_future(client.connect())
        await asyncio.sleep(0)
        assert client.get_status().state == "connecting"
        connection = await connecting
        assert isinstance(connection, RWTConnection)
        assert (connection.epoch, connection.resumed) == (1, False) and len(connection.connection_id) == 16
        assert connection.rotation is not None and connection.rotation.interval == 60.0
        status = client.get_status()
        assert (status.state, status.connection_id) == ("connected", connection.connection_id)
        assert (status.epoch, status.reconnects, status.pending, status.uptime >= 0) == (1, 0, 0, True)
        assert await client.connect() is connection  # once more is the same
        assert 0 < await client.ping() < 5 and client.get_status().latency is not None
        await client.disconnect()
        await client.disconnect()
        assert client.get_status().state == "disconnected" and client.get_status().uptime == 0.0
        assert seen == [("connect", connection), ("disconnect", 1000, "")]
        with pytest.raises(RWTDisconnectedError):
            await client.ping()
        again = await client.connect()
        assert not again.resumed and again.connection_id != connection.connection_id
        await client.disconnect()


async def test_what_is_asked_for_is_granted(server: Running) -> None:
    client = server.client()
    client.configure_token_rotation(interval=7.5, pattern="phi", renew_threshold=0.625)
    connection = await client.connect()
    found = connection.rotation
    assert found is not None
    assert (found.interval, found.pattern, found.renew_threshold) == (7.5, "phi", 0.625)
    await client.disconnect()


async def test_leaving_the_block_with_an_error_waits_for_nothing(server: Running) -> None:
    client = server.client()
    with pytest.raises(KeyError):
        async with client:
            raise KeyError
    assert client.get_status().state == "disconnected"


async def test_errors_of_connecting(server: Running, unused_tcp_port: int) -> None:
    cases: list[tuple[dict[str, Any], type[RWTError], str]] = [
        ({"url": f"http://127.0.0.1:{unused_tcp_port}"}, RWTConnectionError, "connection refused"),
        ({"url": f"{server.url}/elsewhere"}, RWTConnectionError, "is not an RWT server"),
        ({"api_key": "rwt_0000_wrong"}, RWTAuthenticationError, "rwt-server keys create"),
        ({"region": "mars"}, RWTConnectionError, "'mars'"),
    ]
    for options, kind, text in cases:
        async with nothing_stays():
            client = server.client(**options)
            with pytest.raises(kind, match=text) as failed:
                await client.connect()
            assert "wrong" not in str(failed.value)
            assert client.get_status().state == "error"
            with pytest.raises(kind):
                client.send_nowait(1)
            await client.disconnect()


async def test_a_silent_server(server: Running) -> None:
    with silent() as url:
        async with nothing_stays():
            client = server.client(url=url)
            with pytest.raises(RWTTimeoutError, match=r"longer than 0\.05 s") as late:
                await client.connect(timeout=0.05)
            assert isinstance(late.value, TimeoutError) and late.value.details == {"sent": False}
            assert client.get_status().state == "disconnected"


async def test_a_server_that_is_silent_on_the_websocket(server: Running) -> None:
    (key, *_) = server.keys.all()
    with silent() as url:

        async def provide() -> dict[str, Any]:
            answer = await server.node.issue_ticket(key, user=None, scopes=None, device_key=None)
            return {**answer, "url": f"{url.replace('http', 'ws')}/rwt/v2/ws"}

        async with nothing_stays():
            with pytest.raises(RWTTimeoutError):
                await RWTClient(DragonFireClient(credentials=provide)).connect(timeout=0.1)


async def test_a_cancelled_connect_leaves_nothing(server: Running) -> None:
    """Cancelled after any number of turns of the loop, until one is too late."""
    async with nothing_stays():
        for turns in range(1_000):
            client = server.client()
            connecting = asyncio.ensure_future(client.connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                await client.disconnect()
                break
            assert client.get_status().state == "disconnected"
    assert 10 < turns < 999 and not server.node._drivers


async def test_a_revoked_key(server: Running) -> None:
    key, presented = server.keys.create("gone", None)
    client = server.client(api_key=presented)
    seen = listen(client, "error")
    await client.connect()
    iterator = client.messages("x")
    await client.open_channel("x")
    server.keys.revoke(key.id)
    await server.node.heartbeat()
    await until(lambda: client.get_status().state == "error")
    ((_, error),) = seen
    assert isinstance(error, RWTAuthenticationError) and error.recovery.strategy == "reauthenticate"
    for attempt in (client.send(1), client.open_channel("x"), anext(iterator), client.connect()):
        with pytest.raises(RWTAuthenticationError):
            await attempt
    await client.disconnect()


@pytest.mark.parametrize("late", [False, True], ids=["sync", "async"])
async def test_credentials_are_asked_for_every_ticket(server: Running, late: bool) -> None:
    (key, *_) = server.keys.all()
    asked: list[str] = []

    async def provide_later() -> dict[str, Any]:
        asked.append("async")
        return await server.node.issue_ticket(key, user="eve", scopes=None, device_key=None)

    ready = [await server.node.issue_ticket(key, user="eve", scopes=None, device_key=None) for _ in range(3)]

    def provide() -> dict[str, Any]:
        asked.append("sync")
        return ready.pop()

    client = RWTClient(DragonFireClient(credentials=provide_later if late else provide, url=server.url))
    for _ in range(3):
        await client.connect()
        await client.disconnect()
    assert asked == ["async" if late else "sync"] * 3


async def test_a_provider_that_fails_is_an_error_of_connecting(server: Running) -> None:
    def provide() -> dict[str, Any]:
        raise LookupError("no secret should be told")

    with pytest.raises(RWTConnectionError, match="LookupError") as failed:
        await RWTClient(DragonFireClient(credentials=provide, url=server.url)).connect()
    assert "secret" not in str(failed.value)


# --- disconnecting ---


async def test_disconnect_waits_for_answers(server: Running) -> None:
    client = server.client()
    await client.connect()
    answers = [client.send_nowait(number, channel="x") for number in range(2_000)]
    assert client.get_status().pending == 2_000
    await client.disconnect(reason="done")
    assert [answer.result().offset for answer in answers] == list(range(1, 2_001))
    assert not server.node.engine.sessions._records


async def test_disconnect_waits_for_handlers_of_what_arrived(server: Running) -> None:
    got: list[int] = []

    async def slow(data: int, _: MessageMetadata) -> None:
        await asyncio.sleep(0)
        got.append(data)

    async with server.client() as client:
        client.on("message:x", slow)
        await client.open_channel("x")
        for number in range(100):
            await client.send(number, channel="x")
    assert got[:99] == list(range(99))


async def test_disconnect_that_does_not_wait(server: Running) -> None:
    client = server.client()
    await client.connect()
    answers = [client.send_nowait(bytes(1_000), channel="x") for _ in range(3_000)]
    await client.disconnect(wait_for_pending=False)
    errors = [answer.exception() for answer in answers]
    assert all(error is None or isinstance(error, RWTError) for error in errors) and any(errors)


async def test_disconnect_gives_up_waiting(server: Running) -> None:
    gate = asyncio.Event()

    async def stuck(*_: Any) -> None:
        await gate.wait()

    async with nothing_stays():
        client = server.client()
        await client.connect()
        client.on("message:x", stuck)
        for number in range(3):
            await client.send(number, channel="x")
        await until(lambda: client._channels.waiting == 3)
        with pytest.raises(RWTTimeoutError, match=r"pending after 0\.05 s"):
            await client.disconnect(timeout=0.05)
        assert client.get_status().state == "disconnected"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"code": 1001}, "code=1001 cannot be used: give 1000 or 3000 to 4999"),
        ({"code": 0}, "code=0 cannot"),
        ({"code": 5000}, "code=5000 cannot"),
        ({"reason": "ü" * 51}, "give at most 100 bytes"),
    ],
    ids=["1001", "0", "5000", "reason"],
)
async def test_codes_and_reasons_that_cannot_be_used(
    server: Running, options: dict[str, Any], text: str
) -> None:
    async with server.client() as client:
        with pytest.raises(ValueError, match=text):
            await client.disconnect(**options)
        assert client.get_status().state == "connected"


async def test_before_connect_nothing_can_be_done(server: Running) -> None:
    client = server.client()
    for attempt in (client.send(1), client.open_channel("x"), client.wait_for_message(), client.ping()):
        with pytest.raises(RWTDisconnectedError):
            await attempt
    for call in (client.send_nowait, client.messages):
        with pytest.raises(RWTDisconnectedError, match=r"call connect\(\)"):
            call("x")
    await client.close_channel("x")
    await client.disconnect()


async def test_handlers_before_connect_open_their_channels(server: Running) -> None:
    client = server.client()
    seen = listen(client, "message:early")
    await client.connect()
    await client.open_channel("early")
    await client.send("hi", channel="early")
    await until(lambda: bool(seen))
    ((_, data, metadata),) = seen
    assert data == "hi" and metadata.channel == "early"
    await client.disconnect()


# --- events ---


async def test_sync_and_async_handlers_once_filter_off(server: Running) -> None:
    seen: list[Any] = []
    async with server.client() as client:

        @client.on("message:x", filter=lambda data: data != "skip")
        async def named(data: Any, metadata: MessageMetadata) -> None:
            await asyncio.sleep(0)
            seen.append((metadata.channel, data))

        @client.once("message")
        def first(data: Any, _: MessageMetadata) -> None:
            seen.append(("once", data))

        sent = listen(client, "send")
        for data in ("a", "skip", "b"):
            await client.send(data, channel="x")
        await until(lambda: len(seen) == 3)
        assert seen == [("once", "a"), ("x", "a"), ("x", "b")]
        assert [data for _, data, _ in sent] == ["a", "skip", "b"]
        assert all(isinstance(result, SendResult) for *_, result in sent)
        iterator = client.messages("x")
        client.off("message:x", named)
        await client.send("c", channel="x")
        client.on("message:x", named)
        client.off_all()
        await client.send("d", channel="x")
        assert [(await anext(iterator)).data for _ in range(2)] == ["c", "d"]
        assert len(seen) == 3 and len(sent) == 4


async def test_a_handler_that_raises_is_an_error_event(server: Running) -> None:
    got: list[int] = []
    async with server.client() as client:
        errors = listen(client, "error")

        async def odd(data: int, _: MessageMetadata) -> None:
            if data % 2:
                raise ValueError(data)
            got.append(data)

        client.on("message:x", odd)
        for number in range(6):
            await client.send(number, channel="x")
        await until(lambda: len(got) == 3 and len(errors) == 3)
        assert got == [0, 2, 4] and [str(error) for _, error in errors] == ["1", "3", "5"]


@pytest.mark.parametrize("event", ["", "mesage", "message:", "Connect"])
async def test_events_that_do_not_exist(server: Running, event: str) -> None:
    client = server.client()
    for add in (client.on, client.once):
        with pytest.raises(ValueError, match="does not exist"):
            add(event, lambda *_: None)


async def test_rotations_are_told(tmp_path: Path) -> None:
    async with running(tmp_path, rotation_interval=5.0) as server, server.client() as client:
        seen = listen(client, "token-rotate", "key-rotate")
        iterator = client.messages("x")
        for number in range(1, 4):
            (driver,) = server.node._drivers
            driver.conn.rotate(server.node.loop.time())
            driver.flush()
            await client.send(number, channel="x")
            assert (await anext(iterator)).data == number
        await until(lambda: client.get_status().token_rotations == 3)
        assert client.get_status().epoch == 4
        assert [event for event, _ in seen] == ["token-rotate", "key-rotate"] * 3
        assert [info["epoch"] for _, info in seen] == [2, 2, 3, 3, 4, 4]
        assert all(0 < info["next_in"] <= 30 for event, info in seen if event == "token-rotate")
        assert all(info["scope"] == "session" for event, info in seen if event == "key-rotate")


# --- waiting for a message ---


async def test_wait_for_message(server: Running) -> None:
    async with server.client() as client:
        channel = client.create_channel("auth")
        typed = asyncio.create_task(channel.wait_for_message(type="verify"))
        fitting = asyncio.create_task(client.wait_for_message(lambda m: m.size > 9, channel="auth"))
        await until(lambda: channel.is_active())
        for data in (["verify"], "verify", {"type": "other"}, {"no": "type"}, {"type": "verify", "n": 1}):
            await channel.send(data)
        assert (await typed).data == {"type": "verify", "n": 1}
        assert (await fitting).data == ["verify"]
        with pytest.raises(RWTTimeoutError, match=r"'auth' within 0\.05 s"):
            await channel.wait_for_message(timeout=0.05)
        closing = asyncio.create_task(channel.wait_for_message())
        await asyncio.sleep(0)
        await channel.close()
        with pytest.raises(RWTDisconnectedError, match="was closed"):
            await closing
        assert client._channels._uses["auth"].inbox.streams == []


async def test_a_predicate_that_raises(server: Running) -> None:
    async with server.client() as client:
        waiting = asyncio.create_task(client.wait_for_message(lambda m: bool(m.data["no"]), channel="x"))
        await until(lambda: client.is_channel_active("x"))
        await client.send({}, channel="x")
        with pytest.raises(KeyError):
            await waiting


# --- sending without a trace ---


async def test_a_cancelled_send_leaves_nothing(server: Running) -> None:
    async with server.client() as client:
        await client.send(0, channel="x")
        async with nothing_stays():
            for turns in range(6):
                sending = asyncio.ensure_future(client.send(turns, channel="x"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                sending.cancel()
                await asyncio.wait([sending])
        await until(lambda: client.get_status().pending == 0)
        assert (await client.send("last", channel="x")).offset <= 8


async def test_policies(server: Running) -> None:
    async with server.client(policy="always") as strict, server.client(policy="never") as plain:
        iterator = strict.messages("x")
        await strict.open_channel("x")
        await plain.send("plain", channel="x")
        assert (await anext(iterator)).metadata.level == "standard"  # it declared `always`
        with pytest.raises(RWTSendError, match="this client's policy 'always'") as refused:
            await strict.send(1, channel="x", encrypt=False)
        assert refused.value.code == "policy"
