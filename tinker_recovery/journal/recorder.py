"""The Recorder: writes down each run of a Supervisor, and holds its lease."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import math
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.errors import JournalError, LeaseLost
from tinker_recovery.journal import lease, records
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.journal import Journal
from tinker_recovery.journal.lease import HeldLease
from tinker_recovery.journal.records import Found, RunRequest
from tinker_recovery.journal.writer import Job, Writer
from tinker_recovery.telemetry import RecoveryEvent, names, redact
from tinker_recovery.telemetry.redaction import redact_value

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

WAIT_S = 5.0
"""How long a run waits for a line that has to be on disk, before it goes on without."""

CLOSE_S = 10.0
"""How long the end waits for what is still to be written."""

SAMPLE_S = 1.0
"""Progress is written at most this often."""

SAMPLES_AT_ONCE = 200
"""So many of the reported losses may come faster than that: a short run is drawn whole."""


class Recorder(AbstractAsyncContextManager["Recorder"]):
    """Writes down the runs of one Supervisor; entering it begins, leaving it writes the rest.

    Args:
        journal: Where to; has to be open.
        service: Base URL of the service.
        wall: Seconds since the epoch.
        monotonic: Seconds of a clock that only runs forward.
        beat_s: How often the leases are renewed.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        service: str,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        beat_s: float = lease.BEAT_S,
    ) -> None:
        self.service = service
        self.persistent = journal.path is not None
        """Whether another process can find what is written."""
        self.wall = wall
        self._monotonic = monotonic
        self._database = journal.database
        self._holder = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._records: dict[int, RunRecord] = {}
        self._by_name: dict[str, RunRecord] = {}
        self.writer = Writer(self._database, beat=self._beat, beat_every_s=beat_s)

    async def __aenter__(self) -> Self:
        self.writer.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.writer.close, CLOSE_S)

    async def open_run(
        self, opening: RunRequest, seen: HeldLease | None = None
    ) -> RunRecord | HeldLease:
        """Take a run, new or begun before; or who holds it.

        Args:
            opening: The run.
            seen: What this answered before, if it is asked again.

        Raises:
            JournalError: The journal cannot be written, so nobody could tell who trains the run.
        """
        here = Holder.here(now=self.wall(), lease_s=lease.LEASE_S)
        taken = await asyncio.wrap_future(
            self.writer.ask(functools.partial(self._take, opening, here, seen))
        )
        if isinstance(taken, HeldLease):
            return taken
        run, token, found, points = taken
        record = RunRecord(
            self,
            opening,
            found.lineage if found else opening.lineage,
            run,
            token,
            found,
            points,
        )
        with self._lock:
            self._records[run] = self._by_name[record.name] = record
        return record

    def _take(
        self,
        opening: RunRequest,
        here: Holder,
        seen: HeldLease | None,
        connection: sqlite3.Connection,
    ) -> HeldLease | tuple[int, int, Found | None, int]:
        now = self.wall()
        run = records.number_of(connection, opening)
        known = run is not None
        if run is None:
            run = records.insert_run(connection, opening, now)
        taken = lease.take(
            connection, run, holder=self._holder, here=here, seen=seen, now=self._monotonic()
        )
        if isinstance(taken, HeldLease):
            return taken
        if not known:
            return run, taken, None, 0
        found = records.find(connection, run)
        (points,) = connection.execute(
            "SELECT count(*) FROM progress WHERE run = ?", (run,)
        ).fetchone()
        return run, taken, found, points

    def note_event(self, event: RecoveryEvent) -> None:
        """An event of a run, or of none."""
        with self._lock:
            record = self._by_name.get(event.run)
        event = replace(event, message=redact(event.message), fields=redact_value(event.fields))
        if record is None:
            self.writer.put(lambda connection: records.note_event(connection, None, event))
        else:
            record.put(
                lambda connection: records.note_event(connection, record.id, event),
                soon=event.name == names.EVENT_CLIENT_CREATED,
            )

    def forget(self, record: RunRecord) -> None:
        """A run is over."""
        with self._lock:
            self._records.pop(record.id, None)
            if self._by_name.get(record.name) is record:
                del self._by_name[record.name]

    def _beat(self) -> None:
        """On the writer's thread, now and then: a sign of life, and a look who holds what."""
        with self._lock:
            mine = list(self._records.values())
        if not mine:
            return
        tokens: dict[int, int] | None = None
        expires = self.wall() + lease.LEASE_S
        try:
            with self._database.transaction() as connection:
                tokens = lease.held_by(connection, self._holder)
                lease.beat(connection, self._holder, expires=expires)
        except JournalError as error:
            # What was read before the write failed still counts; that it fails is told of by the
            # lines that cannot be written.
            logger.debug("the leases were not renewed: %s", error)
        for record in mine:
            if tokens is not None and tokens.get(record.id) != record.token:
                record.lose()


class RunRecord:
    """What is written of one run, by whoever holds it. From any thread, unless it is awaited.

    Attributes:
        name: Its name.
        lineage: Id of the logical run, in all its checkpoints.
        id: The journal's number for it.
        token: Its lease's token.
        found: What was written of it before; None for a new run.
    """

    def __init__(
        self,
        recorder: Recorder,
        opening: RunRequest,
        lineage: str,
        run: int,
        token: int,
        found: Found | None,
        points: int,
    ) -> None:
        self.name = opening.name
        self.given_name = opening.name if opening.named else None
        """The same, if it is to be gone on with by it."""
        self.lineage = lineage
        self.id = run
        self.token = token
        self.found = found
        self.attempts_left: Callable[[], int | None] = lambda: None
        self.on_lost: Callable[[LeaseLost], object] = lambda _: None
        """Told, on the writer's thread, when another process has taken the run."""
        self._recorder = recorder
        self._points = points
        self._stepped_at = -math.inf
        self._sampled_at, self._samples = time.monotonic(), float(SAMPLES_AT_ONCE)
        self._lost = False
        self._over = False

    def __repr__(self) -> str:
        return f"<RunRecord {self.name!r}>"

    def put(self, job: Job, *, soon: bool = False) -> None:
        """Write this when it suits, if the run is still ours by then."""
        if self._over:
            return

        def fenced(connection: sqlite3.Connection) -> None:
            if lease.is_held(connection, self.id, self.token):
                job(connection)

        self._recorder.writer.put(fenced, soon=soon)

    async def ask(self, job: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Write this before anything else happens; None if the journal cannot be written just now.

        Raises:
            LeaseLost: The run is another process's by now.
        """

        def fenced(connection: sqlite3.Connection) -> _T:
            if not lease.is_held(connection, self.id, self.token):
                raise self._loss()
            return job(connection)

        asked = self._recorder.writer.ask(fenced)
        try:
            with anyio.fail_after(WAIT_S):
                return await asyncio.wrap_future(asked)
        except JournalError:
            return None  # told of by the writer, once
        except TimeoutError:
            logger.warning(
                "run %s: the journal has not taken a line within %g s; training goes on",
                self.name,
                WAIT_S,
            )
            return None

    def _loss(self) -> LeaseLost:
        return LeaseLost(
            f"run {self.name!r} has been taken over by another process, which gave this one up "
            f"because it saw no sign of life for {lease.LEASE_S:g} s: this one must not train it "
            "any further",
            run=self.name,
        )

    def lose(self) -> None:
        """Another process has taken the run."""
        if not self._lost and not self._over:
            self._lost = True
            self.on_lost(self._loss())

    # What happens to a run

    async def begin(self, opening: RunRequest, *, anew: bool) -> None:
        """The run is gone on with: what an earlier process left open is closed."""
        now = self._recorder.wall()
        await self.ask(
            lambda connection: records.begin_again(connection, self.id, opening, now, anew=anew)
        )

    async def known_lineages(self) -> set[str]:
        """Ids of every logical run this journal knows, the forgotten ones too."""
        known = await self.ask(
            lambda connection: connection.execute("SELECT lineage FROM runs").fetchall()
        )
        return {lineage for (lineage,) in known or []}

    async def rebuild(self, found: Found) -> None:
        """Take over what the service alone knew of the run."""
        now = self._recorder.wall()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE runs SET lineage = ?, start_step = ?, step = ? WHERE id = ?",
                (found.lineage, found.start_step, found.step, self.id),
            )
            for number, each in enumerate(found.attempts, 1):
                told = (number, each.attempt, each.run_id, each.start_step, each.parent)
                records.insert_attempt(connection, self.id, told, now)
                connection.execute(
                    "UPDATE attempts SET sound_step = ?, polled_step = ? WHERE run = ? "
                    "AND number = ?",
                    (each.sound_step, each.polled_step, self.id, number),
                )
            for path, step in found.stored:
                connection.execute(
                    "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, 1, 0)",
                    (self.id, path, step, now),
                )

        await self.ask(write)
        self.lineage, self.found = found.lineage, found

    async def attempt_begins(
        self, number: int, attempt: str, run_id: str, start_step: int, parent: str | None
    ) -> None:
        """An attempt is about to train: on disk before it does, so that nobody looks elsewhere.

        Raises:
            LeaseLost: The run is another process's by now.
        """
        told = (number, attempt, run_id, start_step, parent)
        now = self._recorder.wall()
        self._stepped_at = -math.inf
        await self.ask(lambda connection: records.insert_attempt(connection, self.id, told, now))

    def fault(
        self,
        fault: tuple[str, str, int],
        attempt: str | None,
        trusted_to: float,
        *,
        recovers: bool,
    ) -> None:
        """A fault (kind, ear, step) is declared on an attempt, and what it casts doubt on."""
        limit = None
        if attempt is not None:
            limit = attempt, None if math.isinf(trusted_to) else trusted_to
        now = self._recorder.wall()
        self.put(
            lambda connection: records.note_fault(
                connection, self.id, fault, limit, now, recovers=recovers
            ),
            soon=True,
        )

    def saved(self, attempt: str, path: str, step: int, *, sound: bool) -> None:
        """A checkpoint is stored; ``sound`` if everything before it is known to have succeeded."""
        now = self._recorder.wall()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?, 0)",
                (self.id, path, step, now, sound),
            )
            if sound:
                connection.execute(
                    "UPDATE attempts SET sound_step = max(sound_step, ?) WHERE run = ? "
                    "AND attempt = ? AND ended IS NULL",
                    (step, self.id, attempt),
                )
            connection.execute(
                "UPDATE runs SET step = max(step, ?), updated = ? WHERE id = ?",
                (step if sound else 0, now, self.id),
            )

        self.put(write, soon=True)

    def is_due(self) -> bool:
        """Whether it is time for :meth:`stepped`; asked after every step, so it does no more."""
        return time.monotonic() - self._stepped_at >= SAMPLE_S

    def stepped(self, attempt: str, step: int, *, sound: int, polled: int) -> None:
        """So many steps are done, and so many are known to have succeeded."""
        self._stepped_at = time.monotonic()
        now, left = self._recorder.wall(), self.attempts_left()

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE attempts SET sound_step = max(sound_step, ?), "
                "polled_step = max(polled_step, ?) WHERE run = ? AND attempt = ? "
                "AND ended IS NULL",
                (sound, polled, self.id, attempt),
            )
            connection.execute(
                "UPDATE runs SET step = ?, attempts_left = ?, updated = ? WHERE id = ?",
                (step, left, now, self.id),
            )

        self.put(write)

    def reported(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the loop reported, sampled."""
        moment = time.monotonic()
        earned = (moment - self._sampled_at) / SAMPLE_S if SAMPLE_S else math.inf
        self._samples = min(SAMPLES_AT_ONCE, self._samples + earned)
        self._sampled_at = moment
        if self._samples < 1:
            return
        self._samples -= 1
        self._points += 1
        thin = self._points > records.POINTS
        if thin:
            self._points //= 2
        loss = metrics.get("loss")
        loss = loss if loss is not None and math.isfinite(loss) else None
        line = (self.id, step, self._recorder.wall(), loss, json.dumps(dict(metrics), default=str))

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", line)
            if thin:
                records.thin_out(connection, self.id)

        self.put(write)

    async def end(self, state: str | None, detail: str = "") -> None:
        """The run is over for good, or for now; its lease is given back. Never raises.

        Args:
            state: Where it stands; None leaves that as it is.
            detail: Why, in words.
        """
        if self._over:
            return
        now, detail = self._recorder.wall(), redact(detail)

        def write(connection: sqlite3.Connection) -> None:
            if state is not None:
                records.end_run(connection, self.id, state, detail, now)
            lease.release(connection, self.id, self.token)

        try:
            with anyio.CancelScope(shield=True):
                await self.ask(write)
        except LeaseLost:
            logger.warning("run %s ended here, and is another process's by now", self.name)
        finally:
            self._over = True
            self._recorder.forget(self)
