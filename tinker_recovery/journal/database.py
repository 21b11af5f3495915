"""The journal's file: opened, brought up to date, and written in transactions."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tinker_recovery.errors import JournalError
from tinker_recovery.journal.schema import SCHEMA, upgrade

BUSY_S = 10.0
"""How long a write waits for another process's."""

_AGAIN_S = 0.01

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """One SQLite file, or one in memory.

    Its methods may be called from any thread; each call may block for up to :data:`BUSY_S`.

    Args:
        path: The file, made with its folder when it is not there; None keeps it in memory.

    Raises:
        JournalError: From any call: it cannot be opened, read or written; the message says why and
            what to do.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<Database {self.path or 'in memory'}>"

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of what is done inside is on disk when it is left, or none of it."""
        with self._lock, _explained(self.path):
            database = self._database or self._open()
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.execute("COMMIT")
            except BaseException:
                # A full disk may have rolled it back already.
                if database.in_transaction:
                    database.execute("ROLLBACK")
                raise

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=BUSY_S,
            isolation_level=None,  # transactions are ours to begin and to end
            check_same_thread=False,
        )
        try:
            # Readers and one writer do not wait for each other, and a commit is on disk.
            _turn_to_wal(database)
            database.execute("PRAGMA synchronous = FULL")
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        # Asked inside the transaction: of two processes that come at once, one makes the tables.
        database.execute("BEGIN IMMEDIATE")
        version = check_version(database, self.path)
        if version < SCHEMA:
            upgrade(database, version)
        database.execute("COMMIT")


def check_version(database: sqlite3.Connection, path: Path | None) -> int:
    """The version of the tables in a file.

    Raises:
        JournalError: It is newer than what is known here.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise JournalError(
            f"the journal {path} has schema {version}, and this version of tinker_recovery knows "
            f"{SCHEMA}: install a newer one, or set TINKER_RECOVERY_STATE_DIR to another folder"
        )
    return int(version)


@contextmanager
def _explained(path: Path | None) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise explained(error, path) from error


def explained(error: sqlite3.Error | OSError, path: Path | None) -> JournalError:
    """What a failure means to a person, and what to do about it."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return JournalError(
            f"the journal {path} cannot be used, because the file is damaged: {error}. Nothing in "
            f"it was changed. Look at it, or move it away (mv {path} {path}.damaged) and a new one "
            "is begun: runs are found again by their name from what their checkpoints say, and "
            "pins and marks of bad checkpoints have to be set again. Or set "
            "TINKER_RECOVERY_STATE_DIR to another folder"
        )
    return JournalError(
        f"the journal {path or 'in memory'} cannot be used: {error}; check the folder and the "
        "disk, or set TINKER_RECOVERY_STATE_DIR to another folder"
    )


def _turn_to_wal(database: sqlite3.Connection) -> None:
    """Where several processes make the file at once, SQLite says "locked" and does not wait."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)
        else:
            return
