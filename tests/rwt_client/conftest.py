"""A server on a real socket for every test of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.running import Running, running


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    """A server in this process, and a key for it."""
    async with running(tmp_path) as found:
        yield found
