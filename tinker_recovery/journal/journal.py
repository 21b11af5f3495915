"""Notes on checkpoints that the service cannot store, and where the journal's file is.

Pins, bad marks, deletions in progress, sizes and checksums when first read. Shared by all
processes of the user; every write is on disk when the call returns. The journal contains no API key
and no weights; of the training data at most the tokens of a canary's prompt. Losing it loses no
training state.
"""

from __future__ import annotations

import enum
import json
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tinker_recovery.checkpoints.canary import NOISE_MISTAKEN
from tinker_recovery.errors import UsageError
from tinker_recovery.journal import lease
from tinker_recovery.journal.database import Database
from tinker_recovery.journal.publication import kept_for_export
from tinker_recovery.telemetry import redact

JOURNAL_FILE = "journal.sqlite3"
"""The file's name in its folder."""


def default_path() -> Path:
    """``$TINKER_RECOVERY_STATE_DIR``, or ``tinker_recovery`` in the user's state folder."""
    own = os.environ.get("TINKER_RECOVERY_STATE_DIR")
    return Path(own) / JOURNAL_FILE if own else _usual_path()


def _usual_path() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "tinker_recovery" / JOURNAL_FILE


def why_missing(path: Path) -> str:
    """What to say of a journal that does not exist: by what it was named."""
    if path == default_path():
        return (
            "nothing has been trained on this machine yet, or TINKER_RECOVERY_STATE_DIR names "
            "another folder"
        )
    return "nothing has been trained with it yet, or it is another file or folder"


def option_for(path: Path | None) -> str:
    """What a command in another terminal has to be given to read this journal, if anything.

    TINKER_RECOVERY_STATE_DIR may be set for this process alone, and the folder be another there.
    """
    if path is None or path == _usual_path():
        return ""
    return f" --journal {shlex.quote(str(path.absolute()))}"


class StateFolder(enum.Enum):
    """The type of :data:`STATE_FOLDER`."""

    DEFAULT = "the journal in the user's state folder"


STATE_FOLDER = StateFolder.DEFAULT
"""Use the journal at :func:`default_path`."""


def journal_path(choice: Path | str | StateFolder | None) -> Path | None:
    """The file of a ``journal=`` argument; None for one in memory.

    Raises:
        UsageError: It is no path, or an empty one.
    """
    if choice is None:
        return None
    if isinstance(choice, StateFolder):
        return default_path()
    given: object = choice
    if not isinstance(given, (str, os.PathLike)) or not os.fspath(given):
        raise UsageError(
            f"journal={choice!r} is not allowed: give the path of a file, or None for memory"
        )
    return Path(choice)


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes on the checkpoints of one service, by path.

    Attributes:
        pinned: Never to be deleted; the reason given.
        bad: Never to be recovered from; what is wrong with it.
        deletions: The newest ledger line of each deletion.
        sizes: Bytes when first read.
        files: Encoded checksums when first read.
        canaries: Fingerprints of the canary's logprobs on the checkpoint's weights.
        canary_prompts: Digests of the prompts that they belong to.
        prompts: What is known of a run's prompt, by lineage id, not by path.
        optimizer: What is wrong with the service's optimizer restores; empty if nothing. By version
            of the SDK, not by path.
        metadata: Metadata of saves as JSON, where the service keeps none.
        keeps_metadata: What the service does with the metadata of saves; None if unknown.
        publications: What is being exported or published, as JSON.
        published: What was published of a run so far, as JSON, by lineage id, not by path.
    """

    pinned: Mapping[str, str]
    bad: Mapping[str, str]
    deletions: Mapping[str, str]
    sizes: Mapping[str, int]
    files: Mapping[str, str]
    canaries: Mapping[str, str] = field(default_factory=dict)
    canary_prompts: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)
    optimizer: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    keeps_metadata: str | None = None
    publications: Mapping[str, str] = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


class Journal:
    """Notes on checkpoints, by service and path.

    Thread-safe. Every method may block for up to ``database.BUSY_S`` seconds: from the event loop
    use a :class:`Notebook`.

    Args:
        path: The file, created with its folder if missing; None keeps it in memory.
        service: Base URL of the service that the paths belong to.

    Raises:
        JournalError: From any call: the file cannot be opened, read or written.
    """

    def __init__(self, path: Path | None, *, service: str) -> None:
        self.path = path
        self.database = Database(path)
        """The file, shared with the run records."""
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
        """All notes on this service's checkpoints."""
        by_kind: dict[str, dict[str, str]] = {}
        with self.database.transaction() as database:
            rows: Iterable[tuple[str, str, str]] = database.execute(
                "SELECT kind, path, said FROM notes WHERE service = ? AND kind <> 'once'",
                (self._service,),
            )
            # Interned, since each of many runs keeps what it has read last.
            for kind, path, text in rows:
                by_kind.setdefault(sys.intern(kind), {})[sys.intern(path)] = sys.intern(text)
        return Notes(
            pinned=by_kind.get("pinned", {}),
            bad={
                path: reason
                for path, reason in by_kind.get("bad", {}).items()
                if not reason.startswith(NOISE_MISTAKEN)
            },
            deletions=by_kind.get("deletion", {}),
            sizes={path: int(text) for path, text in by_kind.get("size", {}).items()},
            files=by_kind.get("files", {}),
            canaries=by_kind.get("canary", {}),
            canary_prompts=by_kind.get("canary_prompt", {}),
            prompts=by_kind.get("prompt", {}),
            optimizer=by_kind.get("optimizer", {}),
            metadata=by_kind.get("metadata", {}),
            keeps_metadata=by_kind.get("keeps_metadata", {}).get(""),
            publications=by_kind.get("publication", {}),
            published=by_kind.get("published", {}),
        )

    def is_pinned(self, path: str) -> bool:
        """Whether a checkpoint is pinned, exported or to be published, by whichever process."""
        with self.database.transaction() as database:
            found = database.execute(
                "SELECT kind, said FROM notes WHERE service = ? AND path = ? "
                "AND kind IN ('pinned', 'publication')",
                (self._service, path),
            ).fetchall()
        return any(kind == "pinned" or kept_for_export({path: said}) for kind, said in found)

    def relied_on(self, paths: Iterable[str], *, but: str) -> dict[str, str]:
        """Those from which the newest attempt of another run began that may go back to it.

        Args:
            paths: Checkpoints.
            but: The lineage whose own attempts do not count.

        Returns:
            Path to reason.
        """
        with self.database.transaction() as database:
            found = database.execute(
                "SELECT newest.parent, runs.name FROM attempts AS newest "
                "JOIN runs ON runs.id = newest.run "
                "WHERE newest.parent IN (SELECT value FROM json_each(?)) "
                "AND runs.service = ? AND runs.lineage <> ? "
                "AND runs.state NOT IN ('finished', 'abandoned') "
                "AND newest.number = (SELECT max(number) FROM attempts WHERE run = newest.run)",
                (json.dumps(list(paths)), self._service, but),
            ).fetchall()
        return {path: f"run {name} began from it" for path, name in found}

    def pin(self, path: str, reason: str = "pinned by the user") -> None:
        """Keep a checkpoint forever."""
        self._put("pinned", path, redact(reason))

    def unpin(self, path: str) -> bool:
        """Remove a pin; returns whether there was one."""
        return self._drop("pinned", path)

    def mark_bad(self, path: str, reason: str) -> None:
        """Never recover from this checkpoint again."""
        self._put("bad", path, redact(reason))

    def clear_bad(self, path: str) -> bool:
        """Remove a bad mark; returns whether there was one."""
        return self._drop("bad", path)

    def write_deletion(
        self, path: str, line: str, lineage: str = "", held: tuple[int, int] | None = None
    ) -> None:
        """Write the newest ledger line of a deletion, if nobody else has the run.

        Raises:
            LeaseLost: See :func:`~tinker_recovery.journal.lease.check_deletion`, also for
                ``lineage`` and ``held``.
        """
        self._put("deletion", path, line, lambda it: lease.check_deletion(it, lineage, held))

    def check_deletion(self, lineage: str, held: tuple[int, int] | None = None) -> None:
        """The same for the request that follows."""
        with self.database.transaction() as database:
            lease.check_deletion(database, lineage, held)

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """Note sizes in bytes; a size noted before is kept."""
        self._put_first("size", {path: str(size) for path, size in sizes.items()})

    def note_files(self, path: str, checksums: str) -> None:
        """Note the checksums of a checkpoint's files; those noted before are kept."""
        self._put_first("files", {path: checksums})

    def note_canary(self, path: str, fingerprint: str, prompt: str = "") -> None:
        """Note the fingerprint of the canary's logprobs on a checkpoint's weights.

        The digest of its prompt stands apart, as earlier versions read the fingerprint alone.
        """
        self._put("canary", path, fingerprint)
        self._put("canary_prompt", path, prompt)

    def note_prompt(self, lineage: str, facts: str) -> None:
        """Note what is known of a run's canary: its prompt, and how noisy the answers are."""
        self._put("prompt", lineage, facts)

    def note_optimizer(self, sdk: str, problem: str) -> None:
        """Note what is wrong with the service's optimizer restores; empty if nothing is."""
        self._put("optimizer", sdk, redact(problem))

    def note_metadata(self, path: str, said: str) -> None:
        """Note the metadata of a save, as JSON, where the service does not keep it."""
        self._put("metadata", path, said)

    def note_keeps_metadata(self, keeps: str) -> None:
        """Note what the service does with the metadata of saves."""
        self._put("keeps_metadata", "", keeps)

    def write_publication(self, path: str, said: str, *, instead_of: str | None = None) -> bool:
        """Note, as JSON, that a checkpoint is being exported or published.

        Args:
            path: The checkpoint.
            said: What to note.
            instead_of: Only if this is noted now, so that one process takes it over from another.

        Returns:
            Whether it was noted.
        """
        with self.database.transaction() as database:
            if instead_of is None:
                database.execute(
                    "INSERT OR REPLACE INTO notes VALUES (?, ?, 'publication', ?)",
                    (self._service, path, said),
                )
                return True
            done = database.execute(
                "UPDATE notes SET said = ? "
                "WHERE service = ? AND path = ? AND kind = 'publication' AND said = ?",
                (said, self._service, path, instead_of),
            )
            return done.rowcount > 0

    def end_publication(
        self,
        path: str,
        lineage: str = "",
        done: str | None = None,
        *,
        instead_of: str | None = None,
    ) -> bool:
        """Note that a checkpoint is not being exported any more.

        Args:
            path: The checkpoint.
            lineage: Of which run it is.
            done: What was published of that run so far, as JSON; None to leave that as it is.
            instead_of: Only if this is noted now; None for whatever is.

        Returns:
            Whether something was noted.
        """
        with self.database.transaction() as database:
            ended = database.execute(
                "DELETE FROM notes WHERE service = ? AND path = ? AND kind = 'publication' "
                "AND said = coalesce(?, said)",
                (self._service, path, instead_of),
            )
            if done is not None:
                database.execute(
                    "INSERT OR REPLACE INTO notes VALUES (?, ?, 'published', ?)",
                    (self._service, lineage, done),
                )
            return ended.rowcount > 0

    def note_made_once(self, lineage: str, key: str, said: str) -> None:
        """Note what a run has made once, as JSON; what was noted before is kept."""
        self._put_first("once", {f"{lineage}/{key}": said})

    def made_once(self, lineage: str, key: str) -> str | None:
        """What a run has made once, as JSON; None if nothing is noted."""
        with self.database.transaction() as database:
            row = database.execute(
                "SELECT said FROM notes WHERE service = ? AND path = ? AND kind = 'once'",
                (self._service, f"{lineage}/{key}"),
            ).fetchone()
        return None if row is None else str(row[0])

    def forget(self, paths: Iterable[str]) -> None:
        """Remove every note on checkpoints that were deleted."""
        gone = [(self._service, path) for path in paths]
        with self.database.transaction() as database:
            database.executemany("DELETE FROM notes WHERE service = ? AND path = ?", gone)
            database.executemany(
                "UPDATE checkpoints SET gone = 1 "
                "WHERE run IN (SELECT id FROM runs WHERE service = ?) AND path = ?",
                gone,
            )

    def _put(
        self,
        kind: str,
        path: str,
        text: str,
        check: Callable[[sqlite3.Connection], object] = lambda _: None,
    ) -> None:
        with self.database.transaction() as database:
            check(database)
            database.execute(
                "INSERT OR REPLACE INTO notes VALUES (?, ?, ?, ?)",
                (self._service, path, kind, text),
            )

    def _put_first(self, kind: str, texts: Mapping[str, str]) -> None:
        with self.database.transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO notes VALUES (?, ?, ?, ?)",
                [(self._service, path, kind, text) for path, text in texts.items()],
            )

    def _drop(self, kind: str, path: str) -> bool:
        with self.database.transaction() as database:
            gone = database.execute(
                "DELETE FROM notes WHERE service = ? AND path = ? AND kind = ?",
                (self._service, path, kind),
            )
            return gone.rowcount > 0
