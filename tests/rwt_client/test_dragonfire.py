"""API keys and providers in exchange for tickets (section 7.1); secrets are never shown."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Mapping
from typing import Any

import pytest

from rwt_client import (
    DragonFireClient,
    RWTAuthenticationError,
    RWTClient,
    RWTConnectionError,
    RWTError,
    SigningKey,
)
from rwt_client.transport import HTTPRefusal, Socket
from rwt_protocol import ClientSession
from rwt_protocol.codes import SignatureAlgorithm
from rwt_protocol.session import Held
from tests.running import Running

SECRET = "tHe_sEcReT"
KEY = f"rwt_0123abcd_{SECRET}"
SID, TICKET = bytes(range(16)), bytes(range(32, 64))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


ANSWER: dict[str, Any] = {
    "sid": b64(SID),
    "ticket": b64(TICKET),
    "suites": [2, 1],
    "url": "ws://127.0.0.1:1/rwt/v2/ws",
}


class Post:
    """A network that answers ticket requests as told, and remembers them."""

    def __init__(self, answer: Mapping[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: list[tuple[str, Mapping[str, str], Mapping[str, Any]]] = []
        self.closed = False

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append((url, headers, body))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def open(self, url: str) -> Socket:
        raise ConnectionError(url)

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("", "of 0 characters"),
        ("hunter2", "of 7 characters"),
        ("rwt_x", "of 5 characters"),
        ("rwt__hunter2", "of 12 characters"),
        ("rwt_x_", "of 6 characters"),
        ("key_x_hunter2", "of 13 characters"),
        ("RWT_x_hunter2", "of 13 characters"),
        ("rwt_x_hun ter2", "rwt_x_***"),
        ("rwt_x_hunter2\n", "rwt_x_***"),
        ("rwt_x_hunterß2", "rwt_x_***"),
    ],
)
def test_keys_that_cannot_be_used(key: str, shown: str) -> None:
    with pytest.raises(ValueError) as refused:
        DragonFireClient(api_key=key)
    text = str(refused.value)
    assert text.startswith(f"api_key {shown} cannot be used: ") and "\n" not in text
    assert "hunter" not in text and "ter2" not in text


@pytest.mark.parametrize("key", ["rwt_x_y", "rwt_0_a_b_c", f"rwt_id_{'-_09azAZ' * 8}"])
def test_keys_that_can_be_used(key: str) -> None:
    assert key not in repr(DragonFireClient(api_key=key))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "give either api_key or credentials"),
        ({"api_key": KEY, "credentials": dict}, "give either api_key or credentials"),
        (
            {"credentials": dict, "device_key": SigningKey.generate(SignatureAlgorithm.ED25519, os.urandom)},
            "device_key needs api_key",
        ),
    ],
    ids=["neither", "both", "device key without a key"],
)
def test_options_that_exclude_each_other(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DragonFireClient(**options)


async def test_no_repr_shows_a_secret() -> None:
    dragonfire = DragonFireClient(api_key=KEY, transport=Post(ANSWER))
    ticket = await dragonfire.ticket()
    session, client = ticket.session, RWTClient(dragonfire)
    session.hold(1, bytes(range(64, 96)), session.held[0])
    channel = client.create_channel("x")
    shown = [dragonfire, ticket, session, *session.held, client, channel, client.get_status(), {"a": ticket}]
    for text in [repr(found) for found in shown] + [str(found) for found in shown]:
        assert SECRET not in text
        for secret in [token for held in session.held for token in (held.token, held.family) if token]:
            for form in (repr(secret)[2:-1], secret.hex(), b64(secret)):
                assert form not in text
    assert repr(dragonfire) == "<DragonFireClient http://127.0.0.1:8765/rwt>"
    assert repr(session) == "<ClientSession epoch=0 held=2>"
    assert repr(session.held[1]) == repr(Held(0, TICKET, None)) == "<Held epoch=0>"
    assert repr(channel) == "<RWTChannel 'x' closed>"


async def test_what_is_asked_for() -> None:
    post = Post(ANSWER)
    dragonfire = DragonFireClient(
        api_key=KEY, url="https://example.org", region="eu", user="ada", transport=post
    )
    ticket = await dragonfire.ticket()
    assert post.asked == [
        (
            "https://example.org/rwt/v2/session",
            {"Authorization": f"Bearer {KEY}"},
            {"user": "ada", "region": "eu"},
        )
    ]
    assert isinstance(ticket.session, ClientSession) and ticket.url == ANSWER["url"]
    session = ticket.session
    assert (session.sid, session.suites, session.held) == (SID, (2, 1), [Held(0, TICKET, None)])


@pytest.mark.parametrize(
    ("algorithm", "kind", "size"),
    [
        (SignatureAlgorithm.ED25519, ("OKP", "Ed25519"), 1),
        (SignatureAlgorithm.ECDSA_P256, ("EC", "P-256"), 2),
    ],
    ids=["Ed25519", "P-256"],
)
async def test_a_device_key_is_told(algorithm: SignatureAlgorithm, kind: tuple[str, str], size: int) -> None:
    key, post = SigningKey.generate(algorithm, os.urandom), Post(ANSWER)
    await DragonFireClient(api_key=KEY, device_key=key, transport=post).ticket()
    ((_, _, body),) = post.asked
    jwk = body["cnf"]
    assert (jwk["kty"], jwk["crv"]) == kind and set(body) == {"cnf"}
    parts = [base64.urlsafe_b64decode(jwk[name] + "=") for name in ("x", "y")[:size]]
    assert b"".join(parts) == key.public.raw[-32 * size :]


MISSING = object()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("sid", MISSING),
        ("sid", b64(bytes(15))),
        ("sid", "*" * 22),
        ("sid", 7),
        ("ticket", MISSING),
        ("ticket", b64(bytes(33))),
        ("ticket", None),
        ("suites", MISSING),
        ("suites", 1),
        ("suites", ["1"]),
        ("suites", [True]),
        ("url", MISSING),
        ("url", 7),
    ],
    ids=lambda value: "missing" if value is MISSING else repr(value),
)
async def test_answers_that_cannot_be_used(member: str, value: object) -> None:
    answer = {name: found for name, found in {**ANSWER, member: value}.items() if found is not MISSING}
    with pytest.raises(RWTConnectionError, match=r"is http://127\.0\.0\.1:8765/rwt an RWT server") as refused:
        await DragonFireClient(api_key=KEY, transport=Post(answer)).ticket()
    assert SECRET not in str(refused.value) and ANSWER["ticket"] not in str(refused.value)


async def test_a_ticket_for_a_plain_address_elsewhere() -> None:
    answer = {**ANSWER, "url": "ws://example.org/rwt/v2/ws"}
    with pytest.raises(RWTConnectionError, match=r"ws://example\.org.*not encrypted") as refused:
        await DragonFireClient(api_key=KEY, transport=Post(answer)).ticket()
    assert refused.value.code == "insecure"
    dragonfire = DragonFireClient(api_key=KEY, allow_insecure=True, transport=Post(answer))
    assert (await dragonfire.ticket()).url == answer["url"]


@pytest.mark.parametrize(
    ("failure", "kind", "text", "details"),
    [
        (HTTPRefusal(401, "no such key", None), RWTAuthenticationError, r"rwt_0123abcd_\*\*\*", 401),
        (HTTPRefusal(403, "forbidden", None), RWTAuthenticationError, "rwt-server keys create", 403),
        (HTTPRefusal(404, "x", None), RWTConnectionError, "check the path", 404),
        (HTTPRefusal(503, "draining", 2.5), RWTConnectionError, r"draining \(HTTP 503\)", 503),
        (ConnectionRefusedError("connection refused"), RWTConnectionError, "connection refused", None),
        (TimeoutError("slow"), RWTConnectionError, "cannot be reached: slow", None),
    ],
    ids=["401", "403", "404", "503", "refused", "slow"],
)
async def test_refused_ticket_requests(
    failure: Exception, kind: type[RWTError], text: str, details: int | None
) -> None:
    with pytest.raises(kind, match=text) as refused:
        await DragonFireClient(api_key=KEY, transport=Post(failure)).ticket()
    error = refused.value
    assert error.operation == "ticket" and error.details.get("http_status") == details
    assert SECRET not in str(error) and "http://127.0.0.1:8765/rwt" in str(error)
    assert error.retry_after == (2.5 if details == 503 else None)
    assert (error.code == "unreachable") == (details is None)


@pytest.mark.parametrize("late", [False, True], ids=["sync", "async"])
async def test_a_provider_is_asked_for_every_ticket(late: bool) -> None:
    asked = 0

    def provide() -> Any:
        nonlocal asked
        asked += 1
        return {**ANSWER, "sid": b64(bytes([asked] * 16))}

    async def provide_later() -> Any:
        await asyncio.sleep(0)
        return provide()

    post = Post(RuntimeError("not asked"))
    dragonfire = DragonFireClient(credentials=provide_later if late else provide, transport=post)
    sids = [(await dragonfire.ticket()).session.sid for _ in range(3)]
    assert sids == [bytes([number] * 16) for number in (1, 2, 3)] and not post.asked


async def test_closing_releases_the_network() -> None:
    post = Post(ANSWER)
    async with DragonFireClient(api_key=KEY, transport=post) as dragonfire:
        await dragonfire.connect()
        assert len(post.asked) == 1 and not post.closed
    assert post.closed


async def test_a_real_server_is_found_early(server: Running) -> None:
    async with DragonFireClient(api_key=server.key, url=server.url, user="ada", region="local") as good:
        await good.connect()
        first, second = await good.ticket(), await good.ticket()
        assert first.session.sid != second.session.sid
    async with DragonFireClient(api_key="rwt_00_wrong", url=server.url) as wrong:
        with pytest.raises(RWTAuthenticationError, match=r"rwt_00_\*\*\*"):
            await wrong.connect()
