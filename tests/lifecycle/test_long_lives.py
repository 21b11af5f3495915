"""A run that recovers for weeks keeps of each recovery what is read of it later, and no client."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable

import pytest
from inspection import internals_of, run_id_of, service_of
from loops import ADAM, MODEL, SEED, batch, quick, until

from tinker_recovery import Attempt, CheckpointPolicy, Run, Supervisor
from tinker_recovery.errors import StaleAttempt
from tinker_recovery.run import register
from tinker_recovery.testing import FaultRule, LocalTinker

POLICY = quick(checkpoints=CheckpointPolicy(save_every=1, save_at_start=False))
RECOVERIES = 5
KEPT = 2
"""The client of now, and that of the newest fault, whose error says where it was raised."""


class Sight:
    """The SDK's objects behind every attempt, seen without being held."""

    def __init__(self) -> None:
        self._seen: list[weakref.ref[object]] = []

    def note(self, attempt: Attempt) -> None:
        training, service = attempt.client.training, service_of(attempt)
        self._seen += map(weakref.ref, (training, training.holder, service))

    def alive(self) -> int:
        gc.collect()
        return sum(ref() is not None for ref in self._seen)


async def _one_step(attempt: Attempt) -> None:
    step = attempt.start_step
    await attempt.client.forward_backward(batch(step), "cross_entropy")
    await attempt.client.optim_step(ADAM)
    await attempt.client.drain()


async def _failing(local: LocalTinker, attempt: Attempt) -> None:
    """A request fails, and its error leaves the loop by several frames."""
    await _one_step(attempt)
    local.inject(FaultRule("fail", request="forward_backward"))
    await attempt.client.forward_backward(batch(0), "cross_entropy")


async def _failing_unseen(local: LocalTinker, attempt: Attempt) -> None:
    """Requests fail that the loop has not waited for, and others are open."""
    await _one_step(attempt)
    local.inject(FaultRule("poison"))
    for _ in range(3):
        attempt.client.forward_backward(batch(0), "cross_entropy")
        attempt.client.optim_step(ADAM)
    await attempt.client.drain()


async def _sampling(local: LocalTinker, attempt: Attempt) -> None:
    """Clients for sampling were made, by every way there is."""
    reference = functools.partial(attempt.service.create_sampling_client, base_model=MODEL)
    await attempt.once("reference", reference)
    await _one_step(attempt)
    await attempt.client.save_weights_and_get_sampling_client()
    await attempt.client.save_state(f"mine-{attempt.number}")
    attempt.client.get_info()
    await _failing(local, attempt)


async def _refused(local: LocalTinker, attempt: Attempt) -> None:
    """The service answers a request with a status that the SDK raises as it is."""
    await _one_step(attempt)
    local.inject(FaultRule("status", request="forward_backward", status=404))
    await attempt.client.forward_backward(batch(0), "cross_entropy")


@pytest.mark.parametrize("work", [_failing, _failing_unseen, _sampling, _refused])
async def test_the_clients_of_earlier_attempts_are_not_kept(
    local: LocalTinker, work: Callable[[LocalTinker, Attempt], object]
) -> None:
    sight = Sight()

    async def loop(attempt: Attempt) -> None:
        sight.note(attempt)
        if attempt.number <= RECOVERIES:
            await work(local, attempt)  # type: ignore[misc]  # each is a coroutine function

    async with Supervisor(POLICY) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
        (run,) = supervisor.runs
        assert len(run.recoveries) == RECOVERIES
        await until(lambda: sight.alive() <= 3 * KEPT, 10.0)


@pytest.mark.usefixtures("local")
async def test_of_thousands_of_runs_that_have_ended_the_newest_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(register, "KEPT", 3)
    seen: list[weakref.ref[object]] = []

    def alive() -> int:
        gc.collect()
        return sum(ref() is not None for ref in seen)

    async with Supervisor(POLICY) as supervisor:
        for number in range(8):
            await supervisor.run(_one_step, base_model=MODEL, name=f"run-{number}")
            seen.append(weakref.ref(internals_of(supervisor.runs[-1])))
        assert [run.name for run in supervisor.runs] == [f"run-{number}" for number in range(4, 8)]
        await until(lambda: alive() == 4, 10.0)


async def _recovered(local: LocalTinker) -> tuple[Run, list[str]]:
    """A run that has recovered, and let go of its clients; and its Tinker run ids."""
    sight, ids = Sight(), list[str]()

    async def loop(attempt: Attempt) -> None:
        sight.note(attempt)
        ids.append(run_id_of(attempt))
        attempt.loop_state = {"at": attempt.number}
        if attempt.number <= RECOVERIES:
            await _failing(local, attempt)

    async with Supervisor(POLICY) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED)
        (run,) = supervisor.runs
        await until(lambda: sight.alive() <= 3 * KEPT, 10.0)
    return run, ids


async def test_what_is_read_of_an_attempt_that_was_closed_stays(local: LocalTinker) -> None:
    run, ids = await _recovered(local)
    old, *_ = run.attempts
    assert (old.number, old.start_step, old.client.step) == (1, 0, 1)
    assert old.loop_state == {"at": 1}
    assert old.client.model_id == ids[0]
    assert ids[0] in repr(old.client)
    assert old.client.first_call_at is not None
    assert [segment.run_id for segment in run.segments] == ids
    fault = run.recoveries[0].fault
    assert (fault.run_id, fault.step) == (ids[0], 1)
    assert "injected" in str(fault.error)
    assert old.client.failed


async def test_the_client_of_an_attempt_that_was_closed_says_that_it_is_stale(
    local: LocalTinker,
) -> None:
    run, _ = await _recovered(local)
    old, *_ = run.attempts
    for call in (
        lambda: old.client.optim_step(ADAM),
        lambda: old.client.forward_backward(batch(0), "cross_entropy"),
        lambda: old.client.save_state("late"),
        functools.partial(old.client.save_weights_and_get_sampling_client),
        functools.partial(old.client.get_info),
        lambda: old.client.save_weights_for_sampler("late"),
        lambda: old.client.training,
        lambda: old.client.holder,
        lambda: old.service.create_sampling_client(base_model=MODEL),
    ):
        with pytest.raises(StaleAttempt, match="attempt"):
            call()
    with pytest.raises(StaleAttempt):
        await old.recall("late", lambda: 1)
    assert not hasattr(old.client, "no_such_method")
    assert not hasattr(old.client, "load_state")
