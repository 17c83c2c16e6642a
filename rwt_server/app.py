"""The aiohttp application: control plane, WebSocket endpoint, health (section 7.1)."""

from __future__ import annotations

import base64
import binascii
import json
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web

from rwt_protocol.codes import SUBPROTOCOL, VERSION, SignatureAlgorithm
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.suites import PublicKey

from .config import ConfigError, ServerConfig
from .driver import Driver
from .guard import Guard
from .keys import ApiKey, KeyFile, may_use
from .node import Node

log = structlog.get_logger()

NODE: web.AppKey[Node] = web.AppKey("rwt_node", Node)

_MAX_BODY = 16_384
_MAX_USER = 255
_RETRY_AFTER = "1"
_CLOSE_WAIT = 2.0
_OVERSIZE = 65_536
"""Frames that are too large by less than this get our own answer, 4413; aiohttp ends larger ones with 1009."""
_NOTSENT_LOWAT = 65_536
"""Bytes that the kernel may hold unsent: control frames wait behind these."""


class _Refusal(Exception):
    """A request that is answered with an error document."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def _error(status: int, code: str, message: str) -> web.Response:
    headers = {"Retry-After": _RETRY_AFTER} if status in (429, 503) else {}
    return web.json_response({"error": {"code": code, "message": message}}, status=status, headers=headers)


@web.middleware
async def _refusals(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        response = await handler(request)
    except _Refusal as refusal:
        response = _error(refusal.status, refusal.code, str(refusal))
    except web.HTTPRequestEntityTooLarge:
        response = _error(413, "too-large", f"a body has more than {_MAX_BODY} bytes")
    transport = request.transport
    if transport is not None and isinstance(guard := transport.get_protocol(), Guard):
        guard.restart()
    return response


def create_app(config: ServerConfig, keys: KeyFile) -> web.Application:
    """Return an application that serves RWT under `config.prefix`.

    Raises:
        ConfigError: `config.url` is not set: clients are told it, and it is never taken from a Host header.
    """
    if config.url is None:
        raise ConfigError("url None cannot be used: give the endpoint that clients reach, wss://.../v2/ws")
    app = web.Application(middlewares=[_refusals], client_max_size=_MAX_BODY)

    async def start(app: web.Application) -> None:
        app[NODE] = Node(config, keys)

    async def drain(app: web.Application) -> None:
        await app[NODE].drain()

    async def stop(app: web.Application) -> None:
        await app[NODE].close()

    app.on_startup.append(start)
    app.on_shutdown.append(drain)
    app.on_cleanup.append(stop)
    prefix = config.prefix
    app.router.add_post(f"{prefix}/v2/session", _session)
    app.router.add_get(f"{prefix}/v2/ws", _websocket)
    app.router.add_get(f"{prefix}/v2", _discovery)
    app.router.add_get("/healthz", _health)
    return app


async def _health(request: web.Request) -> web.Response:
    node = request.app[NODE]
    if node.draining:
        return _error(503, "draining", "the server is going away")
    return web.json_response({"status": "ok", "connections": node.connections})


async def _discovery(request: web.Request) -> web.Response:
    node = request.app[NODE]
    rules = node.rules
    return web.json_response(
        {
            "protocol": "rwt",
            "versions": [VERSION],
            "suites": [int(suite) for suite in rules.suites],
            "url": node.config.url,
            "regions": [node.config.region],
            "server_keys": node.server_keys(),
            "limits": {
                "max_message": rules.max_message,
                "max_frame": rules.max_frame,
                "window": rules.window,
            },
        }
    )


# --- tickets ---------------------------------------------------------------------------------------------


async def _session(request: web.Request) -> web.Response:
    if request.query_string:
        raise _Refusal(400, "malformed", "nothing belongs into the query string")
    node = request.app[NODE]
    if node.draining:
        raise _Refusal(503, "draining", "the server is going away")
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    try:
        key = node.keys.authenticate(presented.strip()) if scheme.lower() == "bearer" else None
    except ConfigError as exc:
        log.error("key_file_failed", error=str(exc))
        raise _Refusal(503, "unavailable", "keys cannot be checked now") from exc
    if key is None:
        log.warning("api_key_refused", address=_address(request))
        raise _Refusal(401, "unauthorized", "the API key is unknown or revoked")
    body = await _body(request)
    user = _user(body.pop("user", None))
    scopes = _scopes(body.pop("scopes", None), key)
    device_key = _device_key(body.pop("cnf", None))
    region = body.pop("region", None)
    if region is not None and region != node.config.region:
        raise _Refusal(400, "malformed", f"region {region!r} is not served: use {node.config.region!r}")
    if body:
        raise _Refusal(400, "malformed", f"member {next(iter(body))!r} is not known")
    ticket = await node.issue_ticket(key, user=user, scopes=scopes, device_key=device_key)
    return web.json_response(ticket, headers={"Cache-Control": "no-store"})


async def _body(request: web.Request) -> dict[str, Any]:
    raw = await request.read()
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise _Refusal(400, "malformed", "the body is not JSON") from exc
    if not isinstance(body, dict):
        raise _Refusal(400, "malformed", "the body is not a JSON object")
    return body


def _user(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value.encode("utf-8", "replace")) <= _MAX_USER:
        raise _Refusal(400, "malformed", f"user is not a text of 1 to {_MAX_USER} bytes")
    if not value.isprintable():
        raise _Refusal(400, "malformed", "user has a control character")
    return value


def _scopes(value: object, key: ApiKey) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(scope, str) and scope for scope in value):
        raise _Refusal(400, "malformed", "scopes is not a list of channel patterns")
    # Both the key's patterns and the scopes must match a name; this only catches a plain mistake early.
    for scope in value:
        if not may_use(key.channels, scope):
            raise _Refusal(403, "forbidden", f"scope {scope!r} is not covered by the API key")
    return tuple(value)


def _device_key(value: object) -> PublicKey | None:
    if value is None:
        return None
    try:
        if not isinstance(value, dict):
            raise ValueError("not an object")
        kind, curve = value.get("kty"), value.get("crv")
        if (kind, curve) == ("EC", "P-256"):
            return PublicKey(
                SignatureAlgorithm.ECDSA_P256, b"\x04" + _b64(value.get("x")) + _b64(value.get("y"))
            )
        if (kind, curve) == ("OKP", "Ed25519"):
            return PublicKey(SignatureAlgorithm.ED25519, _b64(value.get("x")))
        raise ValueError("neither P-256 nor Ed25519")
    except (ValueError, RWTProtocolError) as exc:
        raise _Refusal(400, "malformed", f"cnf is not a JWK of P-256 or Ed25519: {exc}") from exc


def _b64(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a coordinate is missing")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise ValueError("a coordinate is not base64url") from exc


# --- the WebSocket endpoint ------------------------------------------------------------------------------


def _address(request: web.Request) -> str:
    """The peer's address; behind a trusted proxy the one it forwards."""
    peer = request.remote or ""
    if peer in request.app[NODE].config.trusted_proxies:
        # The proxy's own line is the last; earlier ones may come from anybody.
        forwarded = request.headers.getall("X-Forwarded-For", [""])[-1]
        return forwarded.rpartition(",")[2].strip() or peer
    return peer


async def _websocket(request: web.Request) -> web.StreamResponse:
    node = request.app[NODE]
    if request.query_string:
        raise _Refusal(400, "malformed", "nothing belongs into the query string")
    origin = request.headers.get("Origin")
    allowed = node.config.origins
    if origin is not None and "*" not in allowed and origin not in allowed:
        raise _Refusal(403, "origin", "this origin is not allowed")
    offered = request.headers.get("Sec-WebSocket-Protocol", "")
    if SUBPROTOCOL not in [name.strip() for name in offered.split(",")]:
        raise _Refusal(400, "subprotocol", f"the subprotocol {SUBPROTOCOL} is not offered")
    if node.draining:
        raise _Refusal(503, "draining", "the server is going away")
    address = _address(request)
    if not node.admit(address):
        raise _Refusal(429, "busy", "too many connections are not authenticated yet")
    ws = web.WebSocketResponse(
        protocols=(SUBPROTOCOL,),
        compress=False,
        timeout=_CLOSE_WAIT,
        max_msg_size=node.rules.max_frame + _OVERSIZE,
    )
    await ws.prepare(request)
    transport = request.transport
    if transport is None:
        return ws
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _NOTSENT_LOWAT)
    await Driver(node, ws, transport, address).run()
    return ws
