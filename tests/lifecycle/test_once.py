"""What belongs to the run and not to an attempt is made once, over attempts and processes."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import tinker
from loops import MODEL, SEED, loop, policy, quick
from named_runs import NAMED, Died
from tinker import types

from tinker_recovery import Attempt, Supervisor, UsageError
from tinker_recovery.journal import STATE_FOLDER, StateFolder
from tinker_recovery.testing import FaultRule, LocalTinker

PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])
STEPS = 12


async def logprobs(sampler: Any) -> list[float | None]:
    found: list[float | None] = await sampler.compute_logprobs(PROMPT)
    return found


async def dpo(
    attempt: Attempt, seen: list[list[float | None]], *, dies_at: int | None = None
) -> None:
    """A loop whose reference is made inside it, as the cookbook's is."""
    make = attempt.client.save_weights_and_get_sampling_client
    reference = await attempt.once("reference", make)
    for step in range(attempt.start_step, STEPS):
        if step == dies_at:
            raise Died
        seen.append(await logprobs(reference))
        await loop(attempt.client, step, step + 1, 0)


async def test_a_reference_made_inside_the_loop_stays_what_it_was_after_a_recovery(
    local: LocalTinker,
) -> None:
    """Made anew in the second attempt, it would be of the trained weights, in silence."""
    seen: list[list[float | None]] = []
    local.inject(FaultRule("poison", 8, "optim_step"))
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(
            lambda attempt: dpo(attempt, seen), base_model=MODEL, rank=8, seed=SEED
        )
    assert len(supervisor.runs[0].recoveries) == 1
    assert len(seen) > STEPS
    assert all(each == seen[0] for each in seen)


@pytest.mark.parametrize("journal", ["kept", "lost"])
async def test_another_process_has_the_same_reference(
    local: LocalTinker, journal: str, tmp_path: Path
) -> None:
    """From the journal or, where that is gone, from the service."""
    seen: list[list[float | None]] = []

    async def process(kept: StateFolder | Path, dies_at: int | None) -> None:
        async with Supervisor(policy(), journal=kept) as supervisor:
            await supervisor.run(lambda attempt: dpo(attempt, seen, dies_at=dies_at), **NAMED)

    with pytest.raises(Died):
        await process(STATE_FOLDER, 7)
    await process(STATE_FOLDER if journal == "kept" else tmp_path / "other.db", None)
    assert len(seen) == 14
    assert all(each == seen[0] for each in seen)
    del local


async def test_a_value_drawn_once_is_the_same_in_every_attempt_and_process(
    local: LocalTinker,
) -> None:
    drawn: list[Any] = []

    async def body(attempt: Attempt) -> None:
        drawn.append(await attempt.once("order", lambda: [random.random() for _ in range(3)]))
        drawn.append(await attempt.once("order", lambda: "again"))
        if attempt.number == 1:
            await loop(attempt.client, 0, 7, 0)
            local.inject(FaultRule("poison", request="optim_step"))
        await loop(attempt.client, attempt.client.step, attempt.client.step + 2, 0)
        if len(drawn) < 6:
            raise Died

    for ends in (True, False):
        with pytest.raises(Died) if ends else anyio.CancelScope():
            async with Supervisor(quick()) as supervisor:
                await supervisor.run(body, **NAMED)
    assert len(drawn) == 6
    assert all(each == drawn[0] for each in drawn)


async def test_tasks_that_ask_at_once_share_one_call(local: LocalTinker) -> None:
    calls: list[int] = []
    got: list[Any] = []

    async def make() -> int:
        calls.append(1)
        await anyio.sleep(0.01)
        return len(calls)

    async def body(attempt: Attempt) -> None:
        async def ask() -> None:
            got.append(await attempt.once("n", make))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert got == [1] * 5
    del local


async def test_what_fails_is_not_kept(local: LocalTinker) -> None:
    def fails() -> int:
        raise Died

    async def body(attempt: Attempt) -> None:
        with pytest.raises(Died):
            await attempt.once("n", fails)
        assert await attempt.once("n", lambda: 3) == 3

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    del local


async def test_a_reference_of_trained_weights_is_refused_where_the_first_is_lost(
    local: LocalTinker, tmp_path: Path
) -> None:
    """An earlier attempt must have made it, and making it again would give other weights."""

    async def first(attempt: Attempt) -> None:
        await loop(attempt.client, 0, 7, 0)
        raise Died

    with pytest.raises(Died):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(first, **NAMED)
    with pytest.raises(UsageError, match=r"once\('reference'\) would be made of the weights"):
        async with Supervisor(policy(), journal=tmp_path / "other.db") as supervisor:
            await supervisor.run(lambda attempt: dpo(attempt, []), **NAMED)
    del local


def _key(attempt: Attempt) -> Any:
    return attempt.once("", lambda: 1)


def _not_json(attempt: Attempt) -> Any:
    return attempt.once("set", lambda: {"a": {1, 2}})


async def _older(attempt: Attempt) -> Any:
    sampler = await attempt.client.save_weights_and_get_sampling_client()
    await loop(attempt.client, 0, 1, 0)
    return await attempt.once("reference", lambda: sampler)


async def _plain(attempt: Attempt) -> Any:
    make = attempt.client.training.save_weights_and_get_sampling_client
    return await attempt.once("reference", make)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (_key, r"once\(key=''\)"),
        (_not_json, r"once\('set'\) keeps\['a'\]"),
        (_older, "of step 0, and the training is at step 1"),
        (_plain, "did not make"),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    local: LocalTinker, ask: Callable[[Attempt], Any], says: str
) -> None:
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                with pytest.raises(UsageError, match=says):
                    await ask(attempt)
    del local


async def test_a_base_model_is_sampled_from_in_every_attempt(local: LocalTinker) -> None:
    seen: list[list[float | None]] = []

    async def body(attempt: Attempt) -> None:
        make = attempt.service.create_sampling_client
        base: tinker.SamplingClient = await attempt.once("base", lambda: make(base_model=MODEL))
        seen.append(await logprobs(base))
        if attempt.number == 1:
            await loop(attempt.client, 0, 7, 0)
            local.inject(FaultRule("poison", request="optim_step"))
        await loop(attempt.client, attempt.client.step, STEPS, 0)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len(seen) == 2
    assert seen[0] == seen[1]
