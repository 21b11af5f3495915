"""What of a run is written to the journal for a later process, and when.

Before an attempt trains, the journal has it. What casts doubt on a checkpoint is written at once;
how far everything is known to have succeeded, now and then, and with each checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from tinker_recovery.faults import Fault
from tinker_recovery.journal import RunRecord
from tinker_recovery.run.ending import stop_in_words
from tinker_recovery.shielding import to_the_end

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun


class RunJournal:
    """Writes one run."""

    def __init__(self, run: SupervisedRun, record: RunRecord) -> None:
        self._run = run
        self._record = record
        self._written: AttemptScope | None = None
        self._sound: tuple[str, int] = ("", 0)
        self._pauses: tuple[str, int] = ("", 0)
        record.attempts_left = lambda: run.budget.left
        record.on_lost = lambda error: run.mailbox.post(functools.partial(run.lease_lost, error))

    async def attempt_begins(self, attempt: AttemptScope) -> None:
        """An attempt is about to train; returns when that is on disk.

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
            orderly=fault.orderly,
            silent_s=fault.silent_s,
        )

    @property
    def dead_s(self) -> float:
        """Seconds since the last progress of the process that trained it, if that was killed."""
        stored = self._record.stored
        if stored is None or stored.last_progress is None:
            return 0.0
        return max(0.0, self._record.wall() - stored.last_progress)

    def stored(self, attempt: AttemptScope, step: int, path: str, *, sound: bool) -> None:
        """A checkpoint is stored."""
        sound = sound and step <= self._run.rollbacks.sound_to
        if sound:
            self._note_sound(attempt, step)
        self._record.saved(
            attempt.id,
            path,
            step,
            attempt.client.meter.up_to(step),
            sound=sound,
            plan=_plan(attempt),
        )

    def step_done(self, attempt: AttemptScope) -> None:
        """An optimizer step is complete; written now and then. From the SDK's thread."""
        if self._record.is_due() and not attempt.faulty:
            self._write_position(attempt)

    async def position_is_written(self, attempt: AttemptScope) -> None:
        """Have on disk how far everything is known to have succeeded.

        Raises:
            LeaseLost: The run is another process's by now.
        """
        self._write_position(attempt)
        await self._record.submit(lambda _: None)  # behind it

    def sound_step(self, attempt: AttemptScope) -> int:
        """The step up to which a later process takes an attempt without a fault for sound."""
        of, step = self._sound
        return max(attempt.sound_step, step if of == attempt.id else attempt.start_step)

    def _note_sound(self, attempt: AttemptScope, step: int) -> int:
        # Never less than before, as the journal's own.
        of, before = self._sound
        self._sound = attempt.id, max(step, before) if of == attempt.id else step
        return step

    def _write_position(self, attempt: AttemptScope) -> None:
        self._record.stepped(
            attempt.id,
            int(min(attempt.client.step, attempt.client.first_doubtful_step)),
            attempt.client.meter.read(),
            sound=self._note_sound(attempt, attempt.sound_step),
            polled=self._run.rollbacks.polled_step,
            plan=_plan(attempt),
            pauses=self._new_pauses(attempt),
        )

    def _new_pauses(self, attempt: AttemptScope) -> list[tuple[float, float]]:
        """When it made no progress, in seconds before now, as far as that is not written yet."""
        of, written = self._pauses
        # The SDK's thread may add one meanwhile.
        pauses = attempt.progress.pauses[written if of == attempt.id else 0 :]
        self._pauses = attempt.id, (written if of == attempt.id else 0) + len(pauses)
        now = self._run.clock.monotonic()
        return [(now - began, now - ended) for began, ended in pauses]

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the loop reports of a step."""
        self._record.reported(step, metrics)

    async def run_ends(self, error: BaseException | None) -> None:
        """The run is over: well, by an error, or stopped from outside. Never raises."""
        current = self._run.current
        if current is not None and not current.faulty:
            self._write_position(current)
        recall = self._run.history.recall
        if error is None or not recall.durable:
            # No attempt is to come, here or in a later process.
            await to_the_end(anyio.to_thread.run_sync(recall.values.clear))
        if error is None:
            await self._record.end("finished")
        elif isinstance(error, Exception):
            await self._record.end("failed", f"{type(error).__name__}: {error}")
        else:
            await self._record.end("stopped", stop_in_words(error, self._run.signals))


def _plan(attempt: AttemptScope) -> dict[str, Any]:
    plan = attempt.saver.plan
    return {} if plan is None else asdict(plan)
