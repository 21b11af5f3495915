"""Collector: one look at a run's checkpoints, and what follows from it, carried out.

What to keep, to delete and to renew is decided in :mod:`tinker_recovery.checkpoints`; here the
service is asked, the journal is written, and the service is told, in that order. Whatever cannot be
read ends the round, and nothing is deleted on half a listing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

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
    Segment,
    Situation,
    TokenBucket,
    WeightsFacts,
    Write,
    check_listing,
    check_metadata,
    check_weights,
    outcome,
    plan_deletions,
    renewals,
    retention_of,
    run_id_of,
    select,
)
from tinker_recovery.checkpoints.deletion import SETTLE_S
from tinker_recovery.clock import Clock
from tinker_recovery.errors import StatusRefused, UsageError
from tinker_recovery.journal import Notebook, Notes
from tinker_recovery.policy import CheckpointPolicy
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.service import StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.listing import list_checkpoints
from tinker_recovery.telemetry import EventSink, names

_LOOKS = 10_000
"""Most looks in one round; each brings something further, so a round ends anyway."""

_FRESH_S = 2.0
"""Deletions decided by one look are asked for within this long, or by a newer look."""

_NO_SUCH_ROUTE = frozenset({405, 501})
_SAYS_NOTHING_OF_IT = frozenset({401, 402, 403})
"""Refusals that are about who asks, not about the checkpoint asked for: never remembered."""


class CollectedRun(Protocol):
    """A run, or a lineage, as housekeeping sees it."""

    @property
    def name(self) -> str:
        """For people."""
        ...

    @property
    def lineage(self) -> str:
        """Id of the logical run."""
        ...

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        ...

    @property
    def weights(self) -> WeightsFacts:
        """What its weights are, as far as is known."""
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

    async def mark_bad(self, path: str, reason: str) -> None:
        """Never use this checkpoint again, in this process or a later one."""
        ...

    def note_being_deleted(self, paths: Collection[str]) -> None:
        """These may be gone at any moment: nothing may rely on them."""
        ...

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """The size of each checkpoint at first sight."""
        ...


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one look found, and what follows from it.

    Attributes:
        listed: Every training checkpoint of the run.
        plan: What to delete, and why each of the others stays.
        renewals: Lifetimes to renew, the most urgent first; some may not be due yet.
        ledger: How far deletions have come.
        notes: What the journal says.
    """

    listed: Sequence[Listed]
    plan: DeletionPlan
    renewals: Sequence[Renewal]
    ledger: DeletionLedger
    notes: Notes


@dataclass(slots=True)
class Done:
    """What a round did.

    Attributes:
        deleted: Path and bytes of each checkpoint deleted; None where the size is not known.
        failed: Path and reason of each deletion that did not succeed, to be tried again.
        renewed: Paths whose lifetime was renewed.
        kept: Checkpoints left.
        next_at: Seconds since the epoch at which the next thing is due; infinite for none.
    """

    deleted: dict[str, int | None] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    renewed: list[str] = field(default_factory=list)
    kept: int = 0
    next_at: float = math.inf


class Collector:
    """Keeps the checkpoints of runs by one policy. One round at a time.

    Args:
        reader: Where checkpoints are listed, and what is asked over.
        notebook: Where intents are written before deeds.
        policy: What to keep.
        events: Where it is told.
        clock: Time.
        keeps_alive: Whether lifetimes are renewed; not by a round that a person asked for once.
        verifier: What ``policy.verify_deep`` looks at bytes with; needed where that is on.
    """

    def __init__(
        self,
        *,
        reader: StatusReader,
        notebook: Notebook,
        policy: CheckpointPolicy,
        events: EventSink,
        clock: Clock,
        keeps_alive: bool = True,
        verifier: Verifier | None = None,
    ) -> None:
        self._reader = reader
        self._calls = CheckpointCalls(reader.http)
        self._notebook = notebook
        self._policy = policy
        self._events = events
        self._clock = clock
        self._keeps_alive = keeps_alive
        self._verifier = verifier
        self._whole: set[str] = set()
        rate = policy.max_deletes_per_s
        self._bucket = TokenBucket(rate, burst=max(1, math.ceil(rate * _FRESH_S)))
        self._weights: dict[str, WeightsFacts | None] = {}

    async def look(self, run: CollectedRun) -> Outlook:
        """See what there is and what would be done about it; changes nothing but the journal.

        Raises:
            StatusError: Something could not be read.
            JournalError: The journal cannot be used.
            Exception: What ``keep_if`` of the policy raises.
        """
        run_ids = list(dict.fromkeys(segment.run_id for segment in run.segments))
        listed = [
            each for run_id in run_ids for each in await list_checkpoints(self._reader, run_id)
        ]
        sizes = {each.path: each.size_bytes for each in listed if each.size_bytes is not None}
        await self._notebook.note_sizes(sizes)
        notes = await self._notebook.notes()
        run.note_sizes({path: notes.sizes[path] for path in sizes if path in notes.sizes})
        own = [Deletion.from_line(said) for said in notes.deletions.values()]
        ledger = DeletionLedger(
            {entry.path: entry for entry in own if run_id_of(entry.path) in run_ids}
        )
        being_deleted = ledger.being_deleted(now_s=self._clock.wall())
        run.note_being_deleted(being_deleted)
        valid = await self._valid(run, listed, notes, being_deleted)
        records = [each.record for each in listed if each.record is not None]
        plan = plan_deletions(
            listed,
            retention_of(self._policy, pinned=notes.pinned),
            Situation(
                lineage=run.lineage,
                now=self._now(),
                segments=run.segments,
                valid=valid,
                bad=notes.bad,
                protected=run.protected,
                pending=[record.path for record in records if run.is_pending(record)],
                being_deleted=being_deleted,
                delete_user_saves=self._policy.delete_user_saves,
                lasting=self._lasting(),
            ),
        )
        needed = dict.fromkeys(valid, "the newest valid one")
        if run.segments and (parent := run.segments[-1].parent) is not None:
            needed[parent] = "the one recovered from"
        lives = renewals(
            [record for record in records if record.lineage == run.lineage],
            needed,
            ttl_s=self._policy.ttl_s,
            now=self._now(),
        )
        return Outlook(listed, plan, lives, ledger, notes)

    async def tidy(
        self, run: CollectedRun, progress: Callable[[Done], object] = lambda _: None
    ) -> Done:
        """One round: renew what has to live on, delete what nothing keeps.

        Cancelling it is safe at any point; what was begun is finished by a later round. A run that
        is recovering is left alone.

        Args:
            run: The run.
            progress: Called after each deletion.

        Raises:
            Exception: As :meth:`look`.
        """
        done = Done()
        outlook = None
        for _ in range(_LOOKS):
            if run.recovering:
                break
            outlook = await self.look(run)
            if self._keeps_alive:
                await self._renew(run, outlook, done)
            commands = outlook.ledger.commands(outlook.plan, now_s=self._clock.wall())
            if not commands:
                break
            await self._carry_out(
                run, outlook.ledger, commands, functools.partial(progress, done), done
            )
        if outlook is not None:
            done.kept = len(outlook.plan.checkpoints)
            done.next_at = self._next_at(outlook)
            await self._forget(outlook)
        return done

    async def _carry_out(
        self,
        run: CollectedRun,
        ledger: DeletionLedger,
        commands: Sequence[Command],
        progress: Callable[[], object],
        done: Done,
    ) -> None:
        began = self._clock.monotonic()
        for command in commands:
            if isinstance(command, Write):
                ledger = await self._write(run, ledger, command.entry)
                continue
            await self._pace()
            # A pin may have been set since the look, by a command in another process.
            if command.path in (await self._notebook.notes()).pinned:
                return
            # Nothing is awaited between this look and the request: a recovery that begins later
            # finds the path among the being_deleted.
            if run.recovering or self._clock.monotonic() - began > _FRESH_S:
                return
            told = outcome(
                command, await self._calls.delete(command.path), now_s=self._clock.wall()
            )
            ledger = await self._write(run, ledger, told.entry)
            self._note(run, command, told.entry, done)
            progress()

    async def _write(
        self, run: CollectedRun, ledger: DeletionLedger, entry: Deletion
    ) -> DeletionLedger:
        await self._notebook.write_deletion(entry.path, entry.to_line())
        ledger = ledger.applied(entry)
        run.note_being_deleted(ledger.being_deleted(now_s=self._clock.wall()))
        return ledger

    def _note(self, run: CollectedRun, command: Delete, entry: Deletion, done: Done) -> None:
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
        while True:
            self._bucket, wait_s = self._bucket.take(self._clock.monotonic())
            if not wait_s:
                return
            await self._clock.sleep(wait_s)

    async def _renew(self, run: CollectedRun, outlook: Outlook, done: Done) -> None:
        now = self._now()
        for renewal in outlook.renewals:
            if renewal.at > now or renewal.path in done.renewed:
                continue
            status = await self._calls.set_ttl(renewal.path, renewal.ttl_s)
            if status is not None and 200 <= status < 300:  # noqa: PLR2004 - HTTP's own numbers
                done.renewed.append(renewal.path)
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
        self,
        run: CollectedRun,
        listed: Sequence[Listed],
        notes: Notes,
        being_deleted: Collection[str],
    ) -> list[str]:
        """The newest checkpoint found valid, and if that one expires soon the newest that lasts."""
        by_path = {each.path: each for each in listed}
        records = [each.record for each in listed if each.record is not None]
        unusable = {**dict.fromkeys(being_deleted, "its deletion was begun"), **notes.bad}
        found: list[str] = []
        for record in select(Latest(), records, run.segments, bad=unusable).candidates:
            checks = (
                check_metadata(Listed.of(record), lineage=run.lineage),
                check_listing(
                    record.path,
                    by_path,
                    now=self._now(),
                    recorded_size=notes.sizes.get(record.path),
                ),
            )
            if (
                all(check.ok for check in checks)
                and await self._fits(run, record)
                and await self._is_whole(run, record)
            ):
                found.append(record.path)
                if record.expires_at is None or record.expires_at > self._now() + self._lasting():
                    break
        return found

    async def _fits(self, run: CollectedRun, record: CheckpointRecord) -> bool:
        """Whether the service knows the weights, and they are of the run's kind; asked once."""
        if record.path not in self._weights:
            try:
                said = await self._calls.weights_info(record.path)
            except StatusRefused as error:
                if error.status_code in _SAYS_NOTHING_OF_IT:
                    raise
                gone = error.status_code not in _NO_SUCH_ROUTE
                self._weights[record.path] = None if gone else WeightsFacts()
            else:
                self._weights[record.path] = WeightsFacts.of(said)
        facts = self._weights[record.path]
        return facts is not None and check_weights(facts, run.weights).ok

    async def _is_whole(self, run: CollectedRun, record: CheckpointRecord) -> bool:
        """Whether its bytes were looked at and found whole, where the policy asks for that."""
        if not self._policy.verify_deep or record.path in self._whole:
            return True
        if self._verifier is None:
            raise UsageError("verify_deep needs a verifier: pass verifier= to Collector")
        verdicts = await self._verifier.verify(record.path, deep=True, lineage=run.lineage)
        against = [verdict.reason for verdict in verdicts if not verdict.ok]
        if against:
            await run.mark_bad(record.path, "; ".join(against))
            return False
        self._whole.add(record.path)
        return True

    def _lasting(self) -> timedelta:
        """How long a checkpoint has to live on to be relied on as the only copy.

        A day; less where the policy's own lifetimes are shorter, which are renewed at their half.
        """
        if self._policy.ttl_s is None:
            return timedelta(days=1)
        return min(timedelta(days=1), timedelta(seconds=self._policy.ttl_s / 3))

    def _next_at(self, outlook: Outlook) -> float:
        retries = [
            entry.retry_at_s for entry in outlook.ledger.entries.values() if entry.state == "failed"
        ]
        lives = [renewal.at.timestamp() for renewal in outlook.renewals]
        return min([*retries, *(lives if self._keeps_alive else [])], default=math.inf)

    async def _forget(self, outlook: Outlook) -> None:
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
        return datetime.fromtimestamp(self._clock.wall(), UTC)
