"""The key schedule of section 8: one function for each derivation, all HMAC-SHA-256."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, NamedTuple

PHI256: Final = bytes.fromhex("9e3779b97f4a7c15f39cc0605cedc8341082276bf3a27251f86c6a11d0c18e95")
"""floor(2^256 / phi): a public constant with nothing up its sleeve, used as salt. It adds no secrecy."""

TOKEN_SIZE: Final = 32
KEY_SIZE: Final = 32
IV_SIZE: Final = 12


def extract(salt: bytes, ikm: bytes) -> bytes:
    """HKDF-Extract (RFC 5869): HMAC(salt, ikm)."""
    return hmac.digest(salt, ikm, "sha256")


def expand(secret: bytes, label: bytes, context: bytes = b"", size: int = 32) -> bytes:
    """HKDF-Expand-Label in the form of TLS 1.3 with the prefix "rwt2 "; `size` is at most 32 bytes."""
    full = b"rwt2 " + label
    info = b"%b%c%b%c%b\x01" % (size.to_bytes(2, "big"), len(full), full, len(context), context)
    return hmac.digest(secret, info, "sha256")[:size]


def token_id(token: bytes) -> bytes:
    """Public name of a token or family: safe to log and to send in clear."""
    return expand(token, b"id", size=8)


def family_of(token: bytes) -> bytes:
    """Family of a token that descends directly from a ticket."""
    return expand(token, b"family")


def sender_id(sid: bytes) -> bytes:
    """Public name of a session in the meta of its messages."""
    return hashlib.sha256(b"rwt2 sender" + sid).digest()[:8]


class DirectionKeys(NamedTuple):
    """Traffic keys of one direction in one epoch."""

    key: bytes
    iv: bytes
    ratchet: bytes

    def __repr__(self) -> str:
        return "<DirectionKeys>"


class EpochKeys(NamedTuple):
    """Everything one epoch has. Token, chain and traffic keys are siblings: none reveals another."""

    epoch: int
    transcript: bytes
    chain: bytes
    token: bytes
    client: DirectionKeys
    server: DirectionKeys

    def __repr__(self) -> str:
        return f"<EpochKeys epoch={self.epoch}>"


def _direction(main: bytes, name: bytes, transcript: bytes) -> DirectionKeys:
    return DirectionKeys(
        expand(main, name + b" key", transcript),
        expand(main, name + b" iv", transcript, IV_SIZE),
        expand(main, name + b" ratchet", transcript),
    )


def _advance(salt: bytes, dh: bytes, transcript: bytes, epoch: int) -> EpochKeys:
    main = extract(salt, dh)
    return EpochKeys(
        epoch,
        transcript,
        expand(main, b"chain", transcript),
        expand(main, b"token", transcript),
        _direction(main, b"c2s", transcript),
        _direction(main, b"s2c", transcript),
    )


def handshake_transcript(hello: bytes, welcome: bytes) -> bytes:
    """Transcript hash over the exact frames, 16-byte headers included."""
    return hashlib.sha256(
        b"rwt2 hs" + hashlib.sha256(hello).digest() + hashlib.sha256(welcome).digest()
    ).digest()


def connect(token: bytes, dh: bytes, transcript: bytes, epoch: int) -> EpochKeys:
    """Keys of `epoch` = picked + 1 from the picked token (or family) and a fresh shared secret."""
    return _advance(extract(PHI256, token), dh, transcript, epoch)


def rotation_transcript(previous: bytes, epoch: int, server_share: bytes, client_share: bytes) -> bytes:
    """Transcript hash of a rotation to `epoch`."""
    return hashlib.sha256(
        b"rwt2 rot" + previous + epoch.to_bytes(4, "big") + server_share + client_share
    ).digest()


def rotate(current: EpochKeys, dh: bytes, server_share: bytes, client_share: bytes) -> EpochKeys:
    """Keys of the next epoch from the current chain and a fresh shared secret."""
    epoch = current.epoch + 1
    transcript = rotation_transcript(current.transcript, epoch, server_share, client_share)
    return _advance(current.chain, dh, transcript, epoch)


def ratchet(state: bytes) -> tuple[bytes, bytes]:
    """One-time message key and the next state, which does not reveal it."""
    return expand(state, b"msg"), expand(state, b"next")


# --- what is signed --------------------------------------------------------------------------------------


def server_signature_input(transcript: bytes) -> bytes:
    """READY field 6."""
    return b"rwt2 server\x00" + transcript


def offer_signature_input(transcript: bytes, epoch: int, server_share: bytes) -> bytes:
    """ROTATE field 3: the offer is signed before the client derives anything from it."""
    offer = hashlib.sha256(b"rwt2 offer" + transcript + epoch.to_bytes(4, "big") + server_share).digest()
    return b"rwt2 server\x00" + offer


def client_signature_input(transcript: bytes) -> bytes:
    """CONFIRM field 1 and REPLY field 3."""
    return b"rwt2 client\x00" + transcript


def connection_id(transcript: bytes) -> str:
    """Public name of a connection for people and logs: 16 hex digits."""
    return hashlib.sha256(transcript).hexdigest()[:16]
