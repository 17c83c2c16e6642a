"""Structured logs with secrets masked."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET_NAMES = re.compile(r"token|ticket|secret|authorization|api_?key|password|private", re.IGNORECASE)
_API_KEY = re.compile(r"rwt_[0-9A-Za-z-]+_[0-9A-Za-z_-]+")
MASK = "***"


def _mask(value: object) -> object:
    if isinstance(value, str):
        return _API_KEY.sub(f"rwt_{MASK}", value)
    if isinstance(value, bytes | bytearray):
        return f"<{len(value)} bytes>"
    return value


def mask_secrets(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Mask values whose name speaks of a secret, API keys inside texts, and raw bytes."""
    for name, value in event.items():
        event[name] = MASK if _SECRET_NAMES.search(name) and name != "event" else _mask(value)
    return event


def configure(level: str = "info", *, as_json: bool | None = None) -> None:
    """Write events to standard error: as lines for people on a terminal, as JSON elsewhere.

    Args:
        level: `debug`, `info`, `warning` or `error`.
        as_json: Force the form; None: by whether standard error is a terminal.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.dict_tracebacks if as_json else structlog.processors.format_exc_info,
            mask_secrets,
            structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
