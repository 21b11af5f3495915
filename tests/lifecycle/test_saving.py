"""When a supervised run saves, and what its checkpoints bring back."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inspection import interval_evidence
from loops import ADAM, MODEL, batch, quick, until

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor, UsageError
from tinker_recovery.checkpoints import AnyOf, Decision, EveryEpochs, EverySteps, Moment
from tinker_recovery.journal.journal import default_path
from tinker_recovery.journal.reading import read_runs
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


async def _saves(
    train: Callable[[Attempt], Any], checkpoints: CheckpointPolicy
) -> tuple[list[int], Supervisor]:
    """The steps at which it saved, in order."""
    steps: list[int] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == "checkpoint.saved":
            step = event.fields["tinker_recovery.checkpoint.step"]
            assert isinstance(step, int)
            steps.append(step)

    given = quick(checkpoints=checkpoints)
    async with Supervisor(given, on_event=note) as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=7)
    return steps, supervisor


class _Unsure:
    def decide(self, moment: Moment) -> Decision:
        raise RuntimeError(f"step {moment.step}?")


async def _step(attempt: Attempt, step: int) -> None:
    forward = attempt.client.forward_backward(batch(step), "cross_entropy")
    await attempt.client.optim_step(ADAM)
    await forward


@pytest.mark.usefixtures("local")
async def test_the_last_step_is_saved_unless_it_is_already() -> None:
    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await _step(attempt, step)

    assert (await _saves(train, CheckpointPolicy(save_at_start=False, save_every=5)))[0] == [
        5,
        10,
        12,
    ]
    assert (await _saves(train, CheckpointPolicy(save_at_start=False, save_every=4)))[0] == [
        4,
        8,
        12,
    ]
    never = CheckpointPolicy(save_at_start=False, save_every=100, save_at_end=False)
    assert (await _saves(train, never))[0] == []


@pytest.mark.usefixtures("local")
async def test_an_epoch_is_saved_right_behind_its_last_step() -> None:
    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await _step(attempt, step)
            if (step + 1) % 4 == 0:
                attempt.end_epoch()
        assert attempt.epoch == 3

    assert (await _saves(train, CheckpointPolicy(save_at_start=False, strategy="epoch")))[0] == [
        4,
        8,
        12,
    ]


@pytest.mark.usefixtures("local")
async def test_an_improvement_is_saved_and_ties_and_nan_are_none() -> None:
    losses = [9.0, 8.0, 8.0, float("nan"), 7.0, 7.5, 7.0, 6.0]

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, len(losses)):
            attempt.report(loss=losses[step])
            await _step(attempt, step)
            # The next one is asked for once this save is stored: one in flight at most.
            await attempt.client.drain()

    best = CheckpointPolicy(save_at_start=False, strategy="best", save_at_end=False)
    assert (await _saves(train, best))[0] == [1, 2, 5, 8]


async def test_epoch_metrics_and_the_loops_own_state_come_back_with_the_checkpoint(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("fail", 10, "forward_backward"))
    begun: list[tuple[int, int, object]] = []

    async def train(attempt: Attempt) -> None:
        begun.append((attempt.start_step, attempt.epoch, attempt.loop_state))
        for step in range(attempt.start_step, STEPS):
            attempt.report(loss=float(step))
            await _step(attempt, step)
            attempt.loop_state = {"shard": step // 2, "seed": [1, 2]}
            if (step + 1) % 4 == 0:
                attempt.end_epoch()

    _, supervisor = await _saves(train, CheckpointPolicy(save_at_start=False, strategy="epoch"))
    assert begun == [(0, 0, None), (8, 2, {"shard": 3, "seed": [1, 2]})]
    checkpoint = supervisor.runs[0].attempts[1].checkpoint
    assert checkpoint is not None
    assert checkpoint.metrics == {"loss": 7.0}


@pytest.mark.usefixtures("local")
async def test_a_state_that_cannot_be_stored_is_refused_where_it_is_set() -> None:
    async def train(attempt: Attempt) -> None:
        with pytest.raises(UsageError, match="loop_state"):
            attempt.loop_state = {"rng": object()}
        with pytest.raises(UsageError, match="loop_state"):
            attempt.loop_state = "x" * 20_000
        assert attempt.loop_state is None

    await _saves(train, CheckpointPolicy(save_at_start=False))


async def test_a_slow_save_holds_back_the_next_one_and_never_the_loop(local: LocalTinker) -> None:
    """Each save takes until it is released; the loop goes on to its end beside it."""
    local.inject(FaultRule("pause", None, "save_weights", for_s=30.0))
    reached: list[int] = []

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)
            reached.append(step)
        local.release()

    steps, _ = await _saves(train, CheckpointPolicy(save_at_start=False, save_every=1))
    assert reached == list(range(STEPS))
    assert steps == [1, 12]


@pytest.mark.parametrize("most", [1, 2, 3])
async def test_as_many_saves_as_allowed_are_under_way_and_what_is_left_out_is_said(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, most: int
) -> None:
    async def train(attempt: Attempt) -> None:
        await _step(attempt, 0)
        await attempt.client.drain()  # the first save shows what becomes of metadata
        local.inject(FaultRule("pause", None, "save_weights", for_s=30.0))
        for step in range(1, STEPS):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)
        local.release()

    policy = CheckpointPolicy(save_at_start=False, save_every=1, max_saves_in_flight=most)
    with caplog.at_level(logging.WARNING):
        steps, _ = await _saves(train, policy)
    assert steps == [1, *range(2, 2 + most), STEPS]
    (said,) = (each.getMessage() for each in caplog.records if "not saved" in each.getMessage())
    saves = "1 save is" if most == 1 else f"{most} saves are"
    assert f"step {2 + most} is due and not saved, as {saves} under way" in said
    assert said.endswith(
        "Steps left out so far: 1. Save less often, or allow more at once: "
        f"max_saves_in_flight={most}"
    )


async def test_saving_every_step_is_saving_every_step_where_saves_are_as_slow_as_steps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with LocalTinker(tmp_path, step_s=0.05, save_s=0.05) as server:

        async def train(attempt: Attempt) -> None:
            for step in range(attempt.start_step, STEPS):
                await _step(attempt, step)

        given = quick(checkpoints=CheckpointPolicy(strategy="all", save_every=1))
        async with Supervisor(given, service=server.service) as supervisor:
            await supervisor.run(train, base_model=MODEL, rank=8, seed=7)
        run_id = supervisor.runs[0].segments[0].run_id
        assert [each.steps for each in server.checkpoints(run_id)] == list(range(STEPS + 1))
    assert "left out" not in caplog.text


@pytest.mark.usefixtures("local")
async def test_auto_is_the_default_and_says_when_it_saves_next_and_why() -> None:
    said: list[str] = []

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await _step(attempt, step)
        await until(lambda: read_runs(default_path())[0].next_save.startswith("next save "))

    def note(event: RecoveryEvent) -> None:
        if event.name == "checkpoint.saved":
            said.append(event.message)

    given = quick(checkpoints=CheckpointPolicy())
    async with Supervisor(given, on_event=note) as supervisor:
        await supervisor.run(train, base_model=MODEL, rank=8, seed=7, name="auto")
    assert len(said) == 2, "at the start and at the end"
    words = r"at step 12; next save \d+, every \d+ steps: a save costs [\d.e-]+ s, a fault is "
    assert re.search(words + "expected each 12 h", said[1])
    (view,) = read_runs(default_path())
    assert (view.next_save, view.next_save_step) == ("", None), "it is over"


@pytest.mark.usefixtures("local")
async def test_auto_saves_by_what_the_run_measures_within_its_bounds() -> None:
    """A failure in twelve hours is worth no save among twelve quick steps; the bound is."""

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await _step(attempt, step)
        evidence = interval_evidence(attempt)
        assert evidence.steps == STEPS
        assert evidence.step_s is not None
        assert 0 < evidence.step_s < 5

    bounded = CheckpointPolicy(
        save_at_start=False, strategy="auto", auto_max_steps=5, save_at_end=False
    )
    assert (await _saves(train, bounded))[0] == [5, 10]
    free = CheckpointPolicy(save_at_start=False, strategy="auto", save_at_end=False)
    assert (await _saves(train, free))[0] == []


@pytest.mark.usefixtures("local")
async def test_two_intervals_can_be_combined_and_a_schedule_be_the_users_own() -> None:
    class Primes:
        def decide(self, moment: Moment) -> Decision:
            return Decision(moment.step in (2, 3, 5, 7, 11), f"step {moment.step}")

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await _step(attempt, step)
            if step % 4 == 3:
                attempt.end_epoch()
            await attempt.client.drain()  # the first save is alone, and may take longer than a step

    both = CheckpointPolicy(save_at_start=False, schedule=AnyOf(EverySteps(5), EveryEpochs(1)))
    assert (await _saves(train, both))[0] == [4, 5, 8, 10, 12]
    own = CheckpointPolicy(save_at_start=False, schedule=Primes())
    assert (await _saves(train, own))[0] == [2, 3, 5, 7, 11, 12]


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            CheckpointPolicy(save_at_start=False, strategy="best", best_metric="typo"),
            "no metric 'typo'",
        ),
        (CheckpointPolicy(save_at_start=False, strategy="epoch"), "no epoch has ended"),
        (CheckpointPolicy(save_at_start=False, schedule=_Unsure()), "_Unsure raised"),
    ],
)
async def test_a_schedule_that_has_nothing_to_decide_by_says_so_once_and_saves_by_steps(
    caplog: pytest.LogCaptureFixture, policy: CheckpointPolicy, said: str
) -> None:
    every = 100

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, 2 * every + 1):
            attempt.client.optim_step(ADAM)
            attempt.report(loss=float(step))
            if step == every:
                await attempt.client.drain()

    with caplog.at_level(logging.WARNING):
        assert (await _saves(train, policy))[0] == [every, 2 * every, 2 * every + 1]
    assert len([each for each in caplog.records if said in each.message]) == 1
