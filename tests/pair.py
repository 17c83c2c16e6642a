"""A client and a server joined in memory: seeded randomness, a clock that is a number, every frame in reach."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from typing import NamedTuple, TypeVar

from rwt_protocol import codec
from rwt_protocol.client import ClientConnection, ClientRules
from rwt_protocol.codes import CloseCode, FrameType, Suite
from rwt_protocol.connection import Connection
from rwt_protocol.events import (
    AdvanceWanted,
    Event,
    Opened,
    RevocationWanted,
    SessionWanted,
    Terminated,
)
from rwt_protocol.frames import Control
from rwt_protocol.key_schedule import DirectionKeys
from rwt_protocol.record import Opener, Sealer
from rwt_protocol.server import ServerConnection, ServerRules
from rwt_protocol.session import Advance, ClientSession, Held, SessionRecord, Swap, swap
from rwt_protocol.suites import PublicKey

START = 1_000.0
"""Clock of a new pair, in seconds."""

E = TypeVar("E", bound=Event)


class Way(Enum):
    """Direction of a frame."""

    C2S = "client to server"
    S2C = "server to client"


class Crossing(NamedTuple):
    """A frame that was written."""

    way: Way
    frame: bytes


Hook = Callable[[Way, bytes], Iterable[bytes]]
"""What arrives in place of a frame: itself, another, several, nothing."""


def intact(_: Way, frame: bytes) -> Iterable[bytes]:
    """Deliver what was sent."""
    return (frame,)


def dropping(*kinds: FrameType) -> Hook:
    """Lose every frame of these types; all frames if there are none."""
    return lambda _, frame: () if not kinds or frame[0] in kinds else (frame,)


def altering(kind: FrameType, change: Callable[[bytes], bytes]) -> Hook:
    """Change every frame of one type."""
    return lambda _, frame: (change(frame),) if frame[0] == kind else (frame,)


class Node:
    """The server's side: session records with their compare-and-swap, and the connections that live."""

    def __init__(
        self,
        rules: ServerRules | None = None,
        *,
        make: Callable[
            [ServerRules, Callable[[int], bytes], float, int], ServerConnection
        ] = ServerConnection,
    ) -> None:
        self.rules = rules or ServerRules()
        self.records: dict[bytes, SessionRecord] = {}
        self.connections: list[ServerConnection] = []
        self.log: dict[ServerConnection, list[Event]] = {}
        self.outage: Swap | None = None
        """Answer of a store that is in trouble."""
        self._make = make

    def accept(self, random_bytes: Callable[[int], bytes], now: float, number: int) -> ServerConnection:
        """A WebSocket was opened."""
        connection = self._make(self.rules, random_bytes, now, number)
        self.connections.append(connection)
        self.log[connection] = []
        return connection

    def lookup(self, sid: bytes, now: float) -> SessionRecord | None:
        record = self.records.get(sid)
        if record is None or now > record.ends_at or (now > record.expires_at and not record.revoked):
            return None
        return record

    def advance(self, step: Advance, now: float) -> Swap:
        if self.outage is not None:
            return self.outage
        outcome, record = swap(self.records.get(step.sid), step, now)
        if record is not None:
            self.records[step.sid] = record
        return outcome

    def revoke(self, sid: bytes, now: float, by: ServerConnection | None = None) -> None:
        self.records[sid] = replace(self.records[sid], revoked=True)
        for other in self._others(sid, by):
            other.warn_reuse(now)

    def _others(self, sid: bytes, kept: ServerConnection | None) -> list[ServerConnection]:
        # Before its proof a connection speaks for nobody: the compare-and-swap decides about it.
        return [one for one in self.connections if one.sid == sid and one is not kept and one.epoch]

    def answer(self, connection: ServerConnection, event: Event, now: float) -> None:
        """Do what one event asks for."""
        match event:
            case SessionWanted(sid):
                record = self.lookup(sid, now)
                connection.session_found(record, now, record.ends_at - now if record else 0.0)
            case AdvanceWanted(step):
                connection.advanced(self.advance(step, now), now)
            case RevocationWanted(sid):
                self.revoke(sid, now, connection)
            case Opened():
                for other in self._others(connection.sid, connection):
                    other.close(CloseCode.SUPERSEDED, now)
            case _:
                pass

    def work(self, connection: ServerConnection, now: float) -> bool:
        """Take and answer the events of a connection until it has none; say whether there were any."""
        busy = False
        while events := connection.events():
            busy = True
            for event in events:
                self.log[connection].append(event)
                self.answer(connection, event, now)
        return busy


class Pair:
    """One client of one session, and its connection to a node.

    Args:
        seed: Of all randomness of this client and its connections.
        node: Shared with others, such as a thief.
        session: Stolen from another pair; by default a new one is made.
        start: Whether the handshake is run at once.
    """

    def __init__(
        self,
        seed: int = 1,
        *,
        server: ServerRules | None = None,
        client: ClientRules | None = None,
        suites: tuple[int, ...] = (2, 1),
        device: PublicKey | None = None,
        node: Node | None = None,
        session: ClientSession | None = None,
        number: int = 0,
        now: float = START,
        start: bool = True,
    ) -> None:
        self.random = random.Random(seed)
        self.now = now
        self.number = number
        self.node = node or Node(server)
        self.rules = client or ClientRules()
        self.hook: Hook = intact
        self.tape: list[Crossing] = []
        if session is None:
            ticket = self.random.randbytes(32)
            session = ClientSession(self.random.randbytes(16), ticket, suites)
            self.node.records[session.sid] = SessionRecord(
                sid=session.sid,
                user="user",
                key="key",
                token=ticket,
                suites=suites,
                expires_at=now + 30,
                ends_at=now + 86_400,
                device_key=device,
            )
        self.session = session
        self.connect()
        if start:
            self.pump()

    def connect(self) -> None:
        """Open a new connection and send HELLO; the server's end of an older one stays as it is."""
        self.client = ClientConnection(self.session, self.rules, self.random.randbytes, self.now)
        self.server = self.node.accept(self.random.randbytes, self.now, self.number)
        self.client_events: list[Event] = []

    def reconnect(self) -> None:
        """Open a new connection and run it until nothing moves."""
        self.connect()
        self.pump()

    @property
    def record(self) -> SessionRecord:
        """What the store knows of the session."""
        return self.node.records[self.session.sid]

    @property
    def server_events(self) -> list[Event]:
        """What happened on the server's end of the current connection."""
        return self.node.log[self.server]

    def pump(self) -> None:
        """Carry frames both ways and answer the server's questions until nothing moves."""
        while self._turn():
            pass

    def _turn(self) -> bool:
        moved = False
        for frame in self.client.bytes_to_send():
            moved = True
            self.tape.append(Crossing(Way.C2S, frame))
            for arrived in self.hook(Way.C2S, frame):
                self.server.receive(arrived, self.now)
                self.node.work(self.server, self.now)
        moved |= self.node.work(self.server, self.now)
        for frame in self.server.bytes_to_send():
            moved = True
            self.tape.append(Crossing(Way.S2C, frame))
            for arrived in self.hook(Way.S2C, frame):
                self.client.receive(arrived, self.now)
        self.client_events += self.client.events()
        return moved

    def advance(self, seconds: float, *, drained: bool = True) -> None:
        """Let time pass: run every timer that falls due on either side, and carry what follows."""
        until = self.now + seconds
        while (due := min(self.client.next_timer, self.server.next_timer)) <= until:
            self.now = max(due, self.now)
            self.client.handle_timer(self.now)
            self.server.handle_timer(self.now, drained=drained)
            self.pump()
        self.now = until

    def rotate(self) -> None:
        """Run one rotation."""
        self.server.rotate(self.now)
        self.pump()

    def steal(self, *, token: Held | None = None) -> ClientSession:
        """Copy what the client holds, as a thief of its memory would; or one token of it."""
        copy = ClientSession(self.session.sid, b"", self.session.suites)
        copy.held = list(self.session.held) if token is None else [token]
        copy.ready_epoch = self.session.ready_epoch
        copy.suite = self.session.suite
        return copy

    def thief(self, seed: int = 666, *, client: ClientRules | None = None, start: bool = True) -> Pair:
        """Connect with a copy of what the client holds."""
        return Pair(seed, client=client, node=self.node, session=self.steal(), now=self.now, start=start)


class Snapshot:
    """State of a connection, so that one input after another can be tried on it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        names = [name for cls in type(connection).__mro__ for name in getattr(cls, "__slots__", ())]
        self._values = [(name, getattr(connection, name)) for name in names if hasattr(connection, name)]
        self._lists = [(name, list(value)) for name, value in self._values if isinstance(value, list)]
        self._directions = [
            (value, value.count, value.used, value._ratchet)
            for _, value in self._values
            if isinstance(value, Opener | Sealer)
        ]
        self._session: tuple[ClientSession, list[Held], int, Suite | None, int] | None = None
        if isinstance(connection, ClientConnection):
            kept = connection._session
            self._session = kept, list(kept.held), kept.ready_epoch, kept.suite, kept._unfinished

    def restore(self) -> None:
        """Take the connection back to the state of the snapshot."""
        connection = self.connection
        for name, value in self._values:
            setattr(connection, name, value)
        for name, items in self._lists:
            setattr(connection, name, list(items))
        for direction, count, used, ratchet in self._directions:
            direction.count, direction.used, direction._ratchet = count, used, ratchet
        if self._session is not None:
            kept, held, ready_epoch, suite, unfinished = self._session
            kept.held = list(held)
            kept.ready_epoch, kept.suite, kept._unfinished = ready_epoch, suite, unfinished


def found(events: list[Event], kind: type[E]) -> list[E]:
    """Return the events of one class."""
    return [event for event in events if isinstance(event, kind)]


def ending(events: list[Event]) -> Terminated | None:
    """Return how a connection ended; None if it did not."""
    ends = found(events, Terminated)
    if len(ends) > 1:
        raise AssertionError(f"a connection ended {len(ends)} times")
    return ends[0] if ends else None


def end_code(events: list[Event]) -> int:
    """Return the code a connection ended with; 0 if it did not."""
    end = ending(events)
    return 0 if end is None else end.code


def frames_of(tape: list[Crossing], kind: FrameType) -> list[bytes]:
    """Return the frames of one type that were written."""
    return [frame for _, frame in tape if frame[0] == kind]


def twin(opener: Opener) -> Sealer:
    """Return what the true peer of `opener` would seal the next frame with."""
    iv = opener._iv_high.to_bytes(4, "big") + opener._iv_low.to_bytes(8, "big")
    sealer = Sealer(DirectionKeys(opener._key, iv, opener._ratchet), opener.epoch)
    sealer.count = opener.count
    return sealer


def opener_of(receiver: Connection) -> Opener:
    """Return what `receiver` opens the next frame with."""
    opener = receiver._opener
    if opener is None:
        raise AssertionError("the receiver has no keys")
    return opener


def forge(
    receiver: Connection,
    kind: int,
    payload: bytes,
    *,
    flags: int = 1,
    stream: int = 0,
    opener: Opener | None = None,
) -> bytes:
    """Seal the frame that `receiver` expects next, as its true peer could."""
    return twin(opener or opener_of(receiver)).seal(kind, flags, stream, payload)


def forge_control(receiver: Connection, frame: Control, *, opener: Opener | None = None) -> bytes:
    """Seal a control frame that `receiver` expects next."""
    return forge(receiver, codec.frame_type(frame), codec.encode_control(frame), opener=opener)
