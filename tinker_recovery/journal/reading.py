"""Reading the journal, from any process, while it is being written.

Plain frozen records of what is known of each run, for ``tinker-recovery watch``, ``report`` and
whoever else wants to look. Nothing here writes, waits for the writer, or holds it up. Every call
opens the file and closes it again; each may block for as long as a disk does.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from tinker_recovery.errors import JournalError
from tinker_recovery.journal.database import BUSY_S, check_version, explained
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.records import Found, find
from tinker_recovery.journal.schema import SCHEMA

State = Literal["training", "recovering", "stopped", "finished", "failed", "abandoned"]
"""``stopped``: interrupted or cancelled, to be gone on with by the same command. A run whose
process was killed is still ``training`` or ``recovering`` here; its :attr:`RunView.live` is False.
"""


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt: what was trained under one Tinker run id.

    Attributes:
        number: From 1, over all processes.
        attempt: Its id.
        run_id: The Tinker run id.
        start_step: Optimizer steps in the weights it began with.
        parent: Path of the checkpoint it began with; None if it began afresh.
        started: Seconds since the epoch.
        ended: The same; None while it runs, or if its process was killed.
        outcome: ``finished``, the kind of the fault, the name of the exception, or None.
    """

    number: int
    attempt: str
    run_id: str
    start_step: int
    parent: str | None
    started: float
    ended: float | None
    outcome: str | None


@dataclass(frozen=True, slots=True)
class IncidentView:
    """One fault, and the recovery from it.

    Attributes:
        kind: What went wrong, as in ``tinker-recovery faults``.
        detected_by: How it was noticed.
        step: Optimizer steps submitted by then.
        phase: Where its recovery is, or was left: ``detected``, ``started``, ``selected``,
            ``created``, ``done``.
        tries: Recovery attempts begun.
        started: Seconds since the epoch.
        ended: The same; None while it is open.
        outcome: ``recovered``, ``given_up``, ``cut_off`` (its process ended), ``ended`` (a fault
            nobody recovers from), or None.
        checkpoint: Path of the checkpoint chosen; None if there is none yet, or it starts over.
        to_step: The step gone back to; None if not known yet.
    """

    kind: str
    detected_by: str
    step: int
    phase: str
    tries: int
    started: float
    ended: float | None
    outcome: str | None
    checkpoint: str | None
    to_step: int | None


@dataclass(frozen=True, slots=True)
class CheckpointView:
    """A checkpoint that the service said it has stored.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        step: Optimizer steps in it.
        saved: Seconds since the epoch.
        sound: Whether everything before it had succeeded.
        gone: Whether it was deleted since, by whoever keeps the run's checkpoints.
    """

    path: str
    step: int
    saved: float
    sound: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class ProgressPoint:
    """What the loop reported at a step; sampled: one a second, after a few hundred at will.

    Attributes:
        step: The loop's step.
        time: Seconds since the epoch.
        loss: ``attempt.report(loss=...)``, if it is finite.
        metrics: Everything reported.
    """

    step: int
    time: float
    loss: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EventView:
    """One event.

    Attributes:
        id: Rises with time; ``read_events(after=)`` takes it.
        run: The run's name; empty where it concerns no single run.
        time: Seconds since the epoch.
        name: One of ``telemetry.names.EVENT_*``.
        message: In words.
        fields: Attributes by their telemetry name.
    """

    id: int
    run: str
    time: float
    name: str
    message: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RunView:
    """What the journal knows of a run.

    Attributes:
        id: The journal's own number for it.
        service: Base URL of the service.
        name: Its name.
        named: Whether the user gave the name; only such a run is gone on with after a restart.
        lineage: Id of the logical run, as in its checkpoints.
        origin: How it starts: ``way``, and what belongs to that.
        policy: The policy it runs under, in part.
        state: Where it stands.
        detail: Why, in words, if it is failed or stopped.
        start_step: The step it began at.
        step: Optimizer steps known to be done.
        attempts_left: Recoveries it may still try, as last told.
        created: Seconds since the epoch.
        updated: The same, of the newest sign of life.
        holder: The process that trains it, or trained it last; None if none holds it.
        attempts: Oldest first.
        incidents: Oldest first.
        checkpoints: By step.
        progress: By step; thinned out to about two thousand.
    """

    id: int
    service: str
    name: str
    named: bool
    lineage: str
    origin: Mapping[str, Any]
    policy: Mapping[str, Any]
    state: State
    detail: str
    start_step: int
    step: int
    attempts_left: int | None
    created: float
    updated: float
    holder: Holder | None
    attempts: tuple[AttemptView, ...] = ()
    incidents: tuple[IncidentView, ...] = ()
    checkpoints: tuple[CheckpointView, ...] = ()
    progress: tuple[ProgressPoint, ...] = ()

    @property
    def live(self) -> bool:
        """Whether it is under way, as far as can be told from here.

        On this machine that is whether its process lives; of another one it is believed.
        """
        at_work = self.state in ("training", "recovering")
        return at_work and self.holder is not None and self.holder.lives() is not False

    @property
    def display_state(self) -> str:
        """Its state, for people; ``dead`` if its process is gone and never said how it ended."""
        at_work = self.state in ("training", "recovering")
        return "dead" if at_work and not self.live else self.state

    @property
    def next_save_step(self) -> int | None:
        """The step of the next save, where the policy fixes it; None elsewhere."""
        every = self.policy.get("save_every")
        if self.policy.get("strategy") not in ("steps", "last", "all") or not every:
            return None
        return (self.step // int(every) + 1) * int(every)


def read_runs(path: Path) -> list[RunView]:
    """Every run in a journal, the one most recently alive first, without its history.

    Raises:
        JournalError: The file is not there, or cannot be read.
    """
    with open_to_read(path) as database:
        return [
            run_from(row)
            for row in database.execute(f"{RUNS} ORDER BY runs.updated DESC, runs.id DESC")
        ]


def read_run(path: Path, name: str, *, service: str | None = None) -> RunView | None:
    """One run with its history, or None; of several of that name, the newest.

    Args:
        path: The journal.
        name: The run's name.
        service: Base URL of its service; None for any.

    Raises:
        JournalError: The file is not there, or cannot be read.
    """
    with open_to_read(path) as database:
        # One picture: nothing of it changes between the questions.
        database.execute("BEGIN")
        row = database.execute(
            f"{RUNS} WHERE name = ? AND (? IS NULL OR service = ?) ORDER BY runs.id DESC LIMIT 1",
            (name, service, service),
        ).fetchone()
        return None if row is None else run_from(row, database)


def read_left(path: Path, name: str, *, service: str) -> tuple[RunView, Found] | None:
    """A run as it was left, for whoever wants to know what a restart would find; or None.

    Args:
        path: The journal.
        name: The run's name, or the id of a Tinker run it has lived in.
        service: Base URL of its service.

    Raises:
        JournalError: The file is not there, or cannot be read.
    """
    with open_to_read(path) as database:
        database.execute("BEGIN")
        meant = database.execute(
            "SELECT id FROM runs WHERE service = ?1 AND (name = ?2 OR id IN "
            "(SELECT run FROM attempts WHERE run_id = ?2)) "
            "ORDER BY name = ?2 DESC, id DESC LIMIT 1",
            (service, name),
        ).fetchone()
        if meant is None:
            return None
        row = database.execute(f"{RUNS} WHERE runs.id = ?", meant).fetchone()
        return run_from(row), find(database, *meant)


def read_events(
    path: Path, name: str | None = None, *, after: int = 0, limit: int = 1000
) -> list[EventView]:
    """The newest events after one already seen, oldest of them first.

    Args:
        path: The journal.
        name: Of the runs of this name; None for all.
        after: ``EventView.id`` of the last one seen.
        limit: At most so many.

    Raises:
        JournalError: The file is not there, or cannot be read.
    """
    with open_to_read(path) as database:
        rows: list[tuple[Any, ...]] = []
        if name is None:
            rows += database.execute(f"{_EVENTS} ORDER BY events.id DESC LIMIT ?", (after, limit))
        else:
            # One run after the other, each by its index: a quiet one is not looked for among all.
            for (run,) in database.execute(
                "SELECT id FROM runs WHERE name = ?", (name,)
            ).fetchall():
                rows += database.execute(
                    f"{_EVENTS} AND events.run = ? ORDER BY events.id DESC LIMIT ?",
                    (after, run, limit),
                )
    return [
        EventView(id_, run, time, event, message, json.loads(fields))
        for id_, run, time, event, message, fields in sorted(rows)[-limit:]
    ]


_EVENTS = (
    "SELECT events.id, coalesce(runs.name, ''), events.time, events.name, message, fields "
    "FROM events LEFT JOIN runs ON runs.id = events.run WHERE events.id > ?"
)

RUNS = (
    "SELECT runs.id, service, name, named, lineage, origin, policy, state, detail, start_step, "
    "step, attempts_left, created, updated, host, machine, pid, born, since, expires "
    "FROM runs LEFT JOIN leases ON leases.run = runs.id AND leases.holder <> ''"
)
"""What :func:`run_from` reads."""


@contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """The journal, opened for reading alone.

    Raises:
        JournalError: The file is not there, or cannot be read; from the body as well.
    """
    if not path.exists():
        raise JournalError(
            f"there is no journal at {path}: nothing has been trained here yet, or "
            "TINKER_RECOVERY_STATE_DIR points elsewhere"
        )
    try:
        with closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
            )
        ) as database:
            version = check_version(database, path)
            if version < SCHEMA:
                raise JournalError(
                    f"the journal {path} has schema {version}, which holds no runs: it is brought "
                    "up to date by the next training process that uses it"
                )
            yield database
    except (sqlite3.Error, OSError) as error:
        raise explained(error, path) from error


def run_from(row: tuple[Any, ...], database: sqlite3.Connection | None = None) -> RunView:
    """The run of a row of :data:`RUNS`; with its history if there is a database to read it from."""
    run, service, name, named, lineage, origin, policy, *rest = row
    *told, host, machine, pid, born, since, expires = rest
    holder = None if host is None else Holder(host, machine, pid, born, since, expires)
    view = (
        run,
        service,
        name,
        bool(named),
        lineage,
        json.loads(origin),
        json.loads(policy),
        *told,
        holder,
    )
    return RunView(*view, **({} if database is None else _history(database, run)))


def _history(database: sqlite3.Connection, run: int) -> dict[str, Any]:
    attempts = database.execute(
        "SELECT number, attempt, run_id, start_step, parent, started, ended, outcome "
        "FROM attempts WHERE run = ? ORDER BY number",
        (run,),
    )
    incidents = database.execute(
        "SELECT kind, detected_by, step, phase, tries, started, ended, outcome, checkpoint, "
        "to_step FROM incidents WHERE run = ? ORDER BY id",
        (run,),
    )
    checkpoints = database.execute(
        "SELECT path, step, saved, sound, gone FROM checkpoints WHERE run = ? ORDER BY step, saved",
        (run,),
    )
    progress = database.execute(
        "SELECT step, time, loss, metrics FROM progress WHERE run = ? ORDER BY step", (run,)
    )
    return {
        "attempts": tuple(AttemptView(*row) for row in attempts),
        "incidents": tuple(IncidentView(*row) for row in incidents),
        "checkpoints": tuple(
            CheckpointView(path, step, saved, bool(sound), bool(gone))
            for path, step, saved, sound, gone in checkpoints
        ),
        "progress": tuple(
            ProgressPoint(step, time, loss, json.loads(metrics))
            for step, time, loss, metrics in progress
        ),
    }
