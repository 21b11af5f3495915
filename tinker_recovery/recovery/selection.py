"""Selection: which checkpoint to restore, the first of those listed that nothing objects to.

In which order they are tried is the :class:`Ordering`'s: here the branch of a supervised run, by
what the policy wants (:mod:`tinker_recovery.checkpoints.selection` decides), the newest segment
first, and an older one listed only if nothing on the newer can be used.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from anyio.lowlevel import checkpoint

from tinker_recovery.checkpoints import (
    AtPath,
    AtStep,
    Branch,
    CheckpointRecord,
    Latest,
    Listed,
    Segment,
    Wanted,
    eligible,
    select,
    wanted,
    with_canaries,
)
from tinker_recovery.clock import Clock
from tinker_recovery.errors import ANSWERED, NoUsableCheckpoint, StatusUnavailable, folded
from tinker_recovery.recovery import words
from tinker_recovery.recovery.checkpoint_state import KnownRun
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.inspector import Inspector
from tinker_recovery.service import Origin, StatusReader
from tinker_recovery.service.contact import unknown_there
from tinker_recovery.service.listing import Listings, find_checkpoint, list_checkpoints
from tinker_recovery.telemetry import names, phase, refuse

logger = logging.getLogger(names.SCOPE)

_WAY_OUT = (
    "`tinker-recovery abandon {}` frees the name for a new start, and from_checkpoint= starts from "
    "a checkpoint that you name"
)


class RestorableRun(KnownRun, Protocol):
    """A run as choosing and restoring see it."""

    @property
    def root(self) -> CheckpointRecord | None:
        """The checkpoint the run was started from by the user, if it was."""
        ...

    @property
    def origin(self) -> Origin | None:
        """How to start over without any checkpoint; None if that is not possible."""
        ...

    @property
    def start_step(self) -> int:
        """The step at which starting over begins."""
        ...


class Ordering(Protocol):
    """In which order the checkpoints of a run are tried."""

    @property
    def doubtful(self) -> Mapping[str, Sequence[int]]:
        """Steps of what is there and not tried, because it may be of a fault, by reason."""
        ...

    def lists(self, refused: dict[str, str]) -> AsyncGenerator[Sequence[Listed]]:
        """What to try, in lists; each is asked of the service when nothing before could be used.

        Args:
            refused: Where it enters what it leaves out for a reason: path to reason.
        """
        ...

    def progress(self, chosen: Listed) -> int:
        """A number that is larger for a newer checkpoint of the same run."""
        ...


@dataclass(slots=True)
class ServiceTime:
    """Adds up the time spent waiting for the service, as opposed to our own."""

    clock: Clock
    total_s: float = 0.0
    _began: float = field(default=0.0)

    def __enter__(self) -> None:
        self._began = self.clock.monotonic()

    def __exit__(self, *_: object) -> None:
        self.total_s += self.clock.monotonic() - self._began


class CheckpointSelection:
    """One choice; see the module."""

    def __init__(
        self,
        run: RestorableRun,
        collaborators: Collaborators,
        waiting: ServiceTime,
        order: Ordering | None = None,
    ) -> None:
        policy = collaborators.policy
        want = wanted(
            policy.checkpoint_strategy,
            metric=policy.checkpoints.best_metric,
            mode=policy.checkpoints.best_mode,
        )
        self._run = run
        self._events = collaborators.events
        self._waiting = waiting
        self._inspector = Inspector(collaborators.reader)
        self._may_compare = not isinstance(want, AtPath | AtStep)
        self._newest = order is None and isinstance(want, Latest)
        self.order = order or BranchOrder(
            run, want, collaborators.reader, waiting, self._read_notes
        )
        """In which order they are tried."""
        self.notes_read: Callable[[], Awaitable[object]] | None = None
        """Waits until the journal's notes are read, if that is done while a list is asked for."""
        self.refused: dict[str, str] = {}
        """What the newest choice passed over: path to reason."""

    async def _read_notes(self) -> None:
        if self.notes_read is not None:
            await self.notes_read()

    def expected(self) -> str | None:
        """Path of the checkpoint that is probably going to be chosen, as far as is known here.

        None if that is not known, or a policy other than "latest" has all of them compared.
        """
        return self._run.checkpoints.newest_trusted(self._run.segments) if self._newest else None

    async def choose(self, *, announce: bool = True) -> Listed | None:
        """The checkpoint to restore, or None to start over.

        Args:
            announce: Whether to emit what is chosen as an event.

        Raises:
            NoUsableCheckpoint: Checkpoints exist and none of them can be used.
            StatusError: The listing could not be read, or cannot be right.
        """
        run = self._run
        self.refused.clear()
        unsettled = run.checkpoints.unsettled()
        unknown: list[Listed] = []
        last: list[Listed] = []
        async with aclosing(self.order.lists(self.refused)) as lists:
            async for candidates in lists:
                known, others = self._by_canary(candidates)
                unknown += others
                last += [each for each in known if each.path in unsettled]
                settled = [each for each in known if each.path not in unsettled]
                if found := await self._first_valid(settled, announce=announce):
                    return found
        # What may still be replaced is good as long as the load is seen to have read what is listed
        # here; but by then it may be another, which costs a load.
        if found := await self._first_valid(last, announce=announce):
            return found
        if self._may_go_unverified():
            if found := await self._first_valid(unknown, announce=announce):
                return found
        elif self.refused:
            self.refused |= {each.path: "its canary was never answered" for each in unknown}
        # Starting over repeats everything, so it is right only where nothing was ever saved:
        # checkpoints that exist and cannot be used are for a person to look at.
        if self.refused:
            raise NoUsableCheckpoint(
                f"run {run.name!r} has checkpoints, and none can be used: "
                + folded(f"{path}: {reason}" for path, reason in self.refused.items())
                + (f"; {_WAY_OUT.format(run.name)}" if run.origin is not None else "")
            )
        if announce and run.origin is not None:
            self._announce(None, f"no checkpoint yet: the run starts over at step {run.start_step}")
        return None

    def _by_canary(self, candidates: Sequence[Listed]) -> tuple[list[Listed], list[Listed]]:
        """Those in whose place wrong weights would be noticed, or need not be; and the others.

        With a canary of the user's it is asked for. With one of our own making, a checkpoint that
        it never answered for is as good as without any canary, until a restore has gone wrong.
        """
        known = self._run.checkpoints
        prompt = known.prompt
        asked_for = prompt.batch is not None and (not prompt.auto or self._seen_bad())
        if not (self._may_compare and asked_for):
            return list(candidates), []
        noticed: list[Listed] = []
        others: list[Listed] = []
        for each in candidates:
            (noticed if known.expects(each.record) else others).append(each)
        return noticed, others

    def _seen_bad(self) -> bool:
        """Whether a restore has been seen to go wrong, of what this choice passes over."""
        return not self._run.checkpoints.bad.keys().isdisjoint(self.refused.keys())

    async def _first_valid(self, candidates: Sequence[Listed], *, announce: bool) -> Listed | None:
        for listed in candidates:
            if await self._is_valid(listed, announce=announce):
                return listed
        return None

    def _may_go_unverified(self) -> bool:
        """Whether to take a checkpoint whose restored weights nothing can be compared with.

        A fault can take the canary's answer on the weights just saved with it. Wrong weights would
        not be noticed then, so such a checkpoint comes last: behind starting over, where they would
        be, and never once a restore has been seen to go wrong.
        """
        known = self._run.checkpoints
        return not self._seen_bad() and (bool(self.refused) or not known.expects(None))

    async def _is_valid(self, listed: Listed, *, announce: bool) -> bool:
        """Whether there is no objection; one is recorded, and the choice is emitted as an event."""
        with phase(names.SPAN_VALIDATE, as_attributes(listed)) as span:
            reason = await self._objection(listed)
            if reason is not None:
                refuse(span, names.BAD_CHECKPOINT, reason)
                self.refused[listed.path] = reason
            elif announce:
                self._announce(listed, f"restores {_described(listed)}")
            return reason is None

    async def _objection(self, listed: Listed) -> str | None:
        with self._waiting:
            return await self._inspector.objection(listed, self._run.checkpoints, self._run.weights)

    def _passed_over(self) -> Mapping[str, Sequence[int | str]]:
        """What is there and is not restored, by reason: its step, or its name."""
        passed: dict[str, list[int | str]] = {}
        for reason, steps in self.order.doubtful.items():
            if steps:
                passed[reason] = sorted(steps)
        stored = self._run.checkpoints.stored
        for path, reason in self.refused.items():
            named = stored[path][1] if path in stored else path.rsplit("/", 1)[-1]
            passed.setdefault(reason, []).append(named)
        return passed

    def _announce(self, chosen: Listed | None, message: str) -> None:
        at = as_attributes(chosen)
        passed = words.passed_over(self._passed_over())
        if chosen is None:
            at = {names.CHECKPOINT_STEP: self._run.start_step}
        self._events.emit(
            names.EVENT_CHECKPOINT_SELECTED,
            self._run.name,
            message + passed,
            at,
            unusual=bool(passed),
        )


class BranchOrder:
    """The checkpoints on the branch a supervised run is on, by what the policy wants."""

    def __init__(
        self,
        run: RestorableRun,
        want: Wanted,
        reader: StatusReader,
        waiting: ServiceTime,
        notes_read: Callable[[], Awaitable[object]] = checkpoint,
    ) -> None:
        self._run = run
        self._notes_read = notes_read
        self._want = want
        self._reader = reader
        self._waiting = waiting
        self.doubtful: dict[str, list[int]] = {}
        """See :class:`Ordering`."""

    def progress(self, chosen: Listed) -> int:
        """Its step."""
        return 0 if chosen.record is None else chosen.record.step

    async def lists(self, refused: dict[str, str]) -> AsyncGenerator[Sequence[Listed]]:
        """The newest segment first, or all together where all have to be compared.

        Raises:
            NoUsableCheckpoint: The one that was asked for is not there.
            StatusError: A listing could not be read, or cannot be right.
        """
        run, want = self._run, self._want
        self.doubtful.clear()
        if isinstance(want, AtPath):
            with phase(names.SPAN_SELECT) as span, self._waiting:
                named = await find_checkpoint(self._reader, want.path)
                span.set_attribute(names.CHECKPOINTS_FOUND, 1)
            yield [Listed.of(named)]
            return
        together: list[CheckpointRecord] = []
        branch, listings = Branch(run.segments), Listings()
        if not isinstance(want, Latest):
            with self._waiting:
                run_ids = {segment.run_id for segment, _ in branch.segments}
                await listings.update(self._reader, run_ids)
        for segment, limit in branch.segments:
            found = await self._on_segment(segment, limit, refused, listings)
            if isinstance(want, Latest):
                yield self._ordered(found, branch, refused)
            else:
                together += found
        candidates = self._ordered(together, branch, refused, root=run.root)
        if isinstance(want, AtStep) and not candidates:
            steps = ", ".join(str(record.step) for record in together) or "none"
            raise NoUsableCheckpoint(
                f"run {run.name!r} has no checkpoint at step {want.step}, which "
                f"checkpoint_strategy asks for; it has them at: {steps}"
            )
        yield candidates

    def _ordered(
        self,
        found: Iterable[CheckpointRecord],
        branch: Branch,
        refused: dict[str, str],
        root: CheckpointRecord | None = None,
    ) -> list[Listed]:
        unusable = self._run.checkpoints.unusable
        chosen = select(self._want, found, branch, root=root, bad=unusable)
        refused |= {path: why for path, why in chosen.passed_over.items() if path in unusable}
        return [Listed.of(record) for record in chosen.candidates]

    async def _on_segment(
        self, segment: Segment, limit: float, refused: dict[str, str], listings: Listings
    ) -> list[CheckpointRecord]:
        """The checkpoints of one segment that the run may be restored from."""
        known = self._run.checkpoints
        with phase(names.SPAN_SELECT, {names.RUN_ID: segment.run_id}) as span:
            if segment.run_id in listings:
                listed = listings.of([segment.run_id])
            else:
                with self._waiting:
                    listed = await list_checkpoints(self._reader, segment.run_id)
            await self._notes_read()
            trusted = min(limit, known.trusted_to(segment.attempt))
            if not listed:
                refused |= await self._ended(segment, trusted)
            if unread := {each.path: str(each.problem) for each in listed if each.record is None}:
                stored = set(known.stored_on(segment, trusted))
                refused |= {path: problem for path, problem in unread.items() if path in stored}
            records = with_canaries([each.record for each in listed if each.record])
            known.learn_canaries(records)
            found = eligible(segment, trusted, records)
            if trusted < limit:
                doubtful = [each.step for each in eligible(segment, limit, records)]
                reason = f"saved after step {trusted:.0f}, the last that is known to be good"
                self.doubtful[reason] = [step for step in doubtful if step > trusted]
            span.set_attribute(names.CHECKPOINTS_FOUND, len(found))
            return found

    async def _ended(self, segment: Segment, trusted: float) -> dict[str, str]:
        """What a segment that the service lists nothing of has lost, as its time was over.

        Raises:
            StatusUnavailable: It has saved what still lives: an empty answer is the service's
                trouble, and no reason to begin again at step 0.
        """
        known, now_s = self._run.checkpoints, self._reader.service_now()
        stored = known.stored_on(segment, trusted)
        ended = {path: why for path in stored if (why := known.ended(path, now_s=now_s))}
        if ended:
            logger.warning("run %s: %s", self._run.name, folded(ended.values()))
        if len(stored) > len(ended):
            said = (
                f"the service lists no checkpoint of Tinker run {segment.run_id}, and has stored "
                f"{len(stored)}, {stored[-1]} for one"
            )
            with self._waiting:
                run_ids = [each.run_id for each in self._run.segments]
                if await self._reader.knows_nothing_of(run_ids):
                    said = unknown_there(self._reader.http.endpoint, self._run.name)
            # It has answered, so it is not out of reach.
            raise StatusUnavailable(said, status_code=ANSWERED)
        return ended


def as_attributes(checkpoint: Listed | None) -> dict[str, str | int]:
    """A checkpoint as attributes of spans and events; empty where the run starts over."""
    if checkpoint is None:
        return {}
    path: dict[str, str | int] = {names.CHECKPOINT_PATH: checkpoint.path}
    record = checkpoint.record
    return path if record is None else {**path, names.CHECKPOINT_STEP: record.step}


def _described(listed: Listed) -> str:
    if listed.record is not None:
        return f"{listed.path}, at step {listed.record.step}"
    return f"{listed.path}, of {listed.stored_at:%Y-%m-%d %H:%M:%S}"
