"""The journal's tables, as a chain of migrations.

Times are seconds since the epoch, for display: no decision uses them. Steps are optimizer steps.
What a checkpoint contains is read from the service, and not repeated here.
"""

from __future__ import annotations

import sqlite3
from typing import Final

_NOTES = """
CREATE TABLE notes (
    service TEXT NOT NULL,
    path TEXT NOT NULL,
    kind TEXT NOT NULL,
    said TEXT NOT NULL,
    PRIMARY KEY (service, path, kind)
) WITHOUT ROWID
"""

_RUNS = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    named INTEGER NOT NULL,
    lineage TEXT NOT NULL,
    origin TEXT NOT NULL,
    policy TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    start_step INTEGER NOT NULL,
    step INTEGER NOT NULL,
    attempts_left INTEGER,
    created REAL NOT NULL,
    updated REAL NOT NULL
);
CREATE UNIQUE INDEX runs_by_name ON runs (service, name) WHERE named AND state <> 'abandoned';

CREATE TABLE attempts (
    run INTEGER NOT NULL REFERENCES runs (id),
    number INTEGER NOT NULL,
    attempt TEXT NOT NULL,
    run_id TEXT NOT NULL,
    start_step INTEGER NOT NULL,
    parent TEXT,
    started REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    sound_step INTEGER NOT NULL,
    polled_step INTEGER NOT NULL,
    trusted_to REAL,
    PRIMARY KEY (run, number)
) WITHOUT ROWID;

CREATE TABLE incidents (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES runs (id),
    kind TEXT NOT NULL,
    detected_by TEXT NOT NULL,
    step INTEGER NOT NULL,
    phase TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    started REAL NOT NULL,
    ended REAL,
    outcome TEXT,
    checkpoint TEXT,
    to_step INTEGER,
    created_run_id TEXT
);
CREATE INDEX incidents_by_run ON incidents (run, id);

CREATE TABLE checkpoints (
    run INTEGER NOT NULL REFERENCES runs (id),
    path TEXT NOT NULL,
    step INTEGER NOT NULL,
    saved REAL NOT NULL,
    sound INTEGER NOT NULL,
    gone INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, path)
) WITHOUT ROWID;

CREATE INDEX checkpoints_by_path ON checkpoints (path);

CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    run INTEGER,
    time REAL NOT NULL,
    name TEXT NOT NULL,
    message TEXT NOT NULL,
    fields TEXT NOT NULL
);
CREATE INDEX events_by_run ON events (run, id);

CREATE TABLE progress (
    run INTEGER NOT NULL REFERENCES runs (id),
    step INTEGER NOT NULL,
    time REAL NOT NULL,
    loss REAL,
    metrics TEXT NOT NULL,
    PRIMARY KEY (run, step)
) WITHOUT ROWID;

CREATE TABLE leases (
    run INTEGER PRIMARY KEY REFERENCES runs (id),
    token INTEGER NOT NULL,
    holder TEXT NOT NULL,
    beats INTEGER NOT NULL,
    host TEXT NOT NULL,
    machine TEXT NOT NULL,
    pid INTEGER NOT NULL,
    born TEXT NOT NULL,
    since REAL NOT NULL,
    expires REAL NOT NULL
)
"""

_TOKENS = """
CREATE TABLE tokens (
    run INTEGER NOT NULL REFERENCES runs (id),
    attempt TEXT NOT NULL,
    step INTEGER NOT NULL,
    counts TEXT NOT NULL,
    PRIMARY KEY (run, attempt, step)
) WITHOUT ROWID
"""

_DISCARDED = """
CREATE TABLE discarded (
    run INTEGER NOT NULL REFERENCES runs (id),
    time REAL NOT NULL,
    step INTEGER NOT NULL,
    loss REAL NOT NULL,
    PRIMARY KEY (run, time, step)
) WITHOUT ROWID
"""

_SILENCES = """
CREATE TABLE silences (
    run INTEGER NOT NULL REFERENCES runs (id),
    began REAL NOT NULL,
    ended REAL NOT NULL,
    PRIMARY KEY (run, began)
) WITHOUT ROWID
"""

ALL_TOKENS: Final = -1
"""The step at which all tokens of an attempt stand; at any other, those before a save of it."""

STEPS: Final = (_NOTES, _RUNS, _TOKENS, _DISCARDED, _SILENCES)
"""The migration from version n to n + 1, at index n."""

SCHEMA: Final = len(STEPS)
"""The version this package writes; a newer one is refused."""


WITH_RUNS: Final = 2
"""The first version that holds runs; every later one only adds tables, so it can be read."""

WITH_TOKENS: Final = 3
"""The first version that holds their tokens."""

WITH_DISCARDED: Final = 4
"""The first version that holds the losses of steps that were done again."""

WITH_SILENCES: Final = 5
"""The first version that holds when a run made no progress."""


def upgrade(database: sqlite3.Connection, version: int) -> None:
    """Migrate from an older version, 0 for an empty file, to :data:`SCHEMA`.

    Runs in the caller's transaction.
    """
    for step in STEPS[version:]:
        for statement in filter(str.strip, step.split(";")):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA}")
