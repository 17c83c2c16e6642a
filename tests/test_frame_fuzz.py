"""A share of the frame fuzz of `tests.frame_fuzz`, and proof that it notices what it looks for."""

from __future__ import annotations

import pytest

from rwt_protocol import codec
from rwt_protocol.connection import Connection, State
from rwt_protocol.frames import Control, Ping
from tests.frame_fuzz import LIVE, Fuzz, main

SEED = 5


def test_share() -> None:
    fuzz = Fuzz(SEED)
    assert {target.end.state for target in fuzz.targets} == LIVE
    counts = fuzz.run(20_000)
    assert not counts.failures, f"seed {SEED}: {counts.failures[:3]}"
    assert counts.frames == 20_000 and counts.slowest_ms < 1_000
    assert counts.accepted > 1_000 and counts.decoded > 4_000 and counts.refused > 4_000
    assert {4400, 4401, 4406, 4413} <= set(counts.closed)


def test_control_a_connection_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Connection.receive

    def receive(self: Connection, data: bytes, now: float) -> None:
        if len(data) == 16 + 16:
            raise ValueError("a bug")
        genuine(self, data, now)

    monkeypatch.setattr(Connection, "receive", receive)
    assert any("a bug" in line for line in Fuzz(SEED).run(2_000).failures)


def test_control_a_connection_that_ends_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = Connection._terminate

    def terminate(self: Connection, event: object) -> None:
        genuine(self, event)  # type: ignore[arg-type]
        self.state = State.OPEN

    monkeypatch.setattr(Connection, "_terminate", terminate)
    assert any("endings" in line for line in Fuzz(SEED).run(200).failures)


def test_control_a_second_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = codec.encode_control
    fuzz = Fuzz(SEED)

    def encode(frame: Control) -> bytes:
        return genuine(Ping(0)) if isinstance(frame, Ping) else genuine(frame)

    monkeypatch.setattr(codec, "encode_control", encode)
    assert any("encodes to" in line for line in fuzz.run(1_000).failures)


def test_the_same_seed_gives_the_same_run() -> None:
    one, other = (Fuzz(SEED).run(300) for _ in range(2))
    assert one.closed == other.closed and one.accepted == other.accepted


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--frames", "200", "--seed", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["frames", "200"] for line in printed)
    assert any(line.startswith("seconds") for line in printed)
