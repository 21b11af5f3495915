"""A training script that saves every step, keeps batches submitted ahead, and is killed once.

    python deep_pipeline.py --steps 22 --depth 3 --die-at 15 [--die-at-once]

Its first attempt kills its process, with SIGKILL, when a checkpoint of that step or a later one is
stored; with --die-at-once, any attempt does so before its first request.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Collection

import anyio
from loops import ADAM, MODEL, SEED, batch, until

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryEvent,
    RecoveryPolicy,
    Supervisor,
)
from tinker_recovery.telemetry import names

NAME = "deep"


async def train(attempt: Attempt, steps: int, depth: int, saved: Collection[int]) -> None:
    """Keep ``depth`` batches ahead, and let each save be answered."""
    pending: list[object] = []
    for step in range(attempt.start_step, steps):
        pending.append(attempt.client.forward_backward(batch(step), "cross_entropy"))
        # The next save is submitted once this one is stored.
        await until(lambda: step <= attempt.start_step or step in saved)  # noqa: B023 - awaited here
        pending.append(attempt.client.optim_step(ADAM))
        while len(pending) > 2 * depth:
            await pending.pop(0)  # type: ignore[misc]  # an APIFuture


async def main() -> None:
    """Train the run of this name to its end, or to its death."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--depth", type=int, required=True)
    parser.add_argument("--die-at", type=int, required=True)
    parser.add_argument("--die-at-once", action="store_true")
    given = parser.parse_args()

    saved: set[int] = set()

    def note(event: RecoveryEvent) -> None:
        step = event.fields.get(names.CHECKPOINT_STEP)
        if event.name == names.EVENT_CHECKPOINT_SAVED and isinstance(step, int):
            saved.add(step)
            if step >= given.die_at and len(supervisor.runs[0].segments) == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    policy = RecoveryPolicy(
        enabled=True,
        stall_after_s="off",
        standby="none",  # of a process that is killed, it would be left at the service
        # Its passes would be the ones that the fault strikes.
        canary=None,
        checkpoints=CheckpointPolicy(save_every=1, keep_last=20),
    )
    async with Supervisor(policy, on_event=note) as supervisor:
        async for attempt in supervisor.attempts(name=NAME, base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                if given.die_at_once:
                    os.kill(os.getpid(), signal.SIGKILL)
                await train(attempt, given.steps, given.depth, saved)


if __name__ == "__main__":
    anyio.run(main)
