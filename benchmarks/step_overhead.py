"""What supervision costs a training step: a supervised loop against a bare SDK loop.

Both train on one local server. Blocks of steps alternate between the two, in random order within
each pair, and the ratio is the median over pairs of (supervised / bare), so that noise lasting
longer than a pair affects both alike. The loops never save, so this is the cost of counting and
monitoring alone. A step is forward_backward and optim_step, submitted together and awaited.

The cost of tracing is measured the same way, between two processes: one exports its traces to an
OTLP receiver over gRPC, the other has no OpenTelemetry SDK configured.

    python benchmarks/step_overhead.py [--quick] [--json]

With --quick the blocks are shorter, and there are as many as fit into the time.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import tinker
from _receiver import grpc_receiver
from _report import Bar, arguments, bars, rounds, table
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.testing import LocalTinker

ADAM = types.AdamParams(learning_rate=1e-3)
BLOCK, QUICK_BLOCK = 25, 10
PAIRS = 240
QUICK_S = 14.0
"""Seconds for each of the two comparisons with --quick."""
LIMIT = 1.02
TRACING_LIMIT = 1.03


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


DATA = batch()


def policy() -> RecoveryPolicy:
    """Watches, and never saves."""
    return RecoveryPolicy(
        enabled=True, poll_interval_s=30, checkpoints=CheckpointPolicy(save_every=10**9)
    )


async def block(client: tinker.TrainingClient | SupervisedClient, steps: int) -> float:
    """Seconds a step, over one block of them."""
    began = time.perf_counter()
    for _ in range(steps):
        forward = client.forward_backward(DATA, "cross_entropy")
        update = client.optim_step(ADAM)
        await forward
        await update
    return (time.perf_counter() - began) / steps


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(over, under, strict=True))


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    return [
        [
            name,
            f"{statistics.median(seconds) * 1e3:.3f} ms",
            f"{min(seconds) * 1e3:.3f} ms",
        ]
        for name, seconds in times.items()
    ]


async def supervision(*, quick: bool) -> dict[str, list[float]]:
    """Seconds a step of each block, bare and supervised."""
    steps = QUICK_BLOCK if quick else BLOCK
    service = tinker.ServiceClient()
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client("bench", rank=8, seed=1)
    )
    bare = await pending
    times: dict[str, list[float]] = {"bare": [], "supervised": []}
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model="bench", rank=8, seed=1):
            async with attempt:
                clients: dict[str, tinker.TrainingClient | SupervisedClient] = {
                    "bare": bare,
                    "supervised": attempt.client,
                }
                for client in clients.values():
                    await block(client, steps)
                for _ in rounds(PAIRS, within_s=QUICK_S if quick else None):
                    for name in random.sample(list(clients), 2):
                        times[name].append(await block(clients[name], steps))
    await service.close("success")
    return times


def tracing(*, quick: bool) -> tuple[dict[str, list[float]], int]:
    """Seconds a step of each block, without an SDK and traced; and the spans received."""
    steps = str(QUICK_BLOCK if quick else BLOCK)
    worker = [sys.executable, str(Path(__file__).with_name("_step_worker.py")), steps]
    times: dict[str, list[float]] = {"supervised, no SDK": [], "supervised, traced": []}
    with grpc_receiver() as received, ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                subprocess.Popen(  # noqa: S603 - our own program
                    [*worker, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for name, given in zip(times, ([], [received.endpoint]), strict=True)
        }
        for process in workers.values():
            _ask(process)
        for _ in rounds(PAIRS, within_s=QUICK_S if quick else None):
            for name in random.sample(list(workers), 2):
                times[name].append(_ask(workers[name]))
        for process in workers.values():
            process.communicate(timeout=30)
        return times, len(received.spans())


def _ask(worker: subprocess.Popen[str]) -> float:
    assert worker.stdin is not None  # noqa: S101 - for the type checker: both are pipes
    assert worker.stdout is not None  # noqa: S101 - as above
    worker.stdin.write("block\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the tables, return the bars."""
    async with LocalTinker() as server:
        os.environ.update(
            TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
        )
        times = await supervision(quick=quick)
        table([f"step ({len(times['bare'])} pairs of blocks)", "median", "fastest"], _rows(times))
        traced, spans = await anyio.to_thread.run_sync(lambda: tracing(quick=quick))
        print()
        table([f"step ({spans} spans exported)", "median", "fastest"], _rows(traced))
    plain, exported = traced.values()
    return [
        Bar("step overhead", _ratio(times["supervised"], times["bare"]), LIMIT),
        Bar("step with tracing exported over without", _ratio(exported, plain), TRACING_LIMIT),
    ]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("step_overhead", anyio.run(lambda: main(quick=given.quick)), as_json=given.json)
