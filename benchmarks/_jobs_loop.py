"""What the jobs of the benchmark train; a worker imports it by this path."""

from __future__ import annotations

from typing import Any

import anyio
from _plain_loop import ADAM, batch

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy

MODEL, RANK, SEED = "Qwen/Qwen3-8B", 8, 7
START: dict[str, Any] = {"base_model": MODEL, "rank": RANK, "seed": SEED}

POLICY = RecoveryPolicy(
    canary=None,
    standby="none",
    backoff_s=0.1,
    max_backoff_s=1.0,
    poll_interval_s=30.0,
    checkpoints=CheckpointPolicy(save_every=10),
)


async def train(attempt: Attempt, *, steps: int, pace_s: float = 0.0) -> int:
    """Train to ``steps``."""
    for step in range(attempt.start_step, steps):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        await anyio.sleep(pace_s)
    return steps
