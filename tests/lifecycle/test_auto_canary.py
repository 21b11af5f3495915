"""A canary without being asked for one: made of the loop's own first batch."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import pytest
from inspection import internals_of, rejected
from loops import ADAM, MODEL, SEED, batch, policy, quick, train, undisturbed_state
from tinker import types

from tinker_recovery import Attempt, NoUsableCheckpoint, RecoveryPolicy, Supervisor
from tinker_recovery.checkpoints.canary import ASKED
from tinker_recovery.journal import Journal
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
AUTO = functools.partial(quick, canary="auto")


def test_it_is_the_default_and_none_turns_it_off() -> None:
    assert RecoveryPolicy().canary == "auto"
    assert RecoveryPolicy(canary=None).canary is None


async def test_a_wrong_restore_is_noticed_by_default_and_the_next_older_checkpoint_is_used(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 11, "optim_step"))
    local.inject(FaultRule("wrong_restore", request="load_weights"))
    async with Supervisor(AUTO()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert len(rejected(run)) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_it_costs_a_healthy_run_three_passes_at_the_start_and_one_for_each_save(
    local: LocalTinker,
) -> None:
    async with Supervisor(policy(canary="auto")) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
        prompt = internals_of(supervisor.runs[0]).checkpoints.prompt
    saves = len(local.checkpoints(supervisor.runs[0].segments[0].run_id))
    assert saves == 3
    assert local.stats.by_route["forward_backward"] == STEPS + ASKED + saves
    (datum,) = prompt.batch or []
    own = batch(0)[0]
    assert datum.model_input.to_ints() == own.model_input.to_ints()[:-1]
    assert datum.loss_fn_inputs["target_tokens"].data == own.model_input.to_ints()[1:]
    assert datum.loss_fn_inputs["weights"].data == [1.0] * 7


async def _stopped(attempt: Attempt) -> None:
    await train(attempt, steps=11)
    await attempt.client.drain()
    raise KeyboardInterrupt


async def test_a_later_process_compares_what_it_restores_before_its_first_batch(
    local: LocalTinker, tmp_path: Path
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    file = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(AUTO(), journal=file) as supervisor:
            await supervisor.run(_stopped, name="same", **START)
    local.inject(FaultRule("wrong_restore", request="load_weights"))
    async with Supervisor(AUTO(), journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), name="same", **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [5]
    assert len(rejected(run)) == 1
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_process_whose_journal_has_no_prompt_finds_it_with_the_checkpoints(
    local: LocalTinker, tmp_path: Path
) -> None:
    file = tmp_path / "journal"
    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(AUTO(), journal=file) as supervisor:
            await supervisor.run(_stopped, name="same", **START)
    newest = local.checkpoints(supervisor.runs[0].segments[0].run_id)[-1]
    with Journal(file, service=local.base_url) as journal:
        with journal.database.transaction() as database:
            database.execute("DELETE FROM notes")
        journal.mark_bad(newest.path, "so that the one is used whose answer it carries")
    local.inject(FaultRule("wrong_restore", request="load_weights"))
    with pytest.raises(NoUsableCheckpoint, match=r"step-00000005.*not the ones that were saved"):
        async with Supervisor(AUTO(), journal=file) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), name="same", **START)


async def test_a_checkpoint_it_never_answered_for_is_used_as_without_it(
    local: LocalTinker,
) -> None:
    """The fault takes the canary's pass behind the save; starting over would cost every step."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 5, "forward_backward"))
    async with Supervisor(AUTO()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_checkpoints_of_a_process_without_a_canary_are_used_by_one_with(
    local: LocalTinker, tmp_path: Path
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    file = tmp_path / "journal"

    async def stopped(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        async with Supervisor(quick(), journal=file) as supervisor:
            await supervisor.run(stopped, name="same", **START)
    local.inject(FaultRule("fail", 8, "optim_step"))
    async with Supervisor(AUTO(), journal=file) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), name="same", **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [5, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_fault_before_the_first_batch_starts_over(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    begun: list[int] = []

    async def loop(attempt: Attempt) -> None:
        begun.append(attempt.start_step)
        if len(begun) == 1:
            local.poison()
            await attempt.client.optim_step(ADAM)
        await train(attempt, steps=STEPS)

    async with Supervisor(AUTO()) as supervisor:
        await supervisor.run(loop, **START)
    assert begun == [0, 0]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


@pytest.mark.parametrize("refused", ["the result", "the request"])
async def test_a_service_that_refuses_it_has_the_run_go_on_without(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(
        FaultRule("fail", 0, "forward_backward", category="user", times=ASKED)
        if refused == "the result"
        else FaultRule("status", 0, "forward_backward", status=422)
    )
    with caplog.at_level(logging.WARNING):
        async with Supervisor(AUTO()) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **START)
    (run,) = supervisor.runs
    assert len([each for each in caplog.messages if "has no canary" in each]) == 1
    assert local.run_state(run.segments[-1].run_id) == expected
    assert internals_of(run).checkpoints.prompt.batch is None


async def test_a_first_batch_with_images_gives_none_and_that_is_said_once(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    image = types.ImageChunk(data=b"\x89PNG", format="png", expected_tokens=4)

    async def loop(attempt: Attempt) -> None:
        text = batch(0)[0]
        chunks = [image, *text.model_input.chunks]
        seen = types.Datum(
            model_input=types.ModelInput(chunks=chunks), loss_fn_inputs=text.loss_fn_inputs
        )
        for _ in range(2):
            await attempt.client.forward_backward([seen], "cross_entropy")

    with caplog.at_level(logging.WARNING):
        async with Supervisor(AUTO()) as supervisor:
            await supervisor.run(loop, **START)
    assert local.stats.by_route["forward_backward"] == 2
    assert len([each for each in caplog.messages if "has no canary" in each]) == 1
