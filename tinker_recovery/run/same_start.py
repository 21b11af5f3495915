"""Whether a start under a run's name is that of the run: refused if not, now and after a wait."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread

from tinker_recovery.errors import JournalError, RunFinished, UsageError
from tinker_recovery.journal import Recorder, StoredRun
from tinker_recovery.journal.reading import read_stored_run
from tinker_recovery.run.options import UPDATES_PER_STEP, StartPlan


async def refuse_early(recorder: Recorder, plan: StartPlan, name: str) -> None:
    """Refuse at once what would be refused once the run is free, as far as the journal says.

    Another process may train it for a day. It is checked again then: this is only a look.

    Raises:
        UsageError: The run was begun with other arguments.
    """
    if recorder.path is None or plan.lineage is not None:
        return
    read = functools.partial(read_stored_run, recorder.path, name, service=recorder.service)
    try:
        known = await anyio.to_thread.run_sync(read)
    except JournalError:
        return  # whoever takes the run says so
    if known is None:
        return
    view, found = known
    begun = view.named and view.state != "abandoned" and found.attempts
    if begun and (plan.extend or view.state != "finished"):
        check_same_as_recorded(name, found, with_its_seed(plan, found))


def with_its_seed(plan: StartPlan, found: StoredRun) -> StartPlan:
    """The same start, with the seed that was drawn when the run was begun."""
    if plan.seed_is_drawn and "seed" in found.origin:
        return plan.with_seed(found.origin["seed"])
    return plan


def check_same_as_recorded(name: str, found: StoredRun, plan: StartPlan) -> None:
    """Refuse another start than a run was begun with, by its record.

    Raises:
        UsageError: An argument is not the one the run was begun with.
    """
    start_step = found.start_step if plan.start_step is None else plan.start_step
    check_same_start(
        name,
        {**found.origin, "start_step": found.start_step},
        {**plan.described, "start_step": start_step},
    )


def check_not_finished(name: str, found: StoredRun, *, or_else: str = "") -> None:
    """Refuse a run that has come to its end.

    Args:
        name: Its name.
        found: The run.
        or_else: How to train anew under the same name, if not by forgetting the run.

    Raises:
        RunFinished: It has.
    """
    if found.state != "finished":
        return
    path = found.checkpoints[-1][0] if found.checkpoints else None
    or_else = or_else or f"forget this run (tinker-recovery abandon {name})"
    runner = os.environ.get("TINKER_RECOVERY_FINISHED_FILE")
    if runner:
        # `tinker-recovery run` would take the error for a crash, and restart the script.
        with contextlib.suppress(OSError):
            Path(runner).touch()
    raise RunFinished(
        f"run {name!r} has come to its end before, at step {found.step}; its newest checkpoint is "
        f"{path or 'none: it saved nothing'}. To train on from there, say extend=True where it is "
        f"started (more steps for the same run); to train anew choose another name, or {or_else}",
        run=name,
        checkpoint=path,
        step=found.step,
    )


def check_same_start(name: str, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other arguments than it was begun with.

    Raises:
        UsageError: An argument is not the one the run was begun with; names it and both values.
    """
    for key in sorted({*recorded, *given}, key=lambda key: (key != "way", key)):
        default = 1 if key == UPDATES_PER_STEP else None
        before, now = recorded.get(key, default), given.get(key, default)
        # A lambda of the same code may have another name today.
        if key != "start" and before != now:
            raise _other(name, key, before, now)


def _other(name: str, key: str, before: object, now: object) -> UsageError:
    given = f"a start by {now}=" if key == "way" else f"{key}={now!r}"
    begun = f"{before}=" if key == "way" else f"{key}={before!r}"
    return UsageError(
        f"{given} is not how run {name!r} was begun, which is {begun}: go on with the same "
        "arguments, choose another name, or forget that run "
        f"(tinker-recovery abandon {name})"
    )
