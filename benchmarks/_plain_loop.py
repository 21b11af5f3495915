"""A plain loop without tinker_recovery, which can be started again.

A shell loop runs it as a script; stamina and a poller import it. It favours the alternatives: the
path of the last checkpoint is in a file, so there is no search, and only one is kept.

    python benchmarks/_plain_loop.py STATE STEPS
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tinker
from tinker import types

ADAM = types.AdamParams(learning_rate=1e-2)
SAVE_EVERY = 5


def batch(step: int) -> list[types.Datum]:
    """One step's batch."""
    tokens = [(step * 7 + offset) % 50 for offset in range(33)]
    return [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1]),
            loss_fn_inputs={
                "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=[32])
            },
        )
    ]


def train(
    state: Path,
    steps: int,
    called: Callable[[str], None],
    connect: Callable[[], tinker.ServiceClient] = tinker.ServiceClient,
) -> None:
    """Train from the last checkpoint to the end; ``called`` gets the run id at the first call."""
    service = connect()
    try:
        at: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"step": 0}
        if at["step"]:
            client = service.create_training_client_from_state_with_optimizer(at["path"]).result()
        else:
            client = service.create_lora_training_client("b", rank=8, seed=7).result()
        called(str(client.model_id))
        for step in range(at["step"], steps):
            forward = client.forward_backward(batch(step), "cross_entropy")
            update = client.optim_step(ADAM)
            forward.result()
            update.result()
            if (step + 1) % SAVE_EVERY == 0:
                name = f"step-{step + 1}-{time.time_ns()}"
                path = client.save_state(name).result().path
                state.write_text(json.dumps({"step": step + 1, "path": path}))
    finally:
        service.close("success").result()


if __name__ == "__main__":
    train(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        lambda _: print("called", time.monotonic(), flush=True),
    )
