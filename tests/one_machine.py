"""A training script that runs as if on a machine of its own, with a journal of its own.

    python one_machine.py --machine alpha --journal alpha.db --go go --steps 14

It trains to step 6, waits until the file ``--go`` is there, and then trains to the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

import anyio
from inspection import be_on_machine
from loops import MODEL, SEED, loop, policy

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor

RESTS_AT = 6


async def main() -> None:
    """Train the run of this name to its end, if it is ours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--machine", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--go", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--on-lease", choices=["wait", "refuse"], default="wait")
    given = parser.parse_args()
    be_on_machine(given.machine)
    on_lease: Literal["wait", "refuse"] = given.on_lease

    async def train(attempt: Attempt) -> None:
        await loop(attempt.client, attempt.start_step, max(RESTS_AT, attempt.start_step), 0)
        await attempt.client.drain()
        while not given.go.exists():  # noqa: ASYNC110 - a file of another process's
            await anyio.sleep(0.01)
        await loop(attempt.client, max(RESTS_AT, attempt.start_step), given.steps, 0)

    saving = policy(checkpoints=CheckpointPolicy(save_every=2, save_at_start=False))
    async with Supervisor(saving, journal=given.journal) as supervisor:
        await supervisor.run(
            train, base_model=MODEL, rank=8, seed=SEED, name="sft-42", on_lease=on_lease
        )


if __name__ == "__main__":
    anyio.run(main)
