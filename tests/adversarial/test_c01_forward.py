"""C1: the next token cannot be computed from all previous tokens, chains, keys and the recorded wire.

Attacker: passive, with the full state of both ends at epoch e and everything ever written, but not inside
either end while the rotation to e + 1 runs. It tries every secret it has in the place of the shared secret.
The control gives it that one value, or a rotation that mixes none in: then it has everything.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from rwt_protocol import codec, key_schedule
from rwt_protocol.codes import FrameType
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Publication, Reply, Rotate
from rwt_protocol.key_schedule import EpochKeys
from rwt_protocol.record import Opener
from tests.pair import Pair, Way, frames_of


class Taken(NamedTuple):
    """What the attacker has."""

    keys: EpochKeys
    secrets: list[bytes]


def chain_of(pair: Pair) -> EpochKeys:
    chain = pair.client._chain
    assert chain is not None
    return chain


def dump(pair: Pair) -> Taken:
    """All state of both ends now."""
    keys = chain_of(pair)
    secrets = [keys.chain, keys.token, keys.transcript, *keys.client, *keys.server, bytes(32), b""]
    secrets += [held.token for held in pair.session.held]
    secrets += [held.family for held in pair.session.held if held.family]
    secrets += [retired.token for retired in pair.record.retired]
    secrets += [key_schedule.PHI256, pair.record.token]
    return Taken(keys, secrets)


def attack(taken: Taken, tape: list[bytes], guesses: list[bytes]) -> list[EpochKeys]:
    """Recompute the recorded rotation with every guess as the shared secret."""
    opener = {
        FrameType.ROTATE: Opener(taken.keys.server, taken.keys.epoch),
        FrameType.REPLY: Opener(taken.keys.client, taken.keys.epoch),
    }
    shares: dict[FrameType, bytes] = {}
    for frame in tape:
        kind = FrameType(frame[0])
        if kind not in opener:
            continue
        reader = opener[kind]
        _, flags, _, _, reader.count = codec.HEADER.unpack_from(frame)
        body = codec.decode_control(kind, reader.open(frame, flags, reader.count))
        assert isinstance(body, Rotate | Reply)
        shares[kind] = body.share
    server, client = shares[FrameType.ROTATE], shares[FrameType.REPLY]
    return [key_schedule.rotate(taken.keys, guess, server, client) for guess in guesses]


def opens(keys: EpochKeys, frame: bytes) -> bool:
    reader = Opener(keys.client, keys.epoch)
    _, flags, _, _, reader.count = codec.HEADER.unpack_from(frame)
    try:
        reader.open(frame, flags, reader.count)
    except RWTProtocolError:
        return False
    return True


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
@pytest.mark.parametrize("suite", [1, 2, 3], ids=["p256", "x25519", "mlkem"])
def test_recorded_rotation_with_the_whole_past(
    suite: int, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(suites=(suite,))
    pair.rotate()
    taken = dump(pair)
    pair.tape.clear()
    if broken:  # a rotation that derives from the past alone
        genuine = key_schedule.rotate
        monkeypatch.setattr(key_schedule, "rotate", lambda now, _dh, s, c: genuine(now, bytes(32), s, c))
    pair.rotate()
    pair.client.send_message(1, 5, codec.encode_publication(Publication(b"secret")))
    frame = pair.client.bytes_to_send()[0]
    guessed = attack(taken, [row.frame for row in pair.tape], taken.secrets)
    assert (chain_of(pair).token in [keys.token for keys in guessed]) is broken
    assert any(opens(keys, frame) for keys in guessed) is broken


def test_control_the_shared_secret_is_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    taken = dump(pair)
    secrets: list[bytes] = []
    genuine = key_schedule.rotate

    def watched(now: EpochKeys, dh: bytes, server: bytes, client: bytes) -> EpochKeys:
        secrets.append(dh)
        return genuine(now, dh, server, client)

    monkeypatch.setattr(key_schedule, "rotate", watched)
    pair.tape.clear()
    pair.rotate()
    guessed = attack(taken, [row.frame for row in pair.tape], list(secrets))
    assert chain_of(pair).token == guessed[0].token
    assert secrets[0] == secrets[1]


def test_frames_of_the_next_epoch_do_not_open_under_the_old_one() -> None:
    pair = Pair()
    old = chain_of(pair)
    pair.tape.clear()
    pair.rotate()
    (rotated,) = frames_of(pair.tape, FrameType.ROTATED)
    new = chain_of(pair)
    for keys, expected in ((old, False), (new, True)):
        reader = Opener(keys.server, new.epoch)
        try:
            reader.open(rotated, 1, 0)
            opened = True
        except RWTProtocolError:
            opened = False
        assert opened is expected


def test_both_ends_agree_and_the_wire_carries_both_shares() -> None:
    pair = Pair()
    pair.tape.clear()
    pair.rotate()
    ways = [(row.way, row.frame[0]) for row in pair.tape]
    assert ways == [
        (Way.S2C, FrameType.ROTATE),
        (Way.C2S, FrameType.REPLY),
        (Way.S2C, FrameType.ROTATED),
    ]
    assert pair.record.token == chain_of(pair).token
