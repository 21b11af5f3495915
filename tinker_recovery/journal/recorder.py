"""The Recorder: writes the runs of a Supervisor to the journal, and holds their leases."""

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread

from tinker_recovery.costs import NO_TOKENS, Tokens
from tinker_recovery.errors import JournalError, LeaseLost
from tinker_recovery.journal import lease, run_sql
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.journal import Journal
from tinker_recovery.journal.lease import HeldLease
from tinker_recovery.journal.run_sql import RunRequest, StoredRun
from tinker_recovery.journal.sampling import Point, Sampler
from tinker_recovery.journal.schema import ALL_TOKENS
from tinker_recovery.journal.writer import Job, Writer
from tinker_recovery.shielding import to_the_end
from tinker_recovery.telemetry import RecoveryEvent, names, redact
from tinker_recovery.telemetry.redaction import redact_value

logger = logging.getLogger(names.SCOPE)

NO_PLAN: Mapping[str, Any] = {}

_T = TypeVar("_T")

WAIT_S = 5.0
"""How long a run waits for a write to be on disk before it continues without."""

CLOSE_S = 10.0
"""How long leaving the Recorder waits for what is still queued."""

SAMPLE_S = 1.0
"""Progress is written at most this often."""

SAMPLES_AT_ONCE = 200
"""Progress points that may come faster than that, so that a short run is kept whole."""


class Recorder:
    """Writes the runs of one Supervisor; leaving it writes out what is still queued.

    Args:
        journal: Where to write; has to be open.
        service: Base URL of the service.
        wall: Seconds since the epoch.
        monotonic: Seconds of a monotonic clock.
        heartbeat_s: How often the leases are renewed.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        service: str,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        heartbeat_s: float = lease.HEARTBEAT_S,
    ) -> None:
        self.service = service
        self.path = journal.path
        """Its file; None if it is in memory."""
        self.persistent = journal.path is not None
        """Whether another process can read it: not if the journal is in memory."""
        self.wall = wall
        self._monotonic = monotonic
        self._database = journal.database
        self._holder = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._records: dict[int, RunRecord] = {}
        self._by_name: dict[str, RunRecord] = {}
        self.writer = Writer(
            self._database, heartbeat=self._renew_leases, heartbeat_every_s=heartbeat_s
        )

    async def __aenter__(self) -> Self:
        self.writer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await to_the_end(anyio.to_thread.run_sync(self.writer.close, CLOSE_S))

    async def open_run(
        self, request: RunRequest, seen: HeldLease | None = None, *, rob: bool = False
    ) -> RunRecord | HeldLease:
        """Take the lease of a run, new or stored; returns another's lease if that holds it.

        Args:
            request: The run.
            seen: What the last call returned, if the lease was held.
            rob: Whether to take it from whoever has it.

        Raises:
            JournalError: The journal cannot be written, so no other process could see the lease.
        """
        here = Holder.here(now=self.wall(), lease_s=lease.LEASE_S)
        take = functools.partial(self._take, request, here, seen, rob)
        taken = await self.writer.done(take, undo=lease.give_back)
        if isinstance(taken, HeldLease):
            return taken
        record = RunRecord(self, request, *taken)
        with self._lock:
            self._records[record.id] = self._by_name[record.name] = record
        return record

    def _take(
        self,
        request: RunRequest,
        here: Holder,
        seen: HeldLease | None,
        rob: bool,  # noqa: FBT001 - bound by partial
        connection: sqlite3.Connection,
    ) -> HeldLease | tuple[int, int, StoredRun | None, int]:
        known = run_sql.select_id(connection, request)
        run = run_sql.insert_run(connection, request, self.wall()) if known is None else known
        taken = lease.take(
            connection,
            run,
            holder=self._holder,
            here=here,
            seen=seen,
            now=self._monotonic(),
            rob=rob,
        )
        if isinstance(taken, HeldLease):
            return taken
        if known is None:
            return run, taken, None, 0
        (points,) = connection.execute(
            "SELECT count(*) FROM progress WHERE run = ?", (run,)
        ).fetchone()
        return run, taken, run_sql.select_run(connection, run), points

    def note_event(self, event: RecoveryEvent) -> None:
        """Write an event, of a run or of none."""
        with self._lock:
            record = self._by_name.get(event.run)
        event = replace(event, message=redact(event.message), fields=redact_value(event.fields))
        if record is None:
            self.writer.put(lambda connection: run_sql.note_event(connection, None, event))
        else:
            record.put(
                lambda connection: run_sql.note_event(connection, record.id, event),
                soon=event.name == names.EVENT_CLIENT_CREATED,
            )

    def forget(self, record: RunRecord) -> None:
        """Let go of a run that is over."""
        with self._lock:
            self._records.pop(record.id, None)
            if self._by_name.get(record.name) is record:
                del self._by_name[record.name]

    def _renew_leases(self) -> None:
        """Renew the leases, and notice those that were lost; runs in the writer's thread."""
        with self._lock:
            mine = list(self._records.values())
        if not mine:
            return
        tokens: dict[int, int] | None = None
        expires = self.wall() + lease.LEASE_S
        try:
            with self._database.transaction() as connection:
                tokens = lease.held_by(connection, self._holder)
                lease.heartbeat(connection, self._holder, expires=expires)
        except JournalError as error:
            # Tokens read before the write failed are valid. The writer logs the failure.
            logger.debug("the leases were not renewed: %s", error)
        for record in mine:
            if tokens is not None and tokens.get(record.id) != record.token:
                record.lose()


class RunRecord:
    """Writes one run, for the process that holds its lease. Its plain methods are thread-safe.

    Attributes:
        name: Its name.
        lineage: Id of the logical run, in all its checkpoints.
        id: Its id in the journal.
        token: The fencing token of its lease.
        stored: What an earlier process wrote of it; None for a new run.
    """

    def __init__(
        self,
        recorder: Recorder,
        request: RunRequest,
        run: int,
        token: int,
        stored: StoredRun | None,
        points: int,
    ) -> None:
        self.name = request.name
        self.given_name = request.name if request.named else None
        """Its name, if it is resumed by that; else None."""
        self.lineage = stored.lineage if stored else request.lineage
        self.path = recorder.path
        """The journal's file; None if it is in memory."""
        self.id = run
        self.token = token
        self.stored = stored
        self.attempts_left: Callable[[], int | None] = lambda: None
        self.on_lost: Callable[[LeaseLost], object] = lambda _: None
        """Called in the writer's thread when another process has taken the run."""
        self._recorder = recorder
        self._points = points
        self._plan = NO_PLAN
        self._stepped_at = -math.inf
        self._sampler = Sampler(SAMPLES_AT_ONCE)
        self._lost = False
        self._over = False

    def __repr__(self) -> str:
        return f"<RunRecord {self.name!r}>"

    @property
    def lease(self) -> tuple[int, int]:
        """The run and the token by which this process may delete checkpoints of it."""
        return self.id, self.token

    def wall(self) -> float:
        """Seconds since the epoch."""
        return self._recorder.wall()

    def put(self, job: Job, *, soon: bool = False) -> None:
        """Queue a write; it is skipped if the lease is lost by then."""
        if self._over:
            return

        def fenced(connection: sqlite3.Connection) -> None:
            if lease.is_held(connection, self.id, self.token):
                job(connection)

        self._recorder.writer.put(fenced, soon=soon)

    async def submit(self, job: Callable[[sqlite3.Connection], _T]) -> _T | None:
        """Wait until a write is on disk; None if the journal cannot be written at the moment.

        Raises:
            LeaseLost: Another process has taken the run.
        """

        def fenced(connection: sqlite3.Connection) -> _T:
            if not lease.is_held(connection, self.id, self.token):
                raise self._loss()
            return job(connection)

        written = self._recorder.writer.submit(fenced)
        try:
            with anyio.fail_after(WAIT_S):
                return await asyncio.wrap_future(written)
        except JournalError:
            return None  # logged by the writer
        except TimeoutError:
            logger.warning(
                "run %s: the journal was not written within %g s; training continues",
                self.name,
                WAIT_S,
            )
            return None

    def _loss(self) -> LeaseLost:
        return LeaseLost(
            f"run {self.name!r} has been taken over by another process, which saw no heartbeat of "
            f"this one for {lease.LEASE_S:g} s: this process must stop training it",
            run=self.name,
        )

    def lose(self) -> None:
        """Report once that another process has taken the run."""
        if not self._lost and not self._over:
            self._lost = True
            self.on_lost(self._loss())

    async def begin(self, request: RunRequest, *, anew: bool) -> None:
        """Close what an earlier process left open; ``anew`` if that had not trained yet."""
        now = self._recorder.wall()
        await self.submit(
            lambda connection: run_sql.resume_run(connection, self.id, request, now, anew=anew)
        )

    async def known_lineages(self) -> set[str]:
        """The lineage of every run in the journal, abandoned ones included."""
        known = await self.submit(
            lambda connection: connection.execute("SELECT lineage FROM runs").fetchall()
        )
        return {lineage for (lineage,) in known or []}

    async def rebuild(self, stored: StoredRun, *, known: int = 0) -> None:
        """Write a run that was put together from its checkpoints at the service.

        Args:
            stored: The run.
            known: How many of its attempts, from the first on, are in the journal.
        """
        now = self._recorder.wall()

        await self.submit(
            lambda connection: run_sql.rebuild_run(connection, self.id, stored, now, known=known)
        )
        self.lineage, self.stored = stored.lineage, stored

    async def attempt_begins(
        self, number: int, attempt: str, run_id: str, start_step: int, parent: str | None
    ) -> None:
        """Write an attempt before it trains: a restart has to know every Tinker run of the run.

        Raises:
            LeaseLost: Another process has taken the run.
        """
        begun = (number, attempt, run_id, start_step, parent)
        now = self._recorder.wall()
        self._stepped_at = -math.inf
        self._sampler.goes_back()

        def write(connection: sqlite3.Connection) -> None:
            run_sql.discard_progress(connection, self.id, start_step)
            run_sql.insert_attempt(connection, self.id, begun, now)

        await self.submit(write)

    def fault(
        self,
        fault: tuple[str, str, int],
        attempt: str | None,
        trusted_to: float,
        *,
        recovers: bool,
        orderly: bool = False,
        silent_s: float = 0.0,
    ) -> None:
        """Write a fault (kind, detected by, step), and up to which step it leaves trust.

        It had made no progress for ``silent_s`` by then.
        """
        limit = None
        if attempt is not None:
            limit = attempt, None if math.isinf(trusted_to) else trusted_to
        now = self._recorder.wall()

        def write(connection: sqlite3.Connection) -> None:
            run_sql.note_silences(connection, self.id, now, [(silent_s, 0.0)])
            run_sql.note_fault(
                connection, self.id, fault, limit, now, recovers=recovers, orderly=orderly
            )

        self.put(write, soon=True)

    def saved(
        self,
        attempt: str,
        path: str,
        step: int,
        tokens: Tokens = NO_TOKENS,
        *,
        sound: bool,
        plan: Mapping[str, Any] = NO_PLAN,
    ) -> None:
        """Write a stored checkpoint, and the attempt's tokens before it.

        ``sound`` if every request before it has succeeded; ``plan`` as for :meth:`stepped`.
        """
        now, changed = self._recorder.wall(), self._changed(plan)

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
            run_sql.note_tokens(connection, self.id, attempt, step, tokens)
            run_sql.note_plan(connection, self.id, changed)

        self.put(write, soon=True)

    def _changed(self, plan: Mapping[str, Any]) -> Mapping[str, Any]:
        """The plan, if it is another one than was written last."""
        before, self._plan = self._plan, plan
        return NO_PLAN if plan == before else plan

    def is_due(self) -> bool:
        """Whether it is time for :meth:`stepped`; cheap, since it is asked after every step."""
        return time.monotonic() - self._stepped_at >= SAMPLE_S

    def stepped(
        self,
        attempt: str,
        step: int,
        tokens: Tokens = NO_TOKENS,
        *,
        sound: int,
        polled: int,
        plan: Mapping[str, Any] = NO_PLAN,
        pauses: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Write how many steps are done, known to have succeeded, and confirmed by a poll.

        And ``tokens``, which the attempt has cost until now, and ``plan``, the ``step`` at which it
        saves next and why in ``words``, where its policy alone does not say so; ``pauses`` are the
        times in which it made no progress, in seconds before now.
        """
        self._stepped_at = time.monotonic()
        now, left = self._recorder.wall(), self.attempts_left()
        changed = self._changed(plan)

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
            run_sql.note_silences(connection, self.id, now, pauses)
            run_sql.note_tokens(connection, self.id, attempt, ALL_TOKENS, tokens)
            run_sql.note_plan(connection, self.id, changed)

        self.put(write)

    def reported(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write what the loop reported, sampled; what stands out is in the sample."""
        loss = metrics.get("loss")
        loss = loss if loss is not None and math.isfinite(loss) else None
        point = Point(step, self._recorder.wall(), loss, metrics)
        points = self._sampler.due(point, SAMPLE_S)
        if not points:
            return
        lines = [
            (self.id, *each[:3], json.dumps(dict(each.metrics), default=str)) for each in points
        ]
        self._points += len(lines)
        thin = self._points > run_sql.POINTS
        if thin:
            self._points //= 2

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO progress VALUES (?, ?, ?, ?, ?)", lines)
            if thin:
                run_sql.thin_out(connection, self.id)

        self.put(write)

    async def end(self, state: str | None, detail: str = "") -> None:
        """Write the end of the run, and release its lease. Never raises an Exception.

        Args:
            state: Its final state, or ``stopped``; None for that in which it was found.
            detail: Why.
        """
        if self._over:
            return
        now, detail = self._recorder.wall(), redact(detail)

        def write(connection: sqlite3.Connection) -> None:
            if state is not None:
                run_sql.end_run(connection, self.id, state, detail, now)
            elif self.stored is not None:
                run_sql.leave_run(connection, self.id, self.stored.state, self.stored.detail)
            lease.release(connection, self.id, self.token)

        try:
            await to_the_end(self.submit(write))
        except LeaseLost:
            logger.warning(
                "run %s has ended here, but another process had taken it over", self.name
            )
        finally:
            self._over = True
            self._recorder.forget(self)
