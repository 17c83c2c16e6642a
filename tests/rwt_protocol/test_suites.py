"""Suites and signatures: both sides agree, and every share or key that section 8.1 refuses is refused."""

import hashlib
from random import Random

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from rwt_protocol.codes import SignatureAlgorithm, Suite
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Signature
from rwt_protocol.suites import P256_ORDER, PublicKey, SigningKey, generate, key_id, respond, shared_secret

SIZES = {Suite.P256: (65, 65), Suite.X25519: (32, 32), Suite.X25519MLKEM768: (1216, 1120)}
LOW_ORDER = (
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)
ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
SUITES = [pytest.param(suite, id=suite.name) for suite in Suite]
ALGORITHMS = [pytest.param(algorithm, id=algorithm.name) for algorithm in SignatureAlgorithm]


def compressed(point: bytes) -> bytes:
    return bytes((2 + point[64] % 2,)) + point[1:33]


def bad_p256(share: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "one byte short": share[:-1],
        "one byte long": share + b"\0",
        "compressed": compressed(share),
        "compressed, padded": compressed(share).ljust(65, b"\0"),
        "hybrid": bytes((6 + share[64] % 2,)) + share[1:],
        "bare coordinates": share[1:],
        "infinity": b"\0",
        "off the curve": share[:-1] + bytes((share[-1] ^ 1,)),
        "zero point": b"\4" + bytes(64),
        "x above the field": b"\4" + b"\xff" * 32 + share[33:],
        "P-384 size": b"\4" + bytes(96),
    }


def bad_x25519(share: bytes) -> dict[str, bytes]:
    bad = {"empty": b"", "one byte short": share[:-1], "one byte long": share + b"\0"}
    return bad | {f"low order {point[:8]}": bytes.fromhex(point) for point in LOW_ORDER}


def bad_shares(suite: Suite, share: bytes) -> dict[str, bytes]:
    if suite is Suite.P256:
        return bad_p256(share)
    if suite is Suite.X25519:
        return bad_x25519(share)
    kem, x = share[:-32], share[-32:]
    bad = {f"X25519 {name}": kem + part for name, part in bad_x25519(x).items()}
    return bad | {"X25519 alone": x, "KEM part short": share[1:], "KEM part long": b"\0" + share}


@pytest.mark.parametrize("suite", SUITES)
def test_both_sides_agree(suite: Suite) -> None:
    own = generate(suite, Random(1).randbytes)
    share, secret = respond(suite, own.share, Random(2).randbytes)
    assert (len(own.share), len(share)) == SIZES[suite]
    assert shared_secret(own, share) == secret
    assert len(secret) == (64 if suite is Suite.X25519MLKEM768 else 32)


@pytest.mark.parametrize("suite", SUITES)
def test_randomness_is_the_argument(suite: Suite) -> None:
    first, again, other = (generate(suite, Random(seed).randbytes) for seed in (1, 1, 2))
    assert first.share == again.share != other.share
    share, secret = respond(suite, first.share, Random(3).randbytes)
    repeated = respond(suite, first.share, Random(3).randbytes)
    # ML-KEM encapsulation draws its own.
    assert ((share, secret) == repeated) is (suite is not Suite.X25519MLKEM768)
    assert share[-32:] == repeated[0][-32:]


@pytest.mark.parametrize("suite", SUITES)
def test_a_share_of_another_key_gives_another_secret(suite: Suite) -> None:
    own, other = generate(suite, Random(1).randbytes), generate(suite, Random(2).randbytes)
    share, secret = respond(suite, own.share, Random(3).randbytes)
    assert shared_secret(other, share) != secret


@pytest.mark.parametrize("suite", SUITES)
def test_a_bad_share_is_refused_by_both_sides(suite: Suite) -> None:
    own = generate(suite, Random(1).randbytes)
    answer, _ = respond(suite, own.share, Random(2).randbytes)
    for name, share in bad_shares(suite, own.share).items():
        with pytest.raises(RWTProtocolError):
            raise AssertionError(f"{name}: {respond(suite, share, Random(3).randbytes)}")
    for name, share in bad_shares(suite, answer).items():
        with pytest.raises(RWTProtocolError):
            raise AssertionError(f"{name}: {shared_secret(own, share)!r}")


def test_ml_kem_key_that_fips_203_refuses() -> None:
    # All ones: coefficients above q = 3329, which the modulus check finds.
    share = b"\xff" * 1184 + generate(Suite.X25519, Random(1).randbytes).share
    with pytest.raises(RWTProtocolError, match="ML-KEM"):
        respond(Suite.X25519MLKEM768, share, Random(2).randbytes)


def test_the_hybrid_secret_is_that_of_both_parts() -> None:
    own = generate(Suite.X25519MLKEM768, Random(1).randbytes)
    share, secret = respond(Suite.X25519MLKEM768, own.share, Random(2).randbytes)
    classic = generate(Suite.X25519, Random(1).randbytes)
    assert own.share[-32:] == classic.share
    assert secret[32:] == shared_secret(classic, share[-32:])
    # A changed ciphertext is rejected implicitly: another secret and no error.
    changed = bytes((share[0] ^ 1,)) + share[1:]
    assert shared_secret(own, changed)[:32] != secret[:32]
    assert shared_secret(own, changed)[32:] == secret[32:]


@pytest.mark.parametrize(
    ("number", "scalar"),
    [
        (0, 1),
        (P256_ORDER - 2, P256_ORDER - 1),
        (P256_ORDER - 1, 1),
        (2**384 - 1, (2**384 - 1) % (P256_ORDER - 1) + 1),
    ],
    ids=["zero", "largest", "wraps", "all ones"],
)
def test_p256_scalar_is_in_range(number: int, scalar: int) -> None:
    own = generate(Suite.P256, lambda size: number.to_bytes(size, "big"))
    assert isinstance(own.private, ec.EllipticCurvePrivateKey)
    assert own.private.private_numbers().private_value == scalar


def test_x25519_of_rfc_7748() -> None:
    # Section 6.1 of that RFC.
    alice = bytes.fromhex(ALICE)
    own = generate(Suite.X25519, lambda size: alice)
    share, secret = respond(Suite.X25519, own.share, lambda size: bytes.fromhex(BOB))
    assert own.share.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert share.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert secret.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert shared_secret(own, share) == secret


def test_a_share_does_not_print_its_private_key() -> None:
    assert "private" not in repr(generate(Suite.X25519, Random(1).randbytes))


# --- signatures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_sign_and_verify(algorithm: SignatureAlgorithm) -> None:
    key = SigningKey.generate(algorithm, Random(1).randbytes)
    other = SigningKey.generate(algorithm, Random(2).randbytes)
    signature = key.sign(b"message")
    public = PublicKey(algorithm, key.public.raw)
    assert len(signature.value) == 64
    assert public == key.public and public.verify(signature, b"message")
    assert signature.key_id == hashlib.sha256(bytes((algorithm,)) + public.raw).digest()[:8] == public.id
    assert public.id == key_id(algorithm, public.raw)
    for bit in range(0, 512, 37):
        value = (int.from_bytes(signature.value, "big") ^ 1 << bit).to_bytes(64, "big")
        assert not public.verify(Signature(signature.key_id, value), b"message"), bit
    for wrong in (None, Signature(bytes(8), signature.value), other.sign(b"message")):
        assert not public.verify(wrong, b"message")
    # Another key's signature under this key's id.
    assert not public.verify(Signature(public.id, other.sign(b"message").value), b"message")
    assert not public.verify(signature, b"massage")
    for value in (bytes(64), b"\xff" * 64):
        assert not public.verify(Signature(public.id, value), b"message")


def test_ecdsa_signatures_are_r_and_s_of_32_bytes_each() -> None:
    key = SigningKey.generate(SignatureAlgorithm.ECDSA_P256, Random(1).randbytes)
    for index in range(64):  # about one in 128 has a short r or s
        assert key.public.verify(key.sign(bytes((index,))), bytes((index,)))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_keys_are_made_from_the_argument(algorithm: SignatureAlgorithm) -> None:
    first, again, other = (SigningKey.generate(algorithm, Random(seed).randbytes) for seed in (1, 1, 2))
    assert first.public == again.public != other.public


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_pem_round_trip(algorithm: SignatureAlgorithm) -> None:
    key = SigningKey.generate(algorithm, Random(1).randbytes)
    data = key.to_pem()
    assert data.startswith(b"-----BEGIN PRIVATE KEY-----")
    copy = SigningKey.from_pem(data)
    assert copy.public == key.public
    assert key.public.verify(copy.sign(b"x"), b"x")


def pem(private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(pem(rsa.generate_private_key(65537, 2048)), "neither", id="RSA"),
        pytest.param(pem(ec.generate_private_key(ec.SECP384R1())), "neither", id="P-384"),
        pytest.param(pem(ec.generate_private_key(ec.SECP256R1()), b"secret"), "encrypted", id="encrypted"),
        pytest.param(b"nothing", "PEM", id="no PEM"),
    ],
)
def test_pem_that_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SigningKey.from_pem(data)


@pytest.mark.parametrize("size", [0, 31, 33, 65])
def test_ed25519_key_has_32_bytes(size: int) -> None:
    with pytest.raises(RWTProtocolError):
        PublicKey(SignatureAlgorithm.ED25519, bytes(size))


def test_p256_key_is_an_uncompressed_point_on_the_curve() -> None:
    raw = SigningKey.generate(SignatureAlgorithm.ECDSA_P256, Random(1).randbytes).public.raw
    for name, bad in bad_p256(raw).items():
        with pytest.raises(RWTProtocolError):
            raise AssertionError(f"{name}: {PublicKey(SignatureAlgorithm.ECDSA_P256, bad)}")


def test_a_signing_key_prints_only_its_id() -> None:
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    key = SigningKey(private)
    assert repr(key) == f"<SigningKey ED25519 {key.public.id.hex()}>"
