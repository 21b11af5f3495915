"""A training script that saves under one name again and again, and is killed with saves queued.

    python saving_over.py --steps 10 --die-at 1

Its first attempt kills its process, with SIGKILL, soon after a save of that step is stored.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from typing import Any

import anyio
from loops import ADAM, MODEL, SEED, batch

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryEvent, RecoveryPolicy, Supervisor
from tinker_recovery.telemetry import names

NAME = "saving-over"


async def train(attempt: Attempt, steps: int, *, every: int = 1) -> None:
    """Two steps ahead, and never waiting for a save."""
    pending: list[Any] = []
    for step in range(attempt.start_step, steps):
        pending.append(attempt.client.forward_backward(batch(step), "cross_entropy"))
        pending.append(attempt.client.optim_step(ADAM))
        if (step + 1) % every == 0:
            attempt.client.save_state("latest", overwrite=True)
        while len(pending) > 4:
            await pending.pop(0)


async def main() -> None:
    """Train the run of this name to its end, or to its death."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--die-at", type=int, required=True)
    given = parser.parse_args()

    def die(event: RecoveryEvent) -> None:
        if (
            event.name == names.EVENT_CHECKPOINT_SAVED
            and event.fields[names.CHECKPOINT_STEP] == given.die_at
            and len(supervisor.runs[0].segments) == 1
        ):
            # Once the journal has it as well.
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()

    policy = RecoveryPolicy(
        enabled=True,
        stall_after_s="off",
        standby="none",
        checkpoints=CheckpointPolicy(save_every=100),
    )
    async with Supervisor(policy, on_event=die) as supervisor:
        async for attempt in supervisor.attempts(name=NAME, base_model=MODEL, rank=8, seed=SEED):
            async with attempt:
                await train(attempt, given.steps)


if __name__ == "__main__":
    anyio.run(main)
