"""Preferences in plain SDK code: a reference model made once, a pair trained on by its margin.

The reference is of the weights that the run began with. Made inside the loop, it would be of the
trained weights after a recovery, and the loss would hardly show it: attempt.once() keeps it for the
run. Run it against a local server, in two terminals:

    tinker-recovery serve --port 8010
    TINKER_BASE_URL=http://127.0.0.1:8010 TINKER_API_KEY=tml-local-key python examples/dpo.py

or against the real service, with your own TINKER_API_KEY (and --model one it offers).
"""

from __future__ import annotations

import argparse
import asyncio
import math
from typing import Any

from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor

ADAM = types.AdamParams(learning_rate=1e-2)
BETA = 0.1


def pair(step: int) -> tuple[list[int], list[int]]:
    """The tokens of the chosen answer, and of the rejected one."""
    asked = [(step * 7 + offset) % 50 for offset in range(6)]
    return [*asked, *(range(0, 8, 2))], [*asked, *(range(1, 9, 2))]


def datum(tokens: list[int], weight: float) -> types.Datum:
    """An answer, with the weight of its gradient."""
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=tokens[1:], dtype="int64"),
            "weights": types.TensorData(data=[weight] * (len(tokens) - 1), dtype="float32"),
        },
    )


async def answers(sampler: Any, step: int) -> list[float]:
    """The logprobs of both answers."""
    asked = [sampler.compute_logprobs(types.ModelInput.from_ints(each)) for each in pair(step)]
    return [sum(logprob or 0.0 for logprob in await each) for each in asked]


async def train(attempt: Attempt, steps: int) -> None:
    """The loop: the gradient of DPO is that of the two likelihoods, weighted by the margin."""
    reference = await attempt.once("reference", attempt.client.save_weights_and_get_sampling_client)
    for step in range(attempt.start_step, steps):
        policy = await attempt.client.save_weights_and_get_sampling_client()
        of_policy, of_reference = await answers(policy, step), await answers(reference, step)
        gains = [mine - theirs for mine, theirs in zip(of_policy, of_reference, strict=True)]
        margin = BETA * (gains[0] - gains[1])
        weight = BETA / (1.0 + math.exp(margin))
        chosen, rejected = pair(step)
        data = [datum(chosen, weight), datum(rejected, -weight)]
        forward = attempt.client.forward_backward(data, "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        attempt.report(loss=math.log1p(math.exp(-margin)), margin=margin)
        if step % 5 == 0:
            print(f"step {step}: margin {margin:.3f}")


async def main(steps: int, model: str) -> None:
    """Train for a number of steps, under supervision."""
    policy = RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=5))
    async with Supervisor(policy) as supervisor:
        await supervisor.run(lambda attempt: train(attempt, steps), base_model=model, rank=8)
        (run,) = supervisor.runs
        print(f"done: {steps} steps, {len(run.recoveries)} recoveries")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--model", default="Qwen/Qwen3-8B")
    given = arguments.parse_args()
    asyncio.run(main(given.steps, given.model))
