"""The RunJournal: what of a run is written down for a later process, and when.

Before an attempt trains, the journal knows of it. What casts doubt on a checkpoint is written at
once; how far everything is known to have succeeded, now and then, and with each checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Protocol

from tinker_recovery.errors import LeaseLost
from tinker_recovery.faults import Fault
from tinker_recovery.journal import RunRecord
from tinker_recovery.recovery.budget import AttemptBudget
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.rollback_detector import RollbackDetector


class JournaledRun(Protocol):
    """A run as its chronicle sees it."""

    mailbox: Mailbox

    @property
    def current(self) -> Attempt | None:
        """The newest attempt."""
        ...

    @property
    def checkpoints(self) -> CheckpointState:
        """What is known of its checkpoints."""
        ...

    @property
    def rollbacks(self) -> RollbackDetector:
        """What notices that the service has lost weights."""
        ...

    @property
    def budget(self) -> AttemptBudget:
        """Attempts left."""
        ...

    def lease_lost(self, error: LeaseLost) -> None:
        """Another process has taken the run."""
        ...


class RunJournal:
    """Writes down one run.

    Args:
        run: The run.
        record: Its place in the journal.
    """

    def __init__(self, run: JournaledRun, record: RunRecord) -> None:
        self._run = run
        self._record = record
        self._written: Attempt | None = None
        record.attempts_left = lambda: run.budget.left
        record.on_lost = lambda error: run.mailbox.post(functools.partial(run.lease_lost, error))

    async def begins(self, attempt: Attempt) -> None:
        """An attempt is about to train; returns when the journal knows.

        Raises:
            LeaseLost: The run is another process's by now.
        """
        if attempt is self._written:
            return
        self._written = attempt
        segment = attempt.segment
        await self._record.attempt_begins(
            attempt.number, attempt.id, segment.run_id, segment.start_step, segment.parent
        )

    def fault(self, fault: Fault, *, recovers: bool) -> None:
        """A fault is declared."""
        current = self._run.current
        trusted_to = float("inf")
        if current is not None:
            self._write_position(current)
            trusted_to = min(
                self._run.checkpoints.trusted_to(current.id), current.client.first_doubtful_step
            )
        self._record.fault(
            (fault.kind.value, fault.detected_by.value, fault.step),
            None if current is None else current.id,
            trusted_to,
            recovers=recovers,
        )

    def saved(self, attempt: Attempt, step: int, path: str, *, sound: bool) -> None:
        """A checkpoint is stored."""
        sound = sound and step <= self._run.rollbacks.sound_to
        self._record.saved(attempt.id, path, step, sound=sound)

    def stepped(self, attempt: Attempt) -> None:
        """An optimizer step is complete; written now and then. From the SDK's thread."""
        if self._record.is_due() and not attempt.faulty:
            self._write_position(attempt)

    def _write_position(self, attempt: Attempt) -> None:
        submitted = attempt.client.step
        done = int(min(submitted, attempt.client.first_doubtful_step))
        self._record.stepped(
            attempt.id,
            done,
            sound=int(min(done, self._run.rollbacks.sound_to)),
            polled=self._run.rollbacks.polled_step,
        )

    def reported(self, attempt: Attempt, metrics: Mapping[str, float]) -> None:
        """What the loop reports, about the step whose results it has just seen."""
        self._record.reported(max(attempt.start_step, attempt.client.reported_step), metrics)

    async def ends(self, error: BaseException | None) -> None:
        """The run is over: well, by an error, or stopped from outside. Never raises."""
        current = self._run.current
        if current is not None and not current.faulty:
            self._write_position(current)
        if error is None:
            await self._record.end("finished")
        elif isinstance(error, Exception):
            await self._record.end("failed", f"{type(error).__name__}: {error}")
        else:
            await self._record.end("stopped", type(error).__name__)
