"""Events: plain values that compare by content, with safe defaults."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args

import pytest

from rwt_protocol import events
from rwt_protocol.codes import Level, Warning
from rwt_protocol.events import Event
from rwt_protocol.session import Advance

EVENTS: tuple[type, ...] = get_args(Event)
RECORDS = tuple(cls for cls in EVENTS if is_dataclass(cls))


def test_every_class_of_the_module_is_an_event() -> None:
    own = {value for value in vars(events).values() if getattr(value, "__module__", "") == events.__name__}
    assert own == set(EVENTS)
    assert set(EVENTS) - set(RECORDS) == {events.Published, events.Delivered}


@pytest.mark.parametrize("cls", RECORDS, ids=lambda cls: cls.__name__)
def test_event_is_a_frozen_value(cls: type) -> None:
    assert is_dataclass(cls)
    rows = fields(cls)
    one, same = cls(*range(len(rows))), cls(*range(len(rows)))
    assert one == same and one != cls(*range(1, len(rows) + 1))
    assert not hasattr(one, "__dict__")
    with pytest.raises(FrozenInstanceError):
        setattr(one, rows[0].name, 99)


def test_hot_path_events_are_tuples() -> None:
    assert events.Published(1, Level.CLEAR, []) == (1, Level.CLEAR, [])
    assert events.Delivered(2, Level.HIGH, []) == (2, Level.HIGH, [])


def test_an_end_is_ours_and_unsealed_unless_said() -> None:
    end = events.Terminated(4400, "why")
    assert (end.by_peer, end.sealed, end.retry_after_ms, end.keep) == (False, False, None, False)


def test_no_event_prints_a_token() -> None:
    token = bytes(range(32))
    wanted = events.AdvanceWanted(Advance(bytes(16), bytes(8), 1, token, 2, 1000))
    assert repr(token) not in repr(wanted)
    assert str(events.Warned(Warning.TOKEN_REUSE, "x").code) == "token-reuse"
