"""Connect and resume: one handshake (section 7). Builds and reads HELLO, WELCOME, CONFIRM and READY.

Nothing here knows of connections or time; `connection` decides when each step is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import key_schedule
from .codec import HEADER, decode_control, encode_control, frame_type
from .codes import VERSION, CloseCode, FrameType, Policy, Suite
from .errors import RWTProtocolError
from .frames import Hello, Welcome
from .key_schedule import EpochKeys
from .limits import HEADER_SIZE
from .session import ClientSession, Held, Proof, SessionRecord, pick_proof
from .suites import KeyShare, PublicKey, RandomBytes, generate, respond, shared_secret


def encode_clear(frame: Hello | Welcome) -> bytes:
    """Encode HELLO or WELCOME: a header of zeros but for the type, and no tag."""
    return HEADER.pack(frame_type(frame), 0, 0, 0, 0) + encode_control(frame)


def decode_clear(kind: FrameType, data: bytes) -> Hello | Welcome:
    """Decode HELLO or WELCOME.

    Raises:
        RWTProtocolError: a header field is not zero, or the body is malformed.
    """
    if any(data[1:HEADER_SIZE]):
        raise RWTProtocolError(f"{kind.name} has a header field that is not zero")
    frame = decode_control(kind, data[HEADER_SIZE:])
    if not isinstance(frame, Hello | Welcome):
        raise AssertionError("only HELLO and WELCOME are clear")
    return frame


# --- client ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClientHello:
    """A HELLO that was sent, and what is needed to understand its answer."""

    frame: bytes
    own: KeyShare
    offers: dict[bytes, Held | bytes] = field(repr=False)
    epoch: int


def client_hello(
    session: ClientSession,
    suites: Sequence[Suite],
    policy: Policy,
    random_bytes: RandomBytes,
    algorithms: tuple[int, ...] | None,
) -> ClientHello:
    """Compose HELLO.

    Raises:
        RWTProtocolError: 4406: the server offers no suite of ours.
    """
    suite = session.suite or next((Suite(known) for known in session.suites if known in suites), None)
    if suite is None:
        raise RWTProtocolError(
            f"the server offers suites {list(session.suites)}, this client {[int(s) for s in suites]}",
            CloseCode.VERSION_OR_SUITE,
        )
    own = generate(suite, random_bytes)
    offers = session.offers()
    hello = Hello(
        versions=(VERSION,),
        suites=tuple(int(known) for known in suites),
        suite=suite,
        share=own.share,
        sid=session.sid,
        token_ids=tuple(offers),
        policy=policy,
        epoch=session.ready_epoch,
        signature_algorithms=algorithms,
    )
    return ClientHello(encode_clear(hello), own, offers, session.ready_epoch)


def client_keys(sent: ClientHello, welcome_frame: bytes) -> tuple[EpochKeys, Held | None]:
    """Read WELCOME and derive the keys of the new epoch.

    Returns:
        The keys, and the held token that was picked; None if the server picked a family, which means that
        it knows none of our tokens and is about to find out whose they are.

    Raises:
        RWTProtocolError: WELCOME does not answer our HELLO.
    """
    welcome = decode_clear(FrameType.WELCOME, welcome_frame)
    if not isinstance(welcome, Welcome):
        raise AssertionError("decode_clear returns what it was asked for")
    if welcome.version != VERSION or welcome.suite != sent.own.suite:
        raise RWTProtocolError("WELCOME chose what was not offered")
    picked = sent.offers.get(welcome.picked)
    if picked is None:
        raise RWTProtocolError("WELCOME picked a token that was not offered")
    token, before = (picked.token, picked.epoch) if isinstance(picked, Held) else (picked, sent.epoch)
    if welcome.epoch != before + 1:
        raise RWTProtocolError("WELCOME has a wrong epoch")
    dh = shared_secret(sent.own, welcome.share)
    transcript = key_schedule.handshake_transcript(sent.frame, welcome_frame)
    keys = key_schedule.connect(token, dh, transcript, welcome.epoch)
    return keys, picked if isinstance(picked, Held) else None


# --- server ----------------------------------------------------------------------------------------------


def read_hello(data: bytes) -> Hello:
    """Decode HELLO.

    Raises:
        RWTProtocolError: malformed (4400), or no common version (4406).
    """
    hello = decode_clear(FrameType.HELLO, data)
    if not isinstance(hello, Hello):
        raise AssertionError("decode_clear returns what it was asked for")
    if hello.suite not in hello.suites:
        raise RWTProtocolError("HELLO has a share of a suite it does not offer")
    if VERSION not in hello.versions:
        raise RWTProtocolError("no common version", CloseCode.VERSION_OR_SUITE)
    return hello


def server_welcome(
    record: SessionRecord | None, hello: Hello, hello_frame: bytes, random_bytes: RandomBytes
) -> tuple[bytes, EpochKeys, Proof]:
    """Answer HELLO; the store is not touched.

    Returns:
        The WELCOME frame, the keys of the new epoch, and what CONFIRM will prove.

    Raises:
        RWTProtocolError: see `pick_proof`; a share that is not valid is 4401 like every failure before proof.
    """
    proof = pick_proof(record, hello)
    try:
        share, dh = respond(Suite(hello.suite), hello.share, random_bytes)
    except (RWTProtocolError, ValueError) as exc:
        raise RWTProtocolError("authentication failed", CloseCode.AUTHENTICATION_FAILED) from exc
    welcome = encode_clear(
        Welcome(version=VERSION, suite=hello.suite, share=share, epoch=proof.epoch, picked=proof.picked)
    )
    transcript = key_schedule.handshake_transcript(hello_frame, welcome)
    return welcome, key_schedule.connect(proof.secret, dh, transcript, proof.epoch), proof


def verify_pinned(pins: frozenset[PublicKey], signature: object, message: bytes) -> bool:
    """Whether one of the pinned keys made `signature`."""
    return any(pin.verify(signature, message) for pin in pins)  # type: ignore[arg-type]
