"""Values of applications and bodies of messages (section 10.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from rwt_client.values import decode_value, encode_value
from rwt_protocol.codes import Form
from rwt_protocol.errors import RWTEncodingError, RWTSendError

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

VALUES: dict[str, tuple[Any, Form, bytes | None]] = {
    "bytes": (b"\x00\xff\n", Form.BYTES, b"\x00\xff\n"),
    "no bytes": (b"", Form.BYTES, b""),
    "text": ("grüße 🐉\x00", Form.TEXT, "grüße 🐉\x00".encode()),
    "no text": ("", Form.TEXT, b""),
    "null": (None, Form.JSON, b"null"),
    "true": (True, Form.JSON, b"true"),
    "zero": (0, Form.JSON, b"0"),
    "2**53 + 1": (2**53 + 1, Form.JSON, b"9007199254740993"),
    "-(2**64)": (-(2**64), Form.JSON, b"-18446744073709551616"),
    "float": (0.1, Form.JSON, b"0.1"),
    "no array": ([], Form.JSON, b"[]"),
    "no object": ({}, Form.JSON, b"{}"),
    "empty key": ({"": ""}, Form.JSON, b'{"":""}'),
    "keys": ({"schlüssel": 1, "🐉": [None, {"a": []}]}, Form.JSON, None),
    "200 deep": (DEEP, Form.JSON, None),
}


@pytest.mark.parametrize("name", VALUES)
def test_round_trip(name: str) -> None:
    value, form, body = VALUES[name]
    found, encoded = encode_value(value)
    assert found is form
    assert body is None or encoded == body
    back = decode_value(form, encoded)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "value", [bytearray(b"a\x00b"), memoryview(b"xa\x00bx")[1:4], memoryview(b"a_\x00_b")[::2]], ids=str
)
def test_bytes_like_values_are_bytes(value: bytearray | memoryview) -> None:
    assert encode_value(value) == (Form.BYTES, b"a\x00b")


def test_bytes_are_copied() -> None:
    value = bytearray(b"before")
    _, body = encode_value(value)
    value[:] = b"after!"
    assert body == b"before"


def test_tuples_are_arrays_and_json_is_short_utf_8() -> None:
    assert encode_value((1, "ä")) == (Form.JSON, '[1,"ä"]'.encode())


def _loop() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def _too_deep() -> Any:
    value: Any = None
    for _ in range(100_000):
        value = [value]
    return value


REFUSED: dict[str, Callable[[], Any]] = {
    "NaN": lambda: float("nan"),
    "infinity": lambda: {"a": [float("-inf")]},
    "set": lambda: {1, 2},
    "object": object,
    "bytes in an array": lambda: [b"x"],
    "lone surrogate": lambda: "\ud800",
    "lone surrogate in an object": lambda: {"k": "\udfff"},
    "lone surrogate in a key": lambda: {"\ud800": 1},
    "tuple as a key": lambda: {(1, 2): 3},
    "endless": _loop,
    "too deep": _too_deep,
    "too many digits": lambda: 10**5_000,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused(name: str) -> None:
    value = REFUSED[name]()
    with pytest.raises(RWTEncodingError) as refused:
        encode_value(value)
    error = refused.value
    assert isinstance(error, RWTSendError) and not error.can_retry()
    assert (error.code, error.operation) == ("encoding", "send")
    assert error.details == {"type": type(value).__name__}
    assert type(value).__name__ in str(error) and "send bytes, text or a JSON value" in str(error)


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (Form.TEXT, b"\xff"),
        (Form.TEXT, b"\xed\xa0\x80"),
        (Form.JSON, b""),
        (Form.JSON, b"{"),
        (Form.JSON, b"\xff"),
        (Form.JSON, b"[" * 100_000),
        (Form.JSON, b"1" * 5_000),
    ],
    ids=["text", "surrogate", "no JSON", "half an object", "not UTF-8", "too deep", "too many digits"],
)
def test_bodies_that_are_not_their_form(form: Form, body: bytes) -> None:
    with pytest.raises(RWTEncodingError, match=form.name):
        decode_value(form, body)


def test_keys_that_json_turns_into_text() -> None:
    assert json.loads(encode_value({1: True})[1]) == {"1": True}
