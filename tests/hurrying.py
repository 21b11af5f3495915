"""The SDK's long patience, in a moment."""

from __future__ import annotations

import asyncio
import time
import types

import pytest
from tinker._base_client import BaseClient
from tinker.lib import internal_client_holder

BILLING_PAUSE_S = 5.0
"""The longest single sleep of the SDK's own retries, for a 402; others are shorter at first."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the SDK's own patience of 300 s (an hour, for 402) pass in a moment."""

    class Hurried(types.ModuleType):
        passed = 0.0

        def __getattr__(self, name: str) -> object:
            return getattr(time, name)

        def time(self) -> float:
            self.passed += 200.0
            return time.time() + self.passed

        def monotonic(self) -> float:
            self.passed += 20.0
            return time.monotonic() + self.passed

    class Brief(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            # Heartbeats are ten seconds apart, and stay so.
            await asyncio.sleep(min(seconds, 0.001) if seconds <= BILLING_PAUSE_S else seconds)

    monkeypatch.setattr(internal_client_holder, "time", Hurried("time"))
    monkeypatch.setattr(internal_client_holder, "asyncio", Brief("asyncio"))
    monkeypatch.setattr(BaseClient, "_calculate_retry_timeout", lambda *_, **__: 0.0)
