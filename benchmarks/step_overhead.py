"""What supervision costs a training step: a supervised loop against a bare SDK loop.

Both train on one local server in one run. Blocks of steps alternate between the two, in random
order within each pair, and the ratio is the median over pairs of (supervised / bare): noise that
lasts longer than a pair hits both alike. The loops never save, so this is the cost of counting and
watching alone. A step is forward_backward and optim_step, submitted together and awaited.

    python benchmarks/step_overhead.py [--quick] [--json]
"""

from __future__ import annotations

import os
import random
import statistics
import time

import anyio
import anyio.to_thread
import tinker
from _report import Bar, arguments, bars, table
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.testing import LocalTinker

ADAM = types.AdamParams(learning_rate=1e-3)
BLOCK = 25
LIMIT = 1.02


def batch() -> list[types.Datum]:
    """One batch of ordinary size."""
    tokens = [(offset * 7) % 50 for offset in range(129)]
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[128])
        },
    )
    return [datum] * 4


async def block(client: tinker.TrainingClient | SupervisedClient, data: list[types.Datum]) -> float:
    """Seconds for one block of steps."""
    began = time.perf_counter()
    for _ in range(BLOCK):
        forward = client.forward_backward(data, "cross_entropy")
        update = client.optim_step(ADAM)
        await forward
        await update
    return time.perf_counter() - began


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the table, return the bars."""
    pairs = 60 if quick else 240
    data = batch()
    async with LocalTinker() as server:
        os.environ.update(
            TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
        )
        service = tinker.ServiceClient()
        pending = await anyio.to_thread.run_sync(
            lambda: service.create_lora_training_client("bench", rank=8, seed=1)
        )
        bare = await pending
        policy = RecoveryPolicy(
            enabled=True, poll_interval_s=30, checkpoints=CheckpointPolicy(save_every=10**9)
        )
        times: dict[str, list[float]] = {"bare": [], "supervised": []}
        async with Supervisor(policy) as supervisor:
            async for attempt in supervisor.attempts(base_model="bench", rank=8, seed=1):
                async with attempt:
                    clients: dict[str, tinker.TrainingClient | SupervisedClient] = {
                        "bare": bare,
                        "supervised": attempt.client,
                    }
                    for client in clients.values():
                        await block(client, data)
                    for _ in range(pairs):
                        for name in random.sample(list(clients), 2):
                            times[name].append(await block(clients[name], data))
        await service.close("success")
    ratio = statistics.median(
        mine / theirs for mine, theirs in zip(times["supervised"], times["bare"], strict=True)
    )
    rows = [
        [
            name,
            f"{statistics.median(seconds) / BLOCK * 1e3:.3f} ms",
            f"{min(seconds) / BLOCK * 1e3:.3f} ms",
        ]
        for name, seconds in times.items()
    ]
    table([f"step ({pairs} pairs of {BLOCK})", "median", "fastest"], rows)
    return [Bar("step overhead", ratio, LIMIT)]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("step_overhead", anyio.run(lambda: main(quick=given.quick)), as_json=given.json)
