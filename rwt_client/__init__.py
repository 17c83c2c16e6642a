"""The client of Rotational WebSockets.

async with RWTClient(DragonFireClient(api_key=key)) as rwt:
    await rwt.send("hello", channel="chat")
"""

from rwt_protocol.errors import (
    RWTAuthenticationError,
    RWTConnectionError,
    RWTDisconnectedError,
    RWTEncodingError,
    RWTEncryptionError,
    RWTError,
    RWTOutcomeUnknown,
    RWTProtocolError,
    RWTSendError,
    RWTTimeoutError,
)
from rwt_protocol.suites import PublicKey, SigningKey

from .channel import RWTChannel
from .client import RWTClient
from .dragonfire import DragonFireClient
from .inbox import MessageStream
from .options import (
    Lost,
    Message,
    MessageMetadata,
    Reconnection,
    RWTConnection,
    RWTConnectionStatus,
    SendResult,
    TokenRotation,
)

__all__ = [
    "DragonFireClient",
    "Lost",
    "Message",
    "MessageMetadata",
    "MessageStream",
    "PublicKey",
    "RWTAuthenticationError",
    "RWTChannel",
    "RWTClient",
    "RWTConnection",
    "RWTConnectionError",
    "RWTConnectionStatus",
    "RWTDisconnectedError",
    "RWTEncodingError",
    "RWTEncryptionError",
    "RWTError",
    "RWTOutcomeUnknown",
    "RWTProtocolError",
    "RWTSendError",
    "RWTTimeoutError",
    "Reconnection",
    "SendResult",
    "SigningKey",
    "TokenRotation",
]
