"""Who listens to which event: `on`, `once`, `off`, filters. Matching only; nothing here awaits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Handler = Callable[..., Awaitable[None] | None]
Filter = Callable[[Any], bool]
H = TypeVar("H", bound=Callable[..., Any])

EVENTS = frozenset(
    {
        "connect",
        "disconnect",
        "reconnect",
        "error",
        "message",
        "send",
        "token-rotate",
        "key-rotate",
        "security-warning",
        "resume",
        "gap",
        "pressure",
        "giving-up",
    }
)
"""All events beside `message:{channel}`."""


@dataclass(frozen=True, slots=True)
class _Listener:
    handler: Handler
    once: bool
    filter: Filter | None


class Subscriptions:
    """Listeners by event, in the order in which they were added."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[_Listener]] = {}

    def add(
        self, event: str, handler: Handler, *, once: bool = False, filter: Callable[[Any], bool] | None = None
    ) -> None:
        """Add a listener.

        Raises:
            ValueError: the event does not exist.
        """
        if event not in EVENTS and not (event.startswith("message:") and len(event) > 8):
            raise ValueError(
                f"event {event!r} does not exist: use message:CHANNEL or one of {', '.join(sorted(EVENTS))}"
            )
        self._listeners.setdefault(event, []).append(_Listener(handler, once, filter))

    def remove(self, event: str, handler: Handler | None = None) -> None:
        """Remove one handler of an event, or all of them."""
        if handler is None:
            self._listeners.pop(event, None)
            return
        left = [item for item in self._listeners.get(event, []) if item.handler != handler]
        if left:
            self._listeners[event] = left
        else:
            self._listeners.pop(event, None)

    def clear(self) -> None:
        """Remove all listeners."""
        self._listeners.clear()

    def has(self, event: str) -> bool:
        """Whether anybody listens."""
        return event in self._listeners

    def matching(self, event: str, first: Any) -> list[Handler]:
        """Return the handlers to call for an event whose first argument is `first`; forgets `once` ones.

        Raises:
            Exception: whatever a filter raises.
        """
        found = [item for item in self._listeners.get(event, ()) if item.filter is None or item.filter(first)]
        for item in found:
            if item.once:
                left = [other for other in self._listeners.get(event, ()) if other is not item]
                if left:
                    self._listeners[event] = left
                else:
                    self._listeners.pop(event, None)
        return [item.handler for item in found]
