"""One run on several machines, each with a journal of its own: who trains it, and who does not."""

from __future__ import annotations

import asyncio
import functools
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
import tinker
from inspection import (
    confirmed_step,
    open_claims,
    retention_is_scheduled,
    set_claim_s,
    set_quiet_s,
    set_retention_gap_s,
    settle_retention,
    training_sessions,
)
from loops import policy, quick, train, undisturbed_state, until
from named_runs import NAMED, begun_at, left_at

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    LeaseLost,
    RecoveryEvent,
    RunFinished,
    RunHeld,
    Supervisor,
    UsageError,
)
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14
KEEPING = CheckpointPolicy(save_every=2, keep_last=1, save_at_start=False)


@pytest.fixture
def journals(tmp_path: Path) -> tuple[Path, Path]:
    """Those of two machines."""
    return tmp_path / "one.db", tmp_path / "two.db"


async def _run(
    journal: Path,
    train_: Callable[[Attempt], Any] | None = None,
    *,
    lease: Literal["service", "journal", "both"] = "both",
    **start: Any,
) -> Supervisor:
    async with Supervisor(policy(), journal=journal, lease=lease) as supervisor:
        whole = functools.partial(train, steps=STEPS)
        await supervisor.run(train_ or whole, **{**NAMED, **start})
    return supervisor


@pytest.mark.parametrize("lease", ["both", "service"])
async def test_a_second_machine_does_not_train_a_run_that_the_first_trains(
    local: LocalTinker, journals: tuple[Path, Path], lease: Literal["service", "both"]
) -> None:
    del local
    held, go = anyio.Event(), anyio.Event()

    async def slowly(attempt: Attempt) -> None:
        held.set()
        await go.wait()
        await train(attempt, steps=STEPS)

    one, two = journals
    running = asyncio.create_task(_run(one, slowly, lease=lease))
    await held.wait()
    with pytest.raises(RunHeld, match=r"being trained by process \d+ on .*its claim"):
        await _run(two, lease=lease, on_lease="refuse")
    waiting = asyncio.create_task(_run(two, lease=lease))
    await anyio.sleep(0.1)
    assert not waiting.done()
    go.set()
    await running
    with pytest.raises(RunFinished):
        await waiting


async def test_a_lease_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(
        UsageError, match=r"lease='file' is not allowed: 'service', 'journal' or 'both'"
    ):
        Supervisor(policy(), lease="file")  # type: ignore[arg-type]  # that is the question


async def test_an_unnamed_run_and_one_by_the_journal_open_no_claim(
    local: LocalTinker, journals: tuple[Path, Path]
) -> None:
    await _run(journals[0], name=None)
    await _run(journals[0], lease="journal")
    assert local.sessions() == training_sessions(local)


async def test_a_service_that_cannot_hold_claims_leaves_it_to_the_journal_and_says_so_once(
    serving: Callable[..., Any], journals: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(dialect="bare"), Supervisor(policy(), journal=journals[0]) as supervisor:
        with caplog.at_level(logging.WARNING):
            for name in ("one", "two"):
                whole = functools.partial(train, steps=2)
                await supervisor.run(whole, **{**NAMED, "name": name})
    said = [each for each in caplog.messages if "no claim on it can be held" in each]
    assert len(said) == 1
    assert "two machines with a journal each could train run one at once" in said[0]


async def test_whoever_is_taken_over_leaves_with_an_error_that_names_the_holder(
    serving: Callable[..., Any], journals: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was paused past the service's limit: its claim is over, and another has it."""
    set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=3600.0)
    now = [100.0]
    async with serving(clock=lambda: now[0], heartbeat_limit_s=30.0) as local:
        paused, go = anyio.Event(), anyio.Event()

        async def pausing(attempt: Attempt) -> None:
            await train(attempt, steps=7)
            await attempt.client.drain()
            paused.set()
            await go.wait()
            await train(attempt, steps=STEPS)

        running = asyncio.create_task(_run(journals[0], pausing))
        await paused.wait()
        (first,) = training_sessions(local)
        now[0] += 31.0
        set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=0.05)
        over, end = anyio.Event(), anyio.Event()

        async def taking_over(attempt: Attempt) -> None:
            await train(attempt, steps=9)
            over.set()
            await end.wait()

        successor = asyncio.create_task(_run(journals[1], taking_over))
        await over.wait()
        saved = {run: len(local.checkpoints(run)) for run in local.runs()}
        go.set()
        with pytest.raises(LeaseLost, match=r"'sft-42' has been taken over by .*process \d+ on"):
            await running
        assert {run: len(local.checkpoints(run)) for run in local.runs()} == saved
        assert local.run_state(f"{first}:train:0").steps == 7
        end.set()
        await successor


async def test_a_410_by_a_fault_of_the_service_is_recovered_from_as_ever(
    local: LocalTinker, journals: tuple[Path, Path]
) -> None:
    local.inject(FaultRule("status", 6, "forward_backward", status=410))
    supervisor = await _run(journals[0])
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0, 5]


async def test_a_run_whose_heartbeat_finds_the_claim_gone_ends_at_once(
    server: LocalTinker, journals: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=0.05)

    async def resting(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        (claim,) = open_claims(server)
        server.fail_session(claim)
        await anyio.sleep_forever()

    with pytest.raises(LeaseLost, match="not held by this process any more"), anyio.fail_after(20):
        async with Supervisor(policy(), journal=journals[0], service=server.service) as supervisor:
            await supervisor.run(resting, **NAMED)
    assert set(training_sessions(server).values()) == {"interrupted"}


@pytest.mark.parametrize(("losing_it_at", "runs"), [(1, 0), (2, 1)])
async def test_no_model_is_made_in_a_session_once_the_claim_is_gone(
    server: LocalTinker, journals: tuple[Path, Path], losing_it_at: int, runs: int
) -> None:
    opened = 0

    def service() -> tinker.ServiceClient:
        nonlocal opened
        opened += 1
        if opened == losing_it_at + 1:  # the first is only asked for its address
            server.fail_session(*open_claims(server))
        return server.service()

    server.inject(FaultRule("status", 6, "forward_backward", status=410))
    with pytest.raises(LeaseLost, match="not held by this process any more"):
        async with Supervisor(quick(), journal=journals[0], service=service) as supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)
    assert len(server.runs()) == runs
    assert "active" not in training_sessions(server).values()


async def test_a_named_run_has_its_checkpoints_looked_after_before_it_is_given_free(
    local: LocalTinker, journals: tuple[Path, Path]
) -> None:
    async with Supervisor(policy(checkpoints=KEEPING), journal=journals[0]) as supervisor:
        await supervisor.run(functools.partial(train, steps=6), **NAMED)
        (run,) = local.runs()
        assert [each.steps for each in local.checkpoints(run)] == [6]


async def test_whoever_has_lost_the_claim_deletes_nothing(
    server: LocalTinker, journals: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_retention_gap_s(monkeypatch, 3600.0)
    failed: list[str] = []

    def listen(event: RecoveryEvent) -> None:
        if event.name == names.EVENT_RETENTION_FAILED:
            failed.append(event.message)

    async def losing_it(attempt: Attempt) -> None:
        await train(attempt, steps=6)
        await attempt.client.drain()
        await until(lambda: retention_is_scheduled(supervisor))
        # Only then is 6 known to be good, and 4 to be deleted for it.
        await until(lambda: confirmed_step(attempt) == 6)
        server.fail_session(*open_claims(server))
        with anyio.CancelScope(shield=True):  # the Monitor may be first, and end the body
            await settle_retention(supervisor)
        await anyio.sleep_forever()

    with pytest.raises(LeaseLost), anyio.fail_after(20):
        async with Supervisor(
            quick(checkpoints=KEEPING, poll_interval_s=0.05),
            journal=journals[0],
            service=server.service,
            on_event=listen,
        ) as supervisor:
            await supervisor.run(losing_it, **NAMED)
    (run,) = server.runs()
    assert {each.steps for each in server.checkpoints(run)} >= {4, 6}
    assert len(failed) == 1
    assert "is not held by this process any more" in failed[0]


@pytest.mark.parametrize("dialect", ["hosted", "bare", "forgets_metadata"])
async def test_an_old_journal_that_comes_back_learns_that_the_run_has_finished(
    serving: Callable[..., Any],
    journals: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    dialect: str,
) -> None:
    set_quiet_s(monkeypatch, 0.1)
    async with serving(dialect=dialect) as local:
        await left_at(7, journal=journals[0])
        assert begun_at(await _run(journals[1])) == [5]
        runs = local.runs()
        with pytest.raises(RunFinished, match="at step 14"):
            await _run(journals[0])
        assert local.runs() == runs, "nothing was trained for it"


async def test_a_service_that_cannot_be_read_when_an_old_journal_comes_back_is_waited_for(
    local: LocalTinker, journals: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    await left_at(7, journal=journals[0])
    await left_at(12, journal=journals[1])
    local.inject(FaultRule("status", request="checkpoints", status=503, times=7))
    assert begun_at(await _run(journals[0])) == [10]
    assert [each for each in caplog.messages if "HTTP 503" in each], "and that is reported"


async def test_an_old_journal_that_comes_back_goes_on_from_the_newest_point(
    local: LocalTinker, journals: tuple[Path, Path]
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    first = await left_at(7, journal=journals[0])
    await left_at(12, journal=journals[1])
    supervisor = await _run(journals[0])
    (run,) = supervisor.runs
    assert begun_at(supervisor) == [10]
    assert run.lineage == first.runs[0].lineage
    assert [each.start_step for each in run.segments] == [0, 5, 10]
    assert local.run_state(run.segments[-1].run_id) == expected
    # And the other machine, in its turn.
    with pytest.raises(RunFinished):
        await _run(journals[1])
    with pytest.raises(RunFinished):
        await _run(journals[0])


async def test_a_run_whose_end_only_the_service_was_told_has_finished(
    local: LocalTinker, journals: tuple[Path, Path]
) -> None:
    """The process was killed between the end of its last session and the journal's last line."""
    del local
    await _run(journals[0])
    with closing(sqlite3.connect(journals[0])) as database, database:
        database.execute("UPDATE runs SET state = 'training'")
        database.execute("UPDATE attempts SET ended = NULL, outcome = NULL")
    with pytest.raises(RunFinished):
        await _run(journals[0])


async def test_a_session_that_is_active_is_waited_for_however_long_it_asks_nothing(
    local: LocalTinker, journals: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a process without a claim: an earlier version's, or one that has ``lease="journal"``."""
    del local
    set_quiet_s(monkeypatch, 0.1)
    resting, go = anyio.Event(), anyio.Event()

    async def slowly(attempt: Attempt) -> None:
        await train(attempt, steps=7)
        await attempt.client.drain()
        resting.set()
        await go.wait()
        await train(attempt, steps=7)

    running = asyncio.create_task(_run(journals[0], slowly, lease="journal"))
    await resting.wait()
    waiting = asyncio.create_task(_run(journals[1]))
    await anyio.sleep(1.0)
    assert not waiting.done()
    go.set()
    await running
    with pytest.raises(RunFinished):
        await waiting


async def test_leaving_the_supervisor_does_not_wait_for_a_claim_that_another_task_opens(
    server: LocalTinker, journals: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_claim_s(monkeypatch, settle=3600.0, look=0.02)
    with anyio.fail_after(20):
        async with Supervisor(policy(), journal=journals[0], service=server.service) as supervisor:
            whole = functools.partial(train, steps=STEPS)
            running = asyncio.create_task(supervisor.run(whole, **NAMED))
            await until(lambda: bool(open_claims(server)))
    running.cancel()
    await asyncio.wait([running])
    assert server.runs() == []
