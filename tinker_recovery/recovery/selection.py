"""The choice of a checkpoint: list what there is, order it, take the first nothing speaks against.

What to prefer is decided in :mod:`tinker_recovery.checkpoints.selection`; here the service is asked
for what that needs. The newest segment of the run is listed first, and an older one only if nothing
on the newer can be used.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from tinker_recovery.checkpoints import (
    AtPath,
    AtStep,
    CheckpointRecord,
    Latest,
    Listed,
    Segment,
    Wanted,
    WeightsFacts,
    check_listing,
    check_metadata,
    check_weights,
    eligible,
    first_objection,
    on_branch,
    select,
    wanted,
    with_canaries,
)
from tinker_recovery.checkpoints.canary import Answer
from tinker_recovery.clock import Clock
from tinker_recovery.errors import NoUsableCheckpoint, StatusRefused, StatusUnavailable
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.service import StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.listing import find_checkpoint, list_checkpoints
from tinker_recovery.telemetry import EventSink, names, phase, refuse

logger = logging.getLogger(names.SCOPE)


class TrustedCheckpoints(Protocol):
    """What is known of a run's weights and checkpoints."""

    bad: dict[str, str]
    being_deleted: dict[str, str]
    sizes: dict[str, int]

    def trusted_to(self, segment: Segment) -> float:
        """The last step of a segment whose checkpoints may be gone back to."""
        ...

    def learn_canaries(self, records: Iterable[CheckpointRecord]) -> None:
        """Take over what listed checkpoints, and the journal, say that the canary answered."""
        ...

    def expects(self, checkpoint: CheckpointRecord | None) -> bool:
        """Whether it is known what the canary says on weights restored from there."""
        ...

    def objection(self, checkpoint: CheckpointRecord | None, answer: Answer) -> str | None:
        """Why this answer speaks against weights just restored from there."""
        ...

    def condemns(self, checkpoint: CheckpointRecord, answer: Answer) -> bool:
        """Whether an answer that speaks against a restore speaks against its checkpoint as well."""
        ...

    def stored_on(self, segment: Segment, limit: float) -> list[str]:
        """Paths of the checkpoints of a segment that the service said it has stored."""
        ...


class SelectingRun(Protocol):
    """A run as the choice of a checkpoint sees it."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        ...

    @property
    def root(self) -> CheckpointRecord | None:
        """The checkpoint the run was started from by the user, if it was."""
        ...

    @property
    def start_step(self) -> int:
        """The step at which starting over begins."""
        ...

    @property
    def weights(self) -> WeightsFacts:
        """What the service says its weights are, as far as it was heard."""
        ...

    @property
    def reader(self) -> StatusReader:
        """Where its checkpoints are listed."""
        ...

    @property
    def trust(self) -> TrustedCheckpoints:
        """What is known of its weights and checkpoints."""
        ...


@dataclass(slots=True)
class ServiceTime:
    """Adds up the time spent waiting for the service, so that our own can be told apart."""

    clock: Clock
    total_s: float = 0.0
    _began: float = field(default=0.0)

    def __enter__(self) -> None:
        self._began = self.clock.monotonic()

    def __exit__(self, *_: object) -> None:
        self.total_s += self.clock.monotonic() - self._began


class CheckpointSelection:
    """One choice; see the module.

    Args:
        run: Whose checkpoint to choose.
        policy: The user's policy.
        events: Where it is told.
        clock: Time.
        waiting: Adds up the time spent waiting for the service.
    """

    def __init__(
        self,
        run: SelectingRun,
        *,
        policy: RecoveryPolicy,
        events: EventSink,
        clock: Clock,
        waiting: ServiceTime,
    ) -> None:
        self._run = run
        self._events = events
        self._clock = clock
        self._waiting = waiting
        self._wanted = wanted(
            policy.checkpoint_strategy,
            metric=policy.checkpoints.best_metric,
            mode=policy.checkpoints.best_mode,
        )
        self._compares = policy.canary is not None and not isinstance(self._wanted, AtPath | AtStep)
        self._refused: list[str] = []

    @property
    def refused(self) -> Sequence[str]:
        """What was passed over by the newest choice: path and reason of each."""
        return tuple(self._refused)

    async def choose(self, *, only_looking: bool = False) -> CheckpointRecord | None:
        """The checkpoint to go back to, or None to start over.

        Args:
            only_looking: Nothing is going to be made from it, so nobody is told.

        Raises:
            NoUsableCheckpoint: Checkpoints exist and none of them can be used.
            StatusError: The listing could not be read, or cannot be right.
        """
        self._refused = []
        unknown: list[CheckpointRecord] = []
        async with aclosing(self._in_order()) as lists:
            async for candidates in lists:
                known = [record for record in candidates if self._can_be_verified(record)]
                unknown += [record for record in candidates if record not in known]
                if found := await self._first_valid(known, only_looking=only_looking):
                    return found
        if self._may_go_unverified():
            if found := await self._first_valid(unknown, only_looking=only_looking):
                return found
        elif self._refused:
            self._refused += [f"{each.path}: its canary was never answered" for each in unknown]
        # Starting over repeats everything, so it is right only where nothing was ever saved:
        # checkpoints that exist and cannot be used are for a person to look at.
        if self._refused:
            raise NoUsableCheckpoint(
                f"run {self._run.name!r} has checkpoints, and none can be used: "
                + "; ".join(self._refused)
            )
        if not only_looking:
            self._tell(None)
        return None

    def _can_be_verified(self, record: CheckpointRecord) -> bool:
        """Whether what it restores can be told from wrong weights, or nobody asks for that."""
        return not self._compares or self._run.trust.expects(record)

    async def _first_valid(
        self, records: Sequence[CheckpointRecord], *, only_looking: bool
    ) -> CheckpointRecord | None:
        for record in records:
            if await self._is_valid(record, only_looking=only_looking):
                return record
        return None

    def _may_go_unverified(self) -> bool:
        """Whether to take a checkpoint whose restored weights nothing can be compared with.

        A fault can take the canary's answer on the weights just saved with it. Wrong weights could
        not be told from right ones then, so such a checkpoint comes last: behind starting over,
        where that can be told, and never once a restore has been seen to go wrong.
        """
        trust = self._run.trust
        seen_bad = any(each.partition(": ")[0] in trust.bad for each in self._refused)
        return not seen_bad and (bool(self._refused) or not trust.expects(None))

    async def _in_order(self) -> AsyncGenerator[Sequence[CheckpointRecord]]:
        """What to try, in lists, each asked for only when nothing before it could be used."""
        run = self._run
        if isinstance(self._wanted, AtPath):
            with phase(names.SPAN_SELECT) as span, self._waiting:
                found = [await find_checkpoint(run.reader, self._wanted.path)]
                span.set_attribute(names.CHECKPOINTS_FOUND, len(found))
            yield found
            return
        together: list[CheckpointRecord] = []
        for segment, limit in on_branch(run.segments):
            found = await self._on_segment(segment, limit)
            if isinstance(self._wanted, Latest):
                yield self._ordered(self._wanted, found)
            else:
                together += found
        if isinstance(self._wanted, Latest):
            yield self._ordered(self._wanted, [], root=run.root)
            return
        candidates = self._ordered(self._wanted, together, root=run.root)
        if isinstance(self._wanted, AtStep) and not candidates:
            steps = ", ".join(str(record.step) for record in together) or "none"
            raise NoUsableCheckpoint(
                f"run {run.name!r} has no checkpoint at step {self._wanted.step}, which "
                f"checkpoint_strategy asks for; it has them at: {steps}"
            )
        yield candidates

    def _ordered(
        self, want: Wanted, found: Iterable[CheckpointRecord], root: CheckpointRecord | None = None
    ) -> Sequence[CheckpointRecord]:
        trust = self._run.trust
        chosen = select(
            want, found, self._run.segments, root=root, bad={**trust.being_deleted, **trust.bad}
        )
        self._refused += [
            f"{path}: {reason}"
            for path, reason in chosen.passed_over.items()
            if path in trust.bad or path in trust.being_deleted
        ]
        return chosen.candidates

    async def _on_segment(self, segment: Segment, limit: float) -> list[CheckpointRecord]:
        """The checkpoints of one segment that the run may go back to."""
        run = self._run
        with phase(names.SPAN_SELECT, {names.RUN_ID: segment.run_id}) as span:
            with self._waiting:
                listed = await list_checkpoints(run.reader, segment.run_id)
            trusted = min(limit, run.trust.trusted_to(segment))
            known = run.trust.stored_on(segment, trusted)
            if known and not listed:
                # An empty answer for a run that has saved is the service's trouble, and no
                # reason to begin again at step 0.
                raise StatusUnavailable(
                    f"the service lists no checkpoint of Tinker run {segment.run_id}, and "
                    f"has stored {len(known)}, {known[-1]} for one"
                )
            self._refused += [
                f"{each.path}: {each.problem}"
                for each in listed
                if each.record is None and each.path in known
            ]
            records = with_canaries([each.record for each in listed if each.record])
            run.trust.learn_canaries(records)
            found = eligible(segment, trusted, records)
            span.set_attribute(names.CHECKPOINTS_FOUND, len(found))
            return found

    async def _is_valid(self, record: CheckpointRecord, *, only_looking: bool) -> bool:
        """Whether nothing speaks against it; what does is noted, and what is chosen is told."""
        with phase(names.SPAN_VALIDATE, as_attributes(record)) as span:
            reason = self._objection(record) or await self._weights_objection(record)
            if reason is None:
                if not only_looking:
                    self._tell(record)
                return True
            refuse(span, names.BAD_CHECKPOINT, reason)
            self._refused.append(f"{record.path}: {reason}")
            return False

    def _objection(self, record: CheckpointRecord) -> str | None:
        trust = self._run.trust
        if record.path in trust.bad:
            return trust.bad[record.path]
        listed = Listed.of(record)
        now = datetime.fromtimestamp(self._clock.wall(), UTC)
        against = first_objection(
            (
                lambda: check_metadata(listed),
                lambda: check_listing(
                    record.path,
                    {record.path: listed},
                    now=now,
                    recorded_size=trust.sizes.get(record.path),
                ),
            )
        )
        return None if against is None else against.reason

    async def _weights_objection(self, record: CheckpointRecord) -> str | None:
        """Whether the service says that these weights are of another kind than the run's."""
        if self._run.weights == WeightsFacts():
            return None
        with self._waiting:
            try:
                said = await CheckpointCalls(self._run.reader.http).weights_info(record.path)
            except StatusRefused as error:
                # A service may not have this call at all; loading the checkpoint tells more.
                logger.debug("weights_info of %s: %s", record.path, error)
                return None
        verdict = check_weights(WeightsFacts.of(said), self._run.weights)
        return None if verdict.ok else verdict.reason

    def _tell(self, checkpoint: CheckpointRecord | None) -> None:
        step = self._run.start_step if checkpoint is None else checkpoint.step
        self._events.emit(
            names.EVENT_CHECKPOINT_SELECTED,
            self._run.name,
            f"no checkpoint yet: the run starts over at step {step}"
            if checkpoint is None
            else f"{checkpoint.path}, at step {step}",
            {**as_attributes(checkpoint), names.CHECKPOINT_STEP: step},
        )


def as_attributes(checkpoint: CheckpointRecord | None) -> dict[str, str | int]:
    """A checkpoint as spans and events tell it; nothing where the run starts over."""
    if checkpoint is None:
        return {}
    return {names.CHECKPOINT_PATH: checkpoint.path, names.CHECKPOINT_STEP: checkpoint.step}
