"""The journal's SQLite file: opened, migrated to the current schema, written in transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from tinker_recovery.errors import JournalError
from tinker_recovery.forks import HomeProcess, keep_to_the_end
from tinker_recovery.journal.private_files import check_folder, create_private
from tinker_recovery.journal.schema import SCHEMA, upgrade
from tinker_recovery.telemetry.redaction import redact

BUSY_S = 10.0
"""How long to wait for another process's write lock."""

_RETRY_S = 0.01

_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Database:
    """One SQLite file, or one in memory.

    Thread-safe; each call may block for up to :data:`BUSY_S`. In a process forked from the one that
    made it, it cannot be used, and closing it does nothing.

    Args:
        path: The file, created with its folder if missing; None keeps it in memory.

    Raises:
        JournalError: From any call: the file cannot be opened, read or written.
    """

    all: ClassVar[weakref.WeakSet[Database]] = weakref.WeakSet()
    """Every one of this process."""
    inherited: ClassVar[set[str]] = set()
    """The files that were open in the process that this one was forked from."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.home = HomeProcess()
        """The process that made it."""
        self.all.add(self)
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<Database {self.path or 'in memory'}>"

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        if not self.home.is_here:
            return
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: committed to disk on exit, rolled back if the body raises."""
        if not self.home.is_here:
            # Its lock may be held for ever, by a thread that is not in this process.
            raise JournalError(
                f"the journal {self.path or 'in memory'} is of process {self.home.pid} and cannot "
                f"be used in process {os.getpid()}, which was forked from it: use it there"
            )
        with self._lock, journal_errors(self.path):
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
            if os.path.realpath(self.path) in self.inherited:
                raise JournalError(
                    f"the journal {self.path} was open in the process that this one was forked "
                    "from, and SQLite cannot open it here as well: start this process by another "
                    'method than fork (multiprocessing\'s "spawn"), or use another journal here'
                )
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_folder(self.path.parent)
            with contextlib.suppress(FileExistsError):
                os.close(create_private(self.path))
        database = sqlite3.connect(
            ":memory:" if self.path is None else self.path,
            timeout=BUSY_S,
            isolation_level=None,  # no implicit transactions
            check_same_thread=False,
        )
        try:
            # Readers and one writer do not block each other, and a commit is on disk.
            _turn_to_wal(database)
            database.execute("PRAGMA synchronous = FULL")
            self._migrate(database)
        except BaseException:
            database.close()
            raise
        self._database = database
        return database

    def _migrate(self, database: sqlite3.Connection) -> None:
        # Checked inside the transaction: of two processes that start at once, one creates the
        # tables.
        database.execute("BEGIN IMMEDIATE")
        version = check_version(database, self.path)
        if version < SCHEMA:
            upgrade(database, version)
        database.execute("COMMIT")


def check_version(database: sqlite3.Connection, path: Path | None) -> int:
    """The schema version of a file.

    Raises:
        JournalError: It is newer than :data:`SCHEMA`.
    """
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise JournalError(
            f"the journal {path} has schema {version}, but this version of tinker_recovery only "
            f"supports up to {SCHEMA}: install a newer one, or set TINKER_RECOVERY_STATE_DIR to "
            "another folder"
        )
    return int(version)


@contextmanager
def journal_errors(path: Path | None) -> Iterator[None]:
    """Turn errors of SQLite and the file system into a JournalError that says what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        details = redact("".join(traceback.format_exception(error)))
        error.__traceback__ = None  # what is below is the library's; not of what was handled before
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            raise JournalError(
                f"the journal {path} cannot be used: the file is damaged ({error}) and was left "
                f"unchanged. Move it away (mv {path} {path}.damaged) and a new journal is created: "
                "runs are found again by name from the metadata of their checkpoints, but pins and "
                "bad marks have to be set again. Or set TINKER_RECOVERY_STATE_DIR to another "
                "folder",
                details=details,
            ) from error
        raise JournalError(
            f"the journal {path or 'in memory'} cannot be used: {error}; check the folder and the "
            "disk, or set TINKER_RECOVERY_STATE_DIR to another folder",
            details=details,
        ) from error


def is_there(path: Path) -> bool:
    """Whether there is a journal.

    Raises:
        JournalError: It cannot be said: its folder may not be looked into.
    """
    with journal_errors(path):
        return path.exists()


def _inherit() -> None:
    """In a forked child: keep the parent's connections as they are, to the very end.

    SQLite's locks are the process's. To close a copy of a connection, as the interpreter does at
    its exit, could remove the log that the parent still writes to.
    """
    for database in Database.all:
        connection = database._database  # noqa: SLF001 - of this module
        if connection is not None:
            keep_to_the_end(connection)
            if database.path is not None:
                Database.inherited.add(os.path.realpath(database.path))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)


def _turn_to_wal(database: sqlite3.Connection) -> None:
    # If several processes create the file at once, SQLite reports "locked" without waiting.
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)
        else:
            return
