"""After an orderly stop the same command goes on: that is no fault, and is counted as none."""

from __future__ import annotations

import asyncio
import functools
import logging
import signal
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from loops import STARTED_WITHIN_S, most_steps, policy, process, train, undisturbed_state, until
from named_runs import NAMED, Killed, begun_at, left_at

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryEvent,
    RecoveryExhausted,
    RecoveryPolicy,
    Supervisor,
)
from tinker_recovery.journal import STATE_FOLDER, StateFolder, default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.journal.summary import read_summaries
from tinker_recovery.report import figures_of
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 22


async def _stopped_at(
    step: int,
    given: RecoveryPolicy | None = None,
    *,
    journal: Path | StateFolder = STATE_FOLDER,
    **start: Any,
) -> Supervisor:
    """A process that is stopped in an orderly way when it has done so many steps."""
    supervisor = Supervisor(given or policy(), journal=journal)

    async def stopping(attempt: Attempt) -> None:
        await train(attempt, steps=step)
        supervisor.stop()
        await anyio.sleep_forever()

    with pytest.raises(asyncio.CancelledError):
        async with supervisor:
            await supervisor.run(stopping, **{**NAMED, **start})
    return supervisor


async def _gone_on(
    given: RecoveryPolicy | None = None, *, journal: Path | StateFolder = STATE_FOLDER, **start: Any
) -> tuple[Supervisor, list[RecoveryEvent]]:
    """The same command again, to the end; with its events."""
    events: list[RecoveryEvent] = []
    async with Supervisor(given or policy(), on_event=events.append, journal=journal) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **{**NAMED, **start})
    return supervisor, events


def _detected(events: list[RecoveryEvent]) -> list[str]:
    return [
        str(each.fields[names.FAULT_KIND]) for each in events if each.name == names.EVENT_DETECTED
    ]


async def test_a_stopped_run_goes_on_where_it_was_and_counts_no_recovery(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await _stopped_at(12)
    caplog.clear()
    called: list[object] = []
    with caplog.at_level(logging.INFO, "tinker_recovery"):
        supervisor, events = await _gone_on(policy(on_recovery=lambda *given: called.append(given)))
    (run,) = supervisor.runs
    assert begun_at(supervisor) == [12]
    assert local.run_state(run.segments[-1].run_id) == expected
    assert list(run.recoveries) == []
    assert called == []
    assert not {each.name for each in events} & {
        names.EVENT_DETECTED,
        names.EVENT_STARTED,
        names.EVENT_COMPLETED,
    }
    (told,) = (each for each in events if each.name == names.EVENT_CONTINUED)
    assert told.message == "goes on from step 12"
    assert told.fields[names.CHECKPOINT_STEP] == 12
    assert "run sft-42: goes on from step 12" in caplog.text
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


async def test_the_journal_and_what_reads_it_show_no_incident_of_it(local: LocalTinker) -> None:
    del local
    await _stopped_at(12)
    await _gone_on()
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert view.incidents == ()
    assert [each.outcome for each in view.attempts] == ["stopped", "finished"]
    (summary,) = read_summaries(default_path())
    assert summary.recoveries == 0
    assert summary.run.attempts_left == policy().max_attempts
    figures = figures_of(view)
    assert (figures.incidents, figures.recoveries, figures.replayed_steps) == (0, 0, 0)


async def test_while_it_goes_on_it_is_not_shown_as_recovering(local: LocalTinker) -> None:
    await _stopped_at(12)
    local.inject(FaultRule("slow", request="load_weights", delay_s=1.0))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_gone_on())
        await until(lambda: any(each.rule.action == "slow" for each in local.fired))
        await anyio.sleep(0.1)
        view = read_run(default_path(), "sft-42")
        supervisor, _ = await task
    assert view is not None
    assert (view.state, view.incidents) == ("training", ())
    assert begun_at(supervisor) == [12]


async def test_stopped_a_second_time_before_it_trains_it_still_shows_no_incident(
    local: LocalTinker,
) -> None:
    await _stopped_at(12)
    local.inject(FaultRule("slow", request="load_weights", delay_s=1.0))
    task = asyncio.create_task(_gone_on())
    await until(lambda: any(each.rule.action == "slow" for each in local.fired))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    supervisor, events = await _gone_on()
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert view.incidents == ()
    assert begun_at(supervisor) == [12]
    assert [each.name for each in events].count(names.EVENT_CONTINUED) == 1


async def test_a_stop_whose_save_failed_is_a_recovery_because_steps_are_done_again(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await _stopped_at(12, policy(checkpoints=CheckpointPolicy(save_every=5, save_on_stop_s=None)))
    supervisor, events = await _gone_on()
    (run,) = supervisor.runs
    assert begun_at(supervisor) == [10]
    assert [each.fault.kind for each in run.recoveries] == ["stopped"]
    assert _detected(events) == ["stopped"]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_a_checkpoint_that_is_gone_by_then_makes_it_a_recovery(local: LocalTinker) -> None:
    first = await _stopped_at(12)
    newest = local.checkpoints(first.runs[0].segments[-1].run_id)[-1]
    assert newest.steps == 12
    local.damage(newest.path, "truncated")
    supervisor, events = await _gone_on()
    (run,) = supervisor.runs
    assert begun_at(supervisor) == [10]
    assert [each.replayed_steps for each in run.recoveries] == [2]
    assert _detected(events) == ["stopped"]
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert [(each.kind, each.step, each.to_step) for each in view.incidents] == [
        ("stopped", 12, 10)
    ]


async def test_a_run_the_service_has_corrupted_meanwhile_is_recovered(local: LocalTinker) -> None:
    first = await _stopped_at(12)
    local.corrupt([first.runs[0].segments[-1].run_id])
    supervisor, events = await _gone_on()
    assert len(supervisor.runs[0].recoveries) == 1
    assert _detected(events) == ["corrupted"]


async def test_a_process_killed_after_it_had_gone_on_is_a_recovery(local: LocalTinker) -> None:
    file = str(EXAMPLES / "minimal.py")
    with process([file, "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        training.send_signal(signal.SIGTERM)
        await anyio.to_thread.run_sync(lambda: training.communicate(timeout=15))
    stopped_at = most_steps(local)
    with process([file, "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= stopped_at + 3, STARTED_WITHIN_S)
    with process([file, "--steps", str(most_steps(local) + 3)]) as training:
        _, said = await anyio.to_thread.run_sync(lambda: training.communicate(timeout=30))
    assert training.returncode == 0, said
    view = read_run(default_path(), "minimal")
    assert view is not None
    assert [each.kind for each in view.incidents] == ["process_lost"]


async def test_stopped_while_it_waits_for_the_service_it_is_named_as_stopped(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    supervisor = Supervisor(policy())
    local.inject(FaultRule("fail", 7, "forward_backward"))
    local.inject(FaultRule("slow", request="load_weights", delay_s=1.0))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_train_in(supervisor))
        await until(lambda: any(each.rule.action == "slow" for each in local.fired))
        supervisor.stop()
        assert await task
    supervisor, events = await _gone_on()
    assert _detected(events) == ["stopped"]
    assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected


async def _train_in(supervisor: Supervisor) -> bool:
    with pytest.raises(asyncio.CancelledError):
        async with supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)
    return True


async def test_a_given_up_one_is_an_incident(local: LocalTinker) -> None:
    await _stopped_at(12)
    local.inject(FaultRule("status", request="load_weights", status=403, times=9))
    with pytest.raises(Exception, match="403"):
        await _gone_on()
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert [(each.kind, each.outcome) for each in view.incidents] == [("stopped", "given_up")]


async def test_one_whose_attempts_are_spent_is_an_incident(local: LocalTinker) -> None:
    await _stopped_at(12)
    local.inject(FaultRule("fail", request="load_weights", times=None))
    with pytest.raises(RecoveryExhausted):
        await _gone_on(policy(max_attempts=1))
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert [(each.kind, each.outcome) for each in view.incidents] == [("stopped", "given_up")]


async def test_a_group_goes_on_together(local: LocalTinker) -> None:
    del local
    pair: Any = [NAMED, NAMED | {"name": "teacher", "seed": 8}]
    supervisor = Supervisor(policy())
    with pytest.raises(asyncio.CancelledError):
        async with supervisor:
            async for attempts in supervisor.group(pair):
                async with attempts:
                    for attempt in attempts:
                        await train(attempt, steps=12)
                    supervisor.stop()
                    await anyio.sleep_forever()
    async with Supervisor(policy()) as second:
        async for attempts in second.group(pair):
            async with attempts:
                assert attempts.start_step == 12
    assert [len(run.recoveries) for run in second.runs] == [0, 0]


async def test_another_machine_that_trained_it_since_is_not_taken_for_the_stop(
    local: LocalTinker, tmp_path: Path
) -> None:
    """Of that one's end this journal knows nothing."""
    del local
    await _stopped_at(12, journal=tmp_path / "here")
    await left_at(17, journal=tmp_path / "there", by=Killed)
    supervisor, events = await _gone_on(journal=tmp_path / "here")
    assert begun_at(supervisor) == [15]
    assert _detected(events) == ["process_lost"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_process_that_a_signal_stopped_goes_on_by_the_same_command(
    local: LocalTinker, number: signal.Signals
) -> None:
    file = str(EXAMPLES / "minimal.py")
    with process([file, "--steps", "100000"]) as training:
        await until(lambda: most_steps(local) >= 3, STARTED_WITHIN_S)
        training.send_signal(number)
        await anyio.to_thread.run_sync(lambda: training.communicate(timeout=15))
    steps = most_steps(local)
    with process([file, "--steps", str(steps + 3)]) as training:
        _, said = await anyio.to_thread.run_sync(lambda: training.communicate(timeout=30))
    assert training.returncode == 0, said
    (summary,) = read_summaries(default_path())
    assert (summary.run.state, summary.run.step) == ("finished", steps + 3)
    assert summary.recoveries == 0
    assert "process_lost" not in said
