"""A service that answers all but our saves: the loop is worth no less than a bare one without."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import anyio
import pytest
from loops import MODEL, SEED, quick, train, undisturbed_state
from sweeps import sweep

from tinker_recovery import CheckpointPolicy, RecoveryEvent, RecoveryExhausted, Supervisor
from tinker_recovery.faults import Kind
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14
FOR_EVER = 1e6
HANGS = FaultRule("hang", request="save_weights", for_s=FOR_EVER)


def vain(status: int, **more: Any) -> FaultRule:
    return FaultRule("status", request="save_weights", status=status, **more)


async def a_run(
    local: LocalTinker, *, depth: int = 0, steps: int = STEPS, policy: dict[str, Any] | None = None
) -> tuple[list[Kind], list[str], list[int]]:
    """What a run recovers from, says of its saves, and has stored at its end."""
    events: list[RecoveryEvent] = []
    saves = CheckpointPolicy(save_every=5, save_at_start=False)
    given = quick(**({"stall_after_s": 1.0, "checkpoints": saves} | (policy or {})))
    async with Supervisor(given, service=local.service, journal=None, on_event=events.append) as s:
        loop = functools.partial(train, steps=steps, depth=depth)
        with anyio.fail_after(60):
            await s.run(loop, base_model=MODEL, rank=8, seed=SEED)
        (run,) = s.runs
        kinds = [each.fault.kind for each in run.recoveries]
        run_id = run.segments[-1].run_id
    assert local.run_state(run_id) == await undisturbed_state(local, steps=steps)
    said = [e.message for e in events if e.name == names.EVENT_CHECKPOINT_SAVE_FAILED]
    return kinds, said, sorted(each.steps for each in local.checkpoints(run_id))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(
    ("status", "canary", "depth"),
    sweep(itertools.product([408, 409, 429, 500, 501, 503], ["auto", None], [0, 2]), 13),
)
async def test_a_loop_ends_well_where_no_save_is_answered_for_as_long_as_the_sdk_tries(
    local: LocalTinker, status: int, canary: str | None, depth: int
) -> None:
    local.inject(vain(status, for_s=FOR_EVER))
    kinds, said, stored = await a_run(local, depth=depth, policy={"canary": canary})
    assert stored == []
    assert len(kinds) == 2
    assert len(said) == 2
    assert f"although the service answers all else: HTTP {status}" in said[0]
    assert "so none is asked for any more" in said[-1]


@pytest.mark.parametrize("depth", [0, 2])
async def test_a_loop_ends_well_where_every_save_hangs(local: LocalTinker, depth: int) -> None:
    local.inject(HANGS)
    kinds, said, stored = await a_run(local, depth=depth)
    assert stored == []
    assert kinds == [Kind.SILENCE, Kind.SILENCE]
    assert "step 5 was not saved, although the service answers all else" in said[0]
    assert "so none is asked for any more" in said[-1]


@pytest.mark.parametrize("at_start", [True, False])
async def test_they_cost_none_of_the_runs_own_attempts(
    local: LocalTinker, *, at_start: bool
) -> None:
    local.inject(HANGS)
    saves = CheckpointPolicy(save_every=5, save_at_start=at_start)
    kinds, said, _ = await a_run(local, policy={"max_attempts": 1, "checkpoints": saves})
    assert len(kinds) == len(said) == 2


@pytest.mark.parametrize("step", [5, 10])
async def test_one_that_hangs_costs_what_was_trained_since_the_one_before(
    local: LocalTinker, step: int
) -> None:
    local.inject(FaultRule("hang", step, request="save_weights"))
    kinds, said, stored = await a_run(local)
    assert kinds == [Kind.SILENCE]
    assert {*stored} >= {10, 14} - {step}
    assert len(said) == 1
    assert "any more" not in said[0]


@pytest.mark.parametrize("rule", [HANGS, vain(503, for_s=FOR_EVER)], ids=["hang", "status"])
@pytest.mark.usefixtures("hurried")
async def test_the_save_of_the_last_step_is_tried_once_more_and_then_given_up(
    local: LocalTinker, rule: FaultRule
) -> None:
    """The final weights are worth another try; with them trained, nothing more is."""
    local.inject(rule)
    saves = CheckpointPolicy(save_every=50, save_at_start=False)
    given = {"checkpoints": saves, "canary": "auto"}
    kinds, said, stored = await a_run(local, steps=6, policy=given)
    assert len(kinds) == 1
    assert len(said) == 2
    assert stored == []


async def test_the_run_stops_if_the_policy_says_so(local: LocalTinker) -> None:
    local.inject(HANGS)
    saves = CheckpointPolicy(
        save_every=5, save_at_start=False, on_save_failure="stop", save_on_stop_s=None
    )
    given = quick(stall_after_s=1.0, checkpoints=saves)
    async with Supervisor(given, service=local.service, journal=None) as supervisor:
        loop = functools.partial(train, steps=STEPS)
        with anyio.fail_after(60), pytest.raises(Exception, match="saving keeps failing"):
            await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)


async def test_a_request_of_the_loop_that_hangs_is_no_saves_fault(local: LocalTinker) -> None:
    """With a save behind it, and again after each recovery: the run is given up, not its saves."""
    local.inject(FaultRule("hang", 4, request="optim_step", times=10))
    with pytest.raises(RecoveryExhausted):
        await a_run(local, depth=2)
    assert local.stats.by_route["save_weights"] >= 3
