"""Named runs that are guarded by a claim at the service: one trainer, whatever journals say."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import pytest_asyncio
from inspection import scope_of, set_claim_times, set_retention_gap_s
from loops import MODEL, SEED, loop, policy, train, undisturbed_state, until
from tinker import types

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
from tinker_recovery.service.claim_line import CLAIM
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "one"}
SCRIPT = """
import sys
import anyio
from loops import ADAM, MODEL, SEED, batch, policy
from tinker_recovery import Attempt, Supervisor

async def loop(attempt: Attempt) -> None:
    for step in range(attempt.start_step, 10**6):
        await attempt.client.forward_backward(batch(step), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        print(step, flush=True)

async def main() -> None:
    async with Supervisor(policy(), journal=sys.argv[1], lease="both") as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED, name="one")

anyio.run(main)
"""


@pytest_asyncio.fixture
async def left(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalTinker]:
    """A server on which sessions may be left: what a lost claim leaves, its successor ends."""
    async with LocalTinker() as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    set_claim_times(monkeypatch, settle_s=0.05, beat_s=0.1)


async def _claim(attempt: Attempt) -> str:
    """The session that claims the run."""
    found = await scope_of(attempt).run.collaborators.reader.http.ask(
        "POST",
        "sessions/search",
        types.SessionSearchResponse.model_validate,
        json={"user_metadata": {CLAIM: "one"}, "statuses": [{"type": "active"}]},
    )
    (claim,) = found.sessions
    return claim.session_id


TRAIN = functools.partial(train, steps=STEPS)


async def test_a_second_machine_is_refused_by_the_name_of_the_holders_host(
    local: LocalTinker, tmp_path: Path
) -> None:
    refused: list[RunHeld] = []

    async def loop(attempt: Attempt) -> None:
        async with Supervisor(policy(), journal=tmp_path / "b.db", lease="both") as second:
            with pytest.raises(RunHeld, match=socket.gethostname()) as error:
                await second.run(TRAIN, **START, on_lease="refuse")
            refused.append(error.value)
        await train(attempt, steps=STEPS)

    async with Supervisor(policy(), journal=tmp_path / "a.db", lease="service") as first:
        await first.run(loop, **START)
    assert [each.host for each in refused] == [socket.gethostname()]
    assert "active" not in local.sessions().values()
    assert local.run_state(first.runs[0].segments[-1].run_id) == await undisturbed_state(
        local, steps=STEPS
    )


async def test_the_machine_that_waited_learns_that_the_run_has_finished(
    local: LocalTinker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def second() -> None:
        async with Supervisor(policy(), journal=tmp_path / "b.db", lease="both") as supervisor:
            with pytest.raises(RunFinished):
                await supervisor.run(TRAIN, **START)

    async def loop(attempt: Attempt) -> None:
        group.start_soon(second)
        await until(lambda: "this process waits until that is over" in caplog.text)
        await train(attempt, steps=STEPS)

    async with (
        anyio.create_task_group() as group,
        Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as first,
    ):
        await first.run(loop, **START)
    assert len(local.runs()) == 1


async def test_a_process_whose_claim_was_ended_trains_no_further(
    left: LocalTinker, tmp_path: Path
) -> None:
    steps: list[int] = []

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=6)
        left.fail_session(await _claim(attempt))
        steps.append(attempt.client.step)
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as supervisor:
            with pytest.raises(LeaseLost, match="claim on run 'one' was ended"):
                await supervisor.run(loop, **START)
    assert steps == [6]
    assert supervisor.runs[0].recoveries == []


@pytest.mark.parametrize("ended", [True, False])
async def test_nothing_is_deleted_of_a_run_that_may_be_another_process_by_now(
    left: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    # No heartbeat finds it out before a deletion would be made.
    set_claim_times(monkeypatch, settle_s=0.05, beat_s=60.0)
    set_retention_gap_s(monkeypatch, 0.01)
    events: list[RecoveryEvent] = []

    def seen(name: str) -> list[RecoveryEvent]:
        return [event for event in events if event.name == name]

    async def body(attempt: Attempt) -> None:
        await loop(attempt.client, 0, 3, 0)
        await until(lambda: len(seen(names.EVENT_CHECKPOINT_SAVED)) >= 1)
        if ended:
            left.fail_session(await _claim(attempt))
        else:
            left.inject(FaultRule("status", request="session_heartbeat", status=503, times=10**6))
        await loop(attempt.client, 3, 8, 0)
        await until(lambda: len(seen(names.EVENT_CHECKPOINT_SAVED)) >= 3)
        await until(lambda: bool(seen(names.EVENT_RETENTION_FAILED)))

    given = policy(checkpoints=CheckpointPolicy(save_every=2, keep_last=1, save_best=False))
    with pytest.raises(LeaseLost) if ended else contextlib.nullcontext():
        async with Supervisor(
            given, journal=tmp_path / "a.db", lease="both", on_event=events.append
        ) as supervisor:
            await supervisor.run(body, **START)
    assert seen(names.EVENT_CHECKPOINT_DELETED) == []


async def test_no_attempt_begins_once_the_claim_is_gone(left: LocalTinker, tmp_path: Path) -> None:
    async def loop(attempt: Attempt) -> None:
        assert attempt.number == 1
        left.fail_session(await _claim(attempt))
        left.poison(at_step=6)
        await train(attempt, steps=STEPS)

    with anyio.fail_after(20):
        async with Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as supervisor:
            with pytest.raises(LeaseLost):
                await supervisor.run(loop, **START)
    assert len(supervisor.runs[0].attempts) == 1 or not supervisor.runs[0].attempts[-1].client.step


@pytest.mark.timeout(120)
async def test_after_a_kill_another_journal_goes_on_at_once_and_what_was_left_is_ended(
    local: LocalTinker, tmp_path: Path
) -> None:
    expected = await undisturbed_state(local, steps=30)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await anyio.open_process(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "a.db")], env=environment, stderr=None
    )
    async with process:
        assert process.stdout is not None
        async for chunk in process.stdout:
            if b"12" in chunk:
                break
        process.send_signal(signal.SIGKILL)
    left = {name for name, state in local.sessions().items() if state == "active"}
    assert len(left) >= 2
    with anyio.fail_after(25):  # less than a run that nobody claims is waited for
        async with Supervisor(policy(), journal=tmp_path / "b.db", lease="both") as supervisor:
            await supervisor.run(functools.partial(train, steps=30), **START)
    (run,) = supervisor.runs
    assert run.attempts[-1].start_step > 0
    assert "active" not in {local.sessions()[name] for name in left}
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_what_no_rule_keeps_is_deleted_as_the_supervisor_ends_and_the_name_can_be_run_again(
    local: LocalTinker, tmp_path: Path
) -> None:
    given = policy(checkpoints=CheckpointPolicy(save_every=2, keep_last=1, save_best=False))
    async with Supervisor(given, journal=tmp_path / "a.db", lease="both") as supervisor:
        with pytest.raises(Died):
            await supervisor.run(_dying, **START)
        await supervisor.run(TRAIN, **START)
    kept = [each.steps for run in local.runs() for each in local.checkpoints(run)]
    assert sorted(kept) == [4, STEPS], "the one it was resumed from, and the last"
    assert "active" not in local.sessions().values()


async def _dying(attempt: Attempt) -> None:
    await train(attempt, steps=5)
    await attempt.client.drain()
    raise Died


class Died(Exception):
    """The loop ends by an error of its own, as a crash of its process would end it."""


async def _until(step: int, journal: Path) -> Supervisor:
    """Train on one machine, until the loop dies at a step or the run has come to its end."""

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=step)
        await attempt.client.drain()
        if step < STEPS:
            raise Died

    async with Supervisor(policy(), journal=journal, lease="both") as supervisor:
        await supervisor.run(loop, **START)
    return supervisor


@pytest.mark.usefixtures("local")
async def test_an_old_disk_that_comes_back_says_that_the_run_was_finished_elsewhere(
    tmp_path: Path,
) -> None:
    with pytest.raises(Died):
        await _until(7, tmp_path / "a.db")
    await _until(STEPS, tmp_path / "b.db")
    with pytest.raises(RunFinished):
        await _until(STEPS, tmp_path / "a.db")


async def test_an_old_disk_that_comes_back_goes_on_from_the_newest_point_of_another(
    local: LocalTinker, tmp_path: Path
) -> None:
    with pytest.raises(Died):
        await _until(7, tmp_path / "a.db")
    with pytest.raises(Died):
        await _until(12, tmp_path / "b.db")
    supervisor = await _until(STEPS, tmp_path / "a.db")
    (run,) = supervisor.runs
    assert run.attempts[-1].start_step == 10
    assert local.run_state(run.segments[-1].run_id) == await undisturbed_state(local, steps=STEPS)


async def test_where_the_service_cannot_hold_a_claim_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with LocalTinker(dialect="bare") as server:
        with caplog.at_level(logging.WARNING, logger="tinker_recovery"):
            async with Supervisor(
                policy(), service=server.service, journal=tmp_path / "a.db", lease="both"
            ) as supervisor:
                for name in ("one", "two"):
                    start = {**START, "name": name}
                    await supervisor.run(functools.partial(train, steps=3), **start)
    said = [each for each in caplog.messages if "two machines with a journal each" in each]
    assert len(said) == 1


def test_another_guard_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"lease='both '.*'service', 'journal', 'both'"):
        Supervisor(lease="both ")  # type: ignore[arg-type]  # what is tested


async def test_a_run_without_a_name_opens_no_claim(local: LocalTinker, tmp_path: Path) -> None:
    async with Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as supervisor:
        await supervisor.run(functools.partial(train, steps=3), base_model=MODEL)
    assert len(local.sessions()) == 1
    await until(lambda: "active" not in local.sessions().values())
