"""A save that fails is not a run that fails."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import tinker
from inspection import stored_paths
from loops import MODEL, SEED, policy, quick, train, undisturbed_state

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor
from tinker_recovery.run.client_hooks import AttemptHooks
from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.actions import Category

STEPS = 12


async def _train(checkpoints: CheckpointPolicy, steps: int = STEPS) -> tuple[Supervisor, list[str]]:
    said: list[str] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == "checkpoint.save_failed":
            said.append(event.message)

    async with Supervisor(quick(checkpoints=checkpoints), on_event=note) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=steps), base_model=MODEL, rank=8, seed=SEED
        )
    return supervisor, said


@pytest.mark.parametrize("category", ["server", "user", "unknown"])
async def test_a_save_whose_result_fails_is_due_again_at_the_next_step_and_training_continues(
    local: LocalTinker, category: Category
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 5, "save_weights", category=category))
    supervisor, said = await _train(CheckpointPolicy(save_at_start=False, save_every=5))
    (run,) = supervisor.runs
    assert len(run.attempts) == 1
    assert local.run_state(run.segments[0].run_id) == expected
    saved = sorted(int(path.split("/step-")[1][:8]) for path in stored_paths(run))
    assert saved[0] in {6, 7}, "as soon as the failure was known"
    assert saved[-1] == STEPS
    assert len(said) == 1
    assert "due again" in said[0]


async def test_where_saving_keeps_failing_the_run_ends_well_and_says_what_is_at_stake(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", request="save_weights", times=1000))
    supervisor, said = await _train(CheckpointPolicy(save_at_start=False, save_every=1))
    (run,) = supervisor.runs
    assert len(run.attempts) == 1
    assert local.run_state(run.segments[0].run_id) == expected
    assert len(said) <= 2, "the first and the tenth"
    assert all("cost every step since 0" in each for each in said[1:])


async def test_where_saving_keeps_failing_the_policy_may_have_the_run_stop(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", request="save_weights", times=1000))
    with pytest.raises(tinker.RequestFailedError, match="injected"):
        await _train(
            CheckpointPolicy(save_at_start=False, save_every=1, on_save_failure="stop"), steps=1000
        )


async def test_a_failed_save_that_the_loop_has_caught_ends_no_attempt(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", request="save_weights"))

    async def saving(attempt: Attempt) -> None:
        with pytest.raises(tinker.RequestFailedError):
            await attempt.client.save_state("mine")
        await train(attempt, steps=3)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(saving, base_model=MODEL, rank=8, seed=SEED)
    assert len(supervisor.runs[0].attempts) == 1


SAVES = CheckpointPolicy(save_at_start=False, save_every=3)


async def test_a_save_that_could_not_be_submitted_costs_its_client_and_the_run_recovers(
    local: LocalTinker,
) -> None:
    """The SDK has counted it, so the service would wait for it before all that follows."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("status", 6, request="save_weights", status=404))
    with anyio.fail_after(30):
        supervisor, _ = await _train(SAVES)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 3]
    assert local.run_state(run.segments[-1].run_id) == expected


def test_two_saves_that_fail_at_once_are_said_to_be_two() -> None:
    """The first is reported by what is known as the event loop comes to it."""
    posted: list[tuple[Any, ...]] = []
    said: list[str] = []
    saver: Any = SimpleNamespace(
        failed=lambda _: True, failing=(2, 4), gives_up=False, training_continues=None
    )
    events = SimpleNamespace(emit=lambda _name, _run, message, _fields: said.append(message))
    scope: Any = SimpleNamespace(
        run=SimpleNamespace(name="r", collaborators=SimpleNamespace(events=events)),
        refusal=SimpleNamespace(is_it=lambda *_, **__: False),
        post=lambda *given: posted.append(given),
        saver=saver,
        faulty=False,
        closed=False,
    )
    trail: Any = SimpleNamespace(passed=None)
    AttemptHooks(scope, saver, trail).save_failed(5, RuntimeError("no room"))
    ((report, *given),) = posted
    report(*given)
    (message,) = said
    assert "2 saves in a row have failed, so a fault would now cost every step since 4" in message
