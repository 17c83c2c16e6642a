"""Run the application: sockets, signals, deadlines on every connection."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from dataclasses import replace
from ipaddress import ip_address

import structlog
from aiohttp import web

from .app import NODE, create_app
from .config import ConfigError, ServerConfig
from .guard import Guard
from .keys import KeyFile

log = structlog.get_logger()

_KEEPALIVE = 5.0
"""Seconds that an idle HTTP connection is kept; below the deadline of connections."""


def _why(exc: OSError) -> str:
    return os.strerror(exc.errno).lower() if exc.errno and exc.errno > 0 else str(exc.strerror or exc)


def _listen(config: ServerConfig) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=1_024)
    except OSError as exc:
        raise ConfigError(
            f"address {config.host}:{config.port} cannot be used ({_why(exc)}): "
            "choose another with --host and --port"
        ) from exc


def _tls(config: ServerConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(
            f"certificate {str(config.tls_cert)!r} with key {str(config.tls_key)!r} cannot be used: "
            f"{exc.strerror or exc}"
        ) from exc
    return context


def _public_url(config: ServerConfig, port: int) -> str:
    host = config.host
    try:
        if ip_address(host).is_unspecified:
            host = "127.0.0.1"
    except ValueError:
        pass
    host = f"[{host}]" if ":" in host else host
    scheme = "wss" if config.tls_cert is not None else "ws"
    return f"{scheme}://{host}:{port}{config.prefix}/v2/ws"


async def serve(config: ServerConfig, keys: KeyFile) -> None:
    """Serve until SIGTERM or SIGINT, then drain: every client is told to come back, nothing is cut.

    Raises:
        ConfigError: the address or the certificate cannot be used.
    """
    context = _tls(config)
    sock = _listen(config)
    port = sock.getsockname()[1]
    if config.url is None:
        if config.host in ("0.0.0.0", "::"):
            log.warning("url_guessed", hint="other machines need --url: the guess names this one only")
        config = replace(config, url=_public_url(config, port))
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    app = create_app(config, keys)
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=_KEEPALIVE, handle_signals=False, shutdown_timeout=5.0
    )
    await runner.setup()
    factory = runner.server
    if factory is None:
        raise AssertionError("a runner that is set up has a server")
    deadlines = app[NODE].deadlines
    server = await loop.create_server(lambda: Guard(factory(), deadlines), sock=sock, ssl=context)
    log.info("serving", url=config.url, port=port, loop=type(loop).__module__, data=str(config.data_dir))
    try:
        await stopping.wait()
    finally:
        log.info("stopping", connections=app[NODE].connections)
        server.close()
        await app[NODE].drain()
        await runner.cleanup()
        log.info("stopped")
