"""The requests of a closed client end by themselves where they can, and are cancelled where not."""

from __future__ import annotations

import asyncio
import time

import pytest
from tinker.lib.internal_client_holder import _internal_client_holder_thread_singleton as sdk

from tinker_recovery.service.waiting import end_all


async def _fails_in(seconds: float) -> None:
    await asyncio.sleep(seconds)
    raise ValueError("session has finished")


async def test_one_that_is_about_to_fail_keeps_its_error(caplog: pytest.LogCaptureFixture) -> None:
    """Cancelled in that moment, its exception is never retrieved, and asyncio says so."""
    failing = [asyncio.run_coroutine_threadsafe(_fails_in(0.03), sdk.get_loop()) for _ in range(20)]
    await end_all(failing, within_s=5.0)
    assert [type(each.exception(0)) for each in failing] == [ValueError] * 20
    assert "never retrieved" not in caplog.text


async def test_one_that_waits_for_its_turn_is_cancelled() -> None:
    waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(3600), sdk.get_loop())
    began = time.monotonic()
    await end_all([waiting], within_s=0.05)
    assert waiting.cancelled()
    assert time.monotonic() - began < 2.0
