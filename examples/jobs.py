"""Twenty supervised runs as jobs, in one script: no worker, no database server, nothing to set up.

    pip install 'tinker-recovery[jobs,local]' && python examples/jobs.py

trains at a local server of its own, which poisons a tenth of the runs. With TINKER_API_KEY set it
trains at the real service (choose --model), and the jobs are kept beside the journal: interrupt it
and run it again, and every job goes on from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tinker import types

from tinker_recovery import Attempt
from tinker_recovery.jobs import Jobs, RetryPolicy
from tinker_recovery.testing import LocalTinker

RETRY = RetryPolicy(max_attempts=5, retryable_errors=("timeout", "backend_unavailable"))


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


async def train(attempt: Attempt, *, lr: float, steps: int) -> float:
    """One run: what a worker calls, so at the top of the module; returns the last loss."""
    loss, adam = 0.0, types.AdamParams(learning_rate=lr)
    for step in range(attempt.start_step, steps):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(adam)
        loss = (await forward).metrics["loss:sum"]
        await update
        attempt.report(loss=loss)
    return loss


async def main(runs: int, steps: int, model: str) -> None:
    """Submit a sweep over learning rates, and print what came of it."""
    async with Jobs(starts_per_s=20) as jobs:
        handles = [
            await jobs.submit(
                train,
                name=f"sweep-{number:02}",
                base_model=model,
                rank=8,
                retry=RETRY,
                args={"lr": 1e-3 * 1.2**number, "steps": steps},
            )
            for number in range(runs)
        ]
        recoveries = 0
        for handle in handles:
            result = await handle.result()
            recoveries += result.recoveries
            print(
                f"{result.name}: loss {result.value:.3f} at step {result.step}; "
                f"recoveries: {result.recoveries}, retries: {result.retries}"
            )
        print(f"done: {len(handles)} jobs, recoveries: {recoveries}")


@asynccontextmanager
async def somewhere() -> AsyncIterator[None]:
    """The service of the environment, or a local server that is gone afterwards, jobs and all."""
    if os.environ.get("TINKER_API_KEY"):
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        async with LocalTinker() as local:
            for step in (5, 9):
                local.poison(at_step=step)  # of whichever run is the first to reach it
            os.environ |= {
                "TINKER_BASE_URL": local.base_url,
                "TINKER_API_KEY": local.api_key,
                "TINKER_RECOVERY_STATE_DIR": folder,
            }
            yield


async def run(runs: int, steps: int, model: str) -> None:
    """The whole of it."""
    async with somewhere():
        await main(runs, steps, model)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--model", default="Qwen/Qwen3-8B")
    given = arguments.parse_args()
    sys.exit(asyncio.run(run(given.runs, given.steps, given.model)))
