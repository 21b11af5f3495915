"""Checkpoints that a loop saves under one name again and again, replacing the one before."""

from __future__ import annotations

import functools
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
import saving_over
from loops import MODEL, SEED, process, quick, undisturbed_state

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 10
SCRIPT = str(Path(saving_over.__file__))


@asynccontextmanager
async def _server(monkeypatch: pytest.MonkeyPatch, **options: float) -> AsyncIterator[LocalTinker]:
    async with LocalTinker(save_s=options["save_s"], load_s=options["load_s"]) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        await undisturbed_state(server, steps=STEPS)  # known from here on
        yield server


@pytest_asyncio.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server that takes longer to load a checkpoint than to save the next few."""
    async with _server(monkeypatch, save_s=0.2, load_s=1.0) as server:
        yield server


async def _ends_exactly(slow: LocalTinker, policy: RecoveryPolicy, *, every: int) -> list[int]:
    """Train to the end; the steps at which its attempts began."""
    expected = await undisturbed_state(slow, steps=STEPS)
    async with Supervisor(policy) as supervisor:
        await supervisor.run(
            functools.partial(saving_over.train, steps=STEPS, every=every),
            name=saving_over.NAME,
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    (run,) = supervisor.runs
    began = [attempt.start_step for attempt in run.attempts]
    assert slow.run_state(run.segments[-1].run_id) == expected, f"attempts began at {began}"
    return began


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("save_every", [3, 100])
async def test_a_save_still_to_be_replaced_by_a_dead_attempt_is_never_restored_as_another_step(
    slow: LocalTinker, every: int, save_every: int
) -> None:
    """A pass fails; what is queued behind it is executed while the run is being recovered."""
    slow.inject(FaultRule("fail", 5, "forward_backward"))
    policy = quick(checkpoints=CheckpointPolicy(save_every=save_every, keep_last=9))
    began = await _ends_exactly(slow, policy, every=every)
    if save_every == 3:
        assert began == [0, 3], "one that nothing can replace any more is used instead"


@pytest.mark.timeout(120)
async def test_what_a_killed_process_had_queued_replaces_nothing_unnoticed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Step 1 is listed, and step 2 is written in its place before the load has read it."""
    async with _server(monkeypatch, save_s=4.0, load_s=5.0) as server:
        with process([SCRIPT, "--steps", str(STEPS), "--die-at", "1"]) as killed:
            _, errors = await anyio.to_thread.run_sync(
                functools.partial(killed.communicate, timeout=60)
            )
            assert killed.returncode == -signal.SIGKILL, errors
        await _ends_exactly(server, quick(), every=STEPS + 1)
        assert "another save was written to its path while it was loaded" in caplog.text
