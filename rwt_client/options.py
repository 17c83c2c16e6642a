"""What callers set and what they get back: frozen values with units in their names or docs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rwt_protocol import limits
from rwt_protocol.codes import Level, Pattern
from rwt_protocol.frames import RotationTerms

ConnectionState = Literal["connected", "connecting", "disconnected", "error"]
LEVELS: Mapping[str, Level] = {
    "standard": Level.STANDARD,
    "high": Level.HIGH,
    "maximum": Level.MAXIMUM,
}


def require(good: bool, name: str, value: object, wanted: str) -> None:
    """Raise ValueError with one clear line unless `good`."""
    if not good:
        raise ValueError(f"{name}={value!r} cannot be used: give {wanted}")


def _finite(value: float, least: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= least


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRotation:
    """What to ask the server for; it grants or clamps.

    Args:
        interval: Mean seconds between rotations, 5 to 3600.
        pattern: `fixed`, `fibonacci` or `phi`: when keys rotate, never what they are.
        renew_threshold: Share of a lifetime after which a rotation is offered, 0.5 to 0.95.
    """

    interval: float = 60.0
    pattern: str = "fibonacci"
    renew_threshold: float = 0.8

    def __post_init__(self) -> None:
        require(
            _finite(self.interval, 5) and self.interval <= 3_600, "interval", self.interval, "5 to 3600 s"
        )
        require(self.pattern in set(Pattern), "pattern", self.pattern, f"one of {', '.join(Pattern)}")
        require(
            _finite(self.renew_threshold, 0.5) and self.renew_threshold <= 0.95,
            "renew_threshold",
            self.renew_threshold,
            "0.5 to 0.95",
        )

    @classmethod
    def granted(cls, terms: RotationTerms) -> TokenRotation:
        """What a server granted, told as it is: it may be more than a client may ask for."""
        found = object.__new__(cls)
        object.__setattr__(found, "interval", terms.interval_ms / 1000)
        object.__setattr__(found, "pattern", terms.pattern)
        object.__setattr__(found, "renew_threshold", terms.threshold / 1000)
        return found

    @property
    def terms(self) -> RotationTerms:
        return RotationTerms(int(self.interval * 1000), self.pattern, round(self.renew_threshold * 1000))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconnection:
    """How to come back after a lost connection.

    Args:
        enabled: False: a lost connection ends the client.
        max_attempts: Attempts in a row; None: unlimited.
        base_delay: Seconds before the first attempt.
        max_delay: Seconds between attempts at most.
        backoff_factor: Each delay is this much longer, at least 1.
        jitter: Random share by which a delay is changed, 0 to 1.
        preserve_session: Resume the session, so that nothing is lost or repeated; False: a new one each time.
    """

    enabled: bool = True
    max_attempts: int | None = None
    base_delay: float = 1.0
    max_delay: float = 30.0
    backoff_factor: float = 1.5
    jitter: float = 0.2
    preserve_session: bool = True

    def __post_init__(self) -> None:
        attempts = self.max_attempts
        good = attempts is None or (type(attempts) is int and attempts >= 1)
        require(good, "max_attempts", attempts, "a whole number of at least 1, or None")
        require(_finite(self.base_delay, 0), "base_delay", self.base_delay, "seconds, 0 or more")
        require(_finite(self.max_delay, self.base_delay), "max_delay", self.max_delay, "at least base_delay")
        require(_finite(self.backoff_factor, 1), "backoff_factor", self.backoff_factor, "at least 1")
        require(_finite(self.jitter, 0) and self.jitter <= 1, "jitter", self.jitter, "0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """Where a message was stored.

    Args:
        message_id: The mid: grows within a session.
        channel: Its channel.
        offset: Its place in the channel's log.
        timestamp: When the server stored it, seconds since 1970.
        size: Bytes of its encoding inside the frame.
        round_trip: Seconds from sending to the answer.
    """

    message_id: int
    channel: str
    offset: int
    timestamp: float
    size: int
    round_trip: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageMetadata:
    """What is known of a received message.

    Args:
        channel: Its channel.
        offset: Its place in the channel's log.
        timestamp: When the server stored it, seconds since 1970.
        sender: The user who sent it, as the server says.
        own: Whether this session sent it.
        priority: `high`, `normal` or `low`.
        level: Protection on this hop: `clear`, `standard`, `high` or `maximum`.
        form: `bytes`, `text` or `json`.
    """

    channel: str
    offset: int
    timestamp: float
    sender: str | None
    own: bool
    priority: str
    level: str
    form: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A received message."""

    data: Any
    metadata: MessageMetadata
    size: int
    """Bytes of the body."""

    @property
    def channel(self) -> str:
        return self.metadata.channel

    @property
    def offset(self) -> int:
        return self.metadata.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class RWTConnection:
    """An established connection.

    Args:
        connection_id: Public name of the connection, 16 hex digits.
        epoch: Number of token and key changes so far.
        resumed: Whether an earlier session goes on.
        rotation: What the server granted: seconds, pattern, share; None: it does not rotate by time.
    """

    connection_id: str
    epoch: int
    resumed: bool
    rotation: TokenRotation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RWTConnectionStatus:
    """The state of a client.

    Args:
        state: `connected`, `connecting`, `disconnected` or `error`.
        latency: Last round trip in seconds; None before the first.
        uptime: Seconds since the connection was established; 0.0 without one.
        token_rotations: Rotations of all connections so far.
        compression_ratio: Bytes sent on the wire per byte of the messages; 1.0: nothing is compressed.
        reconnects: How often a lost connection came back.
        epoch: Current epoch; 0 without a session.
        pending: Messages that are queued or not answered yet.
        connection_id: Public name of the connection, or None.
    """

    state: ConnectionState
    latency: float | None
    uptime: float
    token_rotations: int
    compression_ratio: float
    reconnects: int
    epoch: int
    pending: int
    connection_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """Payload of `gap`: entries that will not come.

    Args:
        channel: Its channel.
        reason: `trimmed`, `log-lost`, `diverged` or `lag-dropped`.
        first, last: Offsets, inclusive; `last` None: unknown.
    """

    channel: str
    reason: str
    first: int
    last: int | None


MAX_UNHANDLED = limits.MAX_MESSAGE
"""Bytes received on a channel and not handled yet, before the client asks the server to pause it."""
SEND_BUFFER = 4 * limits.MAX_MESSAGE
"""Bytes queued or unanswered, before `send` waits."""
