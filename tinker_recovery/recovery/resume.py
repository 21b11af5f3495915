"""Resuming: where a run stands that is not under way in this process.

The journal says which attempts there were, and how far each is known to have succeeded; the service
says what is stored. A process that was killed could not say whether the requests under way
succeeded, so of the attempt it was in, a checkpoint counts only if what is before it is known to
have succeeded: because the journal says so, or a later checkpoint, which carries what was known
when it was submitted.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Segment,
    WeightsFacts,
    on_branch,
    run_id_unchecked,
)
from tinker_recovery.clock import Clock, Reminder
from tinker_recovery.errors import NoUsableCheckpoint, StatusRefused, StatusUnavailable
from tinker_recovery.faults import Kind
from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.reading import AttemptView
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.service import RunStatus, StatusReader
from tinker_recovery.service.base import CloseStatus
from tinker_recovery.service.listing import find_checkpoint, list_checkpoints
from tinker_recovery.service.missing_routes import NO_SUCH_ROUTE, say_no_finish
from tinker_recovery.service.patient import still_waiting
from tinker_recovery.service.routes import route
from tinker_recovery.service.status import session_id_of
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.figures import AttemptFigures

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

LATEST_SESSIONS = 2
"""How many of the newest attempts may have left their session open."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Where a run stands that is not under way in this process.

    A run is opened with it, ``tinker-recovery recover`` restores it, and ``tinker-recovery
    checkpoints`` decides over its checkpoints.

    Attributes:
        name: Its name; its id where it has none here.
        lineage: Id of the logical run.
        segments: Every Tinker run it has lived in, oldest first.
        checkpoints: What is known of its checkpoints; the journal's notes are yet to be read.
        start_step: The step it began at.
        step: Optimizer steps it had done.
        root: The checkpoint the user started it from, if they did and it is there.
        weights: What the service says its weights are.
        saved: The metrics of its checkpoints, by attempt and step.
        sessions: Tinker run ids whose sessions may still be open.
        protected: What must not be deleted, and why: path to reason.
        holder: The process that trains it, if that is known.
        origin: How to start over: that is for the program that trains it to say.
        lease: What this process trains it by: it does not.
        recovering: Whether a recovery is under way here: none is.
        trained: Its newest attempt, for the time lost by what of it is done again.
        orderly: Whether its process was stopped, or had finished, and nothing of it was lost: every
            step is in a checkpoint that may be restored.
        left_by: How its last process left it, as the kind of fault that it is if steps are done
            again.
    """

    name: str
    lineage: str
    segments: tuple[Segment, ...]
    checkpoints: CheckpointState
    start_step: int = 0
    step: int = 0
    root: CheckpointRecord | None = None
    weights: WeightsFacts = field(default_factory=WeightsFacts)
    saved: Mapping[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    sessions: tuple[str, ...] = ()
    protected: Mapping[str, str] = field(default_factory=dict)
    holder: Holder | None = None
    origin: None = None
    lease: None = None
    recovering: bool = False
    trained: AttemptFigures | None = None
    orderly: bool = False
    left_by: Kind = Kind.PROCESS_LOST

    def is_pending(self, record: CheckpointRecord) -> bool:
        """Whether the metric that a checkpoint is judged by is still to come: none is."""
        del record
        return False


def segments_from(attempts: Iterable[StoredAttempt | AttemptView]) -> tuple[Segment, ...]:
    """The segments of a run, from its attempts as the journal has them."""
    return tuple(
        Segment(each.run_id, each.attempt, each.start_step, each.parent) for each in attempts
    )


def trusted_limit(
    attempt: StoredAttempt, saved: Sequence[CheckpointRecord], *, corrupted: bool
) -> float:
    """The last step of an attempt whose checkpoints may be restored: a pure decision.

    Args:
        attempt: As the journal has it.
        saved: Its own checkpoints, in any order.
        corrupted: Whether the service calls its Tinker run corrupted.
    """
    if attempt.trusted_to is not None:
        limit = attempt.trusted_to
    elif attempt.faulty:
        # The fault was none of the service's. What it says by now was not known then: a run of a
        # group that goes back with another is asked about, and its process may have died before.
        limit = float(attempt.polled_step) if corrupted else math.inf
    else:
        # That a save was followed by another says nothing: the answer of a request before both may
        # still have been under way.
        words = (each.sound_step for each in saved if each.sound_step is not None)
        limit = float(max([attempt.sound_step, *words]))
        if corrupted:
            # Nothing has noticed, so it may have begun right after the last look.
            limit = min(limit, attempt.polled_step)
    return limit


async def snapshot_of(
    name: str,
    found: StoredRun,
    *,
    parent: str | None,
    reader: StatusReader,
    policy: RecoveryPolicy,
    clock: Clock,
) -> RunSnapshot:
    """Where a run stands, by the journal and by the service.

    A service that cannot be read is waited for, as long as a recovery would wait for it.

    Args:
        name: The run's name.
        found: What the journal knows of it; at least one attempt.
        parent: Path of the checkpoint the user started it from, if they did.
        reader: The service.
        policy: The user's policy.
        clock: Time.

    Raises:
        NoUsableCheckpoint: ``parent`` is gone, and the run has stored nothing itself.
        StatusError: The service refuses, or cannot be read for ``max_wait_s``.
    """
    segments = segments_from(found.attempts)
    reader.metadata.know(found.lineage)
    for segment in segments:
        reader.metadata.know_attempt(segment.attempt, segment.parent)
    known = CheckpointState.by(policy, name, found.lineage)
    known.limits |= {
        each.attempt: each.trusted_to for each in found.attempts if each.trusted_to is not None
    }
    by_run = {each.run_id: each.attempt for each in found.attempts}
    known.stored |= {
        path: (by_run[run_id], step)
        for path, step in found.checkpoints
        if (run_id := run_id_unchecked(path)) in by_run
    }
    if found.ended_at is not None:
        ended_at = found.ended_at + reader.http.clock.ahead_s
        for path in known.stored:
            known.note_lifetime(path, ended_at)
    listed: dict[str, list[CheckpointRecord]] = {}
    branch = on_branch(segments)
    # Only "better than every save so far" has to know all of them, which a user's schedule may say.
    saving = policy.checkpoints
    needs_all = saving.strategy == "best" or saving.schedule is not None
    wanted = branch if needs_all else branch[:1]
    for segment, _ in wanted:
        listed[segment.attempt] = await until_read(
            functools.partial(own_checkpoints, reader, segment.run_id), policy, clock
        )
    last = found.attempts[-1]
    own = [each for each in listed[last.attempt] if each.attempt == last.attempt]
    status = await until_read(functools.partial(status_of, reader, last.run_id), policy, clock)
    limit = known.limits[last.attempt] = trusted_limit(last, own, corrupted=status.corrupted)
    for record in own:
        if record.step > limit:
            logger.warning(
                "%s, at step %d, is not restored: the process that saved it ended before it could "
                "say that everything before it had succeeded",
                record.path,
                record.step,
            )
    stopped = found.state in ("stopped", "finished")
    left_by = Kind.STOPPED if stopped else Kind.PROCESS_LOST
    if stopped and status.corrupted:
        left_by = Kind.CORRUPTED
    return RunSnapshot(
        name,
        found.lineage,
        segments,
        known,
        found.start_step,
        found.step,
        root=None if parent is None else await _root(reader, parent, found),
        weights=status.weights,
        saved={
            (record.attempt, record.step): record.metrics
            for records in listed.values()
            for record in records
        },
        sessions=(
            *found.leftovers,
            *(each.run_id for each in found.attempts[-LATEST_SESSIONS:]),
        ),
        trained=_figures(found),
        orderly=(found.state == "finished" or (stopped and last.orderly))
        and not status.corrupted
        and _is_whole(found, [each for each in own if each.step <= limit]),
        left_by=left_by,
    )


def _figures(found: StoredRun) -> AttemptFigures | None:
    if found.trained is None:
        return None
    start_step, done, trained_s = found.trained
    return AttemptFigures(start_step, done, math.inf, trained_s)


def _is_whole(found: StoredRun, usable: Sequence[CheckpointRecord]) -> bool:
    """Whether each step of a run is in a checkpoint, or its last attempt has done none."""
    return found.step == found.attempts[-1].start_step or any(
        each.step == found.step for each in usable
    )


async def own_checkpoints(reader: StatusReader, run_id: str) -> list[CheckpointRecord]:
    """The checkpoints of a Tinker run that carry our metadata.

    Raises:
        StatusUnavailable: The service did not answer.
        StatusRefused: It refuses to list them.
    """
    return [each.record for each in await list_checkpoints(reader, run_id) if each.record]


async def status_of(reader: StatusReader, run_id: str) -> RunStatus:
    """What the service says of a Tinker run; nothing is wrong with one it does not know any more.

    Raises:
        StatusUnavailable: The service did not answer.
    """
    try:
        return RunStatus.of(await reader.run(run_id))
    except StatusRefused:
        return RunStatus(run_id, corrupted=False)


async def _root(reader: StatusReader, parent: str, found: StoredRun) -> CheckpointRecord | None:
    """What the user started the run from, if it is there: a run that has saved needs it not."""
    try:
        return await _root_at(reader, parent, found.start_step)
    except NoUsableCheckpoint as error:
        if not found.checkpoints:
            raise
        logger.warning("what the run was started from is gone: %s", error)
        return None


async def _root_at(reader: StatusReader, parent: str, step: int) -> CheckpointRecord:
    record = await find_checkpoint(reader, parent)
    if record.step != step:
        raise NoUsableCheckpoint(
            f"checkpoint {parent} was written again: it has step {record.step} now, and the run "
            f"was begun at step {step} from what it had been; to begin from what it is, choose "
            "another name"
        )
    return record


async def until_read(ask: Callable[[], Awaitable[_T]], policy: RecoveryPolicy, clock: Clock) -> _T:
    """Ask until the service answers, for ``max_wait_s`` at most.

    Raises:
        StatusError: The service refuses, or has not answered by then.
    """
    began, reminder = clock.monotonic(), Reminder(at_once=True)
    for tries in itertools.count(2):
        try:
            return await ask()
        except StatusUnavailable as error:
            waited_s = clock.monotonic() - began
            if waited_s > policy.max_wait_s:
                raise
            level = logging.WARNING if reminder.is_due(waited_s) else logging.DEBUG
            said = still_waiting(
                error,
                "where the run stood",
                waited_s=waited_s,
                max_wait_s=policy.max_wait_s,
                now_s=clock.wall(),
            )
            logger.log(level, "looking where the run stood, trying again: %s", said)
            await clock.sleep(policy.backoff_before(tries, clock.random()))
    raise AssertionError("count() does not end")  # pragma: no cover


async def finish_sessions(reader: StatusReader, run_ids: Sequence[str]) -> None:
    """End the sessions of a dead process at the service; best effort, never raises."""
    for session_id in dict.fromkeys(map(session_id_of, run_ids)):
        await finish_session(
            reader,
            session_id,
            "interrupted",
            "the process that opened it ended, and another goes on",
        )


async def finish_session(
    reader: StatusReader, session: str, status: CloseStatus, detail: str
) -> None:
    """End a session at the service by one request of ours; best effort, never raises.

    Args:
        reader: Of the service.
        session: The session, or a Tinker run in it.
        status: How it ended.
        detail: The same in words.
    """
    session_id = session_id_of(session)
    try:
        said = await reader.http.send(
            "POST",
            route("sessions", session_id, "finish"),
            json={"reason": {"type": status}, "detail": detail},
        )
    except StatusRefused:
        return  # no key, so no session can be ended
    if said in NO_SUCH_ROUTE:
        say_no_finish(reader.http.endpoint.base_url)
    logger.debug("finishing session %s: HTTP %s", session_id, said)
