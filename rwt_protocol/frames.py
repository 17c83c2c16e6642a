"""One class for each control frame of section 5, and the message. Values only: no bytes, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Position(NamedTuple):
    """A place in a log: its id, the offset of the last entry received, and that entry's tag."""

    log: bytes
    offset: int
    tag: bytes


class Gap(NamedTuple):
    """Entries that will not be delivered: `first` to `last` inclusive (`last` 0: unknown)."""

    reason: int
    log: bytes
    first: int
    last: int
    next: Position


class Signature(NamedTuple):
    """A signature and the id of the key that made it."""

    key_id: bytes
    value: bytes


class RotationTerms(NamedTuple):
    """Interval in milliseconds, pattern, renew threshold in permille."""

    interval_ms: int
    pattern: str
    threshold: int


class AckRun(NamedTuple):
    """`number` messages from `first_mid` on, stored with consecutive offsets from `first_offset` on."""

    first_mid: int
    number: int
    stream: int
    log: bytes
    first_offset: int
    stored_ms: int


@dataclass(frozen=True, slots=True)
class Hello:
    versions: tuple[int, ...]
    suites: tuple[int, ...]
    suite: int
    share: bytes
    sid: bytes
    token_ids: tuple[bytes, ...]
    policy: int
    epoch: int
    signature_algorithms: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Welcome:
    version: int
    suite: int
    share: bytes
    epoch: int
    picked: bytes


@dataclass(frozen=True, slots=True)
class Confirm:
    signature: Signature | None = None
    rotation: RotationTerms | None = None
    client: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    epoch: int
    policy: int
    max_frame: int
    resumed: bool
    resume_window_ms: int
    ping_ms: int
    window: int
    max_message: int
    expires_ms: int
    rotate_ms: int | None = None
    signature: Signature | None = None
    granted: RotationTerms | None = None


@dataclass(frozen=True, slots=True)
class Rotate:
    epoch: int
    share: bytes
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    epoch: int
    share: bytes
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Rotated:
    epoch: int
    expires_ms: int
    rotate_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    reason: int


@dataclass(frozen=True, slots=True)
class Warn:
    code: str
    text: str | None = None
    facts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Bye:
    code: int
    reason: str | None = None
    retry_after_ms: int | None = None
    keep: bool | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    number: int


@dataclass(frozen=True, slots=True)
class Sub:
    ref: int
    name: str
    after: Position | None = None
    history: int | None = None
    use: int | None = None
    tags_held: int | None = None


@dataclass(frozen=True, slots=True)
class SubOk:
    ref: int
    stream: int
    mode: int
    start: Position
    use: int
    policy: int
    gap: Gap | None = None


@dataclass(frozen=True, slots=True)
class Unsub:
    ref: int
    stream: int


@dataclass(frozen=True, slots=True)
class Err:
    code: int
    ref: int | None = None
    mid: int | None = None
    text: str | None = None
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    stream: int
    code: int
    ref: int | None = None


@dataclass(frozen=True, slots=True)
class GapNotice:
    stream: int
    gap: Gap


@dataclass(frozen=True, slots=True)
class Ack:
    runs: tuple[AckRun, ...]


Control = (
    Hello
    | Welcome
    | Confirm
    | Ready
    | Rotate
    | Reply
    | Rotated
    | Request
    | Warn
    | Bye
    | Ping
    | Pong
    | Sub
    | SubOk
    | Unsub
    | Err
    | Closed
    | GapNotice
    | Ack
)


class Publication(NamedTuple):
    """A message from a client. `mid` None: no answer is wanted. Built for each message."""

    body: bytes
    mid: int | None = None
    form: int = 0
    priority: int = 1
    idempotency_key: bytes | None = None
    e2e_scheme: int | None = None
    reply_wanted: bool = False


class Entry(NamedTuple):
    """A log entry from a server. `stored_ms`: ms since 1970; `channel`: told on the inbox only."""

    body: bytes
    offset: int
    tag: bytes
    stored_ms: int
    form: int = 0
    priority: int = 1
    sender: str | None = None
    sender_id: bytes | None = None
    channel: str | None = None
