"""C7: nobody is accused falsely by lost connections, races or late frames; and every rule of it is needed.

A share of the seeded fuzz of `tests.rotation_fuzz`; the seven mutations, each of which breaks one rule, are the
control.
"""

from __future__ import annotations

import pytest

from tests.rotation_fuzz import MUTATIONS, first_failure, main, run

SEED = 7


def test_share_of_the_fuzz() -> None:
    counts = run(300, SEED)
    assert not counts.failures, f"seed {SEED}: {counts.failures[:3]}"
    assert counts.false_revocations == counts.stuck == counts.other == 0
    assert counts.rotations > 1_000 and counts.breaks > 2_000 and counts.late_frames > 1_000
    assert counts.lost_races > 100 and counts.thefts > 30 and counts.messages > 3_000


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_control_fails_without_the_rule(name: str) -> None:
    counts = first_failure(name, 400, SEED)
    assert counts.failures, f"seed {SEED}: {name} survived {counts.schedules} schedules"


def test_there_are_seven_rules_to_break() -> None:
    assert len(MUTATIONS) == 7


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schedules", "5", "--seed", "3"]) == 0
    assert "false revocations" in capsys.readouterr().out
    assert main(["--schedules", "20", "--mutation", "newest-only"]) == 1
    assert main(["--mutations", "--schedules", "100"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in MUTATIONS) and "survived" not in printed
