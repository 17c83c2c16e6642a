"""The protocol of Rotational WebSockets without I/O: bytes, calls and time in; bytes, events and timers out.

The normative text is `conformance/spec/rwt.md`; "section n" in this package names its sections.
"""

from .client import ClientConnection, ClientRules
from .connection import Connection, State
from .server import ServerConnection, ServerRules
from .session import ClientSession, SessionRecord, SessionStore

__version__ = "0.1.0"

__all__ = [
    "ClientConnection",
    "ClientRules",
    "ClientSession",
    "Connection",
    "ServerConnection",
    "ServerRules",
    "SessionRecord",
    "SessionStore",
    "State",
    "__version__",
]
