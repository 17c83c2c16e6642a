"""Handlers, sync and async; one that fails becomes an `error` event and stops nothing."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from rwt_client.emitter import Emitter


@pytest.fixture
def emitter() -> Emitter:
    return Emitter()


def failing(exc: Exception) -> Any:
    def handler(*_: Any) -> None:
        raise exc

    return handler


def failing_later(exc: Exception) -> Any:
    async def handler(*_: Any) -> None:
        await asyncio.sleep(0)
        raise exc

    return handler


async def turns(number: int = 5) -> None:
    """Let everything that is ready run."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_emit_calls_now_and_leaves_the_rest_to_a_task(emitter: Emitter) -> None:
    seen: list[Any] = []

    async def later(*args: Any) -> None:
        await asyncio.sleep(0)
        seen.append(("later", *args))

    emitter.subscriptions.add("disconnect", later)
    emitter.subscriptions.add("disconnect", lambda *args: seen.append(("now", *args)))
    emitter.emit("disconnect", 1006, "cut")
    assert seen == [("now", 1006, "cut")]
    await turns()
    assert seen == [("now", 1006, "cut"), ("later", 1006, "cut")]


async def test_call_waits_for_each_in_turn(emitter: Emitter) -> None:
    seen: list[str] = []

    def named(name: str, rounds: int) -> Any:
        async def handler(*_: Any) -> None:
            seen.append(f"{name} begins")
            await turns(rounds)
            seen.append(f"{name} ends")

        return handler

    emitter.subscriptions.add("message", named("a", 3))
    emitter.subscriptions.add("message", lambda *_: seen.append("b"))
    emitter.subscriptions.add("message", named("c", 0))
    await emitter.call("message", 1, 2)
    assert seen == ["a begins", "a ends", "b", "c begins", "c ends"]


@pytest.mark.parametrize("how", ["emit", "call"])
@pytest.mark.parametrize("make", [failing, failing_later], ids=["sync", "async"])
async def test_a_failure_is_an_error_event(emitter: Emitter, how: str, make: Any) -> None:
    failure, errors, seen = KeyError("boom"), list[Exception](), list[int]()
    emitter.subscriptions.add("error", errors.append)
    emitter.subscriptions.add("send", make(failure))
    emitter.subscriptions.add("send", lambda data, _: seen.append(data))
    if how == "emit":
        emitter.emit("send", 1, None)
    else:
        await emitter.call("send", 1, None)
    await turns()
    assert errors == [failure] and seen == [1]


@pytest.mark.parametrize("how", ["emit", "call"])
async def test_a_filter_that_fails_is_an_error_event(emitter: Emitter, how: str) -> None:
    errors: list[Exception] = []
    emitter.subscriptions.add("error", errors.append)
    emitter.subscriptions.add("send", lambda *_: None, filter=lambda data: data["missing"])
    if how == "emit":
        emitter.emit("send", {}, None)
    else:
        await emitter.call("send", {}, None)
    assert [type(error) for error in errors] == [KeyError]


@pytest.mark.parametrize("make", [failing, failing_later], ids=["sync", "async"])
async def test_an_error_handler_that_fails_is_logged_once(
    emitter: Emitter, caplog: pytest.LogCaptureFixture, make: Any
) -> None:
    emitter.subscriptions.add("error", make(KeyError("boom")))
    with caplog.at_level(logging.ERROR, "rwt_client"):
        emitter.emit("error", ValueError("first"))
        await turns()
    (record,) = caplog.records
    assert record.exc_info is not None and isinstance(record.exc_info[1], KeyError)


async def test_an_error_that_nobody_hears_is_logged(
    emitter: Emitter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "rwt_client"):
        emitter.emit("error", ValueError("unheard"))
    assert [record.getMessage() for record in caplog.records] == ["unheard"]


async def test_stop_cancels_what_handlers_left(emitter: Emitter) -> None:
    ended: list[str] = []

    async def forever(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    before = asyncio.all_tasks()
    emitter.subscriptions.add("connect", forever)
    emitter.emit("connect", None)
    await turns(1)
    assert len(asyncio.all_tasks() - before) == 1
    await emitter.stop()
    assert ended == ["cancelled"] and asyncio.all_tasks() == before


async def test_a_handler_may_stop_the_emitter(emitter: Emitter) -> None:
    stopped = asyncio.Event()

    async def stop(*_: Any) -> None:
        await emitter.stop()
        stopped.set()

    emitter.subscriptions.add("connect", stop)
    emitter.emit("connect", None)
    async with asyncio.timeout(2):
        await stopped.wait()
    assert stopped.is_set()


async def test_a_handler_may_remove_itself_and_others(emitter: Emitter) -> None:
    seen: list[str] = []

    def first(*_: Any) -> None:
        seen.append("first")
        emitter.subscriptions.clear()

    emitter.subscriptions.add("connect", first)
    emitter.subscriptions.add("connect", lambda *_: seen.append("second"))
    emitter.emit("connect", None)
    emitter.emit("connect", None)
    assert seen == ["first", "second"]
