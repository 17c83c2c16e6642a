"""Key schedule: each derivation against section 8.2 written out once more, and RFC 5869 where they meet."""

import hashlib
import hmac
from fractions import Fraction
from math import isqrt

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from rwt_protocol import key_schedule
from rwt_protocol.key_schedule import DirectionKeys, EpochKeys

SECRET = bytes(range(32))
TH = hashlib.sha256(b"transcript").digest()
DH = hashlib.sha256(b"dh").digest()


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, hashlib.sha256).digest()


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def label(secret: bytes, name: str, context: bytes = b"", size: int = 32) -> bytes:
    """L of section 8.2."""
    full = b"rwt2 " + name.encode()
    info = size.to_bytes(2, "big") + bytes((len(full),)) + full + bytes((len(context),)) + context
    return mac(secret, info + b"\x01")[:size]


def epoch_keys(main: bytes, epoch: int, transcript: bytes) -> EpochKeys:
    def direction(name: str) -> DirectionKeys:
        return DirectionKeys(
            label(main, f"{name} key", transcript),
            label(main, f"{name} iv", transcript, 12),
            label(main, f"{name} ratchet", transcript),
        )

    return EpochKeys(
        epoch,
        transcript,
        label(main, "chain", transcript),
        label(main, "token", transcript),
        direction("c2s"),
        direction("s2c"),
    )


def test_phi256_is_the_floor_of_2_256_over_phi() -> None:
    # 1/phi = (sqrt(5) - 1) / 2, so floor(2^256 / phi) = floor((sqrt(5 * 2^512) - 2^256) / 2).
    assert int.from_bytes(key_schedule.PHI256, "big") == (isqrt(5 << 512) - (1 << 256)) // 2


@pytest.mark.parametrize("size", [1, 8, 12, 31, 32])
@pytest.mark.parametrize(
    "context", [b"", b"x", TH, bytes(255)], ids=lambda context: f"context {len(context)}"
)
def test_expand(size: int, context: bytes) -> None:
    found = key_schedule.expand(SECRET, b"chain", context, size)
    assert found == label(SECRET, "chain", context, size)
    full = b"rwt2 chain"
    info = size.to_bytes(2, "big") + bytes((len(full),)) + full + bytes((len(context),)) + context
    assert found == HKDFExpand(hashes.SHA256(), size, info).derive(SECRET)


def test_extract() -> None:
    # RFC 5869, test case 1.
    found = key_schedule.extract(bytes(range(13)), b"\x0b" * 22)
    assert found.hex() == "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5"


def test_names() -> None:
    assert key_schedule.token_id(SECRET) == label(SECRET, "id", size=8)
    assert key_schedule.family_of(SECRET) == label(SECRET, "family")
    assert key_schedule.sender_id(bytes(16)) == sha(b"rwt2 sender" + bytes(16))[:8]
    assert key_schedule.connection_id(TH) == sha(TH).hex()[:16]


def test_transcripts() -> None:
    hello, welcome = b"\x01" + bytes(40), b"\x02" + bytes(50)
    assert key_schedule.handshake_transcript(hello, welcome) == sha(b"rwt2 hs" + sha(hello) + sha(welcome))
    for epoch in (1, 2**32 - 1):
        expected = sha(b"rwt2 rot" + TH + epoch.to_bytes(4, "big") + b"server" + b"client")
        assert key_schedule.rotation_transcript(TH, epoch, b"server", b"client") == expected


def test_signature_inputs() -> None:
    assert key_schedule.server_signature_input(TH) == b"rwt2 server\0" + TH
    assert key_schedule.client_signature_input(TH) == b"rwt2 client\0" + TH
    offer = sha(b"rwt2 offer" + TH + (9).to_bytes(4, "big") + b"share")
    assert key_schedule.offer_signature_input(TH, 9, b"share") == b"rwt2 server\0" + offer


@pytest.mark.parametrize("dh", [DH, DH * 2], ids=["32 bytes", "64 bytes"])
def test_connect(dh: bytes) -> None:
    main = mac(mac(key_schedule.PHI256, SECRET), dh)
    assert key_schedule.connect(SECRET, dh, TH, 5) == epoch_keys(main, 5, TH)


def test_rotate() -> None:
    current = key_schedule.connect(SECRET, DH, TH, 5)
    transcript = sha(b"rwt2 rot" + TH + (6).to_bytes(4, "big") + b"server" + b"client")
    expected = epoch_keys(mac(current.chain, DH), 6, transcript)
    assert key_schedule.rotate(current, DH, b"server", b"client") == expected


def test_ratchet() -> None:
    assert key_schedule.ratchet(SECRET) == (label(SECRET, "msg"), label(SECRET, "next"))


def test_all_values_of_an_epoch_differ() -> None:
    keys = key_schedule.connect(SECRET, DH, TH, 1)
    values = {keys.chain, keys.token, *keys.client, *keys.server}
    assert len(values) == 8
    assert {len(value) for value in (keys.client.iv, keys.server.iv)} == {key_schedule.IV_SIZE}
    assert len(keys.token) == key_schedule.TOKEN_SIZE and len(keys.client.key) == key_schedule.KEY_SIZE


def test_every_input_changes_every_secret() -> None:
    base = key_schedule.connect(SECRET, DH, TH, 1)
    for other in (
        key_schedule.connect(bytes(32), DH, TH, 1),
        key_schedule.connect(SECRET, bytes(32), TH, 1),
        key_schedule.connect(SECRET, DH, bytes(32), 1),
    ):
        assert not {base.chain, base.token, *base.client, *base.server} & {
            other.chain,
            other.token,
            *other.client,
            *other.server,
        }


def test_keys_do_not_print() -> None:
    keys = key_schedule.connect(SECRET, DH, TH, 7)
    assert repr(keys) == "<EpochKeys epoch=7>"
    assert repr(keys.client) == "<DirectionKeys>"


def test_the_golden_ratio_is_only_a_salt() -> None:
    assert (
        abs(Fraction(int.from_bytes(key_schedule.PHI256, "big"), 2**256) - Fraction(618034, 10**6)) < 10**-6
    )
