"""Defects of the server that were found once, one smallest example each."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp
import pytest

from rwt_protocol.codes import Level
from rwt_protocol.events import Subscribed
from rwt_protocol.frames import Publication
from rwt_server import ChannelRules, ConfigError, KeyFile, Retention, ServerConfig
from rwt_server.config import parse_size
from rwt_server.keys import may_use
from tests.running import running, server_process
from tests.rwt_server.test_process import gone
from tests.servers import BINARY, UPGRADE, Wire, connected, frame, request, ticket, wire

PACE = ChannelRules(on_full="pace", retention=Retention(max_messages=10))


async def test_authorization_not_utf8_is_401(tmp_path: Path) -> None:
    async with running(tmp_path) as s, connected(s.port) as c:
        c.writer.write(
            b"POST /rwt/v2/session HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nAuthorization: Bearer rwt_x_\xff\r\n\r\n"
        )
        assert (await c.reader.readline()).split()[1] == b"401"


@pytest.mark.parametrize("body", [b"[" * 15_000, b"x" * 20_000], ids=["nested", "20 kB"])
async def test_bodies_get_an_error_document(tmp_path: Path, body: bytes) -> None:
    async with running(tmp_path) as s, aiohttp.ClientSession() as http:
        headers = {"Authorization": f"Bearer {s.key}"}
        answer = await http.post(s.url + "/rwt/v2/session", headers=headers, data=body)
        assert answer.status in (400, 413) and "error" in await answer.json()


async def test_frame_over_max_frame_is_a_sealed_4413(tmp_path: Path) -> None:
    async with running(tmp_path, max_message=4_096) as s, wire(s) as w:
        w.sock.send(b"\x20\x01" + bytes(4_096 + 131_072 - 1))
        said, code = await w.over()
        assert (said.code, said.sealed, code) == (4413, True, 4413)


async def test_a_superseded_connection_does_not_park_its_place(tmp_path: Path) -> None:
    async with running(tmp_path, channels=(PACE,)) as s:
        sess = await ticket(s)
        async with wire(s) as pub, wire(s, sess) as old, connected(s.port) as sock:
            stream = (await pub.sub("x", use=2)).stream
            await old.sub("x", use=1)
            new = Wire(sock, sess)
            assert await sock.upgrade() == 101
            new.flush()
            new.conn.receive((await sock.receive())[1], 0.0)
            new.ask("x", use=1)  # right behind CONFIRM, section 11.1
            sock.writer.write(b"".join(frame(BINARY, d) for d in new.conn.bytes_to_send()))
            await new.until(lambda: new.of(Subscribed))
            for i in range(1, 13):
                pub.publish(stream, Publication(b"", i))
                pub.flush()
                await new.entries_come(i)
            async with asyncio.timeout(3):
                await pub.until(lambda: len(pub.acks) == 12)


async def test_no_ack_for_a_mid_that_was_not_sent(tmp_path: Path) -> None:
    async with running(tmp_path) as s, wire(s) as w:
        st = (await w.sub("x", use=2)).stream
        w.publish(st, Publication(b"", 1), Publication(b""), Publication(b"", 3))
        await w.until(lambda: 3 in w.acks)
        assert w.acks == {1: 1, 3: 3}


async def test_sub_of_a_receiving_channel_ignores_after(tmp_path: Path) -> None:
    async with running(tmp_path) as s, wire(s) as w:
        a = await w.sub("x")
        await w.store(a.stream, Publication(b"", 1), Publication(b"", 2))
        await w.entries_come(2)
        again = await w.sub("x", after=a.start)
        assert again.start.offset == 2


async def test_sub_of_a_receiving_channel_ignores_history(tmp_path: Path) -> None:
    async with running(tmp_path) as s, wire(s) as w:
        a = await w.sub("x")
        await w.store(a.stream, Publication(b"", 1), Publication(b"", 2))
        await w.entries_come(2)
        assert (await w.sub("x", history=2)).start.offset == 2


async def test_the_proxy_adds_its_own_line(tmp_path: Path) -> None:
    async with running(tmp_path, trusted_proxies=("127.0.0.1",)) as s, connected(s.port) as c:
        c.writer.write(
            request(UPGRADE).replace(
                b"\r\n\r\n", b"\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n"
            )
        )
        await c.reader.readuntil(b"\r\n\r\n")
        assert dict(s.node._handshakes) == {"9.9.9.9": 1}


async def test_sigterm_with_a_reader_that_does_not_read(tmp_path: Path) -> None:
    with server_process(tmp_path) as s:
        async with wire(s, receive_buffer=16_384) as slow:
            await slow.sub("x", use=1)
            async with wire(s) as w:
                st = (await w.sub("x", use=2)).stream
                for m in range(1, 257):
                    await w.store(st, Publication(bytes(65_536), m))
            s.process.send_signal(signal.SIGTERM)
            assert await gone(s.process) == 0
        assert "Traceback" not in s.log.read_text()


@pytest.mark.parametrize(
    "o", [{"url": "ws://[x"}, {"url": "ws://h:99999/p"}, {"prefix": "/a}"}, {"prefix": "/a b"}], ids=str
)
def test_config_values(o: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        ServerConfig(**o)  # type: ignore[arg-type]


def test_max_age() -> None:
    with pytest.raises(ConfigError):
        Retention(max_age=1e308)


def test_only_tls_key() -> None:
    with pytest.raises(ConfigError, match="/no/key"):
        ServerConfig(tls_key=Path("/no/key"))


def test_size() -> None:
    with pytest.raises(ConfigError):
        parse_size("9" * 5_000)


def test_only_the_star_stands_for_anything() -> None:
    assert not may_use(("chat?",), "chatX")


async def test_limit_before_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwt_server.hub.MAX_STREAMS", 1)
    async with running(tmp_path) as s, wire(s, scopes=["a"]) as w:
        await w.sub("a")
        assert await w.refused("b") == 11


def test_key_file_with_a_list_as_id(tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(
        '[{"id": [], "hash": "x", "name": "", "created_ms": 1, "channels": null, "revoked": false}]'
    )
    with pytest.raises(ConfigError):
        KeyFile(tmp_path / "keys.json").all()


async def test_inbox_without_after_starts_at_its_oldest(tmp_path: Path) -> None:
    async with running(tmp_path) as s, wire(s) as w:
        node = s.node
        ses = node._sessions[w.session.sid]
        node.inbox(ses).log.append([Publication(b"hello")], Level.STANDARD, b"", lambda _: None)
        assert (await w.sub("")).start.offset == 0
