"""The one thread that writes the records of runs, so that no training loop waits for a disk.

What can wait is put in a queue and written in batches; what has to be on disk before anything else
happens is asked for, and comes with a future. A journal that fails on the way (a full disk, a
folder taken away) is told of once, tried again now and then, and never stops who trains.
"""

from __future__ import annotations

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
"""Something to do inside a transaction."""

BATCH_S = 0.1
"""How long what can wait is gathered before it is written."""

LIMIT = 10_000
"""How much may wait; beyond it the oldest is dropped, counted, and told of."""

RETRY_S = (1.0, 30.0)
"""First and longest wait before a journal that failed is tried again."""


@dataclass(slots=True, eq=False)
class _Entry:
    job: Job
    answer: Future[Any] | None

    def fail(self, error: JournalError) -> None:
        if self.answer is not None and self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)


class Writer:
    """Writes in a thread of its own; every method may be called from any thread, and none blocks.

    Args:
        database: Where to.
        beat: Done every ``beat_every_s`` seconds between the writing, whatever the event loop is
            kept from: the leases are renewed by it.
        beat_every_s: Seconds.
    """

    def __init__(
        self, database: Database, *, beat: Callable[[], object], beat_every_s: float
    ) -> None:
        self._database = database
        self._beat = beat
        self._beat_every_s = beat_every_s
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
        """Begin to write."""
        self._thread.start()

    def put(self, job: Job, *, soon: bool = False) -> None:
        """Do this when it suits, or ``soon``, which is at once and still not waited for."""
        self._add(_Entry(job, None), urgent=soon)

    def ask(self, job: Callable[[sqlite3.Connection], _T]) -> Future[_T]:
        """Do this now, behind what was put before; the future is done once it is on disk.

        Its exceptions: what ``job`` raises, and :class:`JournalError` if it cannot be written.
        """
        answer: Future[Any] = Future()
        self._add(_Entry(job, answer), urgent=True)
        return cast("Future[_T]", answer)

    def close(self, deadline_s: float) -> None:
        """Write what waits, and end the thread; past the deadline it is left to itself."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(deadline_s)
        if self._thread.is_alive():
            logger.error(
                "the journal %s is still being written after %g s, and is left to itself",
                self._database.path,
                deadline_s,
            )

    def _add(self, entry: _Entry, *, urgent: bool) -> None:
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
            oldest.fail(JournalError("the journal is too far behind"))

    def _work(self) -> None:
        beat_at = time.monotonic() + self._beat_every_s
        while True:
            with self._wake:
                while not self._is_due(beat_at):
                    self._wake.wait(self._idle_s(beat_at))
                batch, closing = list(self._waiting), self._closing
                self._waiting.clear()
                self._urgent = False
            if batch:
                self._write(batch, last=closing)
            if closing:
                return
            if time.monotonic() >= beat_at:
                self._beat_safely()
                beat_at = time.monotonic() + self._beat_every_s

    def _beat_safely(self) -> None:
        try:
            self._beat()
        except Exception:
            # Without this thread nothing is written any more, and every lease runs out.
            logger.exception("looking after the leases failed; it is done again")

    def _is_due(self, beat_at: float) -> bool:
        now = time.monotonic()
        gathered = bool(self._waiting) and now >= max(self._first_at + BATCH_S, self._retry_at)
        return self._closing or self._urgent or gathered or now >= beat_at

    def _idle_s(self, beat_at: float) -> float:
        until = beat_at
        if self._waiting:
            until = min(beat_at, max(self._first_at + BATCH_S, self._retry_at))
        return max(0.0, until - time.monotonic())

    def _write(self, batch: list[_Entry], *, last: bool) -> None:
        ended: list[tuple[_Entry, Any, BaseException | None]] = []
        # Whoever has stopped waiting for an answer is passed over.
        batch = [
            each
            for each in batch
            if each.answer is None
            or each.answer.running()
            or each.answer.set_running_or_notify_cancel()
        ]
        try:
            with self._database.transaction() as connection:
                ended = [(entry, *_do(connection, entry.job)) for entry in batch]
        except JournalError as error:
            self._failed(batch, error, last=last)
            return
        self._works()
        for entry, result, failure in ended:
            if entry.answer is None:
                if failure is not None:
                    logger.error("a line of the journal could not be written", exc_info=failure)
            elif failure is not None:
                entry.answer.set_exception(failure)
            else:
                entry.answer.set_result(result)

    def _failed(self, batch: list[_Entry], error: JournalError, *, last: bool) -> None:
        if not self._retry_s:
            logger.error(
                "%s. Training goes on; what is not written down now is read from the service if "
                "this process has to be replaced",
                error,
            )
        first, longest = RETRY_S
        self._retry_s = min(longest, self._retry_s * 2 or first)
        for entry in batch:
            if entry.answer is not None:
                entry.answer.set_exception(error)
        rest = [entry for entry in batch if entry.answer is None]
        if last:
            self._dropped += len(rest)
            logger.error(
                "the journal %s ends with %d lines that could not be written",
                self._database.path,
                self._dropped,
            )
            return
        with self._wake:
            self._retry_at = time.monotonic() + self._retry_s
            self._waiting.extendleft(reversed(rest))
            self._shorten()

    def _works(self) -> None:
        if self._retry_s:
            logger.warning(
                "the journal %s can be written again; %d lines were lost",
                self._database.path,
                self._dropped,
            )
        elif self._dropped:
            logger.error(
                "%d lines of the journal were dropped: the disk is too slow for them", self._dropped
            )
        self._retry_s = self._retry_at = 0.0
        self._dropped = 0


def _do(connection: sqlite3.Connection, job: Job) -> tuple[Any, BaseException | None]:
    """Do one job of a batch; what it raises undoes its own part, and no other's."""
    connection.execute("SAVEPOINT job")
    try:
        result = job(connection)
    except sqlite3.OperationalError:
        raise  # the disk, or a file that is locked: the batch fails as a whole
    except Exception as error:  # it goes to whoever asked for the job
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(
            error, (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError)
        ):
            raise
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        return None, error
    connection.execute("RELEASE job")
    return result, None
