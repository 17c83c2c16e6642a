"""Every vector of conformance/vectors: decoded, encoded again and compared, or refused with its close code."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mlkem, x25519

from rwt_protocol import codec, handshake, key_schedule, limits
from rwt_protocol.client import ClientConnection, ClientRules
from rwt_protocol.codes import Flag, FrameType, Pattern, Policy, SignatureAlgorithm, Suite
from rwt_protocol.connection import Connection, State
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.events import Delivered, Published, Terminated
from rwt_protocol.frames import Signature
from rwt_protocol.handshake import ClientHello
from rwt_protocol.key_schedule import DirectionKeys, EpochKeys
from rwt_protocol.record import Opener, Sealer, UsageLimits, deflate, inflate, pad, padme, unpad
from rwt_protocol.rotation import Schedule, expiry_ms
from rwt_protocol.server import ServerConnection, ServerRules
from rwt_protocol.session import ClientSession, Held, Proof
from rwt_protocol.suites import KeyShare, PublicKey, SigningKey, respond, shared_secret

VECTORS = Path(__file__).parents[2] / "conformance/vectors"
COUNTS = {
    "codec": 992,
    "frames": 291,
    "handshake": 4,
    "key_schedule": 145,
    "padme": 85,
    "record": 133,
    "recorded": 15,
    "rotation_schedule": 79,
}
Vector = dict[str, Any]


def load(name: str) -> list[Vector]:
    found: list[Vector] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def params(name: str, **only: str) -> list[Any]:
    chosen = [vector for vector in load(name) if all(vector.get(key) == value for key, value in only.items())]
    assert chosen, (name, only)
    return [pytest.param(vector, id=vector["id"]) for vector in chosen]


def value(item: Any) -> Any:
    """A body as Python has it."""
    if isinstance(item, list):
        return [value(part) for part in item]
    return bytes.fromhex(item["hex"]) if isinstance(item, dict) else item


def body_of(fields: dict[str, Any]) -> dict[int, Any]:
    return {int(key): value(item) for key, item in fields.items()}


def unhex(vector: Vector, *names: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(vector[name]) for name in names)


def test_every_file_is_read_and_has_its_number_of_vectors() -> None:
    assert {path.stem for path in VECTORS.glob("*.json")} - {"schema"} == set(COUNTS)
    assert {name: len(load(name)) for name in COUNTS} == COUNTS
    assert all(len({vector["id"] for vector in load(name)}) == count for name, count in COUNTS.items())


# --- codec -----------------------------------------------------------------------------------------------


def decode_body(kind: int, sender: str, data: bytes) -> object:
    if kind != FrameType.MSG:
        return codec.decode_control(FrameType(kind), data)
    message = len(data).to_bytes(2, "big") + data
    return codec.decode_publication(message) if sender == "client" else codec.decode_entry(message)


def check_fields(kind: int, sender: str, data: bytes, fields: dict[int, Any]) -> None:
    """`data` decodes to `fields` and encodes to the same bytes."""
    assert codec.decode_map(data, limits.MAX_CONTROL) == fields if fields else data in (b"", b"\xa0")
    assert codec.encode_map(fields) == data or not data
    found = decode_body(kind, sender, data)
    if kind == FrameType.MSG:
        return
    cls, rows = codec.WIRE[FrameType(kind)]
    assert isinstance(found, cls)
    known = {row.key: fields[row.key] for row in rows if row.key in fields}
    assert codec.encode_control(found) == codec.encode_map(known)


@pytest.mark.parametrize("vector", params("codec"))
def test_codec(vector: Vector) -> None:
    data = bytes.fromhex(vector["hex"])
    if vector["expect"] == "success":
        check_fields(vector["type"], vector["sender"], data, body_of(vector["fields"]))
    else:
        with pytest.raises(RWTProtocolError) as caught:
            decode_body(vector["type"], vector["sender"], data)
        assert caught.value.close_code == vector["close"]


# --- frames and records ----------------------------------------------------------------------------------

WIDE = UsageLimits(2**64, 2**64, 2**64, 2**64)
"""One vector has a seq that no key reaches, to show all of its bytes."""
ZEROS = DirectionKeys(bytes(32), bytes(12), bytes(32))
EPOCH = EpochKeys(1, bytes(32), bytes(32), bytes(32), ZEROS, ZEROS)


def direction(vector: Vector) -> DirectionKeys:
    ratchet = bytes.fromhex(vector.get("ratchet", "00" * 32))
    key, iv = unhex(vector, "key", "iv")
    return DirectionKeys(key, iv, ratchet)


def connection(vector: Vector) -> Connection:
    """A connection in the vector's state that expects the vector's epoch and seq."""
    policy = Policy(vector["policy"])
    found: Connection
    if vector["role"] == "server":
        found = server = ServerConnection(ServerRules(policy=policy), bytes, 0.0)
        server._handshake = (EPOCH, Proof(bytes(8), bytes(32), 1, True))
    else:
        session = ClientSession(bytes(16), bytes(32), (2,))
        found = client = ClientConnection(session, ClientRules(policy=policy), bytes, 0.0)
        client._chain, client._held = EPOCH, Held(1, bytes(32), None)
        client._next = EPOCH, Held(2, bytes(32), None)
    found.state = State[vector["state"]]
    if found.state in (State.EXPECT_HELLO, State.EXPECT_WELCOME):
        if isinstance(found, ServerConnection):
            found._handshake = None
        return found
    if found.state not in (State.EXPECT_CONFIRM, State.EXPECT_READY):
        found._max_frame = vector["max_frame"]
    found._max_message, found.window = vector["max_message"], vector["window"]
    found._opener = Opener(direction(vector), vector["epoch"], WIDE)
    found._opener.count = vector["seq"]
    found._sealer = Sealer(ZEROS, vector["epoch"])
    if isinstance(found, ClientConnection):
        found._next_opener = found._opener
    return found


FAILING = [
    pytest.param(vector, id=f"{name}-{vector['id']}")
    for name in ("frames", "record")
    for vector in load(name)
    if vector["expect"] != "success"
]
PASSING = [
    pytest.param(vector, id=f"{name}-{vector['id']}")
    for name in ("frames", "record")
    for vector in load(name)
    if vector["expect"] == "success" and "frame" in vector
]


@pytest.mark.parametrize("vector", FAILING)
def test_frame_is_refused(vector: Vector) -> None:
    receiver = connection(vector)
    receiver.events()
    receiver.receive(bytes.fromhex(vector["frame"]), 0.0)
    events = receiver.events()
    assert receiver.state is State.CLOSED
    assert [event.code for event in events if isinstance(event, Terminated)] == [vector["close"]]
    assert not [event for event in events if isinstance(event, Published | Delivered)]


def unpack(flags: int, payload: bytes, most: int, window: int) -> list[bytes]:
    if flags & Flag.P:
        payload = unpad(payload)
    if flags & Flag.Z:
        payload = inflate(payload, 2 + limits.MAX_META + most)
    return codec.split_batch(payload, window) if flags & Flag.B else [payload]


@pytest.mark.parametrize("vector", PASSING)
def test_frame_is_accepted(vector: Vector) -> None:
    frame = bytes.fromhex(vector["frame"])
    sender = "client" if vector["role"] == "server" else "server"
    kind, flags, epoch, stream, seq = codec.HEADER.unpack_from(frame)
    assert vector["header"] == {"type": kind, "flags": flags, "epoch": epoch, "stream": stream, "seq": seq}
    if kind in (FrameType.HELLO, FrameType.WELCOME):
        clear = handshake.decode_clear(FrameType(kind), frame)
        check_fields(kind, sender, frame[16:], body_of(vector["fields"]))
        assert handshake.encode_clear(clear)[:16] == frame[:16]
        return
    opener = Opener(direction(vector), vector["epoch"], WIDE)
    sealer = Sealer(direction(vector), vector["epoch"], WIDE)
    opener.count = sealer.count = vector["seq"]
    payload = opener.open(frame, flags, seq)
    assert sealer.seal(kind, flags, stream, payload) == frame
    if "plaintext" in vector:
        assert payload.hex() == vector["plaintext"]
    if "messages" not in vector:
        if "fields" in vector:
            check_fields(kind, sender, payload, body_of(vector["fields"]))
        return
    messages = unpack(flags, payload, vector["max_message"], vector["window"])
    assert len(messages) == len(vector["messages"])
    for message, expected in zip(messages, vector["messages"], strict=True):
        meta, body = unhex(expected, "meta", "body")
        assert message == len(meta).to_bytes(2, "big") + meta + body
        check_fields(kind, sender, meta, body_of(expected["fields"]))
    receiver = connection(vector)
    receiver.events()
    receiver.receive(frame, 0.0)
    assert receiver.state is State[vector["state_after"]]
    (event,) = receiver.events()
    assert isinstance(event, Published | Delivered)
    found = event.messages if isinstance(event, Published) else event.entries
    assert [item.body.hex() for item in found] == [item["body"] for item in vector["messages"]]


@pytest.mark.parametrize("vector", params("record", kind="usage"))
def test_usage(vector: Vector) -> None:
    sealer = Sealer(ZEROS, 1)
    sealer.count, sealer.used = vector["frames"], vector["bytes"]
    action = "stop" if sealer.exhausted else "rekey" if sealer.worn else "none"
    assert action == vector["action"]
    assert UsageLimits() == sealer._usage


# --- key schedule ----------------------------------------------------------------------------------------


def key_share(suite: Suite, private: bytes, share: bytes) -> KeyShare:
    """An initiator's key of a vector."""
    if suite is Suite.P256:
        return KeyShare(suite, share, ec.derive_private_key(int.from_bytes(private, "big"), ec.SECP256R1()))
    x = x25519.X25519PrivateKey.from_private_bytes(private[-32:])
    if suite is Suite.X25519:
        return KeyShare(suite, share, x)
    return KeyShare(suite, share, (mlkem.MLKEM768PrivateKey.from_seed_bytes(private[:64]), x))


def responder_random(suite: Suite, private: bytes) -> Any:
    """The random source that makes a responder's key."""
    if suite is Suite.P256:
        return lambda size: (int.from_bytes(private, "big") - 1).to_bytes(size, "big")
    return lambda size: private


def check_exchange(suite: Suite, given: Vector) -> bytes:
    """Both sides of a key exchange; returns dh."""
    own = key_share(suite, *unhex(given, "initiator_private", "initiator_share"))
    share, dh = unhex(given, "responder_share", "dh")
    assert shared_secret(own, share) == dh
    answer, secret = respond(
        suite, own.share, responder_random(suite, bytes.fromhex(given["responder_private"]))
    )
    if suite is Suite.X25519MLKEM768:  # encapsulation draws its own
        assert answer[-32:] == share[-32:] and secret[-32:] == dh[-32:]
    else:
        assert (answer, secret) == (share, dh)
    return dh


def check_epoch(keys: EpochKeys, expected: Vector) -> None:
    found: Vector = {"chain": keys.chain.hex(), "token": keys.token.hex()}
    found["token_id"] = key_schedule.token_id(keys.token).hex()
    for name, side in (("c2s", keys.client), ("s2c", keys.server)):
        found[name] = {"key": side.key.hex(), "iv": side.iv.hex(), "ratchet": side.ratchet.hex()}
    assert {key: item for key, item in expected.items() if key in found} == found


@pytest.mark.parametrize(
    "vector",
    [param for param in params("key_schedule") if param.values[0]["kind"] not in ("share", "signature")],
)
def test_key_schedule(vector: Vector) -> None:
    given, output, between = vector["input"], vector["output"], vector.get("intermediates", {})
    match vector["kind"]:
        case "label":
            secret, context = unhex(given, "secret", "context")
            found = key_schedule.expand(secret, given["label"].encode(), context, given["size"])
            assert found.hex() == output["value"]
        case "tokid":
            assert key_schedule.token_id(*unhex(given, "token")).hex() == output["token_id"]
        case "family":
            family = key_schedule.family_of(*unhex(given, "token"))
            assert (family.hex(), key_schedule.token_id(family).hex()) == (
                output["family"],
                output["family_id"],
            )
        case "sender":
            assert key_schedule.sender_id(*unhex(given, "sid")).hex() == output["sender_id"]
        case "connection":
            assert key_schedule.connection_id(*unhex(given, "th")) == output["connection_id"]
        case "ratchet":
            key, state = key_schedule.ratchet(*unhex(given, "ratchet"))
            assert (key.hex(), state.hex()) == (output["key"], output["next"])
        case "rotation":
            dh = check_exchange(Suite(vector["suite"]), given)
            chain, th, server, client = unhex(given, "chain", "th", "initiator_share", "responder_share")
            current = EpochKeys(vector["epoch"] - 1, th, chain, bytes(32), ZEROS, ZEROS)
            keys = key_schedule.rotate(current, dh, server, client)
            assert keys.transcript.hex() == between["th"]
            assert key_schedule.extract(chain, dh).hex() == between["m"]
            signed = key_schedule.offer_signature_input(th, vector["epoch"], server)
            assert signed == b"rwt2 server\0" + bytes.fromhex(between["offer"])
            check_epoch(keys, output)
        case "connect" | "resume" | "resume-family":
            dh = check_exchange(Suite(vector["suite"]), given)
            token, hello, welcome = unhex(given, "token", "hello", "welcome")
            th = key_schedule.handshake_transcript(hello, welcome)
            psk = key_schedule.extract(key_schedule.PHI256, token)
            assert (th.hex(), psk.hex()) == (between["th"], between["psk"])
            assert key_schedule.extract(psk, dh).hex() == between["m"]
            check_epoch(key_schedule.connect(token, dh, th, vector["epoch"]), output)
        case kind:
            raise AssertionError(kind)


@pytest.mark.parametrize("vector", params("key_schedule", kind="share"))
def test_share_is_refused(vector: Vector) -> None:
    suite, share = Suite(vector["suite"]), bytes.fromhex(vector["share"])
    with pytest.raises(RWTProtocolError):
        if vector["message"] in ("HELLO", "ROTATE"):
            respond(suite, share, lambda size: bytes(range(size)))
        else:
            seed = bytes(range(64))
            shared_secret(key_share(suite, seed if suite is Suite.X25519MLKEM768 else seed[1:33], b""), share)


@pytest.mark.parametrize("vector", params("key_schedule", kind="signature"))
def test_signature(vector: Vector) -> None:
    given, algorithm = vector["input"], SignatureAlgorithm(vector["algorithm"])
    th, raw = unhex(given, "th", "public")
    match vector["purpose"]:
        case "ready":
            message = key_schedule.server_signature_input(th)
        case "rotate":
            message = key_schedule.offer_signature_input(th, given["epoch"], bytes.fromhex(given["share"]))
        case _:
            message = key_schedule.client_signature_input(th)
    signature = Signature(*unhex(vector["output"], "key_id", "signature"))
    good = vector["expect"] == "success"
    public = PublicKey(algorithm, raw)
    assert public.verify(signature, message) is good
    if good:
        assert message.hex() == vector["intermediates"]["message"]
        assert public.id == signature.key_id
        assert len(signature.value) == 64
        if algorithm is SignatureAlgorithm.ED25519:
            private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(given["private"]))
            assert SigningKey(private).sign(message) == signature


# --- times and padding -----------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", params("rotation_schedule"))
def test_rotation_schedule(vector: Vector) -> None:
    threshold = vector["threshold_permille"]
    if vector["pattern"] == "lifetime":
        assert expiry_ms(vector["until_ms"], threshold) == vector["lifetime_ms"]
        return
    schedule = Schedule(
        interval_ms=vector["interval_ms"],
        pattern=Pattern(vector["pattern"]),
        threshold=threshold,
        session=vector["k"],
        start_ms=10**6,
    )
    assert [due - 10**6 for due in islice(schedule.times(), 30)] == vector["first"]
    for row in vector["next"]:
        assert schedule.next_after(10**6 + row["now"]) - 10**6 == row["send"], row


@pytest.mark.parametrize("vector", params("padme"))
def test_padme(vector: Vector) -> None:
    if "buckets" in vector:
        lengths = {padme(length + 1) for length in range(vector["first"], vector["last"] + 1)}
        assert len(lengths) == vector["buckets"]
        return
    padded = pad(bytes(vector["length"]))
    assert len(padded) == padme(vector["length"] + 1) == vector["padded"] == max(64, vector["padme"])
    assert unpad(padded) == bytes(vector["length"])


# --- whole sessions --------------------------------------------------------------------------------------


def epochs(vector: Vector) -> Iterator[EpochKeys]:
    """Keys of the handshake and of the rotation, derived with rwt_protocol from the recorded frames."""
    suite, given = Suite(vector["suite"]), vector["input"]
    hello, welcome = (bytes.fromhex(row["frame"]) for row in vector["frames"][:2])
    ticket = bytes.fromhex(given["ticket"])
    connect = given["connect"]
    own = key_share(suite, *unhex(connect, "initiator_private", "initiator_share"))
    offers: dict[bytes, Held | bytes] = {key_schedule.token_id(ticket): Held(0, ticket, None)}
    keys, parent = handshake.client_keys(ClientHello(hello, own, offers, 0), welcome)
    assert parent == Held(0, ticket, None)
    assert handshake.read_hello(hello).token_ids == tuple(offers)
    check_exchange(suite, connect)
    yield keys
    rotation = given["rotation"]
    dh = check_exchange(suite, rotation)
    yield key_schedule.rotate(keys, dh, *unhex(rotation, "initiator_share", "responder_share"))


@pytest.mark.parametrize("vector", params("handshake"))
def test_whole_session(vector: Vector) -> None:
    between = vector["intermediates"]
    found = {keys.epoch: keys for keys in epochs(vector)}
    assert [row["epoch"] for row in between["epochs"]] == list(found)
    for row in between["epochs"]:
        assert found[row["epoch"]].transcript.hex() == row["th"]
        check_epoch(found[row["epoch"]], row)
    first = found[1]
    assert key_schedule.connection_id(first.transcript) == between["connection_id"]
    sealers: dict[tuple[str, int], Sealer] = {}
    for row in vector["frames"]:
        frame, plaintext = unhex(row, "frame", "plaintext")
        kind, flags, _, stream, seq = codec.HEADER.unpack_from(frame)
        assert FrameType(kind).name == row["name"]
        if kind in (FrameType.HELLO, FrameType.WELCOME):
            assert handshake.encode_clear(handshake.decode_clear(FrameType(kind), frame)) == frame
            continue
        keys = found[row["epoch"]].client if row["from"] == "client" else found[row["epoch"]].server
        assert (keys.key.hex(), keys.iv.hex()) == (row["key"], row["iv"])
        sealer = sealers.setdefault((row["from"], row["epoch"]), Sealer(keys, row["epoch"]))
        assert sealer.count == seq == row["seq"]
        assert sealer.seal(kind, flags, stream, plaintext) == frame
        if kind != FrameType.MSG:
            check_fields(kind, row["from"], plaintext, body_of(row["fields"]))
    assert len(sealers) == 4


def test_recorded_deflate_streams_inflate() -> None:
    streams = [vector for vector in load("recorded") if vector["comment"] == "raw deflate"]
    assert streams
    bombs = 0
    for vector in streams:
        try:
            assert deflate(inflate(bytes.fromhex(vector["hex"]), limits.MAX_MESSAGE + 1026)) is not None
        except RWTProtocolError as exc:
            bombs += exc.close_code == 4413
    assert bombs >= 1
