"""What saving costs the loop: a save behind every step, against never saving.

Supervised loops, two batches ahead, on one local server in a process of its own: one never saves,
one saves behind every step, and one saves behind every step at a service that answers each save two
seconds late. These have no canary. One more has the default canary, which is asked behind every
save: that is printed, and has no bar, as the local server takes as long for a pass over a canary's
few tokens as for a whole batch, which a real service does not. The collector lists their
checkpoints and deletes old ones, as always. Blocks of steps alternate between the loops in random
order, and a ratio is the median over rounds of (saving / never saving) within the round.

A step takes 0.1 s at the server, a tenth of a quick real one; a save is really written to disk and
is executed in its turn, so the service's own time for it is part of the figure.

    python benchmarks/checkpointing.py [--quick] [--json]
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections import deque
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from _report import Bar, arguments, bars, table
from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, SupervisedClient, Supervisor
from tinker_recovery.run.attempt import scope_of
from tinker_recovery.testing import FaultRule, LocalTinkerProcess

ADAM = types.AdamParams(learning_rate=1e-3)
DEPTH = 2
BLOCK = 8
STEP_S = 0.1
SLOW_S = 2.0
LIMIT = 1.05
SLOW = "every step, slow save"
CANARY = "every step, with the canary"
LOOPS = {"never": 10**9, "every step": 1, SLOW: 1, CANARY: 1}


def batch() -> list[types.Datum]:
    """One batch of ordinary size."""
    tokens = [(offset * 7) % 50 for offset in range(129)]
    targets = types.TensorData(data=tokens[1:], dtype="int64", shape=[128])
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={"target_tokens": targets},
        )
    ]


async def block(client: SupervisedClient, data: list[types.Datum]) -> float:
    """Seconds for one block of steps, from the first submission to the last result."""
    began = time.perf_counter()
    pending: deque[tuple[Any, Any]] = deque()
    for _ in range(BLOCK):
        pending.append((client.forward_backward(data, "cross_entropy"), client.optim_step(ADAM)))
        while len(pending) > DEPTH:
            forward, update = pending.popleft()
            await forward
            await update
    for forward, update in pending:
        await forward
        await update
    return time.perf_counter() - began


async def main(*, quick: bool) -> list[Bar]:
    """Measure, print the table, return the bars."""
    rounds = 5 if quick else 40
    data = batch()
    times: dict[str, list[float]] = {name: [] for name in LOOPS}
    saved: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="checkpointing-") as folder:
        async with (
            LocalTinkerProcess(root=Path(folder), step_s=STEP_S) as server,
            AsyncExitStack() as stack,
        ):
            os.environ.update(
                TINKER_BASE_URL=server.base_url, TINKER_API_KEY=server.api_key, TINKER_TELEMETRY="0"
            )
            attempts: dict[str, Attempt] = {}
            for name, every in LOOPS.items():
                given = CheckpointPolicy(save_every=every, save_at_end=False)
                policy = RecoveryPolicy(
                    enabled=True, canary="auto" if name == CANARY else None, checkpoints=given
                )
                supervisor = await stack.enter_async_context(Supervisor(policy))
                attempt = await anext(supervisor.attempts(base_model="bench", rank=8, seed=1))
                attempts[name] = await stack.enter_async_context(attempt)
            slow = attempts[SLOW]
            await server.inject(
                FaultRule(
                    "slow",
                    request="retrieve_future",
                    polled="save_weights",
                    run=str(slow.client.model_id),
                    delay_s=SLOW_S,
                    times=10**6,
                )
            )
            for attempt in attempts.values():
                await block(attempt.client, data)
            for _ in range(rounds):
                for name in random.sample(list(LOOPS), len(LOOPS)):
                    times[name].append(await block(attempts[name].client, data))
            await server.release()
            saved = {
                name: len(scope_of(attempt).run.history.saved) for name, attempt in attempts.items()
            }
    ratios = {
        name: statistics.median(
            mine / never for mine, never in zip(seconds, times["never"], strict=True)
        )
        for name, seconds in times.items()
    }
    steps = BLOCK * (rounds + 1)
    rows = [
        [
            name,
            f"{statistics.median(seconds) / BLOCK * 1e3:.1f} ms",
            f"{ratios[name]:.4f}",
            f"{saved[name]} of {steps}",
        ]
        for name, seconds in times.items()
    ]
    table([f"save ({rounds} rounds of {BLOCK} steps)", "a step", "over never", "saves"], rows)
    return [
        Bar("every step over never, without a canary", ratios["every step"], LIMIT),
        Bar("slow save (2 s) over never, without a canary", ratios[SLOW], LIMIT),
    ]


if __name__ == "__main__":
    given_ = arguments(__doc__)
    measured = anyio.run(lambda: main(quick=given_.quick))
    bars("checkpointing", measured, as_json=given_.json)
