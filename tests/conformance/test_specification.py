"""The specification against itself and against the vectors: requirement ids, versions, CDDL."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pycddl import Schema, ValidationError

from rwt_protocol.codec import WIRE, encode_control
from rwt_protocol.codes import SUBPROTOCOL, FrameType
from rwt_protocol.frames import Bye

ROOT = Path(__file__).parents[2] / "conformance"
TEXT = (ROOT / "spec" / "rwt.md").read_text()
CDDL = (ROOT / "spec" / "rwt.cddl").read_text()
VECTORS: list[dict[str, Any]] = json.loads((ROOT / "vectors" / "codec.json").read_text())
RULES = {kind: kind.name.lower().replace("gap", "gap-frame") for kind in WIRE}


def paragraphs() -> list[str]:
    body = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    return [part for part in re.split(r"\n\s*\n|\n(?=\d\d?\. |- |\| )", body) if part.strip()]


def test_every_requirement_has_an_id_of_its_own() -> None:
    ids = re.findall(r"\{#(R-\d+-\d+)\}", TEXT)
    assert len(ids) > 100 and len(set(ids)) == len(ids)
    lacking = [
        part
        for part in paragraphs()
        if re.search(r"\b(MUST|SHOULD)\b", part) and "{#R-" not in part and "BCP 14" not in part
    ]
    assert not lacking, lacking[:3]


def test_the_specification_names_its_version_and_subprotocol() -> None:
    (version,) = {vector["spec"].split("/")[0] for vector in VECTORS}
    assert version in TEXT and f"`{SUBPROTOCOL}`" in TEXT


@pytest.mark.parametrize("kind", list(WIRE), ids=lambda kind: kind.name)
def test_good_bodies_fit_the_cddl_and_others_do_not(kind: FrameType) -> None:
    schema = Schema(f"start = {RULES[kind]}\n{CDDL}")
    chosen = [v for v in VECTORS if v["expect"] == "success" and v.get("type") == kind]
    assert chosen
    for vector in chosen:
        schema.validate_cbor(bytes.fromhex(vector["hex"]))
    with pytest.raises(ValidationError):
        schema.validate_cbor(b"\xa1\x01\x61x" if kind is not FrameType.WARN else b"\xa1\x01\x01")


def test_control_the_cddl_refuses_a_close_code_out_of_range() -> None:
    with pytest.raises(ValidationError):
        Schema(f"start = bye\n{CDDL}").validate_cbor(encode_control(Bye(5_000)))
