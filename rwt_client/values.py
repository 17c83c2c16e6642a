"""Application values and message bodies: bytes, text, JSON (section 10)."""

from __future__ import annotations

import json
from typing import Any

from rwt_protocol.codes import Form
from rwt_protocol.errors import RWTEncodingError


def encode_value(data: Any) -> tuple[Form, bytes]:
    """Encode a value: bytes-like as it is, str as UTF-8, everything else as JSON.

    Raises:
        RWTEncodingError: JSON or UTF-8 cannot carry it.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        return Form.BYTES, bytes(data)
    try:
        if isinstance(data, str):
            return Form.TEXT, data.encode()
        text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        return Form.JSON, text.encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise RWTEncodingError(
            f"a {type(data).__name__} cannot be sent ({exc}): send bytes, text or a JSON value",
            operation="send",
            details={"type": type(data).__name__},
        ) from exc


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def decode_value(form: int, body: bytes) -> Any:
    """Decode a body.

    Raises:
        RWTEncodingError: the body is not what its form says.
    """
    try:
        if form == Form.TEXT:
            return body.decode()
        if form == Form.JSON:
            return json.loads(body, parse_constant=_refuse)
    except (ValueError, RecursionError) as exc:
        raise RWTEncodingError(f"a received body is not {Form(form).name}", operation="receive") from exc
    return body
