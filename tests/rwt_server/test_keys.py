"""API keys (section 7.1): shown once, kept as SHA-256, checked the same for all."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from rwt_server import ConfigError, KeyFile
from rwt_server.keys import may_use


def secret_of(presented: str) -> str:
    return presented.split("_", 2)[2]


def test_only_the_hash_is_stored_and_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "data" / "keys.json"
    old = os.umask(0)
    try:
        key, presented = KeyFile(path).create("näme", ("a.*",))
    finally:
        os.umask(old)
    text = path.read_text()
    (row,) = json.loads(text)
    scheme, key_id, secret = presented.split("_", 2)
    assert (scheme, key_id) == ("rwt", key.id) and len(secret) == 43
    assert secret not in text and row["hash"] == hashlib.sha256(secret.encode()).hexdigest()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert {entry.name for entry in path.parent.iterdir()} == {"keys.json", "keys.lock"}


def test_a_mode_that_was_opened_up_is_closed_by_the_next_change(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = KeyFile(path)
    keys.create("a", None)
    path.chmod(0o644)
    keys.create("b", None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_differ(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    made = [keys.create("same", None) for _ in range(20)]
    assert len({key.id for key, _ in made}) == len({shown for _, shown in made}) == 20
    assert [key.id for key in keys.all()] == [key.id for key, _ in made]
    assert not any("_" in key.id for key, _ in made)


@pytest.mark.parametrize(
    ("change", "known"),
    [
        pytest.param(lambda key: key, True, id="as shown"),
        pytest.param(lambda key: key + "x", False, id="longer"),
        pytest.param(lambda key: key[:-1], False, id="shorter"),
        pytest.param(lambda key: key.upper(), False, id="upper case"),
        pytest.param(lambda key: "RWT" + key[3:], False, id="another scheme"),
        pytest.param(lambda key: key[4:], False, id="without scheme"),
        pytest.param(lambda key: "rwt_" + key.split("_")[1] + "_", False, id="without secret"),
        pytest.param(lambda key: "rwt_" + key.split("_")[1], False, id="id only"),
        pytest.param(lambda key: "rwt_nobody_" + secret_of(key), False, id="another id"),
        pytest.param(lambda key: "rwt_" + secret_of(key), False, id="secret only"),
        pytest.param(lambda key: "", False, id="empty"),
        pytest.param(lambda key: "___", False, id="underscores"),
        pytest.param(lambda key: key + "é", False, id="not ASCII"),
    ],
)
def test_what_is_presented(tmp_path: Path, change: object, known: bool) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, presented = keys.create("a", None)
    assert callable(change)
    found = keys.authenticate(change(presented))
    assert (found == key) is known and (found is None) is not known


def test_the_hash_is_no_secret(tmp_path: Path) -> None:
    """Who reads the file cannot use what stands there."""
    keys = KeyFile(tmp_path / "keys.json")
    key, _ = keys.create("a", None)
    assert keys.authenticate(f"rwt_{key.id}_{key.hash}") is None


def test_a_revoked_key_opens_nothing_in_any_process(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    here, there = KeyFile(path), KeyFile(path)
    key, presented = here.create("a", None)
    other, still = here.create("b", ("x",))
    assert there.authenticate(presented) == key and there.active(key.id)
    assert here.revoke(key.id).revoked
    assert there.authenticate(presented) is None and not there.active(key.id)
    assert there.authenticate(still) == other
    assert [found.revoked for found in there.all()] == [True, False]


def test_revoking_needs_a_known_id(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'nobody' is not known"):
        KeyFile(tmp_path / "keys.json").revoke("nobody")


def test_a_file_that_is_removed_knows_nobody(tmp_path: Path) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    _, presented = keys.create("a", None)
    keys.path.unlink()
    assert keys.authenticate(presented) is None and keys.all() == []


@pytest.mark.parametrize(
    "content", [b"{", b"", b"5", b'{"a": 1}', b'[{"id": "x"}]', b"[null]", b"\xff"], ids=repr
)
def test_a_damaged_file_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    keys = KeyFile(path)
    for call in (
        keys.all,
        lambda: keys.create("a", None),
        lambda: keys.revoke("x"),
        lambda: keys.active("x"),
    ):
        with pytest.raises(ConfigError, match=r"keys\.json is damaged") as refused:
            call()
        assert "\n" not in str(refused.value)
    assert path.read_bytes() == content


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    threads = [threading.Thread(target=KeyFile(path).create, args=(str(n), None)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in KeyFile(path).all()} == {str(n) for n in range(8)}


@pytest.mark.parametrize(
    ("patterns", "channel", "may"),
    [
        (None, "anything", True),
        ((), "x", False),
        (("x",), "x", True),
        (("x",), "X", False),
        (("x",), "xy", False),
        (("chat.*",), "chat.", True),
        (("chat.*",), "chat.a.b", True),
        (("chat.*",), "chat", False),
        (("*",), "a\nb", True),
        (("a", "b*"), "bc", True),
        (("[ab]",), "a", False),
        (("[ab]",), "[ab]", True),
    ],
    ids=str,
)
def test_patterns(patterns: tuple[str, ...] | None, channel: str, may: bool) -> None:
    assert may_use(patterns, channel) is may
