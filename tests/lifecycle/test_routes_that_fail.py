"""A route of the service that fails, and that no loop needs: it trains on as a bare one would."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from loops import (
    ADAM,
    MODEL,
    SEED,
    batch,
    most_steps,
    quick,
    train,
    undisturbed_state,
    until,
)
from sweeps import pairs

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.actions import Target

STEPS, RESTARTED_AT = 30, 12
ROUTES: tuple[Target, ...] = (
    "training_run",
    "training_runs",
    "run_checkpoints",
    "checkpoints",
    "weights_info",
    "search_sessions",
    "session_heartbeat",
    "delete",
)


@pytest.mark.parametrize(("route", "status"), pairs(ROUTES, [503, 500, 502, 504], 14))
async def test_a_route_of_ours_alone_that_fails_costs_the_loop_nothing(
    local: LocalTinker, tmp_path: Path, route: Target, status: int
) -> None:
    """HTTP 503 with requests under way is what a proxy answers of a service that is restarted."""

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        local.inject(FaultRule("status", request=route, status=status, for_s=1e6))
        for step in range(7, STEPS):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            update = attempt.client.optim_step(ADAM)
            await forward
            await update
            await anyio.sleep(0.02)  # for polls to fall into the loop's requests, and beside them
        local.release()

    given = quick(
        poll_interval_s=0.2,
        canary="auto",
        checkpoints=CheckpointPolicy(save_every=5),
    )
    with anyio.fail_after(60):
        async with Supervisor(given, service=local.service, journal=tmp_path / "j.sqlite3") as s:
            await s.run(loop, name="routes", base_model=MODEL, rank=8, seed=SEED)
            (run,) = s.runs
    assert [each.fault.kind for each in run.recoveries] == []
    assert local.run_state(run.segments[-1].run_id) == await undisturbed_state(local, steps=STEPS)


@pytest.mark.parametrize("for_s", [0.6, 1.2])
@pytest.mark.parametrize("depth", [0, 2])
async def test_a_service_restarted_with_older_weights_behind_a_proxy_costs_no_bit(
    local: LocalTinker, depth: int, for_s: float
) -> None:
    """Every request is answered with HTTP 503 meanwhile, and polls come more often than that."""

    async def restart() -> None:
        await until(lambda: most_steps(local) >= RESTARTED_AT)
        await anyio.sleep(for_s / 5)
        local.begin_outage(status=503, rollback=True)
        await anyio.sleep(for_s)
        await anyio.to_thread.run_sync(local.end_outage)

    async def loop(attempt: Attempt) -> None:
        async with anyio.create_task_group() as group:
            if attempt.number == 1:
                group.start_soon(restart)
            await train(attempt, steps=STEPS, depth=depth)

    given = quick(poll_interval_s=0.2, canary="auto", checkpoints=CheckpointPolicy(save_every=5))
    with anyio.fail_after(60):
        async with Supervisor(given, service=local.service, journal=None) as supervisor:
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
            (run,) = supervisor.runs
    assert local.run_state(run.segments[-1].run_id) == await undisturbed_state(local, steps=STEPS)
