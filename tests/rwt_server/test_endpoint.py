"""The WebSocket endpoint over real sockets: upgrades, strangers, deadlines, slow readers, being embedded."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from rwt_client import DragonFireClient, RWTClient
from rwt_protocol import ClientConnection, ClientRules, ClientSession, State
from rwt_protocol.codes import CloseCode, GapReason
from rwt_protocol.events import Opened, Terminated, Warned
from rwt_protocol.frames import Publication
from rwt_server import ChannelRules, Retention
from tests.running import Running, running, until
from tests.servers import (
    BINARY,
    CLOSE,
    TEXT,
    UPGRADE,
    Wire,
    connected,
    embedded,
    frame,
    request,
    ticket,
    wire,
)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


# --- upgrades --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "status"),
    [
        (None, 400),
        ("", 400),
        ("rwt.v1", 400),
        ("RWT.V2", 400),
        ("rwt.v2.1", 400),
        ("xrwt.v2", 400),
        ("rwt.v2", 101),
        ("graphql-ws, rwt.v2", 101),
        ("rwt.v2,other", 101),
    ],
    ids=repr,
)
async def test_the_subprotocol_must_be_offered(server: Running, offered: str | None, status: int) -> None:
    headers = {name: value for name, value in UPGRADE.items() if name != "Sec-WebSocket-Protocol"}
    if offered is not None:
        headers["Sec-WebSocket-Protocol"] = offered
    async with connected(server.port) as sock:
        assert await sock.upgrade(headers) == status
        if status == 101:
            assert sock.headers["sec-websocket-protocol"] == "rwt.v2"
        else:
            body = await sock.reader.readexactly(int(sock.headers["content-length"]))
            assert json.loads(body)["error"]["code"] == "subprotocol"


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        pytest.param(None, (), 101, id="no browser"),
        pytest.param("https://app.example", (), 403, id="none is allowed"),
        pytest.param("https://app.example", ("https://app.example",), 101, id="allowed"),
        pytest.param("https://b.example", ("https://a.example", "https://b.example"), 101, id="the second"),
        pytest.param("https://evil.example", ("https://app.example",), 403, id="evil"),
        pytest.param("https://app.example.evil.example", ("https://app.example",), 403, id="suffix"),
        pytest.param("https://evil-app.example", ("https://app.example",), 403, id="prefix"),
        pytest.param("https://app.example:444", ("https://app.example",), 403, id="port"),
        pytest.param("http://app.example", ("https://app.example",), 403, id="scheme"),
        pytest.param("https://app.example/", ("https://app.example",), 403, id="slash"),
        pytest.param("null", ("https://app.example",), 403, id="null"),
        pytest.param("", ("https://app.example",), 403, id="empty"),
        pytest.param("https://evil.example", ("*",), 101, id="any"),
    ],
)
async def test_origins(tmp_path: Path, origin: str | None, allowed: tuple[str, ...], status: int) -> None:
    async with running(tmp_path, origins=allowed) as server, connected(server.port) as sock:
        assert await sock.upgrade(UPGRADE if origin is None else {**UPGRADE, "Origin": origin}) == status


@pytest.mark.parametrize(
    "offered",
    ["permessage-deflate", "permessage-deflate; client_max_window_bits", "x-webkit-deflate-frame"],
)
async def test_no_extension_is_negotiated(server: Running, offered: str) -> None:
    async with connected(server.port) as sock:
        assert await sock.upgrade({**UPGRADE, "Sec-WebSocket-Extensions": offered}) == 101
        assert "sec-websocket-extensions" not in sock.headers
        raw = Wire(sock, await ticket(server))
        await raw.until(lambda: raw.conn.state is State.OPEN)
        assert (await raw.sub("x")).use == 3


# --- strangers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "sent", "code"),
    [
        pytest.param(TEXT, b"text", 4400, id="text"),
        pytest.param(TEXT, bytes(40), 4400, id="text of zeros"),
        pytest.param(BINARY, b"", 4400, id="empty"),
        pytest.param(BINARY, bytes(16), 4400, id="a header only"),
        pytest.param(BINARY, bytes(40), 4400, id="no type"),
        pytest.param(BINARY, b"\x20" + bytes(40), 4400, id="MSG first"),
        pytest.param(BINARY, b"\x03\x01" + bytes(40), 4400, id="CONFIRM first"),
        pytest.param(BINARY, b"\x02" + bytes(40), 4400, id="WELCOME"),
        pytest.param(BINARY, b"\x40\x01" + bytes(40), 4400, id="extension first"),
        pytest.param(BINARY, b"\xff" + bytes(40), 4400, id="private type"),
        pytest.param(BINARY, b"\x01" + bytes(40), 4400, id="HELLO that does not parse"),
        pytest.param(BINARY, b"\x01" + bytes(4_127), 4400, id="HELLO of the largest size"),
        pytest.param(BINARY, b"\x01" + bytes(4_128), 4413, id="a byte more"),
        pytest.param(BINARY, b"\x01" + bytes(1_000_000), 4413, id="much more"),
    ],
)
async def test_hostile_first_frames(server: Running, opcode: int, sent: bytes, code: int) -> None:
    async with connected(server.port) as sock:
        assert await sock.upgrade() == 101
        sock.send(sent, opcode)
        kind, data = await sock.receive()
        assert (kind, data) == (CLOSE, code.to_bytes(2, "big"))  # and no reason
        await until(lambda: server.node.connections == 0)
    async with wire(server) as raw:  # nobody else notices
        assert (await raw.sub("x")).use == 3


async def test_text_on_an_open_session_is_told_under_its_keys(server: Running) -> None:
    session = await ticket(server)
    async with wire(server, session) as raw:
        raw.sock.send(b"text", TEXT)
        said, code = await raw.over()
        assert (said.code, said.sealed, said.reason, code) == (4400, True, "", 4400)
    async with wire(server, session) as raw:
        assert raw.of(Opened)[0].resumed


async def test_a_frame_of_the_largest_size_is_still_looked_at(tmp_path: Path) -> None:
    async with running(tmp_path, max_message=4_096) as server, wire(server) as raw:
        raw.sock.send(b"\x20\x01" + bytes(4_096 + 131_072 - 2))
        said, code = await raw.over()
        assert (said.code, code) == (4400, 4400)  # not too large: it does not open


async def test_a_body_over_the_limit(tmp_path: Path) -> None:
    async with running(tmp_path, max_message=4_096) as server, wire(server) as raw:
        stream = (await raw.sub("x", use=2)).stream
        assert await raw.store(stream, Publication(bytes(4_096), 1)) == [1]
        raw.publish(stream, Publication(bytes(4_097), 2))
        said, code = await raw.over()
        assert (said.code, said.sealed, code) == (CloseCode.TOO_LARGE, True, 4413)


def stranger(sid: bytes) -> ClientConnection:
    """Somebody who knows a session's id, and nothing else."""
    return ClientConnection(ClientSession(sid, os.urandom(32), (2, 1)), ClientRules(), os.urandom, 0.0)


async def test_strangers_learn_nothing_and_change_nothing(server: Running) -> None:
    session = await ticket(server)
    codes = []
    for sid in (session.sid, bytes(16)):
        async with connected(server.port) as sock:
            assert await sock.upgrade() == 101
            for data in stranger(sid).bytes_to_send():
                sock.send(data)
            codes.append(await sock.end())
    assert codes == [CloseCode.AUTHENTICATION_FAILED] * 2
    async with wire(server, session) as raw:
        assert raw.conn.epoch == 1 and not raw.of(Warned)


async def test_no_number_of_open_handshakes_locks_the_owner_out(tmp_path: Path) -> None:
    """Many HELLOs with the right sid and a token id that is known, never confirmed."""
    options = {"max_handshakes_per_address": 200}
    async with running(tmp_path, **options) as server, AsyncExitStack() as stack:
        session = await ticket(server)
        (hello,) = ClientConnection(session, ClientRules(), os.urandom, 0.0).bytes_to_send()
        for _ in range(100):
            sock = await stack.enter_async_context(connected(server.port))
            assert await sock.upgrade() == 101
            sock.send(hello)
            opcode, welcome = await sock.receive()
            assert (opcode, welcome[0]) == (BINARY, 0x02)
        async with wire(server, session) as raw:
            assert raw.conn.epoch == 1 and server.node.connections == 101


# --- deadlines -------------------------------------------------------------------------------------------

OPEN = request(UPGRADE)


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"G", id="a byte"),
        pytest.param(OPEN[:-7], id="half a header"),
        pytest.param(
            b"POST /rwt/v2/session HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{", id="half a body"
        ),
        pytest.param(OPEN, id="a WebSocket that says nothing"),
        pytest.param(OPEN + frame(BINARY, bytes(40))[:9], id="half a frame"),
        pytest.param(OPEN + frame(BINARY, b"", announced=4_000), id="a frame that never comes"),
        pytest.param(OPEN + frame(0x9, b"ping"), id="a WebSocket that only pings"),
    ],
)
async def test_the_deadline_is_on_the_connection(tmp_path: Path, sent: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with running(tmp_path, handshake_timeout=0.5) as server, connected(server.port) as sock:
        began = loop.time()
        sock.writer.write(sent)
        async with asyncio.timeout(5):
            try:
                while await sock.reader.read(1_000):
                    pass
            except ConnectionResetError:
                pass
        assert 0.4 < loop.time() - began < 2.5
        await until(lambda: server.node.connections == 0 and len(server.node.deadlines) == 0)
        assert server.node._handshakes.total() == 0


async def test_an_open_session_has_no_such_deadline(tmp_path: Path) -> None:
    async with running(tmp_path, handshake_timeout=0.5) as server, wire(server) as raw:
        async with connected(server.port) as idle:
            assert await idle.upgrade() == 101
            assert await idle.end() == 1006  # by then the time was up for the other one, too
        assert (await raw.sub("x")).use == 3


# --- life of a session -----------------------------------------------------------------------------------


async def test_publish_and_receive(server: Running) -> None:
    async with wire(server) as raw:
        answer = await raw.sub("chat")
        assert await raw.store(answer.stream, Publication("één".encode(), 1, form=1)) == [1]
        await raw.entries_come(1)
        (entry,) = raw.entries
        assert (entry.offset, entry.body, entry.form) == (1, "één".encode(), 1)
        raw.conn.close(1000, 0.0)
        raw.flush()
        assert await raw.sock.end() == 1000
        await until(lambda: len(server.node.engine.sessions) == 0)


@pytest.mark.parametrize(
    ("code", "keep", "kept"), [(1000, False, 0), (1000, True, 1), (3_000, False, 1)], ids=str
)
async def test_goodbyes(server: Running, code: int, keep: bool, kept: int) -> None:
    async with wire(server) as raw:
        raw.conn.close(code, 0.0, keep=keep)
        raw.flush()
        assert await raw.sock.end() == code
        await until(lambda: server.node.connections == 0)
        assert len(server.node.engine.sessions) == kept


async def test_a_token_works_once(server: Running) -> None:
    session = await ticket(server)
    (held,) = session.held
    thief = ClientSession(session.sid, held.token, (2, 1))
    async with wire(server, session) as owner:
        async with connected(server.port) as sock:
            assert await sock.upgrade() == 101
            raw = Wire(sock, thief)
            said, code = await raw.over()
            assert (said.code, said.sealed, code) == (CloseCode.REVOKED, True, 4403)
        said, code = await owner.over()
        assert (said.code, said.sealed, code) == (CloseCode.REVOKED, True, 4403)
        assert [str(warned.code) for warned in owner.of(Warned)] == ["token-reuse"]


async def test_a_revoked_key_ends_its_sessions_and_no_others(server: Running) -> None:
    key, shown = server.keys.create("gone", None)
    other = Running(server.url, server.port, shown, server.keys, server.node)
    session = await ticket(other)
    async with wire(other, session) as gone, wire(server) as stays:
        await server.node.heartbeat()
        assert (await gone.sub("x")).use == 3
        server.keys.revoke(key.id)
        await server.node.heartbeat()
        said, code = await gone.over()
        assert (said.code, said.sealed, code) == (CloseCode.REVOKED, True, 4403)
        assert (await stays.sub("x")).use == 3
    async with connected(server.port) as sock:
        assert await sock.upgrade() == 101
        raw = Wire(sock, session)
        said, code = await raw.over()
        assert (said.code, said.sealed, code) == (CloseCode.REVOKED, True, 4403)


async def test_draining_tells_everybody_to_come_back(server: Running) -> None:
    async with wire(server) as one, wire(server) as two, connected(server.port) as idle:
        assert await idle.upgrade() == 101
        draining = asyncio.create_task(server.node.drain())
        for raw in (one, two):
            said, code = await raw.over()
            assert (said.code, said.sealed, code) == (CloseCode.DRAINING, True, 4503)
            assert said.retry_after_ms == 1_000
        assert await idle.end() == 4503
        async with asyncio.timeout(5):
            await draining
        assert server.node.connections == 0


async def test_a_rotation_under_load_loses_nothing(server: Running) -> None:
    async with wire(server) as raw:
        stream = (await raw.sub("x")).stream
        driver = server.node._live[raw.session.sid]
        for first in range(1, 401, 20):
            raw.publish(stream, *(Publication(b"%d" % mid, mid) for mid in range(first, first + 20)))
            if first % 100 == 1:
                driver.conn.rotate(driver.node.loop.time())
                driver.flush()
            await raw.entries_come(first + 19)
        await raw.until(lambda: raw.conn.epoch == 5)
        assert [entry.offset for entry in raw.entries] == list(range(1, 401))


# --- slow readers ----------------------------------------------------------------------------------------

BODY, MANY = 16_384, 1_280


@pytest.mark.parametrize("each", [2, 20], ids=["fits into one frame", "needs many frames"])
async def test_a_slow_reader_is_bounded_delays_nobody_and_misses_nothing(server: Running, each: int) -> None:
    """20 MiB while one reader does not read; `each` messages in a turn."""
    async with (
        wire(server, receive_buffer=16_384) as slow,
        wire(server) as quick,
        wire(server) as writer,
    ):
        for raw in (slow, quick):
            await raw.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        driver = server.node._live[slow.session.sid]
        most = 0
        for first in range(1, MANY + 1, each):
            bodies = (Publication(b"%d " % n + bytes(BODY), n) for n in range(first, first + each))
            await writer.store(stream, *bodies)
            most = max(most, driver._transport.get_write_buffer_size())
        await quick.entries_come(MANY)
        assert 131_072 < most < 131_072 + 3 * 65_536, most
        assert driver.guard.paused
        await slow.entries_come(MANY)
        assert [entry.offset for entry in slow.entries] == list(range(1, MANY + 1))
        assert all(entry.body.startswith(b"%d " % entry.offset) for entry in slow.entries)
        assert not slow.gaps and not slow.of(Terminated)


async def test_what_is_trimmed_under_a_slow_reader_is_told_in_order(tmp_path: Path) -> None:
    rules = ChannelRules(retention=Retention(max_messages=100))
    async with (
        running(tmp_path, channels=(rules,)) as server,
        wire(server, receive_buffer=16_384) as slow,
        wire(server) as writer,
    ):
        await slow.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        for first in range(1, MANY + 1, 20):
            await writer.store(stream, *(Publication(bytes(BODY), n) for n in range(first, first + 20)))
        await slow.until(lambda: bool(slow.entries) and slow.entries[-1].offset == MANY)
        assert slow.gaps and {gap.reason for gap in slow.gaps} == {GapReason.LAG_DROPPED}
        missing = {offset for gap in slow.gaps for offset in range(gap.first, gap.last + 1)}
        came = [entry.offset for entry in slow.entries]
        assert came == [offset for offset in range(1, MANY + 1) if offset not in missing]
        assert all(gap.next.offset == gap.last for gap in slow.gaps) and len(came) >= 100


async def test_a_slow_reader_does_not_stop_the_server_from_draining(server: Running) -> None:
    async with wire(server, receive_buffer=16_384) as slow, wire(server) as writer:
        await slow.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        driver = server.node._live[slow.session.sid]
        mid = 0
        while not driver.guard.paused:
            mid += 1
            await writer.store(stream, Publication(bytes(65_536), mid))
        async with asyncio.timeout(8):
            await asyncio.gather(server.node.drain(), writer.over())
        assert server.node.connections == 0


# --- inside another application --------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["", "/inner"], ids=["directly", "add_subapp"])
async def test_inside_another_application(tmp_path: Path, mount: str) -> None:
    async with embedded(tmp_path, mount) as server:
        dragonfire = DragonFireClient(api_key=server.key, url=f"{server.url}/rwt")
        async with RWTClient(dragonfire) as client:
            messages = client.messages("x")
            await client.open_channel("x")
            sent = [client.send_nowait({"n": n}, channel="x") for n in range(500)]
            assert [(await anext(messages)).data["n"] for _ in range(500)] == list(range(500))
            assert [(await answer).offset for answer in sent] == list(range(1, 501))


async def test_a_slow_reader_inside_another_application_is_bounded(tmp_path: Path) -> None:
    async with (
        embedded(tmp_path, "") as server,
        wire(server, receive_buffer=16_384) as slow,
        wire(server) as writer,
    ):
        await slow.sub("x", use=1)
        stream = (await writer.sub("x", use=2)).stream
        most = 0
        transport = server.node._live[slow.session.sid]._transport
        for first in range(1, 641, 16):
            bodies = (Publication(bytes(BODY), n) for n in range(first, first + 16))
            await writer.store(stream, *bodies)
            most = max(most, transport.get_write_buffer_size())
        assert 131_072 < most < 131_072 + 2 * 65_536 + 65_536, most
        await slow.entries_come(640)
        assert [entry.offset for entry in slow.entries] == list(range(1, 641)) and not slow.gaps
