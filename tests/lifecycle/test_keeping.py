"""What is kept, deleted and renewed while a run trains, at a real service."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from inspection import (
    confirmed_step,
    rejected,
    retention_is_scheduled,
    run_id_of,
    set_retention_gap_s,
)
from loops import ADAM, MODEL, SEED, batch, loop, policy, quick, train, undisturbed_state, until
from sweeps import sweep

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    CheckpointRecord,
    LeaseLost,
    RecoveryEvent,
    Supervisor,
)
from tinker_recovery.checkpoints import Deletion
from tinker_recovery.clock import Clock
from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


def _steps(local: LocalTinker, *run_ids: str) -> list[int]:
    """The steps of the checkpoints that the service has of these runs."""
    return sorted(each.steps for run_id in run_ids for each in local.checkpoints(run_id))


def _saved(events: list[RecoveryEvent]) -> list[int]:
    """The steps of the saves, in the order in which they were stored."""
    saved = [event for event in events if event.name == "checkpoint.saved"]
    return [int(str(event.fields[names.CHECKPOINT_STEP])) for event in saved]


async def _run(
    checkpoints: CheckpointPolicy, *, steps: int = STEPS, journal: Path | None = None, **more: Any
) -> tuple[Supervisor, list[RecoveryEvent]]:
    events: list[RecoveryEvent] = []
    given = quick(checkpoints=checkpoints)
    async with Supervisor(given, on_event=events.append, journal=journal, **more) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=steps), base_model=MODEL, rank=8, seed=SEED
        )
    return supervisor, events


async def test_the_last_ones_are_left_and_the_others_are_gone_when_the_supervisor_ends(
    local: LocalTinker,
) -> None:
    supervisor, events = await _run(
        CheckpointPolicy(save_at_start=False, save_every=2, keep_last=3)
    )
    (segment,) = supervisor.runs[0].segments
    assert _steps(local, segment.run_id) == [8, 10, 12]
    deleted = [event for event in events if event.name == "checkpoint.deleted"]
    assert len(deleted) == 3
    assert "no rule keeps it" in deleted[0].message


async def test_the_last_ones_are_counted_over_every_tinker_run_the_run_has_lived_in(
    local: LocalTinker,
) -> None:
    undisturbed = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=7)
    supervisor, _ = await _run(CheckpointPolicy(save_at_start=False, save_every=2, keep_last=2))
    (run,) = supervisor.runs
    first, second = run.segments
    assert _steps(local, first.run_id, second.run_id) == [
        second.start_step,  # what the newest attempt began from is never deleted
        10,
        12,
    ]
    assert local.run_state(second.run_id) == undisturbed


async def test_what_a_rule_keeps_stays_and_so_does_what_the_user_saved_or_published(
    local: LocalTinker,
) -> None:
    async def training(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            attempt.report(loss=abs(step - 3.0))
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
            await attempt.client.drain()
            if step == 1:
                stored = {each.steps: each.path for each in local.checkpoints(run_id_of(attempt))}
                local.publish(stored[2])
            if step == 6:
                await attempt.client.save_state("mine")

    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False,
            save_every=1,
            keep_last=1,
            keep_every=5,
            keep_if=lambda record: record.step == 8,
        )
    )
    async with Supervisor(given, journal=None) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    found = _steps(local, supervisor.runs[0].segments[0].run_id)
    # 2 is published, 4 the best, 5 and 10 multiples, 7 the user's own, 8 by the predicate, 12 last.
    assert found == [2, 4, 5, 7, 8, 10, 12]


async def test_a_pinned_checkpoint_stays(local: LocalTinker, tmp_path: Path) -> None:
    file = tmp_path / "journal"

    async def training(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        await attempt.client.drain()
        # The newest of all, so no round of the RetentionLoop takes it before it is pinned.
        (*_, newest) = local.checkpoints(run_id_of(attempt))
        with Journal(file, service=local.base_url) as journal:
            journal.pin(newest.path)
        await loop(attempt.client, 3, STEPS, 0)

    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=3, keep_last=1, save_best=False
        )
    )
    async with Supervisor(given, journal=file) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    found = _steps(local, supervisor.runs[0].segments[0].run_id)
    assert found == [3, 12]


async def test_a_pin_set_while_a_round_is_under_way_still_counts(
    local: LocalTinker, tmp_path: Path
) -> None:
    """Set by another process after the round has looked, and before it asks for the deletion."""
    file = tmp_path / "journal"
    pinned: list[str] = []

    def pin_meanwhile(record: CheckpointRecord) -> bool:
        # A round asks this once it has read the pins. Its deletion is the very next thing then.
        with Journal(file, service=local.base_url) as journal:
            if "deleting" in journal.notes().deletions.get(record.path, "") and not pinned:
                pinned.append(record.path)
                journal.pin(record.path)
        return False

    kept = CheckpointPolicy(
        save_at_start=False, save_every=4, keep_last=1, save_best=False, keep_if=pin_meanwhile
    )
    await _run(kept, journal=file)
    (run_id,) = local.runs()
    assert pinned
    assert pinned[0] in [each.path for each in local.checkpoints(run_id)]


async def test_a_deletion_that_fails_disturbs_nothing_and_is_told_once_and_tried_again(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("status", request="delete", status=500, times=2))
    wall = [time.time()]
    clock = Clock(wall=lambda: wall[0])
    events: list[RecoveryEvent] = []
    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=4, keep_last=1, save_best=False
        ),
        poll_interval_s=0.05,
    )

    def failures() -> list[str]:
        return [e.message for e in events if e.name == "checkpoint.delete_failed"]

    async def training(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS)
        await until(lambda: len(failures()) == 2)
        wall[0] += 31.0  # the retry's delay
        await until(lambda: len(local.checkpoints(run_id_of(attempt))) == 1)

    async with Supervisor(given, on_event=events.append, journal=None, clock=clock) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    assert "500" in failures()[0]
    assert len(failures()) == 2


async def test_an_answer_404_is_success(local: LocalTinker) -> None:
    """The request is carried out and its answer lost; asked again, the checkpoint is gone."""
    local.inject(FaultRule("drop", request="delete", times=1))
    supervisor, events = await _run(
        CheckpointPolicy(save_at_start=False, save_every=6, keep_last=1, save_best=False)
    )
    found = _steps(local, supervisor.runs[0].segments[0].run_id)
    assert found == [12]
    assert not rejected(supervisor.runs[0])
    assert [event.name for event in events if "delete" in event.name] in (
        ["checkpoint.delete_failed"],
        ["checkpoint.deleted"],
    )


@pytest.mark.parametrize("request_kind", ["run_checkpoints", "weights_info"])
async def test_where_the_service_does_not_answer_nothing_is_deleted_and_training_goes_on(
    local: LocalTinker, request_kind: Any
) -> None:
    local.inject(FaultRule("status", request=request_kind, status=403, for_s=60.0))
    supervisor, events = await _run(
        CheckpointPolicy(save_at_start=False, save_every=3, keep_last=1)
    )
    assert _steps(local, supervisor.runs[0].segments[0].run_id) == [3, 6, 9, 12]
    assert "checkpoint.retention_failed" in [event.name for event in events]


@pytest.mark.parametrize(
    ("status", "left"),
    [(405, [12]), (501, [12]), (404, [3, 6, 9, 12]), (422, [3, 6, 9, 12])],
    ids=["no such call", "not implemented", "not this one", "not this one's"],
)
async def test_what_the_service_does_not_say_of_a_checkpoint_alone_is_no_ground_for_deleting(
    local: LocalTinker, status: int, left: list[int]
) -> None:
    local.inject(FaultRule("status", request="weights_info", status=status, for_s=60.0))
    supervisor, events = await _run(
        CheckpointPolicy(save_at_start=False, save_every=3, keep_last=1, save_best=False)
    )
    assert _steps(local, supervisor.runs[0].segments[0].run_id) == left
    assert "checkpoint.retention_failed" not in [event.name for event in events]


async def test_a_refusal_of_who_asks_is_not_remembered_of_the_checkpoint(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_retention_gap_s(monkeypatch, 0.05)
    local.inject(FaultRule("status", request="weights_info", status=403, times=1))
    told: list[str] = []

    async def until_refused(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
            if step == STEPS - 2:
                await until(lambda: "checkpoint.retention_failed" in told)

    keeping = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=4, keep_last=1, save_best=False
        )
    )
    async with Supervisor(keeping, on_event=lambda event: told.append(event.name)) as supervisor:
        await supervisor.run(until_refused, base_model=MODEL, rank=8, seed=SEED)
    assert _steps(local, supervisor.runs[0].segments[0].run_id) == [12]


async def test_what_a_fault_found_by_polling_leaves_trusted_is_not_deleted_for_later_saves(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The poll after step 4 calls the run sound, and the next, two saves later, corrupted."""
    set_retention_gap_s(monkeypatch, 0.01)
    expected = await undisturbed_state(local, steps=STEPS)
    told: list[str] = []
    polls = anyio.Event()
    polls.set()

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        task = asyncio.current_task()
        if task and "/monitor" in task.get_name():
            await polls.wait()

    async def training(attempt: Attempt) -> None:
        nonlocal polls
        if attempt.number > 1:
            await train(attempt, steps=STEPS)
            return
        await train(attempt, steps=4)
        await attempt.client.drain()
        polled = local.stats.by_route.get("training_run", 0)
        await until(lambda: local.stats.by_route.get("training_run", 0) >= polled + 3)
        polls = anyio.Event()
        for steps in (8, STEPS):
            await loop(attempt.client, steps - 4, steps, 0)
            await attempt.client.drain()
            await anyio.sleep(0.2)
        local.corrupt([str(attempt.client.model_id)])
        polls.set()
        await anyio.sleep_forever()

    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=4, keep_last=1, save_best=False
        ),
        poll_interval_s=0.05,
        backoff_s=0.0,
        max_backoff_s=0.0,
    )
    async with Supervisor(
        given, on_event=lambda event: told.append(event.name), clock=Clock(sleep=sleep)
    ) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 4]
    assert "checkpoint.deleted" in told
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("depth", sweep([4, 3], 1))
async def test_saves_behind_a_request_whose_answer_is_late_have_no_sound_one_deleted(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """The pass of step 12 fails; until its answer is here, the saves behind it are stored."""
    set_retention_gap_s(monkeypatch, 0.01)
    expected = await undisturbed_state(local, steps=20)
    events: list[RecoveryEvent] = []
    polled = FaultRule("slow", 12, "retrieve_future", polled="forward_backward", delay_s=4.0)
    local.inject(FaultRule("fail", 12, "forward_backward"))
    local.inject(polled)
    saved: list[int] = []
    left: list[int] = []

    def look(*_: object) -> None:
        saved.extend(_saved(events))
        left.extend(_steps(local, *local.runs()))

    async def training(attempt: Attempt) -> None:
        pending: list[Any] = []
        for step in range(attempt.start_step, 20):
            pending.append(attempt.client.forward_backward(batch(step), "cross_entropy"))
            # The save of this step was sent ahead of it; the next is due only once it is stored.
            await until(lambda: attempt.number > 1 or step in _saved(events))  # noqa: B023 - awaited here
            pending.append(attempt.client.optim_step(ADAM))
            while len(pending) > 2 * depth:
                await pending.pop(0)

    given = quick(
        checkpoints=CheckpointPolicy(save_every=1, keep_last=3, save_best=False),
        on_recovery=look,
        poll_interval_s=0.05,
    )
    async with Supervisor(given, on_event=events.append) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
    (run,) = supervisor.runs
    sound = [step for step in saved if step <= 12]
    assert max(saved) > 12
    assert [attempt.start_step for attempt in run.attempts] == [0, sound[-1]]
    assert set(sound[-3:]) <= set(left)
    assert [step for step in saved if step > 12] == [step for step in left if step > 12]
    assert "checkpoint.deleted" in [event.name for event in events]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_with_no_checkpoint_that_has_the_metric_none_is_deleted_and_that_is_said_once(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor, _ = await _run(
        CheckpointPolicy(
            save_at_start=False, save_every=2, keep_last=0, keep_best=3, best_metric="los"
        )
    )
    assert _steps(local, supervisor.runs[0].segments[0].run_id) == [2, 4, 6, 8, 10, 12]
    assert caplog.text.count("of the metric 'los', so none is deleted") == 1


async def test_a_predicate_that_raises_deletes_nothing(local: LocalTinker) -> None:
    def broken(record: object) -> bool:
        raise ZeroDivisionError(record)

    supervisor, events = await _run(
        CheckpointPolicy(save_at_start=False, save_every=3, keep_last=1, keep_if=broken)
    )
    assert _steps(local, supervisor.runs[0].segments[0].run_id) == [3, 6, 9, 12]
    assert any("ZeroDivisionError" in str(event.fields) for event in events)


@pytest.mark.parametrize("ours_is_ahead_s", [0.0, 3600.0, -3600.0])
async def test_saves_live_as_long_as_the_policy_says_and_the_recovery_point_is_renewed(
    serving: Callable[..., Any], ours_is_ahead_s: float
) -> None:
    wall = [time.time()]
    clock = Clock(wall=lambda: wall[0] + ours_is_ahead_s)
    events: list[RecoveryEvent] = []
    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=6, ttl_s=7200, save_at_end=False
        ),
        poll_interval_s=0.02,
    )

    async def training(attempt: Attempt) -> None:
        await train(attempt, steps=STEPS)
        # The newest is saved once the loop is seen to be idle.
        await until(lambda: len(local.checkpoints(run_id_of(attempt))) == 2)
        ends = {each.steps: each.expires for each in local.checkpoints(run_id_of(attempt))}
        assert all(end and 7100 < end - wall[0] <= 7200 for end in ends.values())
        # An hour and a bit later the newest has less than half of its life left; the other may go.
        await until(lambda: retention_is_scheduled(supervisor))
        # Before a poll has called the run sound behind it, the one before it is needed as well.
        await until(lambda: confirmed_step(attempt) == STEPS)
        wall[0] += 3700.0
        await until(lambda: any(event.name == "checkpoint.renewed" for event in events))
        later = {each.steps: each.expires for each in local.checkpoints(run_id_of(attempt))}
        assert later[6] == ends[6]
        assert (later[12] or 0) > (ends[12] or 0)
        assert [event.name for event in events].count("checkpoint.renewed") == 1

    async with (
        serving(wall=lambda: wall[0]) as local,
        Supervisor(given, on_event=events.append, journal=None, clock=clock) as supervisor,
    ):
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)


async def test_a_keeper_that_crashes_is_restarted_and_holds_its_round(
    local: LocalTinker,
) -> None:
    crashes: list[bool] = []

    async def crash_once(seconds: float) -> None:
        task = asyncio.current_task()
        if not crashes and task is not None and "/retention" in task.get_name():
            crashes.append(True)
            raise OSError("the RetentionLoop's own bug")
        await anyio.sleep(min(seconds, 0.05))

    supervisor, _ = await _run(
        CheckpointPolicy(save_at_start=False, save_every=2, keep_last=2, save_best=False),
        clock=Clock(sleep=crash_once),
    )
    assert crashes
    found = _steps(local, supervisor.runs[0].segments[0].run_id)
    assert found == [10, 12]


def _taken(file: Path) -> None:
    """As another process that saw no heartbeat for a whole lease takes a run."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE leases SET token = token + 1, holder = 'another', pid = 1")


@pytest.mark.parametrize("state", [None, "intended", "deleting"])
async def test_who_has_lost_the_run_writes_no_deletion_and_asks_for_none(
    local: LocalTinker, tmp_path: Path, state: str | None
) -> None:
    """With the journal's lease alone: there is no claim that could be asked.

    It is lost with the deletion in each state: not written yet, intended, and next to be asked for.
    """
    file = tmp_path / "journal"
    taken: list[str] = []

    def take_meanwhile(record: CheckpointRecord) -> bool:
        if record.step == 4 and not taken:
            with Journal(file, service=local.base_url) as journal:
                written = journal.notes().deletions.get(record.path)
            if (None if written is None else Deletion.from_line(written).state) == state:
                _taken(file)
                taken.append(record.path)
        return False

    kept = CheckpointPolicy(
        save_at_start=False, save_every=4, keep_last=1, save_best=False, keep_if=take_meanwhile
    )
    events: list[RecoveryEvent] = []
    with contextlib.suppress(LeaseLost):  # the run may have ended before it is noticed
        async with Supervisor(
            policy(checkpoints=kept), journal=file, lease="journal", on_event=events.append
        ) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=STEPS), name="held", base_model=MODEL, seed=SEED
            )
    (run_id,) = local.runs()
    assert taken
    assert 4 in _steps(local, run_id)
    assert local.stats.by_route.get("delete", 0) == 0
    with Journal(file, service=local.base_url) as journal:
        written = map(Deletion.from_line, journal.notes().deletions.values())
        assert {each.path: each.state for each in written}.get(taken[0]) == state


async def test_of_a_run_that_somebody_trains_nothing_is_deleted_by_hand_and_of_a_dead_one_it_is(
    tmp_path: Path,
) -> None:
    file = tmp_path / "journal"
    with Journal(file, service="http://s") as journal:
        async with Recorder(journal, service="http://s", heartbeat_s=10.0) as recorder:
            opened = await recorder.open_run(
                RunRequest(
                    service="http://s",
                    name="sft",
                    named=True,
                    lineage="line",
                    origin={},
                    policy={},
                    start_step=0,
                )
            )
            assert isinstance(opened, RunRecord)
            with pytest.raises(LeaseLost, match=r"'line' is trained by process"):
                journal.write_deletion("tinker://r/weights/1", "a line", "line")
            journal.write_deletion("tinker://r/weights/1", "a line", "line", opened.lease)
            journal.write_deletion("tinker://r/weights/2", "a line", "another")
            with closing(sqlite3.connect(file)) as database, database:
                database.execute("UPDATE leases SET born = '1'")
            journal.write_deletion("tinker://r/weights/3", "a line", "line")


async def test_what_another_run_of_the_journal_began_from_stays_until_that_has_finished(
    local: LocalTinker, tmp_path: Path
) -> None:
    """It is all that the other can go back to before it has saved."""
    begun, go, saved = anyio.Event(), anyio.Event(), anyio.Event()
    roots: list[str] = []

    async def first(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        await until(lambda: bool(local.checkpoints(run_id_of(attempt))))
        roots.append(local.checkpoints(run_id_of(attempt))[0].path)
        saved.set()
        await begun.wait()
        await loop(attempt.client, 3, STEPS, 0)

    async def second(attempt: Attempt) -> None:
        begun.set()
        await go.wait()
        await loop(attempt.client, attempt.start_step, 8, 0)

    async def branch() -> None:
        given = quick(checkpoints=CheckpointPolicy(save_at_start=False, save_every=100))
        async with Supervisor(given, journal=tmp_path / "journal") as supervisor:
            await saved.wait()
            await supervisor.run(second, name="branch", from_checkpoint=roots[0])
            assert len(supervisor.runs[0].recoveries) == 1

    keeping = CheckpointPolicy(save_at_start=False, save_every=2, keep_last=1, save_best=False)
    async with anyio.create_task_group() as group:
        group.start_soon(branch)
        async with Supervisor(
            quick(checkpoints=keeping), journal=tmp_path / "journal"
        ) as supervisor:
            await supervisor.run(first, name="trunk", base_model=MODEL, rank=8, seed=SEED)
        trunk = supervisor.runs[0].segments[0].run_id
        assert _steps(local, trunk) == [2, 12]
        (other,) = set(local.runs()) - {trunk}
        local.inject(FaultRule("poison", request="optim_step", run=other))
        go.set()
    with Journal(tmp_path / "journal", service=local.base_url) as journal:
        assert journal.relied_on(roots, but="") == {}
