"""Checkpoints saved after a fault began are not what their step number says, and are not used."""

from __future__ import annotations

import asyncio
import functools

import anyio
import pytest
from inspection import rejected
from loops import ADAM, MODEL, SEED, batch, loop, policy, quick, train, undisturbed_state, until
from tinker import ServiceClient

from tinker_recovery import Attempt, CheckpointPolicy, Run, Supervisor
from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.clock import Clock
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("action", ["fail", "gone"])
@pytest.mark.parametrize("request_kind", ["forward_backward", "optim_step"])
async def test_a_save_queued_behind_a_request_that_failed_alone_is_never_gone_back_to(
    local: LocalTinker, depth: int, action: str, request_kind: str
) -> None:
    """Only this request fails; the optimizer step behind it and the save at 5 are executed."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule(action, 4, request_kind))  # type: ignore[arg-type]  # pytest's parameters
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS, depth=depth),
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    (run,) = supervisor.runs
    assert local.run_state(run.segments[-1].run_id) == expected
    if (action, request_kind) == ("fail", "forward_backward"):
        assert [attempt.start_step for attempt in run.attempts] == [0, 0]


async def test_a_run_that_starts_over_on_other_weights_than_it_began_with_tries_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=5), base_model=MODEL, rank=8, seed=SEED)
    (stored,) = local.checkpoints(supervisor.runs[0].segments[0].run_id)
    made: list[int] = []

    def start(service: ServiceClient) -> object:
        made.append(len(made))
        if len(made) == 2:
            return service.create_training_client_from_state(stored.path)
        return service.create_lora_training_client(MODEL, rank=8, seed=SEED)

    local.poison(at_step=3)
    looked_at = quick(canary=tuple(batch(3)))
    told: list[str] = []
    async with Supervisor(
        looked_at, on_event=lambda event: told.append(event.message)
    ) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), start=start)
    (run,) = supervisor.runs
    assert len(made) == 3
    assert any("not the ones it began with" in message for message in told)
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_canary_whose_answer_was_not_a_number_speaks_against_nothing(
    local: LocalTinker,
) -> None:
    """The very first answer; what the run begins with would never again be recognized."""
    expected = await undisturbed_state(local, steps=STEPS)
    # As often as the canary is asked on what the run begins with, and the first step's own.
    local.inject(FaultRule("nan_loss", 0, times=ASKED + 1))
    looked_at = quick(canary=tuple(batch(3)), guard_loss=True)
    async with Supervisor(looked_at) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert len(run.recoveries) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def _struck_by_nan(local: LocalTinker, *, at_step: int, times: int) -> Run:
    """A run whose own loss is NaN at a step, and the canary's on what is restored after that."""

    async def striking(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if attempt.number == 1 and step == at_step:
                local.inject(FaultRule("nan_loss", times=times, sticky=True))
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward

    looked_at = quick(canary=tuple(batch(3)), guard_loss=True)
    async with Supervisor(looked_at) as supervisor:
        await supervisor.run(striking, base_model=MODEL, rank=8, seed=SEED)
    assert len([fault for fault in local.fired if fault.rule.action == "nan_loss"]) == times
    (run,) = supervisor.runs
    return run


async def test_a_canary_that_answers_with_no_number_once_condemns_no_checkpoint(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    run = await _struck_by_nan(local, at_step=7, times=2)
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert not rejected(run)
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_canary_that_never_answers_with_a_number_has_the_next_older_one_used(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    # The loop's own, and all that the canary answers on two clients in a row.
    run = await _struck_by_nan(local, at_step=11, times=1 + 2 * ASKED)
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    (bad,) = rejected(run)
    assert "/step-00000010-" in bad
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("heard_first", ["call", "poll"])
async def test_one_fault_has_one_way_back_whether_a_call_or_a_poll_is_heard_first(
    local: LocalTinker, heard_first: str
) -> None:
    """No poll since the start has called the run sound, and the answer that failed is slow."""
    expected = await undisturbed_state(local, steps=STEPS)
    polls, is_poll = anyio.Event(), heard_first == "poll"

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        task = asyncio.current_task()
        if task and "/monitor" in task.get_name():
            await polls.wait()

    async def training(attempt: Attempt) -> None:
        if attempt.number == 1:
            await loop(attempt.client, 0, 8, 0)
            await attempt.client.drain()
            local.poison(at_step=8)
            answers = FaultRule("slow", 8, "retrieve_future", polled="forward_backward")
            local.inject(answers)
            forward = attempt.client.forward_backward(batch(8), "cross_entropy")
            await until(lambda: any(each.rule.action == "poison" for each in local.fired))
            if is_poll:
                polls.set()
            await forward
        await train(attempt, steps=STEPS)

    given = quick(checkpoints=CheckpointPolicy(save_every=4), poll_interval_s=0.01)
    async with Supervisor(given, clock=Clock(sleep=sleep)) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 8]
    assert local.run_state(run.segments[-1].run_id) == expected
