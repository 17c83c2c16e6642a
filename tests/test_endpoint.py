"""The server as strangers meet it: tickets, upgrades, deadlines, and every answer to SUB and MSG."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from rwt_protocol import ClientConnection, ClientRules, ClientSession, State, codec
from rwt_protocol.channels import Channel
from rwt_protocol.codes import CloseCode, ErrorCode, GapReason, Level, Use
from rwt_protocol.connection import pack_messages
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
    GapFound,
    Refused,
    StreamClosed,
    Subscribed,
    Terminated,
)
from rwt_protocol.frames import Entry, Position, Publication, Sub
from rwt_server import ChannelRules, ConfigError, KeyFile, Retention, ServerConfig, create_app
from tests.running import Running, running, until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def _b64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Raw:
    """A client that says just what a test wants."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, conn: ClientConnection) -> None:
        self.ws = ws
        self.conn = conn
        self.seen: list[Event] = []
        self.refs = 0
        self.streams: dict[str, int] = {}

    @classmethod
    async def open(
        cls, http: aiohttp.ClientSession, server: Running, session: ClientSession | None = None, **body: Any
    ) -> Raw:
        session = session or await cls.ticket(http, server, **body)
        ws = await http.ws_connect(f"{server.url}/rwt/v2/ws", protocols=("rwt.v2",), max_msg_size=0)
        raw = cls(ws, ClientConnection(session, ClientRules(), os.urandom, 0.0))
        await raw.until(lambda: raw.conn.state is State.OPEN)
        return raw

    @staticmethod
    async def ticket(http: aiohttp.ClientSession, server: Running, **body: Any) -> ClientSession:
        headers = {"Authorization": f"Bearer {server.key}"}
        async with http.post(f"{server.url}/rwt/v2/session", headers=headers, json=body) as answer:
            found = await answer.json()
        return ClientSession(_b64(found["sid"]), _b64(found["ticket"]), tuple(found["suites"]))

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(10):
            while True:
                for frame in self.conn.bytes_to_send():
                    await self.ws.send_bytes(frame)
                self.seen += self.conn.events()
                if condition():
                    return
                message = await self.ws.receive()
                if message.type is not WSMsgType.BINARY:
                    assert condition(), (message, self.seen)
                    return
                self.conn.receive(message.data, 0.0)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.seen if isinstance(event, kind)]

    async def sub(self, name: str, **more: Any) -> Any:
        """Send SUB and return its answer: SUBOK, ERR or CLOSED."""
        self.refs += 1
        self.conn.subscribe(Sub(self.refs, name, **more))

        def answers() -> list[Any]:
            found = [event.answer for event in self.of(Subscribed)] + [
                event.err for event in self.of(Refused)
            ]
            return [a for a in found + [e.closed for e in self.of(StreamClosed)] if a.ref == self.refs]

        await self.until(answers)
        return answers()[0]

    def publish(self, stream: int, *messages: Publication, level: Level = Level.STANDARD) -> None:
        for flags, payload, _ in pack_messages([codec.encode_publication(m) for m in messages], level, 1_024):
            self.conn.send_message(flags, stream, payload)

    @property
    def acks(self) -> dict[int, int]:
        """Offset of every acknowledged mid."""
        return {
            run.first_mid + index: run.first_offset + index
            for event in self.of(Acknowledged)
            for run in event.ack.runs
            for index in range(run.number)
        }

    @property
    def errors(self) -> list[tuple[int | None, int]]:
        return [(event.err.mid, event.err.code) for event in self.of(Refused) if event.err.mid is not None]

    @property
    def entries(self) -> list[Entry]:
        return [entry for event in self.of(Delivered) for entry in event.entries]


# --- tickets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        pytest.param({}, b"{}", 401, id="no key"),
        pytest.param({"Authorization": "Bearer rwt_nobody_x"}, b"{}", 401, id="unknown key"),
        pytest.param({"Authorization": "Bearer {id}x"}, b"{}", 401, id="wrong secret"),
        pytest.param({"Authorization": "Basic {key}"}, b"{}", 401, id="another scheme"),
        pytest.param({"Authorization": "Bearer {key}"}, b"{", 400, id="no JSON"),
        pytest.param({"Authorization": "Bearer {key}"}, b"[]", 400, id="no object"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"user": 1}', 400, id="user is no text"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"user": "a\\nb"}', 400, id="user with a newline"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"region": "moon"}', 400, id="unknown region"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"cnf": {"kty": "RSA"}}', 400, id="cnf is RSA"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"scopes": "x"}', 400, id="scopes is no list"),
        pytest.param({"Authorization": "Bearer {key}"}, b'{"colour": 1}', 400, id="unknown member"),
    ],
)
async def test_refused_tickets(
    server: Running, http: aiohttp.ClientSession, headers: dict[str, str], body: bytes, status: int
) -> None:
    sent = {n: v.format(key=server.key, id=server.key[:17]) for n, v in headers.items()}
    async with http.post(f"{server.url}/rwt/v2/session", headers=sent, data=body) as answer:
        assert answer.status == status
        error = (await answer.json())["error"]
        assert set(error) == {"code", "message"} and server.key not in error["message"]
    assert not server.node.engine.sessions._records


async def test_unknown_and_wrong_keys_get_the_same_answer(
    server: Running, http: aiohttp.ClientSession
) -> None:
    texts = set()
    for key in ("rwt_nobody_x", server.key + "x", "x"):
        headers = {"Authorization": f"Bearer {key}"}
        async with http.post(f"{server.url}/rwt/v2/session", headers=headers) as answer:
            texts.add((answer.status, await answer.text()))
    assert len(texts) == 1


async def test_nothing_belongs_into_the_query_string(server: Running, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{server.url}/rwt/v2/session?api_key={server.key}") as answer:
        assert answer.status == 400
    async with http.get(f"{server.url}/rwt/v2/ws?token=x") as answer:
        assert answer.status == 400


async def test_discovery_and_health(server: Running, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{server.url}/rwt/v2") as answer:
        found = await answer.json()
    assert found["versions"] == [2] and found["suites"] == [2, 1] and found["regions"] == ["local"]
    assert found["limits"] == {"max_message": 1_048_576, "max_frame": 1_179_648, "window": 1_024}
    async with http.get(f"{server.url}/healthz") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ok")


async def test_a_draining_server_refuses(server: Running, http: aiohttp.ClientSession) -> None:
    await server.node.drain()
    for method, path in (("POST", "/rwt/v2/session"), ("GET", "/healthz")):
        async with http.request(method, server.url + path) as answer:
            assert answer.status == 503 and answer.headers["Retry-After"]


async def test_an_application_needs_a_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="url None"):
        create_app(ServerConfig(), KeyFile(tmp_path / "keys.json"))


async def test_inside_another_application(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    """Without our own accept: the guard is put in place at the upgrade."""
    keys = KeyFile(tmp_path / "keys.json")
    _, key = keys.create("x", None)
    outer = web.Application()
    runner = web.AppRunner(outer)
    site_port = _free_port()
    config = ServerConfig(url=f"ws://127.0.0.1:{site_port}/inner/rwt/v2/ws")
    outer.add_subapp("/inner", create_app(config, keys))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", site_port).start()
    from rwt_client import DragonFireClient, RWTClient

    async with RWTClient(DragonFireClient(api_key=key, url=f"http://127.0.0.1:{site_port}/inner/rwt")) as rwt:
        messages = rwt.messages("x")
        await rwt.send("inside", channel="x")
        assert (await anext(messages)).data == "inside"
    await runner.cleanup()


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


# --- upgrades --------------------------------------------------------------------------------------------

UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
UPGRADE["Sec-WebSocket-Key"] = base64.b64encode(bytes(16)).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({}, 400, id="no subprotocol"),
        pytest.param({"Sec-WebSocket-Protocol": "rwt.v1"}, 400, id="another subprotocol"),
        pytest.param({"Origin": "https://evil.example", "Sec-WebSocket-Protocol": "rwt.v2"}, 403, id="evil"),
        pytest.param(
            {"Origin": "https://app.example.evil.example", "Sec-WebSocket-Protocol": "rwt.v2"},
            403,
            id="suffix",
        ),
        pytest.param({"Origin": "null", "Sec-WebSocket-Protocol": "rwt.v2"}, 403, id="null"),
        pytest.param(
            {"Origin": "https://app.example:444", "Sec-WebSocket-Protocol": "rwt.v2"}, 403, id="port"
        ),
        pytest.param(
            {"Origin": "https://app.example", "Sec-WebSocket-Protocol": "x, rwt.v2"}, 101, id="good"
        ),
    ],
)
async def test_upgrades(
    tmp_path: Path, http: aiohttp.ClientSession, headers: dict[str, str], status: int
) -> None:
    async with running(tmp_path, origins=("https://app.example",)) as server:
        deflate = {"Sec-WebSocket-Extensions": "permessage-deflate"}
        async with http.get(f"{server.url}/rwt/v2/ws", headers={**UPGRADE, **deflate, **headers}) as answer:
            assert answer.status == status
            assert "Sec-WebSocket-Extensions" not in answer.headers
            if status == 101:
                assert answer.headers["Sec-WebSocket-Protocol"] == "rwt.v2"
                answer.close()


async def test_a_limit_for_those_who_are_not_authenticated(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    async with running(tmp_path, max_handshakes_per_address=3) as server:
        url = f"{server.url}/rwt/v2/ws"
        idle = [await http.ws_connect(url, protocols=("rwt.v2",)) for _ in range(3)]
        async with http.get(url, headers={**UPGRADE, "Sec-WebSocket-Protocol": "rwt.v2"}) as answer:
            assert answer.status == 429 and answer.headers["Retry-After"] == "1"
        await idle[0].close()
        await until(lambda: server.node._handshakes.total() == 2)
        raw = await Raw.open(http, server)  # those who are open do not count
        assert server.node._handshakes.total() == 2
        for ws in (*idle, raw.ws):
            await ws.close()


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param("text", 4400, id="text"),
        pytest.param(b"", 4400, id="empty"),
        pytest.param(bytes(40), 4400, id="no type"),
        pytest.param(bytes((0x20,)) + bytes(40), 4400, id="a message first"),
        pytest.param(bytes((0x01,)) + bytes(40), 4400, id="HELLO that does not parse"),
        pytest.param(bytes((0x01,)) + bytes(5_000), 4413, id="too large before READY"),
    ],
)
async def test_hostile_first_frames(
    server: Running, http: aiohttp.ClientSession, sent: bytes | str, code: int
) -> None:
    ws = await http.ws_connect(f"{server.url}/rwt/v2/ws", protocols=("rwt.v2",))
    await (ws.send_str(sent) if isinstance(sent, str) else ws.send_bytes(sent))
    message = await ws.receive(timeout=5)
    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, code, "")
    await (await Raw.open(http, server)).ws.close()  # nobody else notices


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"GET /rwt/v2/ws HTTP/1.1\r\nHost: x\r\nUpgra", id="half a header"),
        pytest.param(b"UPGRADE\x82\x85half", id="half a WebSocket frame"),
        pytest.param(b"UPGRADE", id="an open WebSocket that says nothing"),
    ],
)
async def test_the_deadline_is_on_the_connection(tmp_path: Path, begin: bytes) -> None:
    async with running(tmp_path, handshake_timeout=0.5) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        full = f"GET /rwt/v2/ws HTTP/1.1\r\nHost: x\r\n{lines}Sec-WebSocket-Protocol: rwt.v2\r\n\r\n"
        writer.write(begin.replace(b"UPGRADE", full.encode()))
        async with asyncio.timeout(3):
            try:
                while await reader.read(1_000):
                    pass
            except ConnectionResetError:
                pass
        writer.close()
        await until(lambda: not server.node._drivers and not len(server.node.deadlines))


# --- SUB, UNSUB, MSG -------------------------------------------------------------------------------------


async def test_answers_to_sub(server: Running, http: aiohttp.ClientSession) -> None:
    raw = await Raw.open(http, server, scopes=["chat.*"])
    answers = [
        (await raw.sub(name, **more)).code
        for name, more in (
            ("@x", {}),
            ("a\x00", {}),
            ("e\u0301", {}),
            ("x" * 256, {}),
            ("other", {}),
            ("chat.a", {"use": 0}),
        )
    ]
    assert answers == [10, 10, 10, 10, 1, 2]
    first = await raw.sub("chat.a", use=1)
    again = await raw.sub("chat.a", use=3)
    assert (first.use, again.use, first.stream) == (1, 3, again.stream)
    inbox = await raw.sub("")
    assert inbox.stream == 0 and inbox.start.offset == 0
    raw.conn.unsubscribe(77, 12_345)
    await raw.until(lambda: any(e.err.ref == 77 for e in raw.of(Refused)))
    raw.conn.unsubscribe(78, first.stream)
    await raw.until(lambda: any(e.closed.ref == 78 for e in raw.of(StreamClosed)))
    (closed,) = raw.of(StreamClosed)
    assert (closed.closed.stream, closed.closed.code) == (first.stream, 0)
    await raw.ws.close()


async def test_answers_to_messages(server: Running, http: aiohttp.ClientSession) -> None:
    raw = await Raw.open(http, server)
    reader = (await raw.sub("r", use=1)).stream
    stream = (await raw.sub("x", use=2)).stream
    raw.publish(999, Publication(b"", 1))
    raw.publish(reader, Publication(b"", 2))
    raw.publish(stream, Publication(b"", 3, e2e_scheme=1))
    raw.publish(stream, Publication(b"", 4, reply_wanted=True))
    raw.publish(stream, Publication(b"a", 5, idempotency_key=b"k"))
    raw.publish(stream, Publication(b"a", 6, idempotency_key=b"k"))
    raw.publish(stream, Publication(b"b", 7, idempotency_key=b"k"))
    raw.publish(stream, Publication(b"none wanted"), Publication(b"", 8), Publication(b"", 10))
    raw.publish(stream, Publication(b"forgotten", 9))
    await raw.until(lambda: len(raw.errors) == 6 and len(raw.acks) == 4)
    assert raw.errors == [
        (1, ErrorCode.NOT_OPEN),
        (2, ErrorCode.NOT_AUTHORISED),
        (3, ErrorCode.POLICY),
        (4, ErrorCode.NO_HANDLER),
        (7, ErrorCode.IDEMPOTENCY_CONFLICT),
        (9, ErrorCode.OUTCOME_UNKNOWN),
    ]
    assert raw.acks == {5: 1, 6: 1, 8: 3, 10: 4}
    assert server.node.hub.channels["x"].log.tail == 4
    await raw.ws.close()


async def test_a_repeated_mid_gets_the_same_answer_and_appends_nothing(
    server: Running, http: aiohttp.ClientSession
) -> None:
    session = await Raw.ticket(http, server)
    raw = await Raw.open(http, server, session)
    stream = (await raw.sub("x")).stream
    raw.publish(stream, *(Publication(b"%d" % mid, mid) for mid in (1, 2, 3)))
    raw.publish(999, Publication(b"", 4))
    await raw.until(lambda: len(raw.acks) == 3 and raw.errors)
    await raw.ws.close()
    raw = await Raw.open(http, server, session)
    stream = (await raw.sub("x")).stream
    raw.publish(stream, *(Publication(b"%d" % mid, mid) for mid in (2, 3, 4, 5)))
    await raw.until(lambda: len(raw.acks) == 3 and raw.errors)
    assert raw.acks == {2: 2, 3: 3, 5: 4} and raw.errors == [(4, ErrorCode.NOT_OPEN)]
    assert server.node.hub.channels["x"].log.tail == 4
    await raw.ws.close()


async def test_more_than_a_window_is_fatal(server: Running, http: aiohttp.ClientSession) -> None:
    raw = await Raw.open(http, server)
    stream = (await raw.sub("x")).stream
    for flags, payload, _ in pack_messages(
        [codec.encode_publication(Publication(b"", mid)) for mid in range(1, 1_026)],
        Level.STANDARD,
        2_000,
    ):
        raw.conn.send_message(flags, stream, payload)
    await raw.until(lambda: bool(raw.of(Terminated)))
    (over,) = raw.of(Terminated)
    assert (over.code, over.sealed, over.reason) == (CloseCode.TOO_LARGE, True, "")
    assert not raw.acks
    await raw.ws.close()


async def test_positions_and_gaps(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    rules = ChannelRules(retention=Retention(max_messages=5))
    async with running(tmp_path, channels=(rules,)) as server:
        raw = await Raw.open(http, server)
        stream = (await raw.sub("x", use=3)).stream
        for mid in range(1, 9):
            raw.publish(stream, Publication(b"%d" % mid, mid))
            await raw.until(lambda mid=mid: len(raw.entries) == mid)
        log = server.node.hub.channels["x"].log
        tags = {entry.offset: entry.tag for entry in raw.entries}
        other = await Raw.open(http, server)

        async def start(
            after: Position | None, **more: Any
        ) -> tuple[int, int | None, int | None, int | None]:
            answer = await other.sub("x", after=after, use=2, **more)
            gap = answer.gap
            facts = (None, None, None) if gap is None else (gap.reason, gap.first, gap.last)
            return answer.start.offset, *facts

        assert await start(None) == (8, None, None, None)
        assert await start(None, history=2) == (6, None, None, None)
        assert await start(None, history=99) == (3, None, None, None)
        assert await start(Position(log.id, 6, tags[6])) == (6, None, None, None)
        assert await start(Position(log.id, 3, tags[3])) == (3, None, None, None)
        assert await start(Position(log.id, 1, tags[1])) == (3, GapReason.TRIMMED, 2, 3)
        assert await start(Position(log.id, 0, b"")) == (3, GapReason.TRIMMED, 1, 3)
        assert await start(Position(b"otherlog", 6, tags[6])) == (3, GapReason.LOG_LOST, 7, 0)
        assert await start(Position(log.id, 7, b"wrongtag"), tags_held=2) == (5, GapReason.DIVERGED, 6, 7)
        assert await start(Position(log.id, 99, b"wrongtag"), tags_held=1) == (8, GapReason.DIVERGED, 9, 99)
        await raw.ws.close()
        await other.ws.close()


async def test_a_paused_reader_goes_on_where_it_was(server: Running, http: aiohttp.ClientSession) -> None:
    reader, writer = await Raw.open(http, server), await Raw.open(http, server)
    channel = Channel("x")
    channel.opened(await reader.sub("x", use=3))
    stream = (await writer.sub("x", use=2)).stream
    writer.publish(stream, Publication(b"1", 1))
    await writer.until(lambda: 1 in writer.acks)
    await reader.until(lambda: len(reader.entries) == 1)
    assert (await reader.sub("x", use=Use.PAUSED)).use == 0
    writer.publish(stream, Publication(b"2", 2))
    await writer.until(lambda: 2 in writer.acks)
    channel.accept(reader.entries)
    await reader.sub("x", use=3, after=channel.position)
    await reader.until(lambda: len(reader.entries) == 2)
    assert [entry.body for entry in reader.entries] == [b"1", b"2"]
    await reader.ws.close()
    await writer.ws.close()


async def test_take_over_fences_the_older_connection(server: Running, http: aiohttp.ClientSession) -> None:
    session = await Raw.ticket(http, server)
    older = await Raw.open(http, server, session)
    stream = (await older.sub("x")).stream
    newer = await Raw.open(http, server, session)
    older.publish(stream, Publication(b"late", 1))
    await older.until(lambda: bool(older.of(Terminated)))
    (over,) = older.of(Terminated)
    assert (over.code, over.sealed) == (CloseCode.SUPERSEDED, True)
    await newer.sub("x")
    assert server.node.hub.channels["x"].log.tail == 0
    await older.ws.close()
    await newer.ws.close()


async def test_a_slow_reader_is_bounded_and_ends_with_every_entry(
    server: Running, http: aiohttp.ClientSession
) -> None:
    slow, quick, writer = [await Raw.open(http, server) for _ in range(3)]
    for raw in (slow, quick):
        await raw.sub("x", use=1)
    stream = (await writer.sub("x", use=2)).stream
    driver = server.node._live[slow.conn._session.sid]
    slow.ws._response.connection.transport.pause_reading()  # type: ignore[union-attr]
    body = bytes(16_384)
    for first in range(1, 1_001, 4):
        writer.publish(stream, *(Publication(body, mid) for mid in range(first, first + 4)))
        await writer.until(lambda first=first: first + 3 in writer.acks)
        assert driver._transport.get_write_buffer_size() < 400_000
    await quick.until(lambda: len(quick.entries) == 1_000)
    assert not slow.entries and driver.guard.paused
    slow.ws._response.connection.transport.resume_reading()  # type: ignore[union-attr]
    await slow.until(lambda: len(slow.entries) == 1_000)
    assert [entry.offset for entry in slow.entries] == list(range(1, 1_001))
    assert not slow.of(GapFound)
    for raw in (slow, quick, writer):
        await raw.ws.close()


async def test_strangers_do_not_lock_the_owner_out(server: Running, http: aiohttp.ClientSession) -> None:
    """Many open handshakes on one sid, by someone who knows it and nothing else."""
    session = await Raw.ticket(http, server)
    raw = await Raw.open(http, server, session)
    url = f"{server.url}/rwt/v2/ws"
    for _ in range(40):
        ws = await http.ws_connect(url, protocols=("rwt.v2",))
        stranger = ClientSession(session.sid, os.urandom(32), (2, 1))
        conn = ClientConnection(stranger, ClientRules(), os.urandom, 0.0)
        for frame in conn.bytes_to_send():
            await ws.send_bytes(frame)
        assert (await ws.receive()).data == CloseCode.AUTHENTICATION_FAILED
    await raw.ws.close()
    raw = await Raw.open(http, server, session)
    assert raw.conn.epoch == 2
    await raw.ws.close()


async def test_a_timer_set_in_a_busy_turn_is_kept(server: Running, http: aiohttp.ClientSession) -> None:
    """A rotation that ends in one turn with messages: the next one is planned all the same."""
    raw = await Raw.open(http, server)
    stream = (await raw.sub("x", use=2)).stream
    driver = server.node._live[raw.conn._session.sid]
    wanted = driver.conn._deadline = driver.queued_timer - 5.0
    raw.publish(stream, Publication(b"", 1))
    await raw.until(lambda: 1 in raw.acks)
    await until(lambda: driver.queued_timer == wanted, 2.0)
    await raw.ws.close()
