"""Code points: they are those of the registries in section 13, and close codes mean what section 12.1 says."""

import re
from enum import IntEnum
from pathlib import Path

import pytest

from rwt_protocol import codes
from rwt_protocol.codes import AfterClose, FrameType, after_close

SPEC = (Path(__file__).parents[2] / "conformance/spec/rwt.md").read_text(encoding="utf-8")


def table(section: str) -> list[list[str]]:
    """Rows of the first table of one section, without its head."""
    text = SPEC.split(f"### {section} ", 1)[1].split("\n#", 1)[0]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    return rows[2:]


def registry(section: str, *, reserved: bool = False) -> dict[str, int]:
    """Names and values in use."""
    return {
        name: int(value) for value, name, meaning in table(section) if (meaning == "reserved") is reserved
    }


@pytest.mark.parametrize(
    ("section", "enum"),
    [
        pytest.param("13.1", codes.FrameType, id="frame types"),
        pytest.param("13.2", codes.Flag, id="flags"),
        pytest.param("13.3", codes.Suite, id="suites"),
        pytest.param("13.4", codes.SignatureAlgorithm, id="signature algorithms"),
        pytest.param("13.5", codes.CloseCode, id="close codes"),
        pytest.param("13.7", codes.GapReason, id="gap reasons"),
        pytest.param("13.8", codes.RequestReason, id="request reasons"),
        pytest.param("13.9", codes.Form, id="forms"),
        pytest.param("13.10", codes.Priority, id="priorities"),
        pytest.param("13.11", codes.Use, id="uses"),
        pytest.param("13.12", codes.Policy, id="policies"),
    ],
)
def test_enum_is_its_registry(section: str, enum: type[IntEnum]) -> None:
    assert {member.name: member.value for member in enum} == registry(section)


def test_error_codes_include_the_reserved_ones() -> None:
    expected = registry("13.6") | registry("13.6", reserved=True)
    assert {member.name: member.value for member in codes.ErrorCode} == expected


def test_patterns_and_warnings() -> None:
    assert {pattern.value for pattern in codes.Pattern} == {row[0].strip("`") for row in table("13.15")}
    assert {warning.value for warning in codes.Warning} == {row[0] for row in table("12.4")}


def test_reserved_frame_types_are_not_in_use() -> None:
    reserved = registry("13.1", reserved=True)
    assert set(reserved) == {"KEY", "CAST", "CARD", "SKEY", "SKREQ", "LEFT"}
    assert not set(reserved.values()) & {int(kind) for kind in FrameType}


@pytest.mark.parametrize("kind", list(FrameType), ids=lambda kind: kind.name)
def test_direction(kind: FrameType) -> None:
    meaning = {row[1]: row[2] for row in table("13.1")}[kind.name]
    assert (kind in codes.CLIENT_TYPES) is meaning.startswith(("c>s", "both"))
    assert (kind in codes.SERVER_TYPES) is meaning.startswith(("s>c", "both"))


def test_extension_types() -> None:
    assert (codes.EXTENSION_TYPES[0], codes.EXTENSION_TYPES[-1]) == (64, 127)
    assert (codes.VERSION, codes.SUBPROTOCOL) == (2, "rwt.v2")


def test_levels_are_ordered_by_strength() -> None:
    assert [level.name for level in sorted(codes.Level)] == ["CLEAR", "STANDARD", "HIGH", "MAXIMUM"]


RESUME = (
    1000,
    1001,
    1004,
    1005,
    1006,
    *range(1011, 1016),
    3000,
    4000,
    4402,
    4408,
    4409,
    4429,
    4500,
    4503,
    4999,
)
NEW_TICKET = (4401, 4410)
STOP = (1002, 1003, 1007, 1008, 1009, 1010, 4403, 4406, 4413)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        *(pytest.param(code, AfterClose.RESUME, id=f"{code} resume") for code in RESUME),
        *(pytest.param(code, AfterClose.NEW_TICKET, id=f"{code} new ticket") for code in NEW_TICKET),
        *(pytest.param(code, AfterClose.STOP, id=f"{code} stop") for code in STOP),
    ],
)
def test_after_close(code: int, expected: AfterClose) -> None:
    assert after_close(code) is expected
    assert after_close(code, protocol_errors=5) is expected


def test_the_second_protocol_error_stops() -> None:
    assert after_close(4400) is AfterClose.RESUME
    assert after_close(4400, protocol_errors=1) is AfterClose.STOP
    assert after_close(4400, protocol_errors=2) is AfterClose.STOP
