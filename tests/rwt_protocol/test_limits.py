"""Limits: every constant is that of section 13.14, and the derived ones fit together."""

import pytest

from rwt_protocol import limits
from tests.rwt_protocol.test_codes import table

SPECIFIED = {name: int(value) for value, name, _ in table("13.14")}
OURS = {name: value for name, value in vars(limits).items() if name.isupper()}
IMPLEMENTATION = {"COMPRESS_LEVEL"}


def test_the_tables_were_found() -> None:
    assert len(SPECIFIED) >= 50 and len(OURS) >= 40


@pytest.mark.parametrize("name", sorted(OURS.keys() - IMPLEMENTATION))
def test_constant_is_specified(name: str) -> None:
    assert OURS[name] == SPECIFIED[name]


def test_derived_values() -> None:
    assert limits.MIN_FRAME == limits.HEADER_SIZE + limits.TAG_SIZE
    assert limits.MIN_CLEAR_FRAME == limits.HEADER_SIZE + 1
    assert limits.MAX_OFFERED_IDS == limits.MAX_CANDIDATES + limits.MAX_UNFINISHED
    assert limits.STOP_FRAMES == 2 * limits.REKEY_FRAMES
    assert limits.STOP_BYTES == 2 * limits.REKEY_BYTES
    assert SPECIFIED["MAX_FRAME_CEILING"] >= limits.MAX_MESSAGE + limits.FRAME_OVERHEAD
    assert limits.MIN_INTERVAL_MS <= limits.DEFAULT_INTERVAL_MS <= limits.MAX_INTERVAL_MS
    assert limits.MIN_THRESHOLD <= limits.DEFAULT_THRESHOLD <= limits.MAX_THRESHOLD
