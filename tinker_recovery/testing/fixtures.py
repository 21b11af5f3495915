"""The pytest fixture: ``pytest_plugins = ["tinker_recovery.testing.fixtures"]`` in a conftest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tinker_recovery.testing._server import LocalTinker


@pytest_asyncio.fixture
async def local_tinker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A local Tinker server, with the environment pointing the SDK to it."""
    async with LocalTinker() as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        monkeypatch.setenv("TINKER_TELEMETRY", "0")
        yield server
