"""The one exception tree.

RWTError                       code, operation, details, recovery
├── RWTConnectionError         could not open or keep the connection
│   ├── RWTDisconnectedError   the operation needs an open connection
│   └── RWTProtocolError       the peer broke the specification; carries the close code
├── RWTAuthenticationError     wrong, expired or revoked credentials; do not retry as is
├── RWTSendError               nothing was stored
│   ├── RWTEncodingError       the value cannot be encoded
│   └── RWTOutcomeUnknown      it may or may not have been stored
├── RWTTimeoutError            also a TimeoutError
└── RWTEncryptionError         keys or AEAD; never says which check failed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from .codes import CloseCode

Strategy = Literal["retry", "reconnect", "reauthenticate", "fix-input", "none"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """What may help: a strategy, and how many seconds to wait before trying it."""

    strategy: Strategy
    retry_after: float | None = None


class RWTError(Exception):
    """Base of all errors of this library.

    Args:
        message: One sentence: what was wrong, which value, what to do.
        code: A short, stable name such as `not-authorised`.
        operation: What was being done, such as `send`.
        details: Facts for programs.
        retry_after: Seconds to wait before trying again, if known.
    """

    default_code: ClassVar[str] = "error"
    strategy: ClassVar[Strategy] = "none"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        operation: str = "",
        details: Mapping[str, object] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.operation = operation
        self.details: Mapping[str, object] = dict(details or {})
        self.recovery = Recovery(self.strategy, retry_after)

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before trying again; None if unknown."""
        return self.recovery.retry_after

    def can_retry(self) -> bool:
        """Whether the same call may succeed later."""
        return self.recovery.strategy in ("retry", "reconnect")


class RWTConnectionError(RWTError):
    """The connection could not be opened or kept."""

    default_code = "connection"
    strategy: ClassVar[Strategy] = "reconnect"


class RWTDisconnectedError(RWTConnectionError):
    """The operation needs an open connection."""

    default_code = "disconnected"


class RWTProtocolError(RWTConnectionError):
    """The peer broke the specification. `close_code` is what the connection is closed with."""

    default_code = "protocol"

    def __init__(self, message: str, close_code: CloseCode = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message, details={"close_code": int(close_code)})
        self.close_code = close_code


class RWTAuthenticationError(RWTError):
    """Credentials are wrong, expired or revoked."""

    default_code = "authentication"
    strategy: ClassVar[Strategy] = "reauthenticate"


class RWTSendError(RWTError):
    """A message was refused; nothing was stored."""

    default_code = "send"
    strategy: ClassVar[Strategy] = "fix-input"


class RWTEncodingError(RWTSendError):
    """A value cannot be encoded; nothing was sent."""

    default_code = "encoding"


class RWTOutcomeUnknown(RWTSendError):
    """A message was sent and its answer is lost: it may or may not have been stored."""

    default_code = "outcome-unknown"
    strategy: ClassVar[Strategy] = "none"


class RWTTimeoutError(RWTError, TimeoutError):
    """An operation took longer than its timeout. `details["sent"]` says whether anything left."""

    default_code = "timeout"
    strategy: ClassVar[Strategy] = "retry"


class RWTEncryptionError(RWTError):
    """Keys or authenticated encryption failed; never says which check."""

    default_code = "encryption"
