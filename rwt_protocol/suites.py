"""Key exchange and signatures of section 8: shares, shared secrets, key ids.

Private keys are objects of `cryptography`. Randomness is an argument where the library takes it; ML-KEM
encapsulation and ECDSA draw their own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from .codes import SignatureAlgorithm, Suite
from .errors import RWTProtocolError
from .frames import Signature

RandomBytes: TypeAlias = Callable[[int], bytes]
"""Returns that many bytes from a cryptographically secure source."""

P256_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_P256_POINT = 65
_EK_SIZE = 1184
_CT_SIZE = 1088
_X25519_SIZE = 32

_PrivateKey: TypeAlias = (
    ec.EllipticCurvePrivateKey
    | x25519.X25519PrivateKey
    | tuple[mlkem.MLKEM768PrivateKey, x25519.X25519PrivateKey]
)


@dataclass(frozen=True, slots=True)
class KeyShare:
    """One side's ephemeral key: the private part and the bytes that go on the wire."""

    suite: Suite
    share: bytes
    private: _PrivateKey = field(repr=False)


def _p256_private(random_bytes: RandomBytes) -> ec.EllipticCurvePrivateKey:
    # 16 bytes more than the order: the bias of the reduction is below 2^-128 (FIPS 186-5, A.2.1).
    scalar = int.from_bytes(random_bytes(48), "big") % (P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def _p256_public(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


def _p256_load(data: bytes) -> ec.EllipticCurvePublicKey:
    if len(data) != _P256_POINT or data[0] != 4:
        raise RWTProtocolError("a P-256 key is not an uncompressed point")
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), data)
    except ValueError as exc:
        raise RWTProtocolError("a P-256 key is not on the curve") from exc


def _x25519_secret(private: x25519.X25519PrivateKey, peer: bytes) -> bytes:
    try:
        return private.exchange(x25519.X25519PublicKey.from_public_bytes(peer))
    except ValueError as exc:  # wrong length, or the all-zero secret of a small-order point
        raise RWTProtocolError("an X25519 key is not valid") from exc


def generate(suite: Suite, random_bytes: RandomBytes) -> KeyShare:
    """Make the ephemeral key of an initiator: the client in HELLO, the server in ROTATE."""
    if suite is Suite.P256:
        p256 = _p256_private(random_bytes)
        return KeyShare(suite, _p256_public(p256), p256)
    x = x25519.X25519PrivateKey.from_private_bytes(random_bytes(_X25519_SIZE))
    public = x.public_key().public_bytes_raw()
    if suite is Suite.X25519:
        return KeyShare(suite, public, x)
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(random_bytes(64))
    return KeyShare(suite, kem.public_key().public_bytes_raw() + public, (kem, x))


def respond(suite: Suite, peer: bytes, random_bytes: RandomBytes) -> tuple[bytes, bytes]:
    """Answer an initiator's share.

    Returns:
        The responder's share and the shared secret.

    Raises:
        RWTProtocolError: `peer` is not a valid share of `suite`.
    """
    if suite is Suite.P256:
        p256_peer = _p256_load(peer)
        p256 = _p256_private(random_bytes)
        return _p256_public(p256), p256.exchange(ec.ECDH(), p256_peer)
    x = x25519.X25519PrivateKey.from_private_bytes(random_bytes(_X25519_SIZE))
    public = x.public_key().public_bytes_raw()
    if suite is Suite.X25519:
        return public, _x25519_secret(x, peer)
    if len(peer) != _EK_SIZE + _X25519_SIZE:
        raise RWTProtocolError("an X25519MLKEM768 share has the wrong length")
    try:
        kem = mlkem.MLKEM768PublicKey.from_public_bytes(peer[:_EK_SIZE])
        kem_secret, ciphertext = kem.encapsulate()
    except ValueError as exc:
        raise RWTProtocolError("an ML-KEM key is not valid") from exc
    return ciphertext + public, kem_secret + _x25519_secret(x, peer[_EK_SIZE:])


def shared_secret(own: KeyShare, peer: bytes) -> bytes:
    """Compute the initiator's shared secret from the responder's share.

    Raises:
        RWTProtocolError: `peer` is not a valid share.
    """
    private = own.private
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.exchange(ec.ECDH(), _p256_load(peer))
    if isinstance(private, x25519.X25519PrivateKey):
        return _x25519_secret(private, peer)
    if len(peer) != _CT_SIZE + _X25519_SIZE:
        raise RWTProtocolError("an X25519MLKEM768 share has the wrong length")
    kem, x = private
    return kem.decapsulate(peer[:_CT_SIZE]) + _x25519_secret(x, peer[_CT_SIZE:])


# --- signatures ------------------------------------------------------------------------------------------


def key_id(algorithm: int, public: bytes) -> bytes:
    """SHA-256(u8 algorithm || public key), first 8 bytes (section 8)."""
    return hashlib.sha256(bytes((algorithm,)) + public).digest()[:8]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A server identity or device key: 65 bytes uncompressed (P-256) or 32 bytes (Ed25519).

    Raises:
        RWTProtocolError: the bytes are no public key of the algorithm.
    """

    algorithm: SignatureAlgorithm
    raw: bytes

    def __post_init__(self) -> None:
        if self.algorithm is SignatureAlgorithm.ECDSA_P256:
            _p256_load(self.raw)
        elif len(self.raw) != 32:
            raise RWTProtocolError("an Ed25519 key is not 32 bytes")

    @property
    def id(self) -> bytes:
        return key_id(self.algorithm, self.raw)

    def verify(self, signature: Signature | None, message: bytes) -> bool:
        """Whether `signature` names this key and is its signature of `message`."""
        if signature is None or signature.key_id != self.id:
            return False
        value = signature.value
        try:
            if self.algorithm is SignatureAlgorithm.ED25519:
                ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(value, message)
            else:
                der = encode_dss_signature(
                    int.from_bytes(value[:32], "big"), int.from_bytes(value[32:], "big")
                )
                _p256_load(self.raw).verify(der, message, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A private key that signs: the server's identity or a client's device key. Prints only its id."""

    __slots__ = ("_private", "public")

    def __init__(self, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
        self._private = private
        if isinstance(private, ed25519.Ed25519PrivateKey):
            self.public = PublicKey(SignatureAlgorithm.ED25519, private.public_key().public_bytes_raw())
        else:
            self.public = PublicKey(SignatureAlgorithm.ECDSA_P256, _p256_public(private))

    @classmethod
    def generate(cls, algorithm: SignatureAlgorithm, random_bytes: RandomBytes) -> SigningKey:
        """Make a new key."""
        if algorithm is SignatureAlgorithm.ED25519:
            return cls(ed25519.Ed25519PrivateKey.from_private_bytes(random_bytes(32)))
        return cls(_p256_private(random_bytes))

    @classmethod
    def from_pem(cls, data: bytes) -> SigningKey:
        """Read an unencrypted PKCS #8 PEM.

        Raises:
            ValueError: it is not one, or the key is neither P-256 nor Ed25519.
        """
        try:
            private = serialization.load_pem_private_key(data, password=None)
        except TypeError as exc:
            raise ValueError("the private key is encrypted; store it unencrypted with mode 0600") from exc
        if isinstance(private, ed25519.Ed25519PrivateKey) or (
            isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1)
        ):
            return cls(private)
        raise ValueError("the private key is neither P-256 nor Ed25519")

    def to_pem(self) -> bytes:
        """Write an unencrypted PKCS #8 PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, message: bytes) -> Signature:
        if isinstance(self._private, ed25519.Ed25519PrivateKey):
            value = self._private.sign(message)
        else:
            r, s = decode_dss_signature(self._private.sign(message, ec.ECDSA(hashes.SHA256())))
            value = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return Signature(self.public.id, value)

    def __repr__(self) -> str:
        return f"<SigningKey {self.public.algorithm.name} {self.public.id.hex()}>"
