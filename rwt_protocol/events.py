"""What the core tells its driver. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .codes import Level, Warning
from .frames import Ack, Closed, Entry, Err, GapNotice, Publication, Ready, Sub, SubOk, Unsub
from .session import Advance


@dataclass(frozen=True, slots=True)
class SessionWanted:
    """Server: look the session up and answer with `session_found`."""

    sid: bytes


@dataclass(frozen=True, slots=True)
class AdvanceWanted:
    """Server: perform the compare-and-swap and answer with `advanced`."""

    step: Advance


@dataclass(frozen=True, slots=True)
class RevocationWanted:
    """Server: a token that is not current was proved. Revoke the session and close its connections."""

    sid: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open on this connection."""

    connection_id: str
    epoch: int
    resumed: bool
    ready: Ready


@dataclass(frozen=True, slots=True)
class Rotated:
    """Token and traffic keys of `epoch` are in force in both directions."""

    epoch: int
    rotate_ms: int | None
    expires_ms: int


@dataclass(frozen=True, slots=True)
class SubscribeRequested:
    """Server: answer with `subscribed`, or with `refuse`."""

    sub: Sub


@dataclass(frozen=True, slots=True)
class UnsubscribeRequested:
    """Server: answer with `unsubscribed`, or with `refuse`."""

    unsub: Unsub


class Published(NamedTuple):
    """Server: messages of one frame, in order. Built for each frame on the hot path."""

    stream: int
    level: Level
    messages: list[Publication]


class Delivered(NamedTuple):
    """Client: entries of one frame, in order."""

    stream: int
    level: Level
    entries: list[Entry]


@dataclass(frozen=True, slots=True)
class Subscribed:
    """Client: a SUB was granted."""

    answer: SubOk


@dataclass(frozen=True, slots=True)
class StreamClosed:
    """Client: a stream ended, by UNSUB (with its ref) or by the server."""

    closed: Closed


@dataclass(frozen=True, slots=True)
class GapFound:
    """Client: entries of a stream will not come."""

    notice: GapNotice


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """Client: messages are stored."""

    ack: Ack


@dataclass(frozen=True, slots=True)
class Refused:
    """Client: one message or subscription was refused."""

    err: Err


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Client: seconds between a PING and its PONG."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Warned:
    """A security warning, found here or sent by the server."""

    code: Warning | str
    text: str


@dataclass(frozen=True, slots=True)
class Terminated:
    """The connection is over. Write what is left, close the WebSocket with `code`.

    `sealed` says whether the code is the peer's word under the session's keys; `by_peer` who ended it.
    """

    code: int
    reason: str
    by_peer: bool = False
    sealed: bool = False
    retry_after_ms: int | None = None
    keep: bool = False


Event = (
    SessionWanted
    | AdvanceWanted
    | RevocationWanted
    | Opened
    | Rotated
    | SubscribeRequested
    | UnsubscribeRequested
    | Published
    | Delivered
    | Subscribed
    | StreamClosed
    | GapFound
    | Acknowledged
    | Refused
    | RoundTrip
    | Warned
    | Terminated
)
