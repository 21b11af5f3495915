"""A run whose end is itself cancelled: its name is free again, and nobody waits for it for ever."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from inspection import internals_of
from loops import policy, quick, train, until
from named_runs import NAMED

from tinker_recovery import Attempt, RunFinished, Supervisor
from tinker_recovery.run import claiming
from tinker_recovery.service.guard import Guard
from tinker_recovery.testing import FaultRule, LocalTinker

SOON_S = 20.0


async def test_a_run_cancelled_while_its_session_is_finished_can_be_asked_for_again(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("slow", request="finish", delay_s=1.0, times=1))
    async with Supervisor(policy()) as supervisor:
        ending = asyncio.create_task(supervisor.run(lambda each: train(each, steps=2), **NAMED))
        await until(lambda: any(each.request == "finish" for each in local.fired))
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        with anyio.fail_after(SOON_S), pytest.raises(RunFinished):
            await supervisor.run(lambda each: train(each, steps=2), **NAMED)


async def test_a_run_cancelled_twice_in_its_recovery_can_be_asked_for_again(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("poison", 2, "optim_step"))
    local.inject(FaultRule("hang", request="load_weights"))
    local.inject(FaultRule("slow", request="finish", delay_s=1.0))

    async def looping(attempt: Attempt) -> None:
        await train(attempt, steps=4)

    async with Supervisor(policy()) as supervisor:
        recovering = asyncio.create_task(supervisor.run(looping, **NAMED))
        await until(lambda: bool(supervisor.runs) and supervisor.runs[0].state == "recovering")
        for _ in range(3):
            recovering.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await recovering
        local.release()
        with anyio.fail_after(SOON_S):
            await supervisor.run(looping, **NAMED)


@pytest.mark.parametrize("named", [True, False])
async def test_a_run_cancelled_while_an_error_of_its_loop_is_looked_into_is_over(
    local: LocalTinker, *, named: bool
) -> None:
    """The service is asked whether it has marked the run, which may be why it refuses a request."""
    local.inject(FaultRule("fail", 2, "optim_step", category="user"))
    local.inject(FaultRule("slow", request="training_run", delay_s=SOON_S))
    start = NAMED if named else {**NAMED, "name": None}
    async with Supervisor(policy()) as supervisor:
        ending = asyncio.create_task(supervisor.run(lambda each: train(each, steps=4), **start))
        await until(lambda: any(each.request == "training_run" for each in local.fired))
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert supervisor.runs[0].state == "over"
        assert "active" not in local.sessions().values()
        local.release()
        if named:
            with anyio.fail_after(SOON_S):
                await supervisor.run(lambda each: train(each, steps=4), **start)


async def test_a_run_cancelled_while_it_asks_at_its_end_whether_it_is_still_its_own_is_over(
    local: LocalTinker,
) -> None:
    async def asking_slowly(attempt: Attempt) -> None:
        await train(attempt, steps=2)
        local.inject(FaultRule("slow", request="session_heartbeat", delay_s=5.0))

    async with Supervisor(policy()) as supervisor:
        ending = asyncio.create_task(supervisor.run(asking_slowly, **NAMED))
        await until(lambda: any(each.request == "session_heartbeat" for each in local.fired))
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert supervisor.runs[0].state == "over"
        local.release()
        with anyio.fail_after(SOON_S):
            await supervisor.run(lambda each: train(each, steps=2), **NAMED)


async def test_a_run_that_waits_for_the_end_of_the_one_before_says_so_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claiming, "SAY_S", 0.02)
    guard = Guard()
    async with anyio.create_task_group() as group:
        group.start_soon(claiming._until_released, "mine", guard)
        await until(lambda: len(caplog.records) == 2)
        guard.released.set()
    assert [record.getMessage().partition(" after ")[2] for record in caplog.records] == [
        "0.02 s: its next run waits for that",
        "0.06 s: its next run waits for that",
    ]


async def test_without_a_journal_on_disk_a_name_holds_nothing_and_is_begun_anew(
    local: LocalTinker,
) -> None:
    del local
    for _ in range(2):
        async with Supervisor(quick(), journal=None) as supervisor:
            await supervisor.run(lambda each: train(each, steps=2), **NAMED)
        (run,) = supervisor.runs
        assert internals_of(run).guard.claim is None
        assert [each.start_step for each in run.attempts] == [0]
