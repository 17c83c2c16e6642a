"""Who listens to which event."""

from __future__ import annotations

from typing import Any

import pytest

from rwt_client.subscriptions import EVENTS, Subscriptions


def first(*_: Any) -> None: ...


def second(*_: Any) -> None: ...


def third(*_: Any) -> None: ...


@pytest.fixture
def subscriptions() -> Subscriptions:
    return Subscriptions()


@pytest.mark.parametrize("event", [*sorted(EVENTS), "message:x", "message:a:b", "message:grüße"])
def test_events_that_exist(subscriptions: Subscriptions, event: str) -> None:
    assert not subscriptions.has(event)
    subscriptions.add(event, first)
    assert subscriptions.has(event) and subscriptions.matching(event, None) == [first]


@pytest.mark.parametrize("event", ["", "mesage", "message:", "Message", "token_rotate", "message :x"])
def test_events_that_do_not_exist(subscriptions: Subscriptions, event: str) -> None:
    with pytest.raises(ValueError) as refused:
        subscriptions.add(event, first)
    text = str(refused.value)
    assert repr(event) in text and "message:CHANNEL" in text and "token-rotate" in text
    assert not subscriptions.has(event)


def test_handlers_come_in_the_order_in_which_they_were_added(subscriptions: Subscriptions) -> None:
    for handler in (second, first, third, first):
        subscriptions.add("connect", handler)
    assert subscriptions.matching("connect", 0) == [second, first, third, first]
    assert subscriptions.matching("disconnect", 0) == []


def test_once_is_one_call(subscriptions: Subscriptions) -> None:
    subscriptions.add("connect", first, once=True)
    subscriptions.add("connect", second)
    assert subscriptions.matching("connect", 0) == [first, second]
    assert subscriptions.matching("connect", 0) == [second]


def test_once_waits_for_what_its_filter_passes(subscriptions: Subscriptions) -> None:
    subscriptions.add("message", first, once=True, filter=lambda data: data == "good")
    assert [subscriptions.matching("message", data) for data in ("bad", "good", "good")] == [[], [first], []]
    assert not subscriptions.has("message")


def test_filters_see_the_first_argument(subscriptions: Subscriptions) -> None:
    subscriptions.add("send", first, filter=lambda data: data > 1)
    subscriptions.add("send", second, filter=lambda data: data < 3)
    assert [subscriptions.matching("send", data) for data in (1, 2, 3)] == [
        [second],
        [first, second],
        [first],
    ]


def test_a_filter_that_raises_takes_no_once_handler_with_it(subscriptions: Subscriptions) -> None:
    subscriptions.add("send", first, once=True)
    subscriptions.add("send", second, filter=lambda data: data["no"])
    with pytest.raises(KeyError):
        subscriptions.matching("send", {})
    assert subscriptions.matching("send", {"no": 1}) == [first, second]


def test_off_removes_one_handler_however_often_it_was_added(subscriptions: Subscriptions) -> None:
    for handler in (first, second, first):
        subscriptions.add("gap", handler)
    subscriptions.remove("gap", first)
    assert subscriptions.matching("gap", 0) == [second]
    subscriptions.remove("gap", third)
    assert subscriptions.has("gap")
    subscriptions.remove("gap", second)
    assert not subscriptions.has("gap")


def test_off_removes_bound_methods(subscriptions: Subscriptions) -> None:
    class Listener:
        def hear(self, *_: Any) -> None: ...

    listener = Listener()
    subscriptions.add("gap", listener.hear)
    subscriptions.remove("gap", listener.hear)
    assert not subscriptions.has("gap")


def test_off_without_a_handler_and_off_all(subscriptions: Subscriptions) -> None:
    for event in ("gap", "resume", "message:x"):
        subscriptions.add(event, first)
        subscriptions.add(event, second)
    subscriptions.remove("gap")
    subscriptions.remove("error")
    assert [subscriptions.has(event) for event in ("gap", "resume", "message:x")] == [False, True, True]
    subscriptions.clear()
    assert not any(map(subscriptions.has, ("gap", "resume", "message:x")))
