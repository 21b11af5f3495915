"""Which checkpoint a recovery goes back to, by the policy's choice, and which never again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from inspection import expect_size, internals_of, rejected
from loops import ADAM, MODEL, SEED, batch, policy, quick, train, undisturbed_state, until
from sweeps import sweep

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    Supervisor,
)
from tinker_recovery.checkpoints import with_canaries
from tinker_recovery.journal import Journal
from tinker_recovery.service.listing import list_checkpoints
from tinker_recovery.testing import FaultRule, LocalTinker, RunState

STEPS = 9
LOSSES = [9.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 2.0, 2.0]


async def _train(attempt: Attempt) -> None:
    for step in range(attempt.start_step, STEPS):
        attempt.report(loss=LOSSES[step])
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        await forward
        await attempt.client.drain()


async def _starts(local: LocalTinker, **changes: Any) -> list[int]:
    """Where each attempt began, of a run that saves every step and is poisoned at step 6."""
    local.poison(at_step=6)
    given = quick(checkpoints=CheckpointPolicy(save_at_start=False, save_every=1), **changes)
    async with Supervisor(given) as supervisor:
        await supervisor.run(_train, base_model=MODEL, rank=8, seed=SEED)
    return [attempt.start_step for attempt in supervisor.runs[0].attempts]


async def test_best_goes_back_to_the_lowest_metric_saved(local: LocalTinker) -> None:
    # Step 3 was saved right after the loss of step 2 was reported.
    assert await _starts(local, checkpoint_strategy="best") == [0, 3]


async def test_a_step_asked_for_is_gone_back_to(local: LocalTinker) -> None:
    assert await _starts(local, checkpoint_strategy="step:2") == [0, 2]


async def test_a_step_never_saved_ends_the_run_with_the_steps_there_are(local: LocalTinker) -> None:
    with pytest.raises(NoUsableCheckpoint, match=r"no checkpoint at step 7.* 5, 4, 3, 2, 1"):
        await _starts(local, checkpoint_strategy="step:7")


async def test_a_checkpoint_that_restores_wrong_weights_is_never_used_again_by_any_process(
    local: LocalTinker, tmp_path: Path
) -> None:
    local.inject(FaultRule("fail", 12, "optim_step"))
    local.inject(FaultRule("wrong_restore", request="load_weights"))
    told: list[RecoveryEvent] = []
    file = tmp_path / "journal"
    kept = CheckpointPolicy(strategy="all", save_every=5)
    given = quick(canary=tuple(batch(3)), checkpoints=kept)
    async with Supervisor(given, on_event=told.append, journal=file) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=13), base_model=MODEL, rank=8, seed=SEED
        )
    (bad,) = (event for event in told if event.name == "checkpoint.bad")
    path = bad.fields["tinker_recovery.checkpoint.path"]
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 5]
    with Journal(file, service=local.base_url) as journal:
        assert list(journal.notes().bad) == [path]

    again = quick(checkpoint_strategy=path)
    local.poison(at_step=6)
    with pytest.raises(NoUsableCheckpoint, match="not the ones that were saved"):
        async with Supervisor(again, journal=file) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=13), base_model=MODEL, rank=8, seed=SEED
            )


async def test_a_checkpoint_whose_size_has_changed_is_passed_over_for_the_next_older(
    local: LocalTinker, tmp_path: Path
) -> None:
    file = tmp_path / "journal"
    states: list[RunState] = []

    def note(event: RecoveryEvent) -> None:
        path = event.fields.get("tinker_recovery.checkpoint.path")
        if event.name == "checkpoint.saved" and "/step-00000010-" in str(path):
            # As a keeper that saw it with another size would have noted.
            expect_size(supervisor.runs[0], str(path), 7)

    local.poison(at_step=12)
    given = quick()
    async with Supervisor(given, on_event=note, journal=file) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=14), base_model=MODEL, rank=8, seed=SEED
        )
    states.append(local.run_state(supervisor.runs[0].segments[-1].run_id))
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 5]
    assert states[0].steps == 14


# In each run: one that refuses who asks, one that refuses what is asked, one that lacks the call.
@pytest.mark.parametrize("status", sweep([401, 403, 404, 422, 405, 501], 3))
async def test_a_service_that_does_not_say_what_its_weights_are_is_asked_to_load_them(
    local: LocalTinker, status: int
) -> None:
    expected = await undisturbed_state(local, steps=13)

    def refuse(event: RecoveryEvent) -> None:
        if event.name == "recovery.detected":
            local.inject(FaultRule("status", request="weights_info", status=status, for_s=60.0))

    local.poison(at_step=12)
    given = policy(backoff_s=0.0, max_backoff_s=0.0, poll_interval_s=0.05)

    async def training(attempt: Attempt) -> None:
        # What the run's weights are is known from polling, and only then is anything to compare.
        await until(lambda: local.stats.by_route.get("training_run", 0) > 1)
        await train(attempt, steps=13)

    async with Supervisor(given, on_event=refuse) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 10]
    assert local.stats.by_route["weights_info"]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize(
    ("lost_at", "starts"), [(10, [0, 5]), (5, [0, 0])], ids=["an older is", "none is"]
)
async def test_a_checkpoint_the_canary_never_answered_for_is_not_trusted_where_another_is(
    local: LocalTinker, lost_at: int, starts: list[int]
) -> None:
    """The fault takes the canary's pass behind the save, and then the restore goes wrong."""
    undisturbed = await undisturbed_state(local, steps=13)
    local.inject(FaultRule("fail", lost_at, "forward_backward"))
    local.inject(FaultRule("wrong_restore", lost_at, "load_weights", times=9))
    given = quick(canary=tuple(batch(3)))
    async with Supervisor(given) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=13), base_model=MODEL, rank=8, seed=SEED
        )
    run = supervisor.runs[0]
    assert [attempt.start_step for attempt in run.attempts] == starts
    assert local.run_state(run.segments[-1].run_id) == undisturbed


async def test_what_the_canary_answered_is_told_by_the_next_checkpoint_and_the_journal(
    local: LocalTinker, tmp_path: Path
) -> None:
    given = policy(canary=tuple(batch(3)))
    async with Supervisor(given, journal=tmp_path / "journal") as supervisor:
        await supervisor.run(
            functools.partial(train, steps=11), base_model=MODEL, rank=8, seed=SEED
        )
        run = internals_of(supervisor.runs[0])
        listed = await list_checkpoints(run.collaborators.reader, run.segments[0].run_id)
    records = [each.record for each in listed if each.record is not None]
    found = {each.step: each for each in with_canaries(records)}
    with Journal(tmp_path / "journal", service=local.base_url) as journal:
        noted = journal.notes().canaries
    assert sorted(found) == [5, 10, 11]
    assert found[5].canary == noted[found[5].path]
    assert found[10].canary is None or found[10].canary == noted[found[10].path]


async def test_a_newest_checkpoint_that_fails_to_load_twice_is_passed_over_and_not_condemned(
    local: LocalTinker,
) -> None:
    """As a service does with a damaged file that it does not blame on the request."""
    expected = await undisturbed_state(local, steps=16)
    local.poison(at_step=12)
    said = "Error while deserializing header"
    rule = FaultRule("fail", request="load_weights", category="server", times=2, message=said)
    local.inject(rule)
    told: list[str] = []
    async with Supervisor(quick(), on_event=lambda event: told.append(event.name)) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=16), base_model=MODEL, rank=8, seed=SEED
        )
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert told.count("checkpoint.skipped") == 1
    assert not rejected(run), "a later incident may try it again"
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_the_only_checkpoint_that_fails_to_load_is_tried_until_the_attempts_are_spent(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    local.inject(FaultRule("fail", request="load_weights", category="server", times=99))
    with pytest.raises(RecoveryExhausted):
        async with Supervisor(quick(max_attempts=4)) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=16), base_model=MODEL, rank=8, seed=SEED
            )
    loads = [fault for fault in local.fired if fault.rule.request == "load_weights"]
    assert len(loads) == 4
