"""Checkpoints saved after a fault began are not what their step number says, and are not used."""

from __future__ import annotations

import functools

import pytest
from loops import MODEL, SEED, policy, train, undisturbed_state

from tinker_recovery import Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("action", ["fail", "gone"])
@pytest.mark.parametrize("request_kind", ["forward_backward", "optim_step"])
async def test_a_save_queued_behind_a_request_that_failed_alone_is_never_gone_back_to(
    local: LocalTinker, depth: int, action: str, request_kind: str
) -> None:
    """Only this request fails; the optimizer step behind it and the save at 5 are executed."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule(action, 4, request_kind))  # type: ignore[arg-type]  # pytest's parameters
    async with Supervisor(policy(backoff_s=0.0, max_backoff_s=0.0)) as supervisor:
        await supervisor.run(
            functools.partial(train, steps=STEPS, depth=depth),
            base_model=MODEL,
            rank=8,
            seed=SEED,
        )
    (run,) = supervisor.runs
    assert local.run_state(run.segments[-1].run_id) == expected
    if (action, request_kind) == ("fail", "forward_backward"):
        assert [attempt.start_step for attempt in run.attempts] == [0, 0]
