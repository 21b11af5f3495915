"""A named run that is left before its end, and taken up again by the same command."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from loops import MODEL, SEED, policy, train

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.journal import STATE_FOLDER, StateFolder

NAMED: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "sft-42"}
"""The command."""


class Died(Exception):
    """The loop ends by an error of its own, as a crash of its process would end it."""


class Killed(BaseException):
    """Nothing of ours catches it, as nothing catches SIGKILL."""


async def left_at(
    step: int,
    *,
    journal: Path | StateFolder = STATE_FOLDER,
    by: type[BaseException] = Died,
    **start: Any,
) -> Supervisor:
    """A process that ends when it has done so many steps; returns what is left of it."""

    async def dying(attempt: Attempt) -> None:
        await train(attempt, steps=step)
        raise by

    with pytest.raises(by):
        async with Supervisor(policy(), journal=journal) as supervisor:
            await supervisor.run(dying, **{**NAMED, **start})
    return supervisor


async def trained_to(
    steps: int, *, journal: Path | StateFolder = STATE_FOLDER, **start: Any
) -> Supervisor:
    """A process that trains the run to its end."""
    async with Supervisor(policy(), journal=journal) as supervisor:
        await supervisor.run(functools.partial(train, steps=steps), **{**NAMED, **start})
    return supervisor


def begun_at(supervisor: Supervisor) -> list[int]:
    """The steps at which the attempts of its run began."""
    return [attempt.start_step for attempt in supervisor.runs[0].attempts]
