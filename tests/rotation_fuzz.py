"""Seeded fuzz of sessions on a bad network: no false revocation, no stuck session, order kept, theft always told.

    python -m tests.rotation_fuzz --schedules 20000 --seed 1
    python -m tests.rotation_fuzz --mutations

A schedule connects, rotates and sends both ways while connections break at random points, frames and answers
of the store come late, and connections that the client gave up live on at the server. Each mutation breaks one
rule of one side; a fuzz that does not notice it proves nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from rwt_protocol import codec
from rwt_protocol.client import ClientConnection, ClientRules
from rwt_protocol.codes import CloseCode, Level, RequestReason, Warning
from rwt_protocol.connection import Header, State, pack_messages
from rwt_protocol.events import (
    Acknowledged,
    AdvanceWanted,
    Delivered,
    Event,
    Opened,
    Published,
    RevocationWanted,
    Rotated,
    SessionWanted,
    Subscribed,
    SubscribeRequested,
    Terminated,
    Warned,
)
from rwt_protocol.frames import Position, Publication, Sub, SubOk
from rwt_protocol.key_schedule import EpochKeys, token_id
from rwt_protocol.limits import MAX_UNFINISHED
from rwt_protocol.server import ServerConnection, ServerRules
from rwt_protocol.session import Advance, ClientSession, Proof, SessionRecord, Swap

from .pair import Node

STREAM: Final = 7
LOG: Final = b"fuzz-log"
PLACE: Final = codec.encode_place(STREAM, LOG)
STORED: Final = codec.encode_uint(1_700_000_000_000)
SENDER: Final = codec.encode_sender("user", bytes(8))
ATTEMPTS: Final = 40
RESUMES: Final = frozenset({CloseCode.SUPERSEDED, CloseCode.INTERNAL})
LEVELS: Final = tuple(Level)


class Failure(Exception):
    """An invariant does not hold."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


@dataclass
class Counts:
    """What happened over all schedules."""

    schedules: int = 0
    rotations: int = 0
    breaks: int = 0
    late_frames: int = 0
    lost_races: int = 0
    messages: int = 0
    new_tickets: int = 0
    thefts: int = 0
    largest_list: int = 0
    false_revocations: int = 0
    stuck: int = 0
    other: int = 0
    failures: list[str] = field(default_factory=list)

    def failed(self, number: int, failure: Failure) -> None:
        self.failures.append(f"schedule {number}: {failure}")
        match failure.kind:
            case "false revocation":
                self.false_revocations += 1
            case "stuck":
                self.stuck += 1
            case _:
                self.other += 1

    def __str__(self) -> str:
        rows = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return "\n".join(f"{name.replace('_', ' '):18} {value:>9,}" for name, value in rows.items())


# --- mutations: one rule broken each ---------------------------------------------------------------------


class EraseOnReply(ClientConnection):
    """The client erases the old token when it sends REPLY."""

    def _on_rotate(self, header: Header) -> None:
        super()._on_rotate(header)
        self._session.held = self._session.held[:1]


class ForgetUnfinished(ClientConnection):
    """The client forgets the tokens of attempts that had no answer."""

    def __init__(self, session: ClientSession, *rest: Any) -> None:
        session.held = session.held[-1:]
        super().__init__(session, *rest)


class NewestOnly(ClientConnection):
    """The client keeps only the newest token."""

    def __init__(self, session: ClientSession, *rest: Any) -> None:
        session.held = session.held[:1]
        super().__init__(session, *rest)


class SwitchEarly(ClientConnection):
    """The client receives under the new key from REPLY on."""

    def _on_rotate(self, header: Header) -> None:
        super()._on_rotate(header)
        self._opener = self._next_opener


class JudgeAtConfirm(ServerConnection):
    """The server judges at CONFIRM, not at HELLO, whether the token is current."""

    node: Node

    def _on_confirm(self, header: Header) -> None:
        keys, proof = self._handshake or (None, None)
        if isinstance(keys, EpochKeys) and isinstance(proof, Proof):
            current = token_id(self.node.records[self.sid].token)
            self._handshake = keys, proof._replace(live=proof.picked == current)
        super()._on_confirm(header)


class CommitAtWelcome(ServerConnection):
    """The server stores the new token when it sends WELCOME."""

    node: Node

    def session_found(self, record: SessionRecord | None, now: float, ends_in: float = 0.0) -> None:
        super().session_found(record, now, ends_in)
        keys, proof = self._handshake or (None, None)
        if isinstance(keys, EpochKeys) and isinstance(proof, Proof) and proof.live:
            self.node.advance(
                Advance(self.sid, proof.picked, keys.epoch, keys.token, self._suite, 60_000), now
            )


class Mutation(NamedTuple):
    """Classes to use in place of the true ones."""

    client: type[ClientConnection] = ClientConnection
    server: type[ServerConnection] = ServerConnection
    keeps_old: bool = False
    """The client goes on reading and answering on an older connection while it opens a new one."""


MUTATIONS: Final = {
    "erase-on-reply": Mutation(client=EraseOnReply),
    "forget-unfinished": Mutation(client=ForgetUnfinished),
    "judge-at-confirm": Mutation(server=JudgeAtConfirm),
    "commit-at-welcome": Mutation(server=CommitAtWelcome),
    "newest-only": Mutation(client=NewestOnly),
    "switch-early": Mutation(client=SwitchEarly),
    "make-before-break": Mutation(keeps_old=True),
}


# --- one schedule ----------------------------------------------------------------------------------------


class Link:
    """One WebSocket: both ends and what is under way. An int stands for a close without BYE."""

    __slots__ = ("client", "next_offset", "server", "to_client", "to_server", "waiting")

    def __init__(self, client: ClientConnection, server: ServerConnection) -> None:
        self.client: ClientConnection | None = client
        self.server = server
        self.to_server: deque[bytes] = deque()
        self.to_client: deque[bytes | int] = deque()
        self.waiting: deque[Event] = deque()
        """Questions to the store that have no answer yet; until then nothing further is received."""
        self.next_offset = 0
        """Next entry to deliver; 0: no subscription."""


class Schedule:
    """One session and its bad luck. `run` raises Failure if an invariant breaks."""

    def __init__(
        self, number: int, seed: int, counts: Counts, mutation: Mutation, *, theft: bool = False
    ) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.bytes: Callable[[int], bytes] = self.random.randbytes
        self.counts = counts
        self.mutation = mutation
        self.theft = theft
        self.storm = self.random.choice((0.04, 0.1, 0.2))
        """How often connections break."""
        self.now = 0.0
        self.node = Node(make=self._make_server)
        self.server_rules = ServerRules()
        self.client_rules = ClientRules()
        ticket = self.bytes(32)
        self.session = ClientSession(self.bytes(16), ticket, (2,))
        self.node.records[self.session.sid] = SessionRecord(
            sid=self.session.sid,
            user="user",
            key="key",
            token=ticket,
            suites=(2,),
            expires_at=30,
            ends_at=9e4,
        )
        self.link: Link | None = None
        self.old: list[Link] = []
        self.next_mid = 1
        self.unanswered: deque[int] = deque()
        self.subscribed = False
        self.position = Position(LOG, 0, b"")
        self.entries: list[tuple[bytes, bytes]] = []
        """The log: tag and body."""
        self.offset_of_mid: list[int] = [0]
        self.told = False
        self.touched = False
        """A thief proved a stolen token."""
        self.stolen: ClientSession | None = None

    def _make_server(self, *args: Any) -> ServerConnection:
        server = self.mutation.server(*args)
        if isinstance(server, JudgeAtConfirm | CommitAtWelcome):
            server.node = self.node
        return server

    @property
    def record(self) -> SessionRecord:
        return self.node.records[self.session.sid]

    def run(self) -> None:
        self.connect()
        steal_at = self.random.randrange(5, 90)
        for step in range(self.random.randrange(50, 400)):
            self.now += self.random.random() * 0.05
            if self.session.spent and self.link is None:
                self.take_ticket()
                return
            if self.told:
                break
            self.step()
            if self.theft and step >= steal_at:
                self.steal_or_use()
        self.finish()

    def step(self) -> None:
        chance = self.random.random()
        if chance < self.storm:
            self.cut()
        elif chance < self.storm + 0.1:
            self.late(self.random.randrange(1, 6))
        elif chance < self.storm + 0.2:
            self.publish()
        elif chance < self.storm + 0.24:
            self.append(b"from the server")
        elif chance < self.storm + 0.36:
            self.rotate()
        else:
            self.move(self.random.randrange(1, 7))
        if self.link is None and self.random.random() < 0.7 and not self.session.spent:
            self.connect()

    # --- the client ---

    def connect(self) -> None:
        session = self.session
        self.counts.largest_list = max(self.counts.largest_list, len(session.held))
        client = self.mutation.client(session, self.client_rules, self.bytes, self.now)
        server = self.node.accept(self.bytes, self.now, 0)
        self.link = Link(client, server)
        self.subscribed = False
        self.flush(self.link)

    def cut(self) -> None:
        """The client gives its connection up; the server may not notice, and what was sent may arrive late."""
        link, self.link = self.link, None
        if link is None:
            return
        self.counts.breaks += 1
        self.subscribed = False
        if self.random.random() < 0.25:
            self.node.connections.remove(link.server)
            return
        kept = self.random.randrange(len(link.to_server) + 1)
        while len(link.to_server) > kept:
            link.to_server.pop()
        if not self.mutation.keeps_old:
            link.client = None
        self.old.append(link)

    def rotate(self) -> None:
        link = self.link
        if link is None or link.client is None:
            return
        if self.random.random() < 0.2:
            link.client.request_rotation(RequestReason.ASKED, self.now)
        elif not link.waiting:
            link.server.rotate(self.now)
        self.flush(link)

    def publish(self) -> None:
        if not self.subscribed:
            return
        for _ in range(self.random.randrange(1, 4)):
            self.unanswered.append(self.next_mid)
            self.next_mid += 1
            self.counts.messages += 1
        self.send_mids(list(self.unanswered)[-3:])

    def send_mids(self, mids: list[int]) -> None:
        link = self.link
        if link is None or link.client is None or not mids:
            return
        messages = [codec.encode_publication(Publication(b"message %d" % mid, mid)) for mid in mids]
        for flags, payload, _ in pack_messages(messages, self.random.choice(LEVELS), link.client.window):
            link.client.send_message(flags, STREAM, payload)
        self.flush(link)

    def client_events(self, link: Link, client: ClientConnection) -> None:
        ours = link is self.link
        for event in client.events():
            match event:
                case Warned(Warning.TOKEN_REUSE):
                    self.told = True
                case Terminated(code, by_peer=by_peer) if ours:
                    self.ended(code, sealed=by_peer)
                case Opened() if ours:
                    client.subscribe(Sub(1, "x", after=self.position))
                case Subscribed() if ours:
                    self.subscribed = True
                    self.flush(link)
                    self.send_mids(list(self.unanswered))
                case Acknowledged(ack) if ours:
                    for run in ack.runs:
                        for mid in range(run.first_mid, run.first_mid + run.number):
                            if self.unanswered and self.unanswered[0] == mid:
                                self.unanswered.popleft()
                case Delivered(entries=entries) if ours:
                    for entry in entries:
                        offset = self.position.offset + 1
                        if entry.offset != offset or (entry.tag, entry.body) != self.entries[offset - 1]:
                            raise Failure("order", f"entry {entry.offset} came in place of {offset}")
                        self.position = Position(LOG, offset, entry.tag)
                case _:
                    pass

    def ended(self, code: int, *, sealed: bool) -> None:
        """The current connection is over, by a frame or by a bare close."""
        self.link = None
        self.subscribed = False
        if code in RESUMES and sealed:
            return
        if code == CloseCode.REVOKED and sealed and self.theft:
            self.told = True
            return
        raise Failure("stuck", f"a connection ended with {code}, {'sealed' if sealed else 'bare'}")

    # --- the server ---

    def server_events(self, link: Link) -> None:
        server = link.server
        for event in server.events():
            match event:
                case SessionWanted() | AdvanceWanted():
                    link.waiting.append(event)
                case RevocationWanted(sid):
                    if not self.touched:
                        raise Failure("false revocation", "an honest client was accused")
                    self.node.revoke(sid, self.now, server)
                case Opened():
                    self.node.answer(server, event, self.now)
                case Rotated():
                    self.counts.rotations += 1
                case SubscribeRequested(sub):
                    after = sub.after or self.position
                    server.subscribed(SubOk(sub.ref, STREAM, 0, after, 3, 0))
                    link.next_offset = after.offset + 1
                    self.deliver(link)
                case Published(messages=messages):
                    for message in messages:
                        self.store(message.mid or 0, message.body)
                        server.acknowledge(
                            message.mid or 0, 1, PLACE, self.offset_of_mid[message.mid or 0], STORED
                        )
                    server.flush_acks()
                    self.deliver_all()
                case Terminated(code, by_peer=False):
                    if not server.epoch:
                        self.flush(link)
                        link.to_client.append(code)
                case _:
                    pass

    def store(self, mid: int, body: bytes) -> None:
        highest = len(self.offset_of_mid) - 1
        if mid > highest + 1:
            raise Failure("order", f"message {mid} came behind {highest}")
        if mid == highest + 1:
            self.entries.append((self.bytes(8), body))
            self.offset_of_mid.append(len(self.entries))

    def append(self, body: bytes) -> None:
        self.entries.append((self.bytes(8), body))
        self.deliver_all()

    def deliver_all(self) -> None:
        for link in self.links():
            self.deliver(link)

    def deliver(self, link: Link) -> None:
        if not link.next_offset or link.server.state is State.CLOSED:
            return
        packed = []
        for offset in range(link.next_offset, len(self.entries) + 1):
            tag, body = self.entries[offset - 1]
            packed.append(codec.encode_entry(offset, tag, STORED, 0, 1, SENDER, 2, body))
        link.next_offset = len(self.entries) + 1
        for flags, payload, _ in pack_messages(packed, self.random.choice(LEVELS), link.server.window):
            link.server.send_message(flags, STREAM, payload)
        self.flush(link)

    def answer(self, link: Link) -> None:
        """The store answers the oldest question of a connection, or dies over it."""
        event = link.waiting.popleft()
        if isinstance(event, AdvanceWanted):
            outcome: Swap | None = None
            if self.random.random() < 0.03:
                if self.random.random() < 0.5:
                    self.node.advance(event.step, self.now)
                outcome = Swap.UNKNOWN
            else:
                outcome = self.node.advance(event.step, self.now)
            self.counts.lost_races += outcome is Swap.LOST
            link.server.advanced(outcome, self.now)
        else:
            self.node.answer(link.server, event, self.now)
        self.settle(link)

    # --- the network ---

    def links(self) -> Iterator[Link]:
        yield from self.old
        if self.link is not None:
            yield self.link

    def flush(self, link: Link) -> None:
        """Put what both ends have written on its way."""
        if link.client is not None:
            link.to_server.extend(link.client.bytes_to_send())
        link.to_client.extend(link.server.bytes_to_send())

    def settle(self, link: Link) -> None:
        self.server_events(link)
        for other in self.links():
            # A connection that was superseded or revoked has a last word to write.
            self.flush(other)
        self.flush(link)

    def step_server(self, link: Link) -> bool:
        """The server takes its next input on a connection; say whether there was one."""
        if link.waiting:
            self.answer(link)
        elif link.to_server:
            link.server.receive(link.to_server.popleft(), self.now)
            self.settle(link)
        else:
            return False
        return True

    def step_client(self, link: Link) -> bool:
        client = link.client
        if client is None or not link.to_client:
            return False
        data = link.to_client.popleft()
        if isinstance(data, bytes):
            client.receive(data, self.now)
            self.client_events(link, client)
            self.flush(link)
        elif link is self.link:
            self.ended(data, sealed=False)
        return True

    def move(self, count: int) -> None:
        for _ in range(count):
            link = self.link
            if link is None:
                return
            sides = (self.step_server, self.step_client)
            first = self.random.random() < 0.5
            if not sides[first](link) and not sides[not first](link):
                return

    def late(self, count: int) -> None:
        """Frames of a connection that the client gave up arrive, or its server rotates in vain."""
        if not self.old:
            return
        link = self.random.choice(self.old)
        if self.random.random() < 0.2 and not link.waiting:
            link.server.rotate(self.now)
            self.flush(link)
        for _ in range(count):
            if link.client is not None:
                self.step_client(link)
            if self.step_server(link):
                self.counts.late_frames += 1
            elif link.server.state is State.CLOSED:
                self.old.remove(link)
                return

    # --- theft ---

    def steal_or_use(self) -> None:
        if self.stolen is None:
            if self.session.ready_epoch:
                stolen = self.stolen = ClientSession(self.session.sid, b"", (2,))
                stolen.held = [self.random.choice(self.session.held)]
                stolen.ready_epoch, stolen.suite = self.session.ready_epoch, self.session.suite
            return
        if self.random.random() < 0.3:
            for _ in range(self.random.choice((1, 1, 2, 5, 17, 20))):
                self.use_stolen(self.stolen)

    def use_stolen(self, stolen: ClientSession) -> None:
        """The thief connects, perhaps rotates, and goes away."""
        if stolen.spent:
            return
        thief = Link(
            ClientConnection(stolen, self.client_rules, self.bytes, self.now),
            self.node.accept(self.bytes, self.now, 0),
        )
        client, server = thief.client, thief.server
        if client is None:
            return
        again = self.random.randrange(3)
        while True:
            frames = client.bytes_to_send()
            for frame in frames:
                # From a CONFIRM on somebody other than the owner has proved a token.
                self.touched |= server.state is State.EXPECT_CONFIRM
                server.receive(frame, self.now)
                self.node.work(server, self.now)
            answers = server.bytes_to_send()
            for frame in answers:
                client.receive(frame, self.now)
            client.events()
            if not frames and not answers:
                if not again or server.state is not State.OPEN:
                    break
                again -= 1
                server.rotate(self.now)
        for other in self.links():
            self.flush(other)
        if stolen.held[0].epoch != stolen.ready_epoch and server.state is State.OPEN:
            raise Failure("thief", "the thief's own connection is not settled")

    # --- the end ---

    def finish(self) -> None:
        """The network is good again: all late frames arrive, and the client resumes."""
        if self.random.random() < 0.5:
            self.drain_old()
        for _ in range(ATTEMPTS):
            self.now += 0.01
            if self.theft and self.told:
                break
            if self.session.spent and self.link is None:
                self.take_ticket()
                return
            if self.link is None:
                self.connect()
            while self.link is not None and (self.step_server(self.link) or self.step_client(self.link)):
                pass
            self.drain_old()
            if self.link is None:
                continue
            client = self.link.client
            if client is not None and client.is_open and self.link.server.state is State.OPEN:
                if not self.touched:
                    break
                # A theft shows when the owner next connects.
                self.cut()
        else:
            raise Failure("stuck", f"no open connection after {ATTEMPTS} attempts")
        self.verdict()

    def take_ticket(self) -> None:
        """The client gives the session up, which it may do after many attempts without an answer only."""
        if len(self.session.held) <= (MAX_UNFINISHED if self.session.ready_epoch == 0 else 15):
            raise Failure("stuck", f"the client gave up with {len(self.session.held)} tokens")
        self.counts.new_tickets += 1

    def drain_old(self) -> None:
        for link in list(self.old):
            while self.step_server(link):
                self.counts.late_frames += 1

    def verdict(self) -> None:
        if self.touched:
            self.counts.thefts += 1
            if not self.record.revoked:
                raise Failure("thief", "the session was not revoked")
            if not self.told:
                raise Failure("thief", "the owner was not told")
            return
        if self.record.revoked or self.told:
            raise Failure("false revocation", "an honest session was revoked")
        if self.unanswered:
            raise Failure("order", f"message {self.unanswered[0]} has no answer")
        if self.position.offset != len(self.entries):
            raise Failure("order", f"{len(self.entries) - self.position.offset} entries did not come")
        if len(self.offset_of_mid) != self.next_mid:
            raise Failure("order", "a message was not stored")


HONEST: Final = Mutation()


def run(
    schedules: int,
    seed: int,
    *,
    rules: Mutation = HONEST,
    theft_every: int = 5,
    stop: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Counts:
    """Run schedules, every `theft_every`-th (0: none) with a thief; `stop` ends at the first failure."""
    counts = Counts()
    for number in range(1, schedules + 1):
        theft = bool(theft_every) and number % theft_every == 0
        try:
            Schedule(number, seed, counts, rules, theft=theft).run()
        except Failure as failure:
            counts.failed(number, failure)
        counts.schedules += 1
        if stop and counts.failures:
            break
        if progress is not None:
            progress(number)
    return counts


def first_failure(name: str, schedules: int, seed: int) -> Counts:
    """Run one mutation on honest schedules until it fails."""
    return run(schedules, seed, rules=MUTATIONS[name], theft_every=0, stop=True)


def _say(number: int) -> None:
    if number % 2_000 == 0:
        print(f"... {number:,} schedules", file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rotation_fuzz", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--schedules", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="break one rule; the run must fail")
    parser.add_argument("--mutations", action="store_true", help="run all mutations, each until it fails")
    given = parser.parse_args(arguments)
    if given.mutations:
        survived = 0
        for name in MUTATIONS:
            counts = first_failure(name, given.schedules, given.seed)
            survived += not counts.failures
            print(f"{name:18} {counts.failures[0] if counts.failures else 'survived'}")
        return 1 if survived else 0
    start = time.perf_counter()
    if given.mutation:
        counts = run(
            given.schedules, given.seed, rules=MUTATIONS[given.mutation], theft_every=0, progress=_say
        )
    else:
        counts = run(given.schedules, given.seed, progress=_say)
    print(counts)
    print(f"{'seconds':18} {time.perf_counter() - start:>9,.1f}")
    for line in counts.failures[:10]:
        print(line)
    return 1 if counts.failures else 0


if __name__ == "__main__":
    sys.exit(main())
