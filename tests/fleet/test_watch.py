"""Runs trained elsewhere, watched and brought back; and many of them at once."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import loops
import pytest
import pytest_asyncio
import tinker
from inspection import run_id_of, was_seen_well
from loops import MODEL, batch, loop, train, until
from tinker import types

from tinker_recovery import (
    CheckpointRecord,
    Clock,
    NoUsableCheckpoint,
    RecoveryEvent,
    RecoveryExhausted,
    Supervisor,
    UsageError,
)
from tinker_recovery.journal import Journal
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

POLL_S = 0.02

quick = functools.partial(loops.quick, poll_interval_s=POLL_S)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[LocalTinker]:
    """A server, on which in the end only those sessions are open that nobody here opened."""
    async with LocalTinker() as server:
        server.theirs = set()  # type: ignore[attr-defined]  # for the tests of this file alone
        yield server
        runs = {run_id.partition(":")[0] for run_id in server.theirs}  # type: ignore[attr-defined]  # as above
        left = {key for key, state in server.sessions().items() if state == "active"} - runs
        assert not left, f"sessions left open: {left}"


def listed(server: LocalTinker, count: int, *, saved: bool = True) -> list[str]:
    run_ids = server.add_runs(count, saved=saved)
    server.theirs |= set(run_ids)  # type: ignore[attr-defined]  # as above
    return run_ids


class Received:
    """What watches handed over."""

    def __init__(self) -> None:
        self.got: list[tuple[str, tinker.TrainingClient, types.Checkpoint]] = []

    def __call__(
        self, old: str, client: tinker.TrainingClient, checkpoint: types.Checkpoint
    ) -> None:
        self.got.append((old, client, checkpoint))


async def test_a_corrupted_run_comes_back_in_a_client_that_can_train_and_is_watched_on(
    server: LocalTinker,
) -> None:
    (run_id,) = listed(server, 1)
    received = Received()
    async with Supervisor(quick(), service=server.service) as supervisor:
        watch = supervisor.watch(run_id, on_recovery=received)
        await until(lambda: server.stats.by_route.get("training_run", 0) > 1)
        assert (watch.state, watch.client, received.got) == ("watching", None, [])
        server.corrupt([run_id])
        await until(lambda: watch.recoveries == 1)
        ((old, client, checkpoint),) = received.got
        assert old == run_id
        assert checkpoint.tinker_path == f"tinker://{run_id}/weights/listed"
        assert watch.client is client
        assert watch.run_id == str(client.model_id) != run_id
        await loop(client, 0, 2, 0)
        # The new run is watched in its place, and has no checkpoint of its own yet.
        server.corrupt([watch.run_id])
        await until(lambda: watch.recoveries == 2)
        assert received.got[1][0] == str(client.model_id)
        assert received.got[1][2].tinker_path == checkpoint.tinker_path
        await until(lambda: server.sessions()[str(client.model_id).partition(":")[0]] == "errored")
    assert watch.state == "over"


async def test_a_failed_session_counts_and_what_a_supervised_client_saved_says_its_step(
    server: LocalTinker,
) -> None:
    async with Supervisor(quick(), service=server.service) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), base_model=MODEL, rank=8)
    (run_id,) = server.runs()
    steps: list[int] = []

    async def took(old: str, client: object, checkpoint: types.Checkpoint) -> None:
        del old, client
        record = CheckpointRecord.from_listing(checkpoint)
        assert record is not None
        steps.append(record.step)

    async with Supervisor(quick(), service=server.service) as supervisor:
        supervisor.watch(run_id, on_recovery=took)
        server.corrupt([run_id])
        await until(lambda: bool(steps))
    assert steps == [12]

    (failing,) = listed(server, 1)
    received = Received()
    async with Supervisor(quick(), service=server.service) as supervisor:
        watch = supervisor.watch(failing, on_recovery=received)
        server.fail_session(failing.partition(":")[0])
        await until(lambda: watch.recoveries == 1)
    assert len(received.got) == 1


@asynccontextmanager
async def with_a_good_checkpoint(server: LocalTinker) -> AsyncIterator[tinker.TrainingClient]:
    """A client of the bare SDK, by which one checkpoint is saved."""
    service = server.service()
    made = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client(MODEL, rank=8, seed=7)
    )
    client = await made
    try:
        await (await anyio.to_thread.run_sync(client.save_state, "good"))
        yield client
    finally:
        await service.close("success")


@pytest.mark.parametrize("ours_is_ahead_s", [0.0, 2.0, -3600.0])
async def test_what_was_stored_after_the_run_was_last_well_is_not_gone_back_to(
    server: LocalTinker, ours_is_ahead_s: float
) -> None:
    clock = Clock(wall=lambda: time.time() + ours_is_ahead_s)
    async with with_a_good_checkpoint(server) as client:
        run_id = str(client.model_id)
        received = Received()
        async with Supervisor(quick(), service=server.service, clock=clock) as supervisor:
            watch = supervisor.watch(run_id, on_recovery=received)
            await until(lambda: was_seen_well(watch))
            if ours_is_ahead_s:
                # The service dates its replies to a second, so polls have to narrow it down.
                await asyncio.sleep(1.1)
            server.inject(FaultRule("status", request="training_run", status=500, for_s=60.0))
            await asyncio.sleep(0.1)
            await (await anyio.to_thread.run_sync(client.save_state, "doubtful"))
            server.corrupt([run_id])
            server.release()
            await until(lambda: watch.recoveries == 1)
        assert received.got[0][2].checkpoint_id == "weights/good"


async def test_what_was_stored_too_late_is_not_gone_back_to_by_a_later_recovery_either(
    server: LocalTinker,
) -> None:
    """The run that replaced it has stored nothing of its own when it fails as well."""
    async with with_a_good_checkpoint(server) as client:
        run_id = str(client.model_id)
        received = Received()
        async with Supervisor(quick(), service=server.service) as supervisor:
            watch = supervisor.watch(run_id, on_recovery=received)
            await until(lambda: was_seen_well(watch))
            server.inject(FaultRule("status", request="training_run", status=500, for_s=60.0))
            await asyncio.sleep(0.1)
            await (await anyio.to_thread.run_sync(client.save_state, "doubtful"))
            server.corrupt([run_id])
            server.release()
            await until(lambda: watch.recoveries == 1)
            server.corrupt([watch.run_id])
            await until(lambda: watch.recoveries == 2)
        chosen = [checkpoint.checkpoint_id for _, _, checkpoint in received.got]
        assert chosen == ["weights/good", "weights/good"]


async def test_a_run_that_was_never_seen_to_be_sound_comes_back_with_a_warning(
    server: LocalTinker,
) -> None:
    fine, damaged = listed(server, 2)
    server.corrupt([damaged])
    received = Received()
    told: list[RecoveryEvent] = []
    async with Supervisor(quick(), service=server.service, on_event=told.append) as supervisor:
        watches = [supervisor.watch(run_id, on_recovery=received) for run_id in (fine, damaged)]
        await until(lambda: was_seen_well(watches[0]))
        server.corrupt([fine])
        await until(lambda: all(watch.recoveries for watch in watches))
    (said,) = [event for event in told if event.name == names.EVENT_WEIGHTS_UNKNOWN]
    assert said.run == damaged
    assert "may have been stored after the fault began" in said.message
    assert said.fields[names.CHECKPOINT_PATH] == f"tinker://{damaged}/weights/listed"


async def test_what_the_service_does_not_load_is_rejected_for_good_and_the_next_older_taken(
    server: LocalTinker, tmp_path: Path
) -> None:
    """Announced, and noted in the journal, as for a supervised run."""
    async with Supervisor(quick(), service=server.service) as supervisor:
        await supervisor.run(functools.partial(train, steps=12), base_model=MODEL, rank=8)
    (run_id,) = server.runs()
    older, newest = [each.path for each in server.checkpoints(run_id)][-2:]
    server.damage(newest, "truncated")
    received, told = Received(), []
    async with Supervisor(
        quick(),
        service=server.service,
        journal=tmp_path / "journal",
        on_event=lambda event: told.append(event.name),
    ) as supervisor:
        watch = supervisor.watch(run_id, on_recovery=received)
        server.corrupt([run_id])
        await until(lambda: watch.recoveries == 1)
    assert received.got[0][2].tinker_path == older
    assert told.count(names.EVENT_CHECKPOINT_BAD) == 1
    with Journal(tmp_path / "journal", service=server.base_url) as journal:
        assert list(journal.notes().bad) == [newest]


async def test_a_run_without_a_checkpoint_is_given_up_and_its_owner_told(
    server: LocalTinker,
) -> None:
    (run_id,) = listed(server, 1, saved=False)
    told: list[tuple[str, BaseException]] = []
    given = quick(on_failure=lambda run, error: told.append((run, error)))
    async with Supervisor(given, service=server.service) as supervisor:
        watch = supervisor.watch(run_id, on_recovery=Received())
        server.corrupt([run_id])
        await until(lambda: watch.state == "failed")
        assert isinstance(watch.error, NoUsableCheckpoint)
        assert told == [(run_id, watch.error)]
        asked = server.stats.by_route.get("training_run", 0)
        await asyncio.sleep(3 * POLL_S)
        assert server.stats.by_route.get("training_run", 0) == asked, "it is not asked for again"


async def test_with_recovery_off_a_watch_reports_and_leaves_the_run_alone(
    server: LocalTinker,
) -> None:
    (run_id,) = listed(server, 1)
    told: list[str] = []
    received = Received()
    given = quick(enabled=False, on_failure=lambda *said: told.append(said[0]))
    async with Supervisor(given, service=server.service) as supervisor:
        supervisor.watch(run_id, on_recovery=received)
        server.corrupt([run_id])
        await until(lambda: bool(told))
    assert (told, received.got) == ([run_id], [])


async def test_a_watch_that_is_cancelled_recovers_nothing_and_one_closed_ends_its_session(
    server: LocalTinker,
) -> None:
    kept, dropped = listed(server, 2)
    received = Received()
    async with Supervisor(quick(), service=server.service) as supervisor:
        watch = supervisor.watch(kept, on_recovery=received)
        other = supervisor.watch(dropped, on_recovery=received)
        other.cancel()
        server.corrupt([kept, dropped])
        await until(lambda: watch.recoveries == 1)
        assert [old for old, _, _ in received.got] == [kept]
        assert other.state == "over"
        session = watch.run_id.partition(":")[0]
        await watch.aclose()
        assert server.sessions()[session] == "success"
        assert watch.client is None
        supervisor.watch(kept, on_recovery=received).cancel()  # its name is free again


async def test_a_callback_that_raises_breaks_no_recovery(server: LocalTinker) -> None:
    (run_id,) = listed(server, 1)

    def broken(*_: object) -> None:
        raise RuntimeError("the callback's own trouble")

    async with Supervisor(quick(), service=server.service) as supervisor:
        watch = supervisor.watch(run_id, on_recovery=broken)
        server.corrupt([run_id])
        await until(lambda: watch.recoveries == 1)


async def test_bad_arguments_are_refused_before_anything_starts(server: LocalTinker) -> None:
    with pytest.raises(UsageError, match="enter the Supervisor"):
        Supervisor(quick(), service=server.service).watch("r", on_recovery=print)
    async with Supervisor(quick(), service=server.service) as supervisor:
        wrong: Any
        for wrong in ("", "tinker://r/weights/w", 7):
            with pytest.raises(UsageError, match="run_id="):
                supervisor.watch(wrong, on_recovery=print)
        wrong = "no function"
        with pytest.raises(UsageError, match="on_recovery="):
            supervisor.watch("r", on_recovery=wrong)
        supervisor.watch("r", on_recovery=print).cancel()
        first = supervisor.watch("r", on_recovery=print)
        with pytest.raises(UsageError, match="watched already"):
            supervisor.watch("r", on_recovery=print)
        first.cancel()
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                with pytest.raises(UsageError, match="looks after it already"):
                    supervisor.watch(run_id_of(attempt), on_recovery=print)
                await attempt.client.forward_backward(batch(0), "cross_entropy")


async def test_many_poisoned_at_once_are_one_incident_and_all_recover_within_the_bound(
    server: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    run_ids = listed(server, 14)
    received, events, flying = Received(), [], []
    now: set[str] = set()

    def heard(event: RecoveryEvent) -> None:
        events.append(event)
        if event.name == names.EVENT_STARTED:
            now.add(event.run)
        if event.name in (names.EVENT_COMPLETED, names.EVENT_FAILED):
            now.discard(event.run)
        flying.append(len(now))

    given = quick(max_concurrent_recoveries=3, poll_interval_s=0.1)
    async with Supervisor(given, service=server.service, on_event=heard) as supervisor:
        watches = [supervisor.watch(run_id, on_recovery=received) for run_id in run_ids]
        server.corrupt(run_ids)
        with caplog.at_level(logging.WARNING, "tinker_recovery"):
            await until(lambda: all(watch.recoveries for watch in watches))
    assert sorted(old for old, _, _ in received.got) == sorted(run_ids)
    assert max(flying) == 3
    told = [event.name for event in events if "mass" in event.name]
    assert told == [names.EVENT_MASS_FAILURE, names.EVENT_MASS_OVER]
    ours = [record for record in caplog.records if record.name == "tinker_recovery"]
    assert len(ours) < 20, "one line for all of them, once there are enough to tell"


async def test_a_backend_that_stays_down_costs_a_mass_of_runs_time_and_no_attempts(
    server: LocalTinker,
) -> None:
    """Each run has a single attempt, and more recoveries fail than there are runs that may."""
    run_ids = listed(server, 11)
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        if seconds > 1.0:
            waits.append(seconds)
        await anyio.sleep(min(seconds, 0.001 if seconds > 1.0 else seconds))

    server.inject(FaultRule("fail", request="load_weights", times=8))
    given = quick(
        max_concurrent_recoveries=2,
        max_attempts=1,
        backoff_s=5.0,
        max_backoff_s=60.0,
        poll_interval_s=0.1,
    )
    clock = Clock(sleep=sleep)
    received = Received()
    async with Supervisor(given, service=server.service, clock=clock) as supervisor:
        watches = [supervisor.watch(run_id, on_recovery=received) for run_id in run_ids]
        server.corrupt(run_ids)
        await until(lambda: all(watch.recoveries or watch.error for watch in watches))
        assert [watch.error for watch in watches] == [None] * 11
    assert max(waits) >= 60.0, "all of them backed off, longer each time"


async def test_outside_a_mass_failure_each_failed_attempt_counts(server: LocalTinker) -> None:
    (run_id,) = listed(server, 1)
    server.inject(FaultRule("fail", request="load_weights", times=3))
    async with Supervisor(quick(), service=server.service) as supervisor:
        watch = supervisor.watch(run_id, on_recovery=Received())
        server.corrupt([run_id])
        await until(lambda: watch.state == "failed")
        assert isinstance(watch.error, RecoveryExhausted)
