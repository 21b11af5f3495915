"""Supervised runs on a Ray cluster: async actors, of which each carries many runs.

    pip install 'tinker-recovery[ray]'
    TINKER_BASE_URL=... TINKER_API_KEY=... python examples/ray_jobs.py

Ray restarts an actor whose process or node is gone, and calls again what it had not answered: each
run then resumes from its newest checkpoint, as its name and its claim at the service say. --kill
kills an actor on the way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from typing import Any

import ray
from tinker import types

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryPolicy,
    RunFinished,
    Supervisor,
)

ADAM = types.AdamParams(learning_rate=1e-2)


def batch(step: int) -> list[types.Datum]:
    """The batch of one step; it depends on the step alone, so a replay gets the same one."""
    tokens = [(step * 7 + offset * offset) % 50 for offset in range(17)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
                "weights": types.TensorData(data=[1.0] * 16, dtype="float32"),
            },
        )
    ]


async def train(attempt: Attempt, steps: int) -> None:
    """One run."""
    for step in range(attempt.start_step, steps):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update


class Trainer:
    """An actor: one Supervisor, entered by a task that lives as long as the actor does."""

    def __init__(self) -> None:
        self._supervisor = Supervisor(RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=5)))
        self._ready = asyncio.Event()
        self._serving: asyncio.Task[None] | None = None

    async def _serve(self) -> None:
        async with self._supervisor:
            self._ready.set()
            await asyncio.Event().wait()

    async def train(self, name: str, model: str, steps: int) -> int:
        """Train a run to its end; called again after a crash, it resumes. Returns the process."""
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        await self._ready.wait()
        # It may have come to its end, and the actor died before it could answer.
        with contextlib.suppress(RunFinished):
            await self._supervisor.run(
                lambda attempt: train(attempt, steps), name=name, base_model=model, rank=8
            )
        return os.getpid()


def main(runs: int, steps: int, model: str, *, kill: bool) -> None:
    """Spread runs over actors, and wait for all of them."""
    ray.init(log_to_driver=False)
    # A run waits for the network, so an actor needs next to no processor and carries hundreds.
    remote: Any = ray.remote(
        num_cpus=0.1, max_restarts=-1, max_task_retries=-1, max_concurrency=500
    )(Trainer)
    actors = [remote.remote() for _ in range(2)]
    waiting = [
        actors[number % len(actors)].train.remote(f"ray-{number:02}", model, steps)
        for number in range(runs)
    ]
    if kill:
        time.sleep(3)
        ray.kill(actors[0], no_restart=False)
    processes = ray.get(waiting)
    print(f"done: {len(processes)} runs in {len(set(processes))} processes")
    ray.shutdown()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--model", default="Qwen/Qwen3-8B")
    arguments.add_argument("--kill", action="store_true")
    given = arguments.parse_args()
    main(given.runs, given.steps, given.model, kill=given.kill)
