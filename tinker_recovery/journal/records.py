"""The statements behind the records of a run: what is written, and what a restart finds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinker_recovery.telemetry import RecoveryEvent, names

POINTS = 2_000
"""Reported losses kept of a run; past it every second one is dropped."""

_PHASES: Mapping[str, str] = {
    names.EVENT_STARTED: "started",
    names.EVENT_CHECKPOINT_SELECTED: "selected",
    names.EVENT_CLIENT_CREATED: "created",
    names.EVENT_COMPLETED: "done",
}

_OUTCOMES: Mapping[str, str] = {
    names.EVENT_COMPLETED: "recovered",
    names.EVENT_EXHAUSTED: "given_up",
    names.EVENT_GAVE_UP: "given_up",
}


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run as whoever starts it describes it.

    Attributes:
        service: Base URL of the service.
        name: Its name.
        named: Whether that is to be gone on with by this name.
        lineage: Id of the logical run, if it is a new one.
        origin: How it starts.
        policy: The policy, in part.
        start_step: The step it begins at.
    """

    service: str
    name: str
    named: bool
    lineage: str
    origin: Mapping[str, Any]
    policy: Mapping[str, Any]
    start_step: int


@dataclass(frozen=True, slots=True)
class FoundAttempt:
    """One attempt of an earlier process.

    Attributes:
        attempt: Its id.
        run_id: The Tinker run id.
        start_step: Optimizer steps it began with.
        parent: Path of the checkpoint it began with.
        ended: Whether its process saw its end.
        sound_step: Everything up to this step is known to have succeeded.
        polled_step: The newest step saved when the service last called the run sound.
        trusted_to: The last step that may be gone back to, if it ended by a fault; None if that
            fault speaks against none, or there was none.
        faulty: Whether it ended by a fault.
    """

    attempt: str
    run_id: str
    start_step: int
    parent: str | None
    ended: bool
    sound_step: int
    polled_step: int
    trusted_to: float | None
    faulty: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What is written of a run that was begun before.

    Attributes:
        lineage: Id of the logical run.
        origin: How it starts.
        state: Where it was left.
        detail: Why.
        start_step: The step it began at.
        step: Optimizer steps known to be done.
        attempts: Oldest first.
        leftovers: Tinker run ids of clients that a recovery made and did not hand over.
        stored: Its checkpoints that are sound and not deleted, by step: path and step.
    """

    lineage: str
    origin: Mapping[str, Any]
    state: str
    detail: str
    start_step: int
    step: int
    attempts: tuple[FoundAttempt, ...]
    leftovers: tuple[str, ...]
    stored: tuple[tuple[str, int], ...]


def number_of(connection: sqlite3.Connection, opening: RunRequest) -> int | None:
    """The journal's number of the run of that name, if it is to be gone on with."""
    if not opening.named:
        return None
    row = connection.execute(
        "SELECT id FROM runs WHERE service = ? AND name = ? AND named AND state <> 'abandoned'",
        (opening.service, opening.name),
    ).fetchone()
    return None if row is None else int(row[0])


def insert_run(connection: sqlite3.Connection, opening: RunRequest, now: float) -> int:
    """A new run; returns its number."""
    cursor = connection.execute(
        "INSERT INTO runs (service, name, named, lineage, origin, policy, state, start_step, step, "
        "created, updated) VALUES (?, ?, ?, ?, ?, ?, 'training', ?, ?, ?, ?)",
        (
            opening.service,
            opening.name,
            opening.named,
            opening.lineage,
            json.dumps(opening.origin),
            json.dumps(opening.policy),
            opening.start_step,
            opening.start_step,
            now,
            now,
        ),
    )
    return int(cursor.lastrowid or 0)


def find(connection: sqlite3.Connection, run: int) -> Found:
    """What is written of a run."""
    lineage, origin, state, detail, start_step, step = connection.execute(
        "SELECT lineage, origin, state, detail, start_step, step FROM runs WHERE id = ?", (run,)
    ).fetchone()
    attempts = connection.execute(
        "SELECT attempt, run_id, start_step, parent, ended IS NOT NULL, sound_step, polled_step, "
        "trusted_to, coalesce(outcome, 'process_lost') NOT IN ('finished', 'failed', 'stopped', "
        "'process_lost') FROM attempts WHERE run = ? ORDER BY number",
        (run,),
    ).fetchall()
    made = connection.execute(
        "SELECT created_run_id FROM incidents WHERE run = ? AND ended IS NULL "
        "AND created_run_id IS NOT NULL",
        (run,),
    ).fetchall()
    stored = connection.execute(
        "SELECT path, step FROM checkpoints WHERE run = ? AND sound AND NOT gone "
        "ORDER BY step, saved",
        (run,),
    ).fetchall()
    return Found(
        lineage,
        json.loads(origin),
        state,
        detail,
        start_step,
        step,
        tuple(
            FoundAttempt(
                attempt, run_id, at, parent, bool(ended), sound, polled, trusted, bool(faulty)
            )
            for attempt, run_id, at, parent, ended, sound, polled, trusted, faulty in attempts
        ),
        tuple(run_id for (run_id,) in made),
        tuple((path, at) for path, at in stored),
    )


def begin_again(
    connection: sqlite3.Connection, run: int, opening: RunRequest, now: float, *, anew: bool
) -> None:
    """A run is gone on with: what the process before left open is closed.

    Args:
        connection: Of the journal.
        run: The run.
        opening: As it is started now.
        now: Seconds since the epoch.
        anew: Nothing was trained yet, so that how it starts may change.
    """
    connection.execute(
        "UPDATE runs SET state = 'training', detail = '', policy = ?, updated = ? WHERE id = ?",
        (json.dumps(opening.policy), now, run),
    )
    if anew:
        connection.execute(
            "UPDATE runs SET origin = ?, start_step = ?, step = ? WHERE id = ?",
            (json.dumps(opening.origin), opening.start_step, opening.start_step, run),
        )
    connection.execute(
        "UPDATE incidents SET ended = ?, outcome = 'cut_off' WHERE run = ? AND ended IS NULL",
        (now, run),
    )
    connection.execute(
        "UPDATE attempts SET ended = ?, outcome = coalesce(outcome, 'process_lost') "
        "WHERE run = ? AND ended IS NULL",
        (now, run),
    )


def insert_attempt(
    connection: sqlite3.Connection,
    run: int,
    attempt: tuple[int, str, str, int, str | None],
    now: float,
) -> None:
    """An attempt (number, id, Tinker run id, start step, parent) is about to train."""
    number, attempt_id, run_id, start_step, parent = attempt
    connection.execute(
        "INSERT INTO attempts (run, number, attempt, run_id, start_step, parent, "
        "started, sound_step, polled_step) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (run, number, attempt_id, run_id, start_step, parent, now, start_step, start_step),
    )
    connection.execute(
        "UPDATE runs SET state = 'training', step = ?, updated = ? WHERE id = ?",
        (start_step, now, run),
    )


def note_fault(
    connection: sqlite3.Connection,
    run: int,
    fault: tuple[str, str, int],
    limit: tuple[str, float | None] | None,
    now: float,
    *,
    recovers: bool,
) -> None:
    """A fault (kind, ear, step) is declared.

    Args:
        connection: Of the journal.
        run: The run.
        fault: The fault.
        limit: The attempt it struck, and the last of its steps that may be gone back to.
        now: Seconds since the epoch.
        recovers: Whether a recovery follows.
    """
    ended = (None, None) if recovers else (now, "ended")
    connection.execute(
        "INSERT INTO incidents (run, kind, detected_by, step, phase, started, ended, outcome) "
        "VALUES (?, ?, ?, ?, 'detected', ?, ?, ?)",
        (run, *fault, now, *ended),
    )
    if limit is not None:
        attempt, trusted_to = limit
        connection.execute(
            "UPDATE attempts SET ended = ?, outcome = ?, trusted_to = ? "
            "WHERE run = ? AND attempt = ? AND ended IS NULL",
            (now, fault[0], trusted_to, run, attempt),
        )
    if recovers:
        connection.execute(
            "UPDATE runs SET state = 'recovering', updated = ? WHERE id = ?", (now, run)
        )


def note_event(connection: sqlite3.Connection, run: int | None, event: RecoveryEvent) -> None:
    """An event, and where the recovery it belongs to stands by it."""
    connection.execute(
        "INSERT INTO events (run, time, name, message, fields) VALUES (?, ?, ?, ?, ?)",
        (run, event.time, event.name, event.message, json.dumps(dict(event.fields), default=str)),
    )
    if event.name == names.EVENT_CHECKPOINT_DELETED:
        connection.execute(
            "UPDATE checkpoints SET gone = 1 WHERE run = ? AND path = ?",
            (run, event.fields.get(names.CHECKPOINT_PATH)),
        )
    phase, outcome = _PHASES.get(event.name), _OUTCOMES.get(event.name)
    if run is None or (phase is None and outcome is None):
        return
    selected = event.name == names.EVENT_CHECKPOINT_SELECTED
    created = event.name == names.EVENT_CLIENT_CREATED
    connection.execute(
        "UPDATE incidents SET phase = coalesce(?, phase), outcome = ?, ended = ?, "
        "tries = tries + ?, "
        "checkpoint = CASE WHEN ? THEN ? ELSE checkpoint END, "
        "to_step = CASE WHEN ? THEN ? ELSE to_step END, "
        "created_run_id = CASE WHEN ? THEN ? ELSE created_run_id END "
        "WHERE run = ? AND ended IS NULL",
        (
            phase,
            outcome,
            None if outcome is None else event.time,
            event.name == names.EVENT_STARTED,
            selected,
            event.fields.get(names.CHECKPOINT_PATH),
            selected,
            event.fields.get(names.CHECKPOINT_STEP),
            created,
            event.fields.get(names.RUN_ID),
            run,
        ),
    )


def end_run(connection: sqlite3.Connection, run: int, state: str, detail: str, now: float) -> None:
    """A run is over, for good or for now."""
    connection.execute(
        "UPDATE runs SET state = ?, detail = ?, updated = ? WHERE id = ?", (state, detail, now, run)
    )
    connection.execute(
        "UPDATE incidents SET ended = ?, outcome = ? WHERE run = ? AND ended IS NULL",
        (now, "given_up" if state == "failed" else "cut_off", run),
    )
    connection.execute(
        "UPDATE attempts SET ended = ?, outcome = coalesce(outcome, ?) "
        "WHERE run = ? AND ended IS NULL",
        (now, state, run),
    )


def thin_out(connection: sqlite3.Connection, run: int) -> None:
    """Drop every second reported loss of a run."""
    connection.execute(
        "DELETE FROM progress WHERE run = ? AND step IN (SELECT step FROM (SELECT step, "
        "row_number() OVER (ORDER BY step) AS place FROM progress WHERE run = ?) "
        "WHERE place % 2 = 0)",
        (run, run),
    )
