"""Reinforcement learning in plain SDK code: sample a group, reward it, train on it.

Rollouts are what a step costs, and the service draws none twice: a replayed step recalls those that
it was begun with, which were drawn from the same weights. A sample that hangs or fails is asked for
again at a fresh sampler. Run it against a local server, in two terminals:

    tinker-recovery serve --port 8010
    TINKER_BASE_URL=http://127.0.0.1:8010 TINKER_API_KEY=tml-local-key python examples/rl.py

or against the real service, with your own TINKER_API_KEY (and --model one it offers).
"""

from __future__ import annotations

import argparse
import asyncio
import functools
from typing import Any

from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor

ADAM = types.AdamParams(learning_rate=1e-2)
GROUP = 4
PARAMS = types.SamplingParams(max_tokens=8, temperature=1.0)


def prompt(step: int) -> types.ModelInput:
    """What the step's group answers."""
    return types.ModelInput.from_ints([(step * 7 + offset) % 50 for offset in range(6)])


def reward(tokens: list[int]) -> float:
    """The share of even tokens: something a model learns in no time."""
    return sum(token % 2 == 0 for token in tokens) / max(1, len(tokens))


def datum(step: int, sequence: types.SampledSequence, advantage: float) -> types.Datum:
    """One rollout, to be trained on by how much better than its group it is."""
    asked, answered = prompt(step).to_ints(), list(sequence.tokens)
    logprobs = [0.0] * (len(asked) - 1) + list(sequence.logprobs or [])
    advantages = [0.0] * (len(asked) - 1) + [advantage] * len(answered)
    whole = [*asked, *answered]
    return types.Datum(
        model_input=types.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={
            "target_tokens": types.TensorData(data=whole[1:], dtype="int64"),
            "logprobs": types.TensorData(data=logprobs, dtype="float32"),
            "advantages": types.TensorData(data=advantages, dtype="float32"),
        },
    )


async def sampled(attempt: Attempt, step: int) -> Any:
    """A group of rollouts of the weights as they are."""
    sampler = await attempt.client.save_weights_and_get_sampling_client()
    return await sampler.sample(prompt(step), GROUP, PARAMS)


async def train(attempt: Attempt, steps: int) -> None:
    """The loop."""
    for step in range(attempt.start_step, steps):
        reply = await attempt.recall("rollouts", functools.partial(sampled, attempt, step))
        rewards = [reward(sequence.tokens) for sequence in reply.sequences]
        mean = sum(rewards) / len(rewards)
        data = [
            datum(step, sequence, each - mean)
            for sequence, each in zip(reply.sequences, rewards, strict=True)
        ]
        forward = attempt.client.forward_backward(data, "importance_sampling")
        update = attempt.client.optim_step(ADAM)
        await forward
        await update
        attempt.report(reward=mean)
        if step % 5 == 0:
            print(f"step {step}: reward {mean:.2f}")


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
