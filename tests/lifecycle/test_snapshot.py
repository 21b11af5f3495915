"""Where a run stands that an earlier process left, by the journal and by the service."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from loops import MODEL, SEED, quick, train
from pydantic import SecretStr

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, Run, StatusUnavailable, Supervisor
from tinker_recovery.checkpoints import Segment
from tinker_recovery.clock import Clock
from tinker_recovery.journal import StoredAttempt
from tinker_recovery.journal.run_sql import StoredRun
from tinker_recovery.recovery.resume import RunSnapshot, snapshot_of
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.testing import FaultRule, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")

BEST = CheckpointPolicy(strategy="best")
TRIES = 3
"""Requests of ours are tried so often before the service counts as out of reach."""


@pytest_asyncio.fixture
async def reader(local: LocalTinker) -> AsyncIterator[StatusReader]:
    async with StatusReader(Endpoint(local.base_url, SecretStr(local.api_key))) as reader:
        yield reader


async def _ran(local: LocalTinker) -> Run:
    """A run of two segments: it saved at 5, failed at 7, went back to 5, and saved at 10 and 12."""
    local.inject(FaultRule("fail", 7, "optim_step"))
    async with Supervisor(quick(), journal=None) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=12), base_model=MODEL, rank=8, seed=SEED
        )
    return supervisor.runs[0]


def _attempt(segment: Segment, **known: Any) -> StoredAttempt:
    unknown = StoredAttempt(
        attempt=segment.attempt,
        run_id=segment.run_id,
        start_step=segment.start_step,
        parent=segment.parent,
        ended=False,
        sound_step=0,
        polled_step=0,
        trusted_to=None,
        faulty=False,
    )
    return dataclasses.replace(unknown, **known)


def _stored(run: Run, local: LocalTinker, *attempts: StoredAttempt) -> StoredRun:
    paths = [(each.path, each.steps) for id_ in local.runs() for each in local.checkpoints(id_)]
    return StoredRun(
        lineage=run.lineage,
        origin={},
        state="training",
        detail="",
        start_step=0,
        step=12,
        attempts=attempts,
        leftovers=("left:train:0",),
        checkpoints=(*paths, ("tinker://other/weights/9", 9)),
    )


async def _snapshot(
    found: StoredRun, reader: StatusReader, policy: RecoveryPolicy, clock: Clock | None = None
) -> RunSnapshot:
    return await snapshot_of(
        "run", found, parent=None, reader=reader, policy=policy, clock=clock or Clock()
    )


async def test_what_the_journal_says_of_every_attempt_is_taken_over(
    local: LocalTinker, reader: StatusReader
) -> None:
    run = await _ran(local)
    first, last = run.segments
    oldest = Segment("older:train:0", "older", 0, None)
    found = _stored(
        run,
        local,
        _attempt(oldest, faulty=True, ended=True, trusted_to=None),
        _attempt(first, faulty=True, ended=True, trusted_to=6.0),
        _attempt(last, sound_step=10),
    )
    snapshot = await _snapshot(found, reader, quick())
    assert snapshot.segments == (oldest, first, last)
    known = snapshot.checkpoints
    assert (known.trusted_to(first.attempt), known.trusted_to(last.attempt)) == (6.0, 12.0)
    assert "older" not in known.limits, "that fault cast doubt on nothing"
    assert sorted(known.stored.values()) == sorted(
        [(first.attempt, 5), (last.attempt, 10), (last.attempt, 12)]
    ), "and what is of no attempt of the run is not its own"
    assert all(known.path_of(*at) == path for path, at in known.stored.items())
    assert (snapshot.start_step, snapshot.step, snapshot.root) == (0, 12, None)
    assert snapshot.sessions == ("left:train:0", first.run_id, last.run_id)
    assert snapshot.weights.base_model == MODEL


@pytest.mark.parametrize(
    ("checkpoints", "steps"), [(CheckpointPolicy(), [10, 12]), (BEST, [5, 10, 12])]
)
async def test_best_knows_every_save_of_its_branch_and_the_others_those_of_the_last_attempt(
    local: LocalTinker, reader: StatusReader, checkpoints: CheckpointPolicy, steps: list[int]
) -> None:
    run = await _ran(local)
    found = _stored(run, local, *map(_attempt, run.segments))
    snapshot = await _snapshot(found, reader, quick(checkpoints=checkpoints))
    assert sorted(step for _, step in snapshot.saved) == steps


async def test_a_service_that_is_down_is_waited_for_with_a_growing_backoff(
    local: LocalTinker, reader: StatusReader, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    run = await _ran(local)
    found = _stored(run, local, *map(_attempt, run.segments))
    local.inject(FaultRule("status", request="run_checkpoints", status=503, times=3 * TRIES))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    given = quick(backoff_s=5.0, max_backoff_s=60.0)
    snapshot = await _snapshot(found, reader, given, Clock(sleep=sleep, random=lambda: 0.0))
    assert snapshot.step == 12
    assert slept == [5.0, 10.0, 20.0]
    levels = [each.levelname for each in caplog.records if "trying again" in each.message]
    assert levels == ["WARNING", "DEBUG", "DEBUG"], "said at once, and not each time"


@pytest.mark.parametrize(("lasts_s", "tries"), [(99.0, 2), (101.0, 1)])
async def test_a_service_that_stays_down_is_asked_for_as_long_as_a_recovery_would_wait(
    local: LocalTinker, reader: StatusReader, lasts_s: float, tries: int
) -> None:
    """It is asked again as long as no more than ``max_wait_s`` has passed."""
    run = await _ran(local)
    found = _stored(run, local, *map(_attempt, run.segments))
    local.inject(FaultRule("status", request="run_checkpoints", status=503, times=99))
    now = [0.0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += 1000.0

    def monotonic() -> float:
        now[0] += lasts_s
        return now[0]

    clock = Clock(sleep=sleep, monotonic=monotonic, random=lambda: 0.0)
    with pytest.raises(StatusUnavailable):
        await _snapshot(found, reader, quick(max_wait_s=100.0), clock)
    assert len(slept) == tries - 1
