"""C3: old traffic and tokens stay secret: the state of epoch e + 1 neither opens frames of e nor holds its token.

Attacker: takes the whole state of both ends after a rotation and has recorded the wire. Chain and traffic keys
are gone on both sides, tokens on the client; a retired token at the server can only revoke. The control keeps
what has to be erased.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from rwt_protocol import codec
from rwt_protocol.client import ClientConnection
from rwt_protocol.connection import Header
from rwt_protocol.errors import RWTProtocolError
from rwt_protocol.frames import Publication
from rwt_protocol.key_schedule import DirectionKeys, EpochKeys
from rwt_protocol.record import Opener
from tests.pair import Pair


def reachable(*roots: object) -> Iterator[object]:
    """Everything that can be reached from the protocol state, modules and classes excepted."""
    seen: set[int] = set()
    todo: list[object] = list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ in ("module", "function"):
            continue
        seen.add(id(item))
        yield item
        todo += gc.get_referents(item)


def secrets_of(keys: EpochKeys) -> dict[str, bytes]:
    return {
        "chain": keys.chain,
        "client key": keys.client.key,
        "server key": keys.server.key,
        "client ratchet": keys.client.ratchet,
        "server ratchet": keys.server.ratchet,
    }


def chain_of(connection: ClientConnection) -> EpochKeys:
    assert connection._chain is not None
    return connection._chain


class Hoarder(ClientConnection):
    """Forgets to erase: keeps the keys and tokens of each epoch that ends."""

    def _on_rotated(self, header: Header) -> None:
        self.hoard = (self._chain, self._held)
        super()._on_rotated(header)


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_secrets_of_the_old_epoch_are_out_of_reach(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken:
        monkeypatch.setattr("tests.pair.ClientConnection", Hoarder)
    pair = Pair()
    old = chain_of(pair.client)
    names = secrets_of(old)
    token = old.token
    del old
    pair.rotate()
    pair.tape.clear()
    client = [item for item in reachable(pair.client, pair.session) if isinstance(item, bytes)]
    server = [item for item in reachable(pair.server) if isinstance(item, bytes)]
    left = {name for name, secret in names.items() if secret in client or secret in server}
    assert left == (set(names) if broken else set())
    assert (token in client) is broken
    assert token not in server


@pytest.mark.parametrize("broken", [False, True], ids=["rule", "control"])
def test_state_of_the_next_epoch_does_not_open_the_past(broken: bool) -> None:
    pair = Pair()
    old = chain_of(pair.client)
    pair.client.send_message(1, 5, codec.encode_publication(Publication(b"past")))
    (frame,) = pair.client.bytes_to_send()
    seq = codec.HEADER.unpack_from(frame)[4]
    pair.server.receive(frame, pair.now)
    pair.rotate()
    state = chain_of(pair.client)
    values = [
        item for item in reachable(pair.client, pair.server, pair.session, state) if isinstance(item, bytes)
    ]
    if broken:  # the state of e itself
        values.append(old.client.key)
    keys = [value for value in set(values) if len(value) == 32]
    assert len(keys) > 5
    opened = 0
    for key in keys:
        reader = Opener(DirectionKeys(key, old.client.iv, key), old.epoch)
        reader.count = seq
        try:
            reader.open(frame, 1, seq)
            opened += 1
        except RWTProtocolError:
            pass
    assert opened == int(broken)
