"""The README: its first screen says what it must, its client runs as printed, its commands and files exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from rwt_client.cli import cli as client_cli
from rwt_client.dragonfire import DEFAULT_URL
from rwt_server.cli import cli as server_cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/threat-model.md"]
SCREEN = 45, 100
"""Lines and columns of one screen."""

POINTS = {
    "adds": r"\*\*What RWT adds to TLS\*\*\n\n(- .+\n){3,}",
    "does not add": r"\*\*What it does not\*\*\n\n(- .+\n){3,}",
    "exchange": r"Every rotation mixes a fresh Diffie-Hellman exchange into the session\.",
    "ratio": r"The golden ratio decides when,\snever what\.",
    "demo": r"^make demo\b",
    "test": r"^make test\b",
    "client": r"^```python\n(.+\n)+?```$",
}
NEVER = ["exactly-once", "exactly once", "100 %", "100%", "guaranteed delivery"]


def missing_points(page: str) -> list[str]:
    """Return what the first screen of a page does not show."""
    lines = page.splitlines()[: SCREEN[0]]
    wide = [f"line {number} is too wide" for number, line in enumerate(lines, 1) if len(line) > SCREEN[1]]
    screen = "\n".join(lines)
    return wide + [name for name, point in POINTS.items() if not re.search(point, screen, re.MULTILINE)]


def block(page: str) -> str:
    """Return the first block of Python in a page."""
    found = re.search(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def commands(page: str) -> list[str]:
    """Return the code of a page: lines of fenced shell blocks, and code inside the text."""
    fenced = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [*"".join(fenced).splitlines(), *re.findall(r"`([^`\n]+)`", text)]


def targets(page: str) -> set[str]:
    """Return the targets X of every `make X` in a page."""
    found = (re.match(r"make (?:\w+=\S+ )*([a-z]\w*)", command) for command in commands(page))
    return {match[1] for match in found if match}


def options(command: click.Command) -> set[str]:
    """Return all options of a command and of those below it."""
    below = command.commands.values() if isinstance(command, click.Group) else []
    own = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    return own.union(*(options(one) for one in below))


def used_options(page: str) -> set[str]:
    return {name for command in commands(page) for name in re.findall(r"(?<!\S)--[a-z-]+", command)}


# --- the first screen ------------------------------------------------------------------------------------


def test_first_screen() -> None:
    assert not missing_points(README)


@pytest.mark.parametrize("point", POINTS)
def test_control_a_point_that_is_taken_out_is_missed(point: str) -> None:
    without = re.sub(POINTS[point], "", README, count=1, flags=re.MULTILINE)
    assert point in missing_points(without)


def test_control_a_point_below_the_screen_is_missed() -> None:
    assert set(missing_points("\n" * SCREEN[0] + README)) == set(POINTS)


@pytest.mark.parametrize("words", NEVER)
def test_promises_nothing_that_nobody_can_keep(words: str) -> None:
    assert words not in README.lower()


def test_promise_is_that_of_the_specification() -> None:
    spec = " ".join((ROOT / "conformance/spec/rwt.md").read_text(encoding="utf-8").split())
    page = " ".join(README.split())
    for part in (
        "a subscriber sees every acknowledged message of the channel once",
        "or that the log itself was lost and where it goes on, and why.",
    ):
        assert part in spec and part.replace("of the channel", "of a channel") in page


# --- what it names ---------------------------------------------------------------------------------------


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    assert {"demo", "test", "check", "bench", "run"} <= targets(README) <= known


def test_control_an_unknown_target_is_found() -> None:
    assert targets("`make coffee`\n\n```sh\nmake X=1 tea  # hot\n```\nmake them") == {"coffee", "tea"}


def test_test_command() -> None:
    section = README.partition("## How to test\n")[2]
    assert re.match(r"\n```sh\nmake test\n```\n", section)


def test_options_exist() -> None:
    used = used_options(README) - {"--help"}
    assert "--on-full" in used and not used - options(client_cli) - options(server_cli)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("https://")]
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]


def test_every_claim_names_its_test() -> None:
    page = (ROOT / "docs/threat-model.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| (C\d+) \|.*`(test_c\d+_\w+\.py)` \|$", page, re.MULTILINE)
    files = sorted(path.name for path in (ROOT / "tests/adversarial").glob("test_c*.py"))
    assert sorted(name for _, name in named) == files
    assert all(int(claim[1:]) == int(name[6:8]) for claim, name in named)


def test_every_module_has_a_place_in_the_design() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    modules = list((ROOT / "rwt_protocol").glob("[a-z]*.py"))
    assert len(modules) > 10
    assert not [path.name for path in modules if f"`{path.name}`" not in page]


def test_files_named_in_the_design_exist() -> None:
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*\w+\.(?:py|md|cddl))`", page))
    known = {str(path.relative_to(ROOT)) for path in ROOT.glob("[a-z]*/**/*.*")}
    assert len(named) > 40
    assert not [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in known)]


# --- the client ------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, **more}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=30)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server in a process of its own; yields its address and an API key."""
    data = ("--data-dir", str(tmp_path / "data"))
    made = run("-m", "rwt_server", "keys", "create", *data)
    assert made.returncode == 0, made.stderr
    command = [sys.executable, "-m", "rwt_server", "serve", "--port", "0", *data]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True) as server:
        watchdog = threading.Timer(60, server.kill)
        watchdog.start()
        try:
            assert server.stderr is not None
            serving = json.loads(server.stderr.readline())
            assert serving["event"] == "serving", serving
            yield f"http://127.0.0.1:{serving['port']}", made.stdout.strip()
            server.terminate()
            server.communicate()
            assert server.returncode == 0
        finally:
            watchdog.cancel()
            server.kill()


def test_client_has_twelve_lines_and_the_default_address() -> None:
    lines = block(README).splitlines()
    assert len(lines) == 12 and all(line.strip() for line in lines)
    assert f'"{DEFAULT_URL}"' in block(README)
    assert urlsplit(DEFAULT_URL).netloc == "127.0.0.1:8765"


def test_client_runs_as_printed(service: tuple[str, str], tmp_path: Path) -> None:
    url, key = service
    program = tmp_path / "hello.py"
    program.write_text(block(README), encoding="utf-8")
    done = run("-X", "dev", "-W", "error", str(program), RWT_URL=url, RWT_API_KEY=key)
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.search(r"python hello\.py +# (.+)", README)
    assert shown is not None and done.stdout == shown[1] + "\n"


def test_control_the_client_needs_its_key(service: tuple[str, str], tmp_path: Path) -> None:
    url, key = service
    program = tmp_path / "hello.py"
    program.write_text(block(README), encoding="utf-8")
    done = run(str(program), RWT_URL=url, RWT_API_KEY=key[:-1])
    assert done.returncode == 1 and "RWTAuthenticationError" in done.stderr and not done.stdout
