"""Seal and open one frame (section 8): nonce from a counter, padding, compression, ratchet, usage limits."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from . import key_schedule, limits
from .codec import HEADER
from .codes import CloseCode, Flag, Level
from .errors import RWTEncryptionError, RWTProtocolError
from .key_schedule import DirectionKeys

_NONCE: Final = struct.Struct(">IQ")
_E, _P, _Z, _R, _B = (int(flag) for flag in Flag)

LEVEL_FLAGS: Final = {Level.CLEAR: 0, Level.STANDARD: _E, Level.HIGH: _E | _P, Level.MAXIMUM: _E | _P | _R}
"""Flags that a sender sets for each level."""


def level_of(flags: int) -> Level:
    """Level at which a message arrived."""
    if flags & _R:
        return Level.MAXIMUM
    if flags & _P:
        return Level.HIGH
    return Level.STANDARD if flags & _E else Level.CLEAR


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """When one direction asks for new keys, and when it stops. Frames and plaintext bytes of one key."""

    rekey_frames: int = limits.REKEY_FRAMES
    rekey_bytes: int = limits.REKEY_BYTES
    stop_frames: int = limits.STOP_FRAMES
    stop_bytes: int = limits.STOP_BYTES


USAGE: Final = UsageLimits()


def padme(length: int) -> int:
    """Padded length: max(64, Padme); at most an eighth is added from 57 bytes on."""
    if length <= limits.MIN_PADDED:
        return limits.MIN_PADDED
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask


def pad(data: bytes) -> bytes:
    """Append 80 and zeros up to the padded length."""
    return data + b"\x80" + bytes(padme(len(data) + 1) - len(data) - 1)


def unpad(data: bytes) -> bytes:
    """Strip trailing zeros and the one 80 before them.

    Raises:
        RWTProtocolError: there is no 80.
    """
    stripped = data.rstrip(b"\x00")
    if not stripped.endswith(b"\x80"):
        raise RWTProtocolError("padding has no end mark")
    return stripped[:-1]


def deflate(data: bytes, level: int = limits.COMPRESS_LEVEL) -> bytes | None:
    """Compress, or return None where the rules say that it must not be done.

    A sender does not compress less than 256 bytes, what saves less than an eighth, or what a receiver would
    take for a bomb.
    """
    if len(data) < limits.COMPRESS_MIN:
        return None
    packer = zlib.compressobj(level, wbits=-15)
    packed = packer.compress(data) + packer.flush()
    if len(packed) * 8 > len(data) * 7 or len(data) > limits.MAX_INFLATE_RATIO * len(packed):
        return None
    return packed


def inflate(data: bytes, most: int) -> bytes:
    """Decompress one raw DEFLATE stream that must end where `data` ends.

    Raises:
        RWTProtocolError: more than `most` bytes or a ratio over 100 (4413); malformed or bytes left over.
    """
    bound = min(most, limits.MAX_INFLATE_RATIO * len(data))
    unpacker = zlib.decompressobj(wbits=-15)
    try:
        out = unpacker.decompress(data, bound + 1)
    except zlib.error as exc:
        raise RWTProtocolError("a compressed payload is malformed") from exc
    if len(out) > bound:
        raise RWTProtocolError("a compressed payload is too large", CloseCode.TOO_LARGE)
    if not unpacker.eof or unpacker.unused_data:
        raise RWTProtocolError("a compressed payload does not end at its end")
    return out


class _Direction:
    """Key material of one direction in one epoch. The AEAD object is made on demand: it costs 2.5 KiB."""

    __slots__ = ("_aead", "_iv_high", "_iv_low", "_key", "_ratchet", "_usage", "count", "epoch", "used")

    def __init__(self, keys: DirectionKeys, epoch: int, usage: UsageLimits = USAGE) -> None:
        self._key, iv, self._ratchet = keys
        self._iv_high, self._iv_low = _NONCE.unpack(iv)
        self._aead: AESGCM | None = None
        self._usage = usage
        self.epoch = epoch & 0xFFFF
        """Low 16 bits of the epoch, as in the header."""
        self.count = 0
        """Frames so far; the next seq."""
        self.used = 0
        """Plaintext bytes so far."""

    def rest(self) -> None:
        """Drop the AEAD object of an idle direction."""
        self._aead = None

    @property
    def worn(self) -> bool:
        """Whether it is time for new keys."""
        return self.count >= self._usage.rekey_frames or self.used >= self._usage.rekey_bytes

    @property
    def exhausted(self) -> bool:
        """Whether the next frame may not use this key."""
        return self.count >= self._usage.stop_frames or self.used >= self._usage.stop_bytes

    def _one_time(self) -> AESGCM:
        key, self._ratchet = key_schedule.ratchet(self._ratchet)
        return AESGCM(key)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} epoch={self.epoch} count={self.count}>"


class Sealer(_Direction):
    """Seals frames of one direction, in order."""

    __slots__ = ()

    def seal(self, kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        """Seal one frame; padding and compression are already in `payload`.

        Raises:
            RWTEncryptionError: the key has reached its hard limit of use.
        """
        seq = self.count
        if seq >= self._usage.stop_frames or self.used >= self._usage.stop_bytes:
            raise RWTEncryptionError("the traffic key has reached its limit of use", code="key-exhausted")
        header = HEADER.pack(kind, flags, self.epoch, stream, seq)
        nonce = _NONCE.pack(self._iv_high, self._iv_low ^ seq)
        self.count = seq + 1
        self.used += len(payload)
        if flags & _R:
            return header + self._one_time().encrypt(nonce, payload, header)
        aead = self._aead
        if aead is None:
            aead = self._aead = AESGCM(self._key)
        if flags & _E:
            return header + aead.encrypt(nonce, payload, header)
        clear = header + payload
        return clear + aead.encrypt(nonce, b"", clear)


class Opener(_Direction):
    """Opens frames of one direction; only the next one in order opens."""

    __slots__ = ()

    def open(self, data: bytes, flags: int, seq: int) -> bytes:
        """Open a frame whose header was parsed, and return its payload (still padded and compressed).

        Raises:
            RWTProtocolError: wrong seq, key used up, or it does not open.
        """
        if seq != self.count:
            raise RWTProtocolError("a frame is not the next one")
        if seq >= self._usage.stop_frames or self.used >= self._usage.stop_bytes:
            raise RWTProtocolError("a traffic key is used beyond its limit")
        nonce = _NONCE.pack(self._iv_high, self._iv_low ^ seq)
        try:
            if flags & _R:
                ratchet = self._ratchet
                try:
                    payload = self._one_time().decrypt(nonce, data[16:], data[:16])
                except InvalidTag:
                    self._ratchet = ratchet
                    raise
            else:
                aead = self._aead
                if aead is None:
                    aead = self._aead = AESGCM(self._key)
                if flags & _E:
                    payload = aead.decrypt(nonce, data[16:], data[:16])
                else:
                    aead.decrypt(nonce, data[-16:], data[:-16])
                    payload = data[16:-16]
        except InvalidTag as exc:
            raise RWTProtocolError("a frame does not open") from exc
        self.count = seq + 1
        self.used += len(payload)
        return payload
