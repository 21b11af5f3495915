"""What supervision costs a training step: a supervised loop against a bare SDK loop.

Both train on one local server. Blocks of steps alternate between the two, in random order within
each pair, and the ratio is the median over pairs of (supervised / bare), so that noise lasting
longer than a pair affects both alike. The loops never save, so this is the cost of counting and
monitoring alone. A step is forward_backward and optim_step, submitted together and awaited.

The cost of tracing is measured the same way, between two processes: one exports its traces to an
OTLP receiver over gRPC, the other has no OpenTelemetry SDK configured.

    python benchmarks/step_overhead.py [--quick] [--json]
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
from _report import Bar, arguments, bars, table
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.testing import LocalTinker

ADAM = types.AdamParams(learning_rate=1e-3)
BLOCK = 25
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


async def block(client: tinker.TrainingClient | SupervisedClient) -> float:
    """Seconds for one block of steps."""
    began = time.perf_counter()
    for _ in range(BLOCK):
        forward = client.forward_backward(DATA, "cross_entropy")
        update = client.optim_step(ADAM)
        await forward
        await update
    return time.perf_counter() - began


def _ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(over, under, strict=True))


def _rows(times: dict[str, list[float]]) -> list[list[str]]:
    return [
        [
            name,
            f"{statistics.median(seconds) / BLOCK * 1e3:.3f} ms",
            f"{min(seconds) / BLOCK * 1e3:.3f} ms",
        ]
        for name, seconds in times.items()
    ]


async def supervision(pairs: int) -> dict[str, list[float]]:
    """Seconds of each block, bare and supervised."""
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
                    await block(client)
                for _ in range(pairs):
                    for name in random.sample(list(clients), 2):
                        times[name].append(await block(clients[name]))
    await service.close("success")
    return times


def tracing(pairs: int) -> tuple[dict[str, list[float]], int]:
    """Seconds of each block, without an SDK and with traces exported; and the spans received."""
    worker = [sys.executable, str(Path(__file__).with_name("_step_worker.py"))]
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
        for _ in range(pairs):
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
    pairs = 60 if quick else 240
    async with LocalTinker() as server:
        os.environ.update(
            TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
        )
        times = await supervision(pairs)
        table([f"step ({pairs} pairs of {BLOCK})", "median", "fastest"], _rows(times))
        traced, spans = await anyio.to_thread.run_sync(tracing, pairs)
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
