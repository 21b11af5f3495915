"""A poisoned run recovers by itself, and ends as if nothing had happened."""

from __future__ import annotations

import functools
import os

import pytest
from inspection import run_id_of
from loops import MODEL, SEED, InstantClock, policy, train, undisturbed_state
from sweeps import pairs, sweep

from tinker_recovery import Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 20
POLL_S = 0.02


async def _supervised(local: LocalTinker, rule: FaultRule | None, *, depth: int) -> Supervisor:
    if rule is not None:
        local.inject(rule)
    clock = InstantClock(poll_interval_s=POLL_S if rule is None or not rule.quiet else -1)
    async with Supervisor(policy(poll_interval_s=POLL_S), clock=clock.clock) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS, depth=depth),
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    return supervisor


@pytest.mark.parametrize(("first", "depth"), pairs(range(5), [0, 1, 2], 3))
async def test_poisoned_at_any_step_the_final_weights_are_those_of_an_undisturbed_run(
    local: LocalTinker, first: int, depth: int
) -> None:
    """Every step, 0 to the last, at each kind of request in turn; in each run a third of them, one
    for each depth: the first steps behind a save, those between two saves, the last before one.
    """
    expected = await undisturbed_state(local, steps=STEPS)
    hit = range(first, STEPS, 5)
    for step in hit:
        local.inject(FaultRule("poison", step, "optim_step" if step % 2 else "forward_backward"))
    supervisor = await _supervised(local, None, depth=depth)
    (run,) = supervisor.runs
    # Back to the save at or before the fault: no step is lost, and none is applied twice.
    starts = [0, *(step - step % 5 for step in hit)]
    assert [attempt.start_step for attempt in run.attempts] == starts
    final = local.run_state(run.segments[-1].run_id)
    assert final == expected
    assert final.steps == STEPS


@pytest.mark.parametrize("depth", sweep([0, 1, 2], 2))
async def test_poisoned_after_the_last_step_the_last_save_is_what_is_recovered(
    local: LocalTinker, depth: int
) -> None:
    """The last is a multiple of five: its save is the last request, and no one awaits it."""
    expected = await undisturbed_state(local, steps=STEPS)
    rule = FaultRule("poison", STEPS, "save_weights")
    supervisor = await _supervised(local, rule, depth=depth)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, STEPS - 5]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("step", sweep([0, 4, 5, 13, STEPS - 1], 2))
async def test_a_poisoning_that_only_the_status_tells_of_is_recovered_just_as_exactly(
    local: LocalTinker, step: int
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    supervisor = await _supervised(local, FaultRule("poison", step, quiet=True), depth=1)
    (run,) = supervisor.runs
    assert [recovery.fault.detected_by for recovery in run.recoveries] == ["poll"]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_result_the_service_lost_is_recovered_from(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    supervisor = await _supervised(local, FaultRule("gone", 12, "optim_step"), depth=2)
    (run,) = supervisor.runs
    assert [recovery.fault.kind for recovery in run.recoveries] == ["gone"]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_one_failed_request_is_enough_to_recover(local: LocalTinker) -> None:
    """The run is not corrupted, but a client with a failed request cannot be used again."""
    expected = await undisturbed_state(local, steps=STEPS)
    rule = FaultRule("fail", 7, "forward_backward", category="unknown")
    supervisor = await _supervised(local, rule, depth=0)
    (run,) = supervisor.runs
    assert len(run.recoveries) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_two_incidents_in_one_run_are_two_recoveries(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=8)
    supervisor = await _supervised(local, FaultRule("poison", 17), depth=1)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5, 15]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_without_the_optimizer_the_weights_come_out_different(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=13)
    async with Supervisor(policy(restore_optimizer=False)) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
        )
    final = local.run_state(supervisor.runs[0].segments[-1].run_id)
    assert final.steps == STEPS
    assert final.weights_digest != expected.weights_digest
    assert final.optimizer_digest != expected.optimizer_digest


async def test_no_fault_means_no_recovery_and_the_same_weights(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    supervisor = await _supervised(local, None, depth=2)
    (run,) = supervisor.runs
    assert run.recoveries == []
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_run_poisoned_before_its_first_checkpoint_starts_again_with_the_same_seed(
    local: LocalTinker,
) -> None:
    """No seed was given: one is drawn once, and drawn again it would be another run."""
    local.poison(at_step=3)
    seen: list[object] = []
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                seen.append(local.run_state(run_id_of(attempt)))
                await train(attempt, steps=5)
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_the_status_is_read_with_a_token_where_the_service_asks_for_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalTinker(jwt=True) as server:
        monkeypatch.setitem(os.environ, "TINKER_BASE_URL", server.base_url)
        monkeypatch.setitem(os.environ, "TINKER_API_KEY", server.api_key)
        supervisor = await _supervised(server, FaultRule("poison", 12, quiet=True), depth=0)
        assert [recovery.fault.detected_by for recovery in supervisor.runs[0].recoveries] == [
            "poll"
        ]
        assert server.run_state(supervisor.runs[0].segments[-1].run_id).steps == STEPS


async def test_a_supervisor_that_is_given_nothing_recovers_and_saves_as_the_settings_say(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Entering one is the wish to recover; `config show` says what it does."""
    monkeypatch.setenv("TINKER_RECOVERY_CHECKPOINTS_SAVE_EVERY", "2")
    local.poison(at_step=5)
    async with Supervisor() as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 4]
