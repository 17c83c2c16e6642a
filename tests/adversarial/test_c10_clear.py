"""C10: clear messages are authentic, and the policy `always` cannot be taken away.

Attacker: active inside TLS. It alters clear messages, turns encrypted ones into clear ones, sends clear ones to
who refuses them, and edits the policy in HELLO. Altered bits of clear frames: C9. Controls: no check of the
policy, and a transcript that leaves HELLO out.
"""

from __future__ import annotations

import pytest

from rwt_protocol import codec, handshake, key_schedule
from rwt_protocol.client import ClientRules
from rwt_protocol.codes import CloseCode, FrameType, Level, Policy
from rwt_protocol.connection import Connection, State
from rwt_protocol.events import Delivered, Opened, Published, Terminated
from rwt_protocol.frames import Publication
from rwt_protocol.server import ServerRules
from tests.pair import Pair, Way, altering, end_code, forge, found

WAYS = pytest.mark.parametrize("way", list(Way), ids=lambda way: way.name)


def encoded(way: Way) -> bytes:
    if way is Way.C2S:
        return codec.encode_publication(Publication(b"body", 1))
    return codec.encode_entry(1, bytes(8), codec.encode_uint(1), 0, 1, b"", 0, b"body")


def receiver(pair: Pair, way: Way) -> Connection:
    return pair.server if way is Way.C2S else pair.client


def make(way: Way, policy: Policy) -> Pair:
    """A pair whose receiver in direction `way` has a policy."""
    if way is Way.C2S:
        return Pair(server=ServerRules(policy=policy))
    return Pair(client=ClientRules(policy=policy))


def took(pair: Pair, way: Way, frame: bytes) -> tuple[bool, int]:
    """Whether the frame was delivered, and the code of the end (0: none)."""
    target = receiver(pair, way)
    target.receive(frame, pair.now)
    events = target.events()
    ends = found(events, Terminated)
    return bool(found(events, Published) or found(events, Delivered)), ends[0].code if ends else 0


@WAYS
@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
def test_clear_message_under_each_policy(way: Way, policy: Policy) -> None:
    pair = make(way, policy)
    frame = forge(receiver(pair, way), FrameType.MSG, encoded(way), flags=0, stream=5)
    assert b"body" in frame
    expected = (False, CloseCode.PROTOCOL_ERROR) if policy is Policy.ALWAYS else (True, 0)
    assert took(pair, way, frame) == expected


@WAYS
@pytest.mark.parametrize("policy", list(Policy), ids=lambda policy: policy.name)
def test_encrypted_message_under_each_policy(way: Way, policy: Policy) -> None:
    pair = make(way, policy)
    frame = forge(receiver(pair, way), FrameType.MSG, encoded(way), flags=1, stream=5)
    assert took(pair, way, frame) == (True, 0)


@WAYS
@pytest.mark.parametrize("flags", [0, 1], ids=["clear to E", "E to clear"])
def test_the_bit_e_cannot_be_flipped(flags: int, way: Way) -> None:
    """The other flag leads to another use of the tag, under the same key and nonce."""
    pair = Pair()
    frame = forge(receiver(pair, way), FrameType.MSG, encoded(way), flags=flags, stream=5)
    assert took(pair, way, frame[:1] + bytes((flags ^ 1,)) + frame[2:]) == (False, CloseCode.PROTOCOL_ERROR)


@WAYS
def test_stripping_the_encryption_of_a_known_message(way: Way) -> None:
    """The attacker knows the body: it can write the clear frame, but not its tag."""
    pair = Pair()
    frame = forge(receiver(pair, way), FrameType.MSG, encoded(way), flags=1, stream=5)
    clear = frame[:1] + b"\x00" + frame[2:16] + encoded(way) + frame[-16:]
    assert took(pair, way, clear) == (False, CloseCode.PROTOCOL_ERROR)


def weaken(frame: bytes) -> bytes:
    """Declare policy `auto` in a HELLO that declared `always`."""
    hello = handshake.read_hello(frame)
    assert hello.policy == Policy.ALWAYS
    body = codec.decode_map(frame[16:], 4096)
    body[7] = int(Policy.AUTO)
    return frame[:16] + codec.encode_map(body)


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_policy_in_hello_is_in_the_transcript(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        genuine = key_schedule.handshake_transcript
        monkeypatch.setattr(key_schedule, "handshake_transcript", lambda _, welcome: genuine(b"", welcome))
    pair = Pair(client=ClientRules(policy=Policy.ALWAYS), start=False)
    pair.hook = altering(FrameType.HELLO, weaken)
    pair.pump()
    assert bool(found(pair.server_events, Opened)) is broken
    if broken:
        assert pair.server.client_policy is Policy.AUTO
        assert pair.server.flags_for(Level.CLEAR) == 0
    else:
        assert end_code(pair.server_events) == CloseCode.AUTHENTICATION_FAILED
        assert pair.record.epoch == 0


def test_a_server_sends_encrypted_only_to_who_declared_always() -> None:
    for policy in Policy:
        pair = Pair(client=ClientRules(policy=policy))
        assert pair.server.flags_for(Level.CLEAR) == (1 if policy is Policy.ALWAYS else 0)
        assert pair.server.state is State.OPEN
