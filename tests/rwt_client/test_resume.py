"""Connections that are lost: what is resumed, what is told, what ends the client (section 11)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rwt_client import (
    Lost,
    RWTAuthenticationError,
    RWTClient,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTOutcomeUnknown,
    SendResult,
)
from rwt_protocol import ClientSession
from rwt_protocol.codes import CloseCode
from rwt_server.config import ChannelRules, Retention
from rwt_server.hub import Channel as HubChannel
from tests.relay import Relay, relaying
from tests.running import Running, running, until

Seen = list[tuple[Any, ...]]


@asynccontextmanager
async def relayed(folder: Path, **options: Any) -> AsyncIterator[tuple[Running, Relay]]:
    """A server whose clients are told the address of a relay."""
    async with relaying() as relay, running(folder, public_port=relay.port, **options) as server:
        relay.target = server.port
        yield server, relay


def listen(client: RWTClient, *events: str) -> Seen:
    """Everything that a client tells from now on."""
    seen: Seen = []
    for event in events:
        client.on(event, lambda *args, event=event: seen.append((event, *args)))
    return seen


# --- resuming ---


async def test_thirty_cuts_lose_repeat_and_reorder_nothing(tmp_path: Path) -> None:
    """Two clients, each of which sends and receives, while connections are reset at random moments."""
    seed = random.randrange(2**32)
    told = f"seed {seed}"
    dice = random.Random(seed)
    number = 1_000
    async with (
        relayed(tmp_path) as (server, relay),
        server.client(user="a") as a,
        server.client(user="b") as b,
    ):
        clients, got, order = (a, b), dict[str, list[Any]](), dict[str, list[int]]()
        events = [listen(client, "resume", "reconnect", "gap", "error") for client in clients]
        for client in clients:
            await client.open_channel("x")
        readers = [
            asyncio.create_task(read(c, n, 2 * number, got, order))
            for c, n in zip(clients, "ab", strict=True)
        ]
        await asyncio.sleep(0)
        answers: list[list[asyncio.Future[SendResult]]] = [[], []]
        cuts = sorted(dice.sample(range(number), 30))
        for index in range(number):
            for which, client in enumerate(clients):
                answers[which].append(client.send_nowait(["ab"[which], index], channel="x"))
            if cuts and index == cuts[0]:
                del cuts[0]
                for _ in range(dice.randrange(60)):
                    await asyncio.sleep(0)
                relay.cut(dice.randrange(relay.open) if relay.open else None)
                await until(lambda: relay.open == 2)
        results = [await asyncio.gather(*found) for found in answers]
        async with asyncio.timeout(20):
            await asyncio.gather(*readers)
        for name, stored in zip("ab", results, strict=True):
            offsets = [result.offset for result in stored]
            assert offsets == sorted(offsets), told
            assert [result.message_id for result in stored] == list(range(1, number + 1)), told
            assert order[name] == list(range(1, 2 * number + 1)), told
            for sender in "ab":
                assert [n for who, n in got[name] if who == sender] == list(range(number)), told
        assert got["a"] == got["b"], told
        assert {result.offset for found in results for result in found} == set(order["a"]), told
        for client, seen in zip(clients, events, strict=True):
            resumed = [event[1].resumed for event in seen if event[0] == "resume"]
            assert all(resumed) and len(resumed) == client.get_status().reconnects, told
            assert not [event for event in seen if event[0] in ("gap", "error")], told
        assert sum(client.get_status().reconnects for client in clients) >= 15, told


async def read(
    client: RWTClient, name: str, number: int, got: dict[str, list[Any]], order: dict[str, list[int]]
) -> None:
    """Read so many messages by one iterator, which the cuts do not end."""
    got[name], order[name] = [], []
    iterator = client.messages("x")
    for _ in range(number):
        message = await anext(iterator)
        got[name].append(message.data)
        order[name].append(message.offset)


async def test_an_idle_client_comes_back_and_goes_on(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay), server.client() as client, server.client() as other:
        seen = listen(client, "disconnect", "reconnect", "connect", "resume")
        iterator = client.messages("x")
        await client.open_channel("x")
        relay.cut(0)
        await other.send("meanwhile", channel="x")
        assert (await anext(iterator)).data == "meanwhile"
        connection = seen[-1][1]
        assert seen == [
            ("disconnect", 1006, ""),
            ("reconnect", 1, True),
            ("connect", connection),
            ("resume", connection),
        ]
        assert connection.resumed and connection.epoch == 2
        assert client.get_status().reconnects == 1 and client.is_channel_active("x")


async def test_attempts_go_on_until_one_succeeds(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay), server.client() as client:
        seen = listen(client, "reconnect", "error", "giving-up")
        relay.refusing = True
        relay.cut()
        sending = asyncio.create_task(client.send("queued", channel="x"))
        await until(lambda: len(seen) >= 3)
        assert client.get_status().state == "connecting" and not sending.done()
        relay.refusing = False
        assert (await sending).offset == 1
        assert seen[:3] == [("reconnect", number, False) for number in (1, 2, 3)]
        assert seen[-1] == ("reconnect", len(seen), True)


async def test_a_frozen_network_delays_and_loses_nothing(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay), server.client() as client:
        iterator = client.messages("x")
        await client.open_channel("x")
        relay.freeze()
        answers = [client.send_nowait(number, channel="x") for number in range(100)]
        relay.cut()
        await until(lambda: relay.open == 1)
        await asyncio.sleep(0)
        assert not any(answer.done() for answer in answers)
        relay.thaw()
        assert [result.offset for result in await asyncio.gather(*answers)] == list(range(1, 101))
        assert [(await anext(iterator)).data for _ in range(100)] == list(range(100))


async def test_a_server_that_falls_silent_is_noticed(tmp_path: Path) -> None:
    """After 2.5 ping intervals without a frame the connection is taken for broken."""
    async with relayed(tmp_path, ping_interval=1.0) as (server, relay), server.client() as client:
        seen = listen(client, "disconnect", "resume")
        relay.freeze()
        await until(lambda: bool(seen))
        assert seen[0][0] == "disconnect" and seen[0][2] == "the server is silent"
        relay.thaw()
        await until(lambda: len(seen) == 2)
        assert seen[1][1].resumed


# --- giving up ---


async def test_without_reconnection_a_cut_is_the_end(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay):
        client = server.client()
        client.configure_reconnection(enabled=False)
        seen = listen(client, "disconnect", "reconnect", "error")
        await client.connect()
        iterator = client.messages("x")
        await client.open_channel("x")
        relay.cut()
        await until(lambda: client.get_status().state == "error")
        disconnect, (name, error) = seen
        assert disconnect == ("disconnect", 1006, "") and name == "error"
        assert isinstance(error, RWTConnectionError) and error.details["close_code"] == 1006
        for attempt in (client.send(1), anext(iterator)):
            with pytest.raises(RWTConnectionError):
                await attempt
        assert not (await client.connect()).resumed
        assert (await client.send(1, channel="x")).offset == 1
        await client.disconnect()


async def test_a_bounded_number_of_attempts(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay):
        client = server.client()
        client.configure_reconnection(max_attempts=3, base_delay=0.001)
        seen = listen(client, "reconnect", "giving-up", "error")
        await client.connect()
        relay.refusing = True
        relay.cut()
        await until(lambda: client.get_status().state == "error")
        error = client._supervisor.failure
        assert seen == [
            *(("reconnect", number, False) for number in (1, 2, 3)),
            ("giving-up", error),
            ("error", error),
        ]
        await client.disconnect()


async def test_without_preserve_session_every_connection_is_a_new_session(tmp_path: Path) -> None:
    async with relayed(tmp_path) as (server, relay):
        client = server.client()
        client.configure_reconnection(preserve_session=False, base_delay=0.01)
        seen = listen(client, "connect", "resume")
        async with client:
            await client.open_channel("x")
            relay.freeze()
            sent = client.send_nowait("sent", channel="x")
            await until(lambda: client._publisher._outbox._unanswered != {})
            queued = client.send_nowait("queued", channel="y")
            relay.cut()
            with pytest.raises(RWTOutcomeUnknown):
                await sent
            with pytest.raises(RWTDisconnectedError):
                await queued
            with pytest.raises(RWTDisconnectedError, match="preserve_session is off"):
                await client.send("late")
            relay.thaw()
            await until(lambda: len(seen) == 2)
            assert [event for event, _ in seen] == ["connect"] * 2 and not seen[1][1].resumed
            assert (await client.send("again", channel="x")).message_id == 1


# --- sessions that are lost ---


async def test_a_restarted_server_has_lost_session_and_log(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        port = server.port
        client = server.client()
        await client.connect()
        seen = listen(client, "gap", "connect", "resume")
        iterator = client.messages("x")
        await client.send("before", channel="x")
        assert (await anext(iterator)).data == "before"
    async with running(tmp_path, port=port):
        await until(lambda: any(event == "gap" for event, _ in seen))
        gap = Lost(channel="x", reason="log-lost", first=2, last=None)
        assert [event for event, _ in seen] == ["connect", "gap"] and seen[1][1] == gap
        assert not seen[0][1].resumed
        result = await client.send("after", channel="x")
        assert (result.message_id, result.offset) == (1, 1)
        assert (await anext(iterator)).data == "after"
        await client.disconnect()


async def test_unanswered_messages_of_a_lost_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sent without an answer: unknown. Queued: sent in the new session."""
    paced = (ChannelRules(pattern="x", on_full="pace"),)
    async with running(tmp_path, channels=paced) as server:
        port = server.port
        client = server.client()
        await client.connect()
        await client.open_channel("x")
        monkeypatch.setattr(HubChannel, "too_far_behind", lambda *_: True)
        sent = asyncio.create_task(client.send("sent", channel="x"))
        await until(lambda: bool(server.node.hub.channels["x"].held))
    monkeypatch.undo()
    await until(lambda: client.get_status().state == "connecting")
    queued = asyncio.create_task(client.send("queued", channel="x"))
    async with running(tmp_path, port=port):
        with pytest.raises(RWTOutcomeUnknown, match="may or may not be stored") as unknown:
            await sent
        assert unknown.value.details == {"channel": "x"} and not unknown.value.can_retry()
        assert (await queued).offset == 1
        await client.disconnect()


async def test_a_session_ended_by_the_server_is_followed_by_a_new_one(tmp_path: Path) -> None:
    async with running(tmp_path) as server, server.client() as client:
        seen = listen(client, "disconnect", "connect", "resume", "error")
        (driver,) = server.node._drivers
        driver.end(CloseCode.SESSION_ENDED, "long enough")
        await until(lambda: len(seen) == 2)
        assert seen[0] == ("disconnect", 4410, "long enough")
        assert seen[1][0] == "connect" and not seen[1][1].resumed
        assert (await client.send(1)).offset == 1


@pytest.mark.parametrize(
    "code",
    [CloseCode.EXPIRED, CloseCode.RATE, CloseCode.INTERNAL, CloseCode.DRAINING],
    ids=lambda code: code.name,
)
async def test_close_codes_that_are_resumed(server: Running, code: CloseCode) -> None:
    async with server.client() as client:
        seen = listen(client, "disconnect", "resume")
        (driver,) = server.node._drivers
        driver.end(code, "x", retry_after_ms=20)
        await until(lambda: len(seen) == 2)
        assert seen[0] == ("disconnect", code, "x") and seen[1][1].resumed


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (CloseCode.REVOKED, RWTAuthenticationError),
        (CloseCode.VERSION_OR_SUITE, RWTConnectionError),
        (CloseCode.TOO_LARGE, RWTConnectionError),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_close_codes_that_end_the_client(
    server: Running, code: CloseCode, kind: type[Exception]
) -> None:
    client = server.client()
    await client.connect()
    seen = listen(client, "error", "reconnect")
    (driver,) = server.node._drivers
    driver.end(code, "say why")
    await until(lambda: client.get_status().state == "error")
    ((event, error),) = seen
    assert event == "error" and type(error) is kind and str(error) == "say why"
    await client.disconnect()


async def test_trimmed_entries_are_told(tmp_path: Path) -> None:
    rules = (ChannelRules(pattern="*", retention=Retention(max_messages=10)),)
    async with relayed(tmp_path, channels=rules) as (server, relay), server.client() as reader:
        gaps = listen(reader, "gap")
        iterator = reader.messages("x")
        async with server.client() as sender:
            await sender.send(0, channel="x")
            assert (await anext(iterator)).data == 0
            target, relay.target = relay.target, 1
            relay.cut(0)
            await until(lambda: reader.get_status().state == "connecting")
            for number in range(1, 31):
                await sender.send(number, channel="x")
            relay.target = target
            assert [(await anext(iterator)).data for _ in range(10)] == list(range(21, 31))
        assert gaps == [("gap", Lost(channel="x", reason="trimmed", first=2, last=21))]


# --- copies of a session ---


def copy_of(client: RWTClient) -> ClientSession:
    """What somebody has who copied the client's memory."""
    session = client._supervisor._session
    assert session is not None
    copy = ClientSession(session.sid, b"", session.suites)
    copy.held, copy.ready_epoch, copy.suite = list(session.held), session.ready_epoch, session.suite
    return copy


async def test_a_copy_that_connects_is_noticed_and_ends_both(server: Running) -> None:
    owner, thief = server.client(), server.client()
    await owner.connect()
    seen = listen(owner, "disconnect", "security-warning", "error")
    thief._supervisor._session = copy_of(owner)
    thief._supervisor._url = owner._supervisor._url
    assert (await thief.connect()).resumed
    await until(lambda: {owner.get_status().state, thief.get_status().state} == {"error"})
    assert seen[0][:2] == ("disconnect", 4409)
    warnings = [info["code"] for event, info, *_ in seen if event == "security-warning"]
    assert warnings == ["token-reuse"]
    event, error = seen[-1]
    assert event == "error" and isinstance(error, RWTAuthenticationError)
    for client in (owner, thief):
        with pytest.raises(RWTAuthenticationError):
            await client.send(1)
        await client.disconnect()


async def test_a_copy_is_noticed_without_reconnection_too(server: Running) -> None:
    """Losing a race to oneself is answered once even then: that is what arms the detection."""
    owner, thief = server.client(), server.client()
    for client in (owner, thief):
        client.configure_reconnection(enabled=False)
    await owner.connect()
    thief._supervisor._session = copy_of(owner)
    thief._supervisor._url = owner._supervisor._url
    await thief.connect()
    await until(lambda: {owner.get_status().state, thief.get_status().state} == {"error"})
    for client in (owner, thief):
        assert isinstance(client._supervisor.failure, RWTAuthenticationError)
        await client.disconnect()
