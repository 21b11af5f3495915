"""What supervision costs a training step: a supervised loop against a bare SDK loop.

Both train on one local server, in a process of its own. Blocks of steps alternate between the two,
in random order within each pair, and a ratio is the median over pairs of (supervised / bare), so
that noise lasting longer than a pair affects both alike. A step is forward_backward and optim_step,
submitted together, and awaited once so many more steps are submitted: its pipeline depth. A loop
that blocks waits for both in a thread. Measured are seconds, and processor seconds of this process.
The loops never save, so this is the cost of counting and monitoring alone.

Then both save every 20 steps, the bare loop by a ``save_state`` of its own that it does not wait
for, the supervised one with the default canary, which is asked behind each save, and retention. A
save costs some 20 ms of requests beside the loop, so this is measured with steps that take the
service 50 ms. What that costs in requests is printed, for an hour of one step a second.

The cost of tracing is measured the same way, between two processes: one exports its traces to an
OTLP receiver over gRPC, the other has no OpenTelemetry SDK configured.

    python benchmarks/step_overhead.py [--quick] [--json]

With --quick only depth 0 is measured, in as many short blocks as fit into the time.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import anyio.to_thread
import tinker
from _receiver import grpc_receiver
from _report import Bar, arguments, bars, rounds, table
from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.retention.loop import GAP_S
from tinker_recovery.testing import LocalTinker, LocalTinkerProcess

ADAM = types.AdamParams(learning_rate=1e-3)
SHAPES: dict[str, int | None] = {"depth 0": 0, "depth 2": 2, "depth 5": 5, "blocking": None}
"""Of the loop: how many steps more are submitted before one is awaited; None if it blocks."""
BLOCK, QUICK_BLOCK = 10, 2
SAVE_EVERY, SERVICE_S = 20, 0.05
PAIRS, SAVING_PAIRS = 300, 60
QUICK_S = 9.0
"""Seconds for each of the comparisons with --quick; more pairs of shorter blocks vary less."""
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


def policy(save_every: int = 10**9) -> RecoveryPolicy:
    """The default settings; never saves unless told to."""
    return RecoveryPolicy(enabled=True, checkpoints=CheckpointPolicy(save_every=save_every))


Client = tinker.TrainingClient | SupervisedClient
Cost = tuple[float, float]
"""Seconds a step, and processor seconds."""


async def block(
    client: Client, steps: int, *, depth: int | None = 0, save_as: str | None = None
) -> Cost:
    """What a step costs, over one block of them, behind a save of that name if there is one.

    Args:
        client: Which trains.
        steps: How many.
        depth: How many more are submitted before one is awaited; None to block in a thread.
        save_as: Name of the save.
    """
    began, cpu = time.perf_counter(), time.process_time()
    if save_as is not None:
        client.save_state(save_as)
    if depth is None:
        await anyio.to_thread.run_sync(blocking, client, steps)
    else:
        pending: deque[tuple[tinker.APIFuture[Any], tinker.APIFuture[Any]]] = deque()
        for _ in range(steps):
            pending.append(submit(client))
            if len(pending) > depth:
                for each in pending.popleft():
                    await each
        for pair in pending:
            for each in pair:
                await each
    return (time.perf_counter() - began) / steps, (time.process_time() - cpu) / steps


def submit(client: Client) -> tuple[tinker.APIFuture[Any], tinker.APIFuture[Any]]:
    """One step."""
    return client.forward_backward(DATA, "cross_entropy"), client.optim_step(ADAM)


def blocking(client: Client, steps: int) -> None:
    """A loop without an event loop."""
    for _ in range(steps):
        for each in submit(client):
            each.result()


def _ratio(over: list[Cost], under: list[Cost], which: int = 0) -> float:
    return statistics.median(
        mine[which] / theirs[which] for mine, theirs in zip(over, under, strict=True)
    )


def _rows(times: dict[str, list[Cost]]) -> list[list[str]]:
    return [
        [
            name,
            f"{statistics.median(wall for wall, _ in costs) * 1e3:.3f} ms",
            f"{min(wall for wall, _ in costs) * 1e3:.3f} ms",
            f"{statistics.median(cpu for _, cpu in costs) * 1e3:.3f} ms",
        ]
        for name, costs in times.items()
    ]


async def supervision(
    steps: int,
    *,
    pairs: int,
    within_s: float | None,
    depth: int | None = 0,
    save_every: int | None = None,
) -> dict[str, list[Cost]]:
    """What a step of each block costs, bare and supervised.

    Args:
        steps: Of a block.
        pairs: How many pairs of blocks.
        within_s: No further pair is begun after that many seconds.
        depth: See :func:`block`.
        save_every: How often both save; None for never.
    """
    service = tinker.ServiceClient()
    pending = await anyio.to_thread.run_sync(
        lambda: service.create_lora_training_client("bench", rank=8, seed=1)
    )
    bare = await pending
    times: dict[str, list[Cost]] = {"bare": [], "supervised": []}
    given = policy() if save_every is None else policy(save_every)
    async with Supervisor(given) as supervisor:
        async for attempt in supervisor.attempts(base_model="bench", rank=8, seed=1):
            async with attempt:
                clients: dict[str, Client] = {"bare": bare, "supervised": attempt.client}
                for client in clients.values():
                    await block(client, steps, depth=depth)
                for pair in rounds(pairs, within_s=within_s):
                    for name in random.sample(list(clients), 2):
                        own = save_every is not None and name == "bare"
                        save_as = f"block-{pair}" if own else None
                        cost = await block(clients[name], steps, depth=depth, save_as=save_as)
                        times[name].append(cost)
    await service.close("success")
    return times


async def extra_requests(server: LocalTinker, saves: int) -> list[list[str]]:
    """By route: what a supervised loop asks more than a bare one for each save, and in an hour.

    An hour of one step a second; in addition, the Monitor reads the run's status at every poll.
    """
    bare = await anyio.to_thread.run_sync(
        lambda: tinker.ServiceClient().create_lora_training_client("bench", rank=8).result()
    )
    extra: Counter[str] = Counter()

    async def trained(client: tinker.TrainingClient | SupervisedClient, *, sign: int) -> None:
        before = server.stats.by_route
        for done in range(saves):
            save_as = f"extra-{done}" if client is bare else None
            await block(client, SAVE_EVERY, save_as=save_as)
            await anyio.sleep(1.2 * GAP_S)  # for retention, which follows a save
        after = server.stats.by_route
        extra.update({route: sign * (after[route] - before.get(route, 0)) for route in after})

    await trained(bare, sign=-1)
    async with Supervisor(policy(SAVE_EVERY)) as supervisor:
        async for attempt in supervisor.attempts(base_model="bench", rank=8, seed=1):
            async with attempt:
                await block(attempt.client, SAVE_EVERY)
                await anyio.sleep(1.2 * GAP_S)
                await trained(attempt.client, sign=1)
    of_saves = 3600 / SAVE_EVERY
    rows = [
        [route, f"{count / saves:.1f}", f"{count / saves * of_saves:.0f}"]
        for route, count in sorted(extra.items())
        if count and route != "session_heartbeat"
    ]
    return [*rows, ["status, at each poll", "", f"{3600 / policy().poll_interval_s:.0f}"]]


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


def use(server: LocalTinker | LocalTinkerProcess) -> None:
    """Have clients be of this server."""
    os.environ.update(
        TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
    )


@asynccontextmanager
async def serving(step_s: float = 0.0) -> AsyncGenerator[None]:
    """A server in a process of its own; seconds that a forward and backward pass takes there."""
    with TemporaryDirectory(prefix="step-overhead-") as folder:
        async with LocalTinkerProcess(Path(folder), step_s=step_s) as server:
            use(server)
            yield


async def alone(*, quick: bool) -> list[Bar]:
    """Loops that never save: the tables, and the bars."""
    made = []
    for shape, depth in SHAPES.items():
        if quick and depth != 0:
            continue
        async with serving():
            times = await supervision(
                QUICK_BLOCK if quick else BLOCK,
                pairs=PAIRS,
                within_s=QUICK_S if quick else None,
                depth=depth,
            )
        header = f"step, {shape} ({len(times['bare'])} pairs of blocks)"
        table([header, "median", "fastest", "CPU"], _rows(times))
        print()
        for which, what in enumerate(("", " in CPU")):
            ratio = _ratio(times["supervised"], times["bare"], which)
            made.append(Bar(f"step overhead{what}, {shape}", ratio, LIMIT))
    return made


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the tables, return the bars."""
    made = await alone(quick=quick)
    async with serving(SERVICE_S):
        saving = await supervision(
            SAVE_EVERY,
            pairs=SAVING_PAIRS,
            within_s=QUICK_S if quick else None,
            save_every=SAVE_EVERY,
        )
    header = f"step, a save every {SAVE_EVERY} ({len(saving['bare'])} pairs)"
    table([header, "median", "fastest", "CPU"], _rows(saving))
    print()
    async with LocalTinker() as server:
        use(server)
        extra = await extra_requests(server, 1 if quick else 5)
        table(["extra requests", "a save", "an hour"], extra)
        traced, spans = await anyio.to_thread.run_sync(lambda: tracing(quick=quick))
    print()
    table([f"step ({spans} spans exported)", "median", "fastest"], _traced(traced))
    plain, exported = traced.values()
    return [
        *made,
        Bar(
            f"step overhead, canary and a save every {SAVE_EVERY} steps of 50 ms",
            _ratio(saving["supervised"], saving["bare"]),
            LIMIT,
        ),
        Bar(
            "step with tracing exported over without",
            statistics.median(one / other for one, other in zip(exported, plain, strict=True)),
            TRACING_LIMIT,
        ),
    ]


def _traced(times: dict[str, list[float]]) -> list[list[str]]:
    return [
        [name, f"{statistics.median(seconds) * 1e3:.3f} ms", f"{min(seconds) * 1e3:.3f} ms"]
        for name, seconds in times.items()
    ]


if __name__ == "__main__":
    given = arguments(__doc__)
    bars("step_overhead", anyio.run(lambda: main(quick=given.quick)), as_json=given.json)
