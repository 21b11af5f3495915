"""A newest checkpoint that is damaged, in whatever way, costs one step back and nothing more."""

from __future__ import annotations

from typing import get_args

import pytest
from inspection import run_id_of
from loops import ADAM, MODEL, SEED, batch, quick, undisturbed_state

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.testing import Damage, LocalTinker

KINDS = get_args(Damage)
STEPS = 2 * len(KINDS) + 2


async def test_recovery_lands_on_the_next_older_one_and_ends_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One run, poisoned at steps 2, 4, 6 ... with its newest checkpoint damaged: each kind once.

    What cannot be parsed the service refuses to load. The rest it loads and says nothing, and then
    the canary notices.
    """
    async with LocalTinker(lenient=True) as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        expected = await undisturbed_state(local, steps=STEPS)
        left = list(KINDS)

        async def train(attempt: Attempt) -> None:
            for step in range(attempt.start_step, STEPS):
                forward = attempt.client.forward_backward(batch(step), "cross_entropy")
                await attempt.client.optim_step(ADAM)
                await forward
                await attempt.client.drain()  # one save is in flight at most: let none be left out
                done = step + 1
                if left and done == 2 * (len(KINDS) - len(left)) + 2:
                    newest = local.checkpoints(run_id_of(attempt))[-1]
                    assert newest.steps == done
                    local.damage(newest.path, left.pop(0))
                    local.poison()

        given = quick(
            checkpoints=CheckpointPolicy(save_at_start=False, save_every=1, strategy="all"),
            canary=tuple(batch(0)),
            canary_tolerance=0.0,
        )
        async with Supervisor(given) as supervisor:
            await supervisor.run(train, base_model=MODEL, rank=8, seed=SEED)
        (run,) = supervisor.runs
        starts = [attempt.start_step for attempt in run.attempts]
        assert starts == [0, *(2 * number + 1 for number in range(len(KINDS)))]
        assert local.run_state(run.segments[-1].run_id) == expected
        assert "active" not in local.sessions().values()
