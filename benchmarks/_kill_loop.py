"""A training script that is killed, and run again by the same command.

    python _kill_loop.py --steps 24 --depth 1 --log FILE [--die-at POINT]

Its log gets one line for each step it begins: attempt, step, process. ``--die-at`` has it kill
itself, with SIGKILL, at a point that no timer would hit: ``event:NAME:N`` (the Nth event of that
name), ``commit:N`` (inside the Nth transaction of the journal, before it is committed),
``committed:N`` (right behind it), ``step:N`` (the Nth step it does, just submitted).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sqlite3
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from _chaos import ADAM, batch

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    RecoveryEvent,
    RecoveryPolicy,
    StartOptions,
    Supervisor,
)
from tinker_recovery.journal.database import Database

NAME = "killed"
SAVE_EVERY = 4
START: StartOptions = {"base_model": "m", "rank": 8, "seed": 7, "name": NAME}

POLICY = RecoveryPolicy(
    enabled=True,
    max_attempts=20,
    backoff_s=0.02,
    max_backoff_s=0.2,
    poll_interval_s=0.2,
    checkpoints=CheckpointPolicy(save_every=SAVE_EVERY),
)


class Fate:
    """Where it is to die, if anywhere."""

    def __init__(self, die_at: str | None) -> None:
        self._point, _, count = (die_at or "").rpartition(":")
        self._count = int(count or 0)
        self._seen: Counter[str] = Counter()

    def reached(self, point: str) -> None:
        """Record that a point is reached; die if it is the one."""
        self._seen[point] += 1
        if point == self._point and self._seen[point] == self._count:
            os.kill(os.getpid(), signal.SIGKILL)

    def event(self, event: RecoveryEvent) -> None:
        """Record an event."""
        self.reached(f"event:{event.name}")


def watch_commits(fate: Fate) -> None:
    """Have the journal's transactions reach points, too."""
    transaction = Database.transaction

    @contextmanager
    def watched(self: Database) -> Iterator[sqlite3.Connection]:
        with transaction(self) as connection:
            yield connection
            fate.reached("commit")
        fate.reached("committed")

    Database.transaction = watched  # type: ignore[method-assign]  # it is watched, and does the same


async def train(attempt: Attempt, steps: int, depth: int, log: Path, fate: Fate) -> None:
    """The loop."""
    pending: deque[tuple[Any, Any]] = deque()
    with log.open("a", buffering=1) as lines:
        for step in range(attempt.start_step, steps):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            pending.append((forward, attempt.client.optim_step(ADAM)))
            lines.write(f"{attempt.number} {step} {os.getpid()}\n")
            fate.reached("step")
            while len(pending) > depth:
                for each in pending.popleft():
                    await each
        for each_pair in pending:
            for each in each_pair:
                await each


async def main() -> None:
    """Train the run of this name to its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--die-at")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(process)d %(message)s")
    fate = Fate(given.die_at)
    watch_commits(fate)
    async with Supervisor(POLICY, on_event=fate.event) as supervisor:
        async for attempt in supervisor.attempts(**START):
            async with attempt:
                await train(attempt, given.steps, given.depth, given.log, fate)


if __name__ == "__main__":
    anyio.run(main)
