"""Random histories of saves, faults, corruption, expiry, deletions and crashes.

    python tests/checkpoints/histories.py [HISTORIES]

The collector here is a sketch of the real one: it reads a listing, checks, plans, renews, and
carries out commands. It may crash between any two of these, and then only the journal is left of
what it knew. What the run has saved is known to be sound only later, and a fault may leave nothing
of what is not. The world corrupts and expires checkpoints and loses answers, but never takes the
last good checkpoint away by itself: no policy could help that.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn

from made import LINEAGE, NOW

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Delete,
    DeletionLedger,
    DeletionPlan,
    Latest,
    Listed,
    Segment,
    Situation,
    Write,
    outcome,
    plan_deletions,
    renewals,
    select,
)
from tinker_recovery.checkpoints.retention import (
    KeepAny,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepPinned,
    Retention,
)

TTL_S = 30 * 3600.0
LASTING = timedelta(hours=6)


class Crash(Exception):
    """The collector crashes."""


@dataclass
class World:
    """A service, a run, and what is true of them."""

    chance: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    stored: dict[str, CheckpointRecord] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=lambda: [Segment("r0", "r0", 0, None)])
    branch: set[str] = field(default_factory=set)
    step: int = 0
    sound: int = 0
    at_s: float = 0.0
    clock_off_s: float = 0.0
    reading: str | None = None
    pinned: set[str] = field(default_factory=set)
    pending: set[str] = field(default_factory=set)
    delayed: list[str] = field(default_factory=list)
    # What the collector knows. Only the journal survives its crash.
    journal: list[str] = field(default_factory=list)
    ledger: DeletionLedger = field(default_factory=DeletionLedger)
    rule: Retention = field(default_factory=lambda: KeepLast(1))

    def wrong(self, what: str) -> NoReturn:
        raise AssertionError(f"{what}, after {dict(self.seen)}")

    @property
    def wall_s(self) -> float:
        """The collector's clock, which is set back now and then."""
        return self.at_s + self.clock_off_s

    def good(self) -> set[str]:
        """Paths a recovery could really go back to, and that are ours alone to delete."""
        being_deleted = set(self.delayed) | set(self.ledger.being_deleted(now_s=self.wall_s))
        return {
            path
            for path, record in self.stored.items()
            if path not in self.corrupt | being_deleted
            and record.lineage == LINEAGE
            and record.saved_by == "schedule"
            and path in self.branch
        }

    def doubtful(self) -> set[str]:
        """Paths of which a fault found next may leave nothing."""
        run = self.segments[-1].run_id
        return {
            path
            for path, record in self.stored.items()
            if record.run_id == run and record.step > self.sound
        }

    def sure(self) -> set[str]:
        """Paths that a recovery could go back to whatever fault is found next."""
        return self.good() - self.doubtful()

    # -- what happens ------------------------------------------------------------------------

    def save(self) -> None:
        self.step += self.chance.randint(1, 9)
        run = self.segments[-1].run_id
        kind = self.chance.choices(["schedule", "user", "theirs"], [8, 1, 1])[0]
        path = f"tinker://{run}/weights/{self.step}-{kind}"
        loss = self.chance.choice([math.nan, math.inf, 1.0, self.chance.random()])
        self.stored[path] = CheckpointRecord(
            path=path,
            run_id=run,
            step=self.step,
            lineage="theirs" if kind == "theirs" else LINEAGE,
            attempt=run,
            parent=self.segments[-1].parent,
            saved_by="user" if kind == "user" else "schedule",
            time=NOW + timedelta(seconds=self.at_s + self.chance.uniform(-9999, 9999)),
            size_bytes=10,
            expires_at=self.chance.choice([None, NOW + timedelta(seconds=self.at_s + TTL_S)]),
            public=self.chance.random() < 0.05,
            metrics={} if self.chance.random() < 0.2 else {"loss": loss},
        )
        self.branch.add(path)
        if self.chance.random() < 0.3:
            self.corrupt.add(path)
        if self.chance.random() < 0.05:
            self.pinned.add(path)
        self.pending = {path} if self.chance.random() < 0.2 else set()
        self.seen["saved"] += 1

    def fault(self) -> None:
        being_deleted = dict.fromkeys(self.ledger.being_deleted(now_s=self.wall_s), "being_deleted")
        found = select(Latest(), self.stored.values(), self.segments, bad=being_deleted)
        late = self.doubtful() if self.chance.random() < 0.5 else set()
        usable = [record for record in found.candidates if record.path not in self.corrupt | late]
        run = f"r{len(self.segments)}"
        if not usable:
            if self.good() - late:
                self.wrong("a good checkpoint was not among the candidates")
            self.segments.append(Segment(run, run, 0, None))
            self.step, self.sound, self.branch = 0, 0, set()
            self.seen["started over"] += 1
            return
        had = self.good() - late
        # What was saved after the fault began is good to look at, and not to be trusted: the run
        # may have to go back further than to the newest good one.
        reach = min((self.stored[path].step for path in had), default=0)
        usable = [record for record in usable if record.step >= reach] or usable
        chosen = usable[0] if self.chance.random() < 0.6 else self.chance.choice(usable)
        self.step = self.sound = chosen.step
        self.reading = chosen.path
        if self.reading not in self.branch:
            self.wrong(f"{self.reading} was abandoned, and was recovered from")
        self.branch = {
            path for path in self.branch & set(self.stored) if self.stored[path].step <= self.step
        }
        self.segments.append(Segment(run, run, self.step, self.reading))
        if had and not self.good():
            self.wrong("a recovery left no good checkpoint on the branch")
        self.seen["recovered"] += 1

    def rot(self) -> None:
        """A checkpoint is corrupted, or the user deletes one of their own."""
        if not self.stored:
            return
        path = self.chance.choice(sorted(self.stored))
        if self.stored[path].saved_by == "user":
            del self.stored[path]
            self.seen["deleted by the user"] += 1
        elif self.sure() - {path}:
            self.corrupt.add(path)
            self.seen["corrupted"] += 1

    def time_passes(self) -> None:
        self.at_s += self.chance.choice([1.0, 60.0, 500.0, 3600.0, 6 * 3600.0])
        if self.chance.random() < 0.05:
            self.clock_off_s -= self.chance.uniform(0, 7200)
        had = self.sure()
        now = NOW + timedelta(seconds=self.at_s)
        for path, record in sorted(self.stored.items()):
            if record.expires_at is not None and record.expires_at <= now:
                del self.stored[path]
                self.seen["expired"] += 1
        for path in self.delayed:
            self.remove(path)
        self.delayed = []
        if had and not self.sure():
            self.wrong("the last good checkpoint expired")
        if self.chance.random() < 0.7:
            self.sound = self.step  # the service was asked
        # Somebody reads a checkpoint for a while: any but one that may go at any moment.
        free = sorted(set(self.stored) - set(self.ledger.being_deleted(now_s=self.wall_s)))
        self.reading = self.chance.choice([None, *free])

    def remove(self, path: str) -> None:
        """A deletion of ours is carried out: was it allowed?"""
        record = self.stored.pop(path, None)
        if record is None:
            return
        if path == self.reading or path in self.pinned or path == self.segments[-1].parent:
            self.wrong(f"{path} was in use and was deleted")
        if record.lineage != LINEAGE or record.saved_by == "user" or record.public:
            self.wrong(f"{path} was not ours to delete")
        if not self.sure():
            self.wrong(f"{path} was deleted, and nothing good is left that no fault can take")
        self.seen["deleted"] += 1

    # -- the collector -----------------------------------------------------------------------

    def may_crash(self) -> None:
        if self.chance.random() < 0.03:
            raise Crash

    def keep(self) -> None:
        try:
            self._keep()
        except Crash:
            self.seen["crashed"] += 1
            self.ledger = DeletionLedger.from_lines(self.journal)

    def _plan(self) -> DeletionPlan:
        now = NOW + timedelta(seconds=self.at_s)
        being_deleted = self.ledger.being_deleted(now_s=self.wall_s)
        # The newest good one is always looked at, and the newest that no fault can take; some of
        # the others are not.
        checked = {path for path in sorted(self.stored) if self.chance.random() < 0.7}
        candidates = select(Latest(), self.stored.values(), self.segments).candidates
        valid = {path for path in checked if path not in self.corrupt}
        for good in (self.good(), self.sure()):
            newest = next((record.path for record in candidates if record.path in good), None)
            if newest is not None:
                checked.add(newest)
                valid.add(newest)
        needed = dict.fromkeys(valid & {record.path for record in candidates}, "needed")
        for renewal in renewals(self.stored.values(), needed, ttl_s=TTL_S, now=now):
            if renewal.at <= now:
                end = now + timedelta(seconds=TTL_S)
                kept = self.stored[renewal.path].model_copy(update={"expires_at": end})
                self.stored[renewal.path] = kept
                self.seen["renewed"] += 1
        listed = [Listed.of(record) for record in self.stored.values()]
        listed += [Listed("tinker://x/weights/y", None, "it has no tinker_recovery metadata")]
        self.chance.shuffle(listed)
        situation = Situation(
            LINEAGE,
            now,
            self.segments,
            valid,
            dict.fromkeys(checked & self.corrupt, "corrupt"),
            {self.reading: "being read"} if self.reading else {},
            self.pending,
            being_deleted,
            self.doubtful(),
            lasting=LASTING,
        )
        return plan_deletions(listed, KeepAny(self.rule, KeepPinned(self.pinned)), situation)

    def _keep(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            commands = self.ledger.commands(self._plan(), now_s=self.wall_s)
            # One act, then everything is looked at anew.
            if not commands:
                return
            command = self.chance.choice(commands)
            self.may_crash()
            if isinstance(command, Delete):
                command = self._delete(command)
                self.may_crash()
            self.journal.append(command.entry.to_line())
            self.may_crash()
            self.ledger = self.ledger.applied(command.entry)

    def _delete(self, command: Delete) -> Write:
        happens = self.chance.choice(["done", "done", "refused", "lost", "done, unheard", "late"])
        self.seen[f"delete {happens}"] += 1
        status: int | None = None
        if happens == "done":
            status = 200 if command.path in self.stored else 404
        if happens.startswith("done"):
            self.remove(command.path)
        elif happens == "refused":
            status = 500
        elif happens == "late":
            self.delayed.append(command.path)
        return outcome(command, status, now_s=self.wall_s)


RULES: list[Retention] = [
    KeepLast(1),
    KeepLast(3),
    KeepBest(1),
    KeepAny(KeepLast(1), KeepBest(2, mode="max"), KeepEvery(10)),
]


def history(seed: int, acts: int = 60) -> Counter[str]:
    """One history; AssertionError if anything was lost that must not be."""
    chance = random.Random(seed)
    world = World(chance, rule=chance.choice(RULES))
    idle = 0
    for _ in range(acts):
        act = chance.choices(["save", "fault", "rot", "time"], [8, 1, 1, 5])[0]
        if act == "save":
            world.save()
        elif act == "fault":
            world.fault()
        elif act == "rot":
            world.rot()
        else:
            world.time_passes()
        # A collector that sleeps for a day is too late to renew anything.
        idle += act == "time"
        if idle >= 2 or chance.random() < 0.7:
            world.keep()
            idle = 0
    return world.seen


def main(histories: int) -> None:
    """Run this many histories and print what happened in them."""
    total: Counter[str] = Counter()
    for seed in range(histories):
        total += history(seed)
    for what, count in sorted(total.items()):
        print(f"{count:8}  {what}")  # noqa: T201 - run as a script
    print(f"{histories} histories: 0 forbidden deletions, always a good checkpoint left")  # noqa: T201 - the same


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
