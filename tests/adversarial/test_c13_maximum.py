"""C13: at level maximum, state taken after message i does not open message i.

Attacker: recorded the wire and takes the whole state of an end right after a message, inside the same epoch. The
control is a message at level standard, and a ratchet that stands still.
"""

from __future__ import annotations

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rwt_protocol import codec, key_schedule
from rwt_protocol.codes import Level
from rwt_protocol.connection import Connection, pack_messages
from rwt_protocol.frames import Publication
from rwt_protocol.record import Opener, Sealer
from tests.pair import Pair, Way, opener_of

COUNT = 5


def send(pair: Pair, way: Way, level: Level, number: int) -> bytes:
    sender: Connection = pair.client if way is Way.C2S else pair.server
    if way is Way.C2S:
        message = codec.encode_publication(Publication(b"secret %d" % number, number))
    else:
        message = codec.encode_entry(number, bytes(8), b"\x01", 0, 1, b"", 0, b"secret %d" % number)
    for flags, payload, _ in pack_messages([message], level, 10):
        sender.send_message(flags, 5, payload)
    (frame,) = sender.bytes_to_send()
    return frame


def state_of(direction: Opener | Sealer) -> tuple[bytes, bytes]:
    """Key of the epoch and ratchet, as they are now."""
    return direction._key, direction._ratchet


def opens(frame: bytes, opener: Opener, state: tuple[bytes, bytes]) -> bool:
    """Try the stolen state: the key itself, the ratchet, and every message key that comes from it."""
    seq = codec.HEADER.unpack_from(frame)[4]
    key, ratchet = state
    candidates = [key]
    for _ in range(2 * COUNT):
        candidates.append(ratchet)
        one_time, ratchet = key_schedule.ratchet(ratchet)
        candidates.append(one_time)
    nonce = opener._iv_high.to_bytes(4, "big") + (opener._iv_low ^ seq).to_bytes(8, "big")
    for candidate in candidates:
        try:
            AESGCM(candidate).decrypt(nonce, frame[16:], frame[:16])
        except InvalidTag:
            continue
        return True
    return False


CASES = [
    pytest.param(Level.MAXIMUM, False, False, id="rule"),
    pytest.param(Level.STANDARD, False, True, id="control standard"),
    pytest.param(Level.HIGH, False, True, id="control high"),
    pytest.param(Level.MAXIMUM, True, True, id="control standing ratchet"),
]


@pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)
@pytest.mark.parametrize(("level", "standing", "expected"), CASES)
@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_state_after_the_message(
    end: str, level: Level, standing: bool, expected: bool, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    if standing:
        monkeypatch.setattr(key_schedule, "ratchet", lambda now: (key_schedule.expand(now, b"msg"), now))
    pair = Pair()
    sender, receiver = (pair.client, pair.server) if way is Way.C2S else (pair.server, pair.client)
    frames: list[bytes] = []
    for number in range(1, COUNT + 1):
        frame = send(pair, way, level, number)
        frames.append(frame)
        receiver.receive(frame, pair.now)
        taken = sender._sealer if end == "sender" else opener_of(receiver)
        assert taken is not None
        state = state_of(taken)
        opener = opener_of(receiver)
        assert [opens(old, opener, state) for old in frames] == [expected] * number


def test_state_before_the_message_opens_it() -> None:
    """The ratchet looks forward only: who takes the state earlier can follow."""
    pair = Pair()
    opener = opener_of(pair.server)
    state = state_of(opener)
    frame = send(pair, Way.C2S, Level.MAXIMUM, 1)
    assert opens(frame, opener, state)
