"""One connection after another: tickets, attempts, endings, and what each event means for the client."""

from __future__ import annotations

import asyncio
import logging
import os
import random

from rwt_protocol import ClientRules, ClientSession, __version__
from rwt_protocol.codes import AfterClose, CloseCode, Policy, Warning
from rwt_protocol.errors import (
    RWTConnectionError,
    RWTDisconnectedError,
    RWTError,
    RWTProtocolError,
)
from rwt_protocol.events import (
    Acknowledged,
    Delivered,
    Event,
    GapFound,
    Opened,
    Refused,
    Rotated,
    RoundTrip,
    StreamClosed,
    Subscribed,
    Warned,
)
from rwt_protocol.key_schedule import sender_id
from rwt_protocol.suites import PublicKey

from .channels import Channels
from .dragonfire import DragonFireClient
from .emitter import Emitter
from .link import Link
from .options import Reconnection, RWTConnection, TokenRotation
from .publisher import Publisher
from .reconnect import Classifier, Ending, delays
from .refusals import ending_of, error_of
from .transport import HTTPRefusal
from .waiting import Waiters

log = logging.getLogger("rwt_client")

_NAME = ("dragonfire-rwt", __version__)
_ATTEMPT = 10.0
"""Seconds for a ticket, and again for the WebSocket, of one attempt."""


class Supervisor:
    """Keeps a client connected until it is told to stop, or no attempt can help."""

    def __init__(
        self,
        dragonfire: DragonFireClient,
        emitter: Emitter,
        channels: Channels,
        publisher: Publisher,
        policy: Policy,
        pins: frozenset[PublicKey],
    ) -> None:
        self.reconnection = Reconnection()
        self.rotation: TokenRotation | None = None
        self.connection: RWTConnection | None = None
        """The open connection, or None."""
        self.connected_at = 0.0
        self.rotations = 0
        self.reconnects = 0
        self.failure: RWTError | None = None
        """Why the client has given up."""
        self.link: Link | None = None
        self.pongs = Waiters()
        self._dragonfire = dragonfire
        self._emitter = emitter
        self._channels = channels
        self._publisher = publisher
        self._policy = policy
        self._pins = pins
        self._session: ClientSession | None = None
        self._url = ""
        self._classifier = Classifier()
        self._attempt_number = 0
        self._identity_failed = False
        self._goodbye = False

    def say_goodbye(self, code: int, reason: str) -> None:
        """End the session; `run` returns when it is said."""
        self._goodbye = True
        if self.link is not None:
            self.link.close(code, reason)

    async def run(self, opened: asyncio.Future[RWTConnection]) -> None:
        """Connect, and come back after every loss; sets `opened`, or its exception, once.

        Never raises: the reason of its end is in `failure`.
        """
        try:
            await self._run(opened)
        except RWTError as exc:
            self._give_up(exc, opened)
        except Exception as exc:
            log.exception("the client failed")
            error = RWTConnectionError(f"the client failed: {type(exc).__name__}", operation="connect")
            self._give_up(error, opened)

    async def _run(self, opened: asyncio.Future[RWTConnection]) -> None:
        options = self.reconnection
        waits = delays(options, random.random)
        self._attempt_number = 0
        self._goodbye = False
        while True:
            ending = await self._attempt(opened)
            if self._goodbye:
                return
            if self._attempt_number == 0:
                waits = delays(options, random.random)
            first = not opened.done()
            decision = self._classifier.decide(ending)
            if decision.action is AfterClose.STOP or (first and not _asks_for_patience(ending)):
                raise error_of(ending)
            if decision.action is AfterClose.NEW_TICKET or not options.preserve_session:
                self._lose_session(ending.reason or f"close code {int(ending.code)}")
            # Coming back once is what tells a thief's victim; it is done even without reconnection.
            armed = self._identity_failed or (ending.code == CloseCode.SUPERSEDED and decision.at_once)
            if not first and not options.enabled and not (armed and self._attempt_number == 0):
                raise error_of(ending)
            self._attempt_number += 1
            if options.max_attempts is not None and self._attempt_number > options.max_attempts:
                error = error_of(ending)
                self._emitter.emit("giving-up", error)
                raise error
            if not decision.at_once:
                await asyncio.sleep(next(waits) if ending.retry_after is None else ending.retry_after)

    def _give_up(self, error: RWTError, opened: asyncio.Future[RWTConnection]) -> None:
        self.failure = error
        self._lose_session(str(error))
        self._publisher.fail(error)
        self._channels.fail(error, over=True)
        self.pongs.tell(error)
        if opened.done():
            self._emitter.emit("error", error)
        else:
            opened.set_exception(error)
            opened.exception()  # marked as seen: `connect` may have been cancelled

    def forget(self) -> None:
        """The client was disconnected by its user: nothing is kept but its settings."""
        if self.failure is None:
            self._lose_session("the client was disconnected")
            error = RWTDisconnectedError("the client was disconnected", operation="send")
            self._publisher.fail(error)
            self._channels.fail(error, over=False)
        self._session = None

    def _lose_session(self, why: str) -> None:
        self._session = None
        self._publisher.session_lost(why)

    # --- one attempt ---

    async def _attempt(self, opened: asyncio.Future[RWTConnection]) -> Ending:
        """One connection, from the ticket to its end."""
        if self._session is not None and self._session.spent:
            self._lose_session("too many attempts had no answer")
        session = self._session
        if session is None:
            try:
                async with asyncio.timeout(_ATTEMPT):
                    ticket = await self._dragonfire.ticket()
            except TimeoutError:
                return self._not_opened(Ending(reason=f"no ticket came within {_ATTEMPT:.0f} s"))
            except RWTError as exc:
                return self._not_opened(ending_of(exc))
            self._classifier.new_session()
            session = self._session = ticket.session
            self._url = ticket.url
            self._channels.own_id = sender_id(session.sid)
        try:
            async with asyncio.timeout(_ATTEMPT):
                socket = await self._dragonfire.transport.open(self._url)
        except TimeoutError:
            return self._not_opened(Ending(reason=f"{self._url} did not answer within {_ATTEMPT:.0f} s"))
        except HTTPRefusal as refusal:
            ending = Ending(
                reason=f"{self._url} refused: {refusal} (HTTP {refusal.status})",
                http_status=refusal.status,
                retry_after=refusal.retry_after,
            )
            return self._not_opened(ending)
        except (ConnectionError, OSError) as exc:
            return self._not_opened(Ending(reason=f"{self._url} cannot be reached: {exc}"))
        try:
            link = Link(
                socket,
                session,
                self._rules(),
                os.urandom,
                lambda event: self._on_event(link, opened, event),
                self._publisher.fill,
            )
        except RWTProtocolError as exc:
            await socket.close(1000)
            return Ending(code=exc.close_code, reason=str(exc), by_peer=False)
        self._identity_failed = False
        self.link = self._channels.link = link
        try:
            ending = await link.run()
        finally:
            was_open, self.connection = self.connection, None
            self.link = None
            self._channels.disconnected()
            self._publisher.disconnected()
            self.pongs.tell(RWTDisconnectedError("the connection was lost", operation="ping"))
        if was_open is None:
            return self._not_opened(ending)
        if not self.reconnection.preserve_session:
            error = RWTDisconnectedError("the connection was lost", operation="send")
            self._publisher.fail(error)
            self._channels.fail(error, over=False)
        self._emitter.emit("disconnect", int(ending.code), ending.reason)
        return ending

    def _not_opened(self, ending: Ending) -> Ending:
        if self._attempt_number:
            self._emitter.emit("reconnect", self._attempt_number, False)
        return ending

    def _rules(self) -> ClientRules:
        return ClientRules(
            policy=self._policy,
            pins=self._pins,
            device_key=self._dragonfire.device_key,
            rotation=self.rotation.terms if self.rotation is not None else None,
            name=_NAME,
        )

    # --- events of the connection ---

    def _on_event(self, link: Link, opened: asyncio.Future[RWTConnection], event: Event) -> None:
        match event:
            case Delivered():
                self._channels.on_delivered(event)
                return
            case Acknowledged(ack):
                self._publisher.on_ack(ack)
                return
            case RoundTrip(seconds):
                self._publisher.latency = seconds
                self.pongs.tell()
            case Subscribed(answer):
                self._channels.on_subscribed(answer)
            case GapFound(notice):
                self._channels.on_gap(notice)
            case Refused(err) if err.ref is not None:
                self._channels.on_refused(err.ref, err.code, err.text)
            case Refused(err):
                self._publisher.on_refused(err)
            case StreamClosed(closed):
                self._channels.on_closed(closed)
            case Rotated(epoch, rotate_ms, _):
                self.rotations += 1
                next_in = None if rotate_ms is None else rotate_ms / 1000
                self._emitter.emit("token-rotate", {"epoch": epoch, "next_in": next_in})
                self._emitter.emit("key-rotate", {"scope": "session", "epoch": epoch})
            case Warned(code, text):
                self._identity_failed = self._identity_failed or code == Warning.SERVER_IDENTITY
                self._emitter.emit("security-warning", {"code": str(code), "text": text})
            case Opened():
                self._on_opened(link, opened, event)
            case _:
                raise AssertionError(f"{type(event).__name__} is an event of servers")

    def _on_opened(self, link: Link, opened: asyncio.Future[RWTConnection], event: Opened) -> None:
        granted = event.ready.granted
        connection = RWTConnection(
            connection_id=event.connection_id,
            epoch=event.epoch,
            resumed=event.resumed,
            rotation=None if granted is None else TokenRotation.granted(granted),
        )
        self.connection = connection
        self.connected_at = link.now()
        attempt, self._attempt_number = self._attempt_number, 0
        self._classifier.ready()
        self._publisher.opened(link)
        self._channels.subscribe_all()  # in `pinned` mode nothing could be sent before
        if opened.done():
            self.reconnects += 1
            self._emitter.emit("reconnect", max(1, attempt), True)
        self._emitter.emit("connect", connection)
        if event.resumed:
            self._emitter.emit("resume", connection)
        if not opened.done():
            opened.set_result(connection)


def _asks_for_patience(ending: Ending) -> bool:
    """Whether a first connection goes on trying: the server is there and says later."""
    return ending.http_status in (429, 503) or ending.code in (
        CloseCode.SUPERSEDED,
        CloseCode.RATE,
        CloseCode.DRAINING,
    )
