"""What the jobs of the benchmark train; a worker imports it by this path."""

from __future__ import annotations

from typing import Any

import anyio
from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy

ADAM = types.AdamParams(learning_rate=5e-2)
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


def batch(step: int) -> list[types.Datum]:
    """One step's batch, a function of the step alone."""
    tokens = [(step * 7 + offset * offset) % 50 for offset in range(9)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[8])
            },
        )
    ]


async def train(attempt: Attempt, *, steps: int, pace_s: float = 0.0) -> int:
    """Train to ``steps``."""
    for step in range(attempt.start_step, steps):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        await anyio.sleep(pace_s)
    return steps
