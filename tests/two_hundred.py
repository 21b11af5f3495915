"""A journal of two hundred runs, and one of a long run, written by the journal's own SQL.

``python tests/two_hundred.py FOLDER`` leaves both in FOLDER, to be looked at:
``tinker-recovery watch --journal FOLDER``.
"""

from __future__ import annotations

import math
import random
import sqlite3
import sys
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

from tinker_recovery.journal.database import Database
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.journal import JOURNAL_FILE
from tinker_recovery.journal.run_sql import (
    RunRequest,
    discard_progress,
    end_run,
    insert_attempt,
    insert_run,
    note_event,
    note_fault,
    resume_run,
)
from tinker_recovery.telemetry import RecoveryEvent, names

SERVICE = "https://tinker.example"
STATES = {"failed": 3, "dead": 2, "stalled": 1, "recovering": 4, "stopped": 5, "finished": 60}
"""How many of the two hundred are in which state; the rest train."""

Line = tuple[int, float, float]
"""A step, when it was reported, and its loss."""


class _Run:
    """A run that is being written."""

    def __init__(
        self, connection: sqlite3.Connection, name: str, began: float, **policy: object
    ) -> None:
        self.connection, self.name = connection, name
        request = RunRequest(
            service=SERVICE,
            name=name,
            named=not name.startswith("run-"),
            lineage=f"{random.Random(name).getrandbits(64):016x}",
            origin={"way": "base_model", "base_model": "Qwen/Qwen3-8B"},
            policy={"strategy": "steps", "save_every": 50, **policy},
            start_step=0,
        )
        self.id = insert_run(connection, request, began)
        self._attempts = 0

    def attempt(self, start_step: int, now: float, parent: str | None = None) -> str:
        """An attempt begins; returns its Tinker run id."""
        self._attempts += 1
        discard_progress(self.connection, self.id, start_step)
        run_id = f"{self.id:08x}-5c1e-5d1e-9a51-{self._attempts:012x}:train:0"
        begun = (self._attempts, f"a{self._attempts}", run_id, start_step, parent)
        insert_attempt(self.connection, self.id, begun, now)
        return run_id

    def report(self, lines: list[Line]) -> None:
        """Losses that the loop reports."""
        self.connection.executemany(
            "INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, '{}')",
            [(self.id, *line) for line in lines],
        )

    def save(self, run_id: str, step: int, now: float) -> str:
        """A checkpoint that the service has stored."""
        path = f"tinker://{run_id}/weights/step-{step:08d}-{self._attempts:04x}"
        self.connection.execute(
            "INSERT INTO checkpoints VALUES (?, ?, ?, ?, 1, 0)", (self.id, path, step, now)
        )
        fields = {names.CHECKPOINT_PATH: path, names.CHECKPOINT_STEP: step}
        self.event(names.EVENT_CHECKPOINT_SAVED, f"saved {path} at step {step}", now, **fields)
        return path

    def event(self, name: str, message: str, now: float, **fields: Any) -> None:
        """Something happens."""
        note_event(self.connection, self.id, RecoveryEvent(name, self.name, message, fields, now))

    def fault(self, kind: str, step: int, now: float) -> None:
        """Something goes wrong."""
        found = (kind, "call", step)
        limit = (f"a{self._attempts}", None)
        note_fault(self.connection, self.id, found, limit, now, recovers=True)
        self.event(names.EVENT_DETECTED, f"{kind} at step {step}", now)
        self.event(names.EVENT_STARTED, "recovery attempt 1 of 3", now)

    def recovered(self, path: str, step: int, now: float) -> None:
        """It goes on from a checkpoint."""
        fields = {names.CHECKPOINT_PATH: path, names.CHECKPOINT_STEP: step}
        self.event(names.EVENT_CHECKPOINT_SELECTED, f"chosen: {path}", now, **fields)
        said = f"recovered: the loop runs again from step {step}"
        self.event(names.EVENT_COMPLETED, said, now, **fields)

    def at(self, step: int, now: float, left: int = 3) -> None:
        """How far it is."""
        self.connection.execute(
            "UPDATE runs SET step = ?, updated = ?, attempts_left = ? WHERE id = ?",
            (step, now, left, self.id),
        )

    def hold(self, holder: Holder) -> None:
        """A process trains it."""
        self.connection.execute(
            "INSERT INTO leases VALUES (?, 1, 'x', 0, ?, ?, ?, ?, ?, ?)",
            (self.id, *astuple(holder)),
        )


def loss_at(step: int, noise: random.Random) -> float:
    """A loss as losses are."""
    return 2.5 * math.exp(-step / 900) + 0.6 + noise.uniform(-0.08, 0.08)


def leave_two_hundred(folder: Path, count: int = 200, *, now: float | None = None) -> Path:
    """A journal of runs ``sweep-seed000`` and so on in the :data:`STATES`; returns its file."""
    now = time.time() if now is None else now
    states = [state for state, number in STATES.items() for _ in range(number)]
    states += ["training"] * (count - len(states))
    random.Random(7).shuffle(states)
    database = Database(folder / JOURNAL_FILE)
    with database.transaction() as connection:
        for number, state in enumerate(states):
            _one_of_many(connection, number, state, now)
    database.close()
    return folder / JOURNAL_FILE


def _one_of_many(connection: sqlite3.Connection, number: int, state: str, now: float) -> None:
    noise = random.Random(number)
    name = f"sweep-qwen3-8b-lr3e-4-seed{number:03d}" if number % 40 else f"run-{number:03d}"
    steps, pace = noise.randrange(120, 900), noise.uniform(2, 9)
    active = now - {"stalled": 3000, "finished": 20_000, "stopped": 9000}.get(state, 3)
    if state in ("failed", "dead"):
        active = now - noise.randrange(600, 90_000)
    began = active - steps * pace
    job = {"job": f"{name} try {1 + number % 3}"} if number % 5 == 1 else {}
    run = _Run(connection, name, began, **job)
    run_id = run.attempt(0, began)
    run.report([(step, began + step * pace, loss_at(step, noise)) for step in range(1, steps, 3)])
    path = ""
    for step in range(50, steps, 50):
        path = run.save(run_id, step, began + step * pace)
    if noise.random() < 0.2 or state in ("recovering", "failed"):
        kind = noise.choice(["request_failed", "poisoned", "stalled", "session_lost"])
        run.fault(kind, steps - 20, active - 30)
        if state not in ("recovering", "failed"):
            run.recovered(path, (steps - 1) // 50 * 50, active - 20)
            run.attempt((steps - 1) // 50 * 50, active - 20, path)
    run.at(steps, active, 0 if state == "failed" else 3)
    here = Holder.here(now=active, lease_s=60)
    if state in ("failed", "finished", "stopped"):
        why = "RecoveryExhausted: 3 attempts failed, the last: no checkpoint restored"
        end_run(connection, run.id, state, why if state == "failed" else "", active)
    elif state == "dead":
        run.hold(Holder(here.host, here.machine, 4_194_305, here.born, active, active + 60))
    else:
        run.hold(Holder("gpu-7", "another", 4711, "1", began, active + 60))


def leave_a_long_run(folder: Path, steps: int = 5000, faults: int = 20) -> Path:
    """A journal of one run, ``long``, of so many steps and recoveries; returns its file."""
    noise = random.Random(5)
    pace, now = 4.0, time.time() - steps * 5.5
    at = sorted({steps - 3, *noise.sample(range(60, steps), faults - 5), 2011, 2040, 2066, 2090})
    database = Database(folder / JOURNAL_FILE)
    with database.transaction() as connection:
        run = _Run(connection, "long", now)
        step, parent = 0, None
        for upto in [*at, steps]:
            run_id = run.attempt(step, now, parent)
            now += 11.0  # until the first step
            for done in range(step + 1, upto + 1):
                now += pace
                spike = 40.0 if done == 3333 else 0.0
                if done % 3 == 0 or spike:
                    run.report([(done, now, loss_at(done, noise) + spike)])
                if done % 50 == 0:
                    parent = run.save(run_id, done, now)
            if upto == steps:
                break
            kind = noise.choice(["request_failed", "poisoned", "stalled", "session_lost"])
            run.fault(kind, upto, now)
            now += noise.uniform(1, 90)
            step = upto // 50 * 50
            run.recovered(parent or "", step, now)
            now += 600 if upto == at[faults // 2] else 0  # no process trained it
        run.at(steps, now)
        end_run(connection, run.id, "finished", "", now)
    database.close()
    return folder / JOURNAL_FILE


def leave_a_killed_run(folder: Path) -> Path:
    """A journal of one run, ``killed`` at step 47, whose loop reports nothing; returns its file."""
    database = Database(folder / JOURNAL_FILE)
    with database.transaction() as connection:
        run = _Run(connection, "killed", 1000.0)
        saved = run.save(run.attempt(0, 1000.0), 40, 1040.0)
        run.at(47, 1047.0)
        again = RunRequest(SERVICE, "killed", True, "x", {}, {"strategy": "steps"}, 0)  # noqa: FBT003 - it has a name
        resume_run(connection, run.id, again, 1100.0, anew=False)
        run.fault("process_lost", 47, 1100.0)
        run.recovered(saved, 40, 1101.0)
        run.attempt(40, 1101.0, saved)
        run.at(60, 1121.0)
        end_run(connection, run.id, "finished", "", 1121.0)
    database.close()
    return folder / JOURNAL_FILE


if __name__ == "__main__":
    for leave, name in ((leave_two_hundred, "many"), (leave_a_long_run, "long")):
        folder = Path(sys.argv[1]) / name
        folder.mkdir(parents=True, exist_ok=True)
        leave(folder)
