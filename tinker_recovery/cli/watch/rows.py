"""What ``watch`` shows of a run: one row, whether a journal told it or a stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tinker_recovery.journal.summary import RunSummary
from tinker_recovery.report import event_in_words
from tinker_recovery.telemetry import RecoveryEvent, names


@dataclass(frozen=True, slots=True)
class Said:
    """An event in words."""

    time: float
    run: str
    name: str
    words: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as it stands; None where whoever tells of it does not say.

    Attributes:
        run: Its name.
        state: ``training``, ``recovering``, ``stopped``, ``dead``, ``finished``,
            ``failed``, ``abandoned``.
        step: Optimizer steps done.
        losses: The newest reported losses.
        recoveries: How many it went through.
        attempts_left: How many more it may try.
        checkpoint: Path of the newest checkpoint.
        checkpoint_step: Optimizer steps in it.
        saved: When it was saved, in seconds since the epoch.
        next_save_step: The step of the next save.
        newest: The newest event.
        service: Base URL of the service.
        detail: Why, if it is failed or stopped.
    """

    run: str
    state: str
    step: int | None = None
    losses: tuple[float, ...] = ()
    recoveries: int = 0
    attempts_left: int | None = None
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    saved: float | None = None
    next_save_step: int | None = None
    newest: Said | None = None
    service: str | None = None
    detail: str = ""

    @classmethod
    def of(cls, summary: RunSummary) -> RunRow:
        """The row of a run in a journal."""
        run, event, stored = summary.run, summary.event, summary.checkpoint
        state = run.display_state
        return cls(
            run=run.name,
            state=state,
            step=run.step,
            losses=summary.losses,
            recoveries=summary.recoveries,
            attempts_left=run.attempts_left,
            checkpoint=None if stored is None else stored.path,
            checkpoint_step=None if stored is None else stored.step,
            saved=None if stored is None else stored.saved,
            next_save_step=run.next_save_step if state in ("training", "recovering") else None,
            newest=None
            if event is None
            else said(event.time, event.run, event.name, event.message, event.fields),
            service=run.service,
            detail=run.detail,
        )

    def as_json(self) -> dict[str, Any]:
        """For machines; the loss is the newest one."""
        newest = self.newest
        return {
            "run": self.run,
            "state": self.state,
            "step": self.step,
            "loss": self.losses[-1] if self.losses else None,
            "recoveries": self.recoveries,
            "attempts_left": self.attempts_left,
            "checkpoint": self.checkpoint,
            "checkpoint_step": self.checkpoint_step,
            "checkpoint_saved": self.saved,
            "next_save_step": self.next_save_step,
            "event": None
            if newest is None
            else {"time": newest.time, "name": newest.name, "words": newest.words},
            "service": self.service,
            "detail": self.detail,
        }


def said(time: float, run: str, name: str, message: str, fields: Mapping[str, Any]) -> Said:
    """An event in words."""
    return Said(time, run, name, event_in_words(name, message, fields))


_STATES = {
    names.EVENT_DETECTED: "recovering",
    names.EVENT_STARTED: "recovering",
    names.EVENT_COMPLETED: "training",
    names.EVENT_EXHAUSTED: "failed",
    names.EVENT_GAVE_UP: "failed",
}


def after(row: RunRow | None, event: RecoveryEvent) -> RunRow:
    """The row of a run after an event of it; None before its first one.

    Events tell neither of losses nor of a run's end, so a row of theirs knows less than a
    journal's.
    """
    row = row or RunRow(event.run, "training")
    fields = event.fields
    state = _STATES.get(event.name, row.state)
    if event.name == names.EVENT_DETECTED and fields.get(names.VERDICT) == "give_up":
        state = "failed"
    row = replace(
        row,
        state=state,
        recoveries=row.recoveries + (event.name == names.EVENT_COMPLETED),
        newest=said(event.time, event.run, event.name, event.message, fields),
    )
    step = fields.get(names.CHECKPOINT_STEP)
    at = fields.get(names.FAULT_STEP) if event.name == names.EVENT_DETECTED else step
    if event.name in _AT_STEP and isinstance(at, int):
        row = replace(row, step=at)
    if event.name == names.EVENT_CHECKPOINT_SAVED and isinstance(step, int):
        path = fields.get(names.CHECKPOINT_PATH)
        row = replace(
            row,
            checkpoint=path if isinstance(path, str) else None,
            checkpoint_step=step,
            saved=event.time,
        )
    return row


_AT_STEP = (names.EVENT_DETECTED, names.EVENT_COMPLETED, names.EVENT_CHECKPOINT_SAVED)
"""Events that say at which step the run is."""
