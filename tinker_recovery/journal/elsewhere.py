"""The runs of one name at other services: a run is known by its service and its name."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tinker_recovery.journal.reading import RUNS, RunView, open_to_read, run_from


def select_elsewhere(connection: sqlite3.Connection, name: str, service: str) -> list[RunView]:
    """The runs of a name at other services without their history, most recently active first."""
    rows = connection.execute(
        f"{RUNS} WHERE name = ? AND service <> ? ORDER BY runs.updated DESC, runs.id DESC",
        (name, service),
    )
    return [run_from(row) for row in rows.fetchall()]


def read_elsewhere(path: Path, name: str, *, service: str) -> list[RunView]:
    """The same, from a journal that any process may write.

    Raises:
        JournalError: The file does not exist, or cannot be read.
    """
    with open_to_read(path) as database:
        return select_elsewhere(database, name, service)
