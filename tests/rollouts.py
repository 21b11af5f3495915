"""A loop that samples and trains on what it has sampled, in the process of a test or in its own.

    python rollouts.py --steps 12 --die-at 8 --said FILE

Its first process kills itself, with SIGKILL, right before it trains on the rollouts of that step;
each rollout that it trains on is a line of the file: its step, and its tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import tinker
from loops import ADAM, MODEL, SEED, policy
from tinker import types

from tinker_recovery import Attempt, Supervisor

PROMPT = types.ModelInput.from_ints([3, 14, 15, 9, 26])
PARAMS = types.SamplingParams(max_tokens=8, temperature=1.0)
"""Without a seed: no sample is drawn twice."""
GROUP = 2

Rollout = tuple[int, list[list[int]]]
"""A step, and the tokens it was trained on."""


async def sampled(attempt: Attempt) -> types.SampleResponse:
    """Rollouts of the weights as they are."""
    training: tinker.TrainingClient = attempt.client
    sampler = await training.save_weights_and_get_sampling_client()
    return await sampler.sample(PROMPT, GROUP, PARAMS)  # type: ignore[no-any-return]  # the SDK's


def batch_of(reply: types.SampleResponse) -> list[types.Datum]:
    """What to train on, by the rollouts alone."""
    data = []
    for sequence in reply.sequences:
        assert sequence.logprobs is not None
        target = types.TensorData(
            data=sequence.tokens[1:], dtype="int64", shape=[len(sequence.tokens) - 1]
        )
        data.append(
            types.Datum(
                model_input=types.ModelInput.from_ints(sequence.tokens[:-1]),
                loss_fn_inputs={"target_tokens": target},
            )
        )
    return data


async def train(
    attempt: Attempt, steps: int, said: Callable[[Rollout], object], *, key: str = "rollouts"
) -> None:
    """Train to ``steps``."""
    for step in range(attempt.start_step, steps):
        reply = await attempt.recall(key, lambda: sampled(attempt))
        said((step, [sequence.tokens for sequence in reply.sequences]))
        await attempt.client.forward_backward(batch_of(reply), "cross_entropy")
        await attempt.client.optim_step(ADAM)


async def main() -> None:
    """Train the run of this name to its end, or to its death."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--die-at", type=int, required=True)
    parser.add_argument("--said", type=Path, required=True)
    given = parser.parse_args()
    first = not given.said.exists()

    def said(rollout: Rollout) -> None:
        with given.said.open("a") as file:
            file.write(json.dumps(rollout) + "\n")
        if first and rollout[0] >= given.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    start: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "rl"}
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(**start):
            async with attempt:
                await train(attempt, given.steps, said)


if __name__ == "__main__":
    anyio.run(main)
