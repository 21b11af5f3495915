"""Every way a run can start, and how it comes back from each."""

from __future__ import annotations

import functools
from typing import Any

import anyio.to_thread
import pytest
import tinker
from loops import MODEL, SEED, policy, train, undisturbed_state

from tinker_recovery import (
    NoUsableCheckpoint,
    RunFinished,
    Supervisor,
    UsageError,
    recover_from_checkpoint,
)
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14


async def _saved_at(local: LocalTinker, step: int) -> str:
    """A checkpoint of a supervised run at this step, a multiple of five."""
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=step), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    (saved,) = await _listed(local, run.segments[-1].run_id, step)
    return saved


async def _listed(local: LocalTinker, run_id: str, step: int) -> list[str]:
    reply = await tinker.RestClient(
        base_url=local.base_url, api_key=local.api_key
    ).list_checkpoints(run_id)
    return [one.tinker_path for one in reply.checkpoints if f"step-{step:08d}-" in one.tinker_path]


async def _client(service: tinker.ServiceClient) -> tinker.TrainingClient:
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=SEED)
    )
    client: tinker.TrainingClient = await pending
    return client


async def test_a_run_started_from_a_checkpoint_begins_at_the_step_inside_it(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    path = await _saved_at(local, 10)
    local.poison(at_step=12)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), from_checkpoint=path)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [10, 10]
    assert run.recoveries[0].checkpoint is not None
    assert run.recoveries[0].checkpoint.path == path
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_checkpoint_of_someone_elses_needs_its_step_to_be_given(
    local: LocalTinker,
) -> None:
    service = tinker.ServiceClient()
    client = await _client(service)
    path = (await client.save_state("theirs")).path
    await service.close("success")
    with pytest.raises(NoUsableCheckpoint, match="does not say how many optimizer steps"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=3), from_checkpoint=path)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=3), from_checkpoint=path, start_step=0)
    assert local.run_state(supervisor.runs[0].segments[0].run_id).steps == 3


async def test_an_adopted_client_is_saved_at_once_because_it_cannot_be_made_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    service = tinker.ServiceClient()
    client = await _client(service)
    local.poison(at_step=2)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), adopt=client, adopt_service=service
        )
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 0]
    assert local.run_state(run.segments[-1].run_id) == expected
    assert sorted(set(local.sessions().values())) == ["errored", "success"]


async def test_an_adopted_client_without_its_service_stays_the_users_to_close(
    local: LocalTinker,
) -> None:
    service = tinker.ServiceClient()
    client = await _client(service)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=3), adopt=client)
    assert list(local.sessions().values()) == ["active"]
    await service.close("success")


async def test_runs_are_equal_to_themselves_alone_and_can_be_kept_in_a_set(
    local: LocalTinker,
) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        for _ in range(2):
            await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
        one, other = supervisor.runs
        assert one == supervisor.runs[0]
        assert one != other
        assert one != one.name
        assert {one, other, *supervisor.runs} == {one, other}


async def test_a_run_can_start_by_any_callable_sync_or_async(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)

    def sync(service: tinker.ServiceClient) -> Any:
        return service.create_lora_training_client(MODEL, rank=8, seed=SEED)

    async def in_async(service: tinker.ServiceClient) -> tinker.TrainingClient:
        return await _client(service)

    for start in (sync, in_async):
        local.poison(at_step=3)
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), start=start)
        (run,) = supervisor.runs
        assert [attempt.start_step for attempt in run.attempts] == [0, 0]
        assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_callable_that_returns_something_else_is_told_what_it_should_return(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    with pytest.raises(UsageError, match=r"start= returned str.*tinker\.TrainingClient"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=1), start=lambda _: "client")


async def test_a_backend_that_fails_while_the_run_is_created_is_recovered_from(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", request="create_model"))
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=3), base_model=MODEL)
    (run,) = supervisor.runs
    assert [recovery.fault.detected_by for recovery in run.recoveries] == ["start"]


async def test_a_creation_refused_for_the_users_own_mistake_passes_through(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", request="create_model", category="user", message="no model"))
    with pytest.raises(tinker.RequestFailedError, match="no model"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(functools.partial(train, steps=3), base_model=MODEL)


async def test_every_recovery_goes_back_to_a_given_path_if_the_policy_names_one(
    local: LocalTinker,
) -> None:
    path = await _saved_at(local, 5)
    local.poison(at_step=13)
    async with Supervisor(policy(checkpoint_strategy=path)) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), from_checkpoint=path)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [5, 5]


async def test_a_path_in_the_policy_that_does_not_exist_is_refused_before_training(
    local: LocalTinker,
) -> None:
    with pytest.raises(NoUsableCheckpoint, match="tinker://nobody/weights/x is not listed"):
        async with Supervisor(
            policy(checkpoint_strategy="tinker://nobody/weights/x")
        ) as supervisor:
            await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
    assert local.runs() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one way, and none was given"),
        ({"base_model": "m", "start": print}, "base_model and start were given"),
        ({"base_model": "m", "lr": 3}, "unknown argument 'lr'"),
        ({"from_checkpoint": "tinker://r/weights/c", "rank": 8}, "rank=8 does not go with"),
        ({"from_checkpoint": "r/weights/c"}, "tinker://RUN/weights/NAME"),
        ({"base_model": "m", "start_step": -1}, "start_step=-1 is not allowed"),
        ({"base_model": "m", "name": " "}, "name=' ' is not allowed"),
        ({"adopt": "client"}, "adopt='client' is not allowed"),
        ({"start": 3}, "start=3 is not allowed"),
        ({"base_model": "m", "adopt_service": None}, "adopt_service=None does not go with"),
    ],
)
async def test_a_bad_start_is_refused_at_once_and_says_what_is_allowed(
    local: LocalTinker, given: dict[str, Any], said: str
) -> None:
    async with Supervisor(policy()) as supervisor:
        with pytest.raises(UsageError, match=said):
            supervisor.attempts(**given)
    assert local.runs() == []


async def test_two_runs_of_one_name_are_refused_while_the_first_is_under_way(
    local: LocalTinker,  # noqa: ARG001 - its environment
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, name="one"):
            async with attempt:
                with pytest.raises(UsageError, match="name='one'"):
                    supervisor.attempts(base_model=MODEL, name="one")
        with pytest.raises(RunFinished, match="'one' has come to its end before"):
            await supervisor.run(functools.partial(train, steps=1), base_model=MODEL, name="one")


async def test_two_runs_at_once_recover_each_by_itself(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=7)
    local.poison(at_step=12)
    async with Supervisor(policy()) as supervisor, anyio.create_task_group() as group:
        for name in ("left", "right"):
            group.start_soon(
                functools.partial(
                    supervisor.run,
                    functools.partial(train, steps=STEPS),
                    base_model=MODEL,
                    rank=8,
                    seed=SEED,
                    name=name,
                )
            )
    for run in supervisor.runs:
        assert local.run_state(run.segments[-1].run_id) == expected
    assert sum(len(run.recoveries) for run in supervisor.runs) == 2


async def test_by_hand_a_checkpoint_becomes_a_client_that_says_where_it_stands(
    local: LocalTinker,
) -> None:
    path = await _saved_at(local, 5)
    recovered = await recover_from_checkpoint(path)
    assert recovered.step == 5
    assert local.run_state(recovered.run_id).steps == 5
    await recovered.aclose()
    weights_only = await recover_from_checkpoint(path, restore_optimizer=False)
    with_optimizer, without = (local.run_state(one.run_id) for one in (recovered, weights_only))
    assert with_optimizer.weights_digest == without.weights_digest
    assert with_optimizer.optimizer_digest != without.optimizer_digest
    await weights_only.aclose()


async def test_entering_a_supervisor_twice_is_refused(local: LocalTinker) -> None:  # noqa: ARG001 - its environment
    supervisor = Supervisor(policy())
    with pytest.raises(UsageError, match="enter the Supervisor first"):
        await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
    async with supervisor:
        with pytest.raises(BaseException, match="already"):
            await supervisor.__aenter__()
