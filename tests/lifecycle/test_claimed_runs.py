"""Named runs that are guarded by a claim at the service: one trainer, whatever journals say."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import pytest_asyncio
from inspection import open_claims, set_claim_s, set_retention_gap_s
from loops import loop, policy, quick, script, train, undisturbed_state, until
from named_runs import NAMED, Died

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    LeaseLost,
    RecoveryEvent,
    RecoveryExhausted,
    RunFinished,
    Supervisor,
)
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 14
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
        await supervisor.run(loop, base_model=MODEL, rank=8, seed=SEED, name="sft-42")

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
    set_claim_s(monkeypatch, settle=0.05, look=0.02, beat=0.1)


TRAIN = functools.partial(train, steps=STEPS)


async def test_a_loop_that_blocks_its_event_loop_keeps_its_run(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=0.05)
    arrived: list[int] = []

    async def blocking(attempt: Attempt) -> None:
        await train(attempt, steps=3)
        before = local.stats.by_route.get("session_heartbeat", 0)
        time.sleep(1.0)  # noqa: ASYNC251 - the rollout of a user who awaits nothing
        arrived.append(local.stats.by_route.get("session_heartbeat", 0) - before)
        await train(attempt, steps=STEPS)

    async with Supervisor(policy(), journal=tmp_path / "a.db") as supervisor:
        await supervisor.run(blocking, **NAMED)
    assert arrived[0] > 3


async def test_the_machine_that_waited_learns_that_the_run_has_finished(
    local: LocalTinker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def second() -> None:
        async with Supervisor(policy(), journal=tmp_path / "b.db", lease="both") as supervisor:
            with pytest.raises(RunFinished):
                await supervisor.run(TRAIN, **NAMED)

    async def loop(attempt: Attempt) -> None:
        group.start_soon(second)
        await until(lambda: "this process waits until that is over" in caplog.text)
        await train(attempt, steps=STEPS)

    async with (
        anyio.create_task_group() as group,
        Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as first,
    ):
        await first.run(loop, **NAMED)
    assert len(local.runs()) == 1


@pytest.mark.parametrize("ended", [True, False])
async def test_nothing_is_deleted_of_a_run_that_may_be_another_process_by_now(
    left: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ended: bool
) -> None:
    # No heartbeat finds it out before a deletion would be made.
    set_claim_s(monkeypatch, settle=0.05, look=0.02, beat=60.0)
    set_retention_gap_s(monkeypatch, 0.01)
    events: list[RecoveryEvent] = []

    def seen(name: str) -> list[RecoveryEvent]:
        return [event for event in events if event.name == name]

    async def body(attempt: Attempt) -> None:
        await loop(attempt.client, 0, 3, 0)
        await until(lambda: len(seen(names.EVENT_CHECKPOINT_SAVED)) >= 1)
        if ended:
            left.fail_session(*open_claims(left))
        else:
            left.inject(FaultRule("status", request="session_heartbeat", status=503, times=10**6))
        await loop(attempt.client, 3, 8, 0)
        await until(lambda: len(seen(names.EVENT_CHECKPOINT_SAVED)) >= 3)
        await until(lambda: bool(seen(names.EVENT_RETENTION_FAILED)))

    # What a poll confirms is what retention may delete for.
    given = policy(
        poll_interval_s=0.05,
        checkpoints=CheckpointPolicy(save_every=2, keep_last=1, save_best=False),
    )
    with pytest.raises(LeaseLost) if ended else contextlib.nullcontext():
        async with Supervisor(
            given, journal=tmp_path / "a.db", lease="both", on_event=events.append
        ) as supervisor:
            await supervisor.run(body, **NAMED)
    assert seen(names.EVENT_CHECKPOINT_DELETED) == []


async def test_no_attempt_begins_once_the_claim_is_gone(left: LocalTinker, tmp_path: Path) -> None:
    async def loop(attempt: Attempt) -> None:
        assert attempt.number == 1
        left.fail_session(*open_claims(left))
        left.poison(at_step=6)
        await train(attempt, steps=STEPS)

    with anyio.fail_after(20):
        async with Supervisor(policy(), journal=tmp_path / "a.db", lease="both") as supervisor:
            with pytest.raises(LeaseLost):
                await supervisor.run(loop, **NAMED)
    assert len(supervisor.runs[0].attempts) == 1


@pytest.mark.timeout(120)
async def test_after_a_kill_another_journal_goes_on_at_once_and_what_was_left_is_ended(
    local: LocalTinker, tmp_path: Path
) -> None:
    expected = await undisturbed_state(local, steps=30)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = await anyio.open_process(
        [sys.executable, script(tmp_path, SCRIPT), str(tmp_path / "a.db")],
        env=environment,
        stderr=None,
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
            await supervisor.run(functools.partial(train, steps=30), **NAMED)
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
            await supervisor.run(_dying, **NAMED)
        await supervisor.run(TRAIN, **NAMED)
    kept = [each.steps for run in local.runs() for each in local.checkpoints(run)]
    assert sorted(kept) == [4, STEPS], "the one it was resumed from, and the last"
    assert "active" not in local.sessions().values()


async def test_a_run_that_was_given_up_is_free_for_another_machine_at_once(
    local: LocalTinker, tmp_path: Path
) -> None:
    """Its supervisor may have other runs to train, for days."""
    local.inject(FaultRule("poison", 7, times=2))
    async with Supervisor(
        policy(max_attempts=1), journal=tmp_path / "a.db", lease="both"
    ) as supervisor:
        with pytest.raises(RecoveryExhausted):
            await supervisor.run(TRAIN, **NAMED)
        with anyio.fail_after(20):
            async with Supervisor(policy(), journal=tmp_path / "b.db", lease="both") as other:
                await other.run(TRAIN, **NAMED)
    assert local.run_state(other.runs[0].segments[-1].run_id).steps == STEPS


async def _dying(attempt: Attempt) -> None:
    await train(attempt, steps=5)
    await attempt.client.drain()
    raise Died


async def test_a_gateway_without_its_service_for_a_while_does_not_end_a_run(
    left: LocalTinker, tmp_path: Path
) -> None:
    """Some answer 404 to everything while what is behind them is replaced."""

    async def loop(attempt: Attempt) -> None:
        if attempt.number == 1:
            await train(attempt, steps=8)
            left.begin_outage(status=404)
            beats = left.stats.by_route["session_heartbeat"]
            await until(lambda: left.stats.by_route["session_heartbeat"] > beats + 2)
            group.start_soon(end)
        await train(attempt, steps=STEPS)

    async def end() -> None:
        await anyio.sleep(1.0)
        left.end_outage()

    async with (
        anyio.create_task_group() as group,
        Supervisor(quick(), journal=tmp_path / "a.db") as supervisor,
    ):
        await supervisor.run(loop, **NAMED)
    assert left.run_state(supervisor.runs[0].segments[-1].run_id) == await undisturbed_state(
        left, steps=STEPS
    )
