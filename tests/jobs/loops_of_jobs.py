"""The training functions that the tests of jobs submit: a worker imports them by this path."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import anyio
from loops import ADAM, batch, loop
from pydantic import BaseModel

from tinker_recovery import Attempt


class Options(BaseModel):
    """A pydantic model as an argument."""

    steps: int


def _there(file: str) -> bool:
    return Path(file).exists()


async def train(attempt: Attempt, *, steps: int) -> dict[str, int]:
    """Train to ``steps``; returns what is JSON."""
    await loop(attempt.client, attempt.start_step, steps, 0)
    return {"steps": steps}


async def train_with(attempt: Attempt, *, options: Options) -> Options:
    """The same with a model; returns what is none."""
    await loop(attempt.client, attempt.start_step, options.steps, 0)
    return options


async def fails_at(attempt: Attempt, *, steps: int, at: int, file: str) -> str:
    """Train to ``steps``, and fail once at a step, as the file keeps."""
    await loop(attempt.client, attempt.start_step, at, 0)
    if not _there(file):
        Path(file).touch()  # noqa: ASYNC240 - once
        raise TimeoutError("the rollouts took too long")
    await loop(attempt.client, max(at, attempt.start_step), steps, 0)
    return "done"


async def is_wrong(attempt: Attempt) -> None:
    """Fail by a mistake, always."""
    raise ValueError(f"a mistake in the loop of {attempt.number}")


async def rests_at(attempt: Attempt, *, steps: int, at: int, file: str) -> int:
    """Train to a step, and rest there until the file is there; then to ``steps``."""
    if attempt.start_step < at:
        await loop(attempt.client, attempt.start_step, at, 0)
    while not _there(file):  # noqa: ASYNC110 - another process makes it
        await anyio.sleep(0.05)
    await loop(attempt.client, max(at, attempt.start_step), steps, 0)
    return os.getpid()


async def notes(attempt: Attempt, *, who: str, file: str) -> None:
    """Train a little, and write down when that begins and ends."""
    _write(file, f"{who} begins")
    await loop(attempt.client, attempt.start_step, 2, 0)
    _write(file, f"{who} ends")


def _write(file: str, line: str) -> None:
    with Path(file).open("a") as out:
        out.write(f"{line}\n")


def blocks(attempt: Attempt, *, steps: int) -> int:
    """A plain function."""
    for step in range(attempt.start_step, steps):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        update = attempt.client.optim_step(ADAM)
        forward.result()
        update.result()
    return steps


async def is_cancelled_inside(attempt: Attempt, *, steps: int) -> None:
    """Train a little, and end by the cancellation of something that the loop itself has begun."""
    await loop(attempt.client, attempt.start_step, steps, 0)
    rollouts = asyncio.create_task(anyio.sleep(60))
    rollouts.cancel()
    await rollouts


async def exits(attempt: Attempt, *, steps: int) -> None:
    """Train a little, and end as a script does."""
    await loop(attempt.client, attempt.start_step, steps, 0)
    sys.exit("there is no data set")


def exits_in_a_thread(attempt: Attempt) -> None:
    """The same at once, as a plain function."""
    del attempt
    sys.exit(2)
