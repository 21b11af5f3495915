"""Reading the journal from any process, also while it is being written.

Frozen records of what is known of each run, for ``tinker-recovery watch``, ``report`` and programs
of the user's. Nothing here writes, or waits for the writer. Every call opens the file and closes it
again, and may block on the disk.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from tinker_recovery.costs import Prices, Tokens, table_from_json
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import run_sql
from tinker_recovery.journal.database import BUSY_S, check_version, is_there, journal_errors
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.journal import why_missing
from tinker_recovery.journal.pace import quiet_after_s, state_of_training, usual_step_s
from tinker_recovery.journal.run_sql import GOING_ON, JOB, NEXT_SAVE, StoredRun, select_run
from tinker_recovery.journal.schema import ALL_TOKENS, WITH_DISCARDED, WITH_RUNS, WITH_TOKENS

State = Literal["training", "recovering", "stopped", "finished", "failed", "abandoned"]
"""``stopped``: interrupted or cancelled; the same command resumes it. A run whose process was
killed is still ``training`` or ``recovering`` here; its :attr:`RunView.live` is False.
"""

_ACTIVE = ("training", "recovering")


@dataclass(frozen=True, slots=True)
class AttemptView:
    """One attempt: what was trained under one Tinker run id.

    Attributes:
        number: From 1, over all processes.
        attempt: Its id.
        run_id: The Tinker run id.
        start_step: Optimizer steps in the weights it began with.
        parent: Path of the checkpoint it began with; None if it began from scratch.
        started: Seconds since the epoch.
        ended: Seconds since the epoch; None while it runs, or if its process was killed.
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
        detected_by: How it was detected.
        step: Optimizer steps submitted by then.
        phase: How far its recovery got: ``detected``, ``started``, ``selected``, ``created``,
            ``done``.
        tries: Recovery attempts started.
        started: Seconds since the epoch.
        ended: Seconds since the epoch; None while it is open.
        outcome: ``recovered``, ``given_up``, ``cut_off`` (its process ended), ``ended`` (a fault
            that is not recovered from), or None.
        checkpoint: Path of the checkpoint selected; None if none is yet, or the run starts over.
        to_step: The step the run was rewound to; None if not known yet.
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
    """A checkpoint that the service confirmed as stored.

    Attributes:
        path: ``tinker://RUN/weights/NAME``.
        step: Optimizer steps in it.
        saved: Seconds since the epoch.
        sound: Whether every request before it had succeeded.
        gone: Whether retention has deleted it since.
    """

    path: str
    step: int
    saved: float
    sound: bool
    gone: bool


@dataclass(frozen=True, slots=True)
class TokensView:
    """The tokens that an attempt has cost.

    Attributes:
        all: All of them.
        before: Those before each save, by its step.
    """

    all: Tokens
    before: Mapping[int, Tokens]

    def up_to(self, step: int) -> Tokens:
        """Those before the newest save of this step or an earlier one."""
        at = max((each for each in self.before if each <= step), default=None)
        return Tokens() if at is None else self.before[at]


@dataclass(frozen=True, slots=True)
class ProgressPoint:
    """What the loop reported at a step; sampled to one a second after the first few hundred.

    Attributes:
        step: The loop's step.
        time: Seconds since the epoch.
        loss: ``attempt.report(loss=...)``, if finite.
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
        id: Increases with time; for ``read_events(after=)``.
        run: The run's name; empty if the event is about no single run.
        time: Seconds since the epoch.
        name: One of ``telemetry.names.EVENT_*``.
        message: For people.
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
        id: Its id in the journal.
        service: Base URL of the service.
        name: Its name.
        named: Whether the user chose the name; only such a run is resumed after a restart.
        lineage: Id of the logical run, as in its checkpoints.
        origin: How it starts: ``way``, and the arguments of that way.
        policy: Part of the policy it runs under.
        state: Its state.
        detail: Why, if it is failed or stopped.
        start_step: The step it began at.
        step: Optimizer steps known to be done.
        attempts_left: Recoveries left in its budget, as last written.
        created: Seconds since the epoch.
        updated: When it was last written to, in seconds since the epoch.
        holder: The process that holds its lease, dead or alive; None if it was released.
        attempts: Oldest first.
        incidents: Oldest first.
        checkpoints: By step.
        progress: By step; thinned out to about two thousand.
        tokens: What was counted of each attempt, by its id.
        discarded: Losses of steps that were done again, in the order of their time.
        silences: When it made no progress: before a fault, in an outage, without a process.
        newest_attempt: The step at which its newest attempt began, and when; None before the first.
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
    tokens: Mapping[str, TokensView] = field(default_factory=dict)
    discarded: tuple[ProgressPoint, ...] = ()
    silences: tuple[tuple[float, float], ...] = ()
    newest_attempt: tuple[int, float] | None = None

    @property
    def prices(self) -> Mapping[str, Prices] | None:
        """What tokens cost, as the policy it runs under says."""
        return table_from_json(self.policy.get("prices"))

    @property
    def live(self) -> bool:
        """Whether it is being trained; a process that cannot be seen from here counts as alive."""
        active = self.state in _ACTIVE
        return active and self.holder is not None and self.holder.lives() is not False

    @property
    def display_state(self) -> str:
        """Its state for display: ``dead`` if its process died without writing how it ended.

        And ``resuming`` until its process trains, ``stalled`` without a step; see :mod:`.pace`.
        """
        if self.state in _ACTIVE and not self.live:
            return "dead"
        if self.state != "training" or self.holder is None:
            return self.state
        at = self.step, self.updated, self.newest_attempt
        return state_of_training(*at, held_since=self.holder.since, now=time.time())

    @property
    def quiet_since(self) -> float | None:
        """When it did its last step, if it trains and that is longer ago than is usual for it."""
        step_s = usual_step_s(self.step, self.updated, self.newest_attempt)
        is_quiet = time.time() - self.updated > quiet_after_s(step_s)
        return self.updated if is_quiet and self.display_state == "training" else None

    @property
    def job(self) -> str | None:
        """The job, and which try of it, that started the run: ``NAME try N``; None without one."""
        job = self.policy.get(JOB)
        return None if job is None else str(job)

    @property
    def next_save_step(self) -> int | None:
        """The step of the next save, as things stand; None if nothing fixes it, or it is over."""
        if not self.live:
            return None
        if (step := self._plan.get("step")) is not None:
            return int(step)
        every = self.policy.get("save_every")
        if self.policy.get("strategy") not in ("steps", "last", "all") or not every:
            return None
        return (self.step // int(every) + 1) * int(every)

    @property
    def next_save(self) -> str:
        """When it saves next, and why then, in words; empty where its policy says it all."""
        return str(self._plan.get("words", ""))

    @property
    def _plan(self) -> Mapping[str, Any]:
        plan: Mapping[str, Any] = self.policy.get(NEXT_SAVE) or {}
        return plan if self.live else {}


def read_runs(path: Path) -> list[RunView]:
    """Every run in a journal without its history, most recently updated first.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    with open_to_read(path) as database:
        return [
            run_from(row)
            for row in database.execute(f"{RUNS} ORDER BY runs.updated DESC, runs.id DESC")
        ]


def read_run(path: Path, name: str, *, service: str | None = None) -> RunView | None:
    """The newest run of a name with its history, or None; at any service if that is None.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    with open_to_read(path) as database:
        database.execute("BEGIN")  # one snapshot for all queries
        row = database.execute(
            f"{RUNS} WHERE name = ? AND (? IS NULL OR service = ?) ORDER BY runs.id DESC LIMIT 1",
            (name, service, service),
        ).fetchone()
        return None if row is None else run_from(row, database)


def read_stored_run(path: Path, name: str, *, service: str) -> tuple[RunView, StoredRun] | None:
    """A run and what a restart finds of it, by its name or the id of one of its Tinker runs.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    with open_to_read(path) as database:
        database.execute("BEGIN")
        row = database.execute(
            f"{RUNS} WHERE service = ?1 AND (name = ?2 OR runs.id IN "  # noqa: S608 - our own constants
            "(SELECT run FROM attempts WHERE run_id = ?2)) "
            "ORDER BY name = ?2 DESC, runs.id DESC LIMIT 1",
            (service, name),
        ).fetchone()
        return None if row is None else (run_from(row), select_run(database, row[0]))


def read_events(
    path: Path,
    name: str | None = None,
    *,
    service: str | None = None,
    run: int | None = None,
    after: int = 0,
    limit: int = 1000,
) -> list[EventView]:
    """The newest ``limit`` events, oldest first; of the runs of one name or service, or of all.

    ``run`` is the :attr:`RunView.id` of the one run whose events to read: several may have its
    name. ``after`` is the :attr:`EventView.id` of the last one already read.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    newest = "events.id > ? ORDER BY events.id DESC LIMIT ?"
    with open_to_read(path) as database:
        rows: list[tuple[Any, ...]] = []
        if name is None and service is None and run is None:
            rows += database.execute(f"{EVENTS} WHERE {newest}", (after, limit))
        else:
            # Run by run, through the index: one with few events does not scan all of them.
            for (each,) in database.execute(
                "SELECT id FROM runs WHERE (?1 IS NULL OR name = ?1) "
                "AND (?2 IS NULL OR service = ?2) AND (?3 IS NULL OR id = ?3)",
                (name, service, run),
            ).fetchall():
                rows += database.execute(
                    f"{EVENTS} WHERE events.run = ? AND {newest}", (each, after, limit)
                )
    return [event_from(row) for row in sorted(rows)[-limit:]]


RUNS = (
    "SELECT runs.id, service, name, named, lineage, origin, policy, state, detail, "
    "runs.start_step, runs.step, attempts_left, created, updated, newest.start_step, "
    "newest.started, host, machine, pid, born, since, expires FROM runs "
    "LEFT JOIN leases ON leases.run = runs.id AND leases.holder <> '' "
    "LEFT JOIN attempts AS newest ON newest.run = runs.id "
    "AND newest.number = (SELECT max(number) FROM attempts WHERE run = runs.id)"
)
"""Selects rows for :func:`run_from`."""

CHECKPOINTS = "SELECT path, step, saved, sound, gone FROM checkpoints WHERE run = ?"
"""Selects rows for :func:`checkpoint_from`."""

INCIDENTS = (
    "SELECT kind, detected_by, step, phase, tries, started, ended, outcome, checkpoint, to_step "  # noqa: S608 - our own constant
    f"FROM incidents WHERE kind <> '{GOING_ON}' AND run = ?"
)
"""Selects rows whose values are those of an :class:`IncidentView`."""

EVENTS = (
    "SELECT events.id, coalesce(runs.name, ''), events.time, events.name, message, fields "
    "FROM events LEFT JOIN runs ON runs.id = events.run"
)
"""Selects rows for :func:`event_from`."""


@contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """The journal, opened read-only.

    Raises:
        JournalError: The file does not exist, or cannot be read; also from the body.
    """
    if not is_there(path):
        raise JournalError(f"there is no journal at {path}: {why_missing(path)}")
    with (
        journal_errors(path),
        closing(
            sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, timeout=BUSY_S, isolation_level=None
            )
        ) as database,
    ):
        version = check_version(database, path)
        if version < WITH_RUNS:
            raise JournalError(
                f"the journal {path} has schema {version}, which holds no runs: the next training "
                "process that uses it updates it"
            )
        yield database


def run_from(row: tuple[Any, ...], database: sqlite3.Connection | None = None) -> RunView:
    """The run of a row of :data:`RUNS`; with its history if ``database`` is given."""
    run, service, name, named, lineage, origin, policy, *more = row
    *state, newest_step, newest_started, host, machine, pid, born, since, expires = more
    view = (
        run,
        service,
        name,
        bool(named),
        lineage,
        json.loads(origin),
        json.loads(policy),
        *state,
        None if host is None else Holder(host, machine, pid, born, since, expires),
    )
    newest = None if newest_started is None else (newest_step, newest_started)
    known = {} if database is None else _history(database, run)
    return RunView(*view, **known | {"newest_attempt": newest})


def checkpoint_from(row: tuple[Any, ...]) -> CheckpointView:
    """The checkpoint of a row of :data:`CHECKPOINTS`."""
    path, step, saved, sound, gone = row
    return CheckpointView(path, step, saved, bool(sound), bool(gone))


def event_from(row: tuple[Any, ...]) -> EventView:
    """The event of a row of :data:`EVENTS`."""
    id_, run, time, name, message, fields = row
    return EventView(id_, run, time, name, message, json.loads(fields))


def _history(database: sqlite3.Connection, run: int) -> dict[str, Any]:
    attempts = database.execute(
        "SELECT number, attempt, run_id, start_step, parent, started, ended, outcome "
        "FROM attempts WHERE run = ? ORDER BY number",
        (run,),
    )
    incidents = database.execute(f"{INCIDENTS} ORDER BY id", (run,))
    checkpoints = database.execute(f"{CHECKPOINTS} ORDER BY step, saved", (run,))
    progress = database.execute(
        "SELECT step, time, loss, metrics FROM progress WHERE run = ? ORDER BY step", (run,)
    )
    return {
        "attempts": tuple(AttemptView(*row) for row in attempts),
        "incidents": tuple(IncidentView(*row) for row in incidents),
        "checkpoints": tuple(checkpoint_from(row) for row in checkpoints),
        "progress": tuple(
            ProgressPoint(step, time, loss, json.loads(metrics))
            for step, time, loss, metrics in progress
        ),
        "discarded": _discarded(database, run),
        "tokens": _tokens(database, run),
        "silences": run_sql.select_silences(database, run),
    }


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _discarded(database: sqlite3.Connection, run: int) -> tuple[ProgressPoint, ...]:
    if _version(database) < WITH_DISCARDED:
        return ()
    return tuple(
        ProgressPoint(step, at, loss, {})
        for step, at, loss in database.execute(
            "SELECT step, time, loss FROM discarded WHERE run = ? ORDER BY time, step", (run,)
        )
    )


def _tokens(database: sqlite3.Connection, run: int) -> dict[str, TokensView]:
    if _version(database) < WITH_TOKENS:
        return {}
    counted: dict[str, dict[int, Tokens]] = {}
    for attempt, step, counts in database.execute(
        "SELECT attempt, step, counts FROM tokens WHERE run = ?", (run,)
    ):
        counted.setdefault(attempt, {})[step] = Tokens.from_json(json.loads(counts))
    return {
        attempt: TokensView(before.pop(ALL_TOKENS, Tokens()), before)
        for attempt, before in counted.items()
    }
