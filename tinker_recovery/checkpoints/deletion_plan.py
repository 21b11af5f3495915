"""Which checkpoints to delete, and why each of the others stays. Nothing is deleted on a guess.

Whatever the retention rules say, a plan never deletes

- the newest valid checkpoint, and the newest valid one that lasts;
- the one the run was recovered from, and any the caller protects or pins;
- published ones, and ones whose metric is not known yet;
- one not known yet to be sound: a fault found later may leave none but those before it. So it keeps
  no other from being kept either: rules are applied to those known to be sound;
- what this run did not make: no metadata of ours, another lineage, an unknown attempt, a save the
  user asked for (unless that is allowed);
- anything at all while no checkpoint is known to be valid and to last: any unchecked one might be
  the only good one, and one that expires soon is no copy to rely on;
- an abandoned or bad one, or one whose deletion has begun, until a valid one with at least as many
  steps exists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tinker_recovery.checkpoints.lineage import Branch, Position, Segment
from tinker_recovery.checkpoints.record import CheckpointRecord, Listed
from tinker_recovery.checkpoints.retention import Candidate, Retention, counted
from tinker_recovery.checkpoints.validation import EXPIRY_MARGIN


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a run's checkpoints when planning.

    Attributes:
        lineage: Id of the logical run.
        now: The service's date, with a time zone.
        segments: Every Tinker run it has lived in, oldest first. Empty if unknown: then every
            checkpoint of the lineage counts.
        valid: Paths found valid, as deep as the caller checks. A path in neither ``valid`` nor
            ``bad`` is of unknown validity.
        bad: Path to reason, of those found bad.
        protected: Path to reason, of those in use: recovered from, being read.
        pending: Paths whose metric is not known yet.
        being_deleted: Paths whose deletion has begun and may have happened: never relied on.
        doubtful: Paths not known yet to be sound: not everything before them is known to have
            succeeded, or a fault found next may be older than they are.
        delete_user_saves: Whether saves the user asked for may be deleted. If not, they do not
            count towards "the last five" either, as the user may delete them at any time.
        lasting: A checkpoint that expires within this time is not relied on as the only copy.
    """

    lineage: str
    now: datetime
    segments: Sequence[Segment] = ()
    valid: Collection[str] = ()
    bad: Mapping[str, str] = field(default_factory=dict)
    protected: Mapping[str, str] = field(default_factory=dict)
    pending: Collection[str] = ()
    being_deleted: Collection[str] = ()
    doubtful: Collection[str] = ()
    delete_user_saves: bool = False
    lasting: timedelta = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class PlannedCheckpoint:
    """The decision on one checkpoint.

    Attributes:
        path: Its ``tinker://`` path.
        delete: Whether to delete it.
        reason: Why, or why not, for people.
        step: Optimizer steps in it; None if unknown.
        size_bytes: Its size; None if unknown.
    """

    path: str
    delete: bool
    reason: str
    step: int | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class DeletionPlan:
    """The decision on every listed checkpoint.

    Attributes:
        checkpoints: One decision each, the most steps first.
    """

    checkpoints: tuple[PlannedCheckpoint, ...]

    @property
    def deletions(self) -> tuple[PlannedCheckpoint, ...]:
        """What to delete, in this order: the fewest steps first."""
        return tuple(each for each in reversed(self.checkpoints) if each.delete)

    @property
    def kept(self) -> tuple[PlannedCheckpoint, ...]:
        """What stays."""
        return tuple(each for each in self.checkpoints if not each.delete)


def plan_deletions(
    listed: Iterable[Listed], retention: Retention, situation: Situation
) -> DeletionPlan:
    """Decide on every listed checkpoint of all Tinker runs of the lineage.

    The same facts in any order give the same plan. Make a new one whenever anything has changed.

    Raises:
        Exception: Whatever the user's predicate in ``retention`` raises.
    """
    return _Planner(listed, retention, situation).plan()


class _Planner:
    def __init__(
        self, listed: Iterable[Listed], retention: Retention, situation: Situation
    ) -> None:
        self._situation = situation
        self._branch = Branch(situation.segments)
        self._listed: dict[str, Listed] = {}
        self._contradicted: set[str] = set()
        for each in listed:
            if self._listed.setdefault(each.path, each) != each:
                self._contradicted.add(each.path)
        ours = {
            path: each.record
            for path, each in self._listed.items()
            if each.record is not None and self._not_ours(each) is None
        }
        self._positions = {path: self._position(record) for path, record in ours.items()}
        newest_first = sorted(
            ours.values(), key=lambda each: (each.step, each.time, each.path), reverse=True
        )
        candidates = [Candidate(record, self._counts(record)) for record in newest_first]
        self._kept = retention.keep(candidates)
        valid = [record for record in counted(candidates) if record.path in situation.valid]
        lasting = [record for record in valid if self._lasts(record)]
        self._valid_step = lasting[0].step if lasting else None
        self._newest_valid = {record.path for record in [*valid[:1], *lasting[:1]]}

    def plan(self) -> DeletionPlan:
        planned = [self._planned(each) for each in self._listed.values()]
        planned.sort(
            key=lambda each: (-1 if each.step is None else each.step, each.path), reverse=True
        )
        return DeletionPlan(tuple(planned))

    def _planned(self, each: Listed) -> PlannedCheckpoint:
        keep = self._reason_to_keep(each)
        # Of contradictory listings neither's facts are shown: their order must not matter.
        known = each.path not in self._contradicted
        return PlannedCheckpoint(
            each.path,
            delete=keep is None,
            reason=self._reason_to_delete(each.path) if keep is None else keep,
            step=each.record.step if known and each.record else None,
            size_bytes=each.size_bytes if known else None,
        )

    def _not_ours(self, each: Listed) -> str | None:
        """Why this run may not delete it."""
        if each.path in self._contradicted:
            return "it is listed twice, with different facts"
        if each.record is None:
            return each.problem or "it has no tinker_recovery metadata"
        if each.record.lineage != self._situation.lineage:
            return f"it belongs to another run, lineage {each.record.lineage}"
        position = self._position(each.record)
        return position.reason if position.where == "unknown" else None

    def _position(self, record: CheckpointRecord) -> Position:
        return self._branch.position(record) if self._situation.segments else Position("branch")

    def _of_the_user(self, record: CheckpointRecord) -> bool:
        return record.saved_by == "user" and not self._situation.delete_user_saves

    def _counts(self, record: CheckpointRecord) -> bool:
        return (
            self._positions[record.path].where == "branch"
            and record.path not in self._situation.bad
            and record.path not in self._situation.being_deleted
            and record.path not in self._situation.doubtful
            and not self._expired(record)
            and not self._of_the_user(record)
        )

    def _expired(self, record: CheckpointRecord) -> bool:
        return (
            record.expires_at is not None
            and record.expires_at <= self._situation.now + EXPIRY_MARGIN
        )

    def _lasts(self, record: CheckpointRecord) -> bool:
        return (
            record.expires_at is None
            or record.expires_at > self._situation.now + self._situation.lasting
        )

    def _reason_to_keep(self, each: Listed) -> str | None:
        situation, path = self._situation, each.path
        if (not_ours := self._not_ours(each)) is not None or each.record is None:
            return f"not ours to delete: {not_ours}"
        unusable = (
            self._positions[path].where == "abandoned"
            or path in situation.bad
            or path in situation.being_deleted
        )
        checks = (
            (path in situation.protected, f"in use: {situation.protected.get(path)}"),
            (path == self._branch.parent, "the run was recovered from it"),
            (path in self._newest_valid, "the newest valid one"),
            (each.record.public, "published"),
            (path in situation.pending, "its metric is not known yet"),
            (self._of_the_user(each.record), "saved by the user"),
            (path in self._kept, self._kept.get(path, "")),
            (self._expired(each.record), "expired: the service removes it"),
            (path in situation.doubtful and not unusable, "not yet known to be sound"),
        )
        for holds, reason in checks:
            if holds:
                return reason
        if self._valid_step is None:
            return "no other checkpoint is known to be valid and to last"
        if unusable and each.record.step > self._valid_step:
            return f"no valid checkpoint has reached step {each.record.step} yet"
        return None

    def _reason_to_delete(self, path: str) -> str:
        if path in self._situation.being_deleted:
            return "its deletion has begun"
        if path in self._situation.bad:
            return f"bad: {self._situation.bad[path]}"
        if self._positions[path].where == "abandoned":
            return f"abandoned: {self._positions[path].reason}"
        return "no rule keeps it"
