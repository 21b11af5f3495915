"""A task cancelled while something of ours begins or ends leaves nothing behind.

``Supervisor.stop()``, Ctrl-C and a user's own ``task.cancel()`` go through ``anyio``'s shields.
That no session is left open is looked at behind each test.
"""

from __future__ import annotations

import asyncio
import functools
import logging

import anyio
import pytest
from inspection import internals_of, open_claims
from loops import policy, train, undisturbed_state, until
from named_runs import NAMED, begun_at, left_at, trained_to

from tinker_recovery import Attempt, LeaseLost, RecoveryEvent, Supervisor
from tinker_recovery.faults import RULES, DetectedBy, Kind
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.recovery.restore import Restore
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 6


async def _cancelled_at(local: LocalTinker, slow: FaultRule, *, stop: bool) -> None:
    """A process whose task is cancelled while the service takes its time with a request."""
    local.inject(slow)
    supervisor = Supervisor(policy())

    async def main() -> None:
        async with supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)

    task = asyncio.create_task(main())
    await until(lambda: any(each.rule.action == "slow" for each in local.fired))
    if stop:
        supervisor.stop()
    else:
        task.cancel()
    with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(5):
        await supervisor.stop()  # whoever waits for the end learns of it


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "cancel"])
async def test_while_its_claim_is_being_opened(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, *, stop: bool
) -> None:
    await _cancelled_at(local, FaultRule("slow", request="create_session", delay_s=0.5), stop=stop)
    with anyio.fail_after(20):
        supervisor = await trained_to(STEPS)
    assert begun_at(supervisor) == [0]
    assert "is claimed by" not in caplog.text


async def test_a_claim_whose_answer_never_came_is_not_waited_for_by_its_own_process(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("slow", request="create_session", delay_s=1.0))
    supervisor = Supervisor(policy(status_timeout_s=0.3))

    async def main() -> None:
        async with supervisor:
            await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)

    task = asyncio.create_task(main())
    await until(lambda: bool(open_claims(local)))
    task.cancel()
    with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(20):
        supervisor = await trained_to(STEPS)
    assert begun_at(supervisor) == [0]
    assert "is claimed by" not in caplog.text


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "cancel"])
async def test_while_the_session_of_a_run_that_has_ended_is_being_finished(
    local: LocalTinker, *, stop: bool
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    await _cancelled_at(local, FaultRule("slow", request="finish", delay_s=0.5), stop=stop)
    view = read_run(default_path(), "sft-42")
    assert view is not None
    assert (view.state, view.step) == ("finished", STEPS)
    assert local.run_state(view.attempts[-1].run_id) == expected


async def test_a_fault_in_the_same_moment_does_not_swallow_a_stop(local: LocalTinker) -> None:
    del local
    for first in ("fault", "stop"):
        supervisor = Supervisor(policy())
        lost = functools.partial(_declare, supervisor)

        async def body(attempt: Attempt, lost: object = lost, first: str = first) -> None:
            await train(attempt, steps=2)
            for act in (lost, supervisor.stop) if first == "fault" else (supervisor.stop, lost):  # noqa: B023 - run within the round
                act()  # type: ignore[operator]  # as above
            await anyio.sleep_forever()

        with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
            async with supervisor:
                await supervisor.run(body, **NAMED)


def _declare(supervisor: Supervisor) -> None:
    (run,) = supervisor._inside.runs.by_name.values()
    run.attempts[-1].declare_fault(RULES[Kind.SILENCE], DetectedBy.SILENCE)


async def test_a_run_that_is_stopped_in_a_recovery_fails_in_nothing(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has given its claim free, which the recovery may meet before it is called off."""
    events: list[RecoveryEvent] = []
    restoring = anyio.Event()
    supervisor = Supervisor(policy(), on_event=events.append)

    async def met_the_end(restore: Restore) -> None:
        del restore
        restoring.set()
        await until(lambda: internals_of(supervisor.runs[0]).ended)
        raise LeaseLost("it is not held any more", run="sft-42")

    monkeypatch.setattr(Restore, "restore", met_the_end)
    local.poison(at_step=3)

    async def main() -> None:
        async with supervisor:
            await supervisor.run(functools.partial(train, steps=6), **NAMED)

    task = asyncio.create_task(main())
    await restoring.wait()
    supervisor.stop()
    with anyio.fail_after(20), pytest.raises(asyncio.CancelledError):
        await task
    assert [event for event in events if event.name == names.EVENT_FAILED] == []


async def test_a_process_that_only_opened_a_stopped_run_leaves_it_stopped(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    del local
    supervisor = Supervisor(policy())

    async def stopping(attempt: Attempt) -> None:
        await train(attempt, steps=4)
        supervisor.stop()
        await anyio.sleep_forever()

    with pytest.raises(asyncio.CancelledError):
        async with supervisor:
            await supervisor.run(stopping, **NAMED)
    task: asyncio.Task[object] = asyncio.create_task(left_at(5))
    await until(lambda: _state() == "training")
    task.cancel()
    await asyncio.wait([task])
    assert _state() == "stopped"
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert list((await trained_to(STEPS)).runs[0].recoveries) == []
    assert caplog.text == ""


def _state() -> str:
    view = read_run(default_path(), "sft-42")
    return "" if view is None else view.state


@pytest.mark.parametrize("name", [None, "sft-42"])
async def test_a_run_that_is_left_while_on_recovery_is_called_is_not_said_to_be_recovered(
    local: LocalTinker, name: str | None
) -> None:
    called, over = asyncio.Event(), asyncio.Event()
    events: list[RecoveryEvent] = []

    async def on_recovery(*_: object) -> None:
        called.set()
        await over.wait()

    local.inject(FaultRule("poison", 2, "optim_step"))
    given = policy(on_recovery=on_recovery)
    async with Supervisor(given, on_event=events.append) as supervisor:
        running = asyncio.create_task(
            supervisor.run(functools.partial(train, steps=STEPS), **{**NAMED, "name": name})
        )
        await called.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        over.set()
        # Its new client as well, though this Supervisor may live on for weeks.
        await until(lambda: "active" not in local.sessions().values())
        (run,) = supervisor.runs
        assert (run.state, len(run.attempts), list(run.recoveries)) == ("over", 1, [])
    assert events[-1].name == names.EVENT_CLIENT_CREATED
