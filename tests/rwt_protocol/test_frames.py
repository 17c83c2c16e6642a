"""Frames: plain values that compare by content, cannot change, and have the defaults of section 5."""

from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args

import pytest

from rwt_protocol import frames
from rwt_protocol.codes import FrameType
from rwt_protocol.frames import Control, Entry, Position, Publication

CONTROLS: tuple[type, ...] = get_args(Control)


def test_one_class_for_each_control_frame() -> None:
    names = {"GAP": "GapNotice", "SUBOK": "SubOk"}
    expected = {names.get(kind.name, kind.name.title()) for kind in FrameType if kind is not FrameType.MSG}
    assert {cls.__name__ for cls in CONTROLS} == expected
    assert len(CONTROLS) == len(expected)


@pytest.mark.parametrize("cls", CONTROLS, ids=lambda cls: cls.__name__)
def test_control_is_a_frozen_value(cls: type) -> None:
    assert is_dataclass(cls)
    rows = fields(cls)
    one, same = cls(*range(len(rows))), cls(*range(len(rows)))
    other = cls(*range(1, len(rows) + 1))
    assert one == same and hash(one) == hash(same) and one != other
    assert not hasattr(one, "__dict__")
    with pytest.raises(FrozenInstanceError):
        setattr(one, rows[0].name, 99)


@pytest.mark.parametrize("cls", CONTROLS, ids=lambda cls: cls.__name__)
def test_what_is_optional_is_none_by_default(cls: type) -> None:
    assert is_dataclass(cls)
    assert all(field.default is None or field.default is field.default_factory for field in fields(cls))


def test_frames_with_the_same_fields_differ_by_class() -> None:
    assert len({frames.Ping(1), frames.Pong(1)}) == 2
    assert len({frames.Rotate(1, b"x"), frames.Reply(1, b"x")}) == 2


def test_defaults_of_messages() -> None:
    assert Publication(b"x") == (b"x", None, 0, 1, None, None, False)
    assert Entry(b"x", 1, bytes(8), 2) == (b"x", 1, bytes(8), 2, 0, 1, None, None, None)


def test_rows_are_tuples_in_wire_order() -> None:
    place = Position(bytes(8), 0, b"")
    assert place == (bytes(8), 0, b"")
    assert frames.Gap._fields == ("reason", "log", "first", "last", "next")
    assert frames.Signature._fields == ("key_id", "value")
    assert frames.RotationTerms._fields == ("interval_ms", "pattern", "threshold")
    assert frames.AckRun._fields == ("first_mid", "number", "stream", "log", "first_offset", "stored_ms")
