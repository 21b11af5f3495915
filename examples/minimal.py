"""The smallest supervised loop: it survives a poisoned backend, and resumes after a restart.

Run it against a local server, in two terminals:

    tinker-recovery serve --port 8010 --fault poison@30
    TINKER_BASE_URL=http://127.0.0.1:8010 TINKER_API_KEY=tml-local-key python examples/minimal.py

or against the real service, with your own TINKER_API_KEY (and --model one it offers).
"""

from __future__ import annotations

import argparse
import asyncio
import sys

from tinker import types

from tinker_recovery import CheckpointPolicy, RecoveryPolicy, RunFinished, Supervisor

ADAM = types.AdamParams(learning_rate=1e-2)


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


async def main(steps: int, model: str, name: str) -> None:
    """Train for a number of steps, under supervision."""
    policy = RecoveryPolicy(checkpoints=CheckpointPolicy(save_every=10))
    async with Supervisor(policy) as supervisor:
        async for attempt in supervisor.attempts(base_model=model, rank=8, name=name):
            async with attempt:
                print(f"{attempt!r}")
                for step in range(attempt.start_step, steps):
                    forward = attempt.client.forward_backward(batch(step), "cross_entropy")
                    update = attempt.client.optim_step(ADAM)
                    loss = (await forward).metrics["loss:sum"]
                    await update
                    attempt.report(loss=loss)
                    if step % 10 == 0:
                        print(f"step {step}: loss {loss:.3f}")
        (run,) = supervisor.runs
        print(f"done: {steps} steps, {len(run.recoveries)} recoveries")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--model", default="Qwen/Qwen3-8B")
    arguments.add_argument("--name", default="minimal")
    given = arguments.parse_args()
    try:
        asyncio.run(main(given.steps, given.model, given.name))
    except RunFinished as finished:
        # The same command resumes a run that was interrupted; this one is finished already.
        sys.exit(str(finished))
