"""A second, independent implementation of the RWT/2 wire, written from the pages and not from the packages.

Small pure functions, slow and plain on purpose: this file is the other opinion that the vectors come from.
Randomness, keys and time are arguments. Anything the receiver must refuse raises `WireError` with the verdict
that the vectors use as `expect` and the close code.
"""

import hashlib
import hmac
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, utils
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Value: TypeAlias = "int | bytes | str | bool | list[Value]"
Fields: TypeAlias = dict[int, Value]

MALFORMED = "malformed"
STATE = "state violation"
DECRYPTION = "decryption failure"
AUTHENTICATION = "authentication failure"
TOO_LARGE = "too large"


class WireError(Exception):
    """What a receiver must refuse: `verdict` is the `expect` of a vector, `close` the close code."""

    def __init__(self, verdict: str, reason: str, close: int = 4400) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.close = close


# --- Frame types, directions, flags ------------------------------------------------------------------------

HELLO, WELCOME, CONFIRM, READY = 0x01, 0x02, 0x03, 0x04
ROTATE, REPLY, ROTATED, REQUEST = 0x05, 0x06, 0x07, 0x08
WARN, BYE, PING, PONG = 0x09, 0x0A, 0x0B, 0x0C
SUB, SUBOK, UNSUB, ERR, CLOSED, GAP = 0x10, 0x11, 0x12, 0x14, 0x15, 0x16
MSG, ACK = 0x20, 0x22
EXTENSION = 0x40

NAMES = {
    HELLO: "HELLO", WELCOME: "WELCOME", CONFIRM: "CONFIRM", READY: "READY", ROTATE: "ROTATE", REPLY: "REPLY",
    ROTATED: "ROTATED", REQUEST: "REQUEST", WARN: "WARN", BYE: "BYE", PING: "PING", PONG: "PONG", SUB: "SUB",
    SUBOK: "SUBOK", UNSUB: "UNSUB", ERR: "ERR", CLOSED: "CLOSED", GAP: "GAP", MSG: "MSG", ACK: "ACK",
}  # fmt: skip
FROM_CLIENT = {HELLO, CONFIRM, REPLY, REQUEST, SUB, UNSUB}
FROM_BOTH = {BYE, PING, PONG, MSG}

FLAG_E, FLAG_P, FLAG_Z, FLAG_R, FLAG_B = 1, 2, 4, 8, 16

MAX_CONTROL = 4096  # bytes of a control body and of HELLO
MAX_META = 1024
MAX_MESSAGE = 1 << 20
MAX_FRAME = MAX_MESSAGE + (128 << 10)
MAX_FRAME_BEFORE_READY = 4096 + 32


def is_extension(kind: int) -> bool:
    """0x40 to 0x7F are extension types: opened, then ignored."""
    return 0x40 <= kind <= 0x7F


def sent_by(kind: int, sender: str) -> bool:
    """Whether `sender` ("client" or "server") may send this type at all."""
    if kind in FROM_BOTH or is_extension(kind):
        return True
    return (kind in FROM_CLIENT) == (sender == "client")


# --- CBOR: one definite map, deterministic -----------------------------------------------------------------


def cbor_head(major: int, number: int) -> bytes:
    """The shortest head of a CBOR item; longer forms are malformed."""
    if number < 24:
        return bytes([major << 5 | number])
    for info, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << (8 * size):
            return bytes([major << 5 | info]) + number.to_bytes(size, "big")
    raise ValueError("a uint has at most 64 bits")


def cbor_item(value: Value) -> bytes:
    """One value: uint, bstr, tstr, bool or an array of these."""
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return cbor_head(0, value)
    if isinstance(value, bytes):
        return cbor_head(2, len(value)) + value
    if isinstance(value, str):
        return cbor_head(3, len(text := value.encode())) + text
    return cbor_head(4, len(value)) + b"".join(map(cbor_item, value))


def cbor_encode(fields: Mapping[int, Value]) -> bytes:
    """Deterministic encoding of a body: a map of at most 23 pairs, keys ascending."""
    if len(fields) > 23:
        raise ValueError("at most 23 pairs")
    return cbor_head(5, len(fields)) + b"".join(
        cbor_head(0, k) + cbor_item(fields[k]) for k in sorted(fields)
    )


def _read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """(major type, argument, position behind the head); refuses what is longer than needed."""
    if at >= len(data):
        raise WireError(MALFORMED, "truncated")
    major, info = data[at] >> 5, data[at] & 31
    at += 1
    if info < 24:
        return major, info, at
    if info > 27:
        raise WireError(MALFORMED, "indefinite length or reserved head")
    size = 1 << (info - 24)
    number = int.from_bytes(data[at : at + size], "big")
    if at + size > len(data):
        raise WireError(MALFORMED, "truncated head")
    if cbor_head(0, number)[0] != info:
        raise WireError(MALFORMED, "head longer than needed")
    return major, number, at + size


def _read_item(data: bytes, at: int, depth: int) -> tuple[Value, int]:
    """One value; `depth` counts the arrays around it, two is the limit."""
    if data[at : at + 1] in (b"\xf4", b"\xf5"):
        return data[at] == 0xF5, at + 1
    major, number, at = _read_head(data, at)
    if major == 0:
        return number, at
    if major in (2, 3):
        if number > len(data) - at:
            raise WireError(MALFORMED, "truncated string")
        raw = data[at : at + number]
        if major == 2:
            return raw, at + number
        try:
            return raw.decode("utf-8", "strict"), at + number
        except UnicodeDecodeError as exc:
            raise WireError(MALFORMED, "text is not UTF-8") from exc
    if major != 4:
        raise WireError(MALFORMED, "negative, map, tag, simple value or float")
    if depth == 2:
        raise WireError(MALFORMED, "arrays are at most two deep")
    if number > len(data) - at:
        raise WireError(MALFORMED, "truncated array")
    items: list[Value] = []
    for _ in range(number):
        item, at = _read_item(data, at, depth + 1)
        items.append(item)
    return items, at


def cbor_decode(data: bytes) -> Fields:
    """A body: first byte a0 to b7, keys uint strictly ascending, nothing behind the map."""
    if not data or not 0xA0 <= data[0] <= 0xB7:
        raise WireError(MALFORMED, "a body starts with a0 to b7")
    fields: Fields = {}
    at, last = 1, -1
    for _ in range(data[0] - 0xA0):
        major, key, at = _read_head(data, at)
        if major != 0:
            raise WireError(MALFORMED, "a key is a uint")
        if key <= last:
            raise WireError(MALFORMED, "keys are ascending and single")
        fields[key], at = _read_item(data, at, 0)
        last = key
    if at != len(data):
        raise WireError(MALFORMED, "bytes behind the map")
    return fields


# --- Fields of each type -----------------------------------------------------------------------------------

Check: TypeAlias = Callable[[Value], bool]


def _uint(value: Value) -> bool:
    return type(value) is int


def _bool(value: Value) -> bool:
    return type(value) is bool


def _tstr(value: Value) -> bool:
    return type(value) is str


def _bstr(*sizes: int) -> Check:
    return lambda value: isinstance(value, bytes) and (not sizes or len(value) in sizes)


def _within(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _list(item: Check, low: int, high: int = MAX_CONTROL) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(item, value))


def _row(*items: Check) -> Check:
    return lambda value: (
        isinstance(value, list)
        and len(value) == len(items)
        and all(check(item) for check, item in zip(items, value, strict=True))
    )


def _pos(value: Value) -> bool:
    """[log, offset, tag]; the empty tag only with offset 0."""
    return (
        _row(_bstr(8), _uint, _bstr(0, 8))(value)
        and isinstance(value, list)
        and (value[2] != b"" or value[1] == 0)
    )


_SIG = _row(_bstr(8), _bstr(64))
_GAP = _row(_uint, _bstr(8), _uint, _uint, _pos)
_ROTATION = _row(_uint, _tstr, _uint)
_ACKED = _row(_within(1, 2**64 - 1), _uint, _uint, _bstr(0, 8), _uint, _uint)

# type: (required, optional)
FIELDS: dict[int, tuple[dict[int, Check], dict[int, Check]]] = {
    HELLO: (
        {
            1: _list(_uint, 1), 2: _list(_uint, 1), 3: _uint, 4: _bstr(), 5: _bstr(16),
            6: _list(_bstr(8), 1, 24), 7: _uint, 8: _uint,
        },
        {9: _list(_uint, 1)},
    ),
    WELCOME: ({1: _uint, 3: _uint, 4: _bstr(), 5: _uint, 6: _bstr(8)}, {}),
    CONFIRM: ({}, {1: _SIG, 2: _ROTATION, 3: _row(_tstr, _tstr)}),
    READY: (
        {1: _uint, 3: _uint, 4: _uint, 5: _bool, 7: _uint, 8: _uint, 10: _uint, 11: _uint, 12: _uint},
        {2: _uint, 6: _SIG, 9: _ROTATION},
    ),
    ROTATE: ({1: _uint, 2: _bstr()}, {3: _SIG}),
    REPLY: ({1: _uint, 2: _bstr()}, {3: _SIG}),
    ROTATED: ({1: _uint, 12: _uint}, {2: _uint}),
    REQUEST: ({1: _uint}, {}),
    WARN: ({1: _tstr}, {2: _tstr, 3: _list(_tstr, 0)}),
    BYE: ({1: _uint}, {2: _tstr, 3: _uint, 4: _bool}),
    PING: ({1: _uint}, {}),
    PONG: ({1: _uint}, {}),
    SUB: ({1: _uint, 2: _tstr}, {3: _pos, 4: _uint, 5: _uint, 6: _uint}),
    SUBOK: ({1: _uint, 2: _uint, 3: _uint, 4: _pos, 5: _uint, 8: _uint}, {7: _GAP}),
    UNSUB: ({1: _uint, 2: _uint}, {}),
    ERR: ({9: _uint}, {1: _uint, 8: _uint, 10: _tstr, 11: _uint}),
    CLOSED: ({2: _uint, 9: _uint}, {1: _uint}),
    GAP: ({2: _uint, 7: _GAP}, {}),
    ACK: ({1: _list(_ACKED, 1)}, {}),
}  # fmt: skip
META_FROM_CLIENT: tuple[dict[int, Check], dict[int, Check]] = (
    {},
    {
        1: _within(1, 2**64 - 1), 2: _within(0, 2), 3: _within(0, 2), 5: _uint, 6: _bool,
        4: lambda value: isinstance(value, bytes) and 1 <= len(value) <= 64,
    },
)  # fmt: skip
META_FROM_SERVER: tuple[dict[int, Check], dict[int, Check]] = (
    {7: _uint, 8: _bstr(8), 9: _uint},
    {2: _within(0, 2), 3: _within(0, 2), 5: _uint, 10: _tstr, 11: _bstr(8), 12: _tstr, 13: _uint},
)


def known_fields(kind: int, sender: str) -> tuple[dict[int, Check], dict[int, Check]]:
    """(required, optional) fields of a control body, or of the meta of a MSG."""
    if kind == MSG:
        return META_FROM_CLIENT if sender == "client" else META_FROM_SERVER
    return FIELDS[kind]


def decode_body(kind: int, sender: str, body: bytes) -> Fields:
    """Size, CBOR, types of the fields, in this order; unknown keys stay in the result and mean nothing."""
    if len(body) > (MAX_META if kind == MSG else MAX_CONTROL):
        raise WireError(MALFORMED, "body over its size")
    fields = cbor_decode(body)
    required, optional = known_fields(kind, sender)
    if not required.keys() <= fields.keys():
        raise WireError(MALFORMED, "a field is missing")
    for key, check in {**required, **optional}.items():
        if key in fields and not check(fields[key]):
            raise WireError(MALFORMED, f"field {key} has the wrong type or range")
    return fields


# --- Labels ------------------------------------------------------------------------------------------------

PHI256 = bytes.fromhex("9e3779b97f4a7c15f39cc0605cedc8341082276bf3a27251f86c6a11d0c18e95")


def u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def sha(*parts: bytes) -> bytes:
    """SHA-256 over the concatenation."""
    return hashlib.sha256(b"".join(parts)).digest()


def X(salt: bytes, ikm: bytes) -> bytes:
    """X(salt, ikm) = HMAC-SHA256(salt, ikm)."""
    return hmac.digest(salt, ikm, "sha256")


def L(secret: bytes, label: str, context: bytes = b"", size: int = 32) -> bytes:
    """L(secret, label, ctx, n): HMAC over u16 n, u8-prefixed "rwt2 " label, u8-prefixed ctx, 01; cut to n."""
    full = b"rwt2 " + label.encode()
    info = u16(size) + bytes([len(full)]) + full + bytes([len(context)]) + context + b"\x01"
    return hmac.digest(secret, info, "sha256")[:size]


def token_id(token: bytes) -> bytes:
    """Public name of a token or of a family: L(t, "id", n=8)."""
    return L(token, "id", size=8)


def family(token: bytes) -> bytes:
    """Family of all tokens that descend from the token of epoch 1: L(token, "family")."""
    return L(token, "family")


def sender_id(sid: bytes) -> bytes:
    """Meta field 11: SHA("rwt2 sender" || sid)[0:8]."""
    return sha(b"rwt2 sender", sid)[:8]


def connection_id(th: bytes) -> str:
    """Name of a connection in logs: the first 16 hex digits of SHA(th)."""
    return sha(th).hex()[:16]


# --- Key schedule ------------------------------------------------------------------------------------------


class Direction(NamedTuple):
    """Keys of one direction and epoch."""

    key: bytes
    iv: bytes
    ratchet: bytes


class Epoch(NamedTuple):
    """All that one transition gives."""

    th: bytes
    m: bytes
    chain: bytes
    token: bytes
    c2s: Direction
    s2c: Direction


def handshake_hash(hello: bytes, welcome: bytes) -> bytes:
    """th of connect and resume, over whole messages with their headers."""
    return sha(b"rwt2 hs", sha(hello), sha(welcome))


def rotation_hash(th: bytes, epoch: int, share_server: bytes, share_client: bytes) -> bytes:
    """th of a rotation to `epoch`, chained to the th before it."""
    return sha(b"rwt2 rot", th, u32(epoch), share_server, share_client)


def offer_hash(th: bytes, epoch: int, share_server: bytes) -> bytes:
    """What the server signs in ROTATE instead of a th."""
    return sha(b"rwt2 offer", th, u32(epoch), share_server)


def derive(m: bytes, th: bytes) -> Epoch:
    """Chain, token and the keys of both directions; siblings under m."""

    def direction(name: str) -> Direction:
        return Direction(L(m, f"{name} key", th), L(m, f"{name} iv", th, 12), L(m, f"{name} ratchet", th))

    return Epoch(th, m, L(m, "chain", th), L(m, "token", th), direction("c2s"), direction("s2c"))


def psk(token: bytes) -> bytes:
    """psk = X(PHI256, token picked); a family is used in the same way."""
    return X(PHI256, token)


def connect(token: bytes, dh: bytes, hello: bytes, welcome: bytes) -> Epoch:
    """Connect and resume: m = X(psk, dh)."""
    return derive(X(psk(token), dh), handshake_hash(hello, welcome))


def rotate(before: Epoch, dh: bytes, epoch: int, share_server: bytes, share_client: bytes) -> Epoch:
    """Rotation to `epoch`: m = X(chain, dh)."""
    return derive(X(before.chain, dh), rotation_hash(before.th, epoch, share_server, share_client))


def ratchet(secret: bytes) -> tuple[bytes, bytes]:
    """R frames: (key of this frame, ratchet for the next one)."""
    return L(secret, "msg"), L(secret, "next")


# --- Suites ------------------------------------------------------------------------------------------------

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
EK_SIZE, CT_SIZE = 1184, 1088  # ML-KEM-768


def p256_private(seed: bytes) -> ec.EllipticCurvePrivateKey:
    """Scalar = seed mod (n - 1) + 1: for the vectors, not for use."""
    return ec.derive_private_key(int.from_bytes(seed, "big") % (P256_ORDER - 1) + 1, ec.SECP256R1())


def p256_scalar(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_numbers().private_value.to_bytes(32, "big")


def p256_public(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def p256_dh(key: ec.EllipticCurvePrivateKey, share: bytes) -> bytes:
    """X coordinate; only 65 bytes that start with 04 are a share."""
    if len(share) != 65 or share[0] != 4:
        raise ValueError("not an uncompressed point")
    return key.exchange(ec.ECDH(), ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), share))


def x25519_dh(key: X25519PrivateKey, share: bytes) -> bytes:
    """32 bytes; an all-zero result is refused (ValueError)."""
    secret = key.exchange(X25519PublicKey.from_public_bytes(share))
    if not any(secret):
        raise ValueError("all-zero X25519 output")
    return secret


def initiator_share(suite: int, private: bytes) -> bytes:
    """First share. Private: 32 bytes (suites 1, 2); 64-byte ML-KEM seed, then 32 bytes X25519 (suite 3)."""
    if suite == 1:
        return p256_public(p256_private_exact(private).public_key())
    if suite == 2:
        return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
    ek = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64]).public_key().public_bytes_raw()
    return ek + initiator_share(2, private[64:])


def p256_private_exact(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def responder_share(suite: int, private: bytes, ciphertext: bytes = b"") -> bytes:
    """Second share: as the first one, but with the ML-KEM ciphertext in suite 3."""
    return ciphertext + initiator_share(2, private) if suite == 3 else initiator_share(suite, private)


def responder_secret(suite: int, private: bytes, share: bytes, encapsulated: bytes = b"") -> bytes:
    """Shared secret at the second side; suite 3 needs the secret that the encapsulation gave."""
    if suite == 1:
        return p256_dh(p256_private_exact(private), share)
    if suite == 2:
        return x25519_dh(X25519PrivateKey.from_private_bytes(private), share)
    if len(share) != EK_SIZE + 32:
        raise ValueError("wrong length")
    mlkem.MLKEM768PublicKey.from_public_bytes(share[:EK_SIZE])
    return encapsulated + responder_secret(2, private, share[EK_SIZE:])


def initiator_secret(suite: int, private: bytes, share: bytes) -> bytes:
    """Shared secret at the first side: suite 3 is ML-KEM secret || X25519 secret."""
    if suite != 3:
        return responder_secret(suite, private, share)
    if len(share) != CT_SIZE + 32:
        raise ValueError("wrong length")
    inner = mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64]).decapsulate(share[:CT_SIZE])
    return inner + responder_secret(2, private[64:], share[CT_SIZE:])


def check_share(suite: int, share: bytes, *, initiator: bool) -> None:
    """Raises ValueError for a share that a receiver must refuse."""
    probe = bytes(31) + b"\x01"
    if suite == 3 and not initiator:
        initiator_secret(3, bytes(64) + probe, share)
    else:
        responder_secret(suite, probe, share)


# --- Signatures --------------------------------------------------------------------------------------------


def signed_by_server(digest: bytes) -> bytes:
    """Input of a server signature: over th in READY, over the offer hash in ROTATE."""
    return b"rwt2 server\x00" + digest


def signed_by_client(th: bytes) -> bytes:
    """Input of a device signature: over the th of the epoch that CONFIRM or REPLY starts."""
    return b"rwt2 client\x00" + th


def key_id(algorithm: int, public: bytes) -> bytes:
    """SHA(u8 alg || pub)[0:8]; pub is 65 bytes (1: P-256) or 32 bytes (2: Ed25519)."""
    return sha(bytes([algorithm]), public)[:8]


def sign_ed25519(seed: bytes, message: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(message)


def ed25519_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def verify(algorithm: int, public: bytes, signature: bytes, message: bytes) -> bool:
    """Algorithm 1: ECDSA P-256 with SHA-256, r || s of 32 bytes each; 2: Ed25519."""
    if len(signature) != 64:
        return False
    try:
        if algorithm == 2:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
        else:
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
            point.verify(utils.encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


# --- Records -----------------------------------------------------------------------------------------------


class Header(NamedTuple):
    """The 16 bytes before the payload; epoch has 16 bits here."""

    type: int
    flags: int
    epoch: int
    stream: int
    seq: int


def header(kind: int, flags: int, epoch: int, stream: int, seq: int) -> bytes:
    """u8 type, u8 flags, u16 epoch (low bits), u32 stream, u64 seq."""
    return struct.pack(">BBHIQ", kind, flags, epoch & 0xFFFF, stream, seq)


def parse_header(frame: bytes) -> Header:
    return Header(*struct.unpack(">BBHIQ", frame[:16]))


def nonce(iv: bytes, seq: int) -> bytes:
    """iv XOR (00000000 || seq)."""
    return bytes(a ^ b for a, b in zip(iv, seq.to_bytes(12, "big"), strict=True))


def seal(key: bytes, iv: bytes, head: bytes, plaintext: bytes) -> bytes:
    """Whole frame. E: AES-256-GCM with the header as associated data; else GMAC over header || payload."""
    at = nonce(iv, parse_header(head).seq)
    if head[1] & FLAG_E:
        return head + AESGCM(key).encrypt(at, plaintext, head)
    return head + plaintext + AESGCM(key).encrypt(at, b"", head + plaintext)


def open_frame(key: bytes, iv: bytes, frame: bytes) -> bytes:
    """Plaintext of a frame of at least 32 bytes."""
    head, at = frame[:16], nonce(iv, parse_header(frame).seq)
    try:
        if head[1] & FLAG_E:
            return AESGCM(key).decrypt(at, frame[16:], head)
        AESGCM(key).decrypt(at, frame[-16:], frame[:-16])
    except InvalidTag as exc:
        raise WireError(DECRYPTION, "tag does not fit") from exc
    return frame[16:-16]


def padme(length: int) -> int:
    """Padme of a length of at least 2: keeps floor(log2 E) + 1 bits below the top one."""
    e = length.bit_length() - 1
    z = e - e.bit_length()
    return (length + (1 << z) - 1) & ~((1 << z) - 1)


def padded_length(length: int) -> int:
    """max(64, padme(length + 1)): one byte at least for the 80."""
    return 64 if length < 1 else max(64, padme(length + 1))


def pad(payload: bytes) -> bytes:
    """payload || 80 || 00*."""
    return (payload + b"\x80").ljust(padded_length(len(payload)), b"\x00")


def unpad(padded: bytes) -> bytes:
    """Strip 00*, then one 80."""
    stripped = padded.rstrip(b"\x00")
    if not stripped.endswith(b"\x80"):
        raise WireError(MALFORMED, "padding without 80")
    return stripped[:-1]


def inflate(data: bytes, max_message: int = MAX_MESSAGE) -> bytes:
    """Raw deflate that ends exactly at the end; over 2 + 1,024 + max_message or 100 to 1: too large."""
    limit = min(2 + MAX_META + max_message, 100 * len(data))
    stream = zlib.decompressobj(-15)
    try:
        out = stream.decompress(data, limit + 1)
    except zlib.error as exc:
        raise WireError(MALFORMED, "not deflate") from exc
    if len(out) > limit:
        raise WireError(TOO_LARGE, "inflated payload", 4413)
    if not stream.eof or stream.unused_data:
        raise WireError(MALFORMED, "deflate does not end at the payload's end")
    return out


class Message(NamedTuple):
    """One message after opening; an absent meta is the empty map."""

    meta: bytes
    body: bytes


def join_message(meta: bytes, body: bytes) -> bytes:
    """u16 meta_len || meta || body."""
    return u16(len(meta)) + meta + body


def split_message(payload: bytes) -> Message:
    """Meta over 1,024 or beyond the payload is malformed."""
    if len(payload) < 2:
        raise WireError(MALFORMED, "no meta_len")
    end = 2 + int.from_bytes(payload[:2], "big")
    if end > 2 + MAX_META or end > len(payload):
        raise WireError(MALFORMED, "meta_len")
    return Message(payload[2:end], payload[end:])


def join_batch(messages: list[bytes]) -> bytes:
    """(u32 length || message)*."""
    return b"".join(u32(len(message)) + message for message in messages)


def split_batch(payload: bytes, window: int) -> list[bytes]:
    """At least one message, none shorter than 2, nothing left over; more than W are too large."""
    messages: list[bytes] = []
    while payload:
        size = int.from_bytes(payload[:4], "big")
        if len(payload) < 4 + size or size < 2:
            raise WireError(MALFORMED, "batch entry")
        messages.append(payload[4 : 4 + size])
        payload = payload[4 + size :]
    if not messages:
        raise WireError(MALFORMED, "empty batch")
    if len(messages) > window:
        raise WireError(TOO_LARGE, "more than W messages", 4413)
    return messages


def usage(frames: int, size: int) -> str:
    """What a sender does after that many frames and plaintext bytes of a key: "none", "rekey", "stop"."""
    if frames >= 1 << 23 or size >= 1 << 37:
        return "stop"
    return "rekey" if frames >= 1 << 22 or size >= 1 << 36 else "none"


# --- Receiving a frame -------------------------------------------------------------------------------------


def next_state(role: str, state: str, kind: int) -> str:
    """State of the receiver after a good frame; a pair outside the two tables is a state violation."""
    if role == "server":
        live = {"OPEN": "OPEN", "EXPECT_REPLY": "EXPECT_REPLY"}
        table = {
            HELLO: {"EXPECT_HELLO": "EXPECT_CONFIRM"},
            CONFIRM: {"EXPECT_CONFIRM": "OPEN"},
            REPLY: {"EXPECT_REPLY": "OPEN"},
            REQUEST: dict.fromkeys(live, "EXPECT_REPLY"),
            BYE: dict.fromkeys(live, "CLOSED"),
            **dict.fromkeys((PING, PONG, SUB, UNSUB, MSG, EXTENSION), live),
        }
    else:
        live = {"OPEN": "OPEN", "EXPECT_ROTATED": "EXPECT_ROTATED"}
        table = {
            WELCOME: {"EXPECT_WELCOME": "EXPECT_READY"},
            READY: {"EXPECT_READY": "OPEN"},
            ROTATE: {"OPEN": "EXPECT_ROTATED"},
            ROTATED: {"EXPECT_ROTATED": "OPEN"},
            WARN: {"EXPECT_READY": "EXPECT_READY", **live},
            BYE: dict.fromkeys(("EXPECT_READY", *live), "CLOSED"),
            **dict.fromkeys((PING, PONG, SUBOK, ERR, CLOSED, GAP, ACK, MSG, EXTENSION), live),
        }
    after = table.get(EXTENSION if is_extension(kind) else kind, {}).get(state)
    if after is None:
        raise WireError(STATE, f"type {kind:#04x} in {state}")
    return after


def check_flags(kind: int, flags: int) -> None:
    """HELLO, WELCOME: 0. Control and extension: exactly E. MSG: P and R need E, B excludes Z and R."""
    if flags & 0xE0:
        raise WireError(MALFORMED, "reserved flag")
    if kind == MSG:
        if flags & (FLAG_P | FLAG_R) and not flags & FLAG_E:
            raise WireError(MALFORMED, "P and R need E")
        if flags & FLAG_B and flags & (FLAG_Z | FLAG_R):
            raise WireError(MALFORMED, "B excludes Z and R")
    elif flags != (0 if kind in (HELLO, WELCOME) else FLAG_E):
        raise WireError(MALFORMED, "flags of this type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """All that decides what a received frame means; `policy` 1 is `always`."""

    role: str
    state: str = "OPEN"
    epoch: int = 1
    seq: int = 0
    key: bytes = field(default=b"", repr=False)
    iv: bytes = field(default=b"", repr=False)
    ratchet: bytes = field(default=b"", repr=False)
    policy: int = 0
    max_frame: int = MAX_FRAME
    max_message: int = MAX_MESSAGE
    window: int = 1024


class Received(NamedTuple):
    """A good frame: what was sealed, then the fields of its body, or its messages and their metas."""

    header: Header
    plaintext: bytes
    fields: Fields
    messages: list[Message]
    metas: list[Fields]
    state: str


def _messages(plaintext: bytes, flags: int, sender: str, to: Receiver) -> tuple[list[Message], list[Fields]]:
    """Unpad, inflate, split the batch, split each message, read each meta."""
    payload = unpad(plaintext) if flags & FLAG_P else plaintext
    payload = inflate(payload, to.max_message) if flags & FLAG_Z else payload
    messages = [split_message(m) for m in (split_batch(payload, to.window) if flags & FLAG_B else [payload])]
    metas = [decode_body(MSG, sender, m.meta or b"\xa0") for m in messages]  # meta_len 0 is the empty map
    if any(len(m.body) > to.max_message for m in messages):
        raise WireError(TOO_LARGE, "body over max_message", 4413)
    mids = [mid for meta in metas if sender == "client" and isinstance(mid := meta.get(1), int)]
    if mids != sorted(set(mids)):
        raise WireError(MALFORMED, "mids of a batch are ascending")
    return messages, metas


def receive(frame: bytes, to: Receiver) -> Received:
    """All checks of a received frame in their order; the first that fails raises."""
    sender = "client" if to.role == "server" else "server"
    early = to.state in ("EXPECT_HELLO", "EXPECT_CONFIRM", "EXPECT_WELCOME", "EXPECT_READY")
    if len(frame) > (MAX_FRAME_BEFORE_READY if early else to.max_frame):
        raise WireError(TOO_LARGE, "over max_frame", 4413)
    clear = frame[:1] in (b"\x01", b"\x02")
    if len(frame) < (17 if clear else 32):
        raise WireError(MALFORMED, "too short")
    head = parse_header(frame)
    if head.type not in NAMES and not is_extension(head.type):
        raise WireError(MALFORMED, "unknown type")
    if not sent_by(head.type, sender):
        raise WireError(STATE, "wrong direction")
    check_flags(head.type, head.flags)
    if clear and any(head[2:]):
        raise WireError(MALFORMED, "HELLO and WELCOME have zero epoch, stream and seq")
    if to.policy == 1 and not clear and not head.flags & FLAG_E:
        raise WireError(STATE, "E=0 under always")
    after = next_state(to.role, to.state, head.type)
    if clear:
        return Received(head, frame[16:], decode_body(head.type, sender, frame[16:]), [], [], after)
    if head.epoch != to.epoch & 0xFFFF:
        raise WireError(STATE, "epoch")
    if head.seq != to.seq:
        raise WireError(STATE, "seq")
    try:
        plaintext = open_frame(ratchet(to.ratchet)[0] if head.flags & FLAG_R else to.key, to.iv, frame)
    except WireError as exc:
        if head.type == CONFIRM:
            raise WireError(AUTHENTICATION, "CONFIRM does not open", 4401) from exc
        raise
    if is_extension(head.type):
        return Received(head, plaintext, {}, [], [], after)
    if head.type == MSG:
        if head.stream == 0 and to.role == "server":
            raise WireError(STATE, "a client's MSG on stream 0")
        return Received(head, plaintext, {}, *_messages(plaintext, head.flags, sender, to), after)
    return Received(head, plaintext, decode_body(head.type, sender, plaintext), [], [], after)


# --- Rotation schedules: exact integers --------------------------------------------------------------------

GOLDEN = 0x9E3779B97F4A7C15  # floor(2^64 / phi)


def schedule(pattern: str, k: int, interval: int, threshold: int) -> Iterator[int]:
    """S_n - t0 in ms for n = 0, 1, ...; `fibonacci`: the positive values for j = 1, 2, ..."""
    if pattern == "fibonacci":
        u, total = k * GOLDEN % 2**64, 0
        while True:
            for weight in (1, 2, 3, 5, 8):
                total += weight
                at = threshold * 5 * interval * (total * 2**64 - 19 * u) // (19000 * 2**64)
                if at > 0:
                    yield at
    n = 0
    while True:
        u = (k + n if pattern == "phi" else k) * GOLDEN % 2**64
        yield threshold * interval * (n * 2**64 + u) // (1000 * 2**64)
        n += 1


def next_rotation(pattern: str, k: int, interval: int, threshold: int, now: int) -> int:
    """First S_n - t0 that is not nearer to `now` - t0 than min(5 s, I/4), I/4 rounded down."""
    earliest = now + min(5000, interval // 4)
    return next(at for at in schedule(pattern, k, interval, threshold) if at >= earliest)


def lifetime(until_rotation: int, threshold: int) -> int:
    """Field 12 of READY and ROTATED: max(field 2 x 1000 / T rounded down, field 2 + 10,000)."""
    return max(until_rotation * 1000 // threshold, until_rotation + 10_000)
