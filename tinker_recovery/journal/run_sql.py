"""The SQL behind the records of a run: what is written of it, and what a restart reads back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tinker_recovery.costs import Tokens
from tinker_recovery.journal.schema import WITH_SILENCES
from tinker_recovery.telemetry import RecoveryEvent, names
from tinker_recovery.telemetry.lost_time import Stretch, length, without

POINTS = 2_000
"""Most progress points kept of a run; beyond it, every second one is dropped."""

_INCIDENT_UPDATES: Mapping[str, str] = {
    names.EVENT_DETECTED: "kind = coalesce(:kind, kind)",
    names.EVENT_STARTED: "phase = 'started', tries = tries + 1",
    names.EVENT_CHECKPOINT_SELECTED: "phase = 'selected', checkpoint = :path, to_step = :step",
    names.EVENT_CLIENT_CREATED: "phase = 'created', created_run_id = :run_id",
    names.EVENT_COMPLETED: "phase = 'done', outcome = 'recovered', ended = :time",
    names.EVENT_EXHAUSTED: "outcome = 'given_up', ended = :time",
    names.EVENT_GAVE_UP: "outcome = 'given_up', ended = :time",
}
"""What each event changes in the open incident of its run."""

GOING_ON: Final = "going_on"
"""The kind of an incident that is none: the run goes on after a stop.

It is there for as long as that lasts, so that a restart knows of the client made for it, and is
read by nothing else. If it turns out to be a fault, the event of that gives it the fault's kind.
"""


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run that a process wants to train.

    Attributes:
        service: Base URL of the service.
        name: Its name.
        named: Whether a run of this name is to be resumed.
        lineage: Id of the logical run, if it is a new one.
        origin: How it starts.
        policy: Part of the policy.
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
class StoredAttempt:
    """One attempt of an earlier process, as the journal has it.

    Attributes:
        attempt: Its id.
        run_id: The Tinker run id.
        start_step: Optimizer steps it began with.
        parent: Path of the checkpoint it began with.
        ended: Whether its process wrote its end.
        sound_step: Every request up to this step is known to have succeeded.
        polled_step: The newest step saved when the service last called the Tinker run sound.
        trusted_to: If it ended by a fault, the last step that may be recovered to; None if that
            fault casts doubt on none, or there was no fault.
        faulty: Whether it ended by a fault.
        orderly: Whether its process wrote that it was stopped, or had finished.
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
    orderly: bool = False


@dataclass(frozen=True, slots=True)
class StoredRun:
    """A run of an earlier process, as the journal has it.

    Attributes:
        lineage: Id of the logical run.
        origin: How it starts.
        state: Its state when that process last wrote it.
        detail: Why it is in that state.
        start_step: The step it began at.
        step: Optimizer steps known to be done.
        attempts: Oldest first.
        leftovers: Tinker run ids of clients that a recovery created and did not hand over.
        checkpoints: Path and step of those that are sound and not deleted, by step.
        last_progress: When its process last made progress, in seconds since the epoch, if it was
            killed; None otherwise.
        trained: The steps that its newest attempt began with and had done, and the seconds it
            trained; None if that is not known.
        ended_at: When the last of those saved by schedule has come to the end of its lifetime, by
            our clock in seconds since the epoch; None if they have none, or it is not known.
    """

    lineage: str
    origin: Mapping[str, Any]
    state: str
    detail: str
    start_step: int
    step: int
    attempts: tuple[StoredAttempt, ...]
    leftovers: tuple[str, ...]
    checkpoints: tuple[tuple[str, int], ...]
    ended_at: float | None = None
    last_progress: float | None = None
    trained: tuple[int, int, float] | None = None


def select_id(connection: sqlite3.Connection, request: RunRequest) -> int | None:
    """The id of the run to be resumed; None if the request is for a new one."""
    if not request.named:
        return None
    row = connection.execute(
        "SELECT id FROM runs WHERE service = ? AND name = ? AND named AND state <> 'abandoned'",
        (request.service, request.name),
    ).fetchone()
    return None if row is None else int(row[0])


def insert_run(connection: sqlite3.Connection, request: RunRequest, now: float) -> int:
    """Insert a new run; returns its id."""
    cursor = connection.execute(
        "INSERT INTO runs (service, name, named, lineage, origin, policy, state, start_step, step, "
        "created, updated) VALUES (?, ?, ?, ?, ?, ?, 'training', ?, ?, ?, ?)",
        (
            request.service,
            request.name,
            request.named,
            request.lineage,
            json.dumps(request.origin),
            json.dumps(request.policy),
            request.start_step,
            request.start_step,
            now,
            now,
        ),
    )
    return int(cursor.lastrowid or 0)


def select_run(connection: sqlite3.Connection, run: int) -> StoredRun:
    """What is stored of a run."""
    lineage, origin, state, detail, start_step, step, policy = connection.execute(
        "SELECT lineage, origin, state, detail, start_step, step, policy FROM runs WHERE id = ?",
        (run,),
    ).fetchone()
    attempts = connection.execute(
        "SELECT attempt, run_id, start_step, parent, ended IS NOT NULL, sound_step, polled_step, "
        "trusted_to, coalesce(outcome, 'process_lost') NOT IN ('finished', 'failed', 'stopped', "
        "'process_lost'), coalesce(outcome, '') IN ('stopped', 'finished') "
        "FROM attempts WHERE run = ? ORDER BY number",
        (run,),
    ).fetchall()
    created = connection.execute(
        "SELECT created_run_id FROM incidents WHERE run = ? AND ended IS NULL "
        "AND created_run_id IS NOT NULL",
        (run,),
    ).fetchall()
    checkpoints = connection.execute(
        "SELECT path, step FROM checkpoints WHERE run = ? AND sound AND NOT gone "
        "ORDER BY step, saved",
        (run,),
    ).fetchall()
    return StoredRun(
        lineage,
        json.loads(origin),
        state,
        detail,
        start_step,
        step,
        tuple(
            StoredAttempt(
                attempt,
                run_id,
                at,
                parent,
                bool(ended),
                sound,
                polled,
                trusted,
                bool(faulty),
                bool(orderly),
            )
            for attempt, run_id, at, parent, ended, sound, polled, trusted, faulty, orderly in (
                attempts
            )
        ),
        tuple(run_id for (run_id,) in created),
        tuple(checkpoints),
        _ended_at(connection, run, json.loads(policy).get("ttl_s")),
        _last_progress(connection, run) if state in ("training", "recovering") else None,
        _trained(connection, run, step),
    )


def _last_progress(connection: sqlite3.Connection, run: int) -> float:
    (last,) = connection.execute(
        "SELECT max(updated, coalesce((SELECT max(time) FROM progress WHERE run = ?1), 0)) "
        "FROM runs WHERE id = ?1",
        (run,),
    ).fetchone()
    return float(last)


def _trained(connection: sqlite3.Connection, run: int, step: int) -> tuple[int, int, float] | None:
    row = connection.execute(
        "SELECT start_step, started, ended FROM attempts WHERE run = ? "
        "ORDER BY number DESC LIMIT 1",
        (run,),
    ).fetchone()
    if row is None:
        return None
    start_step, started, ended = row
    until = _last_progress(connection, run) if ended is None else ended
    # The loop reports the step it has just done, counted from 0; steps are written less often.
    (reported,) = connection.execute(
        "SELECT coalesce(max(step) + 1, 0) FROM progress WHERE run = ? AND time >= ?",
        (run, started),
    ).fetchone()
    step = max(step, reported)
    trained = without(started, until, select_silences(connection, run))
    return start_step, max(0, step - start_step), length(trained)


def select_silences(connection: sqlite3.Connection, run: int) -> tuple[Stretch, ...]:
    """When a run made no progress, as far as this version of the journal holds it."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < WITH_SILENCES:
        return ()
    return tuple(connection.execute("SELECT began, ended FROM silences WHERE run = ?", (run,)))


def _ended_at(connection: sqlite3.Connection, run: int, ttl_s: float | None) -> float | None:
    # A lifetime begins with the save, and anew with each renewal.
    (began,) = connection.execute(
        "SELECT max(began) FROM (SELECT saved AS began FROM checkpoints WHERE run = ? UNION ALL "
        "SELECT time FROM events WHERE run = ? AND name = ?)",
        (run, run, names.EVENT_CHECKPOINT_RENEWED),
    ).fetchone()
    return None if ttl_s is None or began is None else float(began) + ttl_s


def resume_run(
    connection: sqlite3.Connection, run: int, request: RunRequest, now: float, *, anew: bool
) -> None:
    """Close what an earlier process left open of a run, and set it to training.

    ``anew`` means that nothing was trained yet, so the way it starts is replaced too.
    """
    last = _last_progress(connection, run)
    connection.execute(
        "UPDATE runs SET state = 'training', detail = '', policy = ?, updated = ? WHERE id = ?",
        (json.dumps(request.policy), now, run),
    )
    if anew:
        connection.execute(
            "UPDATE runs SET origin = ?, start_step = ?, step = ? WHERE id = ?",
            (json.dumps(request.origin), request.start_step, request.start_step, run),
        )
    (said,) = connection.execute("SELECT max(time) FROM events WHERE run = ?", (run,)).fetchone()
    # Its process may have been dead for days.
    recovered_to = min(now, max(last, said or 0.0))
    _close(connection, run, last, recovered_to, incidents="cut_off", attempts="process_lost")


def _close(
    connection: sqlite3.Connection,
    run: int,
    now: float,
    recovered_to: float,
    *,
    incidents: str,
    attempts: str,
) -> None:
    """End the attempts of a run that are open ``now``, and incidents, with these outcomes."""
    _gone_on(connection, run)
    connection.execute(
        "UPDATE incidents SET ended = max(started, ?), outcome = ? WHERE run = ? AND ended IS NULL",
        (recovered_to, incidents, run),
    )
    connection.execute(
        "UPDATE attempts SET ended = max(started, ?), outcome = coalesce(outcome, ?) "
        "WHERE run = ? AND ended IS NULL",
        (now, attempts, run),
    )


def _gone_on(connection: sqlite3.Connection, run: int) -> None:
    connection.execute("DELETE FROM incidents WHERE run = ? AND kind = ?", (run, GOING_ON))


def insert_attempt(
    connection: sqlite3.Connection,
    run: int,
    attempt: tuple[int, str, str, int, str | None],
    now: float,
) -> None:
    """Insert an attempt (number, id, Tinker run id, start step, parent) before it trains."""
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
    orderly: bool = False,
) -> None:
    """Insert the incident of a fault (kind, detected by, steps submitted by then).

    ``limit`` is the attempt it ended, with the last step of that which may be recovered to;
    ``recovers`` whether a recovery follows; ``orderly`` whether the run only goes on after a stop.
    """
    ended = (None, None) if recovers else (now, "ended")
    if orderly:
        fault = (GOING_ON, *fault[1:])
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
    if recovers and not orderly:
        connection.execute(
            "UPDATE runs SET state = 'recovering', updated = ? WHERE id = ?", (now, run)
        )


def note_silences(
    connection: sqlite3.Connection, run: int, now: float, spans: Sequence[Stretch]
) -> None:
    """Write when a run made no progress: from and to so many seconds before ``now``."""
    connection.executemany(
        "INSERT OR REPLACE INTO silences VALUES (?, ?, ?)",
        [(run, now - began_s, now - ended_s) for began_s, ended_s in spans if began_s > ended_s],
    )


def rebuild_run(
    connection: sqlite3.Connection, run: int, stored: StoredRun, now: float, *, known: int
) -> None:
    """Write a run as it was put together, of whose attempts the first ``known`` are there."""
    connection.execute(
        "UPDATE runs SET lineage = ?, start_step = ?, step = ? WHERE id = ?",
        (stored.lineage, stored.start_step, stored.step, run),
    )
    for number, each in enumerate(stored.attempts[known:], known + 1):
        begun = (number, each.attempt, each.run_id, each.start_step, each.parent)
        insert_attempt(connection, run, begun, now)
        connection.execute(
            "UPDATE attempts SET sound_step = ?, polled_step = ? WHERE run = ? AND number = ?",
            (each.sound_step, each.polled_step, run, number),
        )
    for path, step in stored.checkpoints:
        connection.execute(
            "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, 1, 0)", (run, path, step, now)
        )


def note_event(connection: sqlite3.Connection, run: int | None, event: RecoveryEvent) -> None:
    """Insert an event, and update the incident or checkpoint that it is about."""
    connection.execute(
        "INSERT INTO events (run, time, name, message, fields) VALUES (?, ?, ?, ?, ?)",
        (run, event.time, event.name, event.message, json.dumps(dict(event.fields), default=str)),
    )
    about = {
        "run": run,
        "time": event.time,
        "path": event.fields.get(names.CHECKPOINT_PATH),
        "step": event.fields.get(names.CHECKPOINT_STEP),
        "run_id": event.fields.get(names.RUN_ID),
        "kind": event.fields.get(names.FAULT_KIND),
    }
    if event.name == names.EVENT_CHECKPOINT_DELETED:
        connection.execute(
            "UPDATE checkpoints SET gone = 1 WHERE run = :run AND path = :path", about
        )
    if run is not None and event.name == names.EVENT_CONTINUED:
        _gone_on(connection, run)
    if run is not None and event.name in _INCIDENT_UPDATES:
        connection.execute(
            f"UPDATE incidents SET {_INCIDENT_UPDATES[event.name]} "  # noqa: S608 - our own constants
            "WHERE run = :run AND ended IS NULL",
            about,
        )


def note_tokens(
    connection: sqlite3.Connection, run: int, attempt: str, step: int, tokens: Tokens
) -> None:
    """Write the tokens of an attempt before a save of a step, or at ``ALL_TOKENS`` all of them."""
    if tokens:
        counts = json.dumps(tokens.to_json())
        connection.execute(
            "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?)", (run, attempt, step, counts)
        )


JOB: Final = "job"
"""Where the job and the try that started a run stand, beside the part of its policy."""

NEXT_SAVE: Final = "next_save"
"""Where a run's plan stands, beside the part of its policy that it comes of."""


def note_plan(connection: sqlite3.Connection, run: int, plan: Mapping[str, Any]) -> None:
    """Write when a run saves next, where its policy alone does not say so."""
    if not plan:
        return
    row = connection.execute("SELECT policy FROM runs WHERE id = ?", (run,)).fetchone()
    policy = {**json.loads(row[0]), NEXT_SAVE: dict(plan)}
    connection.execute("UPDATE runs SET policy = ? WHERE id = ?", (json.dumps(policy), run))


def end_run(connection: sqlite3.Connection, run: int, state: str, detail: str, now: float) -> None:
    """Set a run's final state, or ``stopped``, and close what is open of it."""
    connection.execute(
        "UPDATE runs SET state = ?, detail = ?, updated = ? WHERE id = ?", (state, detail, now, run)
    )
    incidents = "given_up" if state == "failed" else "cut_off"
    _close(connection, run, now, now, incidents=incidents, attempts=state)


def leave_run(connection: sqlite3.Connection, run: int, state: str, detail: str) -> None:
    """Set the state of a run back to that in which it was found."""
    connection.execute("UPDATE runs SET state = ?, detail = ? WHERE id = ?", (state, detail, run))


def thin_out(connection: sqlite3.Connection, run: int) -> None:
    """Drop every second progress point of a run, but none that stands out of its neighbours."""
    connection.execute(
        "WITH placed AS (SELECT step, row_number() OVER line AS place, "
        "abs(loss - (lag(loss) OVER line + lead(loss) OVER line) / 2) AS off "
        "FROM progress WHERE run = ?1 WINDOW line AS (ORDER BY step)) "
        "DELETE FROM progress WHERE run = ?1 AND step IN (SELECT step FROM placed "
        "WHERE place % 2 = 0 AND coalesce(off <= ?2 * (SELECT avg(off) FROM placed), 1))",
        (run, _STANDS_OUT),
    )


_STANDS_OUT = 6
"""How many times the mean distance from its neighbours a loss has to be away from them."""


def discard_progress(connection: sqlite3.Connection, run: int, start_step: int) -> None:
    """Set aside the losses of the steps that an attempt from ``start_step`` on does again.

    What stands in ``progress`` is the branch that counts.
    """
    connection.execute(
        "INSERT OR REPLACE INTO discarded SELECT run, time, step, loss FROM progress "
        "WHERE run = ? AND step >= ? AND loss IS NOT NULL",
        (run, start_step),
    )
    connection.execute("DELETE FROM progress WHERE run = ? AND step >= ?", (run, start_step))
    connection.execute(
        "DELETE FROM discarded WHERE run = ?1 AND time < (SELECT time FROM discarded "
        "WHERE run = ?1 ORDER BY time DESC LIMIT 1 OFFSET ?2)",
        (run, POINTS),
    )
