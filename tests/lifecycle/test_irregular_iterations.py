"""``attempt.iteration()``: iterations of as many optimizer steps as they happen to have."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from loops import ADAM, MODEL, SEED, batch, quick, undisturbed_state
from sweeps import pairs

from tinker_recovery import Attempt, CheckpointPolicy, Run, StaleAttempt, Supervisor, UsageError
from tinker_recovery.testing import FaultRule, LocalTinker

UPDATES = [2, 1, 0, 3, 2, 1, 3]
"""Optimizer steps of each iteration."""
FIRST = [sum(UPDATES[:step]) for step in range(len(UPDATES) + 1)]
"""Optimizer steps before each iteration."""
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
SAVES = CheckpointPolicy(save_every=2, save_at_start=False, keep_last=9)


async def one_update(attempt: Attempt, number: int) -> None:
    forward = attempt.client.forward_backward(batch(number), "cross_entropy")
    ended = attempt.client.optim_step(ADAM)
    await forward
    await ended


async def train(attempt: Attempt) -> None:
    for step in range(attempt.start_step, len(UPDATES)):
        async with attempt.iteration():
            for number in range(FIRST[step], FIRST[step + 1]):
                await one_update(attempt, number)
        assert attempt.client.step == step + 1


async def run(body: Any = train, **changes: Any) -> Run:
    async with Supervisor(quick(checkpoints=SAVES, **changes)) as supervisor:
        await supervisor.run(body, **START)
    return supervisor.runs[0]


@pytest.mark.parametrize(
    ("at", "operation"), pairs(range(FIRST[-1]), ["forward_backward", "optim_step"], 8)
)
async def test_a_fault_at_any_update_goes_back_to_the_beginning_of_an_iteration(
    local: LocalTinker, at: int, operation: Any
) -> None:
    local.inject(FaultRule("poison", at, operation))
    ended = await run()
    assert local.run_state(ended.segments[-1].run_id) == await undisturbed_state(
        local, steps=FIRST[-1]
    )
    assert ended.step == len(UPDATES)
    begun = ended.attempts[-1].start_step
    assert begun % 2 == 0, "the schedule counts iterations"
    assert FIRST[begun] <= at


async def test_a_loop_that_blocks_has_the_same_block(local: LocalTinker) -> None:
    def body(attempt: Attempt) -> None:
        for step in range(attempt.start_step, len(UPDATES)):
            with attempt.iteration():
                for number in range(FIRST[step], FIRST[step + 1]):
                    attempt.client.forward_backward(batch(number), "cross_entropy").result()
                    attempt.client.optim_step(ADAM).result()

    local.inject(FaultRule("poison", 8, "optim_step"))
    ended = await run(body)
    assert local.run_state(ended.segments[-1].run_id) == await undisturbed_state(
        local, steps=FIRST[-1]
    )


async def test_the_block_decides_where_updates_per_step_says_another_number(
    local: LocalTinker,
) -> None:
    async with Supervisor(quick(checkpoints=SAVES)) as supervisor:
        await supervisor.run(train, **START, updates_per_step=2)
    assert supervisor.runs[0].step == len(UPDATES)
    assert local.runs()


@pytest.mark.usefixtures("local")
async def test_an_exception_before_the_first_update_leaves_the_step_to_be_done() -> None:
    async def body(attempt: Attempt) -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with attempt.iteration():
                raise ZeroDivisionError
        assert attempt.client.step == 0
        async with attempt.iteration():
            await one_update(attempt, 0)
        assert attempt.client.step == 1

    assert (await run(body)).step == 1


@pytest.mark.usefixtures("local")
async def test_a_loop_that_goes_on_behind_half_an_iteration_is_refused() -> None:
    """Whether that step is to count, nothing here can know."""

    async def body(attempt: Attempt) -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with attempt.iteration():
                await one_update(attempt, 0)
                raise ZeroDivisionError
        async with attempt.iteration():
            await one_update(attempt, 1)

    with pytest.raises(UsageError, match=r"after 1 optimizer steps of step 0.*done again"):
        await run(body)


@pytest.mark.usefixtures("local")
async def test_a_block_inside_another_is_refused() -> None:
    async def body(attempt: Attempt) -> None:
        async with attempt.iteration(), attempt.iteration():
            pass

    with pytest.raises(UsageError, match="that one is not over"):
        await run(body)


async def test_the_block_of_an_attempt_that_is_over_is_stale(local: LocalTinker) -> None:
    stale: list[Attempt] = []

    async def body(attempt: Attempt) -> None:
        for old in stale:
            with pytest.raises(StaleAttempt):
                async with old.iteration():
                    pass
        stale.append(attempt)
        await train(attempt)

    local.inject(FaultRule("poison", 8, "optim_step"))
    await run(body)
    assert len(stale) == 2
