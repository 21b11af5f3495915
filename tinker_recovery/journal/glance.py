"""Many runs at one glance, cheap enough to be asked for every second while they train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tinker_recovery.journal.reading import (
    RUNS,
    CheckpointView,
    EventView,
    RunView,
    open_to_read,
    run_from,
)


@dataclass(frozen=True, slots=True)
class Glance:
    """A run without its history, and the newest of that.

    Attributes:
        run: The run, its history left out.
        attempts: How many there were.
        recoveries: Incidents that ended well.
        losses: The newest reported losses, by step; those that are finite.
        checkpoint: The newest one that is not deleted.
        event: The newest event.
    """

    run: RunView
    attempts: int
    recoveries: int
    losses: tuple[float, ...]
    checkpoint: CheckpointView | None
    event: EventView | None


def read_glances(
    path: Path, name: str | None = None, *, service: str | None = None, losses: int = 60
) -> list[Glance]:
    """Every run in a journal, or those of one name, the one most recently alive first.

    Args:
        path: The journal.
        name: Of the runs wanted; None for all.
        service: Base URL of their service; None for any.
        losses: How many of the newest losses.

    Raises:
        JournalError: The file is not there, or cannot be read.
    """
    with open_to_read(path) as database:
        # One picture: nothing of it changes between the questions.
        database.execute("BEGIN")
        rows = database.execute(
            f"{RUNS} WHERE (?1 IS NULL OR name = ?1) AND (?2 IS NULL OR service = ?2) "
            "ORDER BY runs.updated DESC, runs.id DESC",
            (name, service),
        ).fetchall()
        glances = []
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
                "SELECT path, step, saved, sound, gone FROM checkpoints WHERE run = ? AND NOT gone "
                "ORDER BY saved DESC, step DESC LIMIT 1",
                (run.id,),
            ).fetchone()
            said = database.execute(
                "SELECT id, time, name, message, fields FROM events WHERE run = ? "
                "ORDER BY id DESC LIMIT 1",
                (run.id,),
            ).fetchone()
            glances.append(
                Glance(
                    run,
                    attempts,
                    recoveries,
                    tuple(loss for (loss,) in reversed(newest)),
                    None if stored is None else _checkpoint(*stored),
                    None if said is None else _event(run.name, *said),
                )
            )
    return glances


def _checkpoint(path: str, step: int, saved: float, sound: int, gone: int) -> CheckpointView:
    return CheckpointView(path, step, saved, bool(sound), bool(gone))


def _event(run: str, id_: int, time: float, name: str, message: str, fields: str) -> EventView:
    return EventView(id_, run, time, name, message, json.loads(fields))
