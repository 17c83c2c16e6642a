"""The only module that knows aiohttp: the ticket request and the WebSocket."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp import WSMsgType

from rwt_protocol import limits
from rwt_protocol.codes import SUBPROTOCOL
from rwt_protocol.errors import RWTConnectionError

_MAX_ANSWER = 65_536
_EXAMPLE = "https://example.org/rwt"


class HTTPRefusal(Exception):
    """The server answered an HTTP request with an error status."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class Socket(Protocol):
    """One open WebSocket."""

    async def send(self, frame: bytes) -> None:
        """Send one binary message; waits while too much is unsent. Raises ConnectionError."""
        ...

    async def receive(self) -> bytes | str | int:
        """Return the next message, or the close code when the WebSocket is over (1006: none came)."""
        ...

    async def close(self, code: int) -> None:
        """Close with `code` and wait for the peer, a few seconds at most."""
        ...


class Transport(Protocol):
    """What a client needs of a network."""

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Mapping[str, Any]:
        """POST JSON and return JSON. Raises HTTPRefusal, ConnectionError."""
        ...

    async def open(self, url: str) -> Socket:
        """Open a WebSocket with the subprotocol `rwt.v2`. Raises HTTPRefusal, ConnectionError."""
        ...

    async def close(self) -> None:
        """Release what the transport holds."""
        ...


def base_url(url: str, *, allow_insecure: bool) -> str:
    """Return the HTTP address of a server's prefix; a URL without a path means `/rwt`.

    Raises:
        ValueError: it is no http(s) or ws(s) URL, or plain and not to this machine.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - urlsplit checks the port when it is read
    except ValueError as exc:
        raise ValueError(f"url={url!r} cannot be used: {exc}; give an address like {_EXAMPLE}") from exc
    if parts.username is not None or parts.password is not None:
        shown = url.replace(parts.netloc, "***@" + parts.netloc.rpartition("@")[2])
        raise ValueError(f"url={shown!r} cannot be used: give the key as api_key, never in the URL")
    schemes = {"http": "http", "ws": "http", "https": "https", "wss": "https"}
    if parts.scheme not in schemes or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"url={url!r} cannot be used: give an address such as {_EXAMPLE}")
    check_secure(url, allow_insecure=allow_insecure)
    path = parts.path.rstrip("/").removesuffix("/v2/ws") or "/rwt"
    return urlunsplit((schemes[parts.scheme], parts.netloc, path, "", ""))


def check_secure(url: str, *, allow_insecure: bool) -> None:
    """Refuse plain text to other machines.

    Raises:
        ValueError: it is.
    """
    parts = urlsplit(url)
    if parts.scheme in ("https", "wss") or allow_insecure:
        return
    host = parts.hostname or ""
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise ValueError(
            f"url={url!r} cannot be used: it is not encrypted and not on this machine; "
            "use https:// or wss://, or allow_insecure=True if you know why"
        )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdigit() else None


def _message(raw: bytes, fallback: str) -> str:
    try:
        return str(json.loads(raw)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return fallback


def _why(exc: aiohttp.ClientError) -> str:
    """The reason in the system's words, without what only aiohttp's users understand."""
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not trusted ({exc.certificate_error})"
    if isinstance(exc, aiohttp.ClientOSError) and exc.strerror:
        return os.strerror(exc.errno).lower() if exc.errno and exc.errno > 0 else str(exc.strerror)
    return str(exc) or type(exc).__name__


class _AiohttpSocket:
    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws

    async def send(self, frame: bytes) -> None:
        try:
            await self._ws.send_bytes(frame)
        except (aiohttp.ClientError, RuntimeError) as exc:
            raise ConnectionError("the connection is closing") from exc

    async def receive(self) -> bytes | str | int:
        message = await self._ws.receive()
        if message.type is WSMsgType.BINARY or message.type is WSMsgType.TEXT:
            return message.data  # type: ignore[no-any-return]
        return self._ws.close_code or 1006

    async def close(self, code: int) -> None:
        await self._ws.close(code=code)


async def _no_redirect(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A redirect could lead a ticket or a session to a place that was never checked."""
    response = await handler(request)
    if 300 <= response.status < 400 and "Upgrade" in request.headers:
        response.close()
        raise _Redirected(response.status)
    return response


class _Redirected(aiohttp.ClientConnectionError):
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class AiohttpTransport:
    """The real network.

    Args:
        ssl_context: For certificates that the system does not know; None: the system's.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl = ssl_context
        self._http: aiohttp.ClientSession | None = None

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            # A kept connection may be closed by the server just when it is used again: never keep one.
            connector = aiohttp.TCPConnector(force_close=True, ssl=self._ssl or True)
            self._http = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), middlewares=(_no_redirect,)
            )
        return self._http

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            async with self._session().post(
                url, headers=headers, json=body, allow_redirects=False
            ) as response:
                raw = b""
                async for piece in response.content.iter_any():
                    raw += piece
                    if len(raw) > _MAX_ANSWER:
                        raise ConnectionError("the answer is too large: is this an RWT server?")
                status, answered = response.status, response.headers
        except aiohttp.ClientError as exc:
            raise ConnectionError(_why(exc)) from exc
        if status != 200:
            raise HTTPRefusal(status, _message(raw, f"HTTP status {status}"), _retry_after(answered))
        try:
            answer = json.loads(raw)
        except ValueError as exc:
            raise ConnectionError("the answer is not JSON: is this an RWT server?") from exc
        if not isinstance(answer, dict):
            raise ConnectionError("the answer is not a JSON object: is this an RWT server?")
        return answer

    async def open(self, url: str) -> Socket:
        try:
            ws = await self._session().ws_connect(
                url,
                protocols=(SUBPROTOCOL,),
                compress=0,
                max_msg_size=16 * limits.MAX_MESSAGE + limits.FRAME_OVERHEAD + 1,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
        except _Redirected as exc:
            raise HTTPRefusal(exc.status, "it redirects: give its final address", None) from exc
        except aiohttp.WSServerHandshakeError as exc:
            raise HTTPRefusal(exc.status, exc.message, _retry_after(exc.headers or {})) from exc
        except aiohttp.ClientError as exc:
            raise ConnectionError(_why(exc)) from exc
        if ws.protocol != SUBPROTOCOL:
            await ws.close()
            raise RWTConnectionError(f"the server does not speak {SUBPROTOCOL}", operation="connect")
        return _AiohttpSocket(ws)

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None
