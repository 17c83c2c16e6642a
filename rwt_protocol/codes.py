"""Code points of the specification (section 13), and what a close code means for a client."""

from __future__ import annotations

from enum import Enum, IntEnum, StrEnum

SUBPROTOCOL = "rwt.v2"
"""WebSocket subprotocol that both sides must negotiate."""

VERSION = 2
"""Protocol version offered in HELLO and chosen in WELCOME."""


class FrameType(IntEnum):
    """First byte of a frame. Types that later chapters define are refused by this version."""

    HELLO = 0x01
    WELCOME = 0x02
    CONFIRM = 0x03
    READY = 0x04
    ROTATE = 0x05
    REPLY = 0x06
    ROTATED = 0x07
    REQUEST = 0x08
    WARN = 0x09
    BYE = 0x0A
    PING = 0x0B
    PONG = 0x0C
    SUB = 0x10
    SUBOK = 0x11
    UNSUB = 0x12
    ERR = 0x14
    CLOSED = 0x15
    GAP = 0x16
    MSG = 0x20
    ACK = 0x22


EXTENSION_TYPES = range(0x40, 0x80)
"""Frame types that are opened, verified and then ignored (section 14)."""

CLIENT_TYPES = frozenset(
    {
        FrameType.HELLO,
        FrameType.CONFIRM,
        FrameType.REPLY,
        FrameType.REQUEST,
        FrameType.BYE,
        FrameType.PING,
        FrameType.PONG,
        FrameType.SUB,
        FrameType.UNSUB,
        FrameType.MSG,
    }
)
"""Frame types a client may send."""

SERVER_TYPES = frozenset(
    {
        FrameType.WELCOME,
        FrameType.READY,
        FrameType.ROTATE,
        FrameType.ROTATED,
        FrameType.WARN,
        FrameType.BYE,
        FrameType.PING,
        FrameType.PONG,
        FrameType.SUBOK,
        FrameType.ERR,
        FrameType.CLOSED,
        FrameType.GAP,
        FrameType.MSG,
        FrameType.ACK,
    }
)
"""Frame types a server may send."""


class Flag(IntEnum):
    """Bits of the second header byte (section 5)."""

    E = 1
    P = 2
    Z = 4
    R = 8
    B = 16


class Suite(IntEnum):
    """Key exchange suites; all use AES-256-GCM and SHA-256 (section 8)."""

    P256 = 1
    X25519 = 2
    X25519MLKEM768 = 3


class SignatureAlgorithm(IntEnum):
    """Algorithms of server identity keys and device keys."""

    ECDSA_P256 = 1
    ED25519 = 2


class Policy(IntEnum):
    """What a side does with a message when nothing is said about encryption (section 8)."""

    AUTO = 0
    ALWAYS = 1
    NEVER = 2


class Level(IntEnum):
    """Protection of one message on one hop, weakest first (section 8)."""

    CLEAR = 0
    STANDARD = 1
    HIGH = 2
    MAXIMUM = 3


class Form(IntEnum):
    """How the body of a message becomes a value again."""

    BYTES = 0
    TEXT = 1
    JSON = 2


class Priority(IntEnum):
    """Which message of a client's own queue leaves next."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Use(IntEnum):
    """Bit mask of SUB and SUBOK field 5; 0 keeps the channel open and delivers nothing."""

    PAUSED = 0
    RECEIVE = 1
    PUBLISH = 2
    BOTH = 3


class GapReason(IntEnum):
    """Why entries of a log are missing (section 11)."""

    TRIMMED = 1
    LOG_LOST = 2
    DIVERGED = 3
    LAG_DROPPED = 5


class RequestReason(IntEnum):
    """Why a client asks for a rotation."""

    OVERDUE = 1
    USAGE = 2
    ASKED = 3
    SUSPICION = 4


class Pattern(StrEnum):
    """Rotation schedules (section 9). They decide when keys change, never what they are."""

    FIXED = "fixed"
    FIBONACCI = "fibonacci"
    PHI = "phi"


class Warning(StrEnum):
    """Codes of WARN and of `security-warning` events."""

    TOKEN_REUSE = "token-reuse"
    TOKEN_RACE = "token-race"
    SUPERSEDED = "superseded"
    SERVER_IDENTITY = "server-identity"
    ROTATION_OVERDUE = "rotation-overdue"
    ROTATION_DEFERRED = "rotation-deferred"
    DOWNGRADE = "downgrade"
    RECORD_INVALID = "record-invalid"
    STORE_CONFLICT = "store-conflict"


class ErrorCode(IntEnum):
    """Codes of ERR and CLOSED: what one message or subscription may not have."""

    NOT_AUTHORISED = 1
    NOT_OPEN = 2
    TOO_LARGE = 3
    RATE = 4
    BUSY = 5
    E2E_REQUIRED = 6
    OUTCOME_UNKNOWN = 7
    HANDLER_FAILED = 8
    NO_HANDLER = 9
    BAD_NAME = 10
    LIMIT = 11
    UNAVAILABLE = 12
    POLICY = 13
    IDEMPOTENCY_CONFLICT = 14


class CloseCode(IntEnum):
    """WebSocket close codes of the protocol (section 12)."""

    PROTOCOL_ERROR = 4400
    AUTHENTICATION_FAILED = 4401
    REVOKED = 4403
    VERSION_OR_SUITE = 4406
    EXPIRED = 4408
    SUPERSEDED = 4409
    SESSION_ENDED = 4410
    TOO_LARGE = 4413
    RATE = 4429
    INTERNAL = 4500
    DRAINING = 4503


class AfterClose(Enum):
    """What a client does after a close code (section 12)."""

    RESUME = "resume"
    NEW_TICKET = "new ticket"
    STOP = "stop"


ABNORMAL_CLOSURE = 1006
"""No close frame was received; also what a stopping code counts as when it was not sealed."""

_NEW_TICKET = frozenset({CloseCode.AUTHENTICATION_FAILED, CloseCode.SESSION_ENDED})
_STOP = frozenset(
    {
        1002,
        1003,
        *range(1007, 1011),
        CloseCode.REVOKED,
        CloseCode.VERSION_OR_SUITE,
        CloseCode.TOO_LARGE,
    }
)


def after_close(code: int, protocol_errors: int = 0) -> AfterClose:
    """Return what to do after `code`; `protocol_errors` counts earlier 4400 without a READY between."""
    if code in _NEW_TICKET:
        return AfterClose.NEW_TICKET
    if code in _STOP or (code == CloseCode.PROTOCOL_ERROR and protocol_errors >= 1):
        return AfterClose.STOP
    return AfterClose.RESUME
