"""Jobs that are cancelled while they are entered, as by Ctrl-C: nothing of the engine stays."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import pytest
from loops import MODEL, SEED, quick
from loops_of_jobs import train

from tinker_recovery.jobs import Jobs, engine
from tinker_recovery.testing import LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}


@pytest.mark.timeout(120)
async def test_jobs_that_are_cancelled_while_their_engine_starts_leave_none_behind(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    del local
    starting, cancelled = threading.Event(), threading.Event()
    launch = engine.launch

    def slow(*given: Any, **named: Any) -> None:
        starting.set()
        cancelled.wait(30)
        launch(*given, **named)

    async def enter() -> None:
        async with Jobs(policy=quick(), starts_per_s=50.0):
            raise AssertionError("it was cancelled before")

    monkeypatch.setattr(engine, "launch", slow)
    entering = asyncio.create_task(enter())
    await anyio.to_thread.run_sync(starting.wait)
    entering.cancel()  # as Ctrl-C does
    asyncio.get_running_loop().call_later(0.2, cancelled.set)
    with pytest.raises(asyncio.CancelledError):
        await entering
    monkeypatch.setattr(engine, "launch", launch)
    async with Jobs(policy=quick(), starts_per_s=50.0) as jobs:
        handle = await jobs.submit(train, name="next", args={"steps": 2}, **START)
        assert (await handle.result()).step == 2
