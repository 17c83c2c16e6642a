"""Writes the test vectors: `python -m conformance.generate`; `--check` compares, `--record` adds what is new.

Output is deterministic. All randomness is a SHA-256 stream labelled with the vector and the name of the
value; what a library draws itself is kept in vectors/recorded.json and verified, not made again.
"""

import argparse
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, utils

from conformance import wire
from conformance.wire import Fields, Receiver, Value, WireError

Vector: TypeAlias = dict[str, Any]
Receive: TypeAlias = dict[str, Any]

FOLDER = Path(__file__).parent / "vectors"
VERSION = "0.1.0"
CODEC, FRAMES, HANDSHAKE, RECORD, ROTATION = (f"{VERSION}/{section}" for section in (4, 5, 7, 8, 9))
E, P, Z, R, B = wire.FLAG_E, wire.FLAG_P, wire.FLAG_Z, wire.FLAG_R, wire.FLAG_B
RECEIVER_FIELDS = ("role", "state", "epoch", "seq", "policy", "max_frame", "max_message", "window")


# --- Randomness and records --------------------------------------------------------------------------------


class Random:
    """SHA-256("rwt2 vectors" || 00 || "<stream>/<name>" || u32 i), i = 0, 1, ...; draws are kept."""

    def __init__(self, vector: str) -> None:
        self.vector = vector
        self.used: dict[str, str] = {}

    def __call__(self, name: str, size: int) -> bytes:
        label = f"{self.vector}/{name}"
        blocks = [wire.sha(b"rwt2 vectors\x00", label.encode(), wire.u32(i)) for i in range(-(-size // 32))]
        out = b"".join(blocks)[:size]
        assert self.used.setdefault(label, out.hex()) == out.hex()
        return out


class Recorded:
    """Outputs that no seed decides: ECDSA signatures, ML-KEM encapsulations, deflate streams."""

    def __init__(self, path: Path, *, record: bool) -> None:
        self.entries: list[Vector] = json.loads(path.read_text()) if path.exists() else []
        self.by_id = {entry["id"]: entry for entry in self.entries}
        self.record = record
        self.seen: set[str] = set()

    def get(self, name: str, kind: str, make: Callable[[], bytes], good: Callable[[bytes], bool]) -> bytes:
        """The stored bytes after `good` has accepted them."""
        if self.record and not (name in self.by_id and good(bytes.fromhex(self.by_id[name]["hex"]))):
            self.by_id[name] = {
                "id": name, "spec": RECORD, "expect": "success", "comment": kind, "hex": make().hex(),
            }  # fmt: skip
        if name not in self.by_id:
            raise SystemExit(f"recorded.json: {name} is missing; run with --record")
        out = bytes.fromhex(self.by_id[name]["hex"])
        if not good(out):
            raise SystemExit(f"recorded.json: {name} does not verify")
        self.seen.add(name)
        return out

    def vectors(self) -> list[Vector]:
        return [self.by_id[name] for name in sorted(self.seen)]


def deflate(recorded: Recorded, name: str, payload: bytes) -> bytes:
    """Raw deflate; encoders differ, so the output is recorded."""

    def make() -> bytes:
        encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
        return encoder.compress(payload) + encoder.flush()

    def good(data: bytes) -> bool:
        return zlib.decompressobj(-15).decompress(data) == payload

    return recorded.get(name, "raw deflate", make, good)


def sign_ecdsa(recorded: Recorded, name: str, seed: bytes, message: bytes) -> bytes:
    """r || s; the nonce is the library's, so the signature is recorded."""
    key = wire.p256_private(seed)

    def make() -> bytes:
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    public = wire.p256_public(key.public_key())
    return recorded.get(name, "ECDSA signature", make, lambda s: wire.verify(1, public, s, message))


class Exchange:
    """One key exchange: both private keys, both shares, the secret that both get."""

    def __init__(self, suite: int, random: Random, recorded: Recorded, name: str) -> None:
        first, second = random(f"{name}/initiator", 96 if suite == 3 else 32), random(f"{name}/responder", 32)
        if suite == 1:
            first, second = (wire.p256_scalar(wire.p256_private(seed)) for seed in (first, second))
        self.values: dict[str, bytes] = {"initiator_private": first, "responder_private": second}
        self.initiator = wire.initiator_share(suite, first)
        secret = ciphertext = b""
        if suite == 3:
            private = mlkem.MLKEM768PrivateKey.from_seed_bytes(first[:64])

            def make() -> bytes:
                made, wrapped = private.public_key().encapsulate()
                return wrapped + made

            at = wire.CT_SIZE
            both = recorded.get(
                f"{random.vector}/{name}/encapsulation",
                "ML-KEM-768 ciphertext || shared secret",
                make,
                lambda out: len(out) == at + 32 and private.decapsulate(out[:at]) == out[at:],
            )
            ciphertext, secret = both[:at], both[at:]
            self.values |= {"mlkem_ciphertext": ciphertext, "mlkem_secret": secret}
        self.responder = wire.responder_share(suite, second, ciphertext)
        self.secret = wire.initiator_secret(suite, first, self.responder)
        assert self.secret == wire.responder_secret(suite, second, self.initiator, secret)
        self.values |= {
            "initiator_share": self.initiator,
            "responder_share": self.responder,
            "dh": self.secret,
        }

    def json(self) -> dict[str, str]:
        return hexes(self.values)


# --- JSON --------------------------------------------------------------------------------------------------


def hexes(values: dict[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def to_json(value: Value) -> Any:
    """bstr as {"hex": ...}; the rest as it is."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    return [to_json(item) for item in value] if isinstance(value, list) else value


def fields_json(fields: Fields) -> dict[str, Any]:
    return {str(key): to_json(value) for key, value in sorted(fields.items())}


def from_json(value: Any) -> Value:
    if isinstance(value, dict):
        return bytes.fromhex(value["hex"])
    return [from_json(item) for item in value] if isinstance(value, list) else value


def vector(vid: str, spec: str, expect: str, comment: str, /, **rest: Any) -> Vector:
    return {"id": vid, "spec": spec, "expect": expect, "comment": comment, **rest}


def direction_json(keys: wire.Direction) -> dict[str, str]:
    return {"key": keys.key.hex(), "iv": keys.iv.hex(), "ratchet": keys.ratchet.hex()}


def epoch_json(epoch: wire.Epoch) -> dict[str, Any]:
    return {
        "chain": epoch.chain.hex(),
        "token": epoch.token.hex(),
        "token_id": wire.token_id(epoch.token).hex(),
        "c2s": direction_json(epoch.c2s),
        "s2c": direction_json(epoch.s2c),
    }


def messages_json(got: wire.Received) -> list[Vector]:
    return [
        {"meta": message.meta.hex(), "fields": fields_json(meta), "body": message.body.hex()}
        for message, meta in zip(got.messages, got.metas, strict=True)
    ]


def check_again(frame: bytes, to: Receiver, got: wire.Received) -> None:
    """What was received, put together again, is the frame that came."""
    head = got.header
    if head.type in (wire.HELLO, wire.WELCOME):
        assert frame == frame[:16] + wire.cbor_encode(got.fields)
        return
    key = wire.ratchet(to.ratchet)[0] if head.flags & R else to.key
    raw = wire.header(head.type, head.flags, to.epoch, head.stream, to.seq)
    assert wire.seal(key, to.iv, raw, got.plaintext) == frame
    if head.type == wire.MSG:
        payload = wire.unpad(got.plaintext) if head.flags & P else got.plaintext
        payload = wire.inflate(payload, to.max_message) if head.flags & Z else payload
        joined = [wire.join_message(message.meta, message.body) for message in got.messages]
        assert payload == (wire.join_batch(joined) if head.flags & B else joined[0])
        encoded = [wire.cbor_encode(meta) for meta in got.metas]
        assert encoded == [message.meta or b"\xa0" for message in got.messages]
    elif not wire.is_extension(head.type):
        assert got.plaintext == wire.cbor_encode(got.fields)


def frame_vector(
    name: str, spec: str, expect: str, comment: str, frame: bytes, to: Receiver, **rest: Any
) -> Vector:
    """One frame and its receiver; the reference receiver must say what `expect` says."""
    out = vector(name, spec, expect, comment, **{key: getattr(to, key) for key in RECEIVER_FIELDS})
    out |= {key: getattr(to, key).hex() for key in ("key", "iv", "ratchet") if getattr(to, key)}
    out |= rest | {"frame": frame.hex()}
    try:
        got = wire.receive(frame, to)
    except WireError as exc:
        assert exc.verdict == expect, (name, exc.verdict, str(exc))
        return out | {"close": exc.close}
    assert expect == "success", name
    check_again(frame, to, got)
    assert got.plaintext.hex() == rest.get("plaintext", got.plaintext.hex()), name
    out |= {"header": got.header._asdict(), "state_after": got.state}
    if got.header.type == wire.MSG:
        return out | {"messages": messages_json(got)}
    return out if wire.is_extension(got.header.type) else out | {"fields": fields_json(got.fields)}


# --- codec.json --------------------------------------------------------------------------------------------

LOG, TAG, KEY_ID = bytes.fromhex("10f1e2d3c4b5a697"), bytes.fromhex("7a65f0e1d2c3b4a5"), bytes(range(8))
SHARE = wire.initiator_share(2, bytes(31) + b"\x02")
SIG: Value = [KEY_ID, bytes(range(64))]
POS: Value = [LOG, 41, TAG]
START: Value = [LOG, 0, b""]
LOST: Value = [1, LOG, 7, 40, POS]
HELLO_BODY: Fields = {
    1: [2], 2: [2, 1], 3: 2, 4: SHARE, 5: bytes(range(16)), 6: [KEY_ID], 7: 0, 8: 0,
}  # fmt: skip
READY_BODY: Fields = {
    1: 1, 2: 15789, 3: 0, 4: 1179648, 5: False, 6: SIG, 7: 300000, 8: 20000, 9: [60000, "fibonacci", 800],
    10: 1024, 11: 1048576, 12: 25789,
}  # fmt: skip
SENT: Fields = {7: 42, 8: TAG, 9: 1764043200000}


def filled(fields: Fields, size: int) -> Fields:
    """The fields, and an unknown key 99 that makes the body exactly `size` bytes long."""
    empty = len(wire.cbor_encode(fields | {99: bytes(256)})) - 256
    return fields | {99: bytes(size - empty)}


VALID: list[tuple[str, int, str, Fields, str]] = [
    ("hello", wire.HELLO, "client", HELLO_BODY, "first HELLO of a ticket"),
    ("hello-resume", wire.HELLO, "client", HELLO_BODY | {6: [KEY_ID, TAG, LOG], 8: 9},
     "two tokens, one family"),
    ("hello-24-ids", wire.HELLO, "client", HELLO_BODY | {6: [bytes([i]) * 8 for i in range(24)]}, "most ids"),
    ("hello-signatures", wire.HELLO, "client", HELLO_BODY | {9: [2, 1]}, "pinned mode asks for a signature"),
    ("hello-two-versions", wire.HELLO, "client", HELLO_BODY | {1: [3, 2]},
     "an unknown version is offered too"),
    ("welcome", wire.WELCOME, "server", {1: 2, 3: 2, 4: SHARE, 5: 1, 6: KEY_ID}, "answer to a ticket"),
    ("confirm-empty", wire.CONFIRM, "client", {}, "all fields are optional"),
    ("confirm-tls", wire.CONFIRM, "client", {2: [60000, "phi", 800], 3: ["name", "1"]}, "tls mode"),
    ("confirm-pinned", wire.CONFIRM, "client", {1: SIG, 2: [60000, "fixed", 950]}, "pinned mode"),
    ("ready", wire.READY, "server", READY_BODY, "all fields"),
    ("ready-least", wire.READY, "server", {k: v for k, v in READY_BODY.items() if k not in (2, 6, 9)},
     "required"),
    ("rotate", wire.ROTATE, "server", {1: 2, 2: SHARE}, "tls mode"),
    ("rotate-signed", wire.ROTATE, "server", {1: 2**32 - 1, 2: SHARE, 3: SIG}, "pinned, last epoch"),
    ("reply", wire.REPLY, "client", {1: 2, 2: SHARE}, "without device key"),
    ("reply-signed", wire.REPLY, "client", {1: 2, 2: SHARE, 3: SIG}, "with device key"),
    ("rotated", wire.ROTATED, "server", {1: 2, 2: 31579, 12: 41579}, "all fields"),
    ("rotated-least", wire.ROTATED, "server", {1: 2, 12: 86400000},
     "no schedule: expiry is the session's end"),
    ("request", wire.REQUEST, "client", {1: 1}, "overdue"),
    ("warn", wire.WARN, "server", {1: "token-reuse"}, "only the code"),
    ("warn-details", wire.WARN, "server", {1: "store-conflict", 2: "text", 3: ["a", "b"]}, "all fields"),
    ("warn-no-details", wire.WARN, "server", {1: "downgrade", 3: []}, "an empty array is allowed here"),
    ("bye", wire.BYE, "server", {1: 4503, 2: "draining", 3: 1500, 4: True}, "all fields"),
    ("bye-least", wire.BYE, "client", {1: 1000}, "ends the session"),
    ("ping", wire.PING, "client", {1: 0}, "zero"),
    ("ping-largest", wire.PING, "server", {1: 2**64 - 1}, "largest uint"),
    ("pong", wire.PONG, "client", {1: 2**53 + 1}, "beyond the integers of a double"),
    ("sub", wire.SUB, "client", {1: 1, 2: "room"}, "least"),
    ("sub-inbox", wire.SUB, "client", {1: 1, 2: "", 5: 1}, "the session's inbox"),
    ("sub-after", wire.SUB, "client", {1: 2, 2: "räum", 3: POS, 4: 10, 5: 3, 6: 5}, "all fields"),
    ("sub-from-start", wire.SUB, "client", {1: 2, 2: "room", 3: START}, "the empty tag with offset 0"),
    ("sub-paused", wire.SUB, "client", {1: 3, 2: "room", 5: 0}, "use 0: paused"),
    ("subok", wire.SUBOK, "server", {1: 1, 2: 5, 3: 0, 4: POS, 5: 3, 8: 0}, "least"),
    ("subok-inbox", wire.SUBOK, "server", {1: 1, 2: 0, 3: 0, 4: START, 5: 1, 8: 0}, "stream 0"),
    ("subok-gap", wire.SUBOK, "server", {1: 1, 2: 5, 3: 0, 4: POS, 5: 1, 7: LOST, 8: 1}, "with a gap"),
    ("unsub", wire.UNSUB, "client", {1: 4, 2: 5}, "both fields"),
    ("err-ref", wire.ERR, "server", {1: 4, 9: 10, 10: "bad name", 11: 0}, "of a ref"),
    ("err-mid", wire.ERR, "server", {8: 17, 9: 4, 11: 250}, "of a mid"),
    ("closed", wire.CLOSED, "server", {1: 4, 2: 5, 9: 0}, "answer to UNSUB"),
    ("closed-by-server", wire.CLOSED, "server", {2: 5, 9: 1}, "without ref: an ERR code"),
    ("gap", wire.GAP, "server", {2: 5, 7: LOST}, "trimmed"),
    ("gap-log-lost", wire.GAP, "server", {2: 5, 7: [2, LOG, 1, 0, START]}, "last 0 = unknown"),
    ("ack", wire.ACK, "server", {1: [[1, 2, 5, LOG, 1, 1764043200000]]}, "two mids"),
    ("ack-handled", wire.ACK, "server", {1: [[3, 1, 5, b"", 0, 1], [4, 1, 6, LOG, 9, 2]]},
     "log h'' if handled"),
    ("meta-empty", wire.MSG, "client", {}, "every field is optional; on the wire also meta_len 0"),
    ("meta-c2s", wire.MSG, "client", {1: 1, 2: 2, 3: 0, 4: b"k" * 64}, "first mid, JSON, high, longest key"),
    ("meta-s2c", wire.MSG, "server", SENT | {2: 1, 3: 2, 10: "ada", 11: KEY_ID}, "on a channel"),
    ("meta-inbox", wire.MSG, "server", SENT | {12: "room"}, "on stream 0"),
    ("unknown-keys", wire.PING, "client", {1: 7, 24: [[1, "x"], []], 255: b"", 2**32: True,
     2**64 - 1: "é"}, "ignored"),
    ("23-pairs", wire.PING, "client", dict.fromkeys(range(1, 24), 0), "most pairs"),
    ("heads", wire.PING, "client", {1: 23, 2: 24, 3: 255, 4: 256, 5: 65535, 6: 65536, 7: 2**32 - 1,
     8: 2**32}, "edges"),
    ("hello-4096", wire.HELLO, "client", filled(HELLO_BODY, 4096), "body of 4,096 bytes"),
    ("ping-4096", wire.PING, "client", filled({1: 1}, 4096), "body of 4,096 bytes"),
    ("meta-1024", wire.MSG, "client", filled({}, 1024), "meta of 1,024 bytes"),
]  # fmt: skip

# One defect each, in hex, in a PING: {1: 7} is a10107; a second, unknown key 24 is 1818.
CBOR_TRAPS: list[tuple[str, str, str]] = [
    ("empty", "", "no bytes"),
    ("zero-byte", "00", "a uint instead of the map"),
    ("ff", "ff", "a break"),
    ("array", "820107", "an array instead of the map"),
    ("bstr", "43010700", "a bstr instead of the map"),
    ("tagged-map", "d9d9f7a10107", "self-described CBOR, tag 55799"),
    ("tagged-map-24", "d818a10107", "tag 24 around the map"),
    ("long-map-head", "b8010107", "map head of two bytes for one pair"),
    ("long-map-head-16", "b900010107", "map head of three bytes for one pair"),
    ("24-pairs", "b818" + "".join(f"{bytes(wire.cbor_head(0, k)).hex()}00" for k in range(1, 25)),
     "24 pairs"),
    ("map-8000", "b91f400107", "map head for 8,000 pairs"),
    ("map-2-32", "ba000000010107", "map head of five bytes"),
    ("map-2-63", "bb80000000000000000107", "map head for 2^63 pairs"),
    ("indefinite-map", "bf0107ff", "indefinite map"),
    ("trailing-byte", "a1010700", "one byte behind the map"),
    ("trailing-map", "a10107a0", "a second item behind the map"),
    ("missing-pair", "a20107", "head says two pairs"),
    ("missing-value", "a101", "key without value"),
    ("cut-head", "a1011900", "head cut short"),
    ("duplicate-key", "a201070107", "key 1 twice"),
    ("duplicate-key-other-value", "a201070108", "key 1 twice, other value"),
    ("duplicate-unknown-key", "a301071818001818f4", "unknown key twice"),
    ("unsorted-keys", "a218180001" + "07", "key 24 before key 1"),
    ("unsorted-unknown-keys", "a3010718ff00181800", "key 255 before key 24"),
    ("key-long-8", "a1180107", "key 1 in two bytes"),
    ("key-long-16", "a119000107", "key 1 in three bytes"),
    ("key-long-unknown", "a2010719001800", "key 24 in three bytes"),
    ("key-negative", "a2010720" + "00", "key -1"),
    ("key-tstr", "a20107613100", "key \"1\""),
    ("key-bstr", "a20107410100", "key h'01'"),
    ("key-bool", "a20107f500", "key true"),
    ("key-null", "a20107f600", "key null"),
    ("key-float", "a20107f93c0000", "key 1.0"),
    ("key-nan", "a20107f97e0000", "key NaN"),
    ("key-array", "a201078000", "key []"),
    ("key-bignum", "a20107c2410100", "key 1 as a bignum"),
    ("uint-long-8", "a1011807", "7 in two bytes"),
    ("uint-long-23", "a1011817", "23 in two bytes"),
    ("uint-long-16", "a1011900ff", "255 in three bytes"),
    ("uint-long-32", "a1011a0000ffff", "65,535 in five bytes"),
    ("uint-long-64", "a1011b00000000ffffffff", "2^32 - 1 in nine bytes"),
    ("info-28", "a1011c", "reserved head 28"),
    ("info-30", "a1011e", "reserved head 30"),
    ("info-31-uint", "a1011f", "indefinite uint"),
    ("2-64", "a101c249010000000000000000", "2^64 as a bignum where uint is due"),
]  # fmt: skip
# The same as the value of an unknown key: (name, item, comment).
ITEM_TRAPS: list[tuple[str, str, str]] = [
    ("negative-1", "20", "-1"),
    ("negative-long", "3bffffffffffffffff", "-2^64"),
    ("null", "f6", "null"),
    ("undefined", "f7", "undefined"),
    ("simple-0", "e0", "simple value 0"),
    ("simple-19", "f3", "simple value 19"),
    ("simple-32", "f820", "simple value 32"),
    ("simple-255", "f8ff", "simple value 255"),
    ("bool-long", "f815", "true in two bytes"),
    ("half-float", "f93c00", "1.0"),
    ("single-float", "fa3f800000", "1.0"),
    ("double-float", "fb3ff0000000000000", "1.0"),
    ("negative-zero", "f98000", "-0.0"),
    ("nan", "f97e00", "NaN"),
    ("infinity", "f97c00", "infinity"),
    ("break", "ff", "a break outside of anything indefinite"),
    ("uint-long", "1817", "23 in two bytes"),
    ("bstr-long-head", "580100", "length 1 in two bytes"),
    ("bstr-long-head-16", "59000100", "length 1 in three bytes"),
    ("tstr-long-head", "780161", "length 1 in two bytes"),
    ("array-long-head", "980100", "length 1 in two bytes"),
    ("indefinite-bstr", "5f4100ff", "indefinite bstr"),
    ("indefinite-tstr", "7f6161ff", "indefinite tstr"),
    ("indefinite-array", "9f00ff", "indefinite array"),
    ("nested-map", "a0", "a map in the map"),
    ("nested-map-in-array", "81a10000", "a map in an array"),
    ("array-3", "818180", "an array in an array in an array"),
    ("array-17", "81" * 16 + "80", "arrays 17 deep"),
    ("array-401", "81" * 400 + "80", "arrays 401 deep"),
    ("array-4000", "81" * 3999 + "80", "arrays 4,000 deep"),
    ("array-2-32", "9b0000000100000000", "array head for 2^32 items"),
    ("array-2-63", "9b8000000000000000", "array head for 2^63 items"),
    ("bstr-4-gib", "5affffffff", "bstr head for 4 GiB"),
    ("bstr-4-gib-9", "5b0000000100000000", "bstr head of nine bytes for 4 GiB"),
    ("bstr-2-63", "5b8000000000000000", "bstr head for 2^63 bytes"),
    ("tstr-4-gib", "7b00000000ffffffff", "tstr head of nine bytes for 4 GiB"),
    ("tstr-2-63", "7b8000000000000000", "tstr head for 2^63 bytes"),
    ("bstr-cut", "4300", "bstr of 3 with 1 byte"),
    ("array-cut", "8200", "array of 2 with 1 item"),
    ("utf8-stray", "62c328", "invalid UTF-8: stray lead byte"),
    ("utf8-overlong", "62c080", "invalid UTF-8: overlong NUL"),
    ("utf8-surrogate", "63eda080", "invalid UTF-8: lone surrogate"),
    ("utf8-beyond", "64f4908080", "invalid UTF-8: beyond 10FFFF"),
    ("utf8-cut", "61c3", "invalid UTF-8: cut short"),
    ("tag-date", "c074323032362d31312d32355430303a30303a30305a", "tag 0"),
    ("tag-epoch", "c100", "tag 1"),
    ("tag-bignum", "c24101", "tag 2: bignum 1"),
    ("tag-bignum-negative", "c34101", "tag 3"),
    ("tag-bignum-large", "c249010000000000000000", "tag 2: 2^64"),
    ("tag-shared", "d81c80", "tag 28: shareable"),
    ("tag-cycle", "d81c81d81d00", "tags 28 and 29: an array that holds itself"),
    ("tag-reference", "d81d00", "tag 29: reference"),
    ("tag-regex", "d823635b612b", "tag 35: regular expression"),
    ("tag-uuid", "d82550" + "00" * 16, "tag 37: UUID"),
    ("tag-set", "d9010280", "tag 258: set"),
    ("tag-ip", "d9010444c0000201", "tag 260: IP address"),
    ("tag-999", "d903e700", "tag 999: unknown"),
    ("tag-self", "d9d9f700", "tag 55799"),
    ("tag-in-array", "81c24101", "a bignum in an array"),
    ("float-in-array", "8181f93c00", "a float two arrays deep"),
]  # fmt: skip

# One wrong field each: (name, type, sender, fields, comment).
WRONG: list[tuple[str, int, str, Fields, str]] = [
    ("hello-no-versions", wire.HELLO, "client", HELLO_BODY | {1: []}, "empty array"),
    ("hello-no-suites", wire.HELLO, "client", HELLO_BODY | {2: []}, "empty array"),
    ("hello-no-ids", wire.HELLO, "client", HELLO_BODY | {6: []}, "empty array"),
    ("hello-25-ids", wire.HELLO, "client", HELLO_BODY | {6: [KEY_ID] * 25}, "25 ids"),
    ("hello-id-7", wire.HELLO, "client", HELLO_BODY | {6: [KEY_ID, KEY_ID[:7]]}, "id of 7 bytes"),
    ("hello-id-9", wire.HELLO, "client", HELLO_BODY | {6: [KEY_ID + b"\0"]}, "id of 9 bytes"),
    ("hello-sid-15", wire.HELLO, "client", HELLO_BODY | {5: bytes(15)}, "sid of 15 bytes"),
    ("hello-sid-17", wire.HELLO, "client", HELLO_BODY | {5: bytes(17)}, "sid of 17 bytes"),
    ("hello-version-string", wire.HELLO, "client", HELLO_BODY | {1: ["2"]}, "version as text"),
    ("hello-version-bool", wire.HELLO, "client", HELLO_BODY | {1: [True]}, "version true"),
    ("hello-no-algorithms", wire.HELLO, "client", HELLO_BODY | {9: []}, "empty array"),
    ("hello-4097", wire.HELLO, "client", filled(HELLO_BODY, 4097), "body of 4,097 bytes"),
    ("welcome-id-7", wire.WELCOME, "server", {1: 2, 3: 2, 4: SHARE, 5: 1, 6: bytes(7)}, "id of 7 bytes"),
    ("confirm-key-id-7", wire.CONFIRM, "client", {1: [bytes(7), bytes(64)]}, "key id of 7 bytes"),
    ("confirm-signature-63", wire.CONFIRM, "client", {1: [KEY_ID, bytes(63)]}, "signature of 63 bytes"),
    ("confirm-signature-65", wire.CONFIRM, "client", {1: [KEY_ID, bytes(65)]}, "signature of 65 bytes"),
    ("confirm-signature-alone", wire.CONFIRM, "client", {1: [bytes(64)]}, "no key id"),
    ("confirm-rotation-2", wire.CONFIRM, "client", {2: [60000, "phi"]}, "no threshold"),
    ("confirm-rotation-4", wire.CONFIRM, "client", {2: [60000, "phi", 800, 1]}, "four items"),
    ("confirm-rotation-order", wire.CONFIRM, "client", {2: ["phi", 60000, 800]}, "pattern first"),
    ("confirm-info-1", wire.CONFIRM, "client", {3: ["name"]}, "no version"),
    ("ready-granted-4", wire.READY, "server", READY_BODY | {9: [60000, "phi", 800, 1]}, "four items"),
    ("ready-resumed-1", wire.READY, "server", READY_BODY | {5: 1}, "1 for true"),
    ("ready-epoch-true", wire.READY, "server", READY_BODY | {1: True}, "true for 1"),
    ("ready-ping-text", wire.READY, "server", READY_BODY | {8: "20000"}, "a number as text"),
    ("rotate-share-text", wire.ROTATE, "server", {1: 2, 2: "x" * 32}, "share as tstr"),
    ("rotate-signature-63", wire.ROTATE, "server", {1: 2, 2: SHARE, 3: [KEY_ID, bytes(63)]}, "63 bytes"),
    ("reply-key-id-9", wire.REPLY, "client", {1: 2, 2: SHARE, 3: [bytes(9), bytes(64)]}, "9 bytes"),
    ("warn-details-uint", wire.WARN, "server", {1: "x", 3: [1]}, "details are text"),
    ("bye-keep-0", wire.BYE, "client", {1: 1000, 4: 0}, "0 for false"),
    ("ping-4097", wire.PING, "client", filled({1: 1}, 4097), "body of 4,097 bytes"),
    ("sub-name-bstr", wire.SUB, "client", {1: 1, 2: b"room"}, "name as bstr"),
    ("sub-after-2", wire.SUB, "client", {1: 1, 2: "room", 3: [LOG, 41]}, "no tag"),
    ("sub-after-4", wire.SUB, "client", {1: 1, 2: "room", 3: [LOG, 41, TAG, 0]}, "four items"),
    ("sub-after-log-7", wire.SUB, "client", {1: 1, 2: "room", 3: [LOG[:7], 41, TAG]}, "log of 7 bytes"),
    ("sub-after-tag-7", wire.SUB, "client", {1: 1, 2: "room", 3: [LOG, 41, TAG[:7]]}, "tag of 7 bytes"),
    ("sub-after-tag-empty", wire.SUB, "client", {1: 1, 2: "room", 3: [LOG, 41, b""]}, "empty tag, offset 41"),
    ("sub-history-true", wire.SUB, "client", {1: 1, 2: "room", 4: True}, "true for 1"),
    ("subok-start-2", wire.SUBOK, "server", {1: 1, 2: 5, 3: 0, 4: [LOG, 41], 5: 3, 8: 0}, "no tag"),
    ("subok-gap-4", wire.SUBOK, "server", {1: 1, 2: 5, 3: 0, 4: POS, 5: 1, 7: [1, LOG, 7, 40], 8: 0},
     "no next"),
    ("gap-next-flat", wire.GAP, "server", {2: 5, 7: [1, LOG, 7, 40, LOG, 41, TAG]}, "position not nested"),
    ("gap-next-tag-empty", wire.GAP, "server", {2: 5, 7: [1, LOG, 7, 40, [LOG, 41, b""]]},
     "empty tag, offset 41"),
    ("ack-empty", wire.ACK, "server", {1: []}, "empty array"),
    ("ack-5", wire.ACK, "server", {1: [[1, 2, 5, LOG, 1]]}, "five items"),
    ("ack-7", wire.ACK, "server", {1: [[1, 2, 5, LOG, 1, 1, 1]]}, "seven items"),
    ("ack-flat", wire.ACK, "server", {1: [1, 2, 5, LOG, 1, 1]}, "not nested"),
    ("ack-mid-true", wire.ACK, "server", {1: [[True, 2, 5, LOG, 1, 1]]}, "true for 1"),
    ("meta-mid-0", wire.MSG, "client", {1: 0}, "mid starts at 1"),
    ("meta-mid-true", wire.MSG, "client", {1: True}, "true for 1"),
    ("meta-form-3", wire.MSG, "client", {2: 3}, "form over 2"),
    ("meta-priority-3", wire.MSG, "client", {3: 3}, "priority over 2"),
    ("meta-key-0", wire.MSG, "client", {4: b""}, "empty idempotency key"),
    ("meta-key-65", wire.MSG, "client", {4: bytes(65)}, "idempotency key of 65 bytes"),
    ("meta-key-text", wire.MSG, "client", {4: "k"}, "idempotency key as text"),
    ("meta-reply-1", wire.MSG, "client", {1: 1, 6: 1}, "1 for true"),
    ("meta-1025", wire.MSG, "client", filled({}, 1025), "meta of 1,025 bytes"),
    ("meta-tag-7", wire.MSG, "server", SENT | {8: TAG[:7]}, "tag of 7 bytes"),
    ("meta-s2c-form-3", wire.MSG, "server", SENT | {2: 3}, "form over 2"),
    ("meta-sender-text", wire.MSG, "server", SENT | {11: "x" * 8}, "sender id as text"),
]  # fmt: skip
REPLACEMENTS = {
    "null": "f6", "bool": "f5", "uint": "05", "negative": "20", "float": "f93c00", "bytes": "4100",
    "text": "6178", "list": "80", "map": "a0",
}  # fmt: skip


def codec_vector(name: str, kind: int, sender: str, body: bytes, expect: str, comment: str) -> Vector:
    out = vector(
        name, CODEC, expect, comment,
        type=kind, name="META" if kind == wire.MSG else wire.NAMES[kind], sender=sender, hex=body.hex(),
    )  # fmt: skip
    try:
        fields = wire.decode_body(kind, sender, body)
    except WireError as exc:
        assert exc.verdict == expect, (name, exc.verdict, str(exc))
        return out | {"close": exc.close}
    assert expect == "success", name
    assert wire.cbor_encode(fields) == body == cbor2.dumps(dict(sorted(fields.items()))), name
    out["fields"] = fields_json(fields)
    assert {int(k): from_json(v) for k, v in out["fields"].items()} == fields == cbor2.loads(body), name
    return out


def replaced(kind: int, sender: str, fields: Fields) -> Iterator[tuple[str, bytes, str]]:
    """Each known field of a body missing, or replaced by an item of each wrong type."""
    required, optional = wire.known_fields(kind, sender)
    for key in fields:
        if key in required:
            rest = {k: v for k, v in fields.items() if k != key}
            yield f"missing-{key}", wire.cbor_encode(rest), f"field {key} is missing"
        if key not in required and key not in optional:
            continue
        for what, item in REPLACEMENTS.items():
            pairs = [
                wire.cbor_head(0, k) + (bytes.fromhex(item) if k == key else wire.cbor_item(v))
                for k, v in sorted(fields.items())
            ]
            body = wire.cbor_head(5, len(pairs)) + b"".join(pairs)
            try:
                wire.decode_body(kind, sender, body)
            except WireError:
                yield f"field-{key}-{what}", body, f"field {key} replaced: {what}"


def codec(recorded: Recorded) -> Iterator[Vector]:
    for name, kind, sender, fields, comment in VALID:
        yield codec_vector(name, kind, sender, wire.cbor_encode(fields), "success", comment)
    for name, body, comment in CBOR_TRAPS:
        yield codec_vector(f"cbor-{name}", wire.PING, "client", bytes.fromhex(body), wire.MALFORMED, comment)
    for name, item, comment in ITEM_TRAPS:
        body = "a201071818" + item
        yield codec_vector(
            f"item-{name}",
            wire.PING,
            "client",
            bytes.fromhex(body),
            wire.MALFORMED,
            f"unknown key: {comment}",
        )
    for name, kind, sender, fields, comment in WRONG:
        yield codec_vector(name, kind, sender, wire.cbor_encode(fields), wire.MALFORMED, comment)
    fullest = {
        "hello": "hello-signatures", "welcome": "welcome", "confirm": "confirm-pinned", "ready": "ready",
        "rotate": "rotate-signed", "reply": "reply-signed", "rotated": "rotated", "request": "request",
        "warn": "warn-details", "bye": "bye", "ping": "ping", "pong": "pong", "sub": "sub-after",
        "subok": "subok-gap", "unsub": "unsub", "err": "err-ref", "closed": "closed", "gap": "gap",
        "ack": "ack", "meta-c2s": "meta-c2s", "meta-s2c": "meta-s2c", "meta-inbox": "meta-inbox",
    }  # fmt: skip
    valid = {name: (kind, sender, fields) for name, kind, sender, fields, _ in VALID}
    for short, name in fullest.items():
        kind, sender, fields = valid[name]
        for what, raw, comment in replaced(kind, sender, fields):
            yield codec_vector(f"{short}-{what}", kind, sender, raw, wire.MALFORMED, comment)


# --- frames.json -------------------------------------------------------------------------------------------

FIRST_BODY: dict[int, Fields] = {kind: fields for _, kind, _, fields, _ in reversed(VALID)}
MESSAGE = wire.join_message(b"", b"hello")
DELIVERED = wire.join_message(wire.cbor_encode(SENT), b"hello")
STATES = {
    "server": ("EXPECT_HELLO", "EXPECT_CONFIRM", "OPEN", "EXPECT_REPLY"),
    "client": ("EXPECT_WELCOME", "EXPECT_READY", "OPEN", "EXPECT_ROTATED"),
}


def plain_body(kind: int, role: str) -> bytes:
    """A good plaintext of this type for a receiver."""
    if kind == wire.MSG:
        return MESSAGE if role == "server" else DELIVERED
    if wire.is_extension(kind):
        return b"anything"
    # As they would be for a receiver in epoch 2: READY and ROTATED name it, ROTATE and REPLY the next one.
    epochs: dict[int, Fields] = {wire.READY: {1: 2}, wire.ROTATE: {1: 3}, wire.REPLY: {1: 3}}
    fields = FIRST_BODY[kind] | epochs.get(kind, {})
    return wire.cbor_encode({k: v for k, v in fields.items() if (kind, k) != (wire.READY, 6)})


def sealed(kind: int, to: Receiver, body: bytes, flags: int = E, **head: int) -> bytes:
    """A frame that fits the receiver, except for what `head` says."""
    stream = head.get("stream", 5 if kind == wire.MSG else 0)
    raw = wire.header(kind, flags, head.get("epoch", to.epoch), stream, head.get("seq", to.seq))
    return wire.seal(wire.ratchet(to.ratchet)[0] if flags & R else to.key, to.iv, raw, body)


def receiver(name: str, role: str, **rest: Any) -> Receiver:
    """A receiver with keys from the stream of its vector."""
    random = Random(name)
    return Receiver(role=role, key=random("key", 32), iv=random("iv", 12), **rest)


def state_vectors() -> Iterator[Vector]:
    """Every type in every live state of both roles: the two tables of section 6."""
    for role, states in STATES.items():
        sender = "client" if role == "server" else "server"
        for kind in [*wire.NAMES, wire.EXTENSION]:
            for state in states:
                what = "extension" if kind == wire.EXTENSION else wire.NAMES[kind].lower()
                name = f"{role}-{state.lower().replace('_', '-')}-{what}"
                to = receiver(name, role, state=state, epoch=2, seq=4)
                clear = kind in (wire.HELLO, wire.WELCOME)
                body = plain_body(kind, role)
                frame = wire.header(kind, 0, 0, 0, 0) + body if clear else sealed(kind, to, body)
                try:
                    if not wire.sent_by(kind, sender):
                        raise WireError(wire.STATE, "direction")
                    expect, after = "success", wire.next_state(role, state, kind)
                except WireError:
                    expect, after = wire.STATE, "closed with 4400"
                yield frame_vector(
                    name, f"{VERSION}/6", expect, f"{role} in {state} receives {what}: {after}", frame, to
                )


def frames(recorded: Recorded) -> Iterator[Vector]:
    hello = wire.cbor_encode(HELLO_BODY)
    welcome = wire.cbor_encode(FIRST_BODY[wire.WELCOME])
    first = Receiver(role="server", state="EXPECT_HELLO", epoch=0)
    answer = Receiver(role="client", state="EXPECT_WELCOME", epoch=0)

    for kind, name, body, to in (
        (wire.HELLO, "hello", hello, first),
        (wire.WELCOME, "welcome", welcome, answer),
    ):
        for field, head in {
            "flags-e": (E, 0, 0, 0), "flags-b": (B, 0, 0, 0), "flags-reserved": (0x80, 0, 0, 0),
            "epoch": (0, 1, 0, 0), "stream": (0, 0, 1, 0), "seq": (0, 0, 0, 1),
        }.items():  # fmt: skip
            yield frame_vector(
                f"{name}-{field}-not-0", FRAMES, wire.MALFORMED, f"{field} is not 0",
                wire.header(kind, *head) + body, to,
            )  # fmt: skip
        for size in (0, 1, 15, 16):
            frame = (wire.header(kind, 0, 0, 0, 0) + body)[:size]
            yield frame_vector(f"{name}-length-{size}", FRAMES, wire.MALFORMED, "shorter than 17", frame, to)
        tagged = wire.header(kind, 0, 0, 0, 0) + body + bytes(16)
        yield frame_vector(f"{name}-with-tag", FRAMES, wire.MALFORMED, "16 bytes behind the body", tagged, to)
    for size, expect in (
        (4096, "success"),
        (4097, wire.MALFORMED),
        (4112, wire.MALFORMED),
        (4113, wire.TOO_LARGE),
    ):
        body = wire.cbor_encode(filled(HELLO_BODY, size))
        frame = wire.header(wire.HELLO, 0, 0, 0, 0) + body
        yield frame_vector(f"hello-body-{size}", FRAMES, expect, f"frame of {16 + size} bytes", frame, first)
    yield from bad_headers()
    yield from state_vectors()


def bad_headers() -> Iterator[Vector]:
    """Lengths, types, flags, epoch and seq of sealed frames; each opens apart from its one defect."""

    def build(
        name: str, expect: str, comment: str, kind: int = wire.MSG, flags: int = E, body: bytes = MESSAGE,
        cut: int | None = None, role: str = "server", head: dict[str, int] | None = None, **to: Any,
    ) -> Vector:  # fmt: skip
        into = receiver(name, role, **({"epoch": 2, "seq": 4, "ratchet": Random(name)("ratchet", 32)} | to))
        frame = sealed(kind, into, body, flags, **(head or {}))[:cut]
        return frame_vector(name, FRAMES, expect, comment, frame, into)

    bad, state = wire.MALFORMED, wire.STATE
    ping = wire.cbor_encode({1: 7})
    for size in (0, 1, 15, 16, 17, 31):
        yield build(f"length-{size}", bad, "shorter than 32", cut=size)
    for kind, what in (
        (0x00, "unassigned"), (0x0D, "unassigned"), (0x13, "KEY, reserved"), (0x17, "unassigned"),
        (0x21, "CAST, reserved"), (0x23, "unassigned"), (0x30, "CARD, reserved"), (0x31, "SKEY, reserved"),
        (0x32, "SKREQ, reserved"), (0x33, "LEFT, reserved"), (0x34, "unassigned"), (0x3F, "unassigned"),
        (0x80, "private, not agreed"), (0xFF, "private, not agreed"),
    ):  # fmt: skip
        for role in ("server", "client"):
            yield build(
                f"type-{kind:02x}-{role}", bad, f"type {kind:#04x}: {what}", kind, body=ping, role=role
            )
    for kind in (0x40, 0x7F):
        yield build(f"extension-{kind:02x}", "success", "opened and ignored", kind, body=b"any bytes")
        yield build(f"extension-{kind:02x}-empty", "success", "frame of 32 bytes", kind, body=b"")
        for flags in (0, E | P, E | Z, E | R, E | B):
            name = f"extension-{kind:02x}-flags-{flags:02x}"
            yield build(name, bad, "an extension has exactly E", kind, flags, b"any bytes")
    for flags in (0, E | P, E | Z, E | R, E | B, P, 0x20 | E, 0x40 | E, 0x80 | E):
        yield build(f"ping-flags-{flags:02x}", bad, "a control frame has exactly E", wire.PING, flags, ping)
    for bit in (0x20, 0x40, 0x80):
        yield build(f"msg-flags-{bit | E:02x}", bad, "reserved flag", flags=bit | E)
    for flags in range(32):
        names = "+".join(n for n, bit in zip("EPZRB", (E, P, Z, R, B), strict=True) if flags & bit) or "none"
        try:
            wire.check_flags(wire.MSG, flags)
        except WireError as exc:
            yield build(f"msg-flags-{flags:02x}", bad, f"{names}: {exc}", flags=flags)
    yield build("epoch-low", state, "epoch of the key before", head={"epoch": 1})
    yield build("epoch-high", state, "epoch of a key to come", head={"epoch": 3})
    yield build("epoch-16-bits", "success", "epoch 65,538 is 2 in the header", epoch=65538)
    yield build("epoch-last", "success", "epoch 2^32 - 1 is 65,535", epoch=2**32 - 1)
    yield build("seq-low", state, "the same seq again", head={"seq": 3})
    yield build("seq-high", state, "one seq left out", head={"seq": 5})
    yield build("seq-top", state, "seq 2^64 - 1", head={"seq": 2**64 - 1})
    yield build("seq-0", "success", "the first frame of a key", seq=0)
    yield build("stream-0-client", state, "a client's MSG on stream 0", head={"stream": 0})
    yield build("stream-0-server", "success", "the inbox", role="client", body=DELIVERED, head={"stream": 0})
    yield build("stream-top", "success", "the largest stream", head={"stream": 2**32 - 1})
    yield build("max-frame", "success", "exactly max_frame", body=MESSAGE + bytes(57), max_frame=96)
    yield build(
        "over-max-frame", wire.TOO_LARGE, "one byte over max_frame", body=MESSAGE + bytes(58), max_frame=96
    )
    early: dict[str, Any] = {"state": "EXPECT_CONFIRM", "seq": 0}
    confirm = wire.cbor_encode(filled({}, 4096))
    yield build("confirm-4096", "success", "frame of 4,128 bytes", wire.CONFIRM, body=confirm, **early)
    confirm = wire.cbor_encode(filled({}, 4097))
    yield build(
        "confirm-4097", wire.TOO_LARGE, "over the limit before READY", wire.CONFIRM, body=confirm, **early
    )
    control = wire.cbor_encode(filled({1: 7}, 4097))
    yield build("ping-body-4097", bad, "control body of 4,097 bytes", wire.PING, body=control)
    yield build("ping-empty", bad, "a control frame without a body", wire.PING, body=b"")
    yield build("msg-empty", bad, "a message without meta_len", body=b"")


# --- key_schedule.json -------------------------------------------------------------------------------------


def hello_fields(
    suite: int, share: bytes, sid: bytes, ids: list[bytes], epoch: int, pinned: bool = False
) -> Fields:
    offered: list[Value] = {1: [1], 2: [2, 1], 3: [3, 2, 1]}[suite]  # type: ignore[assignment]
    listed: list[Value] = [*ids]
    fields: Fields = {1: [2], 2: offered, 3: suite, 4: share, 5: sid, 6: listed, 7: 0, 8: epoch}
    return fields | ({9: [2, 1]} if pinned else {})


def clear_frame(kind: int, fields: Fields) -> bytes:
    return wire.header(kind, 0, 0, 0, 0) + wire.cbor_encode(fields)


def keys_vector(name: str, comment: str, kind: str, random: Random, **parts: Any) -> Vector:
    out = vector(name, RECORD, "success", comment, kind=kind, **parts)
    return out | ({"random": random.used} if random.used else {})


def transitions(recorded: Recorded, suite: int) -> Iterator[Vector]:
    """connect, a resume after it, a resume that knows only the family, a rotation."""
    name = f"suite-{suite}"
    random = Random(f"{name}-connect")
    ticket, sid = random("ticket", 32), random("sid", 16)
    stale = wire.family(ticket)

    def handshake(
        what: str, token: bytes, ids: list[bytes], held: int, epoch: int, comment: str, rng: Random
    ) -> tuple[wire.Epoch, Vector]:
        exchange = Exchange(suite, rng, recorded, "exchange")
        hello = clear_frame(wire.HELLO, hello_fields(suite, exchange.initiator, sid, ids, held))
        picked = wire.token_id(token)
        welcome = clear_frame(wire.WELCOME, {1: 2, 3: suite, 4: exchange.responder, 5: epoch, 6: picked})
        got = wire.connect(token, exchange.secret, hello, welcome)
        psk = wire.psk(token)
        assert got == wire.derive(wire.X(psk, exchange.secret), got.th) and picked in ids
        return got, keys_vector(
            f"{name}-{what}", comment, what, rng, suite=suite, epoch=epoch,
            input={"token": token.hex(), "token_id": picked.hex(), **exchange.json(),
                   "hello": hello.hex(), "welcome": welcome.hex()},
            intermediates={"psk": psk.hex(), "th": got.th.hex(), "m": got.m.hex()}, output=epoch_json(got),
        )  # fmt: skip

    one, out = handshake(
        "connect", ticket, [wire.token_id(ticket)], 0, 1, "a ticket is the token of epoch 0", random
    )
    yield out
    ids = [wire.token_id(one.token), wire.token_id(stale)]
    _, out = handshake(
        "resume", one.token, ids, 1, 2, "a resume with the token of epoch 1", Random(f"{name}-resume")
    )
    yield out
    rng = Random(f"{name}-resume-family")
    _, out = handshake(
        "resume-family", stale, [wire.token_id(rng("flushed", 32)), wire.token_id(stale)], 40, 41,
        "only the family is known: the family takes the place of the token, and the server revokes", rng,
    )  # fmt: skip
    yield out
    rng = Random(f"{name}-rotation")
    exchange = Exchange(suite, rng, recorded, "exchange")
    two = wire.rotate(one, exchange.secret, 2, exchange.initiator, exchange.responder)
    offer = wire.offer_hash(one.th, 2, exchange.initiator)
    yield keys_vector(
        f"{name}-rotation", "rotation from the epoch of connect; the server's share is the first one",
        "rotation",
        rng, suite=suite, epoch=2,
        input={"chain": one.chain.hex(), "th": one.th.hex(), **exchange.json()},
        intermediates={"th": two.th.hex(), "m": two.m.hex(), "offer": offer.hex()}, output=epoch_json(two),
    )  # fmt: skip


def bad_shares() -> Iterator[Vector]:
    """Shares that a receiver must refuse: 4401 before proof, 4400 in a rotation."""
    good = wire.initiator_share(1, bytes(31) + b"\x02")
    x, y = good[1:33], good[33:]
    prime = 2**256 - 2**224 + 2**192 + 2**96 - 1
    top = 2**255 - 19
    ek = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes(64)).public_key().public_bytes_raw()
    x25519 = wire.initiator_share(2, bytes(31) + b"\x02")
    order8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
    cases: list[tuple[int, str, bytes, str]] = [
        (1, "empty", b"", "no bytes"),
        (1, "infinity", b"\x00", "the point at infinity"),
        (1, "compressed", bytes([2 + y[-1] % 2]) + x, "a valid point, compressed"),
        (1, "hybrid", bytes([6 + y[-1] % 2]) + x + y, "a valid point, hybrid form"),
        (1, "raw", x + y, "64 bytes without 04"),
        (1, "long", good + b"\x00", "66 bytes"),
        (1, "off-curve", good[:-1] + bytes([good[-1] ^ 1]), "not on the curve"),
        (1, "zero", b"\x04" + bytes(64), "(0, 0)"),
        (1, "x-over-p", b"\x04" + prime.to_bytes(32, "big") + y, "x is not below p"),
        (2, "empty", b"", "no bytes"),
        (2, "short", x25519[:31], "31 bytes"),
        (2, "long", x25519 + b"\x00", "33 bytes"),
        (2, "zero", bytes(32), "all-zero output: 0"),
        (2, "one", (1).to_bytes(32, "little"), "all-zero output: 1"),
        (2, "order-8", bytes.fromhex(order8), "all-zero output: a point of order 8"),
        (2, "p-minus-1", (top - 1).to_bytes(32, "little"), "all-zero output: p - 1"),
        (2, "p", top.to_bytes(32, "little"), "all-zero output: p"),
        (3, "short", (ek + x25519)[:-1], "1,215 bytes"),
        (3, "long", ek + x25519 + b"\x00", "1,217 bytes"),
        (3, "x25519-only", x25519, "32 bytes"),
        (3, "zero", ek + bytes(32), "all-zero X25519 output"),
        (3, "modulus", b"\xff" * 3 + ek[3:] + x25519, "an encapsulation key with a coefficient over q"),
    ]  # fmt: skip
    answers: list[tuple[int, str, bytes, str]] = [
        *(case for case in cases if case[0] != 3),
        (3, "short", bytes(wire.CT_SIZE - 1) + x25519, "1,119 bytes"),
        (3, "long", bytes(wire.CT_SIZE + 1) + x25519, "1,121 bytes"),
        (3, "zero", bytes(wire.CT_SIZE) + bytes(32), "all-zero X25519 output"),
    ]
    places = (
        ("HELLO", 4401, cases),
        ("WELCOME", 4401, answers),
        ("ROTATE", 4400, cases),
        ("REPLY", 4400, answers),
    )
    for message, close, shares in places:
        initiator = message in ("HELLO", "ROTATE")
        for suite, what, share, comment in shares:
            try:
                wire.check_share(suite, share, initiator=initiator)
            except ValueError:
                yield vector(
                    f"share-{message.lower()}-{suite}-{what}", RECORD,
                    wire.AUTHENTICATION if close == 4401 else wire.MALFORMED, comment,
                    kind="share", suite=suite, message=message, share=share.hex(), close=close,
                )  # fmt: skip
            else:
                raise AssertionError(f"share {suite} {what} is accepted")


def signatures(recorded: Recorded) -> Iterator[Vector]:
    """Server over th (READY), server over the offer (ROTATE), device over th; both algorithms."""
    purposes = {
        "ready": wire.signed_by_server,
        "rotate": wire.signed_by_server,
        "device": wire.signed_by_client,
    }
    for algorithm, label in ((1, "ecdsa"), (2, "ed25519")):
        for purpose, prefix in purposes.items():
            name = f"signature-{label}-{purpose}"
            random = Random(name)
            seed, th, share = random("seed", 32), random("th", 32), random("share", 32)
            digest = wire.offer_hash(th, 2, share) if purpose == "rotate" else th
            message = prefix(digest)
            if algorithm == 1:
                private = wire.p256_scalar(wire.p256_private(seed))
                public = wire.p256_public(wire.p256_private(seed).public_key())
                signature = sign_ecdsa(recorded, name, seed, message)
            else:
                private, public = seed, wire.ed25519_public(seed)
                signature = wire.sign_ed25519(seed, message)
            shared: Vector = {"kind": "signature", "purpose": purpose, "algorithm": algorithm}
            key = wire.key_id(algorithm, public).hex()
            given = (
                {"th": th.hex(), "epoch": 2, "share": share.hex()}
                if purpose == "rotate"
                else {"th": th.hex()}
            )

            def build(
                what: str, expect: str, comment: str, message: bytes, signature: bytes,
                public: bytes = public,
                algorithm: int = algorithm, name: str = name, shared: Vector = shared, key: str = key,
                given: Vector = given, private: bytes = private, random: Random = random,
            ) -> Vector:  # fmt: skip
                assert wire.verify(algorithm, public, signature, message) == (expect == "success"), (
                    name + what
                )
                return vector(
                    name + what, HANDSHAKE, expect, comment, **shared,
                    input={"private": private.hex(), "public": public.hex(), **given},
                    intermediates={"message": message.hex()}, output={"key_id": key,
                    "signature": signature.hex()},
                    random=random.used,
                )  # fmt: skip

            yield build(
                "", "success", f"{label} over {message[:11].decode()!r} || 00 || ...", message, signature
            )
            broken = wire.AUTHENTICATION
            flipped = signature[:-1] + bytes([signature[-1] ^ 1])
            yield build("-flipped", broken, "last bit of the signature", message, flipped)
            yield build("-zero", broken, "64 zero bytes", message, bytes(64))
            halves = signature[32:] + signature[:32]
            yield build("-swapped", broken, "second half first", message, halves)
            other = wire.signed_by_client if prefix is wire.signed_by_server else wire.signed_by_server
            wrong = (
                sign_ecdsa(recorded, name + "-role", seed, other(digest))
                if algorithm == 1 else wire.sign_ed25519(seed, other(digest))
            )  # fmt: skip
            yield build("-role", broken, "signed with the prefix of the other side", message, wrong)


def key_schedule(recorded: Recorded) -> Iterator[Vector]:
    random = Random("labels")
    secret, context = random("secret", 32), random("context", 32)
    for label, ctx, size in (
        ("id", b"", 8),
        ("chain", context, 32),
        ("c2s iv", context, 12),
        ("msg", b"", 32),
    ):
        name = f"label-{label.replace(' ', '-')}"
        full = f"rwt2 {label}".encode()
        info = wire.u16(size) + bytes([len(full)]) + full + bytes([len(ctx)]) + ctx + b"\x01"
        assert wire.X(secret, info)[:size] == wire.L(secret, label, ctx, size)
        yield keys_vector(
            name, f"L with n = {size}", "label", random,
            input={"secret": secret.hex(), "label": label, "context": ctx.hex(), "size": size},
            intermediates={"info": info.hex()}, output={"value": wire.L(secret, label, ctx, size).hex()},
        )  # fmt: skip
    for i in range(3):
        random = Random(f"token-{i}")
        token, sid = random("token", 32), random("sid", 16)
        stale = wire.family(token)
        yield keys_vector(
            f"tokid-{i}", "public name of a token", "tokid", random,
            input={"token": token.hex()}, output={"token_id": wire.token_id(token).hex()},
        )  # fmt: skip
        yield keys_vector(
            f"family-{i}", "the family of a ticket's first successor, and its public name", "family", random,
            input={"token": token.hex()},
            output={"family": stale.hex(), "family_id": wire.token_id(stale).hex()},
        )  # fmt: skip
        yield keys_vector(
            f"sender-{i}", "meta field 11", "sender", random,
            input={"sid": sid.hex()}, output={"sender_id": wire.sender_id(sid).hex()},
        )  # fmt: skip
        yield keys_vector(
            f"connection-{i}", "name of a connection in logs, from its th", "connection", random,
            input={"th": token.hex()}, output={"connection_id": wire.connection_id(token)},
        )  # fmt: skip
        step, following = wire.ratchet(token)
        yield keys_vector(
            f"ratchet-{i}", "one step of the ratchet", "ratchet", random,
            input={"ratchet": token.hex()}, output={"key": step.hex(), "next": following.hex()},
        )  # fmt: skip
    for suite in (1, 2, 3):
        yield from transitions(recorded, suite)
    yield from bad_shares()
    yield from signatures(recorded)


# --- record.json -------------------------------------------------------------------------------------------

META = wire.cbor_encode({1: 9, 2: 1})
TEXT = "Every rotation mixes a fresh Diffie-Hellman exchange into the session. " * 6
SINGLE = wire.join_message(META, TEXT.encode())


def mid_message(mid: int, body: bytes) -> bytes:
    return wire.join_message(wire.cbor_encode({1: mid}), body)


def record_vector(
    name: str, comment: str, plaintext: bytes, flags: int = E, expect: str = "success", *,
    role: str = "server",
    kind: int = wire.MSG, change: Callable[[bytes], bytes] | None = None, head: dict[str, int] | None = None,
    spec: str = RECORD, ratchet: bytes = b"", **to: Any,
) -> Vector:  # fmt: skip
    """A sealed frame, changed afterwards by `change`; `plaintext` is what was sealed."""
    into = receiver(name, role, ratchet=ratchet, **({"epoch": 3, "seq": 7} | to))
    frame = sealed(kind, into, plaintext, flags, **(head or {}))
    frame = change(frame) if change else frame
    return frame_vector(name, spec, expect, comment, frame, into, kind="record", plaintext=plaintext.hex())


def flip(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    """Turn one bit."""

    def change(frame: bytes) -> bytes:
        out = bytearray(frame)
        out[at] ^= 1 << bit
        return bytes(out)

    return change


def good_records(recorded: Recorded) -> Iterator[Vector]:
    small = wire.join_message(META, b"hello")
    batch = wire.join_batch([mid_message(i, f"message {i}".encode()) for i in (9, 10, 12)])
    packed = deflate(recorded, "record-deflated", SINGLE)
    delivered = [
        wire.join_message(wire.cbor_encode(SENT | {2: 1, 7: 42 + i, 10: "ada"}), f"hello {i}".encode())
        for i in range(2)
    ]
    ping = wire.cbor_encode({1: 7})
    yield record_vector("encrypted", "level standard", small)
    yield record_vector("encrypted-s2c", "from the server", delivered[0], role="client")
    yield record_vector("encrypted-no-meta", "meta_len 0 is the empty map", wire.join_message(b"", b"hello"))
    yield record_vector("encrypted-no-body", "an empty body", wire.join_message(META, b""))
    yield record_vector("encrypted-two-bytes", "the shortest message", b"\x00\x00")
    yield record_vector("encrypted-seq-last", "the last seq before the hard stop", small, seq=2**23 - 1)
    yield record_vector("control", "PING", ping, kind=wire.PING)
    yield record_vector("clear", "authenticated clear text: GMAC", small, 0)
    yield record_vector("clear-s2c", "from the server", delivered[0], 0, role="client")
    yield record_vector("clear-two-bytes", "the shortest message", b"\x00\x00", 0)
    yield record_vector("clear-deflated", "Z without E", packed, Z)
    yield record_vector("clear-batch", "B without E", batch, B)
    yield record_vector("deflated", "deflated, then sealed", packed, E | Z)
    yield record_vector("padded", "level high: padded to 64", wire.pad(small), E | P)
    yield record_vector("padded-long", "padded beyond 64", wire.pad(SINGLE), E | P)
    endings = wire.join_message(b"", b"\x80\x00\x80\x00\x00")
    yield record_vector("padded-body-80", "a body that ends like padding", wire.pad(endings), E | P)
    yield record_vector("padded-deflated", "deflated, then padded", wire.pad(packed), E | P | Z)
    tight = wire.pad(small).rstrip(b"\x00")
    yield record_vector("padded-not-padme", "a receiver does not check the padded length", tight, E | P)
    yield record_vector("batch", "three messages", batch, E | B)
    yield record_vector("batch-s2c", "two from the server", wire.join_batch(delivered), E | B, role="client")
    yield record_vector("batch-one", "one message", wire.join_batch([small]), E | B)
    mixed = wire.join_batch([mid_message(4, b"a"), b"\x00\x00", mid_message(5, b"b")])
    yield record_vector("batch-without-mid", "a message without mid between two", mixed, E | B)
    window = wire.join_batch([mid_message(i, b"") for i in range(1, 5)])
    yield record_vector("batch-window", "exactly W messages", window, E | B, window=4)
    yield record_vector("batch-padded", "batched, then padded", wire.pad(batch), E | P | B)
    secret = Random("ratcheted-1")("ratchet", 32)
    for i in range(3):
        key, following = wire.ratchet(secret)
        message = wire.pad(wire.join_message(wire.cbor_encode({1: 9 + i}), f"secret {i}".encode()))
        # One direction: the three share the key and iv of the first.
        shared = receiver("ratcheted-1", "server", ratchet=secret, epoch=3, seq=7 + i)
        frame = sealed(wire.MSG, shared, message, E | P | R)
        yield frame_vector(
            f"ratcheted-{i + 1}", RECORD, "success", f"level maximum, message {i + 1} of three in a row",
            frame,
            shared, kind="record", plaintext=message.hex(), message_key=key.hex(),
            ratchet_next=following.hex(),
        )  # fmt: skip
        secret = following
    limit = wire.join_message(b"", bytes(64))
    yield record_vector("max-message", "body of exactly max_message", limit, max_message=64)


def bad_records(recorded: Recorded) -> Iterator[Vector]:
    bad, broken, state = wire.MALFORMED, wire.DECRYPTION, wire.STATE
    small = wire.join_message(META, b"hello")
    secret = Random("failures")("ratchet", 32)
    for label, flags, text in (
        ("encrypted", E, small),
        ("clear", 0, small),
        ("ratcheted", E | P | R, wire.pad(small)),
    ):
        for name, at, bit, expect in (
            ("header-type", 0, 0, bad), ("header-flag-e", 1, 0, bad if flags & R else broken),
            ("header-flag-z", 1, 2, broken), ("header-flag-reserved", 1, 5, bad), ("header-epoch", 3, 0,
             state),
            ("header-stream", 7, 0, broken), ("header-seq", 15, 0, state), ("payload-first", 16, 0, broken),
            ("payload-last", -17, 7, broken), ("tag-first", -16, 0, broken), ("tag-last", -1, 7, broken),
        ):  # fmt: skip
            yield record_vector(
                f"{label}-flip-{name}", f"bit {bit} of byte {at} turned", text, flags, expect,
                ratchet=secret, change=flip(at, bit),
            )  # fmt: skip
        yield record_vector(
            f"{label}-cut", "last byte missing", text, flags, broken, ratchet=secret, change=lambda f: f[:-1]
        )
        yield record_vector(
            f"{label}-longer",
            "one byte more",
            text,
            flags,
            broken,
            ratchet=secret,
            change=lambda f: f + b"\0",
        )
        yield record_vector(
            f"{label}-replayed",
            "seq one lower, sealed so",
            text,
            flags,
            state,
            ratchet=secret,
            head={"seq": 6},
        )
        yield record_vector(
            f"{label}-skipped",
            "seq one higher, sealed so",
            text,
            flags,
            state,
            ratchet=secret,
            head={"seq": 8},
        )
        yield record_vector(
            f"{label}-epoch-old", "epoch before", text, flags, state, ratchet=secret, head={"epoch": 2}
        )
        yield record_vector(
            f"{label}-epoch-next", "epoch to come", text, flags, state, ratchet=secret, head={"epoch": 4}
        )
    for label, flags, kind, text in (
        ("encrypted", E, wire.MSG, small), ("clear", 0, wire.MSG, small), ("ping", E, wire.PING,
         wire.cbor_encode({1: 7})),
    ):  # fmt: skip
        name = f"{label}-reflected"
        other = Random(name)
        frame = sealed(
            kind,
            Receiver(role="client", key=other("other key", 32), iv=other("other iv", 12), epoch=3, seq=7),
            text,
            flags,
        )
        yield frame_vector(
            name, RECORD, broken, "the receiver's own frame comes back: sealed under the other direction",
            frame,
            receiver(name, "server", epoch=3, seq=7), kind="record", plaintext=text.hex(),
            sealed_key=other("other key", 32).hex(), sealed_iv=other("other iv", 12).hex(),
        )  # fmt: skip
    wrong_iv = Random("encrypted-wrong-iv")("other iv", 12)
    into = receiver("encrypted-wrong-iv", "server", epoch=3, seq=7)
    frame = wire.seal(into.key, wrong_iv, wire.header(wire.MSG, E, 3, 5, 7), small)
    yield frame_vector(
        "encrypted-wrong-iv", RECORD, broken, "sealed with another iv", frame, into, kind="record",
        plaintext=small.hex(), sealed_iv=wrong_iv.hex(),
    )  # fmt: skip
    step, _ = wire.ratchet(secret)
    into = receiver("ratcheted-same-key", "server", epoch=3, seq=8, ratchet=wire.ratchet(secret)[1])
    frame = wire.seal(step, into.iv, wire.header(wire.MSG, E | P | R, 3, 5, 8), wire.pad(small))
    yield frame_vector(
        "ratcheted-same-key", RECORD, broken, "the key of the frame before: the ratchet has moved on",
        frame, into,
        kind="record", plaintext=wire.pad(small).hex(), sealed_key=step.hex(),
    )  # fmt: skip
    yield record_vector("clear-under-always", "E=0 where a side declared always", small, 0, state, policy=1)
    early: dict[str, Any] = {"kind": wire.CONFIRM, "state": "EXPECT_CONFIRM", "epoch": 1, "seq": 0}
    yield record_vector(
        "confirm-flipped",
        "CONFIRM that does not open: 4401",
        b"\xa0",
        E,
        wire.AUTHENTICATION,
        change=flip(-1),
        **early,
    )
    yield record_vector("padded-no-80", "zeros only", bytes(64), E | P, bad)
    yield record_vector("padded-empty", "an empty plaintext", b"", E | P, bad)
    yield record_vector("padded-81", "81 for 80", small + b"\x81" + bytes(30), E | P, bad)
    yield record_vector("padded-nothing", "nothing before the 80", b"\x80" + bytes(63), E | P, bad)
    yield from bad_payloads(recorded)


def bad_payloads(recorded: Recorded) -> Iterator[Vector]:
    """Frames that open and must be refused for what is inside."""
    bad, large = wire.MALFORMED, wire.TOO_LARGE
    packed = deflate(recorded, "record-deflated", SINGLE)
    yield record_vector("deflate-garbage", "not deflate", b"\xff" * 32, E | Z, bad)
    yield record_vector("deflate-cut", "the stream does not end", packed[:-1], E | Z, bad)
    yield record_vector("deflate-trailing", "one byte behind the stream", packed + b"\x00", E | Z, bad)
    yield record_vector("deflate-twice", "a second stream behind the first", packed + packed, E | Z, bad)
    yield record_vector("deflate-empty", "an empty payload", b"", E | Z, bad)
    zlib_form = b"\x78\xda" + packed + zlib.adler32(SINGLE).to_bytes(4, "big")
    yield record_vector("deflate-zlib", "zlib header and checksum around the stream", zlib_form, E | Z, bad)
    zeros = deflate(recorded, "record-bomb", wire.join_message(b"", bytes(100_000)))
    assert 100 * len(zeros) < 100_002
    yield record_vector("deflate-ratio", "more than 100 to 1", zeros, E | Z, large)
    yield record_vector(
        "deflate-ratio-padded", "more than 100 to 1, padded", wire.pad(zeros), E | P | Z, large
    )
    chars = bytes(97 + x % 5 for x in wire.sha(b"noise") * 40)
    payload = wire.join_message(b"", chars)
    noise = deflate(recorded, "record-over-inflated", payload)
    yield record_vector(
        "deflate-over", "inflates to over 2 + 1,024 + max_message", noise, E | Z, large, max_message=253
    )
    yield record_vector("deflate-body-over", "body over max_message", noise, E | Z, large, max_message=1279)
    yield record_vector("deflate-at-limit", "body of exactly max_message", noise, E | Z, max_message=1280)
    yield record_vector(
        "over-max-message", "one byte over", wire.join_message(b"", bytes(65)), E, large, max_message=64
    )
    yield record_vector("meta-one-byte", "payload of one byte", b"\x00", E, bad)
    yield record_vector("meta-beyond", "meta_len beyond the payload", b"\x00\x03\xa0", E, bad)
    full = wire.cbor_encode(filled({}, 1024))
    yield record_vector("meta-1024", "the longest meta", wire.join_message(full, b"x"))
    over = wire.cbor_encode(filled({}, 1025))
    yield record_vector("meta-1025", "meta of 1,025 bytes", wire.join_message(over, b"x"), E, bad)
    yield record_vector("meta-65535", "meta_len 65,535", b"\xff\xff" + bytes(100), E, bad)
    yield record_vector("meta-not-a-map", "meta is a uint", wire.join_message(b"\x00", b"x"), E, bad)
    yield record_vector("meta-mid-0", "mid 0", mid_message(0, b"x"), E, bad)
    yield record_vector(
        "meta-trailing", "a byte behind the map inside meta", wire.join_message(b"\xa0\x00", b""), E, bad
    )
    one, two = mid_message(1, b"a"), mid_message(2, b"b")
    for name, payload, comment in (
        ("empty", b"", "no entry"),
        ("entry-0", wire.join_batch([one, b""]), "entry of length 0"),
        ("entry-1", wire.join_batch([one, b"\x00"]), "entry of length 1"),
        ("left-over-1", wire.join_batch([one]) + b"\x00", "one byte left over"),
        ("left-over-3", wire.join_batch([one]) + b"\x00\x00\x00", "three bytes left over"),
        ("entry-beyond", wire.join_batch([one, two])[:-1], "entry longer than the payload"),
        ("entry-huge", b"\xff\xff\xff\xff" + one, "entry of 2^32 - 1 bytes"),
        ("not-a-batch", one, "a single message under flag B"),
        ("mids-descending", wire.join_batch([two, one]), "mid 2 before mid 1"),
        ("mids-equal", wire.join_batch([one, one]), "mid 1 twice"),
        ("meta-beyond", wire.join_batch([b"\x00\x07\xa0"]), "meta_len beyond the entry"),
    ):
        yield record_vector(f"batch-{name}", comment, payload, E | B, bad)
    many = wire.join_batch([mid_message(i, b"") for i in range(1, 6)])
    yield record_vector("batch-over-window", "W + 1 messages with mid", many, E | B, large, window=4)
    bare = wire.join_batch([b"\x00\x00"] * 5)
    yield record_vector("batch-over-window-bare", "W + 1 messages without mid", bare, E | B, large, window=4)
    big = wire.join_batch([wire.join_message(b"", bytes(65)), b"\x00\x00"])
    yield record_vector(
        "batch-over-max-message", "one body over max_message", big, E | B, large, max_message=64
    )


def record(recorded: Recorded) -> Iterator[Vector]:
    yield from good_records(recorded)
    yield from bad_records(recorded)
    for count, size in (
        (0, 0), (2**22 - 1, 0), (2**22, 0), (0, 2**36 - 1), (1, 2**36), (2**23 - 1, 0), (2**23, 0),
        (1, 2**37 - 1), (1, 2**37),
    ):  # fmt: skip
        yield vector(
            f"usage-{count}-{size}", RECORD, "success", "what a sender does after that use of one key",
            kind="usage",
            frames=count, bytes=size, action=wire.usage(count, size),
        )  # fmt: skip


# --- rotation_schedule.json, padme.json --------------------------------------------------------------------


def rotation_schedule(recorded: Recorded) -> Iterator[Vector]:
    settings = ((60_000, 800), (5_000, 500), (3_600_000, 950), (12_347, 733))
    for pattern in ("fixed", "fibonacci", "phi"):
        for k in (0, 1, 2, 7, 1000, 2**32 + 5):
            for interval, threshold in settings:
                times = wire.schedule(pattern, k, interval, threshold)
                first = [next(times) for _ in range(30)]
                assert first == sorted(set(first)) and first[0] >= 0
                margin = min(5000, interval // 4)
                nows = [
                    0,
                    1,
                    first[0],
                    first[1] - margin,
                    first[1] - margin + 1,
                    first[1],
                    first[12] - 1,
                    first[25],
                ]
                send = [
                    {"now": now, "send": wire.next_rotation(pattern, k, interval, threshold, now)}
                    for now in sorted({now for now in nows if now >= 0})
                ]
                yield vector(
                    f"{pattern}-k{k}-i{interval}-t{threshold}", ROTATION, "success",
                    f"pattern {pattern}, k = {k}, interval {interval} ms, threshold {threshold} permille",
                    pattern=pattern, k=k, interval_ms=interval, threshold_permille=threshold, first=first,
                    next=send,
                )  # fmt: skip
    for until, threshold in (
        (0, 800),
        (15_789, 800),
        (40_000, 800),
        (40_001, 800),
        (126_315, 800),
        (60_000, 950),
        (7, 733),
    ):
        yield vector(
            f"lifetime-{until}-t{threshold}", ROTATION, "success",
            "field 12 of READY and ROTATED from field 2",
            pattern="lifetime", until_ms=until, threshold_permille=threshold,
            lifetime_ms=wire.lifetime(until, threshold),
        )  # fmt: skip


def padme(recorded: Recorded) -> Iterator[Vector]:
    lengths = {2, 3, 9, 17, 33, 56, 57, 62, 63, 64, 65, 66, 67, 68, 99, 1_000_000, 2**20, 2**20 + 1026}
    lengths |= {2**e + d for e in range(1, 21) for d in (-2, -1, 0, 1) if 2**e + d >= 2}
    for length in sorted(lengths):
        padded = wire.padded_length(length)
        assert length < padded and (length < 57 or 8 * (padded - length) <= length)
        assert wire.unpad(wire.pad(bytes([1]) * length)) == bytes([1]) * length
        yield vector(
            f"padme-{length}", RECORD, "success",
            "payload length; padme(length + 1); length of the padded payload",
            length=length, padme=wire.padme(length + 1), padded=padded,
        )  # fmt: skip
    buckets = len({wire.padded_length(length) for length in range(1, 65537)})
    yield vector(
        "buckets", RECORD, "success", "distinct padded lengths of the payloads of `first` to `last` bytes",
        first=1, last=65536, buckets=buckets,
    )  # fmt: skip


# --- handshake.json ----------------------------------------------------------------------------------------


class Session:
    """Both sides of one session; each frame is opened by the reference receiver before it is kept."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.frames: list[Vector] = []
        self.seq: dict[tuple[str, int], int] = {}
        self.epoch = {"client": 0, "server": 0}  # of what that side sends
        self.keys: dict[int, wire.Epoch] = {}
        self.state = {"client": "EXPECT_WELCOME", "server": "EXPECT_HELLO"}

    def send(
        self, sender: str, kind: int, fields: Fields | None = None, messages: list[tuple[Fields,
        bytes]] | None = None,
        *, flags: int = E, stream: int = 0,
    ) -> bytes:  # fmt: skip
        other = "server" if sender == "client" else "client"
        entry: Vector = {"n": len(self.frames), "from": sender, "name": wire.NAMES[kind]}
        joined = [wire.join_message(wire.cbor_encode(meta), body) for meta, body in messages or []]
        plaintext = wire.cbor_encode(fields) if fields is not None else joined[0]
        plaintext = wire.join_batch(joined) if flags & B else plaintext
        if kind in (wire.HELLO, wire.WELCOME):
            to = Receiver(role=other, state=self.state[other])
            frame = wire.header(kind, 0, 0, 0, 0) + plaintext
        else:
            epoch = self.epoch[sender]
            keys = self.keys[epoch].c2s if sender == "client" else self.keys[epoch].s2c
            seq = self.seq.get((sender, epoch), 0)
            self.seq[sender, epoch] = seq + 1
            to = Receiver(
                role=other,
                state=self.state[other],
                epoch=epoch,
                seq=seq,
                key=keys.key,
                iv=keys.iv,
                ratchet=keys.ratchet,
            )
            frame = wire.seal(keys.key, keys.iv, wire.header(kind, flags, epoch, stream, seq), plaintext)
            entry |= {"epoch": epoch, "seq": seq, "key": keys.key.hex(), "iv": keys.iv.hex()}
        got = wire.receive(frame, to)
        assert got.plaintext == plaintext and (fields is None or got.fields == fields), (self.name, kind)
        check_again(frame, to, got)
        if kind == wire.ROTATE:
            self.state["server"] = "EXPECT_REPLY"
        self.state[other] = got.state
        entry |= {"state_after": got.state, "plaintext": plaintext.hex(), "frame": frame.hex()}
        entry |= {"messages": messages_json(got)} if kind == wire.MSG else {"fields": fields_json(got.fields)}
        self.frames.append(entry)
        return frame


def session(recorded: Recorded, suite: int, pinned: bool) -> Vector:
    name = f"session-suite-{suite}-{'pinned' if pinned else 'tls'}"
    random, run = Random(name), Session(name)
    ticket, sid, log = random("ticket", 32), random("sid", 16), random("log", 8)
    tags = [random(f"tag {i}", 8) for i in range(1, 4)]
    server_seed, device_seed = (random("server key", 32), random("device key", 32)) if pinned else (b"", b"")
    k = 5
    asked: Value = [60_000, "fibonacci", 800]

    def signed(seed: bytes, message: bytes) -> Value:
        public = wire.ed25519_public(seed)
        signature = wire.sign_ed25519(seed, message)
        assert wire.verify(2, public, signature, message)
        return [wire.key_id(2, public), signature]

    # Connect.
    first = Exchange(suite, random, recorded, "connect")
    picked = wire.token_id(ticket)
    hello = run.send("client", wire.HELLO, hello_fields(suite, first.initiator, sid, [picked], 0, pinned))
    welcome = run.send("server", wire.WELCOME, {1: 2, 3: suite, 4: first.responder, 5: 1, 6: picked})
    one = run.keys[1] = wire.connect(ticket, first.secret, hello, welcome)
    run.epoch |= {"client": 1, "server": 1}
    confirm: Fields = {2: asked, 3: ["rwt-vectors", VERSION]}
    if pinned:
        confirm = {1: signed(device_seed, wire.signed_by_client(one.th)), 2: asked}
    run.send("client", wire.CONFIRM, confirm)
    until = wire.next_rotation("fibonacci", k, 60_000, 800, 0)
    ready: Fields = {
        1: 1, 2: until, 3: 0, 4: wire.MAX_FRAME, 5: False, 7: 300_000, 8: 20_000, 9: asked, 10: 1024,
        11: wire.MAX_MESSAGE, 12: wire.lifetime(until, 800),
    }  # fmt: skip
    run.send(
        "server",
        wire.READY,
        ready | ({6: signed(server_seed, wire.signed_by_server(one.th))} if pinned else {}),
    )

    # The inbox and a channel, a batch, its answer, its delivery.
    inbox = random("inbox log", 8)
    run.send("client", wire.SUB, {1: 1, 2: "", 5: 1})
    run.send("client", wire.SUB, {1: 2, 2: "room"})
    run.send("server", wire.SUBOK, {1: 1, 2: 0, 3: 0, 4: [inbox, 0, b""], 5: 1, 8: 0})
    run.send("server", wire.SUBOK, {1: 2, 2: 5, 3: 0, 4: [log, 0, b""], 5: 3, 8: 0})
    stored, bodies = 1764043200000, [b"hello", b'{"type":"greeting"}', b"after the rotation"]
    forms = (1, 2, 1)
    sent: list[tuple[Fields, bytes]] = [({1: i + 1, 2: forms[i]}, bodies[i]) for i in range(3)]
    given: list[tuple[Fields, bytes]] = [
        (
            {
                2: forms[i],
                7: i + 1,
                8: tags[i],
                9: stored + 1000 * (i // 2),
                10: "ada",
                11: wire.sender_id(sid),
            },
            bodies[i],
        )
        for i in range(3)
    ]
    run.send("client", wire.MSG, messages=sent[:2], flags=E | B, stream=5)
    run.send("server", wire.ACK, {1: [[1, 2, 5, log, 1, stored]]})
    run.send("server", wire.MSG, messages=given[:2], flags=E | B, stream=5)

    # Rotation, then one message each way under the new epoch.
    second = Exchange(suite, random, recorded, "rotation")
    offer = wire.offer_hash(one.th, 2, second.initiator)
    offered = {3: signed(server_seed, wire.signed_by_server(offer))} if pinned else {}
    run.send("server", wire.ROTATE, {1: 2, 2: second.initiator, **offered})
    two = run.keys[2] = wire.rotate(one, second.secret, 2, second.initiator, second.responder)
    proof = {3: signed(device_seed, wire.signed_by_client(two.th))} if pinned else {}
    run.send("client", wire.REPLY, {1: 2, 2: second.responder, **proof})
    run.epoch["client"] = run.epoch["server"] = 2
    after = wire.next_rotation("fibonacci", k, 60_000, 800, until) - until
    run.send("server", wire.ROTATED, {1: 2, 2: after, 12: wire.lifetime(after, 800)})
    run.send("client", wire.MSG, messages=sent[2:], stream=5)
    run.send("server", wire.ACK, {1: [[3, 1, 5, log, 3, stored + 1000]]})
    run.send("server", wire.MSG, messages=given[2:], stream=5)
    assert run.state == {"client": "OPEN", "server": "OPEN"}

    stale = wire.family(one.token)
    identities = (
        {
            who: {
                "algorithm": 2,
                "private": seed.hex(),
                "public": wire.ed25519_public(seed).hex(),
                "key_id": wire.key_id(2, wire.ed25519_public(seed)).hex(),
            }
            for who, seed in (("server", server_seed), ("device", device_seed))
        }
        if pinned
        else {}
    )
    return vector(
        name, HANDSHAKE, "success", f"a whole session, suite {suite}, {'pinned' if pinned else 'tls'} mode",
        suite=suite, mode="pinned" if pinned else "tls", **({"identities": identities} if pinned else {}),
        input={"ticket": ticket.hex(), "sid": sid.hex(), "k": k, "connect": first.json(),
        "rotation": second.json()},
        intermediates={
            "token_id": picked.hex(), "family": stale.hex(), "family_id": wire.token_id(stale).hex(),
            "psk": wire.psk(ticket).hex(), "offer": offer.hex(), "connection_id": wire.connection_id(one.th),
            "epochs": [
                {"epoch": n, "th": e.th.hex(), "m": e.m.hex(), **epoch_json(e)}
                for n, e in sorted(run.keys.items())
            ],
        },
        random=random.used, frames=run.frames,
    )  # fmt: skip


def handshake(recorded: Recorded) -> Iterator[Vector]:
    yield session(recorded, 1, False)
    yield session(recorded, 2, False)
    yield session(recorded, 2, True)
    yield session(recorded, 3, False)


# --- Writing and checking ----------------------------------------------------------------------------------

FILES: dict[str, Callable[[Recorded], Iterator[Vector]]] = {
    "codec.json": codec,
    "frames.json": frames,
    "key_schedule.json": key_schedule,
    "record.json": record,
    "rotation_schedule.json": rotation_schedule,
    "handshake.json": handshake,
    "padme.json": padme,
}


def text(vectors: list[Vector]) -> str:
    """One vector a line: small files, and a diff shows the vectors that changed."""
    return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=True) for item in vectors) + "\n]\n"


def build(recorded: Recorded) -> dict[str, str]:
    """Name and text of every file; ids are unique in a file and none is empty."""
    out: dict[str, str] = {}
    for name, make in FILES.items():
        vectors = list(make(recorded))
        ids = [item["id"] for item in vectors]
        assert vectors and len(set(ids)) == len(ids), (name, [i for i in ids if ids.count(i) > 1])
        out[name] = text(vectors)
    return out | {"recorded.json": text(recorded.vectors())}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    parser.add_argument(
        "--record", action="store_true", help="make recorded outputs that are missing or stale"
    )
    options = parser.parse_args()
    files = build(Recorded(FOLDER / "recorded.json", record=options.record and not options.check))
    differing = [
        name
        for name, new in files.items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text() != new
    ]
    for name in differing:
        if options.check:
            print(f"{name} differs from what conformance.generate writes", file=sys.stderr)
        else:
            (FOLDER / name).write_text(files[name])
            print(f"wrote {name}")
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
