"""Resumption: where a run stood that another process trained before this one.

The journal says which attempts there were, and how far each is known to have been sound; the
service says what is stored. A process that was killed could not say whether the requests under way
succeeded, so of the attempt it was in, a checkpoint counts only if what is before it is known to
have succeeded: because the journal says so, or because the loop went on to save again behind it.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from tinker_recovery.checkpoints import CheckpointRecord, Segment, on_branch
from tinker_recovery.clock import Clock
from tinker_recovery.errors import (
    StatusRefused,
    StatusUnavailable,
)
from tinker_recovery.journal import StoredAttempt, StoredRun
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import StatusReader
from tinker_recovery.service.listing import list_checkpoints
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

LATEST_SESSIONS = 2
"""So many of the newest attempts may have left their session open."""


@dataclass(frozen=True, slots=True)
class RunSnapshot:
    """Where a run stood.

    Attributes:
        segments: Every Tinker run it has lived in, oldest first.
        limits: The last step that may be gone back to, by attempt; no entry, no limit.
        stored: Attempt and step of the checkpoints the service said it has stored, by path.
        saved: The metrics of its checkpoints, by attempt and step.
        step: Optimizer steps it had done.
        sessions: Tinker run ids whose sessions may still be open.
    """

    segments: tuple[Segment, ...]
    limits: Mapping[str, float] = field(default_factory=dict)
    stored: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    saved: Mapping[tuple[str, int], Mapping[str, float]] = field(default_factory=dict)
    step: int = 0
    sessions: tuple[str, ...] = ()


def trusted_limit(
    attempt: StoredAttempt, saved: Sequence[CheckpointRecord], *, corrupted: bool
) -> float:
    """The last step of an attempt whose checkpoints may be gone back to: a pure decision.

    Args:
        attempt: As the journal has it.
        saved: Its own checkpoints, in any order.
        corrupted: Whether the service calls its Tinker run corrupted.
    """
    if attempt.faulty and attempt.trusted_to is not None:
        limit = attempt.trusted_to
    elif attempt.faulty and attempt.ended:
        limit = math.inf
    else:
        # One save is in flight at most, so one that was followed by another had been answered,
        # and the loop was content.
        by_schedule = sorted(
            {record.step for record in saved if record.saved_by == "schedule"}, reverse=True
        )
        vouched = by_schedule[1] if len(by_schedule) > 1 else attempt.sound_step
        limit = float(max(attempt.sound_step, vouched))
        if corrupted:
            # Nobody had noticed, so it may have begun right after the last look.
            limit = min(limit, attempt.polled_step)
    return limit


async def snapshot_of(
    found: StoredRun, reader: StatusReader, policy: RecoveryPolicy, clock: Clock
) -> RunSnapshot:
    """Where a run stood, by the journal and by the service.

    A service that cannot be read is waited for, as long as a recovery would wait for it.

    Raises:
        StatusError: It refuses, or cannot be read for ``max_wait_s``.
    """
    segments = tuple(
        Segment(each.run_id, each.attempt, each.start_step, each.parent) for each in found.attempts
    )
    limits = {
        each.attempt: each.trusted_to for each in found.attempts if each.trusted_to is not None
    }
    listed: dict[str, list[CheckpointRecord]] = {}
    branch = on_branch(segments)
    # Only "better than every save so far" has to know all of them.
    wanted = branch if policy.checkpoints.strategy == "best" else branch[:1]
    for segment, _ in wanted:
        listed[segment.attempt] = await _patiently(
            functools.partial(_own_checkpoints, reader, segment.run_id), policy, clock
        )
    last = found.attempts[-1]
    own = [each for each in listed[last.attempt] if each.attempt == last.attempt]
    corrupted = await _patiently(
        functools.partial(_is_corrupted, reader, last.run_id), policy, clock
    )
    limits[last.attempt] = trusted_limit(last, own, corrupted=corrupted)
    for record in own:
        if record.step > limits[last.attempt]:
            logger.warning(
                "%s, at step %d, is not gone back to: the process that saved it ended before it "
                "could say that everything before it had succeeded",
                record.path,
                record.step,
            )
    by_run = {each.run_id: each.attempt for each in found.attempts}
    stored = {
        path: (by_run[run_id], step)
        for path, step in found.checkpoints
        if (run_id := path.removeprefix("tinker://").partition("/")[0]) in by_run
    }
    newest = found.attempts[-LATEST_SESSIONS:]
    return RunSnapshot(
        segments,
        limits,
        stored,
        {
            (record.attempt, record.step): record.metrics
            for records in listed.values()
            for record in records
        },
        found.step,
        (*found.leftovers, *(each.run_id for each in newest)),
    )


async def _own_checkpoints(reader: StatusReader, run_id: str) -> list[CheckpointRecord]:
    return [each.record for each in await list_checkpoints(reader, run_id) if each.record]


async def _is_corrupted(reader: StatusReader, run_id: str) -> bool:
    try:
        return (await reader.run(run_id)).corrupted
    except StatusRefused:
        return False  # it does not know the run any more, and so does not call it anything


async def _patiently(ask: Callable[[], Awaitable[_T]], policy: RecoveryPolicy, clock: Clock) -> _T:
    began = clock.monotonic()
    for tries in itertools.count(2):
        try:
            return await ask()
        except StatusUnavailable as error:
            if clock.monotonic() - began > policy.max_wait_s:
                raise
            logger.warning("looking where the run stood: %s; trying again", error)
            await clock.sleep(policy.backoff_before(tries, clock.random()))
    raise AssertionError("count() does not end")  # pragma: no cover


async def finish_sessions(reader: StatusReader, run_ids: Sequence[str]) -> None:
    """Tell the service that the sessions of a dead process are over; best effort, never raises."""
    for session_id in dict.fromkeys(run_id.partition(":train:")[0] for run_id in run_ids):
        try:
            said = await reader.http.send(
                "POST",
                f"sessions/{session_id}/finish",
                json={
                    "reason": {"type": "interrupted"},
                    "detail": "the process that opened it ended, and another goes on",
                },
            )
        except StatusRefused:
            return  # no key: nothing can be told at all
        logger.debug("finishing session %s, left by a dead process: HTTP %s", session_id, said)
