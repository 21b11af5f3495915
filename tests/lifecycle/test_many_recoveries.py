"""After many recoveries of one run, a recovery asks of the service what the first did."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from inspection import (
    set_retention_gap_s,
    settle_retention,
)
from loops import ADAM, MODEL, SEED, batch, quick

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.testing import FaultRule, LocalTinker

EARLY, LATE = 3, 30


async def _one_step(attempt: Attempt) -> None:
    """A step that is saved, and looked after."""
    forward = attempt.client.forward_backward(batch(attempt.start_step), "cross_entropy")
    await attempt.client.optim_step(ADAM)
    await forward
    await attempt.client.drain()


@pytest.mark.parametrize(
    "checkpoints",
    [
        CheckpointPolicy(
            save_every=1, save_at_start=False, keep_last=2, save_best=False, max_deletes_per_s=1e6
        ),
        CheckpointPolicy(save_every=1, save_at_start=False, strategy="all"),
    ],
    ids=["keep_last", "all"],
)
async def test_the_thirtieth_recovery_asks_for_no_more_than_the_third(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, checkpoints: CheckpointPolicy
) -> None:
    set_retention_gap_s(monkeypatch, 3600.0)  # it looks when the test has it look
    asked: list[Counter[str]] = []

    async def training(attempt: Attempt) -> None:
        await _one_step(attempt)
        await settle_retention(supervisor)
        asked.append(Counter(local.stats.by_route))
        if attempt.number <= LATE:
            local.inject(FaultRule("fail", request="forward_backward"))
            await _one_step(attempt)

    given = quick(checkpoints=checkpoints, poll_interval_s=3600.0)
    async with Supervisor(given, journal=None) as supervisor:
        await supervisor.run(training, base_model=MODEL, rank=8, seed=SEED)
        assert len(supervisor.runs[0].recoveries) == LATE
    of = [later - earlier for earlier, later in itertools.pairwise(asked)]
    for each in of:
        del each["session_heartbeat"]
        del each["retrieve_future"]  # polled until it is there
    assert of[LATE - 1] == of[EARLY]
