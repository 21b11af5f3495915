"""A recovery cut short in each of its phases, and recoveries that meet further faults."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
from loops import MODEL, SEED, batch, policy, quick, train, undisturbed_state, until
from stuck import Stuck

from tinker_recovery import Attempt, RecoveryEvent, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


@pytest.mark.parametrize("phase", ["select", "create_client", "verify", "resume"])
async def test_cancelling_in_any_phase_of_a_recovery_passes_through_and_leaves_nothing(
    local: LocalTinker, phase: str
) -> None:
    stuck = Stuck(local, phase)
    local.inject(FaultRule("fail", 7, "optim_step"))
    given: Any = policy(canary=batch(3), on_recovery=stuck.resume, close_timeout_s=5.0)

    async def run() -> None:
        async with Supervisor(given, on_event=stuck.note) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
            )

    running = asyncio.create_task(run())
    await until(stuck.is_stuck)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: "active" not in local.sessions().values())


async def test_a_recovery_that_meets_a_fault_of_each_other_kind_still_ends_exact(
    local: LocalTinker,
) -> None:
    """The listing is down, then loading fails, then it hangs, then it answers nonsense."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    local.inject(FaultRule("status", request="run_checkpoints", status=503, times=4))
    local.inject(FaultRule("fail", request="load_weights"))
    local.inject(FaultRule("hang", request="load_weights"))
    local.inject(FaultRule("malformed", request="load_weights"))
    async with Supervisor(quick(max_attempts=4, create_timeout_s=1.5)) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert len(run.recoveries) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_second_fault_while_the_first_is_backed_off_from_is_part_of_the_same_incident(
    local: LocalTinker,
) -> None:
    """The session of the old client fails while its run already waits to be recovered."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 7, "optim_step"))
    local.inject(FaultRule("fail", request="load_weights"))
    seen: list[str] = []

    def note(event: RecoveryEvent) -> None:
        seen.append(event.name)
        if event.name == "recovery.failed":
            local.fail_session(next(iter(local.sessions())))

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS, depth=2)

    given = policy(backoff_s=0.2, max_backoff_s=0.2, poll_interval_s=0.05)
    async with Supervisor(given, on_event=note) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert seen.count("recovery.detected") == 1
    assert seen.count("recovery.completed") == 1
    assert local.run_state(run.segments[-1].run_id) == expected
