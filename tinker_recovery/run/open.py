"""Opening a run: take its lease, and find out where an earlier process left it."""

from __future__ import annotations

import functools
import logging
import math
import secrets
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import anyio

from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.clock import Clock
from tinker_recovery.costs import table_to_json
from tinker_recovery.errors import StatusRefused, UsageError
from tinker_recovery.journal import HeldLease, Recorder, RunRecord, RunRequest, StoredRun
from tinker_recovery.journal.elsewhere import select_elsewhere
from tinker_recovery.journal.run_sql import JOB
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.discovery import (
    NEW,
    QUIET_S,
    FoundRun,
    find_at_service,
    find_further,
    until_quiet,
)
from tinker_recovery.recovery.resume import RunSnapshot, snapshot_of, until_read
from tinker_recovery.run.claiming import Claiming
from tinker_recovery.run.ending import stop_in_words
from tinker_recovery.run.held_words import while_held
from tinker_recovery.run.options import StartPlan
from tinker_recovery.run.same_start import (
    check_not_finished,
    check_same_as_recorded,
    check_same_start,
    refuse_early,
    with_its_seed,
)
from tinker_recovery.service import StatusReader
from tinker_recovery.service.guard import Guard
from tinker_recovery.service.listing import find_checkpoint
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import counted

logger = logging.getLogger(names.SCOPE)

LOOK_S = 0.5
"""Seconds between two tries to take a run that another process trains."""

REMIND_S = 60.0
"""Seconds between two log lines about waiting for it."""


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run that this process holds.

    Attributes:
        record: Its place in the journal, and its lease.
        plan: How it starts, with the seed it was begun with.
        root: The checkpoint the user started it from, if they did.
        start_step: The step it begins at.
        snapshot: Where an earlier process left it; None if it begins here.
        guard: Its claim at the service, to be released once its sessions are closed.
    """

    record: RunRecord
    plan: StartPlan
    root: CheckpointRecord | None
    start_step: int
    snapshot: RunSnapshot | None
    guard: Guard

    @property
    def origin(self) -> dict[str, Any]:
        """How it starts, as its checkpoints say: what the journal keeps, and its first step."""
        return {**self.plan.described, "start_step": self.start_step}


async def open_run(
    recorder: Recorder,
    reader: StatusReader,
    plan: StartPlan,
    name: str,
    *,
    claiming: Claiming,
    policy: RecoveryPolicy,
    clock: Clock,
) -> OpenedRun:
    """Take a run for this process, and find out where it stands.

    Raises:
        JournalError: The journal cannot be written.
        RunHeld: Another process trains it, and it is not to be waited for.
        RunFinished: It has come to its end before.
        DeadlineExceeded: Another process trains it that only the service knows of.
        UsageError: It was begun with other arguments, or is not the run chosen by ``lineage=``.
        AmbiguousRun: The service has several runs of that name, and none is chosen.
        CheckpointError: What it is to start from is not there.
        ServiceUnusable: The service has not answered within ``max_wait_s`` who trains it.
        StatusError: The service refuses, or cannot be read for ``max_wait_s``.
    """
    opening = RunRequest(
        service=recorder.service,
        name=name,
        # What is only observed is not recovered, and so not resumed either.
        named=plan.name is not None and policy.enabled and recorder.persistent,
        lineage=secrets.token_hex(8),
        origin=plan.described,
        policy=_in_part(policy) | ({} if plan.job is None else {JOB: plan.job}),
        start_step=plan.start_step or 0,
    )
    guard = Guard()
    if opening.named:
        await refuse_early(recorder, plan, name)
        guard = await claiming.enter(name, on_held=plan.on_lease, job=plan.job)
    try:
        rob = claiming.robs_journal(guard)
        record = await take_run(recorder, opening, plan.on_lease, rob=rob)
        return await _opened(record, opening, guard, reader, plan, policy=policy, clock=clock)
    except BaseException:
        await guard.release()
        raise


async def _opened(
    record: RunRecord,
    opening: RunRequest,
    guard: Guard,
    reader: StatusReader,
    plan: StartPlan,
    *,
    policy: RecoveryPolicy,
    clock: Clock,
) -> OpenedRun:
    """Find out where a run stands that this process has taken."""
    name = record.name
    try:
        _check_lineage(record, plan.lineage, named=opening.named)
        stored = record.stored
        known = stored if stored is not None and stored.attempts else None
        if opening.named and known is None and plan.lineage != NEW:
            await _look_at_service(record, reader, plan, policy, clock)
        if opening.named and known is not None:
            if not plan.extend:
                check_not_finished(name, known)
            await _look_for_others(record, known, reader, plan, policy, clock)
        found = record.stored
        if found is None:
            return await _begun(record, opening, guard, reader, plan, policy, clock)
        if not plan.extend:
            check_not_finished(name, found)
        plan = with_its_seed(plan, found)
        if not found.attempts:
            return await _begun(record, opening, guard, reader, plan, policy, clock)
        check_same_as_recorded(name, found, plan)
        parent = plan.parent if plan.start_step is None else None
        snapshot = await snapshot_of(
            name, found, parent=parent, reader=reader, policy=policy, clock=clock
        )
        await record.begin(opening, anew=False)
        if not snapshot.orderly:
            logger.warning(
                "run %s: an earlier process left it %s at step %d; it is resumed here",
                name,
                found.state,
                found.step,
            )
        return OpenedRun(record, plan, snapshot.root, found.start_step, snapshot, guard)
    except BaseException as error:
        await leave_unopened(record, error)
        raise


async def leave_unopened(record: RunRecord, error: BaseException) -> None:
    """Give a run free that was taken, and could not be opened.

    One that has trained before is left in the state in which it was found: a later start may be
    another. One that has not begins with what this start was refused for.
    """
    if record.stored is not None and record.stored.attempts:
        await record.end(None)
    elif isinstance(error, Exception):
        await record.end("failed", f"{type(error).__name__}: {error}")
    else:
        await record.end("stopped", stop_in_words(error))


def _check_lineage(record: RunRecord, lineage: str | None, *, named: bool) -> None:
    """Refuse the choice of a run that cannot be made.

    Raises:
        UsageError: Nothing is resumed here, or the journal has another run of that name.
    """
    if lineage is None or lineage == NEW:
        return
    if not named:
        raise UsageError(
            f"lineage={lineage!r} chooses a run to resume, and none is resumed with journal=None "
            "or enabled=False"
        )
    stored = record.stored
    if stored is not None and stored.attempts and not stored.lineage.startswith(lineage):
        raise UsageError(
            f"lineage={lineage!r} is not that of run {record.name!r} in this journal, which is "
            f"{stored.lineage}: leave it out, choose another name, or forget that run "
            f"(tinker-recovery abandon {record.name})"
        )


async def _look_at_service(
    record: RunRecord, reader: StatusReader, plan: StartPlan, policy: RecoveryPolicy, clock: Clock
) -> None:
    """Take over a run that is not in this journal, if the service has it and it is this one."""
    known, waited_for = await record.known_lineages(), ""
    look = functools.partial(
        find_at_service, reader, record.name, known=known, lineage=plan.lineage
    )
    while True:
        rediscovered = await until_read(look, policy, clock)
        if rediscovered is None:
            return
        found = rediscovered.stored
        if not plan.extend:
            check_not_finished(
                record.name, found, or_else=f'begin another run beside it (lineage="{NEW}")'
            )
        _check_found(record.name, rediscovered, plan)
        last = found.attempts[-1].run_id
        if last == waited_for or not await until_quiet(
            reader,
            record.name,
            last,
            quiet_s=QUIET_S,
            max_wait_s=policy.max_wait_s,
            monotonic=clock.monotonic,
        ):
            break
        waited_for = last  # and it was trained until then, perhaps to its end
    await record.rebuild(replace(found, origin=found.origin or dict(plan.described)))
    logger.warning(
        "run %s is not in this journal, and has checkpoints at the service: %s put "
        "together from what those say, the newest of them at step %d",
        record.name,
        counted(len(found.attempts), "attempt") + (" was" if len(found.attempts) == 1 else " were"),
        found.step,
    )


async def _look_for_others(
    record: RunRecord,
    stored: StoredRun,
    reader: StatusReader,
    plan: StartPlan,
    policy: RecoveryPolicy,
    clock: Clock,
) -> None:
    """Add to a run of this journal what processes with other journals did of it since.

    Raises:
        RunFinished: It has come to its end.
        ContradictoryCheckpoints: Some of its checkpoints cannot be its own.
        StatusUnavailable: The service has not answered within ``max_wait_s``.
        DeadlineExceeded: Another process trains it still, without a claim.
    """
    waited_for = ""
    look = functools.partial(find_further, reader, stored, record.name)
    while True:
        try:
            whole = await until_read(look, policy, clock)
        except StatusRefused as error:
            logger.warning(
                "run %s: it cannot be seen whether a process with another journal has trained it "
                "(%s); it is resumed as this journal knows it",
                record.name,
                error,
            )
            return
        if not plan.extend:
            check_not_finished(record.name, whole)
        last = whole.attempts[-1].run_id
        if len(whole.attempts) == len(stored.attempts):
            return
        if last == waited_for or not await until_quiet(
            reader,
            record.name,
            last,
            quiet_s=QUIET_S,
            max_wait_s=policy.max_wait_s,
            monotonic=clock.monotonic,
        ):
            break
        waited_for = last
    await record.rebuild(whole, known=len(stored.attempts))
    logger.warning(
        "run %s was trained on by a process with another journal: %s that this one lacks, "
        "the newest of them at step %d",
        record.name,
        counted(len(whole.attempts) - len(stored.attempts), "attempt"),
        whole.step,
    )


def _check_found(name: str, rediscovered: FoundRun, plan: StartPlan) -> None:
    """Refuse a run of this name that was begun with other arguments, as far as that is known.

    Raises:
        UsageError: An argument is not the one that run was begun with.
    """
    found = rediscovered.stored
    plan = with_its_seed(plan, found)
    if found.origin:
        check_same_as_recorded(name, found, plan)
    else:
        # An earlier version saved its checkpoints, or their metadata was not kept.
        said = {key: value for key, value in rediscovered.said.items() if key in plan.described}
        check_same_start(name, {**plan.described, **said}, plan.described)


async def _begun(
    record: RunRecord,
    opening: RunRequest,
    guard: Guard,
    reader: StatusReader,
    plan: StartPlan,
    policy: RecoveryPolicy,
    clock: Clock,
) -> OpenedRun:
    """A run that begins here."""
    if opening.named:
        await _say_elsewhere(record, opening.service)
    root = None
    if plan.parent is not None and plan.start_step is None:
        find = functools.partial(find_checkpoint, reader, plan.parent)
        root = await until_read(find, policy, clock)
    start_step = root.step if root is not None else opening.start_step
    if root is not None or record.stored is not None:
        await record.begin(replace(opening, start_step=start_step), anew=True)
    return OpenedRun(record, plan, root, start_step, None, guard)


async def _say_elsewhere(record: RunRecord, service: str) -> None:
    """Log that a run of this name is at another service: it may be the one that was meant."""
    for other in (
        await record.submit(lambda connection: select_elsewhere(connection, record.name, service))
        or ()
    ):
        if other.named and other.state not in ("finished", "abandoned"):
            logger.warning(
                "run %s exists at %s, at step %d (%s); a new one begins here, at %s",
                record.name,
                other.service,
                other.step,
                other.display_state,
                service,
            )
            return


def _in_part(policy: RecoveryPolicy) -> dict[str, Any]:
    return {
        "enabled": policy.enabled,
        "max_attempts": policy.max_attempts,
        "poll_interval_s": policy.poll_interval_s,
        "stall_after_s": policy.stall_after_s,
        "restore_optimizer": policy.restore_optimizer,
        "checkpoint_strategy": policy.checkpoint_strategy,
        "strategy": policy.checkpoints.strategy,
        "save_every": policy.checkpoints.model_dump(include={"save_every"}).get("save_every"),
        "ttl_s": policy.checkpoints.ttl_s,
        "prices": None if policy.prices is None else table_to_json(policy.prices),
    }


async def take_run(
    recorder: Recorder,
    opening: RunRequest,
    on_lease: Literal["wait", "refuse"],
    *,
    rob: bool,
) -> RunRecord:
    """Take a run for this process; waits for another that trains it, or refuses to.

    With ``rob`` its lease is taken from whoever has it.

    Raises:
        JournalError: The journal cannot be written.
        RunHeld: Another process trains it, and it is not to be waited for.
    """
    seen: HeldLease | None = None
    reminded_at = -math.inf
    while True:
        taken = await recorder.open_run(opening, seen, rob=rob)
        if isinstance(taken, RunRecord):
            if seen is not None:
                logger.info("run %s: it is free now, and is resumed here", opening.name)
            return taken
        if on_lease == "refuse":
            raise taken.by.held(
                opening.name,
                f"run {opening.name!r} is being trained by {taken.by}: two must not train it; "
                'wait for it (on_lease="wait"), end it, or choose another name',
            )
        if time.monotonic() - reminded_at >= REMIND_S:
            reminded_at = time.monotonic()
            by = taken.by
            logger.warning(
                "run %s is being trained by %s; this process waits until that is over%s",
                opening.name,
                by,
                while_held(
                    opening.name,
                    pid=by.pid,
                    host=by.host,
                    here=by.lives() is not None,
                    journal=recorder.path,
                ),
            )
        seen = taken
        await anyio.sleep(LOOK_S)
