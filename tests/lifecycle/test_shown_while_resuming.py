"""What `runs` and `watch` show of a run that a new process restores, before it trains."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing

import anyio
import pytest
from inspection import training_sessions
from loops import policy, quick, train, until
from named_runs import NAMED, Killed, left_at

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.journal import default_path
from tinker_recovery.journal.pace import FIRST_STEP_S, STALLED_S, state_of_training
from tinker_recovery.journal.summary import RunSummary, read_summaries
from tinker_recovery.testing import FaultRule, LocalTinker

SOON = {"backoff_s": 0.05, "max_backoff_s": 0.05}


def _shown() -> RunSummary:
    (summary,) = read_summaries(default_path())
    return summary


UNREAD = FaultRule("status", request="run_checkpoints", status=503, times=10**6)


async def _stop() -> None:
    """A process that was stopped at a step that is saved."""

    async def stopping(attempt: Attempt) -> None:
        await train(attempt, steps=12)
        supervisor.stop()
        await anyio.sleep_forever()

    with pytest.raises(asyncio.CancelledError):
        async with Supervisor(quick()) as supervisor:
            await supervisor.run(stopping, **NAMED)


async def _kill() -> None:
    await left_at(12, by=Killed)
    with closing(sqlite3.connect(default_path())) as database, database:
        database.execute("UPDATE runs SET state = 'training', detail = ''")
        database.execute("UPDATE attempts SET ended = NULL, outcome = NULL")
        database.execute("UPDATE leases SET holder = 'dead', pid = 4194305")


@pytest.mark.parametrize(
    ("leave", "held_up_by"),
    [(_stop, FaultRule("hang", request="load_weights")), (_kill, UNREAD)],
    ids=["stopped", "killed"],
)
async def test_it_is_not_in_training_until_it_is(
    local: LocalTinker, leave: Callable[[], Awaitable[None]], held_up_by: FaultRule
) -> None:
    await leave()
    began = time.time()
    local.inject(held_up_by)
    states: list[str] = []

    async def look() -> None:
        await until(lambda: _shown().run.live)
        await until(lambda: _shown().run.display_state == "resuming")
        assert _shown().since >= began
        assert _shown().run.quiet_since is None
        local.release()

    async def body(attempt: Attempt) -> None:
        states.append(_shown().run.display_state)
        await train(attempt, steps=14)

    async with anyio.create_task_group() as group, Supervisor(policy(**SOON)) as supervisor:
        group.start_soon(look)
        await supervisor.run(body, **NAMED)
    assert states == ["training"]
    assert len(training_sessions(local)) >= 2
    assert _shown().run.display_state == "finished"


@pytest.mark.parametrize(
    ("newest", "later_s", "shown"),
    [
        (None, 1.0, "training"),
        ((5, 99.0), 1.0, "resuming"),
        ((5, 99.0), FIRST_STEP_S, "resuming"),
        ((5, 99.0), FIRST_STEP_S + 1.0, "stalled"),
        ((5, 101.0), 100.0, "training"),
        ((5, 101.0), STALLED_S + 10.0, "stalled"),
    ],
)
def test_the_attempt_of_the_last_process_does_not_count(
    newest: tuple[int, float] | None, later_s: float, shown: str
) -> None:
    at = functools.partial(state_of_training, 9, 100.0, newest, held_since=100.0)
    assert at(now=100.0 + later_s) == shown
