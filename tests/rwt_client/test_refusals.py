"""From what a server answers to the error that a caller gets (sections 12 and 13.6)."""

from __future__ import annotations

import pytest

from rwt_client.reconnect import Ending
from rwt_client.refusals import ending_of, error_of, refusal
from rwt_protocol.codes import CloseCode, ErrorCode
from rwt_protocol.errors import (
    RWTAuthenticationError,
    RWTConnectionError,
    RWTError,
    RWTOutcomeUnknown,
    RWTSendError,
)


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_every_code_has_a_name(code: ErrorCode) -> None:
    error = refusal(code, None, "a message on 'x'", "send")
    name = code.name.lower().replace("_", "-")
    assert (error.code, error.operation, error.details) == (name, "send", {"error_code": code})
    assert str(error) == f"the server refused a message on 'x': {name}"
    assert isinstance(error, RWTOutcomeUnknown) == (code is ErrorCode.OUTCOME_UNKNOWN)


def test_a_text_is_told() -> None:
    error = refusal(ErrorCode.NOT_AUTHORISED, "ask ada", "channel 'x'", "open")
    assert type(error) is RWTSendError and error.code == "not-authorised"
    assert str(error) == "the server refused channel 'x': not-authorised (ask ada)"


def test_a_code_of_a_later_version_is_its_number() -> None:
    assert refusal(77, None, "x", "send").code == "77"


@pytest.mark.parametrize(
    ("ending", "kind", "text"),
    [
        (Ending(code=CloseCode.REVOKED), RWTAuthenticationError, "the session is revoked"),
        (
            Ending(code=CloseCode.AUTHENTICATION_FAILED, reason="gone"),
            RWTAuthenticationError,
            "gone",
        ),
        (Ending(http_status=401, reason="no such key"), RWTAuthenticationError, "no such key"),
        (Ending(http_status=403, reason="no"), RWTAuthenticationError, "no"),
        (Ending(http_status=404, reason="not here"), RWTConnectionError, "not here"),
        (Ending(), RWTConnectionError, "the connection was closed with code 1006"),
        (
            Ending(code=CloseCode.VERSION_OR_SUITE),
            RWTConnectionError,
            "the connection was closed with code 4406",
        ),
    ],
    ids=["revoked", "not authenticated", "401", "403", "404", "cut", "suite"],
)
def test_errors_of_endings(ending: Ending, kind: type[RWTError], text: str) -> None:
    error = error_of(ending)
    assert type(error) is kind and str(error) == text and error.operation == "connect"
    assert error.details == {"close_code": int(ending.code), "http_status": ending.http_status}


def test_how_long_to_wait_is_kept() -> None:
    assert error_of(Ending(code=CloseCode.DRAINING, retry_after=1.5)).retry_after == 1.5


def test_endings_of_ticket_requests() -> None:
    refused = RWTConnectionError("busy", details={"http_status": 503}, retry_after=2.0)
    assert ending_of(refused) == Ending(reason="busy", http_status=503, retry_after=2.0)
    assert ending_of(RWTConnectionError("down", code="unreachable")) == Ending(reason="down")
    hopeless = RWTConnectionError("no RWT server")
    with pytest.raises(RWTConnectionError) as raised:
        ending_of(hopeless)
    assert raised.value is hopeless
