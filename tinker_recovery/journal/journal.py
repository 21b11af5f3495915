"""The journal: what is known of checkpoints that the service has no place for.

Pins, checkpoints found bad, deletions under way, sizes and checksums at first sight. One SQLite
file in the user's state folder, shared by the processes of the user; every write is on disk when
the call returns. It holds no API key and no weights, and losing it loses no training state.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tinker_recovery.errors import UsageError
from tinker_recovery.journal.database import Database
from tinker_recovery.telemetry import redact

JOURNAL_FILE = "journal.sqlite3"
"""The journal's name in its folder."""


def default_path() -> Path:
    """``$TINKER_RECOVERY_STATE_DIR``, or ``tinker_recovery`` in the user's state folder."""
    own = os.environ.get("TINKER_RECOVERY_STATE_DIR")
    if own:
        return Path(own) / JOURNAL_FILE
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tinker_recovery" / JOURNAL_FILE


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
        canaries: Fingerprints of what the canary answered on their weights.
        optimizer: What speaks against the service's restores with optimizer, by version of the SDK
            and not by path; empty where it was looked into and nothing does.
    """

    pinned: Mapping[str, str]
    bad: Mapping[str, str]
    deletions: Mapping[str, str]
    sizes: Mapping[str, int]
    files: Mapping[str, str]
    canaries: Mapping[str, str] = field(default_factory=dict)
    optimizer: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Notes on checkpoints, by service and path.

    Every method may block for up to ``database.BUSY_S`` seconds: call it in a worker thread.
    Methods may be called from any thread.

    Args:
        path: The file, made with its folder when it is not there; None keeps it in memory.
        service: Base URL of the service that the paths belong to.

    Raises:
        JournalError: From any call: it cannot be opened, read or written; the message says why and
            what to do.
    """

    def __init__(self, path: Path | None, *, service: str) -> None:
        self.path = path
        self.database = Database(path)
        """The file, shared with the records of runs."""
        self._service = service

    def __repr__(self) -> str:
        return f"<Journal {self.path or 'in memory'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        self.database.close()

    def notes(self) -> Notes:
        """Everything noted of this service's checkpoints."""
        by_kind: dict[str, dict[str, str]] = {}
        with self.database.transaction() as database:
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
            canaries=by_kind.get("canary", {}),
            optimizer=by_kind.get("optimizer", {}),
        )

    def pin(self, path: str, reason: str = "pinned by the user") -> None:
        """Keep a checkpoint for ever."""
        self._put("pinned", path, redact(reason))

    def unpin(self, path: str) -> bool:
        """Take the pin back; whether there was one."""
        return self._drop("pinned", path)

    def mark_bad(self, path: str, reason: str) -> None:
        """Never recover from this checkpoint again."""
        self._put("bad", path, redact(reason))

    def clear_bad(self, path: str) -> bool:
        """Take that back; whether it was marked."""
        return self._drop("bad", path)

    def write_deletion(self, path: str, line: str) -> None:
        """The newest line of a deletion."""
        self._put("deletion", path, line)

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Sizes at first sight; one noted before stays as it is."""
        with self.database.transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, 'size', ?)",
                [(self._service, path, str(size)) for path, size in sizes.items()],
            )

    def note_files(self, path: str, said: str) -> None:
        """Checksums of a checkpoint's files at first sight; those noted before stay."""
        with self.database.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, 'files', ?)", (self._service, path, said)
            )

    def note_canary(self, path: str, said: str) -> None:
        """The fingerprint of what the canary answered on a checkpoint's weights."""
        self._put("canary", path, said)

    def note_optimizer(self, sdk: str, against: str) -> None:
        """What speaks against the service's restores with optimizer; empty if nothing does."""
        self._put("optimizer", sdk, redact(against))

    def forget(self, paths: Iterable[str]) -> None:
        """Everything noted of checkpoints that are gone for good."""
        gone = list(paths)
        with self.database.transaction() as database:
            database.executemany(
                "DELETE FROM notes WHERE service = ? AND path = ?",
                [(self._service, path) for path in gone],
            )
            database.executemany(
                "UPDATE checkpoints SET gone = 1 WHERE path = ? "
                "AND run IN (SELECT id FROM runs WHERE service = ?)",
                [(path, self._service) for path in gone],
            )

    def _put(self, kind: str, path: str, said: str) -> None:
        with self.database.transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)",
                (self._service, path, kind, said),
            )

    def _drop(self, kind: str, path: str) -> bool:
        with self.database.transaction() as database:
            gone = database.execute(
                "DELETE FROM notes WHERE service = ? AND path = ? AND kind = ?",
                (self._service, path, kind),
            )
            return gone.rowcount > 0
