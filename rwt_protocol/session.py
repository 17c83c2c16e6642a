"""Sessions on both sides (section 7): the server's record and its compare-and-swap, the client's tokens.

The rules here are what keeps theft detection free of false alarms: the server's token advances only by a
proof the client sent, and the client keeps every token it may have proved.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Protocol

from . import limits
from .codes import CloseCode, Suite
from .errors import RWTProtocolError
from .frames import Hello
from .key_schedule import family_of, token_id
from .suites import PublicKey

# --- server ----------------------------------------------------------------------------------------------


class Retired(NamedTuple):
    """A token that was current once: whoever proves it holds a copy."""

    epoch: int
    token: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """What the store knows of one session. Times are seconds on the store's clock.

    Args:
        sid: 16 bytes.
        user: Whom the session speaks for; shown to subscribers.
        key: Id of the API key that opened it.
        channels: Patterns of the API key; None: all that the server allows.
        scopes: Patterns the ticket was narrowed to; None: not narrowed. Both must match.
        epoch: 0 until the first connect; then `token` is the ticket.
        token: The current token, 32 bytes.
        suites: What the ticket response offered, in the server's order of preference.
        suite: Fixed by the first connect.
        family: Family of the first token; a retired token that is never evicted.
        retired: At most 16, newest first; the ticket, the oldest, always stays.
        revoked: A tombstone: known until `ends_at`, opened by nobody.
    """

    sid: bytes
    user: str
    key: str
    token: bytes = field(repr=False)
    suites: tuple[int, ...]
    expires_at: float
    ends_at: float
    channels: tuple[str, ...] | None = None
    scopes: tuple[str, ...] | None = None
    epoch: int = 0
    suite: int | None = None
    family: bytes | None = field(default=None, repr=False)
    retired: tuple[Retired, ...] = field(default=(), repr=False)
    device_key: PublicKey | None = None
    revoked: bool = False


class Proof(NamedTuple):
    """What a HELLO may prove: the secret it names, and what follows if it is proved."""

    picked: bytes
    secret: bytes
    epoch: int
    live: bool


class StoreConflict(RWTProtocolError):
    """Only the family is known and the client is ahead: the store was rolled back."""


def _refused() -> RWTProtocolError:
    return RWTProtocolError("authentication failed", CloseCode.AUTHENTICATION_FAILED)


def pick_proof(record: SessionRecord | None, hello: Hello) -> Proof:
    """Choose what `hello` has to prove: the current token, else the newest retired one, else the family.

    Raises:
        StoreConflict: see there (4401).
        RWTProtocolError: 4401 if nothing offered is known, 4406 on a downgrade.
    """
    if record is None:
        raise _refused()
    if record.suite is not None:
        wanted: int | None = record.suite
    else:
        wanted = next((suite for suite in record.suites if suite in hello.suites), None)
    if hello.suite != wanted:
        raise RWTProtocolError("no common suite, or not the preferred one", CloseCode.VERSION_OR_SUITE)
    offered = set(hello.token_ids)
    if (current := token_id(record.token)) in offered:
        found = Proof(current, record.token, record.epoch + 1, not record.revoked)
    else:
        for epoch, token in record.retired:
            if (retired := token_id(token)) in offered:
                found = Proof(retired, token, epoch + 1, False)
                break
        else:
            if record.family is None or (family := token_id(record.family)) not in offered:
                raise _refused()
            if hello.epoch > record.epoch and not record.revoked:
                raise StoreConflict("the client is ahead of the store", CloseCode.AUTHENTICATION_FAILED)
            found = Proof(family, record.family, hello.epoch + 1, False)
    if found.epoch > limits.MAX_EPOCH:
        raise RWTProtocolError("the last epoch is reached", CloseCode.SESSION_ENDED)
    return found


@dataclass(frozen=True, slots=True)
class Advance:
    """A proved step of a session: swap the token whose id is `expected` for `token`."""

    sid: bytes
    expected: bytes
    epoch: int
    token: bytes = field(repr=False)
    suite: int
    lifetime_ms: int
    """Until the new epoch expires; the record is kept for the resume window beyond it."""


class Swap(Enum):
    """Outcome of a compare-and-swap."""

    ADVANCED = "advanced"
    LOST = "lost"
    REVOKED = "revoked"
    GONE = "gone"
    UNKNOWN = "unknown"
    """The store did not answer: it may or may not have advanced."""


def swap(
    record: SessionRecord | None, step: Advance, now: float, resume_window_ms: int = limits.RESUME_WINDOW_MS
) -> tuple[Swap, SessionRecord | None]:
    """Apply `step` to `record`: the compare-and-swap that every store performs atomically.

    Args:
        now: Seconds on the store's clock.
    """
    if record is None:
        return Swap.GONE, None
    if record.revoked:
        return Swap.REVOKED, record
    # A ticket is judged when HELLO arrives: the handshake itself may outlive it.
    grace = limits.HANDSHAKE_MS / 1000 if record.epoch == 0 else 0.0
    if now > min(record.expires_at + grace, record.ends_at):
        return Swap.GONE, record
    current = token_id(record.token)
    if current == token_id(step.token):
        return Swap.ADVANCED, record
    if current != step.expected:
        return Swap.LOST, record
    retired = (Retired(record.epoch, record.token), *record.retired)
    if len(retired) > limits.MAX_RETIRED:
        # The ticket stays: an owner whose first connect was overtaken knows nothing else to prove.
        retired = (*retired[: limits.MAX_RETIRED - 1], retired[-1])
    return Swap.ADVANCED, replace(
        record,
        epoch=step.epoch,
        token=step.token,
        suite=step.suite,
        family=family_of(step.token) if record.epoch == 0 else record.family,
        retired=retired,
        expires_at=now + (step.lifetime_ms + resume_window_ms) / 1000,
    )


class SessionStore(Protocol):
    """Where sessions are kept. Every method may raise `ConnectionError` when the store does not answer."""

    async def create(self, record: SessionRecord) -> None:
        """Add a new session."""
        ...

    async def lookup(self, sid: bytes) -> SessionRecord | None:
        """Return the record, tombstones included; None if unknown, expired or ended."""
        ...

    async def advance(self, step: Advance) -> Swap:
        """Perform `swap` atomically."""
        ...

    async def revoke(self, sid: bytes) -> None:
        """Turn the session into a tombstone; it stays one until `ends_at`."""
        ...

    async def touch(self, sid: bytes, lifetime_ms: int) -> None:
        """Heartbeat of a connected session: count its lifetime anew."""
        ...

    async def end(self, sid: bytes) -> None:
        """Forget the session: its client said goodbye."""
        ...


# --- client ----------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A token the server may hold. The ticket has epoch 0 and no family."""

    epoch: int
    token: bytes
    family: bytes | None

    def __repr__(self) -> str:
        return f"<Held epoch={self.epoch}>"


class ClientSession:
    """A session as its client knows it; outlives every connection.

    Args:
        sid: 16 bytes from the ticket response.
        ticket: 32 bytes from the ticket response.
        suites: The server's list, in its order of preference.
    """

    __slots__ = ("_unfinished", "held", "ready_epoch", "sid", "suite", "suites")

    def __init__(self, sid: bytes, ticket: bytes, suites: tuple[int, ...]) -> None:
        self.sid = sid
        self.suites = suites
        self.suite: Suite | None = None
        """Fixed by the first READY."""
        self.held: list[Held] = [Held(0, ticket, None)]
        """Newest first."""
        self.ready_epoch = 0
        """Epoch of the last READY or ROTATED."""
        self._unfinished = 0

    @property
    def spent(self) -> bool:
        """Whether a new ticket is needed: too many attempts without an answer."""
        return len(self.held) >= limits.MAX_CANDIDATES or (
            self.ready_epoch == 0 and self._unfinished >= limits.MAX_UNFINISHED
        )

    def offers(self) -> dict[bytes, Held | bytes]:
        """What HELLO offers, in order: token ids newest first, then family ids newest first."""
        found: dict[bytes, Held | bytes] = {token_id(held.token): held for held in self.held}
        for held in self.held:
            if held.family is not None:
                found[token_id(held.family)] = held.family
        return found

    def hold(self, epoch: int, token: bytes, parent: Held) -> Held:
        """Keep a new token beside the old ones; must be done before its proof is sent."""
        family = family_of(token) if parent.epoch == 0 else parent.family
        new = Held(epoch, token, family)
        self.held.insert(0, new)
        self._unfinished += 1
        return new

    def settle(self, kept: Held) -> None:
        """READY or ROTATED came: the server holds `kept`; erase all other tokens."""
        self.held = [kept]
        self.ready_epoch = kept.epoch
        self._unfinished = 0

    def __repr__(self) -> str:
        return f"<ClientSession epoch={self.ready_epoch} held={len(self.held)}>"
