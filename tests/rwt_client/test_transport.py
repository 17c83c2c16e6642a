"""Addresses, ticket requests and WebSockets over real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from rwt_client.transport import AiohttpTransport, HTTPRefusal, base_url, check_secure
from rwt_protocol.errors import RWTConnectionError
from tests.running import Running

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """The address of a server that answers everything with `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app, host="127.0.0.1") as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
async def transport() -> AsyncIterator[AiohttpTransport]:
    found = AiohttpTransport()
    yield found
    await found.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8765", "http://127.0.0.1:8765/rwt"),
        ("http://127.0.0.1:8765/", "http://127.0.0.1:8765/rwt"),
        ("http://localhost/a/b/", "http://localhost/a/b"),
        ("http://LOCALHOST", "http://LOCALHOST/rwt"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("http://127.8.9.1", "http://127.8.9.1/rwt"),
        ("ws://127.0.0.1/rwt/v2/ws", "http://127.0.0.1/rwt"),
        ("ws://127.0.0.1/v2/ws", "http://127.0.0.1/rwt"),
        ("wss://example.org/deep/rwt/v2/ws/", "https://example.org/deep/rwt"),
        ("https://example.org", "https://example.org/rwt"),
        ("HTTPS://example.org:8443", "https://example.org:8443/rwt"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert base_url(url, allow_insecure=False) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "ftp://127.0.0.1",
        "http://",
        "http:///rwt",
        "http://127.0.0.1/?token=1",
        "http://127.0.0.1/#a",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:port",
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        base_url(url, allow_insecure=True)
    text = str(refused.value)
    assert text.startswith(f"url={url!r} cannot be used: ") and "\n" not in text


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org",
        "ws://example.org/rwt/v2/ws",
        "http://10.0.0.1",
        "http://0.0.0.0",
        "http://[::]",
        "http://localhost.example.org",
        "http://127.0.0.1.example.org",
        "http://[2001:db8::1]",
    ],
)
def test_plain_text_to_another_machine(url: str) -> None:
    for check in (check_secure, base_url):
        with pytest.raises(ValueError, match="use https:// or wss://, or allow_insecure=True") as refused:
            check(url, allow_insecure=False)
        assert str(refused.value).startswith(f"url={url!r} cannot be used: it is not encrypted")
    check_secure(url, allow_insecure=True)
    assert base_url(url, allow_insecure=True).startswith("http://")


async def test_json_there_and_back(transport: AiohttpTransport) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"body": await request.json(), "auth": request.headers["Authorization"]})

    async with serving(handler) as url:
        answer = await transport.post(f"{url}/x", {"Authorization": "Bearer a"}, {"ä": [1, None]})
    assert answer == {"body": {"ä": [1, None]}, "auth": "Bearer a"}


ANSWERS: dict[str, tuple[web.Response, Exception]] = {
    "refused": (
        web.json_response({"error": {"code": "x", "message": "say why"}}, status=400),
        HTTPRefusal(400, "say why", None),
    ),
    "later": (
        web.json_response({"error": {"message": "busy"}}, status=503, headers={"Retry-After": "7"}),
        HTTPRefusal(503, "busy", 7.0),
    ),
    "a date": (
        web.Response(text="<html>", status=429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        HTTPRefusal(429, "HTTP status 429", None),
    ),
    "not an object": (web.json_response([1], status=500), HTTPRefusal(500, "HTTP status 500", None)),
    "moved": (
        web.Response(status=302, headers={"Location": "/y"}),
        HTTPRefusal(302, "HTTP status 302", None),
    ),
    "created": (web.json_response({}, status=201), HTTPRefusal(201, "HTTP status 201", None)),
    "no JSON": (web.Response(text="<html>"), ConnectionError("is this an RWT server")),
    "no object": (web.json_response([1]), ConnectionError("is this an RWT server")),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers_that_are_no_tickets(transport: AiohttpTransport, name: str) -> None:
    response, expected = ANSWERS[name]
    asked: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(
            status=response.status,
            body=response.body,
            headers={k: v for k, v in response.headers.items() if k != "Content-Length"},
        )

    async with serving(handler) as url:
        with pytest.raises(type(expected), match=str(expected)) as raised:
            await transport.post(f"{url}/x", {}, {})
    assert asked == ["/x"]
    if isinstance(expected, HTTPRefusal):
        found = raised.value
        assert isinstance(found, HTTPRefusal)
        assert (found.status, found.retry_after) == (expected.status, expected.retry_after)


async def test_nobody_there(transport: AiohttpTransport, unused_tcp_port: int) -> None:
    with pytest.raises(ConnectionError, match="connection refused"):
        await transport.post(f"http://127.0.0.1:{unused_tcp_port}", {}, {})
    with pytest.raises(ConnectionError, match="connection refused"):
        await transport.open(f"ws://127.0.0.1:{unused_tcp_port}")


async def test_no_name(transport: AiohttpTransport) -> None:
    with pytest.raises(ConnectionError):
        await transport.post("http://no.such.host.invalid", {}, {})


async def test_what_arrives_on_a_websocket(transport: AiohttpTransport) -> None:
    got: list[bytes] = []

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("rwt.v2",))
        await ws.prepare(request)
        got.append(await ws.receive_bytes())
        await ws.send_bytes(b"\x00bytes")
        await ws.send_str("text")
        await ws.close(code=4409)
        return ws

    async with serving(handler) as url:
        socket = await transport.open(url)
        await socket.send(b"frame")
        assert [await socket.receive() for _ in range(3)] == [b"\x00bytes", "text", 4409]
        assert await socket.receive() == 4409
        with pytest.raises(ConnectionError):
            await socket.send(b"late")
    assert got == [b"frame"]


async def test_a_cut_websocket_is_1006(transport: AiohttpTransport) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("rwt.v2",))
        await ws.prepare(request)
        assert request.transport is not None
        request.transport.abort()
        return ws

    async with serving(handler) as url:
        socket = await transport.open(url)
        assert await socket.receive() == 1006


async def test_the_close_code_that_is_sent(transport: AiohttpTransport) -> None:
    codes: list[int | None] = []
    done = asyncio.Event()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(protocols=("rwt.v2",))
        await ws.prepare(request)
        await ws.receive()
        codes.append(ws.close_code)
        done.set()
        return ws

    async with serving(handler) as url:
        socket = await transport.open(url)
        await socket.close(4401)
        async with asyncio.timeout(5):
            await done.wait()
    assert codes == [4401]


async def test_another_protocol(transport: AiohttpTransport) -> None:
    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.receive()
        return ws

    async with serving(handler) as url:
        with pytest.raises(RWTConnectionError, match=r"does not speak rwt\.v2"):
            await transport.open(url)


async def test_a_refused_upgrade(transport: AiohttpTransport, server: Running) -> None:
    with pytest.raises(HTTPRefusal) as refused:
        await transport.open(f"{server.url}/elsewhere")
    assert refused.value.status == 404


async def test_an_untrusted_certificate_and_a_plain_server(server: Running) -> None:
    transport = AiohttpTransport(ssl.create_default_context())
    with pytest.raises(ConnectionError):
        await transport.post(f"https://127.0.0.1:{server.port}", {}, {})
    await transport.close()


async def test_closing_twice_and_using_again(transport: AiohttpTransport, server: Running) -> None:
    for _ in range(2):
        with pytest.raises(HTTPRefusal, match="unknown or revoked"):
            await transport.post(f"{server.url}/rwt/v2/session", {"Authorization": "Bearer rwt_a_b"}, {})
        await transport.close()
        await transport.close()
