"""The channels of a client: opening, closing, pausing, and the way of received messages to handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from rwt_protocol.channels import Channel, ChannelState, check_name
from rwt_protocol.codes import GapReason, Use
from rwt_protocol.errors import RWTDisconnectedError, RWTError, RWTTimeoutError
from rwt_protocol.events import Delivered
from rwt_protocol.frames import Closed, Gap, GapNotice, SubOk

from .emitter import Emitter
from .inbox import ChannelInbox, MessageStream, to_message
from .link import Link
from .options import MAX_UNHANDLED, Lost, require
from .refusals import refusal
from .waiting import Waiters

MAX_HISTORY = 2**32 - 1


@dataclass(slots=True)
class ChannelUse:
    """What the client keeps of one channel across connections."""

    core: Channel
    inbox: ChannelInbox
    history: int = 0
    reads: bool = False
    """Whether it was ever opened to receive; its position means something only then."""
    opening: Waiters = field(default_factory=Waiters)
    closing: Waiters = field(default_factory=Waiters)
    dispatcher: asyncio.Task[None] | None = None


class Channels:
    """All channels of one client.

    Args:
        on_lost: Called with name and reason when the server refuses or closes a channel; returns whether
            anybody was told.
        on_handled: Called when received messages were handled.
    """

    def __init__(
        self, emitter: Emitter, on_lost: Callable[[str, RWTError], bool], on_handled: Callable[[], None]
    ) -> None:
        self.link: Link | None = None
        self.own_id = b""
        """Sender id of the session."""
        self._emitter = emitter
        self._on_lost = on_lost
        self._on_handled = on_handled
        self._uses: dict[str, ChannelUse] = {}
        self._streams: dict[int, ChannelUse] = {}
        self._refs: dict[int, ChannelUse] = {}
        self._next_ref = 1

    # --- what the application does ---

    def use(self, name: str) -> ChannelUse:
        """Return a channel; a new one if there is none.

        Raises:
            ValueError: the name cannot be used.
        """
        use = self._uses.get(name)
        if use is None:
            problem = check_name(name)
            if problem is not None:
                raise ValueError(f"channel {name!r} cannot be used: {problem}")
            use = self._uses[name] = ChannelUse(Channel(name), self._inbox(name))
        return use

    def _inbox(self, name: str) -> ChannelInbox:
        return ChannelInbox(lambda: self._handled(self._uses[name]))

    def names(self) -> list[str]:
        """Names of the channels that are open on the current connection."""
        return [name for name, use in self._uses.items() if use.core.is_open]

    def is_open(self, name: str) -> bool:
        """Whether a channel is open on the current connection."""
        use = self._uses.get(name)
        return use is not None and use.core.is_open

    def stream(self, name: str) -> int:
        """Number of an open channel on the current connection."""
        return self._uses[name].core.stream

    @property
    def waiting(self) -> int:
        """Messages that handlers have not finished with; the one whose handler asks is not counted."""
        current = asyncio.current_task()
        return sum(use.inbox.waiting for use in self._uses.values() if use.dispatcher is not current)

    def want(self, name: str, more: Use) -> None:
        """Open a channel, or use an open one for more."""
        use = self.use(name)
        if use.core.wanted & more == more:
            return
        if more & Use.RECEIVE and not use.reads:
            # What was published while nobody here read is not missed: begin at the tail.
            use.reads = True
            use.core.position = None
        use.core.wanted = Use(use.core.wanted | more)
        if use.core.is_open:
            self._sub(use, self._use_now(use))
        else:
            self.subscribe_all()

    async def open(self, name: str, history: int, timeout: float | None) -> None:
        """Open for sending and receiving, and wait for the answer."""
        _check_history(history)
        use = self.use(name)
        use.history = use.history or history
        if use.core.is_open and use.core.wanted is Use.BOTH:
            return
        opened = use.opening.add()
        self.want(name, Use.BOTH)
        try:
            async with asyncio.timeout(timeout):
                await opened
        except TimeoutError:
            raise RWTTimeoutError(
                f"channel {name!r} was not opened within {timeout} s",
                operation="open",
                details={"sent": True},
            ) from None

    async def close(self, name: str, timeout: float | None) -> None:
        """Stop using a channel, and wait until the server knows."""
        use = self._uses.get(name)
        if use is None:
            return
        link, core = self.link, use.core
        core.wanted = Use.PAUSED
        await self._renew(use, None)
        use.opening.tell(RWTDisconnectedError(f"channel {name!r} was closed", operation="open"))
        if link is None or not core.is_open:
            return  # one that is being opened is closed when its answer comes
        closed = use.closing.add()
        link.conn.unsubscribe(self._ref(use), core.stream)
        link.wake()
        try:
            async with asyncio.timeout(timeout):
                await closed
        except TimeoutError:
            raise RWTTimeoutError(
                f"channel {name!r} was not closed within {timeout} s",
                operation="close",
                details={"sent": True},
            ) from None

    def messages(self, name: str, history: int = 0) -> MessageStream:
        """Return an iterator over the messages of a channel from now on; opens it to receive."""
        _check_history(history)
        use = self.use(name)
        use.history = use.history or history
        stream = use.inbox.open_stream()
        self.receive(name)
        return stream

    def receive(self, name: str) -> None:
        """Open a channel to receive; it may be sent to as well, where that is allowed."""
        self.want(name, Use.BOTH)

    # --- what the connection does ---

    def subscribe_all(self) -> None:
        """Send one SUB for every channel that the application wants and this connection does not have."""
        if self.link is None or not self.link.conn.can_subscribe:
            return
        for use in self._uses.values():
            if use.core.state is ChannelState.CLOSED and use.core.wanted is not Use.PAUSED:
                self._sub(use, self._use_now(use))

    def _use_now(self, use: ChannelUse) -> Use:
        """What to ask for now: no receiving while too much waits for its handlers."""
        wanted = use.core.wanted
        # A first SUB must not pause: that is for channels that are open.
        if use.inbox.unhandled > MAX_UNHANDLED and (use.core.is_open or wanted & Use.PUBLISH):
            return Use(wanted & ~Use.RECEIVE)
        return wanted

    def _ref(self, use: ChannelUse) -> int:
        ref = self._next_ref
        self._next_ref += 1
        self._refs[ref] = use
        return ref

    def _sub(self, use: ChannelUse, wanted: Use) -> None:
        if self.link is not None:
            self.link.conn.subscribe(use.core.subscribe(self._ref(use), use=wanted, history=use.history))
            self.link.wake()

    def on_subscribed(self, answer: SubOk) -> None:
        """Take SUBOK."""
        use = self._refs.pop(answer.ref, None)
        if use is None:
            return
        gap = use.core.opened(answer)
        self._streams[answer.stream] = use
        if gap is not None:
            self._tell_gap(use, gap)
        if use.core.wanted is Use.PAUSED and self.link is not None:
            self.link.conn.unsubscribe(self._ref(use), answer.stream)
            self.link.wake()
            return
        use.opening.tell()
        self._relieve(use)

    def on_refused(self, ref: int, code: int, text: str | None) -> None:
        """Take the ERR of a SUB or UNSUB."""
        use = self._refs.pop(ref, None)
        if use is not None:
            use.closing.tell()
            self._lost(use, code, text)

    def on_closed(self, closed: Closed) -> None:
        """Take CLOSED: our UNSUB, or the server's will."""
        if closed.ref is not None:
            self._refs.pop(closed.ref, None)
        use = self._streams.pop(closed.stream, None)
        if use is None:
            return
        use.core.state = ChannelState.CLOSED
        use.closing.tell()
        if closed.code:
            self._lost(use, closed.code, None)
        else:
            self.subscribe_all()  # it may have been opened again meanwhile

    def _lost(self, use: ChannelUse, code: int, text: str | None) -> None:
        name = use.core.name
        error = refusal(code, text, f"channel {name!r}", "open")
        use.core.state = ChannelState.CLOSED
        use.core.wanted = Use.PAUSED
        told = bool(use.opening) or bool(use.inbox.streams)
        use.opening.tell(error)
        use.inbox.end(error)
        if not self._on_lost(name, error) and not told:
            self._emitter.emit("error", error)

    def on_gap(self, notice: GapNotice) -> None:
        """Take GAP."""
        use = self._streams.get(notice.stream)
        if use is not None:
            use.core.skip(notice.gap)
            self._tell_gap(use, notice.gap)

    def _tell_gap(self, use: ChannelUse, gap: Gap) -> None:
        known = gap.reason in set(GapReason)
        reason = GapReason(gap.reason).name.lower().replace("_", "-") if known else str(gap.reason)
        self._emitter.emit(
            "gap", Lost(channel=use.core.name, reason=reason, first=gap.first, last=gap.last or None)
        )

    def on_delivered(self, event: Delivered) -> None:
        """Take entries of one frame."""
        use = self._streams.get(event.stream)
        if use is None:
            return
        fresh = use.core.accept(event.entries)
        if not use.core.wanted & Use.RECEIVE:
            return  # closed by us; the server does not know yet
        use.inbox.put(event, fresh)
        if use.dispatcher is None:
            loop = asyncio.get_running_loop()
            use.dispatcher = loop.create_task(self._dispatch(use), name=f"rwt-dispatch {use.core.name}")
        self._relieve(use)

    def disconnected(self) -> None:
        """The connection is gone; channels are opened again on the next one."""
        self.link = None
        self._refs.clear()
        self._streams.clear()
        for use in self._uses.values():
            use.core.state = ChannelState.CLOSED
            use.closing.tell()

    def fail(self, error: RWTError, *, over: bool) -> None:
        """Tell those who wait; `over`: the client has given up, iterators end."""
        for use in self._uses.values():
            use.opening.tell(error)
            if over:
                use.inbox.end(error)

    async def stop(self) -> None:
        """The client is disconnected: iterators end, dispatchers stop."""
        for use in self._uses.values():
            await self._renew(use, None)

    async def _renew(self, use: ChannelUse, error: RWTError | None) -> None:
        """End iterators and the dispatcher; what comes later goes to new ones."""
        use.inbox.end(error)
        dispatcher, use.dispatcher = use.dispatcher, None
        use.inbox = self._inbox(use.core.name)
        # A handler that closes its own channel is left to finish; its dispatcher ends behind it.
        if dispatcher is not None and dispatcher is not asyncio.current_task():
            dispatcher.cancel()
            await asyncio.gather(dispatcher, return_exceptions=True)

    # --- handlers ---

    async def _dispatch(self, use: ChannelUse) -> None:
        """Hand the messages of one channel to handlers, one after another."""
        name, inbox = use.core.name, use.inbox
        has = self._emitter.subscriptions.has
        own = f"message:{name}"
        while (following := await inbox.next()) is not None:
            level, entry = following
            try:
                message = to_message(name, level, entry, self.own_id)
            except RWTError as exc:
                self._emitter.emit("error", exc)
            else:
                inbox.give(message)
                for event in ("message", own):
                    if has(event):
                        await self._emitter.call(event, message.data, message.metadata)
            inbox.handled(len(entry.body))

    def _handled(self, use: ChannelUse) -> None:
        self._relieve(use)
        self._on_handled()

    def _relieve(self, use: ChannelUse) -> None:
        """Pause a channel whose messages are handled too slowly, and open it again below half."""
        core = use.core
        if core.state is not ChannelState.OPEN or not core.wanted & Use.RECEIVE:
            return
        receiving = bool(core.use & Use.RECEIVE)
        if receiving and use.inbox.unhandled > MAX_UNHANDLED:
            self._emitter.emit("pressure", {"channel": core.name, "unhandled": use.inbox.unhandled})
            self._sub(use, Use(core.wanted & ~Use.RECEIVE))
        elif not receiving and use.inbox.unhandled < MAX_UNHANDLED // 2:
            self._sub(use, core.wanted)


def _check_history(history: int) -> None:
    good = type(history) is int and 0 <= history <= MAX_HISTORY
    require(good, "history", history, f"0 to {MAX_HISTORY}")
