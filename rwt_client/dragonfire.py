"""`DragonFireClient`: an API key, or your own provider, in exchange for tickets (section 7.1)."""

from __future__ import annotations

import base64
import binascii
import inspect
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rwt_protocol import ClientSession
from rwt_protocol.codes import SignatureAlgorithm
from rwt_protocol.errors import RWTAuthenticationError, RWTConnectionError, RWTError
from rwt_protocol.suites import SigningKey

from .transport import AiohttpTransport, HTTPRefusal, Transport, base_url, check_secure

DEFAULT_URL = "http://127.0.0.1:8765"

Credentials = Callable[[], "Mapping[str, Any] | Awaitable[Mapping[str, Any]]"]
"""Returns the JSON of a ticket response, fresh from your own back end; may be async."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket response: a new session, and where to open it."""

    session: ClientSession = field(repr=False)
    url: str


def _b64(value: object, size: int) -> bytes:
    if not isinstance(value, str):
        raise ValueError("a member is missing")
    data = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    if len(data) != size:
        raise ValueError("a member has the wrong length")
    return data


def _b64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwk(key: SigningKey) -> dict[str, str]:
    raw = key.public.raw
    if key.public.algorithm is SignatureAlgorithm.ED25519:
        return {"kty": "OKP", "crv": "Ed25519", "x": _b64url(raw)}
    return {"kty": "EC", "crv": "P-256", "x": _b64url(raw[1:33]), "y": _b64url(raw[33:])}


class DragonFireClient:
    """Where the service is and who we are.

    Args:
        api_key: `rwt_<id>_<secret>`, from `rwt-server keys create`. Belongs into back ends.
        credentials: Instead of a key: a provider, called for every ticket, never remembered.
        url: The server: `https://host` means `https://host/rwt`.
        region: Must be one that the server has; None: any.
        user: Shown to others as sender; None: the key's id.
        device_key: Binds the session to a key of this device (section 7.6); needs `api_key`.
        allow_insecure: Allow plain text to another machine.
        ssl_context: For certificates that the system does not know.
        transport: Another network, for tests.

    Raises:
        ValueError: a value cannot be used; the message says which and why.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        credentials: Credentials | None = None,
        url: str = DEFAULT_URL,
        region: str | None = None,
        user: str | None = None,
        device_key: SigningKey | None = None,
        allow_insecure: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        transport: Transport | None = None,
    ) -> None:
        if (api_key is None) == (credentials is None):
            raise ValueError("give either api_key or credentials")
        if api_key is not None:
            _check_key(api_key)
        elif device_key is not None:
            raise ValueError("device_key needs api_key: with credentials, your back end sends cnf")
        if user is not None:
            good = 1 <= len(user.encode("utf-8", "surrogatepass")) <= 255 and user.isprintable()
            if not good:
                raise ValueError(f"user={user!r} cannot be used: give 1 to 255 bytes of printable text")
        if region == "":
            raise ValueError("region='' cannot be used: give a name, or leave it away")
        self._api_key = api_key
        self._credentials = credentials
        self._url = base_url(url, allow_insecure=allow_insecure)
        self._region = region
        self._user = user
        self._users = 0
        self.device_key = device_key
        self._allow_insecure = allow_insecure
        self.transport: Transport = transport or AiohttpTransport(ssl_context)

    async def connect(self) -> None:
        """Ask the server who it is, to find a wrong address early; optional.

        Raises:
            RWTConnectionError: the server cannot be reached.
            RWTAuthenticationError: the key is refused.
        """
        await self.ticket()

    async def ticket(self) -> Ticket:
        """Take a ticket: a new session.

        Raises:
            RWTConnectionError: the server cannot be reached, is busy, or its answer is not one of RWT.
            RWTAuthenticationError: the key is refused.
        """
        if self._credentials is not None:
            found = self._credentials()
            answer = await found if inspect.isawaitable(found) else found
        else:
            answer = await self._post()
        try:
            suites = answer["suites"]
            if not isinstance(suites, list) or not all(type(suite) is int for suite in suites):
                raise ValueError("suites is not a list of numbers")
            session = ClientSession(_b64(answer["sid"], 16), _b64(answer["ticket"], 32), tuple(suites))
            url = answer["url"]
            if not isinstance(url, str):
                raise ValueError("url is not a text")
        except (KeyError, TypeError, ValueError, binascii.Error) as exc:
            raise RWTConnectionError(
                f"the ticket response cannot be used ({exc}): is {self._url} an RWT server?",
                operation="ticket",
            ) from exc
        try:
            check_secure(url, allow_insecure=self._allow_insecure)
        except ValueError as exc:
            raise RWTConnectionError(str(exc), code="insecure", operation="ticket") from exc
        return Ticket(session, url)

    async def _post(self) -> Mapping[str, Any]:
        body: dict[str, Any] = {}
        if self._user is not None:
            body["user"] = self._user
        if self._region is not None:
            body["region"] = self._region
        if self.device_key is not None:
            body["cnf"] = _jwk(self.device_key)
        url = f"{self._url}/v2/session"
        try:
            return await self.transport.post(url, {"Authorization": f"Bearer {self._api_key}"}, body)
        except HTTPRefusal as refusal:
            raise _refused(refusal, self._url, _shown(self._api_key or "")) from refusal
        except (ConnectionError, OSError) as exc:
            raise RWTConnectionError(
                f"{self._url} cannot be reached: {exc}", code="unreachable", operation="ticket"
            ) from exc

    def hold(self) -> None:
        """One more `RWTClient` uses this one."""
        self._users += 1

    async def release(self) -> None:
        """An `RWTClient` is done; with the last one the network is released."""
        self._users -= 1
        if self._users <= 0:
            await self.close()

    async def close(self) -> None:
        """Release the network."""
        await self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<DragonFireClient {self._url}>"


def _shown(api_key: str) -> str:
    """A key without its secret."""
    scheme, _, rest = api_key.partition("_")
    key_id, _, secret = rest.partition("_")
    return f"rwt_{key_id}_***" if scheme == "rwt" and key_id and secret else f"of {len(api_key)} characters"


def _check_key(api_key: str) -> None:
    shown = _shown(api_key)
    if not shown.startswith("rwt_") or not api_key.isascii() or not api_key.isprintable():
        raise ValueError(
            f"api_key {shown} cannot be used: give rwt_<id>_<secret>, as `rwt-server keys create` prints it"
        )
    if any(letter.isspace() for letter in api_key):
        raise ValueError(f"api_key {shown} cannot be used: it has a space in it")


def _refused(refusal: HTTPRefusal, url: str, key: str) -> RWTError:
    operation = "ticket"
    details = {"http_status": refusal.status, "url": url}
    if refusal.status in (401, 403):
        return RWTAuthenticationError(
            f"{url} refused api_key {key} ({refusal}): make one with `rwt-server keys create`",
            operation=operation,
            details=details,
        )
    if refusal.status == 404:
        return RWTConnectionError(
            f"{url} is not an RWT server (HTTP 404): check the path", operation=operation, details=details
        )
    return RWTConnectionError(
        f"{url} refused: {refusal} (HTTP {refusal.status})",
        operation=operation,
        details=details,
        retry_after=refusal.retry_after,
    )


__all__ = ["DEFAULT_URL", "Credentials", "DragonFireClient", "Ticket"]
