"""C12: no nonce occurs twice under a key, over breaks, reconnects, rotations and races.

The cipher is watched over a run of the rotation fuzz. Controls: a process that is copied with its connections,
and a counter that starts again.
"""

from __future__ import annotations

from collections import Counter

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rwt_protocol import codec, record
from rwt_protocol.codes import Level
from rwt_protocol.connection import pack_messages
from rwt_protocol.frames import Publication
from tests.pair import Pair
from tests.rotation_fuzz import run

SEED = 12


class Watched:
    """AES-GCM that counts under which key and nonce something is sealed."""

    used: Counter[tuple[bytes, bytes]]

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        self.used[self.key, nonce] += 1
        return self.cipher.encrypt(nonce, data, aad)

    def decrypt(self, nonce: bytes, data: bytes, aad: bytes) -> bytes:
        return self.cipher.decrypt(nonce, data, aad)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[bytes, bytes]]:
    Watched.used = Counter()
    monkeypatch.setattr(record, "AESGCM", Watched)
    return Watched.used


def repeats(used: Counter[tuple[bytes, bytes]]) -> int:
    return sum(count > 1 for count in used.values())


def test_no_pair_repeats_over_the_fuzz(used: Counter[tuple[bytes, bytes]]) -> None:
    counts = run(100, SEED)
    assert not counts.failures, f"seed {SEED}: {counts.failures[:3]}"
    assert len(used) > 10_000 and len({key for key, _ in used}) > 2_000
    assert repeats(used) == 0


def publish(pair: Pair, level: Level, count: int) -> None:
    for mid in range(1, count + 1):
        encoded = codec.encode_publication(Publication(b"body", mid))
        for flags, payload, _ in pack_messages([encoded], level, 10):
            pair.client.send_message(flags, 5, payload)


def test_levels_share_one_counter(used: Counter[tuple[bytes, bytes]]) -> None:
    pair = Pair()
    used.clear()
    for level in (*Level, *Level):
        publish(pair, level, 3)
        pair.client.rest()
    assert sum(used.values()) == 24 and repeats(used) == 0
    assert len({nonce for _, nonce in used}) == 24


def test_control_a_copied_process_repeats(used: Counter[tuple[bytes, bytes]]) -> None:
    one, copy = Pair(1), Pair(1)
    used.clear()
    publish(one, Level.STANDARD, 2)
    publish(copy, Level.STANDARD, 2)
    assert repeats(used) == 2


def test_control_a_counter_that_starts_again_repeats(used: Counter[tuple[bytes, bytes]]) -> None:
    pair = Pair()
    sealer = pair.client._sealer
    assert sealer is not None
    publish(pair, Level.STANDARD, 2)
    sealer.count = 1
    publish(pair, Level.CLEAR, 2)
    assert repeats(used) >= 2


def test_epochs_and_directions_have_keys_of_their_own(used: Counter[tuple[bytes, bytes]]) -> None:
    pair = Pair()
    for _ in range(5):
        pair.rotate()
        publish(pair, Level.STANDARD, 1)
        pair.reconnect()
    keys = Counter(key for key, _ in used)
    assert len(keys) == 2 * pair.record.epoch
    assert repeats(used) == 0
