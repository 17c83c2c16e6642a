"""Each module of rwt_protocol has one test module, and that alone covers all of its branches.

Run from the root of the repository: python tests/maxi_cov.py [module ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rwt_protocol"
TESTS = ROOT / "tests" / "rwt_protocol"


def unpaired() -> list[str]:
    """Return what breaks the pairing of rwt_protocol/X.py and tests/rwt_protocol/test_X.py."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py")}
    return [
        *(
            f"rwt_protocol/{name}.py has no tests/rwt_protocol/test_{name}.py"
            for name in sorted(modules - tests)
        ),
        *(
            f"tests/rwt_protocol/test_{name}.py has no rwt_protocol/{name}.py"
            for name in sorted(tests - modules)
        ),
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-B", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def measure(name: str, folder: Path) -> tuple[bool, str]:
    """Run one test module alone; return whether it passes and covers its module, and one line about it."""
    data, report = folder / f"{name}.data", folder / f"{name}.json"
    tests = run(
        *("-m", "coverage", "run", "--branch", "--source=rwt_protocol", f"--data-file={data}"),
        *("-m", "pytest", "-p", "no:cacheprovider", "-o", "asyncio_default_fixture_loop_scope=function"),
        f"tests/rwt_protocol/test_{name}.py",
    )
    if tests.returncode:
        return False, f"{name}: its tests fail\n{tests.stdout}"
    only = f"--include=rwt_protocol/{name}.py"
    written = run("-m", "coverage", "json", only, f"--data-file={data}", "-o", str(report))
    if written.returncode:
        return False, f"{name}: no report\n{written.stdout}"
    found = json.loads(report.read_text(encoding="utf-8"))["files"][f"rwt_protocol/{name}.py"]
    lines, branches = found["missing_lines"], found.get("missing_branches", [])
    percent = found["summary"]["percent_covered"]
    if lines or branches:
        arcs = ", ".join(f"{start}->{end}" for start, end in branches)
        return False, f"{name}: {percent:.1f} %, lines {lines} and branches [{arcs}] are missing"
    return True, f"{name}: {percent:.0f} % of {found['summary']['num_statements']} statements"


def main(names: Iterable[str]) -> int:
    wrong = unpaired()
    for line in wrong:
        print(line)
    chosen = list(names) or sorted(path.stem.removeprefix("test_") for path in TESTS.glob("test_*.py"))
    with TemporaryDirectory() as folder:
        for name in chosen:
            good, line = measure(name, Path(folder))
            print(line, flush=True)
            if not good:
                wrong.append(name)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
