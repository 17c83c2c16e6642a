"""From what a server answers to the error that a caller gets."""

from __future__ import annotations

from rwt_protocol.codes import CloseCode, ErrorCode
from rwt_protocol.errors import (
    RWTAuthenticationError,
    RWTConnectionError,
    RWTError,
    RWTOutcomeUnknown,
    RWTSendError,
)

from .reconnect import Ending


def refusal(code: int, text: str | None, what: str, operation: str) -> RWTSendError:
    """The error for an ERR or CLOSED code."""
    name = ErrorCode(code).name.lower().replace("_", "-") if code in set(ErrorCode) else str(code)
    kind = RWTOutcomeUnknown if code == ErrorCode.OUTCOME_UNKNOWN else RWTSendError
    return kind(
        f"the server refused {what}: {name}" + (f" ({text})" if text else ""),
        code=name,
        operation=operation,
        details={"error_code": code},
    )


def error_of(ending: Ending) -> RWTError:
    """The error for a connection, or an attempt at one, that ended for good."""
    details = {"close_code": int(ending.code), "http_status": ending.http_status}
    refused = (CloseCode.AUTHENTICATION_FAILED, CloseCode.REVOKED)
    if ending.http_status in (401, 403) or ending.code in refused:
        text = ending.reason or "the session is revoked"
        return RWTAuthenticationError(text, operation="connect", details=details)
    text = ending.reason or f"the connection was closed with code {int(ending.code)}"
    return RWTConnectionError(text, operation="connect", details=details, retry_after=ending.retry_after)


def ending_of(error: RWTError) -> Ending:
    """The ending for an error of the ticket request.

    Raises:
        RWTError: the error itself, if no later attempt can help.
    """
    status = error.details.get("http_status")
    if isinstance(status, int):
        return Ending(reason=str(error), http_status=status, retry_after=error.retry_after)
    if error.code == "unreachable":
        return Ending(reason=str(error))
    raise error
