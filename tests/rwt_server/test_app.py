"""The control plane (section 7.1): tickets, refusals, discovery, health."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rwt_protocol.codes import Suite
from rwt_protocol.frames import Publication
from rwt_protocol.suites import SigningKey
from rwt_server import ConfigError, KeyFile, ServerConfig, create_app
from tests.running import Running, running, until
from tests.servers import UPGRADE, connected, request, wire

SESSION = "/rwt/v2/session"


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Answer:
    """Status, headers and JSON of one answer."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]


async def ask(
    server: Running,
    method: str = "POST",
    path: str = SESSION,
    *,
    key: str | None = "{key}",
    body: bytes = b"",
) -> Answer:
    headers = {} if key is None else {"Authorization": "Bearer " + key.format(key=server.key)}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, server.url + path, headers=headers, data=body) as answer,
    ):
        return Answer(answer.status, dict(answer.headers), await answer.json())


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as found:
        yield found


def sessions(server: Running) -> int:
    return len(server.node.engine.sessions)


# --- what a ticket says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{}", b'{"user": null, "region": "local"}'], ids=repr)
async def test_a_ticket(server: Running, body: bytes) -> None:
    answer = await ask(server, body=body)
    found = answer.body
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    assert set(found) == {"sid", "ticket", "url", "region", "expires_in", "suites", "server_keys"}
    assert [len(base64.urlsafe_b64decode(found[name] + "==")) for name in ("sid", "ticket")] == [16, 32]
    assert not any(c in found["sid"] + found["ticket"] for c in "=+/")
    assert found["suites"] == [Suite.X25519, Suite.P256] and found["expires_in"] == 30
    assert found["url"] == f"ws://127.0.0.1:{server.port}/rwt/v2/ws" and found["server_keys"] == []


async def test_tickets_differ(server: Running) -> None:
    found = [(await ask(server)).body for _ in range(5)]
    assert len({body["sid"] for body in found}) == len({body["ticket"] for body in found}) == 5
    assert sessions(server) == 5


async def test_the_url_is_never_taken_from_the_host_header(server: Running) -> None:
    headers = {"Authorization": f"Bearer {server.key}", "Host": "evil.example"}
    async with (
        aiohttp.ClientSession() as http,
        http.post(server.url + SESSION, headers=headers) as answer,
    ):
        assert (await answer.json())["url"] == f"ws://127.0.0.1:{server.port}/rwt/v2/ws"


async def test_an_application_needs_a_url(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="url None cannot be used"):
        create_app(ServerConfig(), KeyFile(tmp_path / "keys.json"))


async def test_identity_keys_are_told(tmp_path: Path) -> None:
    key = SigningKey(ed25519.Ed25519PrivateKey.generate())
    async with running(tmp_path, identity_keys=(key,)) as server:
        told = [{"alg": 2, "key": b64(key.public.raw)}]
        assert (await ask(server)).body["server_keys"] == told
        assert (await ask(server, "GET", "/rwt/v2", key=None)).body["server_keys"] == told


# --- keys ------------------------------------------------------------------------------------------------


async def test_a_refused_key_gets_one_answer_whatever_is_wrong_with_it(server: Running) -> None:
    revoked, shown = server.keys.create("revoked", None)
    server.keys.revoke(revoked.id)
    wrong = [None, "", "x", "rwt_nobody_x", "{key}x", "x{key}", shown, "rwt__"]
    answers = [await ask(server, key=key, body=b"not even JSON") for key in wrong]
    body = json.dumps(answers[0].body)
    assert {(answer.status, json.dumps(answer.body)) for answer in answers} == {(401, body)}
    assert set(answers[0].body["error"]) == {"code", "message"} and sessions(server) == 0


@pytest.mark.parametrize(
    ("scheme", "status"),
    [("Bearer ", 200), ("bearer ", 200), ("Basic ", 401), ("", 401), ("Bearer:", 401)],
    ids=repr,
)
async def test_schemes(server: Running, scheme: str, status: int) -> None:
    async with (
        aiohttp.ClientSession() as http,
        http.post(server.url + SESSION, headers={"Authorization": scheme + server.key}) as answer,
    ):
        assert answer.status == status


async def test_a_key_is_revoked_for_new_tickets_at_once(server: Running) -> None:
    key, shown = server.keys.create("gone", None)
    assert (await ask(server, key=shown)).status == 200
    KeyFile(server.keys.path).revoke(key.id)
    assert (await ask(server, key=shown)).status == 401


async def test_a_damaged_key_file_is_no_reason_to_let_anybody_in(server: Running) -> None:
    server.keys.path.write_text("{")
    answer = await ask(server)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "keys.json" not in answer.body["error"]["message"]


# --- members ---------------------------------------------------------------------------------------------

MALFORMED = [
    "{",
    "[]",
    "null",
    '"text"',
    "\xff",
    "1" * 5_000,
    '{"user": 1}',
    '{"user": ""}',
    '{"user": "a\\nb"}',
    '{"user": "a\\u0000"}',
    '{"user": "\\ud800"}',
    json.dumps({"user": "é" * 128}),
    '{"region": "moon"}',
    '{"region": ""}',
    '{"region": ["local"]}',
    '{"scopes": "x"}',
    '{"scopes": {"x": 1}}',
    '{"scopes": [1]}',
    '{"scopes": [""]}',
    '{"cnf": "x"}',
    '{"cnf": []}',
    '{"cnf": {}}',
    '{"cnf": {"kty": "RSA", "n": "AQAB"}}',
    '{"cnf": {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"}}',
    '{"cnf": {"kty": "EC", "crv": "P-256", "x": "AA"}}',
    json.dumps({"cnf": {"kty": "EC", "crv": "P-256", "x": "A" * 43, "y": "A" * 43}}),
    '{"cnf": {"kty": "OKP", "crv": "Ed25519", "x": "AA"}}',
    '{"cnf": {"kty": "OKP", "crv": "Ed25519", "x": "!!!"}}',
    '{"cnf": {"kty": "OKP", "crv": "Ed25519", "x": 5}}',
    '{"cnf": {"kty": {}, "crv": []}}',
    '{"colour": 1}',
    '{"User": "ann"}',
]


@pytest.mark.parametrize("body", MALFORMED, ids=lambda body: ascii(body[:50]))
async def test_malformed(server: Running, body: str) -> None:
    answer = await ask(server, body=body.encode("latin-1") if body == "\xff" else body.encode())
    error = answer.body["error"]
    assert (answer.status, error["code"]) == (400, "malformed") and "\n" not in error["message"]
    assert sessions(server) == 0


@pytest.mark.parametrize(
    ("user", "shown"),
    [("ann", "ann"), ("é" * 127, "é" * 127), (None, None)],
    ids=["name", "254 bytes", "none"],
)
async def test_a_user_is_shown_to_readers(server: Running, user: str | None, shown: str | None) -> None:
    async with wire(server, user=user) as ann, wire(server) as reader:
        await reader.sub("x", use=1)
        stream = (await ann.sub("x", use=2)).stream
        ann.publish(stream, Publication(b"", 1))
        ann.flush()
        await reader.until(lambda: bool(reader.entries))
        assert reader.entries[0].sender == (shown or server.key.split("_")[1])
        assert reader.entries[0].sender_id is not None and len(reader.entries[0].sender_id) == 8


def jwk_of(kind: str) -> dict[str, str]:
    if kind == "Ed25519":
        raw = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        return {"kty": "OKP", "crv": kind, "x": b64(raw)}
    numbers = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    x, y = (b64(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "crv": kind, "x": x, "y": y}


@pytest.mark.parametrize("kind", ["P-256", "Ed25519"])
async def test_device_keys_are_kept_with_the_session(server: Running, kind: str) -> None:
    jwk = {**jwk_of(kind), "kid": "other members of a JWK are ignored"}
    assert (await ask(server, body=json.dumps({"cnf": jwk}).encode())).status == 200
    (record,) = server.node.engine.sessions._records.values()
    assert record.device_key is not None
    raw = b"".join(base64.urlsafe_b64decode(jwk[name] + "==") for name in ("x", "y") if name in jwk)
    assert record.device_key.raw.removeprefix(b"\x04" if kind == "P-256" else b"") == raw


@pytest.mark.parametrize(
    ("key", "scopes", "status"),
    [
        (None, ["a", "b.*"], 200),
        (None, [], 200),
        (("chat.*",), ["chat.a"], 200),
        (("chat.*",), ["chat.a.*"], 200),
        (("chat.*",), ["chat.*", "other"], 403),
        (("chat.*",), ["*"], 403),
        (("chat.*",), ["chat"], 403),
    ],
    ids=str,
)
async def test_scopes(server: Running, key: tuple[str, ...] | None, scopes: list[str], status: int) -> None:
    _, shown = server.keys.create("k", key)
    answer = await ask(server, key=shown, body=json.dumps({"scopes": scopes}).encode())
    assert answer.status == status
    assert status == 200 or answer.body["error"]["code"] == "forbidden"


async def test_both_the_key_and_the_scopes_must_permit_a_channel(server: Running) -> None:
    _, shown = server.keys.create("k", ("chat.*", "news"))
    narrow = Running(server.url, server.port, shown, server.keys, server.node)
    async with wire(narrow, scopes=["chat.a*"]) as raw:
        assert (await raw.sub("chat.ab")).use == 3
        assert [await raw.refused(name) for name in ("chat.b", "news", "other", "a")] == [1, 1, 1, 1]
    async with wire(narrow, scopes=[]) as raw:
        assert await raw.refused("news") == 1


# --- the rest --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"), [("POST", SESSION), ("GET", "/rwt/v2/ws")], ids=["session", "ws"]
)
@pytest.mark.parametrize("query", ["api_key={key}", "token=x", "x"])
async def test_nothing_belongs_into_the_query_string(
    server: Running, method: str, path: str, query: str
) -> None:
    answer = await ask(server, method, f"{path}?{query.format(key=server.key)}")
    assert answer.status == 400 and "query" in answer.body["error"]["message"]
    assert server.key not in json.dumps(answer.body) and sessions(server) == 0


async def test_discovery(tmp_path: Path) -> None:
    options: dict[str, Any] = {"region": "eu", "suites": ("x25519mlkem768", "p256"), "max_message": 4_096}
    async with running(tmp_path, **options) as server:
        assert (await ask(server, "GET", "/rwt/v2", key=None)).body == {
            "protocol": "rwt",
            "versions": [2],
            "suites": [3, 1],
            "url": f"ws://127.0.0.1:{server.port}/rwt/v2/ws",
            "regions": ["eu"],
            "server_keys": [],
            "limits": {"max_message": 4_096, "max_frame": 135_168, "window": 1_024},
        }


async def test_health_counts_connections(server: Running) -> None:
    assert (await ask(server, "GET", "/healthz", key=None)).body == {"status": "ok", "connections": 0}
    async with wire(server), wire(server):
        assert (await ask(server, "GET", "/healthz", key=None)).body["connections"] == 2


@pytest.mark.parametrize(
    ("method", "path"), [("POST", SESSION), ("GET", "/healthz"), ("GET", "/rwt/v2/ws")], ids=str
)
async def test_a_draining_server_sends_everybody_away(server: Running, method: str, path: str) -> None:
    await server.node.drain()
    headers = {**UPGRADE, "Authorization": f"Bearer {server.key}"}
    async with (
        aiohttp.ClientSession() as http,
        http.request(method, server.url + path, headers=headers) as answer,
    ):
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert (await answer.json())["error"]["code"] == "draining"


async def test_a_prefix_moves_all_routes(tmp_path: Path) -> None:
    async with running(tmp_path, prefix="/deep/er") as server:
        assert (await ask(server, path="/deep/er/v2/session")).status == 200
        async with connected(server.port) as sock:
            assert await sock.upgrade(path="/deep/er/v2/ws") == 101
        async with connected(server.port) as sock:
            assert await sock.upgrade() == 404


# --- limits before there is any proof --------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["max_handshakes", "max_handshakes_per_address"])
async def test_too_many_that_have_not_proved_anything(tmp_path: Path, limit: str) -> None:
    async with running(tmp_path, **{limit: 3}) as server, AsyncExitStack() as stack:
        idle = [await stack.enter_async_context(connected(server.port)) for _ in range(5)]
        assert [await sock.upgrade() for sock in idle] == [101, 101, 101, 429, 429]
        assert idle[3].headers["retry-after"] == "1"
        assert server.node.connections == 3  # nothing was made for those that were sent away
        assert (await ask(server)).status == 200  # a ticket is no handshake
        await idle[0].close()
        await until(lambda: server.node.connections == 2)
        async with wire(server), connected(server.port) as sock:  # nor is an open session
            assert await sock.upgrade() == 101


async def test_the_forwarded_address_counts_only_behind_a_proxy_that_is_trusted(tmp_path: Path) -> None:
    async def statuses(*forwarded: str, **options: Any) -> list[int]:
        async with (
            running(tmp_path, max_handshakes_per_address=1, **options) as server,
            AsyncExitStack() as stack,
        ):
            socks = [await stack.enter_async_context(connected(server.port)) for _ in forwarded]
            return [
                await sock.upgrade({**UPGRADE, "X-Forwarded-For": value})
                for sock, value in zip(socks, forwarded, strict=True)
            ]

    assert await statuses("1.1.1.1", "2.2.2.2") == [101, 429]
    trusted = {"trusted_proxies": ("127.0.0.1",)}
    assert await statuses("1.1.1.1", "2.2.2.2", "2.2.2.2", **trusted) == [101, 101, 429]
    # What a client wrote itself stands before what the proxy added.
    assert await statuses("6.6.6.6, 2.2.2.2", "7.7.7.7, 2.2.2.2", **trusted) == [101, 429]


async def test_many_requests_on_one_connection(server: Running) -> None:
    async with connected(server.port) as sock:
        for _ in range(3):
            sock.writer.write(request({}, "/healthz"))
            head = await sock.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            await sock.reader.readuntil(b"}")
