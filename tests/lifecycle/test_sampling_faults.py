"""A sample that fails or never comes is asked for again, and only then costs the loop a rewind."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import pickle
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from loops import MODEL, SEED, batch, loop, policy, quick, train, undisturbed_state
from tinker import types

from tinker_recovery import (
    Attempt,
    RecoveryEvent,
    StaleAttempt,
    SupervisedClient,
    Supervisor,
    UsageError,
)
from tinker_recovery.faults import Kind
from tinker_recovery.service.sampler import SupervisedSampler, SupervisedSamplerFuture
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])
PARAMS = types.SamplingParams(max_tokens=8, seed=5, stop=[])
STEPS = 12
SILENT: dict[str, Any] = {"stall_after_s": 1.2, "poll_interval_s": 0.05}

Samples = dict[int, list[int]]


async def rollouts(
    attempt: Attempt, found: Samples, *, before: Callable[[int], Any] | None = None
) -> None:
    """A loop that samples from its newest weights before each step."""
    for step in range(attempt.start_step, STEPS):
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        if before is not None:
            before(step)
        reply = await sampler.sample(PROMPT, 1, PARAMS)
        found[step] = reply.sequences[0].tokens
        await loop(attempt.client, step, step + 1, 0)


async def _ends_as_if_nothing_had_happened(
    local: LocalTinker, *rules: FaultRule, at: int = 7, **changes: Any
) -> tuple[Supervisor, list[RecoveryEvent]]:
    """Train with these faults, injected before the sample of a step, and without; compare."""
    events: list[RecoveryEvent] = []
    found: dict[bool, Samples] = {}
    weights = {}
    for disturbed in (False, True):
        samples: Samples = found.setdefault(disturbed, {})
        left = list(rules) if disturbed else []

        def before(step: int, left: list[FaultRule] = left) -> None:
            if step == at and left:
                local.inject(left.pop(0))

        async def body(attempt: Attempt, samples: Samples = samples, before: Any = before) -> None:
            await rollouts(attempt, samples, before=before)

        supervisor = Supervisor(quick(**changes), on_event=events.append)
        async with supervisor:
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
        weights[disturbed] = local.run_state(supervisor.runs[0].segments[-1].run_id)
    assert found[True] == found[False]
    assert weights[True] == weights[False]
    return supervisor, events


async def test_a_failed_sample_is_asked_for_again_at_a_fresh_sampler(local: LocalTinker) -> None:
    supervisor, events = await _ends_as_if_nothing_had_happened(
        local, FaultRule("fail", request="asample")
    )
    assert supervisor.runs[0].recoveries == []
    assert [event.name for event in events].count(names.EVENT_SAMPLER_RENEWED) == 1


async def test_a_sampler_that_is_gone_is_made_again(local: LocalTinker) -> None:
    rule = FaultRule("status", request="asample", status=404)
    supervisor, _ = await _ends_as_if_nothing_had_happened(local, rule)
    assert supervisor.runs[0].recoveries == []


async def test_a_sample_that_never_comes_is_asked_for_again(local: LocalTinker) -> None:
    supervisor, events = await _ends_as_if_nothing_had_happened(
        local, FaultRule("hang", request="asample"), **SILENT
    )
    assert supervisor.runs[0].recoveries == []
    assert [event.name for event in events].count(names.EVENT_SAMPLER_RENEWED) == 1


async def test_a_sample_that_fails_at_the_fresh_sampler_too_costs_a_rewind(
    local: LocalTinker,
) -> None:
    supervisor, _ = await _ends_as_if_nothing_had_happened(
        local, FaultRule("fail", request="asample", times=2)
    )
    (recovery,) = supervisor.runs[0].recoveries
    assert recovery.fault.kind is Kind.SAMPLING_FAILED
    assert recovery.fault.detected_by == "call"


async def test_a_sample_that_never_comes_from_the_fresh_sampler_either_costs_a_rewind(
    local: LocalTinker,
) -> None:
    supervisor, _ = await _ends_as_if_nothing_had_happened(
        local, FaultRule("hang", request="asample", times=2), **SILENT
    )
    (recovery,) = supervisor.runs[0].recoveries
    assert (recovery.fault.kind, recovery.fault.detected_by) == (Kind.SAMPLING_SILENCE, "silence")


PAUSES = {
    "paused": FaultRule("pause", request="asample", for_s=2.5),
    "refused for being too many": FaultRule("status", request="asample", status=429, for_s=2.5),
}


@pytest.mark.parametrize("pause", PAUSES)
async def test_a_sample_that_the_service_has_wait_is_not_silent(
    monkeypatch: pytest.MonkeyPatch, pause: str
) -> None:
    """For as long as it says so, which may be longer than stall_after_s."""
    async with LocalTinker(long_poll_s=0.2) as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        supervisor, events = await _ends_as_if_nothing_had_happened(local, PAUSES[pause], **SILENT)
        assert len(local.fired) > 0
    assert supervisor.runs[0].recoveries == []
    assert names.EVENT_SAMPLER_RENEWED not in [event.name for event in events]


async def test_a_loop_that_catches_a_failed_sample_is_not_rewound(local: LocalTinker) -> None:
    """A bare loop that leaves out what it could not sample ends well, so this one must."""
    caught = []

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        local.inject(FaultRule("fail", request="asample", times=2))
        try:
            await sampler.sample(PROMPT, 1, PARAMS)
        except tinker.RequestFailedError as error:
            caught.append(error)
        await train(attempt, steps=STEPS)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len(caught) == 1
    assert supervisor.runs[0].recoveries == []


async def test_a_sample_refused_for_its_content_reaches_the_loop_at_once(
    local: LocalTinker,
) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        await sampler.sample(types.ModelInput.from_ints([]), 1, PARAMS)

    events: list[RecoveryEvent] = []
    with pytest.raises(tinker.BadRequestError, match="prompt"):
        async with Supervisor(policy(), on_event=events.append) as supervisor:
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert names.EVENT_SAMPLER_RENEWED not in [event.name for event in events]
    del local


async def test_many_samples_that_fail_at_once_share_one_fresh_sampler(local: LocalTinker) -> None:
    events: list[RecoveryEvent] = []
    replies: list[types.SampleResponse] = []

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        local.expire_sampler(local.samplers()[-1])
        asked = [sampler.sample(PROMPT, 1, PARAMS) for _ in range(20)]
        replies.extend([await each for each in asked])

    async with Supervisor(policy(), on_event=events.append) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len({tuple(reply.sequences[0].tokens) for reply in replies}) == 1
    assert [event.name for event in events].count(names.EVENT_SAMPLER_RENEWED) == 1


async def test_no_other_weights_are_sampled_from_when_a_sampler_is_gone(
    local: LocalTinker,
) -> None:
    """Training has gone on, so a fresh sampler would be of other weights: the loop decides."""

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        await loop(attempt.client, 3, 4, 0)
        local.expire_sampler(local.samplers()[-1])
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, PARAMS)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert supervisor.runs[0].recoveries == []


async def test_a_sampler_of_a_checkpoint_is_made_again_however_far_training_is(
    local: LocalTinker,
) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        saved = await attempt.client.save_weights_for_sampler("three")
        for maker in (attempt.client, attempt.service):
            sampler = await maker.create_sampling_client(saved.path)
            before = await sampler.sample(PROMPT, 1, PARAMS)
            await loop(attempt.client, attempt.client.step, attempt.client.step + 3, 0)
            local.expire_sampler(local.samplers()[-1])
            after = await sampler.sample(PROMPT, 1, PARAMS)
            assert after.sequences[0].tokens == before.sequences[0].tokens

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert supervisor.runs[0].recoveries == []


@pytest.mark.parametrize("maker", ["client", "service"])
async def test_a_sampler_of_a_checkpoint_that_was_saved_over_is_not_made_again_of_other_weights(
    local: LocalTinker, maker: str
) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        saved = await attempt.client.save_state("latest", overwrite=True)
        sampler = await getattr(attempt, maker).create_sampling_client(saved.path)
        await loop(attempt.client, 3, 6, 0)
        await attempt.client.save_state("latest", overwrite=True)
        newer = await getattr(attempt, maker).create_sampling_client(saved.path)
        before = await newer.sample(PROMPT, 1, PARAMS)
        for each in local.samplers():
            local.expire_sampler(each)
        with pytest.raises(tinker.NotFoundError):
            await sampler.sample(PROMPT, 1, PARAMS)
        after = await newer.sample(PROMPT, 1, PARAMS)
        assert after.sequences[0].tokens == before.sequences[0].tokens

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert supervisor.runs[0].recoveries == []


async def _base_sampler(attempt: Attempt) -> Any:
    return await attempt.service.create_sampling_client(base_model=MODEL)


async def _own_sampler(attempt: Attempt) -> Any:
    return await attempt.client.save_weights_and_get_sampling_client()


@pytest.mark.parametrize("make", [_base_sampler, _own_sampler])
async def test_a_sampler_of_an_earlier_attempt_says_what_to_write_instead(
    local: LocalTinker, make: Callable[[Attempt], Awaitable[Any]]
) -> None:
    kept: list[tinker.SamplingClient] = []

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        kept.append(await make(attempt))
        if attempt.number == 2:
            await kept[0].sample(PROMPT, 1, PARAMS)
        local.inject(FaultRule("poison", request="optim_step"))
        await train(attempt, steps=STEPS)

    with pytest.raises(StaleAttempt, match=r"attempt\.client\.save_weights_and_get_sampling"):
        async with Supervisor(quick()) as supervisor:
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len(supervisor.runs[0].recoveries) == 1


@pytest.mark.usefixtures("local")
async def test_a_plain_client_of_an_earlier_attempt_burns_no_recoveries(
    local: LocalTinker,
) -> None:
    """Its session was closed by us, so its error says nothing of the attempt of now."""
    kept: list[tinker.SamplingClient] = []

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        kept.append(await attempt.client.training.save_weights_and_get_sampling_client())
        if attempt.number == 2:
            await kept[0].sample(PROMPT, 1, PARAMS)
        local.inject(FaultRule("poison", request="optim_step"))
        await train(attempt, steps=STEPS)

    with pytest.raises(RuntimeError, match="closed") as raised:
        async with Supervisor(quick()) as supervisor:
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len(supervisor.runs[0].recoveries) == 1
    assert "earlier" in raised.value.__notes__[0]


async def test_a_thread_that_waits_for_a_sample_is_freed_by_a_fault(local: LocalTinker) -> None:
    def body(attempt: Attempt) -> None:
        client: Any = attempt.client
        for step in range(attempt.start_step, STEPS):
            if step == 7 and attempt.number == 1:
                sampler = client.save_weights_and_get_sampling_client().result()
                local.inject(FaultRule("hang", request="asample"))
                waiting = sampler.sample(PROMPT, 1, PARAMS)
                local.inject(FaultRule("poison", request="optim_step"))
            forward = client.forward_backward(batch(step), "cross_entropy")
            client.optim_step(types.AdamParams(learning_rate=5e-2))
            forward.result()
            if step == 7 and attempt.number == 1:
                waiting.result()

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert len(supervisor.runs[0].recoveries) == 1


async def test_a_cancelled_sample_is_no_fault(local: LocalTinker) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        sampler = await attempt.client.save_weights_and_get_sampling_client()
        local.inject(FaultRule("hang", request="asample"))
        with anyio.move_on_after(0.1):
            await sampler.sample(PROMPT, 1, PARAMS)
        await train(attempt, steps=STEPS)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    assert supervisor.runs[0].recoveries == []


def _own_future(kind: str) -> Any:
    if kind == "asyncio":
        return asyncio.get_running_loop().create_future()
    return concurrent.futures.Future()


@pytest.mark.parametrize("kind", ["asyncio", "concurrent"])
async def test_a_future_given_to_watch_that_never_ends_is_a_fault(
    local: LocalTinker, kind: str
) -> None:
    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        if attempt.number == 1:
            future = attempt.watch(_own_future(kind))
            await (future if kind == "asyncio" else asyncio.wrap_future(future))
        await loop(attempt.client, 7, STEPS, 0)

    async with Supervisor(quick(**SILENT)) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    (recovery,) = supervisor.runs[0].recoveries
    assert recovery.fault.kind is Kind.SAMPLING_SILENCE
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == await undisturbed_state(
        local, steps=STEPS
    )


async def test_what_cannot_be_watched_is_refused(local: LocalTinker) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                with pytest.raises(UsageError, match=r"watch\(3\).*APIFuture"):
                    attempt.watch(3)


async def test_isinstance_takes_the_clients_for_the_sdks(local: LocalTinker) -> None:
    """Recipes check for it, and dataclasses of theirs are validated by it."""
    del local
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                making: Any = attempt.client.save_weights_and_get_sampling_client()
                plain: Any = await asyncio.wrap_future(making.future())
                given: list[object] = [attempt.client, attempt.client, attempt.service]
                kinds = [tinker.TrainingClient, SupervisedClient, tinker.ServiceClient]
                assert all(map(isinstance, given, kinds))
                samplers: list[object] = [making, await making, plain]
                assert all(isinstance(each, tinker.SamplingClient) for each in samplers)
                assert plain is await making
                assert isinstance(plain, SupervisedSampler)


async def test_a_pickled_sampler_samples_in_another_process_without_us(local: LocalTinker) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                sampler = await attempt.client.save_weights_and_get_sampling_client()
                other = pickle.loads(pickle.dumps(sampler))  # noqa: S301 - our own
                assert type(other) is tinker.SamplingClient
                theirs = await other.sample(PROMPT, 1, PARAMS)
                other.holder.close()
                ours = await sampler.sample(PROMPT, 1, PARAMS)
                assert theirs.sequences[0].tokens == ours.sequences[0].tokens


def test_every_method_of_the_sdks_sampling_client_is_one_of_ours() -> None:
    """One that an upgrade adds would run on a client that was never set up."""
    public = {
        name
        for name, value in inspect.getmembers(tinker.SamplingClient, inspect.isfunction)
        if not name.startswith("_")
        and not isinstance(inspect.getattr_static(tinker.SamplingClient, name), staticmethod)
    }
    for kind in (SupervisedSampler, SupervisedSamplerFuture):
        assert public <= set(vars(kind))


async def test_a_given_client_has_no_service(local: LocalTinker) -> None:
    service = local.service()
    client = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=SEED).result()
    )
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(adopt=client):
            async with attempt:
                with pytest.raises(UsageError, match="adopt="):
                    _ = attempt.service
    with warnings.catch_warnings():
        await service.close("success")
