"""A run whose process died goes on where it stood: same code, same command, no flags.

A process is stood in for by a Supervisor of its own, and its death by what the journal would say
then; real processes and real kills are in tests/chaos/test_kill.py.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tinker
from inspection import internals_of, lose, set_beat_s, set_quiet_s, training_sessions
from loops import ADAM, batch, policy, process, train, undisturbed_state, until
from named_runs import NAMED, Killed, left_at, trained_to
from sweeps import sweep

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    LeaseLost,
    RunFinished,
    RunHeld,
    Supervisor,
    UsageError,
)
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.testing import FaultRule, LocalTinker

DEEP = Path(__file__).parents[1] / "deep_pipeline.py"
STEPS = 22


def _forget_the_end() -> None:
    """Leave the journal as a killed process would have: it never said that it ended."""
    with closing(sqlite3.connect(default_path())) as database, database:
        database.execute("UPDATE runs SET state = 'training', detail = ''")
        database.execute("UPDATE attempts SET ended = NULL, outcome = NULL")
        database.execute("UPDATE leases SET holder = 'dead', pid = 4194305")


async def test_the_same_command_goes_on_from_the_newest_checkpoint_to_the_same_weights(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await left_at(12, by=Killed)
    _forget_the_end()
    supervisor = await trained_to(STEPS)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [10]
    assert [attempt.number for attempt in run.attempts] == [2]
    assert [recovery.fault.kind for recovery in run.recoveries] == ["process_lost"]
    assert local.run_state(run.segments[-1].run_id) == expected
    written = read_run(default_path(), "sft-42")
    assert written is not None
    assert written.state == "finished"
    assert [each.outcome for each in written.attempts] == ["process_lost", "finished"]
    assert [each.lineage for each in supervisor.runs] == [written.lineage]


async def test_what_the_loop_keeps_with_its_checkpoints_is_there_again(local: LocalTinker) -> None:
    del local

    async def dying(attempt: Attempt) -> None:
        for step in range(12):
            attempt.report(loss=1.0 / (step + 1))
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            attempt.loop_state = {"next": step + 1}
            if step % 3 == 0:
                attempt.end_epoch()
        raise Killed

    with pytest.raises(Killed):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(dying, **NAMED)
    seen: list[object] = []
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(**NAMED):
            async with attempt:
                assert attempt.checkpoint is not None
                seen += [attempt.start_step, attempt.loop_state, attempt.epoch]
                assert attempt.checkpoint.metrics == {"loss": 0.1}
    assert seen == [10, {"next": 10}, 4]


async def test_a_run_that_had_saved_nothing_starts_over_with_the_seed_that_was_drawn(
    local: LocalTinker,
) -> None:
    first = await left_at(3, seed=None, by=Killed)
    _forget_the_end()
    second = await trained_to(STEPS, seed=None)
    before, after = (internals_of(each.runs[0]).origin for each in (first, second))
    assert before == after
    assert [attempt.start_step for attempt in second.runs[0].attempts] == [0]
    assert local.run_state(second.runs[0].segments[-1].run_id).steps == STEPS


async def test_a_run_that_came_to_its_end_says_so_and_how_to_start_anew(
    local: LocalTinker,
) -> None:
    await trained_to(STEPS)
    with pytest.raises(RunFinished, match=r"at step 22.*choose another name.*abandon") as caught:
        await trained_to(STEPS)
    assert caught.value.checkpoint is not None
    assert "weights/step-00000022" in caught.value.checkpoint
    assert len(training_sessions(local)) == 1, "nothing was opened for it"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"base_model": "other"}, r"base_model='other' .* base_model='Qwen/Qwen3-8B'"),
        ({"rank": 16}, "rank=16 is not how run 'sft-42' was begun, which is rank=8"),
        ({"seed": 8}, "seed=8 .* seed=7"),
        ({"start_step": 4}, "start_step=4 .* start_step=0"),
    ],
)
async def test_other_arguments_than_it_was_begun_with_are_refused_with_both_values(
    local: LocalTinker, given: dict[str, Any], said: str
) -> None:
    await left_at(6, by=Killed)
    sessions = len(training_sessions(local))
    with pytest.raises(UsageError, match=said):
        await trained_to(STEPS, **given)
    assert len(training_sessions(local)) == sessions
    await trained_to(STEPS)  # and the run is as it was


async def test_a_start_that_failed_may_be_corrected(local: LocalTinker) -> None:
    local.inject(FaultRule("fail", request="create_model", category="user", message="no model"))
    with pytest.raises(tinker.RequestFailedError, match="no model"):
        await trained_to(STEPS, base_model="typo")
    await trained_to(STEPS)


async def test_a_run_without_a_name_is_not_gone_on_with(local: LocalTinker) -> None:
    await left_at(12, name=None, by=Killed)
    _forget_the_end()
    supervisor = await trained_to(STEPS, name=None)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0]
    assert len(local.runs()) == 2


async def test_a_recovery_cut_off_before_the_hand_over_is_taken_up_again(
    local: LocalTinker,
) -> None:
    """The process dies between the new client and the hand-over."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=13)
    left = anyio.Event()

    async def stuck(*_: object) -> None:
        left.set()
        await anyio.sleep_forever()

    async def run() -> None:
        async with Supervisor(policy(on_recovery=stuck)) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)

    running = asyncio.create_task(run())
    await left.wait()
    journal = default_path()
    await until(lambda: _phase(journal) == "created")
    with _as_it_lies(journal):
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    supervisor = await trained_to(STEPS)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [10]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected
    written = read_run(journal, "sft-42")
    assert written is not None
    assert [each.outcome for each in written.incidents] == ["cut_off", "recovered"]


def _phase(journal: Path) -> str:
    run = read_run(journal, "sft-42")
    return run.incidents[-1].phase if run is not None and run.incidents else ""


@contextmanager
def _as_it_lies(journal: Path) -> Iterator[None]:
    """Whatever is written inside is as if it had never been."""
    with closing(sqlite3.connect(":memory:")) as kept:
        with closing(sqlite3.connect(journal)) as database:
            database.backup(kept)
        yield
        with closing(sqlite3.connect(journal)) as database:
            kept.backup(database)
            database.execute("UPDATE leases SET pid = 4194305")
            database.commit()


async def test_what_a_fault_casts_doubt_on_is_not_gone_back_to_by_the_next_process(
    local: LocalTinker,
) -> None:
    """The loss of step 14 is reported late, when the save of step 15 is stored already."""
    del local

    async def killed_later(attempt: Attempt) -> None:
        await train(attempt, steps=16)
        lose(attempt, 14, float("nan"))
        await anyio.sleep_forever()

    guarded = policy(guard_loss=True, max_attempts=1, backoff_s=3600, max_backoff_s=3600)
    async with Supervisor(guarded) as supervisor:
        with anyio.move_on_after(10) as scope:

            async def train_once(attempt: Attempt) -> None:
                if attempt.number > 1:
                    scope.cancel()
                    await anyio.sleep_forever()
                await killed_later(attempt)

            await supervisor.run(train_once, **NAMED)
    with closing(sqlite3.connect(default_path())) as database, database:
        # As if it had been killed right behind the fault, before anything came of it.
        database.execute("DELETE FROM attempts WHERE number > 1")
        database.execute("UPDATE incidents SET ended = NULL, outcome = NULL")
    supervisor = await trained_to(STEPS)
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [10]


async def test_a_second_process_waits_until_the_first_is_done_and_says_so(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    del local
    held, go = anyio.Event(), anyio.Event()

    async def slowly(attempt: Attempt) -> None:
        held.set()
        await go.wait()
        await train(attempt, steps=5)

    async def first() -> None:
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(slowly, **NAMED)

    running = asyncio.create_task(first())
    await held.wait()
    with pytest.raises(RunHeld, match=r"being trained by process \d+ on") as caught:
        await trained_to(STEPS, on_lease="refuse")
    assert caught.value.pid > 0
    assert caught.value.expires > caught.value.since
    with caplog.at_level(logging.WARNING):
        waiting = asyncio.create_task(trained_to(STEPS))
        await until(lambda: "this process waits until that is over" in caplog.text)
    go.set()
    await running
    with pytest.raises(RunFinished):
        await waiting


async def test_losing_the_lease_ends_the_attempt_with_an_error_that_says_why(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    del local
    set_beat_s(monkeypatch, 0.02)
    seen: list[type[BaseException]] = []

    async def robbed(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        with closing(sqlite3.connect(default_path())) as database, database:
            database.execute("UPDATE leases SET token = token + 1, holder = 'another'")
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            seen.append(type(error))
            raise

    with pytest.raises(LeaseLost, match="'sft-42' has been taken over by another process"):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(robbed, **NAMED)
    assert seen == [asyncio.CancelledError]
    written = read_run(default_path(), "sft-42")
    assert written is not None
    assert written.state == "training", "it is the other's now, and nothing more was written"


async def test_best_goes_on_being_the_best_of_all_processes(local: LocalTinker) -> None:
    del local
    best = policy(
        checkpoints=CheckpointPolicy(save_at_start=False, strategy="best", save_at_end=False)
    )

    async def losing(attempt: Attempt, losses: dict[int, float], *, dies: bool) -> None:
        for step in range(attempt.start_step, max(losses) + 1):
            attempt.report(loss=losses[step])
            attempt.client.forward_backward(batch(step), "cross_entropy")
            attempt.client.optim_step(ADAM)
            await attempt.client.drain()  # each save is stored before the next is thought of
        if dies:
            raise Killed

    with pytest.raises(Killed):
        async with Supervisor(best) as supervisor:
            losses = {0: 5.0, 1: 2.0, 2: 3.0}
            await supervisor.run(functools.partial(losing, losses=losses, dies=True), **NAMED)
    async with Supervisor(best) as supervisor:
        losses = {2: 4.0, 3: 1.0}
        await supervisor.run(functools.partial(losing, losses=losses, dies=False), **NAMED)
    written = read_run(default_path(), "sft-42")
    assert written is not None
    assert [saved.step for saved in written.checkpoints] == [1, 2, 4]


async def test_a_run_whose_journal_is_lost_is_found_again_by_its_name_at_the_service(
    local: LocalTinker,
) -> None:
    """Another machine, a container without a disk, a damaged file that was moved away."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=8)
    first = await left_at(12, by=Killed)
    for each in default_path().parent.iterdir():
        each.unlink()
    with pytest.raises(UsageError, match="rank=16 is not how run 'sft-42' was begun"):
        await trained_to(STEPS, rank=16)
    supervisor = await trained_to(STEPS)
    (run,) = supervisor.runs
    # Everything before the save of step 10 had been answered when it was submitted.
    assert [attempt.start_step for attempt in run.attempts] == [10]
    assert run.lineage == first.runs[0].lineage
    assert [each.start_step for each in run.segments] == [0, 5, 10]
    assert local.run_state(run.segments[-1].run_id) == expected
    # A name nobody has used begins afresh, and so does one that is not to be remembered.
    other = await trained_to(STEPS, name="another")
    assert [attempt.start_step for attempt in other.runs[0].attempts] == [0]
    async with Supervisor(policy(), journal=None) as forgetful:
        await forgetful.run(functools.partial(train, steps=3), **NAMED)
    assert [attempt.start_step for attempt in forgetful.runs[0].attempts] == [0]


async def test_a_run_that_only_the_service_knows_is_left_alone_while_another_trains_it(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two machines: no lease can tell, so what the service hears does."""
    del local
    set_quiet_s(monkeypatch, 1.0)  # more than a step takes under load, less than what is left
    under_way, begun = anyio.Event(), []

    async def slowly(attempt: Attempt) -> None:
        for step in range(120):
            attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await anyio.sleep(0.02)
            if step == 6:
                under_way.set()
        begun.append("the first is done")

    async def there() -> None:
        async with Supervisor(policy(), journal=tmp_path / "there.sqlite3") as supervisor:
            await supervisor.run(slowly, **NAMED)

    async def here(attempt: Attempt) -> None:
        begun.append(f"here from {attempt.start_step}")

    running = asyncio.create_task(there())
    await under_way.wait()
    with pytest.raises(RunFinished):
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(here, **NAMED)
    await running
    assert begun == ["the first is done"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("depth", "kills"), sweep([(4, 1), (3, 2)], 1))
async def test_killed_while_the_answer_of_a_failed_request_is_late_it_restores_no_save_behind_it(
    local: LocalTinker, depth: int, kills: int
) -> None:
    """The pass of step 12 fails, alone; what is behind it is executed, and saved, before its answer
    is here: these saves have the weights of one batch less than their step number says.
    """
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("fail", 12, "forward_backward"))
    late = FaultRule("slow", 12, "retrieve_future", polled="forward_backward", delay_s=60.0)
    local.inject(late)
    command = [str(DEEP), "--steps", str(STEPS), "--depth", str(depth), "--die-at", str(12 + depth)]
    with process(command) as first:
        _, errors = await anyio.to_thread.run_sync(functools.partial(first.communicate, timeout=60))
        assert first.returncode == -signal.SIGKILL, errors
    local.release()
    journal = read_run(default_path(), "deep")
    assert journal is not None
    assert len(local.checkpoints(journal.attempts[0].run_id)) == 1 + 12 + depth
    # A second kill, with nothing saved in between: what is known of the first attempt still holds.
    for given in [[*command, "--die-at-once"]] * (kills - 1) + [command]:
        with process(given) as again:
            _, errors = await anyio.to_thread.run_sync(
                functools.partial(again.communicate, timeout=60)
            )
            assert again.returncode == (0 if given is command else -signal.SIGKILL), errors
    written = read_run(default_path(), "deep")
    assert written is not None
    start = written.attempts[-1].start_step
    assert local.run_state(written.attempts[-1].run_id) == expected, f"restored step {start}"
    assert 12 - depth <= start <= 12
    assert len(written.attempts) == kills + 1
