"""The line of a run that is stopped while the service is away names what the next start uses."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any

import pytest
from inspection import in_an_outage, scope_of
from loops import loop, policy, train, until
from named_runs import NAMED, begun_at

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.testing import LocalTinker

SAVES = CheckpointPolicy(save_every=5, save_at_start=False, save_on_stop_s=None)
STEPS = 20


def _given(poll_interval_s: float = 30.0) -> RecoveryPolicy:
    return policy(poll_interval_s=poll_interval_s, close_timeout_s=0.5, checkpoints=SAVES)


async def _stopped(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, *, polled: bool, fails: bool = False
) -> str:
    """What the last line says of a run that ends at step 12 or 13 in an outage."""

    async def stopping(attempt: Attempt) -> None:
        await train(attempt, steps=12)
        await until(lambda: not polled or scope_of(attempt).run.rollbacks.polled_step == 10)
        local.begin_outage()
        going = asyncio.ensure_future(loop(attempt.client, 12, STEPS, 0))
        await until(lambda: in_an_outage(attempt))
        going.cancel()
        if fails:
            raise ZeroDivisionError
        supervisor.stop()
        await asyncio.sleep(99)

    supervisor = Supervisor(_given(0.2 if polled else 30.0))
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ZeroDivisionError if fails else asyncio.CancelledError),
    ):
        async with supervisor:
            await supervisor.run(stopping, **NAMED)
    (line,) = (each for each in caplog.messages if "; last checkpoint " in each)
    return line


async def _goes_on(local: LocalTinker, *, corrupted: bool) -> int:
    """The step that the same command begins at once the service is back."""
    local.end_outage()
    if corrupted:
        local.corrupt(local.runs())
    async with Supervisor(_given()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), **NAMED)
    (step,) = begun_at(supervisor)
    return step


@pytest.mark.parametrize(("fails", "corrupted"), [(False, True), (True, False)])
async def test_a_save_that_no_poll_has_confirmed_waits_for_the_services_word(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, *, corrupted: bool, fails: bool
) -> None:
    line = await _stopped(local, caplog, polled=False, fails=fails)
    newest = local.checkpoints(local.runs()[0])[-1]
    mended = "once the reason is mended, " if fails else ""
    assert line.endswith(
        f"; last checkpoint none, or {newest.path} if the service still calls the run sound; "
        f"{mended}the same command asks it, and goes on from there or starts over"
    )
    assert await _goes_on(local, corrupted=corrupted) == (0 if corrupted else 10)


async def test_a_save_that_a_poll_has_confirmed_is_named_as_ever(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    line = await _stopped(local, caplog, polled=True)
    newest = local.checkpoints(local.runs()[0])[-1]
    assert line.endswith(f"; last checkpoint {newest.path}; the same command goes on from it")
    assert await _goes_on(local, corrupted=True) == newest.steps == 10


async def test_a_request_that_fails_as_its_client_is_closed_takes_nothing_of_that_back(
    local: LocalTinker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does that the SDK was about to send again; no fault of the service's."""
    close = AttemptScope.close

    async def closing(scope: AttemptScope, *how: Any) -> None:
        scope.hooks.call_failed("forward_backward", 12, RuntimeError("ServiceClient is closed"))
        await close(scope, *how)

    monkeypatch.setattr(AttemptScope, "close", closing)
    line = await _stopped(local, caplog, polled=True)
    newest = local.checkpoints(local.runs()[0])[-1]
    assert line.endswith(f"; last checkpoint {newest.path}; the same command goes on from it")
    assert await _goes_on(local, corrupted=True) == newest.steps == 10
