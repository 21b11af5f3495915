"""The Collector: looks at a run's checkpoints, renews what has to live on, deletes the rest.

What to keep, to delete and to renew is decided in :mod:`tinker_recovery.checkpoints`; here the
service is asked, the intent is written to the journal, and the deed is asked of the service, in
that order. Whatever cannot be read ends the collection, and nothing is deleted on half a listing.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Command,
    Delete,
    Deletion,
    DeletionLedger,
    DeletionPlan,
    Latest,
    Listed,
    Renewal,
    Situation,
    TokenBucket,
    Write,
    outcome,
    plan_deletions,
    renewals,
    retention_of,
    run_id_of,
    run_id_unchecked,
    select,
)
from tinker_recovery.checkpoints.deletion import SETTLE_S
from tinker_recovery.checkpoints.retention import best_first
from tinker_recovery.journal.publication import kept_for_export
from tinker_recovery.recovery.checkpoint_state import CheckpointState, KnownRun
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.inspector import Inspector
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_LOOKS = 10_000
"""Most looks in one collection; each finds something further to do, so it ends anyway."""

_FRESH_S = 2.0
"""Deletions decided by one look are asked for within this long, or by a newer look."""


class CollectedRun(KnownRun, Protocol):
    """A run as retention sees it."""

    @property
    def lineage(self) -> str:
        """Id of the logical run."""
        ...

    @property
    def lease(self) -> tuple[int, int] | None:
        """The run in the journal and the token by which this process trains it, if it does."""
        ...

    @property
    def protected(self) -> Mapping[str, str]:
        """Path to reason, of what must not be deleted for a reason of the run's own."""
        ...

    @property
    def recovering(self) -> bool:
        """Whether a recovery may be reading any of its checkpoints just now."""
        ...

    def is_pending(self, record: CheckpointRecord) -> bool:
        """Whether the metric that this checkpoint is to be judged by is still to come."""
        ...


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What one look found, and what follows from it.

    Attributes:
        listed: Every training checkpoint of the run.
        plan: What to delete, and why each of the others stays.
        renewals: Lifetimes to renew, the most urgent first; some may not be due yet.
        ledger: How far deletions have come.
        needed: Path to reason, of those that are relied on.
    """

    listed: Sequence[Listed]
    plan: DeletionPlan
    renewals: Sequence[Renewal]
    ledger: DeletionLedger
    needed: Mapping[str, str]


@dataclass(slots=True)
class CollectionResult:
    """What a collection did.

    Attributes:
        deleted: Path and bytes of each checkpoint deleted; None where the size is not known.
        failed: Path and reason of each deletion that did not succeed, to be tried again.
        renewed: Paths whose lifetime was renewed.
        kept: Checkpoints left.
        next_at: When the next thing is due, by our clock in seconds since the epoch; infinite for
            none.
    """

    deleted: dict[str, int | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    renewed: list[str] = field(default_factory=list)
    kept: int = 0
    next_at: float = math.inf


class Collector:
    """Looks after the checkpoints of runs by one policy. One collection at a time.

    Args:
        collaborators: What it is done with; ``policy.checkpoints`` says what to keep.
        keeps_alive: Whether lifetimes are renewed; not where a person asked for one collection.
        keeps: What else must not be deleted of a run: path to reason.
    """

    def __init__(
        self,
        collaborators: Collaborators,
        *,
        keeps_alive: bool = True,
        keeps: Callable[[Any], Mapping[str, str]] | None = None,
    ) -> None:
        self._keeps = keeps or (lambda _: {})
        self._collaborators = collaborators
        self._reader = collaborators.reader
        self._notebook = collaborators.notebook
        self._events = collaborators.events
        self._clock = collaborators.clock
        self._policy = collaborators.policy.checkpoints
        self._calls = CheckpointCalls(self._reader.http)
        self._inspector = Inspector(self._reader)
        self._verifier = Verifier(collaborators)
        self._keeps_alive = keeps_alive
        self._whole: set[tuple[str, datetime]] = set()
        self._no_export = False
        self._warned: set[str] = set()
        rate = self._policy.max_deletes_per_s
        self._bucket = TokenBucket(rate, burst=max(1, math.ceil(rate * _FRESH_S)))
        self._may_delete = False

    async def look(self, run: CollectedRun) -> CollectionPlan:
        """See what there is and what would be done about it; changes nothing but the journal.

        Raises:
            StatusError: Something could not be read.
            JournalError: The journal cannot be used.
            Exception: What ``keep_if`` of the policy raises.
        """
        listings = run.checkpoints.listings
        run_ids = list(dict.fromkeys(segment.run_id for segment in run.segments))
        unsettled, now_s = run.checkpoints.unsettled(), self._reader.service_now()
        asked = set(listings.due(run_ids, unsettled, now_s=now_s))
        await listings.update(self._reader, asked)
        while True:
            prints = listings.prints(run_ids)
            found = await self._plan(run, listings.of(run_ids), run_ids)
            further = (self._decides(found) & set(run_ids)) - asked
            await listings.update(self._reader, further)
            if listings.prints(run_ids) == prints:
                return found
            asked |= further

    def _decides(self, found: CollectionPlan) -> set[str]:
        """The Tinker runs whose listing has to be of now: something relies on it, or is deleted.

        Where anything is to be deleted, that is each with something that a rule may count.
        """
        needed = {run_id_unchecked(path) for path in found.needed}
        if not found.ledger.commands(found.plan, now_s=self._clock.wall()):
            return needed
        ours = [
            each.record
            for each in found.listed
            if each.record is not None
            and (each.record.saved_by == "schedule" or self._policy.delete_user_saves)
        ]
        return needed | {record.run_id for record in ours}

    async def _plan(
        self, run: CollectedRun, listed: Sequence[Listed], run_ids: Collection[str]
    ) -> CollectionPlan:
        sizes = {each.path: each.size_bytes for each in listed if each.size_bytes is not None}
        await self._notebook.note_sizes(sizes)
        known = run.checkpoints
        notes = await known.read(self._collaborators)
        own = [Deletion.from_line(said) for said in notes.deletions.values()]
        ledger = DeletionLedger(
            {entry.path: entry for entry in own if run_id_of(entry.path) in run_ids}
        )
        records = [each.record for each in listed if each.record is not None]
        doubtful = {record.path for record in records if _is_doubtful(record, known)}
        valid = await self._valid(run, records, doubtful)
        kept = {**kept_for_export(notes.publications), **self._keeps(run)}
        rules = retention_of(self._policy, pinned=notes.pinned)
        situation = Situation(
            lineage=run.lineage,
            now=self._now(),
            segments=run.segments,
            valid=valid,
            bad=known.bad,
            protected={**kept, **run.protected},
            pending={record.path for record in records if run.is_pending(record)},
            being_deleted=known.being_deleted,
            doubtful=doubtful,
            delete_user_saves=self._policy.delete_user_saves,
            lasting=self._lasting(),
        )
        plan = plan_deletions(listed, rules, situation)
        # Most looks delete nothing, and then the journal is not asked.
        unneeded = [each.path for each in plan.deletions]
        if unneeded and (relied := await self._notebook.relied_on(unneeded, but=run.lineage)):
            situation = replace(situation, protected={**situation.protected, **relied})
            plan = plan_deletions(listed, rules, situation)
        self._warn_of_metric(run, records)
        # What a person, or a publication, wants kept must not expire either.
        needed = {
            record.path: why
            for record in records
            if (why := kept.get(record.path) or ("pinned" if record.path in notes.pinned else ""))
        }
        needed |= {
            path: "the newest valid one" if path in doubtful else "the newest one known to be sound"
            for path in valid
        }
        if run.segments and (parent := run.segments[-1].parent) is not None:
            needed[parent] = "the one recovered from"
        lives = renewals(
            [record for record in records if record.lineage == run.lineage],
            needed,
            ttl_s=self._policy.ttl_s,
            now=self._now(),
            for_ever=notes.pinned,
        )
        return CollectionPlan(listed, plan, lives, ledger, needed)

    async def collect(
        self,
        run: CollectedRun,
        progress: Callable[[CollectionResult], object] = lambda _: None,
        *,
        guard: Guard | None = None,
    ) -> CollectionResult:
        """Renew what has to live on, delete what nothing keeps.

        Cancelling it is safe at any point; what was begun is finished by a later collection. A run
        that is recovering is left alone.

        Args:
            run: The run.
            progress: Called after each deletion.
            guard: The run's claim, which is asked for before each deletion and renewal. Its lease
                in the journal is asked for before each deletion.

        Raises:
            LeaseLost: The run is another process's by now; nothing more is changed.
            Exception: As :meth:`look`.
        """
        done = CollectionResult()
        guard = guard or Guard()
        outlook = None
        for _ in range(_LOOKS):
            if run.recovering:
                break
            outlook = await self.look(run)
            if self._keeps_alive:
                await self._renew(run, outlook, guard, done)
            commands = outlook.ledger.commands(outlook.plan, now_s=self._clock.wall())
            if not commands:
                break
            await self._carry_out(run, commands, guard, functools.partial(progress, done), done)
        if outlook is not None:
            done.kept = len(outlook.plan.checkpoints)
            done.next_at = self._next_at(outlook)
            await self._forget(outlook)
        return done

    async def _carry_out(
        self,
        run: CollectedRun,
        commands: Sequence[Command],
        guard: Guard,
        progress: Callable[[], object],
        done: CollectionResult,
    ) -> None:
        began = self._clock.monotonic()
        for command in commands:
            if isinstance(command, Write):
                await guard.check(for_certain=True)
                await self._write(run, command.entry)
                continue
            await self._pace()
            await guard.check(for_certain=True)
            await self._notebook.check_deletion(run.lineage, run.lease)
            # A pin may have been set since the look, by a command in another process.
            if await self._notebook.is_pinned(command.path):
                return
            # Nothing is awaited between this check and the request: a recovery that begins later
            # finds the path among those being deleted.
            if run.recovering or self._clock.monotonic() - began > _FRESH_S:
                return
            self._may_delete = False
            run.checkpoints.listings.forget(run_id_unchecked(command.path))
            status = await self._calls.delete(command.path)
            entry = outcome(command, status, now_s=self._clock.wall()).entry
            await self._write(run, entry)
            self._note(run, command, entry, done)
            progress()

    async def _write(self, run: CollectedRun, entry: Deletion) -> None:
        await self._notebook.write_deletion(entry.path, entry.to_line(), run.lineage, run.lease)
        run.checkpoints.note_deletion(entry, now_s=self._clock.wall())

    def _note(
        self, run: CollectedRun, command: Delete, entry: Deletion, done: CollectionResult
    ) -> None:
        fields = {names.CHECKPOINT_PATH: entry.path, names.REASON: entry.reason}
        if entry.state == "deleted":
            done.deleted[entry.path] = entry.size_bytes
            done.failed.pop(entry.path, None)
            why = f"deleted {entry.path}: {command.entry.reason}"
            self._events.emit(names.EVENT_CHECKPOINT_DELETED, run.name, why, fields)
            return
        done.failed[entry.path] = entry.reason
        if entry.failures == 1:
            why = f"{entry.path} could not be deleted, and will be tried again: {entry.reason}"
            self._events.emit(names.EVENT_CHECKPOINT_DELETE_FAILED, run.name, why, fields)

    async def _pace(self) -> None:
        """Wait for the turn of one deletion; it lasts until a request is sent.

        At a slow pace the wait makes what was decided too old: the newer look uses the same turn.
        """
        while not self._may_delete:
            self._bucket, wait_s = self._bucket.take(self._clock.monotonic())
            self._may_delete = not wait_s
            if wait_s:
                await self._clock.sleep(wait_s)

    async def _renew(
        self, run: CollectedRun, outlook: CollectionPlan, guard: Guard, done: CollectionResult
    ) -> None:
        now = self._now()
        for renewal in outlook.renewals:
            if renewal.at > now or renewal.path in done.renewed:
                continue
            await guard.check(for_certain=True)
            run.checkpoints.listings.forget(run_id_unchecked(renewal.path))
            status = await self._calls.set_ttl(renewal.path, renewal.ttl_s)
            if status is not None and 200 <= status < 300:  # noqa: PLR2004 - HTTP's own numbers
                done.renewed.append(renewal.path)
                lasts_s = math.inf if renewal.ttl_s is None else renewal.ttl_s
                run.checkpoints.note_lifetime(renewal.path, now.timestamp() + lasts_s)
            said = "no answer came" if status is None else f"the service answered {status}"
            lives = "for ever" if renewal.ttl_s is None else f"for {renewal.ttl_s} s more"
            renewed = renewal.path in done.renewed
            self._events.emit(
                names.EVENT_CHECKPOINT_RENEWED
                if renewed
                else names.EVENT_CHECKPOINT_RENEWAL_FAILED,
                run.name,
                f"{renewal.path} lives {lives}: {renewal.reason}"
                if renewed
                else f"{renewal.path} expires at {renewal.expires_at:%Y-%m-%d %H:%M:%S %Z} and "
                f"could not be renewed: {said}",
                {names.CHECKPOINT_PATH: renewal.path},
            )

    async def _valid(
        self, run: CollectedRun, records: Sequence[CheckpointRecord], doubtful: Collection[str]
    ) -> list[str]:
        """The newest valid one, and if that one expires soon the newest that lasts.

        And the newest that lasts and is known to be sound, if there is one: without it nothing may
        be deleted, for a fault found next may leave none of the others.
        """
        known = run.checkpoints
        valid: list[str] = []
        lasts = False
        for record in select(Latest(), records, run.segments, bad=known.unusable).candidates:
            if record.step > known.trusted_to(record.attempt):
                continue  # a recovery would not restore it
            sound = record.path not in doubtful and (
                # Its own saves the user may delete at any time.
                record.saved_by == "schedule" or self._policy.delete_user_saves
            )
            if lasts and not sound:
                continue
            objection = await self._inspector.objection(
                Listed.of(record), known, run.weights, lineage=run.lineage, relied_on=True
            )
            if objection is not None or not await self._is_whole(run, record):
                continue
            valid.append(record.path)
            if record.expires_at is None or record.expires_at > self._now() + self._lasting():
                lasts = True
                if sound:
                    break
        return valid

    def _warn_of_metric(self, run: CollectedRun, records: Sequence[CheckpointRecord]) -> None:
        """Say once that nothing is deleted, as no checkpoint has a metric to choose by."""
        policy = self._policy
        if policy.keep_last or not policy.save_best:
            return
        lacks = not best_first(records, policy.best_metric, policy.best_mode)
        if lacks and len(records) > policy.keep_best and run.name not in self._warned:
            self._warned.add(run.name)
            logger.warning(
                "run %s: none of its %d checkpoints has a finite value of the metric %r, so none "
                "is deleted: report it with attempt.report(), or set best_metric to one that is "
                "reported",
                run.name,
                len(records),
                policy.best_metric,
            )

    async def _is_whole(self, run: CollectedRun, record: CheckpointRecord) -> bool:
        """Whether its bytes were looked at and found whole, where the policy asks for that."""
        save = record.path, record.time  # the user may have saved another there
        if not self._policy.verify_deep or save in self._whole:
            return True
        if self._no_export:
            return False
        findings = await self._verifier.verify(record.path, deep=True, lineage=run.lineage)
        against = [finding for finding in findings if not finding.ok]
        for finding in against:
            if finding.level == "bytes":  # what its listing says may be otherwise the next time
                await run.checkpoints.reject(record.path, finding.reason, self._collaborators)
        if against:
            return False
        if not all(finding.looked for finding in findings):
            self._no_export = True
            logger.warning(
                "no checkpoint is deleted: verify_deep is on, and this service has no export, so "
                "none can be found whole; set verify_deep=False to delete by what is listed alone"
            )
            return False
        self._whole.add(save)
        return True

    def _lasting(self) -> timedelta:
        """How long a checkpoint has to live on to be relied on as the only copy.

        A day; less where the policy's own lifetimes are shorter, which are renewed at their half.
        """
        if self._policy.ttl_s is None:
            return timedelta(days=1)
        return min(timedelta(days=1), timedelta(seconds=self._policy.ttl_s / 3))

    def _next_at(self, outlook: CollectionPlan) -> float:
        retries = [
            entry.retry_at_s for entry in outlook.ledger.entries.values() if entry.state == "failed"
        ]
        # By our clock, which the loop that waits for it goes by.
        ahead_s = self._reader.http.clock.ahead_s
        lives = [renewal.at.timestamp() - ahead_s for renewal in outlook.renewals]
        return min([*retries, *(lives if self._keeps_alive else [])], default=math.inf)

    async def _forget(self, outlook: CollectionPlan) -> None:
        """Drop from the journal what is gone for good."""
        there = {each.path for each in outlook.listed}
        long_ago = self._clock.wall() - SETTLE_S
        gone = [
            entry.path
            for entry in outlook.ledger.entries.values()
            if entry.state == "deleted" and entry.at_s < long_ago and entry.path not in there
        ]
        if gone:
            await self._notebook.forget(gone)

    def _now(self) -> datetime:
        return self._reader.service_date()


def _is_doubtful(record: CheckpointRecord, known: CheckpointState) -> bool:
    """Whether a fault found next, or one known already, may leave nothing of it."""
    return record.step > known.settled_to(record.attempt)
