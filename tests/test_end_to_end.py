"""Client and server over real sockets: the whole way of messages, sessions, channels and events."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from examples.relay import Relay
from rwt_client import (
    DragonFireClient,
    Lost,
    MessageMetadata,
    RWTAuthenticationError,
    RWTClient,
    RWTConnection,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTEncodingError,
    RWTError,
    RWTOutcomeUnknown,
    RWTSendError,
    RWTTimeoutError,
    SigningKey,
)
from rwt_protocol.codes import SignatureAlgorithm
from rwt_server.config import ChannelRules, Retention
from rwt_server.hub import Channel as HubChannel
from tests.running import Running, running, until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


VALUES: list[Any] = [
    b"",
    b"\x00\xff",
    "",
    "grüße 🐉",
    {},
    [],
    None,
    True,
    2**53 + 1,
    1.5,
    {"schlüssel": [{"a": [[[["tief"]]]]}]},
]


@pytest.mark.parametrize("level", ["clear", "standard", "high", "maximum"])
async def test_values_arrive_as_they_were_sent(server: Running, level: str) -> None:
    async with server.client(user="ada") as rwt:
        messages = rwt.messages("chat")
        options: dict[str, Any] = {"encrypt": False} if level == "clear" else {"encryption_level": level}
        for number, value in enumerate(VALUES, 1):
            result = await rwt.send(value, channel="chat", **options)
            assert (result.offset, result.message_id, result.channel) == (number, number, "chat")
            message = await anext(messages)
            assert message.data == value and type(message.data) is type(value)
            assert (message.offset, message.metadata.sender) == (number, "ada")
            assert message.metadata.own and message.metadata.level == level


async def test_a_mebibyte_arrives_and_a_byte_more_is_refused(server: Running) -> None:
    body = os.urandom(1_048_576)
    async with server.client() as rwt:
        messages = rwt.messages("big")
        await rwt.send(body, channel="big", encryption_level="high")
        assert (await anext(messages)).data == body
        with pytest.raises(RWTEncodingError, match="1048577"):
            await rwt.send(body + b"x", channel="big")


async def test_many_pipelined_messages_keep_their_order(server: Running) -> None:
    async with server.client() as sender, server.client() as receiver:
        messages = receiver.messages("many")
        await receiver.open_channel("many")
        answers = [sender.send_nowait(number, channel="many") for number in range(5_000)]
        results = await asyncio.gather(*answers)
        assert [result.offset for result in results] == list(range(1, 5_001))
        assert [(await anext(messages)).data for _ in range(5_000)] == list(range(5_000))


async def test_history(server: Running) -> None:
    async with server.client() as rwt:
        for number in range(5):
            await rwt.send(number, channel="log")
    async with server.client() as rwt:
        messages = rwt.messages("log", history=2)
        assert [(await anext(messages)).data for _ in range(2)] == [3, 4]


async def test_handlers_filters_once_and_off(server: Running) -> None:
    seen: list[Any] = []
    async with server.client() as rwt:

        @rwt.on("message:chat", filter=lambda data: data != "skip")
        async def on_chat(data: Any, metadata: MessageMetadata) -> None:
            await asyncio.sleep(0)
            seen.append((data, metadata.channel))

        rwt.once("message", lambda data, _: seen.append(("once", data)))
        for text in ("a", "skip", "b"):
            await rwt.send(text, channel="chat")
        await until(lambda: len(seen) == 3)
        assert seen == [("once", "a"), ("a", "chat"), ("b", "chat")]
        rwt.off("message:chat", on_chat)
        messages = rwt.messages("chat")
        await rwt.send("c", channel="chat")
        await anext(messages)
        assert len(seen) == 3


async def test_a_handler_that_raises_is_an_error_event_and_stops_nothing(server: Running) -> None:
    errors: list[Exception] = []
    good: list[Any] = []
    async with server.client() as rwt:
        rwt.on("error", errors.append)

        def bad(data: Any, _: MessageMetadata) -> None:
            if data == 1:
                raise KeyError("boom")
            good.append(data)

        rwt.on("message:x", bad)
        for number in range(3):
            await rwt.send(number, channel="x")
        await until(lambda: good == [0, 2])
        assert [type(error) for error in errors] == [KeyError]


async def test_wait_for_message(server: Running) -> None:
    async with server.client() as rwt:
        waiting = asyncio.create_task(rwt.wait_for_message(type="response", channel="auth", timeout=5))
        await until(lambda: rwt.is_channel_active("auth"))
        for value in ("noise", {"type": "other"}, {"type": "response", "ok": True}):
            await rwt.send(value, channel="auth")
        assert (await waiting).data["ok"] is True
        with pytest.raises(RWTTimeoutError, match=r"0\.05 s"):
            await rwt.wait_for_message(channel="auth", timeout=0.05)


async def test_channels_open_close_and_open_again(server: Running) -> None:
    async with server.client() as rwt:
        channel = rwt.create_channel("room")
        assert not channel.is_active() and rwt.get_channels() == []
        async with channel:
            assert channel.is_active() and [open.name for open in rwt.get_channels()] == ["room"]
            await channel.send(1)
        assert not channel.is_active()
        async with server.client() as other:
            await other.send("meanwhile", channel="room")
        messages = channel.messages()
        await channel.open()
        assert (await anext(messages)).data == "meanwhile"  # a channel goes on where it was
        await channel.send(2)
        assert (await anext(messages)).data == 2


async def test_a_key_with_patterns_may_use_only_those(server: Running) -> None:
    _, key = server.keys.create("narrow", ("chat.*",))
    async with server.client(api_key=key) as rwt:
        await rwt.send(1, channel="chat.a")
        with pytest.raises(RWTSendError) as refused:
            await rwt.send(1, channel="other")
        assert refused.value.code == "not-authorised" and not refused.value.can_retry()
        await rwt.send(2, channel="chat.a")


async def test_rotation_under_load(server: Running) -> None:
    events: list[tuple[str, Any]] = []
    async with server.client() as rwt:
        rwt.on("token-rotate", lambda info: events.append(("token", info["epoch"])))
        rwt.on("key-rotate", lambda info: events.append((info["scope"], info["epoch"])))
        messages = rwt.messages("x")
        for round_ in range(20):
            answers = [rwt.send_nowait((round_, n), channel="x") for n in range(50)]
            (driver,) = server.node._drivers
            driver.conn.rotate(server.node.loop.time())
            driver.flush()
            await asyncio.gather(*answers)
        got = [tuple((await anext(messages)).data) for _ in range(1_000)]
        assert got == [(round_, n) for round_ in range(20) for n in range(50)]
        rotations = rwt.get_status().token_rotations
        assert rotations >= 10 and rwt.get_status().epoch == 1 + rotations
        assert events[:2] == [("token", 2), ("session", 2)] and len(events) == 2 * rotations


async def test_cuts_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """Connections are reset 30 times at random moments while two clients send and receive."""
    seed = 7
    dice = random.Random(seed)
    relay = Relay()
    await relay.start()
    resumes: list[bool] = []
    async with running(tmp_path, public_port=relay.port) as server:
        relay.target = server.port
        async with server.client() as sender, server.client() as receiver:
            for client in (sender, receiver):
                client.on("resume", lambda connection: resumes.append(connection.resumed))
            messages = receiver.messages("x")
            await receiver.open_channel("x")
            answers: list[asyncio.Future[Any]] = []
            got: list[int] = []

            async def receive() -> None:
                while len(got) < 2_000:
                    got.append((await anext(messages)).data)

            receiving = asyncio.create_task(receive())
            for number in range(2_000):
                answers.append(sender.send_nowait(number, channel="x"))
                if number % 66 == 65:
                    await asyncio.sleep(dice.random() * 0.01)
                    relay.cut(dice.choice(relay.open))
                    await until(lambda: len(relay.open) == 2)
            results = await asyncio.gather(*answers)
            async with asyncio.timeout(10):
                await receiving
            assert got == list(range(2_000)), f"seed {seed}"
            assert [result.offset for result in results] == list(range(1, 2_001)), f"seed {seed}"
            assert len(resumes) >= 25 and all(resumes), f"seed {seed}"
    await relay.stop()


async def test_an_idle_client_notices_a_cut_and_resumes(tmp_path: Path) -> None:
    relay = Relay()
    await relay.start()
    async with running(tmp_path, public_port=relay.port) as server:
        relay.target = server.port
        told: list[Any] = []
        async with server.client() as rwt:
            rwt.on("disconnect", lambda code, _: told.append(code))
            rwt.on("reconnect", lambda attempt, success: told.append((attempt, success)))
            rwt.on("resume", lambda connection: told.append(connection.resumed))
            relay.cut(0)
            await until(lambda: told == [1006, (1, True), True])
            assert rwt.get_status().reconnects == 1
            assert told and (await rwt.send(1)).offset == 1
    await relay.stop()


async def test_a_slow_handler_pauses_its_channel_and_loses_nothing(server: Running) -> None:
    pressed: list[Any] = []
    gate = asyncio.Event()
    got: list[int] = []
    async with server.client() as sender, server.client() as receiver:
        receiver.on("pressure", pressed.append)

        async def slow(data: bytes, _: MessageMetadata) -> None:
            await gate.wait()
            got.append(int.from_bytes(data[:4], "big"))

        receiver.on("message:x", slow)
        await receiver.open_channel("x")
        for number in range(100):
            await sender.send(number.to_bytes(4, "big") + bytes(65_536), channel="x")
        await until(lambda: bool(pressed))
        (use,) = receiver._channels._uses.values()
        assert use.inbox.unhandled < 3 * 1_048_576
        gate.set()
        await until(lambda: len(got) == 100)
        assert got == list(range(100))


async def test_pace_makes_publishers_wait_for_readers(tmp_path: Path) -> None:
    rules = ChannelRules(pattern="x", on_full="pace", retention=Retention(max_bytes=16 * 1_048_576))
    gate = asyncio.Event()
    got: list[int] = []
    async with (
        running(tmp_path, channels=(rules,)) as server,
        server.client() as sender,
        server.client() as receiver,
    ):

        async def slow(data: bytes, _: MessageMetadata) -> None:
            await gate.wait()
            got.append(int.from_bytes(data[:4], "big"))

        receiver.on("message:x", slow)
        gaps: list[Lost] = []
        receiver.on("gap", gaps.append)
        await receiver.open_channel("x")
        bodies = [n.to_bytes(4, "big") + bytes(65_536) for n in range(400)]
        sending = [asyncio.create_task(sender.send(body, channel="x")) for body in bodies]
        await until(lambda: "x" in server.node.hub.channels and bool(server.node.hub.channels["x"].held))
        done = sum(answer.done() for answer in sending)
        assert 100 < done < 250  # half the retention, and what the reader took before it paused
        gate.set()
        await asyncio.gather(*sending)
        await until(lambda: len(got) == 400)
        assert got == list(range(400)) and not gaps


async def test_trimmed_entries_are_told(tmp_path: Path) -> None:
    rules = ChannelRules(pattern="*", retention=Retention(max_messages=10))
    relay = Relay()
    await relay.start()
    async with running(tmp_path, public_port=relay.port, channels=(rules,)) as server:
        relay.target = server.port
        async with server.client() as receiver:
            gaps: list[Lost] = []
            receiver.on("gap", gaps.append)
            messages = receiver.messages("x")
            await receiver.open_channel("x")
            async with server.client() as sender:
                await sender.send(0, channel="x")
                assert (await anext(messages)).data == 0
                relay.target, target = 1, relay.target
                relay.cut(0)
                await until(lambda: receiver.get_status().state == "connecting")
                for number in range(1, 31):
                    await sender.send(number, channel="x")
                relay.target = target
                assert [(await anext(messages)).data for _ in range(10)] == list(range(21, 31))
                assert gaps == [Lost(channel="x", reason="trimmed", first=2, last=21)]
    await relay.stop()


async def test_a_restarted_server_has_lost_its_log_and_says_so(tmp_path: Path) -> None:
    gaps: list[Lost] = []
    async with running(tmp_path) as server:
        port = server.port
        client = server.client()
        await client.connect()
        client.on("gap", gaps.append)
        messages = client.messages("x")
        await client.send("before", channel="x")
        assert (await anext(messages)).data == "before"
    async with running(tmp_path, port=port):
        await until(lambda: bool(gaps))
        assert (gaps[0].reason, gaps[0].first, gaps[0].last) == ("log-lost", 2, None)
        await client.send("after", channel="x")
        assert (await anext(messages)).data == "after"
        await client.disconnect()


async def test_an_answer_that_is_lost_with_its_session_is_an_unknown_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, channels=(ChannelRules(pattern="x", on_full="pace"),)) as server:
        port = server.port
        client = server.client()
        await client.connect()
        await client.open_channel("x")
        monkeypatch.setattr(HubChannel, "too_far_behind", lambda *_: True)
        waiting = asyncio.create_task(client.send(1, channel="x"))
        await until(lambda: bool(server.node.hub.channels["x"].held))
    async with running(tmp_path, port=port):
        with pytest.raises(RWTOutcomeUnknown):
            await waiting
        await client.disconnect()


async def test_two_connections_of_one_session(server: Running) -> None:
    """A copy of the session resumes: the owner is closed with 4409, comes back, and the theft is noticed."""
    warnings: list[str] = []
    owner, thief = server.client(), server.client()
    await owner.connect()
    owner.on("security-warning", lambda warning: warnings.append(warning["code"]))
    session = owner._supervisor._session
    assert session is not None
    copy = type(session)(session.sid, b"", session.suites)
    copy.held, copy.ready_epoch, copy.suite = list(session.held), session.ready_epoch, session.suite
    thief._supervisor._session = copy
    thief._supervisor._url = owner._supervisor._url
    await thief.connect()
    await until(lambda: owner.get_status().state == "error" and thief.get_status().state == "error")
    assert warnings == ["token-reuse"]
    for client in (owner, thief):
        with pytest.raises(RWTAuthenticationError):
            await client.send(1)
        await client.disconnect()


async def test_a_revoked_key_ends_its_sessions(server: Running) -> None:
    key, presented = server.keys.create("gone", None)
    client = server.client(api_key=presented)
    await client.connect()
    server.keys.revoke(key.id)
    await server.node.heartbeat()
    await until(lambda: client.get_status().state == "error")
    await client.disconnect()
    with pytest.raises(RWTAuthenticationError, match=key.id):
        await server.client(api_key=presented).connect()


async def test_pinned_server_and_device_key(tmp_path: Path) -> None:
    right = SigningKey.generate(SignatureAlgorithm.ED25519, os.urandom)
    wrong = SigningKey.generate(SignatureAlgorithm.ED25519, os.urandom)
    device = SigningKey.generate(SignatureAlgorithm.ECDSA_P256, os.urandom)
    async with running(tmp_path, identity_keys=(right,)) as server:
        async with server.client(pins=frozenset({right.public}), device_key=device) as rwt:
            await rwt.send(1)
            (driver,) = server.node._drivers
            driver.conn.rotate(server.node.loop.time())
            driver.flush()
            await until(lambda: rwt.get_status().token_rotations == 1)
            await rwt.send(2)
        client = server.client(pins=frozenset({wrong.public}))
        with pytest.raises(RWTConnectionError):
            await client.connect()


async def test_policies(tmp_path: Path) -> None:
    async with running(tmp_path, policy="always") as server, server.client(policy="never") as rwt:
        messages = rwt.messages("x")
        await rwt.send(1, channel="x")
        assert (await anext(messages)).metadata.level == "standard"
        with pytest.raises(RWTSendError, match="the server's policy"):
            await rwt.send(1, channel="x", encrypt=False)
    (tmp_path / "b").mkdir()
    async with (
        running(tmp_path / "b") as server,
        server.client(policy="always") as strict,
        server.client() as other,
    ):
        messages = strict.messages("x")
        await strict.open_channel("x")
        await other.send(1, channel="x", encrypt=False)
        assert (await anext(messages)).metadata.level == "standard"
        with pytest.raises(RWTSendError, match="this client's policy"):
            await strict.send(1, encrypt=False)


async def test_credentials_are_asked_for_every_ticket(server: Running) -> None:
    asked = 0

    async def provider() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        (key, *_) = server.keys.all()
        return await server.node.issue_ticket(key, user="eve", scopes=None, device_key=None)

    for _ in range(2):
        dragonfire = DragonFireClient(credentials=provider, url=server.url)
        async with RWTClient(dragonfire) as rwt:
            messages = rwt.messages("x")
            await rwt.send(1, channel="x")
            assert (await anext(messages)).metadata.sender == "eve"
    assert asked == 2


async def test_nothing_stays_behind(server: Running) -> None:
    def state() -> tuple[set[str], int]:
        names = {task.get_name() for task in asyncio.all_tasks()}
        return {name for name in names if name.startswith("rwt-")}, len(os.listdir("/proc/self/fd"))

    before = state()
    async with server.client() as rwt:
        rwt.on("message:x", lambda *_: None)
        await rwt.send(1, channel="x")
        with pytest.raises(RWTTimeoutError):
            await rwt.wait_for_message(channel="x", timeout=0.01)
        sending = asyncio.create_task(rwt.send(2, channel="x"))
        await asyncio.sleep(0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    for _ in range(3):
        connecting = asyncio.create_task(server.client().connect())
        await asyncio.sleep(0.001)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
    await until(lambda: not server.node._drivers and state() == before)


async def test_errors_of_connecting(server: Running, unused_tcp_port: int) -> None:
    with pytest.raises(RWTConnectionError, match="connection refused"):
        await server.client(url=f"http://127.0.0.1:{unused_tcp_port}").connect()
    with pytest.raises(RWTConnectionError, match="404"):
        await server.client(url=f"{server.url}/elsewhere").connect()
    with pytest.raises(RWTConnectionError, match="region"):
        await server.client(region="us-west").connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(RWTTimeoutError, match=r"0\.1 s"):
            await server.client(url=url).connect(timeout=0.1)
    client = server.client()
    with pytest.raises(RWTDisconnectedError, match="call connect"):
        await client.send(1)
    assert client.get_status().state == "disconnected"


async def test_without_reconnection_a_cut_ends_the_client(tmp_path: Path) -> None:
    relay = Relay()
    await relay.start()
    async with running(tmp_path, public_port=relay.port) as server:
        relay.target = server.port
        client = server.client()
        client.configure_reconnection(enabled=False)
        errors: list[RWTError] = []
        client.on("error", errors.append)
        await client.connect()
        relay.cut(0)
        await until(lambda: client.get_status().state == "error")
        assert len(errors) == 1 and isinstance(errors[0], RWTConnectionError)
        await client.disconnect()
    await relay.stop()


async def test_disconnect_waits_for_pending_messages(server: Running) -> None:
    client = server.client()
    connection = await client.connect()
    assert isinstance(connection, RWTConnection) and not connection.resumed and connection.rotation
    answers = [client.send_nowait(n, channel="x") for n in range(500)]
    await client.disconnect(reason="done")
    assert all(answer.result().offset for answer in answers)
    assert client.get_status().state == "disconnected"
    assert not server.node.engine.sessions._records  # a goodbye with 1000 ends the session
