"""Loops of several optimizer steps an iteration: no checkpoint and no recovery lies inside one."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
import tinker
from inspection import run_id_of
from loops import ADAM, MODEL, SEED, batch, policy, quick, undisturbed_state
from named_runs import Killed

from tinker_recovery import Attempt, CheckpointPolicy, Kind, Run, Supervisor, UsageError
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS, UPDATES = 6, 2
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED, "updates_per_step": UPDATES}
SAVES = CheckpointPolicy(save_every=3, save_at_start=False)

Before = Callable[[Attempt, int, int], Any]


async def nothing(attempt: Attempt, step: int, update: int) -> None:
    del attempt, step, update


async def train(
    attempt: Attempt, before: Before = nothing, *, steps: int = STEPS, updates: int = UPDATES
) -> None:
    """Train to ``steps`` iterations; ``before`` is called before each update."""
    for step in range(attempt.start_step, steps):
        for update in range(updates):
            await before(attempt, step, update)
            await one_update(attempt, step * updates + update)


async def one_update(attempt: Attempt, number: int) -> None:
    forward = attempt.client.forward_backward(batch(number), "cross_entropy")
    ended = attempt.client.optim_step(ADAM)
    await forward
    await ended


async def run(before: Before = nothing, **changes: Any) -> Run:
    start = START | {key: changes.pop(key) for key in ("name",) if key in changes}
    async with Supervisor(quick(**({"checkpoints": SAVES} | changes))) as supervisor:
        await supervisor.run(functools.partial(train, before=before), **start)
    return supervisor.runs[0]


async def ended_exactly(local: LocalTinker, ended: Run, *, steps: int = STEPS) -> None:
    expected = await undisturbed_state(local, steps=steps * UPDATES)
    assert local.run_state(ended.segments[-1].run_id) == expected
    assert ended.step == steps


async def listed(local: LocalTinker, run_id: str) -> dict[str, dict[str, str]]:
    rest = tinker.RestClient(base_url=local.base_url, api_key=local.api_key)
    found = (await rest.list_checkpoints(run_id)).checkpoints
    return {each.tinker_path.rpartition("/")[2]: each.user_metadata or {} for each in found}


async def steps_in(local: LocalTinker, path: str) -> int:
    """Optimizer steps in a checkpoint."""
    service = local.service()
    pending = await anyio.to_thread.run_sync(service.create_training_client_from_state, path)
    steps = local.run_state(str((await pending).model_id)).steps
    await service.close("success")
    return steps


@pytest.mark.parametrize("at", [4, 5, 6, 7])
@pytest.mark.parametrize("operation", ["forward_backward", "optim_step"])
@pytest.mark.parametrize("action", ["poison", "fail"])
async def test_a_fault_at_any_update_of_an_iteration_costs_no_bit(
    local: LocalTinker, action: Any, operation: Any, at: int
) -> None:
    local.inject(FaultRule(action, at, operation, category="server"))
    ended = await run()
    assert [each.start_step for each in ended.attempts] == [0, 3 if at >= 2 * 3 else 0]
    await ended_exactly(local, ended)


@pytest.mark.parametrize("at", [6, 7])
async def test_silence_at_any_update_of_an_iteration_costs_no_bit(
    local: LocalTinker, at: int
) -> None:
    local.inject(FaultRule("hang", at, "optim_step"))
    ended = await run(stall_after_s=1.5, poll_interval_s=0.1)
    assert [each.start_step for each in ended.attempts] == [0, 3]
    await ended_exactly(local, ended)


async def test_every_checkpoint_lies_between_two_iterations(local: LocalTinker) -> None:
    kept = CheckpointPolicy(save_every=1, keep_last=9, save_at_start=False)
    ended = await run(checkpoints=kept)
    run_id = ended.segments[-1].run_id
    found = await listed(local, run_id)
    said = {name: int(each["tinker_recovery.step"]) for name, each in found.items()}
    assert sorted(said.values()) == [*range(1, STEPS + 1)]
    for name, step in said.items():
        path = f"tinker://{run_id}/weights/{name}"
        assert await steps_in(local, path) == step * UPDATES


async def test_a_deep_pipeline_counts_iterations(local: LocalTinker) -> None:
    async def body(attempt: Attempt) -> None:
        pending: list[Any] = []
        for number in range(attempt.start_step * UPDATES, STEPS * UPDATES):
            pending.append(attempt.client.forward_backward(batch(number), "cross_entropy"))
            pending.append(attempt.client.optim_step(ADAM))
        for each in pending:
            await each

    local.inject(FaultRule("poison", 9, "forward_backward"))
    async with Supervisor(quick(checkpoints=SAVES)) as supervisor:
        await supervisor.run(body, **START)
    await ended_exactly(local, supervisor.runs[0])
    assert supervisor.runs[0].attempts[1].start_step == 3


async def test_a_save_of_the_users_own_inside_an_iteration_is_never_recovered_from(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    async def before(attempt: Attempt, step: int, update: int) -> None:
        if attempt.number == 1 and (step, update) in {(4, 0), (4, 1)}:
            name = f"mine-{step}-{update}"
            await attempt.client.save_state(name, user_metadata={"note": "kept"})

    local.inject(FaultRule("poison", 10, "optim_step"))
    ended = await run(before)
    assert [each.start_step for each in ended.attempts] == [0, 4]
    found = await listed(local, ended.segments[0].run_id)
    assert found["mine-4-0"]["tinker_recovery.step"] == "4"
    assert found["mine-4-1"] == {"note": "kept"}
    assert len([each for each in caplog.messages if "inside an iteration" in each]) == 1
    await ended_exactly(local, ended)


async def test_a_loop_that_ends_inside_an_iteration_is_warned_and_its_last_updates_not_saved(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=4)
        await one_update(attempt, 8)

    async with Supervisor(quick(checkpoints=SAVES)) as supervisor:
        await supervisor.run(body, **START)
    ended = supervisor.runs[0]
    (said,) = [each for each in caplog.messages if "inside an iteration" in each]
    assert "after 1 of 2 optimizer steps" in said
    assert "step 4" in said
    found = await listed(local, ended.segments[0].run_id)
    assert {each["tinker_recovery.step"] for each in found.values()} == {"3"}


async def test_an_idle_loop_inside_an_iteration_is_not_saved(local: LocalTinker) -> None:
    async def before(attempt: Attempt, step: int, update: int) -> None:
        if (step, update) == (3, 1):
            await attempt.client.drain()
            await anyio.sleep(1.5)
            assert len(await listed(local, run_id_of(attempt))) == 1

    await ended_exactly(local, await run(before))


async def test_an_iteration_is_skipped_as_one(local: LocalTinker) -> None:
    skipped: list[int] = []

    async def body(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if attempt.skip(step):
                skipped.append(step)
                continue
            for update in range(UPDATES):
                await one_update(attempt, step * UPDATES + update)

    local.inject(FaultRule("poison", 9, "optim_step", times=2))
    async with Supervisor(quick(checkpoints=SAVES, on_repeated_fault="skip_step")) as supervisor:
        await supervisor.run(body, **START)
    ended = supervisor.runs[0]
    assert skipped == [4]
    assert ended.step == STEPS
    assert local.run_state(ended.segments[-1].run_id).steps == (STEPS - 1) * UPDATES


async def test_inside_an_iteration_nothing_is_skipped(local: LocalTinker) -> None:
    del local

    async def before(attempt: Attempt, step: int, update: int) -> None:
        if (step, update) == (2, 1):
            with pytest.raises(UsageError, match="after 1 of 2 optimizer steps of step 2"):
                attempt.client.skip_step()

    await run(before)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("twice", [False, True])
async def test_one_pass_an_update_is_no_drift(
    caplog: pytest.LogCaptureFixture, *, twice: bool
) -> None:
    async def before(attempt: Attempt, step: int, update: int) -> None:
        if twice:
            await attempt.client.forward_backward(batch(step + update), "cross_entropy")

    with caplog.at_level(logging.WARNING):
        await run(before)
    said = [each for each in caplog.messages if "start_step counts" in each]
    assert len(said) == (1 if twice else 0)
    assert all("2 forward_backward calls for one optim_step" in each for each in said)


async def test_what_is_recalled_belongs_to_an_update_and_is_given_back_by_it(
    local: LocalTinker,
) -> None:
    made: list[tuple[int, int, int]] = []
    got: list[tuple[int, int, Any]] = []

    async def before(attempt: Attempt, step: int, update: int) -> None:
        def make() -> list[int]:
            made.append((attempt.number, step, update))
            return [attempt.number, step, update]

        got.append((step, update, await attempt.recall("rollouts", make)))

    local.inject(FaultRule("poison", 9, "optim_step"))
    ended = await run(before)
    await ended_exactly(local, ended)
    assert all([*each[2]][1:] == [each[0], each[1]] for each in got)
    assert [each[1:] for each in made if each[0] == 1] == [
        (step, update) for step in range(5) for update in range(UPDATES)
    ]
    # Of what was made in the iteration of the fault, behind its first update, nothing is certain.
    assert [each[1:] for each in made if each[0] == 2] == [(4, 1), (5, 0), (5, 1)]


@pytest.mark.parametrize("at", [(4, 0), (4, 1)])
async def test_a_process_that_dies_in_an_iteration_continues_at_its_beginning(
    local: LocalTinker, at: tuple[int, int]
) -> None:
    async def dies(attempt: Attempt, step: int, update: int) -> None:
        if (step, update) == at:
            await attempt.client.drain()
            raise Killed

    with pytest.raises(Killed):
        await run(dies, name="rl")
    ended = await run(name="rl")
    assert [each.start_step for each in ended.attempts] == [3]
    await ended_exactly(local, ended)


async def test_a_restart_with_another_number_of_updates_is_refused(local: LocalTinker) -> None:
    del local

    async def dies(attempt: Attempt, step: int, update: int) -> None:
        del attempt, update
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        await run(dies, name="rl")
    for given, said in ((3, "updates_per_step=3"), (1, "updates_per_step=1")):
        other = START | {"updates_per_step": given, "name": "rl"}
        with pytest.raises(UsageError, match=f"{said} .* updates_per_step=2"):
            async with Supervisor(quick(checkpoints=SAVES)) as supervisor:
                await supervisor.run(train, **other)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("given", [0, -1, 1.5, True, "2"])
async def test_only_a_whole_number_of_updates_is_allowed(given: Any) -> None:
    with pytest.raises(UsageError, match=r"updates_per_step=.* is not allowed: an int, 1 or more"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(train, **(START | {"updates_per_step": given}))


async def test_a_sampler_made_inside_an_iteration_is_not_taken_for_one_of_its_beginning(
    local: LocalTinker,
) -> None:
    del local
    made: list[Any] = []

    async def before(attempt: Attempt, step: int, update: int) -> None:
        if (step, update) == (2, 0):
            made.append(await attempt.client.save_weights_and_get_sampling_client())
        if (step, update) == (2, 1):
            with pytest.raises(UsageError, match="ask before the next optim_step"):
                await attempt.once("reference", lambda: made[0])

    await run(before)


@pytest_asyncio.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[LocalTinker]:
    """One that comes back at its last checkpoint, and calls nothing corrupted."""
    async with LocalTinker(tmp_path / "service", restart="rollback") as server:
        yield server


@pytest.mark.parametrize("at", [(3, 0), (3, 1), (4, 0), (4, 1), (5, 1)])
async def test_a_service_that_loses_weights_inside_an_iteration_costs_no_bit(
    local: LocalTinker, forgetful: LocalTinker, at: tuple[int, int]
) -> None:
    """While nothing is under way; at (3, 1) what it loses is a single update."""

    async def before(attempt: Attempt, step: int, update: int) -> None:
        if attempt.number == 1 and (step, update) == at:
            await attempt.client.drain()
            forgetful.crash(0.3)
            await anyio.sleep(1.0)

    given = quick(checkpoints=SAVES, canary="auto")
    async with Supervisor(given, service=forgetful.service) as supervisor:
        await supervisor.run(functools.partial(train, before=before), **START)
    (ended,) = supervisor.runs
    kinds = [each.fault.kind for each in ended.recoveries]
    assert kinds == ([] if at == (3, 0) else [Kind.ROLLED_BACK]), "at (3, 0) nothing was lost"
    expected = await undisturbed_state(local, steps=STEPS * UPDATES)
    assert forgetful.run_state(ended.segments[-1].run_id) == expected


@pytest.mark.parametrize("save", [False, True])
async def test_an_outage_inside_an_iteration_that_costs_nothing_raises_no_alarm(
    local: LocalTinker, *, save: bool
) -> None:
    async def before(attempt: Attempt, step: int, update: int) -> None:
        if (step, update) in {(3, 1), (4, 1)}:
            if save:
                await attempt.client.save_state(f"mine-{step}")
            await attempt.client.drain()
            local.begin_outage(status=503)
            await anyio.sleep(0.5)
            local.end_outage()
            await anyio.sleep(0.3)

    ended = await run(before, canary="auto", poll_interval_s=0.1)
    assert ended.recoveries == []
    await ended_exactly(local, ended)
