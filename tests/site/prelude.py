"""What the snippets of the documents take for granted: a batch, a policy, a loop."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import tinker
from loops import ADAM, MODEL, batch, policy
from tinker import types

from tinker_recovery import Attempt, CheckpointPolicy, RecoveryPolicy, Supervisor

STEPS = 12
"""As many steps as a test trains where a snippet says a thousand."""


def prompt(step: int) -> types.ModelInput:
    """What a step's rollouts answer."""
    return types.ModelInput.from_ints([(step * 7 + offset) % 50 for offset in range(6)])


def data(step: int, rollouts: Any) -> list[types.Datum]:
    """Rollouts as data to be trained on."""
    made = []
    asked = prompt(step).to_ints()
    for sequence in rollouts.sequences:
        whole = [*asked, *sequence.tokens]
        before = [0.0] * (len(asked) - 1)
        numbers = {
            "logprobs": before + list(sequence.logprobs),
            "advantages": before + [1.0] * len(sequence.tokens),
        }
        inputs: dict[str, Any] = {
            name: types.TensorData(data=values, dtype="float32") for name, values in numbers.items()
        }
        inputs["target_tokens"] = types.TensorData(data=whole[1:], dtype="int64")
        made.append(
            types.Datum(model_input=types.ModelInput.from_ints(whole[:-1]), loss_fn_inputs=inputs)
        )
    return made


def halves(step: int, rollouts: Any) -> list[list[types.Datum]]:
    """The same in two parts."""
    made = data(step, rollouts)
    return [made[:1], made[1:]]


async def sample(client: Any, step: int = 0) -> Any:
    """Rollouts of the weights as they are."""
    sampler = await client.save_weights_and_get_sampling_client()
    return await sampler.sample(prompt(step), 2, types.SamplingParams(max_tokens=4))


async def train(attempt: Attempt) -> None:
    """A loop."""
    for step in range(attempt.start_step, STEPS):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        attempt.report(loss=(await forward).metrics["loss:sum"])
        await update


class Sdk:
    """The SDK, which closes what a snippet on the bare SDK leaves open."""

    def __init__(self) -> None:
        self._made: list[tinker.ServiceClient] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(tinker, name)

    def ServiceClient(self, **options: Any) -> tinker.ServiceClient:  # noqa: N802 - the SDK's name
        """As the SDK's."""
        made = tinker.ServiceClient(**options)
        self._made.append(made)
        return made

    async def aclose(self) -> None:
        """Close every client that was made."""
        for each in self._made:
            await each.close("success")


def namespace() -> dict[str, Any]:
    """The names that a snippet finds."""
    return {
        "__name__": "snippet",
        "MODEL": MODEL,
        "Attempt": Attempt,
        "CheckpointPolicy": CheckpointPolicy,
        "RecoveryPolicy": RecoveryPolicy,
        "Supervisor": Supervisor,
        "adam": ADAM,
        "asyncio": asyncio,
        "batch": batch,
        "ThreadPoolExecutor": ThreadPoolExecutor,
        "data": data,
        "halves": halves,
        "policy": policy(),
        "prompt": prompt,
        "sample": sample,
        "sampling": types.SamplingParams(max_tokens=4),
        "tinker": Sdk(),
        "train": train,
        "vault": SimpleNamespace(read=lambda _: os.environ["TINKER_API_KEY"]),
    }
