"""C14: from level high on the length shows one of 146 sizes up to 65,536 bytes, with at most 12.5 % added.

Attacker: observes lengths. The control is level standard, where every length shows.
"""

from __future__ import annotations

import pytest

from rwt_protocol import codec
from rwt_protocol.codes import Level
from rwt_protocol.connection import Connection, pack_messages
from rwt_protocol.frames import Publication
from rwt_protocol.record import pad, padme, unpad
from tests.pair import Pair

SIZES = range(1, 65_537)
OVERHEAD = 32
PADDED = {padme(size + 1) for size in SIZES}


def seen(pair: Pair, level: Level, lengths: range) -> set[int]:
    """Frame lengths, less header and tag, of messages with bodies of these lengths."""
    sender: Connection = pair.client
    found: set[int] = set()
    for length in lengths:
        messages = [codec.encode_publication(Publication(bytes(length)))]
        for flags, payload, _ in pack_messages(messages, level, 10):
            sender.send_message(flags, 5, payload)
        found |= {len(frame) - OVERHEAD for frame in sender.bytes_to_send()}
    return found


def test_there_are_146_sizes() -> None:
    assert len(PADDED) == 146


def test_overhead_is_bounded() -> None:
    for size in SIZES:
        added = padme(size + 1) - size
        assert added > 0 and (size < 57 or added * 8 <= size), size
        assert size > 63 or size + added == 64


@pytest.mark.parametrize(
    ("before", "after"),
    [(0, 64), (63, 64), (64, 72), (100, 104), (1_000, 1_024), (65_535, 65_536), (65_536, 67_584)],
    ids=str,
)
def test_examples(before: int, after: int) -> None:
    padded = pad(bytes(before))
    assert len(padded) == after
    assert unpad(padded) == bytes(before)


@pytest.mark.parametrize("level", [Level.HIGH, Level.MAXIMUM], ids=lambda level: level.name)
def test_frames_show_a_padded_size_only(level: Level) -> None:
    shown = seen(Pair(), level, range(0, 4_000, 7))
    assert shown <= PADDED and len(shown) < 82


@pytest.mark.parametrize("level", [Level.CLEAR, Level.STANDARD], ids=lambda level: level.name)
def test_control_frames_show_every_length(level: Level) -> None:
    lengths = range(0, 4_000, 7)
    shown = seen(Pair(), level, lengths)
    assert len(shown) == len(lengths)
    assert not shown <= PADDED


def test_messages_of_one_size_class_look_alike() -> None:
    assert seen(Pair(), Level.HIGH, range(930, 958)) == {960}
    assert len(seen(Pair(), Level.STANDARD, range(930, 958))) == 28


def test_batches_are_padded_as_a_whole() -> None:
    messages = [codec.encode_publication(Publication(bytes(length), length)) for length in range(1, 40)]
    ((flags, payload, count),) = pack_messages(messages, Level.HIGH, 64)
    assert (flags, count) == (19, 39)
    assert len(payload) == padme(len(payload))
    assert codec.split_batch(unpad(payload), 64) == messages
