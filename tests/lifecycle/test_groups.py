"""Runs that belong together: a fault of one takes all of them back to one step."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from inspection import (
    confirmed_step,
    declare,
    open_claims,
    run_id_of,
    set_retention_gap_s,
    settle_retention,
)
from loops import ADAM, MODEL, batch, loop, quick, undisturbed_state, until
from named_runs import Died, Killed
from tinker import RequestFailedError

from tinker_recovery import (
    CheckpointPolicy,
    GroupAttempt,
    RecoveryEvent,
    RecoveryExhausted,
    Run,
    RunFinished,
    StartOptions,
    Supervisor,
    UsageError,
)
from tinker_recovery.faults import Kind
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker, RunState

STEPS = 12
STUDENT: StartOptions = {"name": "student", "base_model": MODEL, "rank": 8, "seed": 7}
TEACHER: StartOptions = {"name": "teacher", "base_model": MODEL, "rank": 8, "seed": 8}

Before = Callable[[int, GroupAttempt], Any]


async def train_both(
    attempts: GroupAttempt, before: Before | None = None, *, steps: int = STEPS
) -> None:
    """One step of each in turn, on batches of its own."""
    for step in range(attempts.start_step, steps):
        if before is not None and inspect.isawaitable(waiting := before(step, attempts)):
            await waiting
        for attempt in attempts:
            assert attempt.client.step == step
            await loop(attempt.client, step, step + 1, 0)


async def together(before: Before | None = None, **changes: Any) -> Supervisor:
    """Train a student and a teacher to the end."""
    supervisor = Supervisor(quick(**changes))
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts, before)
    return supervisor


_EXPECTED: list[RunState] = []


async def undisturbed(local: LocalTinker) -> list[RunState]:
    """What both end with if nothing goes wrong, each on its own."""
    if not _EXPECTED:
        async with Supervisor(quick()) as supervisor:
            for start in (STUDENT, TEACHER):
                alone: StartOptions = {**start, "name": f"{start['name']}-alone"}
                async for attempt in supervisor.attempts(**alone):
                    async with attempt:
                        await loop(attempt.client, 0, STEPS, 0)
        _EXPECTED.extend(ends(local, supervisor))
        assert _EXPECTED[0] == await undisturbed_state(local, steps=STEPS)
    return _EXPECTED


def ends(local: LocalTinker, supervisor: Supervisor) -> list[RunState]:
    """What the runs end with, at the service."""
    return [local.run_state(run.segments[-1].run_id) for run in supervisor.runs]


def starts(run: Run) -> list[int]:
    """The steps at which the attempts of a run began."""
    return [attempt.start_step for attempt in run.attempts]


def inject_at(local: LocalTinker, at: int, **rules: FaultRule) -> Before:
    """Inject faults into runs of the group right before a step, once."""
    left = dict(rules)

    def before(step: int, attempts: GroupAttempt) -> None:
        if step == at:
            for name in rules:
                if rule := left.pop(name, None):
                    local.inject(replace(rule, run=run_id_of(attempts[name])))

    return before


POISON = FaultRule("poison")
LOUD_AND_QUIET: list[tuple[dict[str, FaultRule], dict[str, Any]]] = [
    ({"student": POISON}, {}),
    ({"teacher": POISON}, {}),
    ({"student": POISON, "teacher": POISON}, {}),
    ({"student": FaultRule("poison", quiet=True)}, {"poll_interval_s": 0.05}),
    ({"teacher": FaultRule("poison", quiet=True)}, {"poll_interval_s": 0.05}),
    ({"student": POISON, "teacher": FaultRule("poison", quiet=True)}, {}),
    ({"teacher": FaultRule("hang")}, {"stall_after_s": 2.5, "poll_interval_s": 0.1}),
]


@pytest.mark.parametrize(
    ("rules", "changes"),
    LOUD_AND_QUIET,
    ids=[
        "-".join(f"{n}_{r.action}{'_quietly' * r.quiet}" for n, r in rules.items())
        for rules, _ in LOUD_AND_QUIET
    ],
)
async def test_a_fault_of_one_takes_both_back_and_both_end_as_if_nothing_had_happened(
    local: LocalTinker, rules: dict[str, FaultRule], changes: dict[str, Any]
) -> None:
    expected = await undisturbed(local)
    inject = inject_at(local, 7, **rules)
    only_a_poll_tells = all(rule.quiet for rule in rules.values())

    async def before(step: int, attempts: GroupAttempt) -> None:
        if step == 7 and attempts[0].number == 1 and only_a_poll_tells:
            # It may have begun right after the poll before it: what was saved since is not trusted.
            await until(lambda: all(confirmed_step(attempts[name]) == 5 for name in rules))
        inject(step, attempts)

    supervisor = await together(before, **changes)
    assert ends(local, supervisor) == expected
    student, teacher = supervisor.runs
    assert (student.name, teacher.name) == ("student", "teacher")
    assert starts(student) == starts(teacher) == [0, 5]
    kinds = {run.name: [each.fault.kind for each in run.recoveries] for run in supervisor.runs}
    for name in kinds.keys() - rules.keys():
        assert kinds[name] == [Kind.GROUP_REWOUND]
    assert sum(Kind.GROUP_REWOUND in each for each in kinds.values()) <= 1
    assert all(state.steps == STEPS for state in ends(local, supervisor))


async def test_two_loops_on_one_step_count_end_with_the_same_number_of_steps_before_any_save(
    local: LocalTinker,
) -> None:
    expected = await undisturbed(local)
    supervisor = await together(inject_at(local, 3, teacher=POISON))
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0, 0], [0, 0]]


async def test_a_step_that_only_one_has_saved_is_no_step_to_go_back_to(local: LocalTinker) -> None:
    expected = await undisturbed(local)
    poison = inject_at(local, 11, student=POISON)
    saves: list[int] = []

    def before(step: int, attempts: GroupAttempt) -> None:
        if step == 7 and attempts[0].number == 1:
            run_id = run_id_of(attempts["teacher"])
            local.inject(FaultRule("fail", request="save_weights", run=run_id, times=99))
        if step == 11:
            saves.extend(each.steps for each in local.checkpoints(run_id_of(attempts["student"])))
        poison(step, attempts)

    supervisor = await together(before)
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0, 5], [0, 5]]
    assert max(saves) == 10, "which the student alone has"


@pytest.mark.parametrize("which", [0, 1])
async def test_a_checkpoint_of_one_that_does_not_load_takes_both_further_back(
    local: LocalTinker, which: int
) -> None:
    expected = await undisturbed(local)
    damaged: list[str] = []

    def before(step: int, attempts: GroupAttempt) -> None:
        if step == 11 and not damaged:
            attempt = attempts[which]
            damaged.append(local.checkpoints(run_id_of(attempt))[-1].path)
            local.damage(damaged[0], "truncated")
            local.poison(run=run_id_of(attempts[1 - which]))

    supervisor = await together(before)
    assert ends(local, supervisor) == expected
    assert "weights/step-00000010" in damaged[0]
    for run in supervisor.runs:
        assert starts(run)[0] == 0
        assert starts(run)[-1] == 5


async def test_loading_that_fails_again_and_again_for_one_takes_both_further_back(
    local: LocalTinker,
) -> None:
    expected = await undisturbed(local)
    left = [10, 10]

    def fail_loads(event: RecoveryEvent) -> None:
        chosen = event.name == names.EVENT_CHECKPOINT_SELECTED and event.run == "teacher"
        if chosen and left and event.fields[names.CHECKPOINT_STEP] == left[-1]:
            left.pop()
            local.inject(FaultRule("fail", request="load_weights"))

    supervisor = Supervisor(quick(max_concurrent_recoveries=1), on_event=fail_loads)
    poison = inject_at(local, 11, teacher=POISON)
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts, poison)
    assert ends(local, supervisor) == expected
    assert starts(supervisor.runs[1])[-1] == starts(supervisor.runs[0])[-1]


async def test_a_process_killed_between_two_saves_is_continued_at_the_newest_common_step(
    local: LocalTinker,
) -> None:
    expected = await undisturbed(local)

    def dies(step: int, attempts: GroupAttempt) -> None:
        if step == 9:
            local.inject(
                FaultRule("fail", request="save_weights", run=run_id_of(attempts[0]), times=99)
            )

    async def dying(attempts: GroupAttempt) -> None:
        await train_both(attempts, dies, steps=11)
        await attempts[1].client.drain()
        raise Killed

    with pytest.raises(Killed):
        async with Supervisor(quick()) as first:
            async for attempts in first.group([STUDENT, TEACHER]):
                async with attempts:
                    await dying(attempts)
    student, teacher = (local.checkpoints(run.segments[0].run_id) for run in first.runs)
    assert student[-1].steps == 5
    assert teacher[-1].steps >= 10
    local.release()
    supervisor = await together()
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[5], [5]]
    assert [each.fault.kind for run in supervisor.runs for each in run.recoveries] == [
        "stopped"  # by an exception of the loop, which it could write down
    ] * 2
    with pytest.raises(RunFinished):
        await together()


async def test_one_that_was_never_begun_takes_the_other_back_to_its_beginning(
    local: LocalTinker,
) -> None:
    expected = await undisturbed(local)
    with pytest.raises(Killed):
        async with Supervisor(quick()) as first:
            async for attempt in first.attempts(**STUDENT):
                async with attempt:
                    await loop(attempt.client, 0, 7, 0)
                    raise Killed
    supervisor = await together()
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0], [0]]


SCHEDULES: list[dict[str, Any]] = [
    {"save_every": 1000, "save_every_s": 0.1},
    {"strategy": "best", "best_metric": "loss"},
    {"save_every": 2},
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["seconds", "metric", "steps"])
async def test_whatever_the_schedule_both_save_the_same_steps(
    local: LocalTinker, schedule: dict[str, Any]
) -> None:
    expected = await undisturbed(local)
    poison = inject_at(local, 9, student=POISON)
    local.inject(FaultRule("slow", request="retrieve_future", polled="save_weights", delay_s=0.1))

    async def before(step: int, attempts: GroupAttempt) -> None:
        await anyio.sleep(0.03)
        attempts["teacher"].report(loss=[0.5, 0.7, 0.3][step % 3] / (step + 1))
        attempts["student"].report(loss=1.0 + step)
        poison(step, attempts)

    saves: list[tuple[str, int]] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_CHECKPOINT_SAVED:
            saves.append((event.run, int(str(event.fields[names.CHECKPOINT_STEP]))))

    checkpoints = CheckpointPolicy(save_at_start=False, keep_last=99, **schedule)
    supervisor = Supervisor(quick(checkpoints=checkpoints), on_event=note)
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts, before)
    assert ends(local, supervisor) == expected
    student, teacher = supervisor.runs
    assert starts(student) == starts(teacher)
    steps = [{step for run, step in saves if run == name} for name in ("student", "teacher")]
    assert len(steps[0]) >= 3
    # The one under way when the fault struck may have been stored by one alone.
    assert steps[0] ^ steps[1] <= {9}


async def test_an_error_of_the_loops_own_leaves_unchanged_and_ends_both(local: LocalTinker) -> None:
    del local
    with pytest.raises(Died):
        async with Supervisor(quick()) as supervisor:
            async for attempts in supervisor.group([STUDENT, TEACHER]):
                async with attempts:
                    await train_both(attempts, steps=6)
                    raise Died
    assert [run.state for run in supervisor.runs] == ["over", "over"]
    assert [run.recoveries for run in supervisor.runs] == [[], []]


async def test_an_incident_of_the_group_costs_one_attempt_of_the_budget(local: LocalTinker) -> None:
    def before(step: int, attempts: GroupAttempt) -> None:
        if step == 3:
            local.poison(run=run_id_of(attempts[seen % 2]))

    seen = 0
    with pytest.raises(RecoveryExhausted, match="after 3 recovery attempts"):
        async with Supervisor(quick(max_attempts=3)) as supervisor:
            async for attempts in supervisor.group([STUDENT, TEACHER]):
                async with attempts:
                    await train_both(attempts, before)
                seen += 1
    assert [starts(run) for run in supervisor.runs] == [[0] * 4] * 2
    assert [run.state for run in supervisor.runs] == ["over", "over"]


async def test_a_fault_behind_the_last_step_of_one_finishes_neither(local: LocalTinker) -> None:
    expected = await undisturbed(local)
    once = [1]

    supervisor = Supervisor(quick())
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts, steps=STEPS - 1)
                for attempt in attempts:
                    if attempt is attempts[1] and once and once.pop():
                        local.poison(run=run_id_of(attempt))
                    attempt.client.forward_backward(batch(STEPS - 1), "cross_entropy")
                    attempt.client.optim_step(ADAM)
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0, 10], [0, 10]]


async def test_a_fault_before_the_body_is_entered_is_recovered_from(local: LocalTinker) -> None:
    expected = await undisturbed(local)
    rounds = 0
    supervisor = Supervisor(quick(poll_interval_s=0.05))
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            if not rounds:
                declare(attempts["teacher"], Kind.CORRUPTED)
            rounds += 1
            async with attempts:
                await train_both(attempts)
    assert rounds == 2
    assert ends(local, supervisor) == expected


async def test_a_teacher_that_cannot_be_created_at_first_is_waited_for(local: LocalTinker) -> None:
    expected = await undisturbed(local)
    seen: list[str] = []

    def later(event: RecoveryEvent) -> None:
        seen.append(event.name)

    local.inject(FaultRule("status", request="create_model", status=503, times=1))
    supervisor = Supervisor(quick(), on_event=later)
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts)
    assert ends(local, supervisor) == expected


async def test_a_task_group_over_both_is_recovered_from(local: LocalTinker) -> None:
    expected = await undisturbed(local)
    poison = inject_at(local, 7, teacher=POISON)
    supervisor = Supervisor(quick())
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                for step in range(attempts.start_step, STEPS):
                    poison(step, attempts)
                    async with anyio.create_task_group() as group:
                        for attempt in attempts:
                            group.start_soon(loop, attempt.client, step, step + 1, 0)
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0, 5], [0, 5]]


async def test_cancelling_from_outside_ends_both_and_passes_through(local: LocalTinker) -> None:
    del local
    supervisor = Supervisor(quick())
    with anyio.CancelScope() as scope:
        async with supervisor:
            async for attempts in supervisor.group([STUDENT, TEACHER]):
                async with attempts:
                    await train_both(attempts, steps=6)
                    scope.cancel()
                    await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert [run.state for run in supervisor.runs] == ["over", "over"]
    await together()


REFUSED: list[tuple[list[StartOptions], dict[str, Any], str]] = [
    ([STUDENT], {}, "two runs or more"),
    ([STUDENT, STUDENT], {}, "names are unique"),
    ([STUDENT, {"base_model": MODEL}], {}, "name: either each run"),
    ([STUDENT, TEACHER], {"checkpoint_strategy": "best"}, "checkpoint_strategy='best'"),
    ([STUDENT, {"name": "teacher"}], {}, "exactly one way"),
]


async def test_its_attempts_are_found_in_the_order_given_and_by_name(local: LocalTinker) -> None:
    del local
    async with Supervisor(quick()) as supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            student, teacher = attempts
            assert len(attempts) == 2
            assert [student.client, teacher.client] == [attempts[0].client, attempts[-1].client]
            assert attempts["teacher"].client is teacher.client
            with pytest.raises(KeyError):
                attempts["nobody"]
            with pytest.raises(IndexError):
                attempts[2]
            async with attempts:
                await train_both(attempts)


@pytest.mark.parametrize(("runs", "changes", "says"), REFUSED)
async def test_what_cannot_be_aligned_is_refused_before_anything_starts(
    local: LocalTinker, runs: list[StartOptions], changes: dict[str, Any], says: str
) -> None:
    async with Supervisor(quick(**changes)) as supervisor:
        with pytest.raises(UsageError, match=says):
            supervisor.group(runs)
    assert not local.runs()


async def test_runs_that_begin_at_different_steps_are_refused(local: LocalTinker) -> None:
    async with Supervisor(quick()) as supervisor:
        with pytest.raises(UsageError, match=r"start_step: .*'teacher': 3"):
            async for _ in supervisor.group([STUDENT, {**TEACHER, "start_step": 3}]):
                pass
    assert not local.runs()


async def test_the_checkpoint_of_the_newest_common_step_is_never_deleted(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await undisturbed(local)
    set_retention_gap_s(monkeypatch, 0.01)
    poison = inject_at(local, 11, student=POISON)

    async def before(step: int, attempts: GroupAttempt) -> None:
        student, teacher = attempts
        if student.number == 1 and step == 6:
            local.inject(
                FaultRule("fail", request="save_weights", run=run_id_of(teacher), times=99)
            )
        if student.number == 1 and step == 10:
            # Enough is known to be sound to delete what is older.
            await student.client.drain()
            await until(lambda: confirmed_step(student) >= 9)
            await settle_retention(supervisor)
            left.extend(each.steps for each in local.checkpoints(run_id_of(student)))
        poison(step, attempts)

    left: list[int] = []
    checkpoints = CheckpointPolicy(save_at_start=False, save_every=1, keep_last=1)
    supervisor = Supervisor(quick(checkpoints=checkpoints, poll_interval_s=0.05))
    async with supervisor:
        async for attempts in supervisor.group([STUDENT, TEACHER]):
            async with attempts:
                await train_both(attempts, before)
    assert 5 in left
    assert not {1, 2, 3, 4, 6} & set(left), "no rule keeps these"
    assert ends(local, supervisor) == expected
    assert starts(supervisor.runs[0]) == starts(supervisor.runs[1]) == [0, 5]


@pytest.mark.parametrize(("at", "back_to"), [(3, 0), (7, 5)])
async def test_with_a_canary_and_a_save_at_the_start_both_end_as_well(
    local: LocalTinker, at: int, back_to: int
) -> None:
    expected = await undisturbed(local)
    supervisor = await together(
        inject_at(local, at, teacher=POISON),
        canary="auto",
        checkpoints=CheckpointPolicy(save_every=5),
    )
    assert ends(local, supervisor) == expected
    assert [starts(run) for run in supervisor.runs] == [[0, back_to], [0, back_to]]
    restored = [run.recoveries[0].checkpoint for run in supervisor.runs]
    assert [each.step for each in restored if each is not None] == [back_to, back_to]


async def test_with_recovery_off_a_fault_is_the_loops_own_error(local: LocalTinker) -> None:
    with pytest.raises(RequestFailedError):
        await together(inject_at(local, 7, teacher=POISON), enabled=False)


async def test_a_task_cancelled_while_the_sessions_of_its_group_are_finished_ends_every_run(
    local: LocalTinker,
) -> None:
    """``task.cancel()``, as Ctrl-C and ``stop()`` do it, goes through anyio's shields."""
    local.inject(FaultRule("slow", request="finish", times=2, delay_s=0.5))
    task = asyncio.create_task(together())
    await until(lambda: any(each.rule.action == "slow" for each in local.fired))
    task.cancel()
    with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
        await task
    assert open_claims(local) == []
    views = [read_run(default_path(), start["name"]) for start in (STUDENT, TEACHER)]
    assert [view and view.state for view in views] == ["finished"] * 2
