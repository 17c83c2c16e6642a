"""The command `rwt`: publish, subscribe, look, measure. Works in pipes: bytes in, the same bytes out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial, wraps
from typing import Any, BinaryIO, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from rwt_protocol import __version__
from rwt_protocol.errors import RWTAuthenticationError, RWTError, RWTSendError

from .channels import MAX_HISTORY
from .client import RWTClient
from .dragonfire import DEFAULT_URL, DragonFireClient
from .options import Lost, Message, RWTConnection, SendResult

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

_CHUNK = 65_536
_INTERRUPTED = 130
_LINE_EVERY = 5.0
"""Seconds between progress lines where there is no terminal."""


class _Command(click.Command):
    """Values that cannot be used end with one line and exit status 2; failures of the service with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as exc:
            raise click.ClickException(str(exc)) from exc
        except BrokenPipeError:
            raise
        except OSError as exc:
            click.echo(f"rwt: output cannot be written: {os.strerror(exc.errno or 0).lower()}", err=True)
            sys.stdout = None  # nothing may be flushed there at exit
            raise click.exceptions.Exit(1) from exc
        except RWTAuthenticationError as exc:
            raise click.ClickException(str(exc)) from exc
        except RWTError as exc:
            click.echo(f"rwt: {exc}", err=True)
            raise click.exceptions.Exit(1) from exc


def _connected(function: F) -> F:
    """Options that every command has; the function gets a `DragonFireClient` and the rest."""

    @click.option("--url", default=DEFAULT_URL, show_default=True, envvar="RWT_URL", help="The server.")
    @click.option(
        "--api-key", envvar="RWT_API_KEY", help="From `rwt-server keys create`; or set RWT_API_KEY."
    )
    @click.option("--user", help="Shown to others as sender.")
    @click.option("--region", help="Must be one that the server has.")
    @click.option("--allow-insecure", is_flag=True, help="Allow plain text to another machine.")
    @click.option(
        "--rotation-interval", type=float, help="Ask for a rotation every so many seconds, 5 to 3600."
    )
    @click.option(
        "--events", is_flag=True, help="Write what happens to the connection as JSON to standard error."
    )
    @click.option("--timeout", type=float, default=10.0, show_default=True, help="Seconds to connect.")
    @wraps(function)
    def run(
        url: str,
        api_key: str | None,
        user: str | None,
        region: str | None,
        allow_insecure: bool,
        rotation_interval: float | None,
        events: bool,
        timeout: float,
        **rest: Any,
    ) -> None:
        if not api_key:
            raise ValueError("no API key: set RWT_API_KEY, or give --api-key")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r} cannot be used: give seconds above 0")

        def make() -> RWTClient:
            dragonfire = DragonFireClient(
                api_key=api_key, url=url, user=user, region=region, allow_insecure=allow_insecure
            )
            client = RWTClient(dragonfire)
            if rotation_interval is not None:
                client.configure_token_rotation(interval=rotation_interval)
            _report(client, as_json=events)
            return client

        asyncio.run(_interruptible(function(make=make, timeout=timeout, **rest)))

    return run  # type: ignore[return-value]


async def _interruptible(work: Coroutine[Any, Any, None]) -> None:
    """Ctrl-C and SIGTERM end the work in order: the session is closed, nothing is printed."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        raise click.exceptions.Exit(_INTERRUPTED) from None


def _report(client: RWTClient, *, as_json: bool) -> None:
    def tell(event: str, **facts: Any) -> None:
        if as_json:
            click.echo(json.dumps({"event": event, **facts}), err=True)
        elif event in ("gap", "security-warning", "giving-up", "disconnect", "reconnect"):
            click.echo(f"rwt: {event} " + " ".join(f"{k}={v}" for k, v in facts.items()), err=True)

    def on_connect(connection: RWTConnection) -> None:
        tell("connect", epoch=connection.epoch, resumed=connection.resumed, id=connection.connection_id)

    def on_disconnect(code: int, reason: str) -> None:
        if code != 1000:
            tell("disconnect", code=int(code), reason=reason)

    def on_reconnect(attempt: int, success: bool) -> None:
        tell("reconnect", attempt=attempt, success=success)

    def on_gap(lost: Lost) -> None:
        tell("gap", channel=lost.channel, reason=lost.reason, first=lost.first, last=lost.last)

    client.on("connect", on_connect)
    client.on("disconnect", on_disconnect)
    client.on("reconnect", on_reconnect)
    client.on("gap", on_gap)
    client.on("token-rotate", lambda info: tell("token-rotate", **info))
    client.on("security-warning", lambda info: tell("security-warning", **info))
    client.on("error", lambda error: tell("error", text=str(error)))


class _Blocking:
    """Runs calls that may block for ever, such as reading a pipe, one after another in a thread.

    The thread is a daemon: unlike those of `asyncio.to_thread`, nobody waits for it at the end.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._work, name="rwt-blocking", daemon=True).start()

    async def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Run one call and return its result."""
        done: asyncio.Future[R] = self._loop.create_future()
        self._calls.put((done, partial(function, *arguments)))
        return await done

    def _work(self) -> None:
        while True:
            done, call = self._calls.get()
            try:
                tell: Callable[[], None] = partial(self._settle, done, call(), None)
            except Exception as exc:
                tell = partial(self._settle, done, None, exc)
            try:
                self._loop.call_soon_threadsafe(tell)
            except RuntimeError:  # the loop is closed: the program ends
                return

    @staticmethod
    def _settle(done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)


class _Meter:
    """Progress: a bar on a terminal, a line every five seconds elsewhere, nothing if `--quiet`."""

    def __init__(self, verb: str, total: int | None, *, quiet: bool) -> None:
        self._verb = verb
        self._total = total
        self._quiet = quiet
        self.messages = 0
        self.bytes = 0
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None
        console = Console(stderr=True)
        if not quiet and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TransferSpeedColumn(),
                TextColumn("{task.fields[messages]} messages"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(verb, total=total, messages=0)
            self._bar.start()

    def add(self, size: int) -> None:
        self.messages += 1
        self.bytes += size
        if self._bar is not None:
            self._bar.update(self._task, completed=self.bytes, messages=self.messages)
        elif not self._quiet and time.monotonic() - self._told > _LINE_EVERY:
            self._told = time.monotonic()
            click.echo(f"rwt: {self._text()}", err=True)

    def _text(self) -> str:
        seconds = time.monotonic() - self._began
        return f"{self._verb} {self.messages} messages, {self.bytes} bytes in {seconds:.1f} s"

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        if not self._quiet:
            click.echo(f"rwt: {self._text()}", err=True)


@click.group()
@click.version_option(__version__)
def cli() -> None:
    """Rotational WebSockets from the command line.

    \b
    Example, in two terminals:
      rwt sub chat
      rwt pub chat "hello"
    """


# --- pub -------------------------------------------------------------------------------------------------


async def _lines(source: BinaryIO) -> AsyncIterator[str]:
    blocking = _Blocking()
    while line := await blocking.call(source.readline):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as exc:
            raise ValueError(f"standard input is not UTF-8 text ({exc.reason}): use --raw for bytes") from exc


async def _chunks(source: BinaryIO, size: int) -> AsyncIterator[bytes]:
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    blocking = _Blocking()
    while chunk := await blocking.call(read, size):
        yield chunk


async def _one(text: str) -> AsyncIterator[str]:
    yield text


class _Pipeline:
    """Sends without waiting for each answer, and remembers the first failure."""

    def __init__(self, client: RWTClient, meter: _Meter, channel: str, timeout: float | None) -> None:
        self._client = client
        self._meter = meter
        self._channel = channel
        self._timeout = timeout
        self._pending: set[asyncio.Future[SendResult]] = set()
        self._failure: BaseException | None = None
        self.last: SendResult | None = None

    async def put(self, data: str | bytes) -> None:
        size = len(data) if isinstance(data, bytes) else len(data.encode())
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                answer = self._client.send_nowait(data, channel=self._channel)
                break
            except RWTSendError as exc:
                if exc.code != "buffer-full" or not self._pending:
                    raise
                await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
        self._pending.add(answer)
        answer.add_done_callback(lambda done: self._answered(done, size))

    def _answered(self, answer: asyncio.Future[SendResult], size: int) -> None:
        self._pending.discard(answer)
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None:
            self._meter.add(size)
            self.last = answer.result()
        elif self._failure is None:
            self._failure = error

    async def finish(self) -> None:
        if self._pending:
            await asyncio.wait(set(self._pending))
        if self._failure is not None:
            raise self._failure


@cli.command(cls=_Command)
@click.argument("channel")
@click.argument("text", default="-")
@click.option("--raw", is_flag=True, help="Standard input is bytes: send chunks of it.")
@click.option("--chunk-size", type=int, help="Bytes of a chunk at most, with --raw; 65536 if not given.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the last result as JSON.")
@_connected
async def pub(
    make: Callable[[], RWTClient],
    timeout: float,
    channel: str,
    text: str,
    raw: bool,
    chunk_size: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Publish TEXT, or each line of standard input; ends when all is stored.

    \b
    Examples:
      rwt pub chat "hello"
      tail -f app.log | rwt pub logs
      rwt pub files --raw < photo.jpg
    """
    if chunk_size is not None and not 1 <= chunk_size <= 1_048_576:
        raise ValueError(f"chunk-size={chunk_size} cannot be used: give 1 to 1048576")
    if chunk_size is not None and not raw:
        raise ValueError(
            f"chunk-size={chunk_size} cannot be used without --raw: lines are messages as they are"
        )
    if text == "-" and sys.stdin is None:
        raise ValueError("standard input is closed: give TEXT, or open it")
    if raw and text != "-":
        raise ValueError("--raw reads standard input: leave TEXT away")
    source: AsyncIterator[str | bytes]
    if raw:
        source = _chunks(sys.stdin.buffer, chunk_size or _CHUNK)
    else:
        source = _one(text) if text != "-" else _lines(sys.stdin.buffer)
    client = make()
    client.create_channel(channel)
    await client.connect(timeout=timeout)
    meter = _Meter("published", None, quiet=quiet or text != "-")
    pipeline = _Pipeline(client, meter, channel, timeout)
    try:
        async for data in source:
            await pipeline.put(data)
        await pipeline.finish()
    finally:
        meter.finish()
        await client.disconnect(wait_for_pending=False)
    if as_json and pipeline.last is not None:
        last = pipeline.last
        click.echo(json.dumps({"channel": last.channel, "offset": last.offset, "messages": meter.messages}))


# --- sub -------------------------------------------------------------------------------------------------


def _printed(message: Message, *, as_json: bool) -> bytes:
    data = message.data
    if as_json:
        shown = data if not isinstance(data, bytes) else {"hex": data.hex()}
        meta = message.metadata
        row = {"data": shown, "channel": meta.channel, "offset": meta.offset, "sender": meta.sender}
        return json.dumps({**row, "timestamp": meta.timestamp}).encode() + b"\n"
    if isinstance(data, bytes):
        return data + b"\n"
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return text.encode(errors="backslashreplace") + b"\n"


@cli.command(cls=_Command)
@click.argument("channel")
@click.option("--raw", is_flag=True, help="Write the bytes of messages and nothing else.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each message.")
@click.option(
    "--history", type=int, default=0, show_default=True, help="Begin with so many earlier messages."
)
@click.option("--count", type=int, help="End after so many messages.")
@click.option("--bytes", "size", type=int, help="End after so many bytes.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_connected
async def sub(
    make: Callable[[], RWTClient],
    timeout: float,
    channel: str,
    raw: bool,
    as_json: bool,
    history: int,
    count: int | None,
    size: int | None,
    quiet: bool,
) -> None:
    """Print the messages of CHANNEL as they come; survives lost connections.

    \b
    Examples:
      rwt sub chat
      rwt sub files --raw --bytes 1048576 > photo.jpg
    """
    if raw and as_json:
        raise ValueError("--raw and --json exclude each other")
    for name, value in (("count", count), ("bytes", size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} cannot be used: give at least 1")
    if not 0 <= history <= MAX_HISTORY:
        raise ValueError(f"history={history} cannot be used: give 0 to {MAX_HISTORY}")
    if sys.stdout is None:
        raise ValueError("standard output is closed: open it")
    client = make()
    client.create_channel(channel)
    await client.connect(timeout=timeout)
    meter = _Meter("received", size, quiet=quiet or not raw)
    out, blocking = sys.stdout.buffer, _Blocking()
    try:
        stream = client.messages(channel, history=history)
        await client.open_channel(channel, timeout=timeout)
        click.echo(f"rwt: subscribed to {channel}", err=True)
        async for message in stream:
            if raw:
                data = (
                    message.data if isinstance(message.data, bytes) else _printed(message, as_json=False)[:-1]
                )
            else:
                data = _printed(message, as_json=as_json)
            # In a thread: a pipe that nobody reads must not stop the connection.
            await blocking.call(_put, out, data)
            meter.add(message.size)
            if (count is not None and meter.messages >= count) or (size is not None and meter.bytes >= size):
                break
    except BrokenPipeError:
        # Whoever read our output is gone; nothing may be flushed there at exit.
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115, ASYNC230
    finally:
        meter.finish()
        await client.disconnect(wait_for_pending=False)


def _put(out: BinaryIO, data: bytes) -> None:
    out.write(data)
    out.flush()


# --- status ----------------------------------------------------------------------------------------------


@cli.command(cls=_Command)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable answer.")
@_connected
async def status(make: Callable[[], RWTClient], timeout: float, as_json: bool) -> None:
    """Connect, measure the latency, and say what the server granted.

    \b
    Example:
      rwt status --url https://example.org
    """
    client = make()
    connection = await client.connect(timeout=timeout)
    try:
        await client.ping(timeout=timeout)
        now = client.get_status()
    finally:
        await client.disconnect()
    rotation = connection.rotation
    facts: dict[str, Any] = {
        "state": now.state,
        "latency_ms": None if now.latency is None else round(now.latency * 1000, 3),
        "epoch": now.epoch,
        "connection_id": now.connection_id,
        "rotation_interval": rotation.interval if rotation else None,
        "rotation_pattern": rotation.pattern if rotation else None,
        "renew_threshold": rotation.renew_threshold if rotation else None,
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):18} {'-' if value is None else value}")


# --- bench -----------------------------------------------------------------------------------------------


@cli.command(cls=_Command)
@click.option("--messages", type=int, default=20_000, show_default=True, help="Messages to publish.")
@click.option("--size", type=int, default=128, show_default=True, help="Bytes of each.")
@click.option("--window", type=int, default=256, show_default=True, help="Messages under way at once.")
@click.option("--channel", default="rwt.bench", show_default=True, help="Channel to use.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable answer.")
@_connected
async def bench(
    make: Callable[[], RWTClient],
    timeout: float,
    messages: int,
    size: int,
    window: int,
    channel: str,
    as_json: bool,
) -> None:
    """Measure a running server: one publisher, one subscriber, messages stored and delivered.

    \b
    Example:
      rwt bench --messages 50000 --size 1024
    """
    for name, value, most in (
        ("messages", messages, 10_000_000),
        ("size", size, 1_048_576),
        ("window", window, 1_024),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name}={value} cannot be used: give 1 to {most}")
    publisher, subscriber = make(), make()
    publisher.create_channel(channel)
    async with contextlib.AsyncExitStack() as stack:
        for client in (publisher, subscriber):
            await client.connect(timeout=timeout)
            stack.push_async_callback(client.disconnect, wait_for_pending=False)
        stream = subscriber.messages(channel)
        await subscriber.open_channel(channel, timeout=timeout)
        await publisher.open_channel(channel, timeout=timeout)
        sent: dict[int, float] = {}
        acks: list[float] = []
        transit: list[float] = []
        room = asyncio.Semaphore(window)
        began = time.perf_counter()

        async def receive() -> None:
            for _ in range(messages):
                message = await anext(stream)
                transit.append(time.perf_counter() - sent.pop(int.from_bytes(message.data[:8], "big")))

        def answered(at: float, answer: asyncio.Future[SendResult]) -> None:
            room.release()
            if not answer.cancelled() and answer.exception() is None:
                acks.append(time.perf_counter() - at)

        receiving = asyncio.ensure_future(receive())
        last: asyncio.Future[SendResult] | None = None
        for number in range(messages):
            await room.acquire()
            at = sent[number] = time.perf_counter()
            last = publisher.send_nowait(number.to_bytes(8, "big").ljust(size, b"."), channel=channel)
            last.add_done_callback(partial(answered, at))
        if last is not None:
            await last
        stored = time.perf_counter() - began
        await receiving
        delivered = time.perf_counter() - began
    facts = {
        "messages": messages,
        "size": size,
        "window": window,
        "stored_per_s": round(messages / stored),
        "delivered_per_s": round(messages / delivered),
        "ack_p50_ms": _quantile(acks, 0.5),
        "ack_p99_ms": _quantile(acks, 0.99),
        "delivery_p50_ms": _quantile(transit, 0.5),
        "delivery_p99_ms": _quantile(transit, 0.99),
    }
    if as_json:
        click.echo(json.dumps(facts))
        return
    table = Table(title=f"{messages} messages of {size} bytes, {window} under way")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, figure in list(facts.items())[3:]:
        table.add_row(name.replace("_", " "), str(figure))
    Console().print(table)


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000, 3)


def main() -> None:
    """Entry point of `rwt`: usage errors and values that cannot be used exit with status 2."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(2)
    except click.ClickException as exc:
        click.echo(f"rwt: {' '.join(exc.format_message().split())}", err=True)
        sys.exit(2)
    # Without standalone mode click returns the code of an Exit.
    status = code if isinstance(code, int) else 0
    if status == _INTERRUPTED:
        # A thread may hold the lock of a pipe that nobody reads or writes: a usual exit would wait for it.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
