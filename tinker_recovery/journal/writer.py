"""The one thread that writes the records of runs, so that no training loop waits for a disk.

What can wait is queued and written in batches; what has to be on disk before anything else happens
is submitted, and gives a future. If writing fails (a full disk, a removed folder), that is logged
once and retried, and training continues.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tinker_recovery.errors import JournalError
from tinker_recovery.journal.database import Database
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")
Job = Callable[[sqlite3.Connection], Any]
"""Work to do inside a transaction."""

BATCH_S = 0.1
"""How long queued jobs are collected into one batch."""

LIMIT = 10_000
"""Most jobs in the queue; beyond it the oldest is dropped, which is logged."""

RETRY_S = (1.0, 30.0)
"""First and longest wait before a failed batch is retried."""


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job
    future: Future[Any] | None

    def is_wanted(self) -> bool:
        """Whether it is still to be done: not if its future was cancelled."""
        return (
            self.future is None
            or self.future.running()
            or self.future.set_running_or_notify_cancel()
        )

    def fail(self, error: BaseException) -> None:
        if self.future is not None and self.is_wanted():
            self.future.set_exception(error)


class Writer:
    """Writes in a thread of its own. Thread-safe; no method but :meth:`close` blocks.

    In a forked child, which has no such thread, nothing is queued, and closing does nothing.

    Args:
        database: Where to write.
        heartbeat: Called in that thread every ``heartbeat_every_s`` seconds, even while the event
            loop is blocked: it renews the leases.
        heartbeat_every_s: Seconds.
    """

    def __init__(
        self, database: Database, *, heartbeat: Callable[[], object], heartbeat_every_s: float
    ) -> None:
        self._database = database
        self._heartbeat = heartbeat
        self._heartbeat_every_s = heartbeat_every_s
        self._wake = threading.Condition()
        self._waiting: deque[_Entry] = deque()
        self._first_at = 0.0
        self._urgent = False
        self._closing = False
        self._dropped = 0
        self._retry_s = 0.0
        self._retry_at = 0.0
        self._thread = threading.Thread(
            target=self._work, name="tinker_recovery journal", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, job: Job, *, soon: bool = False) -> None:
        """Queue a job for the next batch; ``soon`` starts that batch at once."""
        self._add(_Entry(job, None), urgent=soon)

    def submit(self, job: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        """Do a job at once, behind those queued before; the future is done when it is on disk.

        The future raises what ``job`` raises, or :class:`JournalError` if it cannot be written.
        """
        future: Future[Any] = Future()
        self._add(_Entry(job, future), urgent=True)
        return cast("Future[_T]", future)

    async def done(
        self,
        job: Callable[[sqlite3.Connection], _T],
        *,
        undo: Callable[[sqlite3.Connection, _T], object],
    ) -> _T:
        """Do a job at once, and wait until it is on disk; raises as the future of :meth:`submit`.

        If it is cancelled meanwhile, the job is left out, or ``undo`` is done behind it.
        """
        doing = self.submit(job)
        try:
            return await asyncio.wrap_future(doing)
        except asyncio.CancelledError:
            if not doing.cancel():

                def take_back(connection: sqlite3.Connection) -> None:
                    if doing.exception() is None:
                        undo(connection, doing.result())

                self.put(take_back, soon=True)
            raise

    def close(self, deadline_s: float) -> None:
        """Write what is queued and end the thread; blocks for up to ``deadline_s``."""
        if not self._database.home.is_here:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            logger.error(
                "the journal %s could not be written out within %g s; its last entries may be lost",
                self._database.path,
                deadline_s,
            )

    def _add(self, entry: _Entry, *, urgent: bool) -> None:
        if not self._database.home.is_here:
            entry.fail(JournalError("the journal is another process's: this one was forked"))
            return
        with self._wake:
            if self._closing:
                entry.fail(JournalError("the journal is closed"))
                return
            if not self._waiting:
                self._first_at = time.monotonic()
            self._waiting.append(entry)
            self._shorten()
            self._urgent = self._urgent or urgent
            if urgent or len(self._waiting) == 1:
                self._wake.notify()

    def _shorten(self) -> None:
        while len(self._waiting) > LIMIT:
            oldest = self._waiting.popleft()
            self._dropped += 1
            oldest.fail(JournalError("the journal's disk is too slow for its entries"))

    def _work(self) -> None:
        beat_at = time.monotonic() + self._heartbeat_every_s
        while True:
            with self._wake:
                while (idle_s := self._due_at(beat_at) - time.monotonic()) > 0:
                    self._wake.wait(idle_s)
                batch, closing = list(self._waiting), self._closing
                self._waiting.clear()
                self._urgent = False
            if batch:
                self._write(batch, last=closing)
            if closing:
                return
            if time.monotonic() >= beat_at:
                self._beat_safely()
                beat_at = time.monotonic() + self._heartbeat_every_s

    def _beat_safely(self) -> None:
        try:
            self._heartbeat()
        except Exception:
            # If this thread ended, nothing would be written any more, and every lease would expire.
            logger.exception("renewing the leases failed; it will be tried again")

    def _due_at(self, beat_at: float) -> float:
        """When there is something to do next."""
        if self._closing or self._urgent:
            return 0.0
        if not self._waiting:
            return beat_at
        return min(beat_at, max(self._first_at + BATCH_S, self._retry_at))

    def _write(self, batch: list[_Entry], *, last: bool) -> None:
        done: list[tuple[_Entry, Any, BaseException | None]] = []
        batch = [entry for entry in batch if entry.is_wanted()]
        try:
            with self._database.transaction() as connection:
                done = [(entry, *_do(connection, entry.job)) for entry in batch]
        except JournalError as error:
            self._failed(batch, error, last=last)
            return
        self._succeeded()
        for entry, result, failure in done:
            if failure is not None:
                entry.fail(failure)
                if entry.future is None:
                    logger.error("a journal entry could not be written", exc_info=failure)
            elif entry.future is not None:
                entry.future.set_result(result)

    def _failed(self, batch: list[_Entry], error: JournalError, *, last: bool) -> None:
        if not self._retry_s:
            logger.error(
                "%s. Training continues; after a restart, what could not be written is read from "
                "the service",
                error,
            )
        first, longest = RETRY_S
        self._retry_s = min(longest, self._retry_s * 2 or first)
        for entry in batch:
            entry.fail(error)
        rest = [entry for entry in batch if entry.future is None]
        if last:
            self._dropped += len(rest)
            logger.error(
                "the journal %s was closed with %s that could not be written: `runs` may "
                "show as dead what has ended. The checkpoints are safe at the service, where the "
                "same command reads how far the run is",
                self._database.path,
                _entries(self._dropped),
            )
            return
        with self._wake:
            self._retry_at = time.monotonic() + self._retry_s
            self._waiting.extendleft(reversed(rest))
            self._shorten()

    def _succeeded(self) -> None:
        if self._retry_s:
            logger.warning(
                "the journal %s can be written again; %s lost",
                self._database.path,
                _entries_were(self._dropped),
            )
        elif self._dropped:
            logger.error(
                "the disk is too slow for the journal: %s dropped", _entries_were(self._dropped)
            )
        self._retry_s = self._retry_at = 0.0
        self._dropped = 0


def _do(connection: sqlite3.Connection, job: Job) -> tuple[Any, BaseException | None]:
    """Do one job of a batch; if it raises, only its own changes are rolled back."""
    connection.execute("SAVEPOINT job")
    try:
        result = job(connection)
    except Exception as error:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)
        ):
            raise  # the disk, or a locked file: the whole batch fails
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return None, error
    connection.execute("RELEASE job")
    return result, None


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _entries_were(count: int) -> str:
    return f"{_entries(count)} {'was' if count == 1 else 'were'}"
