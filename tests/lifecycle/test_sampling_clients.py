"""Every way in which the SDK offers a sampling client works in a supervised loop."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import pytest
import tinker
from loops import MODEL, SEED, loop, policy, train
from tinker import types

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])
PARAMS = types.SamplingParams(max_tokens=8, seed=5, stop=[])
STEPS = 4

Way = Callable[[Any], Awaitable[types.SampleResponse]]


async def _path(client: Any) -> str:
    return str((await client.save_weights_for_sampler("four")).path)


async def awaited(client: Any) -> types.SampleResponse:
    sampler = await client.save_weights_and_get_sampling_client()
    return await sampler.sample(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def by_result(client: Any) -> types.SampleResponse:
    future = client.save_weights_and_get_sampling_client()
    sampler = await anyio.to_thread.run_sync(future.result)
    return await sampler.sample(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def the_future_as_client(client: Any) -> types.SampleResponse:
    sampler = client.save_weights_and_get_sampling_client()
    return await sampler.sample_async(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def deprecated_async(client: Any) -> types.SampleResponse:
    sampler = await client.save_weights_and_get_sampling_client_async()
    return await sampler.sample(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def of_a_path(client: Any) -> types.SampleResponse:
    sampler = await client.create_sampling_client(await _path(client))
    return await sampler.sample(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def of_a_path_the_future_as_client(client: Any) -> types.SampleResponse:
    sampler = client.create_sampling_client(await _path(client))
    return await sampler.sample_async(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def of_a_path_deprecated_async(client: Any) -> types.SampleResponse:
    sampler = await client.create_sampling_client_async(await _path(client))
    return await sampler.sample(PROMPT, 1, PARAMS)  # type: ignore[no-any-return]  # the SDK's


async def of_another_service_client(client: Any) -> types.SampleResponse:
    service = tinker.ServiceClient()
    sampler = await service.create_sampling_client(model_path=await _path(client))
    found: types.SampleResponse = await sampler.sample(PROMPT, 1, PARAMS)
    await service.close("success")
    return found


WAYS: list[Way] = [
    awaited,
    by_result,
    the_future_as_client,
    deprecated_async,
    of_a_path,
    of_a_path_the_future_as_client,
    of_a_path_deprecated_async,
    of_another_service_client,
]


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_supervised_loop_samples_by_it_as_a_bare_one_does(
    way: Way,
) -> None:
    tokens: list[list[int]] = []

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS)
        with warnings.catch_warnings():
            # What is deprecated by the SDK works for its users all the same.
            warnings.simplefilter("ignore", FutureWarning)
            sampled = await way(attempt.client)
            tokens.append(sampled.sequences[0].tokens)
            bare = await awaited(attempt.client.training)
            tokens.append(bare.sequences[0].tokens)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) == PARAMS.max_tokens
    assert supervisor.runs[0].recoveries == []


async def test_a_loop_that_samples_between_its_steps_is_recovered_to_the_same_samples(
    local: LocalTinker,
) -> None:
    """With seeded sampling, what is replayed is drawn from the same weights, and is the same."""

    async def sampled(*, poisoned: bool) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        if poisoned:
            local.inject(FaultRule("poison", 7, "optim_step"))

        async def body(attempt: Attempt) -> None:
            for step in range(attempt.start_step, 10):
                sampler = await attempt.client.save_weights_and_get_sampling_client()
                reply = await sampler.sample(PROMPT, 1, PARAMS)
                found[step] = reply.sequences[0].tokens
                await loop(attempt.client, step, step + 1, 0)

        async with Supervisor(policy()) as supervisor:
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
        assert len(supervisor.runs[0].recoveries) == poisoned
        return found

    assert await sampled(poisoned=True) == await sampled(poisoned=False)
