"""Run summaries: cheap enough to be read every second while the runs train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tinker_recovery.journal.reading import (
    CHECKPOINTS,
    EVENTS,
    INCIDENTS,
    RUNS,
    CheckpointView,
    EventView,
    IncidentView,
    RunView,
    checkpoint_from,
    event_from,
    open_to_read,
    run_from,
)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run without its history, with the newest entries of it.

    Attributes:
        run: The run, without its history.
        attempts: Number of attempts.
        recoveries: Incidents that were recovered from.
        losses: The newest finite losses reported, by step.
        checkpoint: The newest one that is not deleted.
        event: The newest event.
        incident: The newest fault.
    """

    run: RunView
    attempts: int
    recoveries: int
    losses: tuple[float, ...]
    checkpoint: CheckpointView | None
    event: EventView | None
    incident: IncidentView | None = None

    @classmethod
    def of(cls, run: RunView) -> Self:
        """The summary of a run with its history."""
        return cls(
            run,
            len(run.attempts),
            sum(each.outcome == "recovered" for each in run.incidents),
            tuple(each.loss for each in run.progress if each.loss is not None),
            max(
                (each for each in run.checkpoints if not each.gone),
                key=lambda each: (each.saved, each.step),
                default=None,
            ),
            None,
            run.incidents[-1] if run.incidents else None,
        )

    @property
    def since(self) -> float:
        """Since when it is in its state, in seconds since the epoch."""
        if self.run.display_state == "recovering" and self.incident is not None:
            return self.incident.started
        if self.run.display_state == "training" and self.run.newest_attempt is not None:
            return self.run.newest_attempt[1]
        if self.run.display_state == "resuming" and self.run.holder is not None:
            return self.run.holder.since
        return self.run.updated


def read_summaries(
    path: Path, name: str | None = None, *, service: str | None = None, losses: int = 60
) -> list[RunSummary]:
    """Every run in a journal, or those of one name or service, most recently updated first.

    ``losses`` is how many of the newest losses to read.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    with open_to_read(path) as database:
        database.execute("BEGIN")  # one snapshot for all queries
        rows = database.execute(
            f"{RUNS} WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR service = ?2) "
            "ORDER BY runs.updated DESC, runs.id DESC",
            (name, service),
        ).fetchall()
        summaries = []
        for row in rows:
            run = run_from(row)
            attempts, recoveries = database.execute(
                "SELECT (SELECT count(*) FROM attempts WHERE run = ?1), "
                "(SELECT count(*) FROM incidents WHERE run = ?1 AND outcome = 'recovered')",
                (run.id,),
            ).fetchone()
            newest = database.execute(
                "SELECT loss FROM progress WHERE run = ? AND loss IS NOT NULL "
                "ORDER BY step DESC LIMIT ?",
                (run.id, losses),
            ).fetchall()
            stored = database.execute(
                f"{CHECKPOINTS} AND NOT gone ORDER BY saved DESC, step DESC LIMIT 1", (run.id,)
            ).fetchone()
            event = database.execute(
                f"{EVENTS} WHERE events.run = ? ORDER BY events.id DESC LIMIT 1", (run.id,)
            ).fetchone()
            incident = database.execute(
                f"{INCIDENTS} ORDER BY id DESC LIMIT 1", (run.id,)
            ).fetchone()
            summaries.append(
                RunSummary(
                    run,
                    attempts,
                    recoveries,
                    tuple(loss for (loss,) in reversed(newest)),
                    None if stored is None else checkpoint_from(stored),
                    None if event is None else event_from(event),
                    None if incident is None else IncidentView(*incident),
                )
            )
    return summaries
