"""The same command while another process trains the run: what is refused, and what is said."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspection import set_claim_s
from loops import policy, train, until
from named_runs import NAMED, trained_to

from tinker_recovery import Attempt, RunFinished, Supervisor, UsageError
from tinker_recovery.journal import default_path
from tinker_recovery.run.held_words import while_held
from tinker_recovery.testing import LocalTinker

STEPS = 6


@asynccontextmanager
async def under_way(**given: Any) -> AsyncIterator[anyio.Event]:
    """The run is trained elsewhere, until the event is set or the block is left."""
    held, go = anyio.Event(), anyio.Event()

    async def slowly(attempt: Attempt) -> None:
        held.set()
        await go.wait()
        await train(attempt, steps=STEPS)

    async def first() -> None:
        async with Supervisor(policy(), **given) as supervisor:
            await supervisor.run(slowly, **NAMED)

    running = asyncio.create_task(first())
    await held.wait()
    try:
        yield go
    finally:
        go.set()
        await running


async def second(lease: Any, **start: Any) -> None:
    """The same command, with other arguments perhaps."""
    async with Supervisor(policy(), lease=lease) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **{**NAMED, **start})


@pytest.mark.parametrize("lease", ["service", "journal", "both"])
async def test_other_arguments_are_refused_at_once_and_not_after_the_wait(
    local: LocalTinker, lease: Any
) -> None:
    async with under_way(lease=lease):
        sessions = len(local.sessions())
        with anyio.fail_after(10), pytest.raises(UsageError, match=r"rank=32 .* rank=8"):
            await second(lease, rank=32)
        assert len(local.sessions()) == sessions, "nothing was opened for it"


async def test_a_finished_run_is_refused_for_that_and_not_for_its_arguments(
    local: LocalTinker,
) -> None:
    del local
    await trained_to(STEPS)
    with pytest.raises(RunFinished):
        await trained_to(STEPS, rank=32)
    with pytest.raises(UsageError, match="rank=32"):
        await trained_to(STEPS, rank=32, extend=True)


@pytest.mark.parametrize("lease", ["service", "journal"])
async def test_it_says_how_to_look_at_the_other_process_and_how_to_end_it_or_the_wait(
    local: LocalTinker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    lease: Any,
) -> None:
    del local
    set_claim_s(monkeypatch, settle=0.05, look=0.02)
    async with under_way(lease=lease) as go:
        waiting = asyncio.create_task(second(lease))
        await until(lambda: "this process waits until that is over" in caplog.text)
        go.set()
        with pytest.raises(RunFinished):
            await waiting
    (said,) = [each.getMessage() for each in caplog.records if "this process waits" in each.msg]
    assert f"tinker-recovery watch sft-42 --journal {default_path()}" in said
    assert f"kill -INT {os.getpid()}" in said
    assert "Ctrl-C ends the wait" in said


def test_a_process_on_another_machine_is_looked_at_there() -> None:
    said = while_held("a b", pid=123, host="vm-2", here=False, journal=Path("/j.db"))
    assert "on vm-2: tinker-recovery watch 'a b'" in said
    assert "/j.db" not in said
    assert "kill" not in said
    assert "Ctrl-C ends the wait" in said


def test_nothing_that_a_claim_says_reaches_the_log_as_it_is() -> None:
    said = while_held("a", pid=1, host="vm\x1b[31m\n", here=False, journal=None)
    assert said.isprintable()
