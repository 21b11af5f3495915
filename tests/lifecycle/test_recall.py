"""Nothing is sampled twice: a replayed step gets the rollouts that it was begun with."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from inspection import declare, internals_of, kept_in_memory, scope_of
from loops import ADAM, MODEL, SEED, batch, policy, process
from rollouts import Rollout, sampled, train
from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, Kind, StaleAttempt, Supervisor, UsageError
from tinker_recovery.journal import STATE_FOLDER, StateFolder, default_path
from tinker_recovery.journal.abandon import abandon
from tinker_recovery.journal.reading import read_run, read_stored_run
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
NAMED: dict[str, Any] = {**START, "name": "rl"}
SCRIPT = Path(__file__).parents[1] / "rollouts.py"


def samples(local: LocalTinker) -> int:
    """Sample requests that the server has seen."""
    return local.stats.by_route["asample"]


async def run(
    said: Callable[[Rollout], object],
    *,
    steps: int = STEPS,
    journal: Path | StateFolder | None = STATE_FOLDER,
    start: dict[str, Any] = NAMED,
    **changes: Any,
) -> Supervisor:
    async with Supervisor(policy(**changes), journal=journal) as supervisor:
        await supervisor.run(functools.partial(train, steps=steps, said=said), **start)
    return supervisor


def kept_files() -> list[Path]:
    folder = default_path().parent / "recalled"
    return [path for path in folder.rglob("*") if path.is_file()]


def unchanged(said: list[Rollout], replayed_from: int, fault_at: int) -> None:
    """The steps from the checkpoint on were done twice, on the same rollouts."""
    assert [step for step, _ in said] == [*range(fault_at + 1), *range(replayed_from, STEPS)]
    first = dict(said[: fault_at + 1])
    assert len({str(tokens) for tokens in first.values()}) == len(first), "unseeded, so all differ"
    for step, tokens in said[fault_at + 1 :]:
        assert tokens == first.get(step, tokens)


@pytest.mark.parametrize("start", [NAMED, START], ids=["named", "without a name"])
@pytest.mark.parametrize("journal", [STATE_FOLDER, None], ids=["on disk", "in memory"])
async def test_after_a_recovery_the_rollouts_are_those_of_before_and_none_is_sampled_twice(
    local: LocalTinker, start: dict[str, Any], journal: StateFolder | None
) -> None:
    said: list[Rollout] = []
    local.inject(FaultRule("poison", 9, "optim_step"))
    supervisor = await run(said.append, start=start, journal=journal)
    assert len(supervisor.runs[0].recoveries) == 1
    unchanged(said, replayed_from=5, fault_at=9)
    assert samples(local) == STEPS, "as in an undisturbed run"
    assert not kept_files(), "nothing is left of a run that has ended well"


async def test_a_second_recovery_from_the_same_checkpoint_gives_them_back_again(
    local: LocalTinker,
) -> None:
    said: list[Rollout] = []
    local.inject(FaultRule("poison", 9, "optim_step", times=2))
    supervisor = await run(said.append)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 5, 5]
    assert samples(local) == STEPS


async def test_the_checkpoint_at_the_start_gives_back_what_was_made_before_any_other(
    local: LocalTinker,
) -> None:
    said: list[Rollout] = []
    local.inject(FaultRule("poison", 4, "optim_step"))
    await run(said.append, checkpoints=CheckpointPolicy(save_every=5))
    unchanged(said, replayed_from=0, fault_at=4)
    assert samples(local) == STEPS


@pytest.mark.parametrize(
    ("changes", "poison_at", "replayed"),
    [
        ({"restore_optimizer": False}, 9, 5),
        ({}, 4, 5),  # nothing saved: started over, and not every service honours the seed
    ],
    ids=["the weights alone", "a start over"],
)
async def test_of_other_weights_nothing_is_given_back(
    local: LocalTinker, changes: dict[str, Any], poison_at: int, replayed: int
) -> None:
    said: list[Rollout] = []
    local.inject(FaultRule("poison", poison_at, "optim_step"))
    await run(said.append, **changes)
    assert samples(local) == STEPS + replayed
    first, again = dict(said[: poison_at + 1]), dict(said[poison_at + 1 :])
    assert not [step for step in first.keys() & again.keys() if first[step] == again[step]]


async def test_a_replay_on_other_data_is_given_back_what_was_made_before_it_and_nothing_after(
    local: LocalTinker,
) -> None:
    """The weights differ from the step after it on."""
    given: list[tuple[int, int]] = []
    local.inject(FaultRule("poison", 9, "optim_step"))

    async def body(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            number: int = await attempt.recall("number", lambda: len(given))
            given.append((step, number))
            other = 1 if attempt.number == 2 and step == 6 else 0
            await attempt.client.forward_backward(batch(step + other), "cross_entropy")
            await attempt.client.optim_step(ADAM)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **START)
    first, again = given[:10], given[10:]
    assert first == [(step, step) for step in range(10)]
    assert again[:2] == [(5, 5), (6, 6)]
    assert all(number >= 10 for _, number in again[2:])


async def test_what_was_made_behind_a_request_that_failed_is_not_given_back(
    local: LocalTinker,
) -> None:
    """A deep pipeline: the steps behind the failed one were done without it."""
    made: list[tuple[int, int]] = []
    local.inject(FaultRule("fail", 8, "forward_backward", category="server"))

    async def body(attempt: Attempt) -> None:
        pending: list[Any] = []
        for step in range(attempt.start_step, STEPS):
            await attempt.recall("step", functools.partial(_note, attempt, step))
            pending.append(attempt.client.forward_backward(batch(step), "cross_entropy"))
            pending.append(attempt.client.optim_step(ADAM))
        for each in pending:
            await each

    def _note(attempt: Attempt, step: int) -> int:
        made.append((attempt.number, step))
        return step

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **START)
    (attempt,) = supervisor.runs[0].attempts[1:]
    again = [step for number, step in made if number == 2]
    assert attempt.start_step == 5
    assert again[0] == 9, "up to the failed step it was given back"


async def test_it_is_called_once_if_two_tasks_ask_at_once_and_again_if_the_first_fails(
    local: LocalTinker,
) -> None:
    del local
    calls: list[str] = []

    async def fails() -> str:
        calls.append("fails")
        await anyio.lowlevel.checkpoint()
        raise LookupError("of the loop's own")

    async def makes() -> str:
        calls.append("makes")
        await anyio.lowlevel.checkpoint()
        return "made"

    async def body(attempt: Attempt) -> None:
        found: list[str] = []

        async def ask(make: Any) -> None:
            try:
                found.append(await attempt.recall("key", make))
            except LookupError:
                found.append("failed")

        async with anyio.create_task_group() as group:
            for make in (fails, makes, makes):
                group.start_soon(ask, make)
        assert sorted(found) == ["failed", "made", "made"]
        # One that is cancelled keeps nothing either.
        with anyio.move_on_after(0.01):
            await attempt.recall("other", anyio.sleep_forever)
        assert await attempt.recall("other", lambda: 5) == 5
        assert await attempt.recall("other", fails) == 5

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **START)
    assert calls == ["fails", "makes"]


async def test_what_cannot_be_kept_or_asked_is_said_by_key_and_type(local: LocalTinker) -> None:
    del local
    attempts: list[Attempt] = []

    async def body(attempt: Attempt) -> None:
        attempts.append(attempt)
        with pytest.raises(UsageError, match=r"recall\('it'\) keeps\['x'\] is a builtins\.set"):
            await attempt.recall("it", lambda: {"x": {1}})
        with pytest.raises(UsageError, match=r"key=''\): it has to be a string"):
            await attempt.recall("", lambda: 1)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **START)
    with pytest.raises(StaleAttempt, match="ask the newest attempt"):
        await attempts[0].recall("it", lambda: 1)


@pytest.mark.parametrize("enabled", [True, False])
async def test_an_attempt_at_fault_is_given_nothing_unless_it_is_only_observed(
    local: LocalTinker, *, enabled: bool
) -> None:
    del local
    given: list[object] = []

    async def body(attempt: Attempt) -> None:
        given.append(await attempt.recall("it", lambda: attempt.number))
        if attempt.number > 1:
            return
        assert not scope_of(attempt).faulty
        declare(attempt, Kind.CORRUPTED)
        assert scope_of(attempt).faulty
        if not enabled:
            given.append(await attempt.recall("more", lambda: 7))
            return
        with pytest.raises(StaleAttempt, match="recall\\(\\) of attempt 1"):
            await attempt.recall("more", lambda: 7)
        await anyio.sleep_forever()

    async with Supervisor(policy(enabled=enabled), journal=None) as supervisor:
        await supervisor.run(body, **START)
    assert given == ([1, 2] if enabled else [1, 7]), "the first is not trusted any more"


async def test_beyond_its_limit_steps_are_made_again_and_the_run_is_exact_all_the_same(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[Rollout] = []
    local.inject(FaultRule("poison", 9, "optim_step"))
    supervisor = await run(said.append, recall_bytes=0)
    assert samples(local) == STEPS + 5
    assert local.run_state(supervisor.runs[0].segments[-1].run_id).steps == STEPS
    assert not caplog.records or "recall" not in caplog.text


async def test_a_process_that_is_killed_hands_its_rollouts_on(
    local: LocalTinker, tmp_path: Path
) -> None:
    """A real process, a real signal."""
    file = tmp_path / "said"
    command = [str(SCRIPT), "--steps", str(STEPS), "--die-at", "8", "--said", str(file)]
    codes = []
    for _ in range(2):
        with process(command) as running:
            _, errors = await anyio.to_thread.run_sync(
                functools.partial(running.communicate, timeout=60)
            )
        codes.append(running.returncode)
    assert codes == [-signal.SIGKILL, 0], errors
    said = [(step, tokens) for step, tokens in map(json.loads, file.read_text().splitlines())]
    unchanged(said, replayed_from=5, fault_at=8)
    assert samples(local) == STEPS
    assert not kept_files()


async def test_before_a_loop_goes_on_with_what_it_was_given_another_process_would_find_that_usable(
    local: LocalTinker,
) -> None:
    """Whatever happens to this one from then on, and whether or not a checkpoint was due."""
    sound: list[int] = []

    def said(rollout: Rollout) -> None:
        del rollout
        found = read_stored_run(default_path(), "rl", service=local.base_url)
        assert found is not None
        sound.append(found[1].attempts[-1].sound_step)

    await run(said, checkpoints=CheckpointPolicy(save_every=STEPS))
    assert sound == list(range(STEPS)), "all that its weights are made of"


async def test_what_a_run_keeps_is_for_its_owner_alone_and_goes_with_the_run(
    local: LocalTinker,
) -> None:
    def stops(rollout: Rollout) -> None:
        if rollout[0] == 7:
            raise LookupError

    with pytest.raises(LookupError):
        await run(stops)
    assert len(kept_files()) == 8
    assert {path.stat().st_mode & 0o777 for path in kept_files()} == {0o600}
    abandon(default_path(), "rl")
    assert not kept_files()
    assert samples(local) == 8


async def test_a_loop_that_blocks_recalls_as_well(local: LocalTinker) -> None:
    made: list[int] = []
    local.inject(FaultRule("poison", 9, "optim_step"))

    def body(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):

            def make(step: int = step) -> int:
                made.append(step)
                return step

            assert asyncio.run(attempt.recall("step", make)) == step
            attempt.client.forward_backward(batch(step), "cross_entropy").result()
            attempt.client.optim_step(ADAM).result()

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **NAMED)
    assert len(supervisor.runs[0].recoveries) == 1
    assert made == list(range(STEPS))


async def test_a_run_without_a_name_that_failed_keeps_nothing_in_memory(local: LocalTinker) -> None:
    del local

    def stops(rollout: Rollout) -> None:
        raise LookupError(rollout)

    async with Supervisor(policy()) as supervisor:
        with pytest.raises(LookupError):
            await supervisor.run(functools.partial(train, steps=STEPS, said=stops), **START)
        assert kept_in_memory(supervisor.runs[0]) == 0


async def test_a_run_that_recalls_nothing_writes_nothing_of_it(local: LocalTinker) -> None:
    async def body(attempt: Attempt) -> None:
        for step in range(STEPS):
            await attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **NAMED)
    (segment,) = supervisor.runs[0].segments
    for checkpoint in local.checkpoints(segment.run_id):
        assert "tinker_recovery.trail" not in (checkpoint.user_metadata or {})


async def test_asked_again_in_the_same_step_it_is_the_same_and_in_the_next_it_is_not(
    local: LocalTinker,
) -> None:
    async def body(attempt: Attempt) -> None:
        one = await attempt.recall("rollouts", lambda: sampled(attempt))
        two = await attempt.recall("rollouts", lambda: sampled(attempt))
        assert type(two) is types.SampleResponse
        assert one.sequences[0].tokens == two.sequences[0].tokens
        attempt.client.forward_backward(batch(0), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        three = await attempt.recall("rollouts", lambda: sampled(attempt))
        assert one.sequences[0].tokens != three.sequences[0].tokens

    async with Supervisor(policy()) as supervisor:
        await supervisor.run(body, **START)
    assert samples(local) == 2
    assert internals_of(supervisor.runs[0]).history.recall.used


async def test_a_run_that_is_cancelled_is_written_as_stopped(local: LocalTinker) -> None:
    del local

    async def body(attempt: Attempt) -> None:
        await attempt.recall("it", lambda: 1)
        cancelled.cancel()
        await anyio.sleep_forever()

    async with Supervisor(policy(), journal=default_path()) as supervisor:
        with anyio.CancelScope() as cancelled:
            await supervisor.run(body, **START)
        (run,) = supervisor.runs
        assert kept_in_memory(run) == 0
        written = read_run(default_path(), run.name)
        assert written is not None
        assert written.state == "stopped"
