"""The journal: what is known of checkpoints that the service has no place for.

Pins, checkpoints found bad, deletions under way, sizes and checksums at first sight. One SQLite
file in the user's state folder, shared by the processes of the user; every write is on disk when
the call returns. It holds no API key and no weights, and losing it loses no training state.
"""

from __future__ import annotations

import enum
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tinker_recovery.errors import JournalError, UsageError

SCHEMA = 1
"""Version of the tables; a newer one is not touched."""

BUSY_S = 10.0
"""How long a write waits for another process's."""

_TABLES = """
CREATE TABLE notes (
    service TEXT NOT NULL,
    path TEXT NOT NULL,
    kind TEXT NOT NULL,
    said TEXT NOT NULL,
    PRIMARY KEY (service, path, kind)
) WITHOUT ROWID;
"""


def default_path() -> Path:
    """``$TINKER_RECOVERY_STATE_DIR``, or ``tinker_recovery`` in the user's state folder."""
    own = os.environ.get("TINKER_RECOVERY_STATE_DIR")
    if own:
        return Path(own) / "journal.sqlite3"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tinker_recovery" / "journal.sqlite3"


class StateFolder(enum.Enum):
    """The type of :data:`STATE_FOLDER`."""

    DEFAULT = "the journal in the user's state folder"


STATE_FOLDER = StateFolder.DEFAULT
"""Use the journal at :func:`default_path`."""


def journal_path(choice: Path | str | StateFolder | None) -> Path | None:
    """The file that a choice of journal means; None for one in memory.

    Raises:
        UsageError: It is an empty path.
    """
    if choice is None:
        return None
    if isinstance(choice, StateFolder):
        return default_path()
    if not str(choice):
        raise UsageError(
            f"journal={choice!r} is not allowed: the path of a file, or None to keep it in memory"
        )
    return Path(choice)


@dataclass(frozen=True, slots=True)
class Notes:
    """What is noted of the checkpoints of one service, by path.

    Attributes:
        pinned: Kept for ever, with the reason given.
        bad: Not to be recovered from, with what is wrong.
        deletions: The newest line of each deletion, as its ledger writes it.
        sizes: Bytes at first sight.
        files: Checksums at first sight, as whoever took them writes them.
    """

    pinned: Mapping[str, str]
    bad: Mapping[str, str]
    deletions: Mapping[str, str]
    sizes: Mapping[str, int]
    files: Mapping[str, str]


class Journal:
    """Notes on checkpoints, by service and path.

    Every method may block for up to :data:`BUSY_S` seconds: call it in a worker thread. Methods may
    be called from any thread, one at a time.

    Args:
        path: The file, made with its folder when it is not there; None keeps it in memory.
        service: Base URL of the service that the paths belong to.

    Raises:
        JournalError: From any call: it cannot be opened, read or written; the message says why and
            what to do.
    """

    def __init__(self, path: Path | None, *, service: str) -> None:
        self.path = path
        self._service = service
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def __repr__(self) -> str:
        return f"<Journal {self.path or 'in memory'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None

    def notes(self) -> Notes:
        """Everything noted of this service's checkpoints."""
        by_kind: dict[str, dict[str, str]] = {}
        with self._transaction() as database:
            rows: Iterable[tuple[str, str, str]] = database.execute(
                "SELECT kind, path, said FROM notes WHERE service = ?", (self._service,)
            )
            for kind, path, said in rows:
                by_kind.setdefault(kind, {})[path] = said
        return Notes(
            pinned=by_kind.get("pinned", {}),
            bad=by_kind.get("bad", {}),
            deletions=by_kind.get("deletion", {}),
            sizes={path: int(said) for path, said in by_kind.get("size", {}).items()},
            files=by_kind.get("files", {}),
        )

    def pin(self, path: str, reason: str = "pinned by the user") -> None:
        """Keep a checkpoint for ever."""
        self._put("pinned", path, reason)

    def unpin(self, path: str) -> bool:
        """Take the pin back; whether there was one."""
        return self._drop("pinned", path)

    def mark_bad(self, path: str, reason: str) -> None:
        """Never recover from this checkpoint again."""
        self._put("bad", path, reason)

    def clear_bad(self, path: str) -> bool:
        """Take that back; whether it was marked."""
        return self._drop("bad", path)

    def write_deletion(self, path: str, line: str) -> None:
        """The newest line of a deletion."""
        self._put("deletion", path, line)

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Sizes at first sight; one noted before stays as it is."""
        with self._transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, 'size', ?)",
                [(self._service, path, str(size)) for path, size in sizes.items()],
            )

    def note_files(self, path: str, said: str) -> None:
        """Checksums of a checkpoint's files at first sight; those noted before stay."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, 'files', ?)", (self._service, path, said)
            )

    def forget(self, paths: Iterable[str]) -> None:
        """Everything noted of checkpoints that are gone for good."""
        with self._transaction() as database:
            database.executemany(
                "DELETE FROM notes WHERE service = ? AND path = ?",
                [(self._service, path) for path in paths],
            )

    def _put(self, kind: str, path: str, said: str) -> None:
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)",
                (self._service, path, kind, said),
            )

    def _drop(self, kind: str, path: str) -> bool:
        with self._transaction() as database:
            gone = database.execute(
                "DELETE FROM notes WHERE service = ? AND path = ? AND kind = ?",
                (self._service, path, kind),
            )
            return gone.rowcount > 0

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                database = self._database or self._open()
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                except BaseException:
                    database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                raise JournalError(
                    f"the journal {self.path or 'in memory'} cannot be used: {error}; check the "
                    "folder and the disk, or set TINKER_RECOVERY_STATE_DIR to another folder"
                ) from error

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
            database.execute("PRAGMA journal_mode = WAL")
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
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise JournalError(
                f"the journal {self.path} has schema {version}, and this version of "
                f"tinker_recovery knows {SCHEMA}: install a newer one, or set "
                "TINKER_RECOVERY_STATE_DIR to another folder"
            )
        if version < SCHEMA:
            for statement in filter(str.strip, _TABLES.split(";")):
                database.execute(statement)
            database.execute(f"PRAGMA user_version = {SCHEMA}")
        database.execute("COMMIT")
