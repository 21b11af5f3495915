"""A pipelined loop: one or two batches are submitted ahead of the one awaited.

The service executes requests in the order of submission, so a pipelined loop keeps it busy. The
step stored with each checkpoint stays exact: a save is queued between its optimizer step and the
next request, not when a result arrives.

Run it as examples/minimal.py says, with ``--depth 1`` or ``--depth 2``; by default it does both.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import deque

from tinker import APIFuture, types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, RunFinished, Supervisor

ADAM = types.AdamParams(learning_rate=1e-2)

Pending = tuple[int, APIFuture[types.ForwardBackwardOutput], APIFuture[types.OptimStepResponse]]


def batch(step: int) -> list[types.Datum]:
    """The batch of one step; it depends on the step alone, so a replay gets the same one."""
    tokens = [(step * 11 + offset * 3) % 50 for offset in range(17)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
                "weights": types.TensorData(data=[1.0] * 16, dtype="float32"),
            },
        )
    ]


async def train(attempt: Attempt, *, steps: int, depth: int) -> None:
    """One attempt: keeps ``depth`` batches submitted ahead of the one it waits for."""
    pending: deque[Pending] = deque()
    for step in range(attempt.start_step, steps + depth):
        if step < steps:
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            pending.append((step, forward, attempt.client.optim_step(ADAM)))
        if pending and pending[0][0] <= step - depth:
            done, forward, update = pending.popleft()
            loss = (await forward).metrics["loss:sum"]
            await update
            attempt.report(loss=loss)
            if done % 10 == 0:
                print(f"depth {depth}, step {done}: loss {loss:.3f}")


async def main(steps: int, depths: list[int], model: str) -> None:
    """Train one supervised run for each depth."""
    policy = RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=10))
    async with Supervisor(policy) as supervisor:
        for depth in depths:

            async def ahead(attempt: Attempt, depth: int = depth) -> None:
                await train(attempt, steps=steps, depth=depth)

            await supervisor.run(ahead, base_model=model, rank=8, name=f"pipelined-{depth}")
            run = supervisor.runs[-1]
            print(f"{run.name} done: {steps} steps, {len(run.recoveries)} recoveries")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--depth", type=int, action="append")
    arguments.add_argument("--model", default="Qwen/Qwen3-8B")
    given = arguments.parse_args()
    try:
        asyncio.run(main(given.steps, given.depth or [1, 2], given.model))
    except RunFinished as finished:
        # The same command resumes a run that was interrupted; this one is finished already.
        sys.exit(str(finished))
