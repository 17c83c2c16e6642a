"""One server process: its sessions, connections, timers and limits."""

from __future__ import annotations

import asyncio
import base64
import heapq
import os
import time
from collections import Counter
from typing import Any

import structlog

from rwt_protocol import ServerRules, SessionRecord, key_schedule, limits
from rwt_protocol.codes import CloseCode, Policy
from rwt_protocol.suites import PublicKey

from .answers import Answers
from .config import SUITES, ChannelRules, ConfigError, ServerConfig
from .driver import Driver
from .engine_memory import MemoryEngine
from .guard import Deadlines
from .hub import Channel, Hub
from .keys import ApiKey, KeyFile

log = structlog.get_logger()

_HEARTBEAT = 60.0
_INBOX_RULES = ChannelRules()
_DRAIN_RETRY_MS = 1_000


def b64url(data: bytes) -> str:
    """Base64url without padding (section 7.1)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Session:
    """What a node keeps of a session beside its record."""

    __slots__ = ("answers", "channels", "inbox", "key", "scopes", "sid", "user")

    def __init__(self, record: SessionRecord) -> None:
        self.sid = record.sid
        self.user = record.user
        self.key = record.key
        self.channels = record.channels
        self.scopes = record.scopes
        self.answers: Answers | None = None
        self.inbox: Channel | None = None


class Node:
    """Joins configuration, engine, keys, hub and connections; made inside a running loop."""

    def __init__(self, config: ServerConfig, keys: KeyFile) -> None:
        self.config = config
        self.keys = keys
        self.loop = asyncio.get_running_loop()
        self.random_bytes = os.urandom
        self.clock = self.loop.time
        self.rules = ServerRules(
            suites=tuple(SUITES[suite] for suite in config.suites),
            policy=Policy[config.policy.upper()],
            rotation=config.rotation,
            max_message=config.max_message,
            ping_ms=int(config.ping_interval * 1000),
            signing_keys=config.identity_keys,
        )
        self.engine = MemoryEngine(os.urandom, self.clock, lambda: time.time_ns() // 1_000_000)
        self.hub = Hub(self.engine, config.channels, self.rules.resume_window_ms / 1000)
        self.deadlines = Deadlines(config.handshake_timeout)
        self.rotations = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()
        self._drivers: dict[Driver, None] = {}
        self._live: dict[bytes, Driver] = {}
        self._sessions: dict[bytes, Session] = {}
        self._numbers = int.from_bytes(os.urandom(4), "big")
        self._handshakes: Counter[str] = Counter()
        self._opening: dict[Driver, str] = {}
        self._timers: list[tuple[float, int, Driver]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._heartbeat_task = self.loop.create_task(self._heartbeat(), name="rwt-heartbeat")

    # --- tickets (section 7.1) ---

    async def issue_ticket(
        self,
        key: ApiKey,
        *,
        user: str | None,
        scopes: tuple[str, ...] | None,
        device_key: PublicKey | None,
    ) -> dict[str, Any]:
        """Make a session and return the JSON of the ticket response."""
        sid, ticket = os.urandom(16), os.urandom(32)
        now = self.clock()
        await self.engine.sessions.create(
            SessionRecord(
                sid=sid,
                user=user or key.id,
                key=key.id,
                token=ticket,
                suites=tuple(self.rules.suites),
                expires_at=now + limits.TICKET_MS / 1000,
                ends_at=now + limits.SESSION_MS / 1000,
                channels=key.channels,
                scopes=scopes,
                device_key=device_key,
            )
        )
        return {
            "sid": b64url(sid),
            "ticket": b64url(ticket),
            "url": self.config.url,
            "region": self.config.region,
            "expires_in": limits.TICKET_MS // 1000,
            "suites": [int(suite) for suite in self.rules.suites],
            "server_keys": self.server_keys(),
        }

    def server_keys(self) -> list[dict[str, Any]]:
        """Public identity keys: a hint, never a pin."""
        return [
            {"alg": int(key.public.algorithm), "key": b64url(key.public.raw)}
            for key in self.rules.signing_keys
        ]

    # --- connections ---

    def admit(self, address: str) -> bool:
        """Whether one more connection may begin a handshake; costs no key work."""
        return (
            not self.draining
            and self._handshakes.total() < self.config.max_handshakes
            and self._handshakes[address] < self.config.max_handshakes_per_address
        )

    def watch(self, driver: Driver, address: str) -> None:
        """A connection begins its handshake."""
        self._drivers[driver] = None
        self._empty.clear()
        self._opening[driver] = address
        self._handshakes[address] += 1
        self.rewatch(driver)

    def _opened(self, driver: Driver) -> None:
        address = self._opening.pop(driver, None)
        if address is not None:
            self._handshakes[address] -= 1
            if not self._handshakes[address]:
                del self._handshakes[address]

    def opened(self, driver: Driver) -> None:
        """A session is open on `driver`; an older connection of it gives way."""
        self._opened(driver)
        sid = driver.conn.sid
        older = self._live.get(sid)
        self._live[sid] = driver
        if older is not None and older is not driver:
            older.end(CloseCode.SUPERSEDED, "the session was resumed on another connection")
        if self.draining:
            self._drain(driver)

    def forget(self, driver: Driver) -> None:
        """A connection is gone."""
        self._opened(driver)
        self._drivers.pop(driver, None)
        if not self._drivers:
            self._empty.set()
        self.hub.leave(driver, coming_back=driver.coming_back)
        if self._live.get(driver.conn.sid) is driver:
            del self._live[driver.conn.sid]

    def next_session_number(self) -> int:
        """The counter that spreads rotations over time."""
        self._numbers += 1
        return self._numbers

    # --- sessions ---

    def session(self, record: SessionRecord) -> Session:
        """What this node keeps of a session."""
        session = self._sessions.get(record.sid)
        if session is None:
            session = self._sessions[record.sid] = Session(record)
        return session

    def inbox(self, session: Session) -> Channel:
        """The private channel of a session."""
        if session.inbox is None:
            store = self.engine.log(_inbox_name(session.sid), _INBOX_RULES.retention)
            session.inbox = Channel("", 0, store, _INBOX_RULES, self.clock())
        return session.inbox

    async def revoke(self, sid: bytes, *, keep: Driver | None = None) -> None:
        """Revoke a session and close its connections with 4403; `keep` closes itself."""
        await self.engine.sessions.revoke(sid)
        driver = self._live.get(sid)
        log.warning("session_revoked", session=key_schedule.sender_id(sid).hex())
        if driver is not None and driver is not keep:
            driver.conn.warn_reuse(self.loop.time())
            driver.flush()

    async def end_session(self, sid: bytes) -> None:
        """The client said goodbye."""
        await self.engine.sessions.end(sid)
        self._drop_session(sid)

    def _drop_session(self, sid: bytes) -> None:
        session = self._sessions.pop(sid, None)
        if session is not None and session.inbox is not None:
            self.engine.drop(_inbox_name(sid))

    def store_failed(self, exc: Exception) -> None:
        """The session store did not answer: no session loses its place because of that."""
        log.error("session_store_failed", error=str(exc))
        for driver in self._drivers:
            driver.conn.store_lost(self.loop.time())

    # --- time ---

    def rewatch(self, driver: Driver) -> None:
        """Look at a connection's timer when it is due, if that is earlier than planned."""
        due = driver.conn.next_timer
        if due < driver.queued_timer:
            driver.queued_timer = due
            heapq.heappush(self._timers, (due, id(driver), driver))
            if due < self._timer_at:
                self._arm(due)

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = due
        self._timer = self.loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = float("inf")
        now = self.loop.time()
        timers = self._timers
        while timers and timers[0][0] <= now:
            due, _, driver = heapq.heappop(timers)
            if due != driver.queued_timer or driver not in self._drivers:
                continue
            driver.queued_timer = float("inf")
            if driver.conn.next_timer <= now:
                driver.tick(now)
            self.rewatch(driver)
        if timers and timers[0][0] < self._timer_at:
            self._arm(timers[0][0])

    async def _heartbeat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            try:
                await self.heartbeat()
            except ConnectionError as exc:
                self.store_failed(exc)
            except ConfigError as exc:
                log.error("key_file_failed", error=str(exc))

    async def heartbeat(self) -> None:
        """Once a minute: keep live sessions, end those of revoked keys, drop what is over."""
        for sid, driver in list(self._live.items()):
            session = self._sessions.get(sid)
            if session is not None and not self.keys.active(session.key):
                await self.engine.sessions.revoke(sid)
                driver.end(CloseCode.REVOKED, "the API key is revoked")
            else:
                await self.engine.sessions.touch(sid, driver.conn.lifetime_ms)
            driver.conn.store_back(self.loop.time())
        for sid in self.engine.sessions.purge():
            self._drop_session(sid)
        self.hub.purge()

    # --- the end ---

    def _drain(self, driver: Driver) -> None:
        driver.end(CloseCode.DRAINING, "the server is going away", retry_after_ms=_DRAIN_RETRY_MS)

    async def drain(self, patience: float = 10.0) -> None:
        """Tell every client to come back elsewhere, and wait until they are gone."""
        self.draining = True
        for driver in list(self._drivers):
            self._drain(driver)
        try:
            async with asyncio.timeout(patience):
                await self._empty.wait()
        except TimeoutError:
            log.warning("drain_timeout", connections=len(self._drivers))

    async def close(self) -> None:
        """Stop the node's own work."""
        self._heartbeat_task.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.hub.close()
        self.deadlines.close()

    @property
    def connections(self) -> int:
        """Open connections, handshakes included."""
        return len(self._drivers)


def _inbox_name(sid: bytes) -> str:
    # A NUL cannot be in a channel's name.
    return "\0" + sid.hex()
