"""C4: no token, ticket, family or chain is ever on the wire.

Attacker: a full tap inside TLS, with every frame opened as well (the plaintexts of both ends). The capture is
searched for every secret of every epoch. The control leaks a token in one field and is found.
"""

from __future__ import annotations

import pytest

from rwt_protocol import codec, handshake, key_schedule
from rwt_protocol.client import ClientRules
from rwt_protocol.frames import Publication
from rwt_protocol.key_schedule import EpochKeys
from rwt_protocol.record import Opener, Sealer
from tests.pair import Pair


class Tap:
    """Collects the secrets of all epochs and the plaintext of all frames."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.secrets: dict[str, bytes] = {}
        self.plain: list[bytes] = []
        advance, seal, opened = key_schedule._advance, Sealer.seal, Opener.open

        def derive(salt: bytes, dh: bytes, transcript: bytes, epoch: int) -> EpochKeys:
            keys = advance(salt, dh, transcript, epoch)
            number = len(self.secrets)
            for name, value in {
                "chain": keys.chain,
                "token": keys.token,
                "family": key_schedule.family_of(keys.token),
                "shared secret": dh,
                "salt": salt,
                "client key": keys.client.key,
                "server key": keys.server.key,
                "client ratchet": keys.client.ratchet,
            }.items():
                self.secrets[f"{name} {epoch} {number}"] = value
            return keys

        def sealed(own: Sealer, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
            self.plain.append(payload)
            return seal(own, kind, flags, stream, payload)

        def open_frame(own: Opener, data: bytes, flags: int, seq: int) -> bytes:
            payload = opened(own, data, flags, seq)
            self.plain.append(payload)
            return payload

        patch.setattr(key_schedule, "_advance", derive)
        patch.setattr(Sealer, "seal", sealed)
        patch.setattr(Opener, "open", open_frame)


def live(pair: Pair) -> None:
    """Connect, rotate, publish, break, resume, and be stolen from."""
    for _ in range(3):
        pair.rotate()
        pair.client.send_message(1, 5, codec.encode_publication(Publication(b"body", 1)))
        pair.pump()
    pair.server.rotate(pair.now)
    pair.reconnect()
    thief = pair.thief()
    assert thief.client.is_open
    pair.reconnect()
    assert pair.record.revoked


@pytest.mark.parametrize("suite", [1, 2, 3], ids=["p256", "x25519", "mlkem"])
@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_search_of_the_whole_capture(suite: int, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tap = Tap(monkeypatch)
    if broken:  # ids that are a part of their token
        monkeypatch.setattr(key_schedule, "token_id", lambda token: token[:8])
        monkeypatch.setattr("rwt_protocol.session.token_id", lambda token: token[:8])
    pair = Pair(suites=(suite,), client=ClientRules(suites=(suite,), name=("test", "1")), start=False)  # type: ignore[arg-type]
    tap.secrets["ticket"] = pair.session.held[0].token
    pair.pump()
    live(pair)
    capture = [row.frame for row in pair.tape] + tap.plain
    assert len(tap.secrets) > 50 and len(capture) > 30
    # 8 bytes in a row are no chance hit.
    found = {
        name
        for name, secret in tap.secrets.items()
        if any(secret[at : at + 8] in data for data in capture for at in range(0, len(secret) - 7, 8))
    }
    if broken:
        assert {name.split()[0] for name in found} >= {"ticket", "token", "family"}
    else:
        assert found == set()


def test_hello_names_tokens_by_their_ids_only() -> None:
    pair = Pair()
    hello = handshake.read_hello(pair.tape[0].frame)
    assert hello.token_ids == (key_schedule.token_id(pair.record.retired[0].token),)
