"""The row of a run in ``watch``, from a journal or from events."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from tinker_recovery.journal.reading import EventView
from tinker_recovery.journal.summary import RunSummary
from tinker_recovery.report import event_in_words
from tinker_recovery.report.words import with_iso
from tinker_recovery.telemetry import RecoveryEvent, names


@dataclass(frozen=True, slots=True)
class EventText:
    """An event, with its message for people."""

    time: float
    run: str
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """The current state of a run; None where the source does not say.

    Attributes:
        run: The run's name.
        state: ``training``, ``resuming``, ``recovering``, ``stalled``, ``stopped``, ``dead``,
            ``finished``, ``failed``, ``abandoned``.
        step: Optimizer steps done.
        losses: The newest reported losses.
        recoveries: Completed recoveries.
        attempts_left: Recovery attempts left.
        checkpoint: Path of the newest checkpoint.
        checkpoint_step: Optimizer steps in it.
        checkpoint_saved: When it was saved, in seconds since the epoch.
        next_save_step: The step of the next save.
        next_save: The same in words, with why then; empty where its policy says it all.
        event: The newest event.
        service: Base URL of the service.
        detail: Why it failed or stopped.
        named: Whether it has a name of its own.
        since: Since when it is in its state, in seconds since the epoch.
        quiet_since: When it did its last step, if that is longer ago than usual for it.
        last_fault: The kind of its newest fault.
        last_fault_time: When that was, in seconds since the epoch.
        job: The job and the try that trains it.
    """

    run: str
    state: str
    step: int | None = None
    losses: tuple[float, ...] = ()
    recoveries: int = 0
    attempts_left: int | None = None
    checkpoint: str | None = None
    checkpoint_step: int | None = None
    checkpoint_saved: float | None = None
    next_save_step: int | None = None
    next_save: str = ""
    event: EventText | None = None
    service: str | None = None
    detail: str = ""
    named: bool = True
    since: float | None = None
    quiet_since: float | None = None
    last_fault: str | None = None
    last_fault_time: float | None = None
    job: str | None = None

    @classmethod
    def of(cls, summary: RunSummary) -> RunRow:
        """The row of a run in a journal."""
        run, event, stored = summary.run, summary.event, summary.checkpoint
        state, fault = run.display_state, summary.incident
        return cls(
            run=run.name,
            state=state,
            step=run.step,
            losses=summary.losses,
            recoveries=summary.recoveries,
            attempts_left=run.attempts_left,
            checkpoint=None if stored is None else stored.path,
            checkpoint_step=None if stored is None else stored.step,
            checkpoint_saved=None if stored is None else stored.saved,
            next_save_step=run.next_save_step,
            next_save=run.next_save,
            event=None if event is None else event_text(event),
            service=run.service,
            detail=run.detail,
            named=run.named,
            since=summary.since,
            quiet_since=run.quiet_since,
            last_fault=None if fault is None else fault.kind,
            last_fault_time=None if fault is None else fault.started,
            job=run.job,
        )

    def as_json(self) -> dict[str, Any]:
        """The row for JSON, with the newest loss alone."""
        row = asdict(self)
        losses = row.pop("losses")
        if row["event"] is not None:
            row["event"] = with_iso(row["event"])
        return with_iso({**row, "loss": losses[-1] if losses else None})


def event_text(event: RecoveryEvent | EventView) -> EventText:
    """An event, with its message for people."""
    message = event_in_words(event.name, event.message, event.fields)
    return EventText(event.time, event.run, event.name, message)


_STATES = {
    names.EVENT_DETECTED: "recovering",
    names.EVENT_STARTED: "recovering",
    names.EVENT_COMPLETED: "training",
    names.EVENT_EXHAUSTED: "failed",
    names.EVENT_GAVE_UP: "failed",
}


def after(row: RunRow | None, event: RecoveryEvent) -> RunRow:
    """The row of a run after one of its events; ``row`` is None before the first.

    Events report neither losses nor the end of a run.
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
        event=event_text(event),
        since=row.since if state == row.state and row.since is not None else event.time,
    )
    if event.name == names.EVENT_DETECTED:
        kind = fields.get(names.FAULT_KIND)
        row = replace(row, last_fault=str(kind) if kind else None, last_fault_time=event.time)
    if event.name == names.EVENT_JOB_TRY:
        row = replace(row, job=event.message.removeprefix("job "))
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
            checkpoint_saved=event.time,
        )
    return row


_AT_STEP = (
    names.EVENT_DETECTED,
    names.EVENT_COMPLETED,
    names.EVENT_CONTINUED,
    names.EVENT_CHECKPOINT_SAVED,
)
"""Events that contain the run's step."""
