"""Errors: one tree, stable codes, and what may help."""

import pickle

import pytest

from rwt_protocol import errors
from rwt_protocol.codes import CloseCode
from rwt_protocol.errors import Recovery, RWTError, RWTProtocolError

TREE = [
    # class, direct base, code, strategy, may be tried again
    (errors.RWTError, Exception, "error", "none", False),
    (errors.RWTConnectionError, RWTError, "connection", "reconnect", True),
    (errors.RWTDisconnectedError, errors.RWTConnectionError, "disconnected", "reconnect", True),
    (errors.RWTAuthenticationError, RWTError, "authentication", "reauthenticate", False),
    (errors.RWTSendError, RWTError, "send", "fix-input", False),
    (errors.RWTEncodingError, errors.RWTSendError, "encoding", "fix-input", False),
    (errors.RWTOutcomeUnknown, errors.RWTSendError, "outcome-unknown", "none", False),
    (errors.RWTTimeoutError, RWTError, "timeout", "retry", True),
    (errors.RWTEncryptionError, RWTError, "encryption", "none", False),
]


@pytest.mark.parametrize(
    ("kind", "base", "code", "strategy", "again"), [pytest.param(*row, id=row[0].__name__) for row in TREE]
)
def test_tree(kind: type[RWTError], base: type, code: str, strategy: str, again: bool) -> None:
    error = kind("it failed")
    assert kind.__bases__[0] is base
    assert (error.code, error.recovery.strategy, error.can_retry()) == (code, strategy, again)
    assert (str(error), error.operation, dict(error.details), error.retry_after) == (
        "it failed",
        "",
        {},
        None,
    )


def test_every_error_of_the_module_is_in_the_tree() -> None:
    found = {
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, RWTError)
    }
    assert found == {row[0] for row in TREE} | {RWTProtocolError}


def test_facts() -> None:
    facts: dict[str, object] = {"mid": 7}
    error = errors.RWTSendError("no", code="rate", operation="send", details=facts, retry_after=1.5)
    facts["mid"] = 8
    assert (error.code, error.operation, error.details) == ("rate", "send", {"mid": 7})
    assert error.recovery == Recovery("fix-input", 1.5)
    assert error.retry_after == 1.5


def test_timeout_is_also_the_builtin_one() -> None:
    with pytest.raises(TimeoutError):
        raise errors.RWTTimeoutError("too late")


@pytest.mark.parametrize("code", list(CloseCode), ids=lambda code: code.name)
def test_protocol_error_carries_its_close_code(code: CloseCode) -> None:
    error = RWTProtocolError("broken", code)
    assert error.close_code is code
    assert error.details == {"close_code": int(code)}
    assert (error.code, error.can_retry()) == ("protocol", True)


def test_protocol_error_is_4400_by_default() -> None:
    error = RWTProtocolError("broken")
    assert error.close_code == 4400
    assert isinstance(error, errors.RWTConnectionError)


def test_recovery_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Recovery("retry").retry_after = 1.0  # type: ignore[misc]


def test_an_error_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(RWTProtocolError("broken", CloseCode.TOO_LARGE)))
    assert (str(copy), copy.close_code) == ("broken", CloseCode.TOO_LARGE)
