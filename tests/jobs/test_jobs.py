"""Jobs on the real SDK, against a local server: submitted, retried, cancelled, resumed."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from typing import Any

import anyio
import pytest
from loops import MODEL, SEED, quick, undisturbed_state
from loops_of_jobs import Options, blocks, fails_at, is_wrong, notes, rests_at, train, train_with

from tinker_recovery import JournalError, UsageError
from tinker_recovery.jobs import (
    JobCancelled,
    JobFailed,
    JobHandle,
    Jobs,
    RetryPolicy,
)
from tinker_recovery.jobs.database import JobDatabase
from tinker_recovery.jobs.worker import Worker
from tinker_recovery.testing import LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
AT_ONCE = RetryPolicy(initial_delay_ms=0)
STEPS = 12


def jobs(**changes: Any) -> Jobs:
    """This process as a worker, on a database of the test's own."""
    options: dict[str, Any] = {"policy": quick(), "starts_per_s": 50.0, **changes}
    return Jobs(**options)


async def _at(handle: JobHandle, local: LocalTinker, step: int) -> None:
    """Wait until a job has done as many steps."""
    with anyio.fail_after(60):
        while not any(  # noqa: ASYNC110 - what is waited for is at the server
            local.run_state(run).steps == step for run in (await handle.status()).run_ids
        ):
            await anyio.sleep(0.05)


@pytest.mark.timeout(180)
async def test_a_job_that_fails_is_tried_again_from_its_newest_checkpoint_and_ends_as_undisturbed(
    local: LocalTinker, tmp_path: Any
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    async with jobs() as entered:
        handle = await entered.submit(
            fails_at,
            name="sft-42",
            retry=AT_ONCE,
            args={"steps": STEPS, "at": 7, "file": str(tmp_path / "failed")},
            **START,
        )
        result = await handle.result()
        said = [event.event async for event in handle]
        status = await handle.status()
    assert (result.value, result.value_kept) == ("done", True)
    assert (result.step, result.retries, result.name) == (STEPS, 1, "sft-42")
    first, second = result.run_ids
    assert local.run_state(second) == expected
    assert local.run_state(first).steps == 7
    assert [each for each in said if each.startswith("job.")] == [
        *("job.try", "job.retry", "job.try", "job.finished")
    ]
    assert (status.state, status.number, status.failure) == ("finished", 2, None)
    saved = local.checkpoints(second)
    stored = [each.user_metadata or {} for each in saved]
    assert {each["tinker_recovery.job"] for each in stored} == {"sft-42 try 2"}
    assert {each["tinker_recovery.lineage"] for each in stored} == {result.lineage}
    assert (result.checkpoint, result.recoveries) == (saved[-1].path, 0)


@pytest.mark.timeout(180)
async def test_a_database_of_jobs_keeps_what_was_submitted_and_refuses_what_contradicts_it(
    local: LocalTinker, tmp_path: Any
) -> None:
    rests = {"steps": 6, "at": 3, "file": str(tmp_path / "go")}
    async with jobs() as entered:
        args = {"options": Options(steps=3)}
        first = await entered.submit(train_with, name="model", args=args, **START)
        again = await entered.submit(train_with, name="model", args=args, **START)
        with pytest.raises(UsageError, match=r"args=.*5.*is not how job 'model' was submitted"):
            await entered.submit(train_with, name="model", args={"options": {"steps": 5}}, **START)
        wrong = await entered.submit(is_wrong, name="wrong", retry=AT_ONCE, **START)
        plain = await entered.submit(blocks, name="plain", args={"steps": 3}, **START)
        rest = await entered.submit(rests_at, name="rests", args=rests, **START)
        with pytest.raises(UsageError, match="one at a time"):
            async with jobs():
                pass
        for handle in (first, again):
            result = await handle.result()
            assert (result.step, result.value, result.value_kept) == (3, None, False)
        with pytest.raises(JobFailed, match="ValueError: a mistake in the loop of 1") as failed:
            await wrong.result()
        assert (failed.value.tries, failed.value.error) == (1, "builtins.ValueError")
        assert (await plain.result()).value == 3
        await _at(rest, local, 3)
        await rest.cancel()
        with pytest.raises(JobCancelled, match="jobs retry rests"):
            await rest.result()
        (tmp_path / "go").touch()
        await rest.retry()
        done = await rest.result()
        assert (done.step, done.retries) == (6, 0)
        listed = {each.name: each.state for each in await entered.list()}
    assert listed == {
        "model": "finished",
        "wrong": "failed",
        "plain": "finished",
        "rests": "finished",
    }


@pytest.mark.timeout(180)
async def test_leaving_saves_the_last_step_and_the_next_to_enter_goes_on(
    local: LocalTinker, tmp_path: Any
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    args = {"steps": STEPS, "at": 7, "file": str(tmp_path / "go")}
    async with jobs() as entered:
        handle = await entered.submit(rests_at, name="long", args=args, **START)
        await _at(handle, local, 7)
    async with jobs(work=False) as entered:
        status = await entered.handle("long").status()
        assert (status.state, status.number) == ("queued", 1)
    (tmp_path / "go").touch()
    async with jobs() as entered:
        result = await entered.handle("long").result()
    assert (result.step, result.retries, len(result.run_ids)) == (STEPS, 0, 2)
    assert local.run_state(result.run_ids[-1]) == expected
    saved = [each.steps for each in local.checkpoints(result.run_ids[0])]
    assert saved[-1] == 7, "nothing is done again"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("error", [LookupError, asyncio.CancelledError])
async def test_leaving_by_an_error_or_a_cancellation_saves_the_last_step_as_well(
    local: LocalTinker, tmp_path: Any, error: type[BaseException]
) -> None:
    args = {"steps": STEPS, "at": 7, "file": str(tmp_path / "go")}
    inside, cancelled = anyio.Event(), error is asyncio.CancelledError

    async def body() -> None:
        async with jobs() as entered:
            handle = await entered.submit(rests_at, name="long", args=args, **START)
            await _at(handle, local, 7)
            inside.set()
            if not cancelled:
                raise error("of the script")
            await anyio.sleep_forever()

    running = asyncio.create_task(body())
    await inside.wait()
    if cancelled:
        running.cancel()
    with pytest.raises(error):
        await running
    assert running.cancelling() == cancelled
    async with jobs(work=False) as entered:
        assert (await entered.handle("long").status()).state == "queued"
    (run,) = local.runs()
    assert [each.steps for each in local.checkpoints(run)][-1] == 7, "nothing is done again"


@pytest.mark.timeout(180)
async def test_a_job_that_is_cancelled_just_as_its_worker_leaves_stays_cancelled(
    local: LocalTinker, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = JobDatabase.running

    def cancelled_behind_it(self: JobDatabase, **which: Any) -> dict[str, str]:
        running = look(self, **which)
        if which.get("executor"):
            self.cancel("unwanted")
        return running

    monkeypatch.setattr(JobDatabase, "running", cancelled_behind_it)
    async with jobs() as entered:
        for name in ("unwanted", "wanted"):
            args = {"steps": 6, "at": 3, "file": str(tmp_path / "go")}
            handle = await entered.submit(rests_at, name=name, args=args, **START)
            await _at(handle, local, 3)
    async with jobs(work=False) as entered:
        states = {each.name: each.state for each in await entered.list()}
    assert states == {"unwanted": "cancelled", "wanted": "queued"}


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("local")
async def test_of_one_base_model_no_more_run_at_once_than_allowed_and_small_numbers_go_first(
    tmp_path: Any,
) -> None:
    file = tmp_path / "notes"
    other = {**START, "base_model": "meta-llama/Llama-3.2-1B"}
    async with jobs(work=False) as entered:
        for who, priority, start in (("c", 9, START), ("b", 5, START), ("a", 0, START)):
            args = {"who": who, "file": str(file)}
            await entered.submit(notes, name=who, priority=priority, args=args, **start)
        args = {"who": "other", "file": str(file)}
        await entered.submit(notes, name="other", args=args, **other)
    async with jobs(per_model=1) as entered:
        for who in ("a", "b", "c", "other"):
            await entered.handle(who).result()
    said = [line for line in file.read_text().splitlines() if not line.startswith("other")]
    assert said == [f"{who} {what}" for who in "abc" for what in ("begins", "ends")]


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("local")
async def test_a_worker_has_no_more_jobs_at_once_than_its_concurrency(tmp_path: Any) -> None:
    file = tmp_path / "notes"
    names = [f"job-{number}" for number in range(6)]
    async with jobs(concurrency=2) as entered:
        for who in names:
            await entered.submit(notes, name=who, args={"who": who, "file": str(file)}, **START)
        for who in names:
            await entered.handle(who).result()
    at_once, most = 0, 0
    for line in file.read_text().splitlines():
        at_once += 1 if line.endswith("begins") else -1
        most = max(most, at_once)
    assert most == 2


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("local")
async def test_jobs_begin_one_after_the_other_and_not_in_bursts(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[float] = []
    turn = Worker._turn

    async def noted(worker: Worker) -> None:
        # What a job says first comes after a look into the database, which takes what it takes.
        await turn(worker)
        began.append(time.monotonic())

    monkeypatch.setattr(Worker, "_turn", noted)
    names = [f"job-{number}" for number in range(5)]
    async with jobs(starts_per_s=2.0) as entered:
        for who in names:
            args = {"who": who, "file": str(tmp_path / "notes")}
            await entered.submit(notes, name=who, args=args, **START)
        handles = [entered.handle(who) for who in names]
        for handle in handles:
            await handle.result()
    gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert min(gaps) > 0.25
    assert sum(gaps) > 1.75


async def test_what_cannot_be_a_job_is_refused_before_anything_starts() -> None:
    async with jobs(work=False) as entered:

        async def inside(attempt: Any) -> None:
            """Not to be imported."""

        for bad, said in (
            ({"train": inside}, "define it with `def` at the top of a module"),
            ({"train": train, "args": {"steps": object()}}, "has to be JSON"),
            ({"train": train, "args": {"steps": [{0: 1e-4, 8: 1e-5}]}}, "key 0 .*a text"),
            ({"train": train, "user_metadata": {1: "a"}}, "key 1 .*a text"),
            ({"train": train, "args": {"stops": 1}}, "does not take its arguments"),
            ({"train": train, "adopt": object()}, "cannot be stored as JSON"),
            ({"train": train, "rank": "high", "base": 1}, "unknown argument 'base'"),
            ({"train": train, "name": " "}, "a text that is not empty"),
            ({"train": train, "priority": -1}, "0 or more"),
        ):
            given: dict[str, Any] = {"name": "x", "base_model": MODEL, "args": {"steps": 1}, **bad}
            with pytest.raises(UsageError, match=said):
                await entered.submit(given.pop("train"), **given)
        assert await entered.list() == []
        with pytest.raises(UsageError, match="there is no job 'x'"):
            await entered.handle("x").result()


async def test_a_password_of_the_database_is_in_no_error() -> None:
    url = "postgresql://me:s3cretword@127.0.0.1:1/none?connect_timeout=1"
    with pytest.raises(JournalError) as refused:
        async with Jobs(url):
            pass
    assert "s3cretword" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert "127.0.0.1:1/none" in str(refused.value)
    assert "s3cretword" not in repr(Jobs(url))


def test_the_engine_is_imported_once_jobs_are_entered_and_not_before() -> None:
    code = "import tinker_recovery.jobs, sys; sys.exit('dbos' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode == 0  # noqa: S603 - our own code
