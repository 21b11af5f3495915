"""CheckpointState: what is known of a run's checkpoints, from every source, in one place.

The process that trains, the processes before it, the journal and the service's listing all add to
it; choosing, restoring, retention and the dry run read it. Only :class:`RollbackDetector` of the
``run`` room finds out more by itself.
"""

from __future__ import annotations

import functools
import logging
import math
from collections import ChainMap, Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal, Protocol, Self

from tinker import types

from tinker_recovery.checkpoints import (
    CheckpointRecord,
    Deletion,
    DeletionLedger,
    Segment,
    WeightsFacts,
    on_branch,
)
from tinker_recovery.checkpoints.canary import (
    DIFFERENT_BEYOND,
    SAME_WITHIN,
    Answer,
    CanaryBook,
    Match,
    fingerprint_of,
)
from tinker_recovery.checkpoints.prompt import CanaryPrompt, PromptFacts
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import Notes
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.service.listing import Listings
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

SCHEDULED = "step-"
"""How the names of checkpoints begin that the schedule saved."""

NOT_KNOWN = "no answer of the canary is known of the weights that were saved there"
"""Why nothing can tell whose weights were restored."""

_BEING_DELETED = "its deletion was begun"

LOADS_TRIED = 2
"""How often a checkpoint may fail to load, or be replaced meanwhile, before the next is used."""


class KnownRun(Protocol):
    """A run as far as its checkpoints go: under way here, watched, or one of another process."""

    @property
    def name(self) -> str:
        """The run's name."""
        ...

    @property
    def segments(self) -> Sequence[Segment]:
        """Every Tinker run it has lived in, oldest first."""
        ...

    @property
    def weights(self) -> WeightsFacts:
        """What the service says its weights are, as far as that is known."""
        ...

    @property
    def checkpoints(self) -> CheckpointState:
        """What is known of its checkpoints."""
        ...


class CheckpointState:
    """What is known of the checkpoints of one run.

    A method that takes the collaborators reads or writes the journal; nothing else here waits.

    Args:
        run: The run's name, for the log.
        lineage: The run's id, by which the journal has its prompt.
        canary: The policy's.
        canary_tolerance: The largest distance of two canary answers that count as equal.
    """

    def __init__(
        self,
        run: str,
        *,
        lineage: str = "",
        canary: Sequence[types.Datum] | Literal["auto"] | None = None,
        canary_tolerance: float = 0.0,
    ) -> None:
        self.run = run
        self.prompt = CanaryPrompt(canary)
        """What the canary asks, as far as it is known by now."""
        self.bad: dict[str, str] = {}
        """Rejected checkpoints, never to be used again: path to reason."""
        self.being_deleted: dict[str, str] = {}
        """Checkpoints whose deletion has begun and may have happened: path to reason."""
        self.sizes: dict[str, int] = {}
        """Bytes of each checkpoint at first sight, by path."""
        self.limits: dict[str, float] = {}
        """"Trusted up to": the last step that may be restored, by attempt; no entry, no limit."""
        self.stored: dict[str, tuple[str, int]] = {}
        """Attempt and step of the checkpoints that the service said it has stored, by path."""
        self._ends: dict[str, float] = {}
        self.listings = Listings()
        """What the service has listed of it, for retention."""
        self.canaries = CanaryBook(canary_tolerance)
        """What the canary answered at each checkpoint."""
        self.fingerprints: dict[tuple[str, int], str] = {}
        """What the canary answered at the (attempt, step) of each save of this process."""
        self.noted_canaries: dict[str, str] = {}
        """The same, as the journal has it: by path, of any process."""
        self._noted_prompts: dict[str, str] = {}
        self._lineage = lineage
        self._facts_written = ""
        self._unwritten = ""
        self.began: tuple[str | None, str, int] | None = None
        """Checkpoint, attempt and step the run began with in this process; None before."""
        self.first_doubtful_step: Callable[[str], float] = lambda _: math.inf
        """What an attempt of this process knows of its own requests, after a fault of it."""
        self.confirmed_to: Callable[[str], float] = lambda _: math.inf
        """The last step of an attempt that stays trusted whatever fault is found next."""
        self.unsettled: Callable[[], Collection[str]] = tuple
        """Paths that a save of an earlier attempt of this process may still write to."""
        self.skipped: dict[str, str] = {}
        """Checkpoints passed over until the run is recovered, as loading them failed: to reason."""
        self._failed_loads: Counter[str] = Counter()
        self._not_finite: set[str] = set()

    @classmethod
    def by(cls, policy: RecoveryPolicy, run: str, lineage: str) -> Self:
        """Of a run with this policy's canary."""
        return cls(
            run,
            lineage=lineage,
            canary=policy.canary,
            canary_tolerance=policy.canary_tolerance,
        )

    def watch(
        self,
        first_doubtful_step: Callable[[str], float],
        confirmed_to: Callable[[str], float],
        unsettled: Callable[[], Collection[str]],
    ) -> None:
        """Ask a run under way here as well as what is kept: the first two by attempt id."""
        self.first_doubtful_step = first_doubtful_step
        self.confirmed_to = confirmed_to
        self.unsettled = unsettled

    @property
    def unusable(self) -> Mapping[str, str]:
        """What must not be relied on: rejected, skipped or being deleted. Path to reason."""
        return ChainMap(self.bad, self.being_deleted, self.skipped)

    # How far an attempt is trusted

    def trusted_to(self, attempt: str) -> float:
        """The last step of an attempt whose checkpoints may be restored."""
        return min(self.limits.get(attempt, math.inf), self.first_doubtful_step(attempt))

    def settled_to(self, attempt: str) -> float:
        """The last step of an attempt whose checkpoints stay trusted, whatever fault is next."""
        return min(self.trusted_to(attempt), self.confirmed_to(attempt))

    def settled_on(self, segments: Sequence[Segment]) -> dict[int, list[str]]:
        """Paths of a run's stored checkpoints that stay trusted whatever fault is next, by step."""
        unusable = self.unusable
        limits = {
            segment.attempt: min(limit, self.settled_to(segment.attempt))
            for segment, limit in on_branch(segments)
        }
        found: dict[int, list[str]] = {}
        for path, (attempt, step) in self.stored.items():
            if step <= limits.get(attempt, -1) and path not in unusable:
                found.setdefault(step, []).append(path)
        return found

    def newest_trusted(
        self, segments: Sequence[Segment], *, newest_to: float = math.inf
    ) -> str | None:
        """Path of the newest checkpoint that may be restored, as far as is known here.

        None if there is none, or another save may take the place of the one there is.

        Args:
            segments: Every one of the run, oldest first.
            newest_to: The last step to consider of the newest.
        """
        left_out = {*self.unusable, *self.unsettled()}
        limits = {
            segment.attempt: min(limit, self.trusted_to(segment.attempt))
            for segment, limit in on_branch(segments)
        }
        if segments:
            limits[segments[-1].attempt] = min(limits[segments[-1].attempt], newest_to)
        trusted = (
            (step, path)
            for path, (attempt, step) in self.stored.items()
            if step <= limits.get(attempt, -1) and path not in left_out
        )
        _, newest = max(trusted, default=(0, None))
        return newest if newest is not None and _is_scheduled(newest) else None

    def distrust(self, attempt: str, above_step: float) -> None:
        """What an attempt saved above this step is not what its step number says."""
        self.limits[attempt] = min(above_step, self.limits.get(attempt, math.inf))

    # What does not load

    def note_load_failed(self, path: str, reason: str) -> bool:
        """Loading failed, and may work later; returns whether to pass it over from now on.

        That is after the second time. A later incident tries it again.
        """
        self._failed_loads[path] += 1
        if self._failed_loads[path] >= LOADS_TRIED:
            self.skipped[path] = reason
        return path in self.skipped

    def note_recovered(self) -> None:
        """The incident is over: what was passed over in it may be tried again."""
        self.skipped.clear()
        self._failed_loads.clear()

    # What the service said it has stored

    def stored_on(self, segment: Segment, limit: float) -> list[str]:
        """Paths of the checkpoints of a segment up to a step that the service has stored."""
        return [
            path
            for path, (attempt, step) in self.stored.items()
            if attempt == segment.attempt and step <= limit and path not in self.bad
        ]

    def note_replaced(self, path: str) -> None:
        """Something that is of no step was saved there."""
        self.stored.pop(path, None)

    def note_lifetime(self, path: str, ends: float) -> None:
        """A checkpoint ends at this time of the service's, if the schedule saved it.

        How long a save of the user's own lives is for the user to say.
        """
        if _is_scheduled(path):
            self._ends[path] = ends

    def ended(self, path: str, *, now_s: float) -> str | None:
        """That the lifetime of a checkpoint is over, in words; None if it is not, or not known.

        Args:
            path: The checkpoint.
            now_s: The service's time.
        """
        ends = self._ends.get(path, math.inf)
        if ends > now_s:
            return None
        return (
            "the service no longer lists it, and its lifetime (ttl_s) ended at "
            f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M:%S}"
        )

    def path_of(self, attempt: str, step: int) -> str | None:
        """Where the service said it stored the save of an attempt at a step."""
        at = attempt, step
        return next((path for path, stored in self.stored.items() if stored == at), None)

    # What the canary answers

    def learn_canaries(self, records: Iterable[CheckpointRecord]) -> None:
        """Take over the canary's answers from listed checkpoints, and from the journal's notes.

        Only those to this run's prompt: to another, the same weights give other answers. Where the
        prompt is yet to be known, it is the one that the newest checkpoint has with it.
        """
        records = sorted(records, key=lambda record: record.step, reverse=True)
        for record in records:
            self._know(record.canary_prompt)
        for record in records:
            said, of = record.canary, record.canary_about and record.canary_about.digest
            # The user may have saved anew under that name since it was noted.
            noted = record.saved_by == "schedule"
            if noted and (said is None or of != self.prompt.digest):
                said = self.noted_canaries.get(record.path)
                of = self._noted_prompts.get(record.path)
            if said is not None and of == self.prompt.digest:
                self.canaries.learn(record.attempt, record.step, said)

    def _know(self, facts: PromptFacts | None) -> None:
        """Take over what an earlier process knew of the prompt, and of the answers' noise."""
        if facts is None:
            return
        self.prompt.make_of(facts.tokens)
        if facts.digest == self.prompt.digest:
            self.canaries.know_noise(facts.noise)

    def prompt_facts(self) -> PromptFacts | None:
        """What a later process has to know of the prompt; None without one."""
        if self.prompt.batch is None:
            return None
        return PromptFacts(self.prompt.digest, self.canaries.noise, self.prompt.tokens)

    def note_canary(self, attempt: str, step: int, answer: Answer) -> str | None:
        """The canary was run on the weights of a save; returns the fingerprint of its answer.

        None for an answer that is not finite: it says nothing of the weights, and no later answer
        would be equal to it.
        """
        fingerprint = fingerprint_of(answer)
        if fingerprint is not None:
            self.canaries.record(attempt, step, answer)
            self.fingerprints[attempt, step] = fingerprint
        return fingerprint

    def expects(self, checkpoint: CheckpointRecord | None) -> bool:
        """Whether it is known what the canary answers on weights restored from there.

        Args:
            checkpoint: What they are restored from; None if the run starts over.
        """
        at = self._answered_at(checkpoint)
        return at is not None and self.canaries.expects(*at)

    def compare_canary(
        self, checkpoint: CheckpointRecord | None, answers: Sequence[Answer]
    ) -> tuple[Match, str]:
        """Whether weights that answer so are those of the checkpoint, and why if not surely.

        Args:
            checkpoint: What they were restored from; None if the run started over.
            answers: What the canary answered on them, each time it was asked.
        """
        at = self._answered_at(checkpoint)
        if at is None or not self.canaries.expects(*at):
            return Match.UNCLEAR, NOT_KNOWN
        match, apart = self.canaries.compare(answers, *at)
        times = {Match.DIFFERENT: DIFFERENT_BEYOND, Match.UNCLEAR: SAME_WITHIN}.get(match)
        if times is None:
            return match, ""
        begins = "may not be" if match is Match.UNCLEAR else "are not"
        return match, (
            f"the weights it restores {begins} the ones that were saved: asked {len(answers)} "
            f"times, the canary's logprobs differ by {apart:.3g} at least, and the noise of this "
            f"service explains {times * self.canaries.noise:.3g}"
        )

    def rejects(self, checkpoint: CheckpointRecord, answers: Sequence[Answer]) -> bool:
        """Whether answers that are an objection to the weights reject their checkpoint as well.

        Those that are not finite do from the second restore on: once it may be the service's doing.
        """
        finite = any(fingerprint_of(answer) is not None for answer in answers)
        if finite or checkpoint.path in self._not_finite:
            return True
        self._not_finite.add(checkpoint.path)
        return False

    def _answered_at(self, checkpoint: CheckpointRecord | None) -> tuple[str, int] | None:
        if checkpoint is None or (self.began is not None and checkpoint.path == self.began[0]):
            # Where the run began is known by what its first client answered before any step.
            return None if self.began is None else self.began[1:]
        return checkpoint.attempt, checkpoint.step

    # What the journal has noted

    async def read(self, collaborators: Collaborators) -> Notes:
        """Take over what any process has noted of the service's checkpoints; returns the notes.

        Raises:
            JournalError: The journal cannot be used.
        """
        notes = await collaborators.notebook.notes()
        self.bad.update(notes.bad)
        self.sizes.update(notes.sizes)
        self.noted_canaries.update(notes.canaries)
        self._noted_prompts.update(notes.canary_prompts)
        if self._lineage in notes.prompts:
            self._know(PromptFacts.parse(notes.prompts[self._lineage]))
        collaborators.reader.metadata.recall(notes.keeps_metadata, notes.metadata)
        ledger = DeletionLedger.from_lines(notes.deletions.values())
        being_deleted = ledger.being_deleted(now_s=collaborators.clock.wall())
        self.being_deleted = dict.fromkeys(being_deleted, _BEING_DELETED)
        return notes

    async def refresh(self, collaborators: Collaborators) -> None:
        """:meth:`read`, for a recovery: a journal that cannot be read is logged, not raised."""
        with self._logged():
            await self.read(collaborators)

    def note_deletion(self, entry: Deletion, *, now_s: float) -> None:
        """The journal has this line of a deletion now."""
        if DeletionLedger({entry.path: entry}).being_deleted(now_s=now_s):
            self.being_deleted[entry.path] = _BEING_DELETED
        else:
            self.being_deleted.pop(entry.path, None)
        if entry.state == "deleted":
            self._forget(entry.path)

    def _forget(self, path: str) -> None:
        """A checkpoint is gone: neither a recovery nor the service can go back to it any more."""
        at = self.stored.pop(path, None)
        if at is not None and at not in self.stored.values():
            self.canaries.forget(*at)
            self.fingerprints.pop(at, None)

    async def reject(self, path: str, reason: str, collaborators: Collaborators) -> None:
        """Never use a checkpoint again, in this process or a later one; emits an event.

        A journal that cannot be written is logged: this process knows, and what matters now is the
        recovery.
        """
        self.bad[path] = reason
        with self._logged():
            await collaborators.notebook.mark_bad(path, reason)
        collaborators.events.emit(
            names.EVENT_CHECKPOINT_BAD,
            self.run,
            f"{path} is not used again: {reason}",
            {names.CHECKPOINT_PATH: path, names.REASON: reason},
        )

    def write_canary(self, attempt: str, step: int, collaborators: Collaborators) -> None:
        """Note the canary's answer at a save, in the background, once answer and path are known."""
        path, said = self.path_of(attempt, step), self.fingerprints.get((attempt, step))
        if path is not None and said is not None:
            collaborators.spawn(functools.partial(self._write_canary, path, said, collaborators))

    async def _write_canary(self, path: str, said: str, collaborators: Collaborators) -> None:
        with self._logged():
            await collaborators.notebook.note_canary(path, said, self.prompt.digest)

    def write_prompt(self, collaborators: Collaborators) -> None:
        """Note in the background what is known of the prompt, if that has changed."""
        facts = str(self.prompt_facts() or "")
        if facts != self._facts_written:
            self._facts_written = facts
            collaborators.spawn(functools.partial(self._write_prompt, facts, collaborators))

    async def _write_prompt(self, facts: str, collaborators: Collaborators) -> None:
        with self._logged():
            await collaborators.notebook.note_prompt(self._lineage, facts)

    @contextmanager
    def _logged(self) -> Iterator[None]:
        try:
            yield
        except JournalError as error:
            # A disk stays full for long: once is enough, until something could be written again.
            level = logging.DEBUG if str(error) == self._unwritten else logging.ERROR
            self._unwritten = str(error)
            logger.log(level, "run %s: %s", self.run, error)
        else:
            self._unwritten = ""


def _is_scheduled(path: str) -> bool:
    return path.rpartition("/")[2].startswith(SCHEDULED)
