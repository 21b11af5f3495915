"""Services that forget or refuse the metadata of saves: all that rests on it works all the same."""

from __future__ import annotations

import functools
from pathlib import Path

import anyio.to_thread
import pytest
from loops import (
    MODEL,
    POLL_S,
    SEED,
    InstantClock,
    batch,
    loop,
    policy,
    quick,
    train,
    undisturbed_state,
)

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, Supervisor
from tinker_recovery.checkpoints.naming import SaveName
from tinker_recovery.telemetry import names
from tinker_recovery.testing import Dialect, FaultRule, LocalTinker

DIALECTS: list[Dialect] = ["forgets_metadata", "refuses_metadata"]
STEPS = 14
RESUMES = CheckpointPolicy(save_every=5, save_at_start=True)


class Died(Exception):
    """The loop ends by an error of its own, as a crash of its process would end it."""


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Each of the two."""
    found: Dialect = request.param
    return found


async def a_run(
    local: LocalTinker,
    *,
    journal: Path | None,
    name: str = "mine",
    stop_at: int | None = None,
    events: list[RecoveryEvent] | None = None,
    checkpoints: CheckpointPolicy = RESUMES,
    enabled: bool = True,
) -> int:
    """Train to the end, or until the loop dies; returns the step its last attempt began at."""
    began = -1

    async def body(attempt: Attempt) -> None:
        nonlocal began
        began = attempt.start_step

        def done(step: int) -> None:
            if step == stop_at:
                raise Died

        await loop(attempt.client, attempt.start_step, STEPS, 0, done)

    async with Supervisor(
        quick(checkpoints=checkpoints, enabled=enabled),
        service=local.service,
        journal=journal,
        on_event=None if events is None else events.append,
    ) as supervisor:
        await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED, name=name)
    return began


async def test_a_fault_is_recovered_from_the_newest_checkpoint_and_ends_exactly(
    dialect: Dialect, tmp_path: Path
) -> None:
    events: list[RecoveryEvent] = []
    async with LocalTinker(dialect=dialect) as local:
        local.poison(at_step=12)
        assert await a_run(local, journal=tmp_path / "journal.db", events=events) == 10
        assert local.run_state(local.runs()[0]) == await undisturbed_state(local, steps=STEPS)
    warned = [event for event in events if event.name == names.EVENT_METADATA_NOT_KEPT]
    assert len(warned) == 1
    assert warned[0].fields[names.REASON] == dialect.replace("s_metadata", "").replace(
        "forget", "forgotten"
    ).replace("refuse", "refused")


async def test_a_process_that_died_is_resumed_from_its_journal_with_loop_state(
    dialect: Dialect, tmp_path: Path
) -> None:
    states: list[object] = []

    async def body(attempt: Attempt) -> None:
        states.append(attempt.loop_state)
        for step in range(attempt.start_step, STEPS):
            await loop(attempt.client, step, step + 1, 0)
            attempt.loop_state = {"at": step + 1}
            if len(states) == 1 and step == 11:
                raise Died

    async with LocalTinker(dialect=dialect) as local:
        for dies in (True, False):
            async with Supervisor(
                quick(checkpoints=RESUMES), service=local.service, journal=tmp_path / "journal.db"
            ) as supervisor:
                running = supervisor.run(body, base_model=MODEL, rank=8, seed=SEED, name="mine")
                if dies:
                    with pytest.raises(Died):
                        await running
                else:
                    await running
        assert local.run_state(local.runs()[0]) == await undisturbed_state(local, steps=STEPS)
    assert states == [None, {"at": 10}]


async def test_a_run_is_found_again_at_the_service_by_its_name_without_the_journal(
    dialect: Dialect, tmp_path: Path
) -> None:
    async with LocalTinker(dialect=dialect) as local:
        with pytest.raises(Died):
            await a_run(local, journal=tmp_path / "one.db", stop_at=12)
        with pytest.raises(Died):
            await a_run(local, journal=tmp_path / "one.db", name="another", stop_at=7)
        assert await a_run(local, journal=tmp_path / "two.db") == 10
        assert local.run_state(local.runs()[0]) == await undisturbed_state(local, steps=STEPS)


async def test_without_the_journal_a_save_that_had_a_loop_state_is_not_continued_from(
    tmp_path: Path,
) -> None:
    async def body(attempt: Attempt) -> None:
        attempt.loop_state = {"at": 0}
        await loop(attempt.client, attempt.start_step, 7, 0)
        raise Died

    async with LocalTinker(dialect="forgets_metadata") as local:
        async with Supervisor(
            quick(checkpoints=CheckpointPolicy(save_every=5, save_at_start=False)),
            service=local.service,
            journal=tmp_path / "one.db",
        ) as supervisor:
            with pytest.raises(Died):
                await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED, name="mine")
        assert await a_run(local, journal=tmp_path / "two.db") == 0


async def test_retention_keeps_and_deletes_by_the_same_rules(
    dialect: Dialect, tmp_path: Path
) -> None:
    async with LocalTinker(dialect=dialect) as local:
        await a_run(
            local,
            journal=tmp_path / "journal.db",
            checkpoints=CheckpointPolicy(save_every=2, keep_last=2, save_best=False),
        )
        left = [stored.steps for stored in local.checkpoints(local.runs()[0])]
    assert left == [12, 14]


async def test_a_bare_loop_that_would_have_ended_well_ends_well_with_recovery_off(
    tmp_path: Path,
) -> None:
    async with LocalTinker(dialect="refuses_metadata") as local:
        for at_start in (True, False):
            await a_run(
                local,
                journal=tmp_path / "journal.db",
                enabled=False,
                checkpoints=CheckpointPolicy(save_every=5, save_at_start=at_start),
            )
            assert local.run_state(local.runs()[0]) == await undisturbed_state(local, steps=STEPS)


async def test_what_fails_late_of_the_client_with_the_refused_save_is_no_fault_of_the_run(
    tmp_path: Path,
) -> None:
    async with LocalTinker(dialect="refuses_metadata") as local:
        local.inject(
            FaultRule("slow", request="retrieve_future", polled="forward_backward", delay_s=0.3)
        )
        given = quick(checkpoints=RESUMES, canary=tuple(batch(3)))
        async with Supervisor(
            given, service=local.service, journal=tmp_path / "journal.db"
        ) as supervisor:
            await supervisor.run(
                functools.partial(train, steps=STEPS), base_model=MODEL, rank=8, seed=SEED
            )
        (run,) = supervisor.runs
        assert run.recoveries == []
        assert len(local.sessions()) == 2
        assert "active" not in local.sessions().values()
        assert local.run_state(run.segments[-1].run_id) == await undisturbed_state(
            local, steps=STEPS
        )


async def test_a_refusal_in_the_middle_of_the_run_is_recovered_from(tmp_path: Path) -> None:
    events: list[RecoveryEvent] = []
    async with LocalTinker(dialect="refuses_metadata") as local:
        checkpoints = CheckpointPolicy(save_every=5, save_at_start=False)
        assert (
            await a_run(
                local, journal=tmp_path / "journal.db", checkpoints=checkpoints, events=events
            )
            == 0
        )
        assert local.run_state(local.runs()[0]) == await undisturbed_state(local, steps=STEPS)
        kinds = [e.fields[names.FAULT_KIND] for e in events if e.name == names.EVENT_DETECTED]
        assert kinds == ["metadata_refused"]
        refused_before = local.stats.by_route["save_weights"]
        await a_run(local, journal=tmp_path / "journal.db", name="next", checkpoints=checkpoints)
        saved = local.stats.by_route["save_weights"] - refused_before
        assert saved == 3, "a later process knows, and sends none: steps 5, 10 and 14"


async def test_a_watched_run_is_handed_over_with_the_step_its_name_says(
    dialect: Dialect, tmp_path: Path
) -> None:
    async with LocalTinker(dialect=dialect) as local:
        with pytest.raises(Died):
            await a_run(local, journal=tmp_path / "one.db", stop_at=12)
        run_id = local.runs()[0]
        handed: list[object] = []
        got = anyio.Event()

        def on_recovery(_: object, __: object, checkpoint: object) -> None:
            handed.append(checkpoint)
            got.set()

        async with Supervisor(
            policy(poll_interval_s=POLL_S),
            service=local.service,
            journal=tmp_path / "two.db",
            clock=InstantClock(poll_interval_s=POLL_S * 2).clock,
        ) as supervisor:
            watch = supervisor.watch(run_id, on_recovery=on_recovery)
            local.corrupt([run_id])
            with anyio.fail_after(10):
                await got.wait()
            del watch
    (checkpoint,) = handed
    name = SaveName.read(str(getattr(checkpoint, "tinker_path", "")).rpartition("/")[2])
    assert name is not None
    assert name.step == 10


async def test_starting_over_goes_back_to_the_checkpoint_at_step_0_where_seeds_are_ignored(
    tmp_path: Path,
) -> None:
    async with LocalTinker(dialect="ignores_seed") as local:
        await a_run(local, journal=tmp_path / "journal.db")
        undisturbed = local.run_state(local.runs()[0])
    async with LocalTinker(dialect="ignores_seed") as local:
        local.inject(FaultRule("poison", at_step=3))
        assert await a_run(local, journal=tmp_path / "other.db") == 0
        assert len(local.runs()) == 2
        ended = local.run_state(local.runs()[0])
    assert ended == undisturbed
    assert "/step-00000000-" in str(ended.parent)


async def test_so_it_does_after_a_first_client_that_failed_before_it_had_saved(
    tmp_path: Path,
) -> None:
    """The one that takes its place begins from nothing too: a second fault finds what it saved."""
    async with LocalTinker(dialect="ignores_seed") as local:
        local.inject(FaultRule("poison", at_step=0, request="save_weights"))
        local.inject(FaultRule("poison", at_step=3))
        assert await a_run(local, journal=tmp_path / "journal.db") == 0
        last, second, first = local.runs()
        assert local.run_state(second).parent is None
        assert local.checkpoints(first) == []
        assert "/step-00000000-" in str(local.run_state(last).parent)
        assert str(second) in str(local.run_state(last).parent)


async def test_only_a_run_that_begins_from_nothing_saves_at_its_start(local: LocalTinker) -> None:
    async with Supervisor(quick(checkpoints=RESUMES)) as supervisor:
        await supervisor.run(lambda a: train(a, steps=6), base_model=MODEL, rank=8, seed=SEED)
        first = local.checkpoints(local.runs()[0])
        assert [stored.steps for stored in first] == [0, 5, 6]
        await supervisor.run(lambda a: train(a, steps=8), from_checkpoint=first[1].path)
        assert [stored.steps for stored in local.checkpoints(local.runs()[0])] == [8]
