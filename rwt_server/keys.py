"""API keys (section 7.1): made once, shown once, stored as SHA-256 only."""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from .config import ConfigError

_ONLY_STAR = re.compile(r"[\[?]")
"""What `fnmatch` knows beside `*` stands for itself."""
_NO_KEY = hashlib.sha256(b"no key").hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key. `channels` None: every channel; else patterns (`*` stands for anything)."""

    id: str
    hash: str
    name: str
    created_ms: int
    channels: tuple[str, ...] | None = None
    revoked: bool = False


def may_use(patterns: tuple[str, ...] | None, channel: str) -> bool:
    """Whether a key with these patterns may use `channel`."""
    if patterns is None:
        return True
    return any(fnmatchcase(channel, _ONLY_STAR.sub(r"[\g<0>]", pattern)) for pattern in patterns)


def _digest(secret: str) -> str:
    # A header that is not UTF-8 arrives with surrogates in it.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyFile:
    """A JSON file, mode 0600, replaced as a whole; read again whenever it changed.

    Raises:
        ConfigError: from every method, if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._keys: dict[str, ApiKey] = {}

    def create(self, name: str, channels: tuple[str, ...] | None) -> tuple[ApiKey, str]:
        """Make a key; the second value is shown to its owner and is not kept."""
        secret = secrets.token_urlsafe(32)
        key = ApiKey(
            id=secrets.token_hex(6),
            hash=_digest(secret),
            name=name,
            created_ms=time.time_ns() // 1_000_000,
            channels=channels,
        )
        with self._changing() as keys:
            keys[key.id] = key
        return key, f"rwt_{key.id}_{secret}"

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key; a running server ends its sessions within a minute."""
        with self._changing() as keys:
            if key_id not in keys:
                raise ConfigError(f"key {key_id!r} is not known: `rwt-server keys list` shows all ids")
            keys[key_id] = replace(keys[key_id], revoked=True)
            return keys[key_id]

    def all(self) -> list[ApiKey]:
        """Return all keys, oldest first."""
        self._refresh()
        return sorted(self._keys.values(), key=lambda key: key.created_ms)

    def active(self, key_id: str) -> bool:
        """Whether a key exists and is not revoked."""
        self._refresh()
        key = self._keys.get(key_id)
        return key is not None and not key.revoked

    def authenticate(self, presented: str) -> ApiKey | None:
        """Return the key whose `rwt_<id>_<secret>` was presented, or None; takes the same time for all."""
        self._refresh()
        scheme, _, rest = presented.partition("_")
        key_id, _, secret = rest.partition("_")
        key = self._keys.get(key_id)
        same = hmac.compare_digest(_digest(secret), key.hash if key is not None else _NO_KEY)
        if key is None or not same or key.revoked or scheme != "rwt":
            return None
        return key

    def _refresh(self) -> None:
        try:
            info = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, {}
            return
        except OSError as exc:
            raise ConfigError(f"key file {self.path} cannot be read: {exc.strerror}") from exc
        seen = info.st_mtime_ns, info.st_ino
        if seen == self._seen:
            return
        try:
            rows = json.loads(self.path.read_text())
            keys = [
                ApiKey(**{**row, "channels": None if row["channels"] is None else tuple(row["channels"])})
                for row in rows
            ]
            found = {key.id: key for key in keys}
        except (OSError, ValueError, TypeError, KeyError) as exc:
            raise ConfigError(
                f"key file {self.path} is damaged ({type(exc).__name__}): restore it, or remove it and make new keys"
            ) from exc
        self._seen, self._keys = seen, found

    @contextmanager
    def _changing(self) -> Iterator[dict[str, ApiKey]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as exc:
            raise ConfigError(f"key file {self.path} cannot be written: {exc.strerror}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._refresh()
            keys = dict(self._keys)
            yield keys
            fresh = self.path.with_suffix(".new")
            descriptor = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump([asdict(key) for key in keys.values()], file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, self.path)
        except OSError as exc:
            raise ConfigError(f"key file {self.path} cannot be written: {exc.strerror}") from exc
        finally:
            os.close(lock)
