"""Trust: which weights and checkpoints of a run are what they say they are.

A service can lose weights without a word: it is out of reach for a while, comes back with those of
its last checkpoint, and carries on. What was saved since then, or since any fault began, has the
wrong step number on it. Here it is kept which checkpoints may be gone back to, and with a canary
(a small batch of the user's) the weights are asked after each outage.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from tinker import types

from tinker_recovery.checkpoints import CheckpointRecord, Segment, on_branch
from tinker_recovery.checkpoints.canary import Answer, CanaryBook, answer_of, fingerprint_of
from tinker_recovery.errors import FaultError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.run.attempt import Attempt, Spawn
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)


class Trust:
    """What is known of one run's weights and checkpoints.

    Args:
        run: The run's name, for the log.
        policy: The user's policy.
        start_step: Where the run begins.
        attempts: Every attempt so far, oldest first.
        spawn: Runs something in the background.
    """

    def __init__(
        self,
        run: str,
        *,
        policy: RecoveryPolicy,
        start_step: int,
        attempts: Callable[[], Sequence[Attempt]],
        spawn: Spawn,
    ) -> None:
        self.canaries = CanaryBook(policy.canary_tolerance)
        """What the canary answered at each checkpoint."""
        self.bad: dict[str, str] = {}
        """Checkpoints not to be used again, by path, with what is wrong with each."""
        self.being_deleted: dict[str, str] = {}
        """Checkpoints whose deletion has begun and may have happened, by path."""
        self.fingerprints: dict[tuple[str, int], str] = {}
        """What the canary answered at the (attempt, step) of each save of this process."""
        self.noted_canaries: dict[str, str] = {}
        """What earlier processes noted of the canary's answers: fingerprints, by path."""
        self.sizes: dict[str, int] = {}
        """Bytes of each checkpoint when it was first seen, by path."""
        self._run = run
        self._has_canary = policy.canary is not None
        self._attempts = attempts
        self._spawn = spawn
        self._began: tuple[str | None, str, int] | None = None
        self._unanswered: set[str] = set()
        self._limits: dict[str, float] = {}
        self._stored: dict[str, tuple[str, int]] = {}
        self._confirmed_step = start_step
        self._sound_step = start_step
        self._outage_from: int | None = None
        self._open_at_outage = 0
        self._looking = False

    def note_began(self, attempt: Attempt) -> None:
        """The run begins with this attempt, afresh or from the checkpoint the user named."""
        self._began = attempt.segment.parent, attempt.id, attempt.start_step

    def take_over(self, limits: Mapping[str, float], stored: Mapping[str, tuple[str, int]]) -> None:
        """Take over what an earlier process knew: limits by attempt, what is stored by path."""
        self._limits.update(limits)
        self._stored.update(stored)

    @property
    def sound_to(self) -> float:
        """The last step that no outage speaks against; infinite while there is none."""
        outage_from = self._outage_from
        return math.inf if outage_from is None else outage_from

    @property
    def polled_step(self) -> int:
        """The newest step saved when the service last called the run sound."""
        return self._sound_step

    def note_saved(self, step: int) -> None:
        """A checkpoint of the current attempt is stored, and nothing speaks against it."""
        self._confirmed_step = max(step, self._confirmed_step)

    def stored_on(self, segment: Segment, limit: float) -> list[str]:
        """Paths of the checkpoints of a segment that the service said it has stored."""
        return [
            path
            for path, (attempt, step) in self._stored.items()
            if attempt == segment.attempt and step <= limit and path not in self.bad
        ]

    def note_path(self, attempt: Attempt, step: int, path: str) -> None:
        """The service says it has stored a checkpoint here."""
        self._stored[path] = attempt.id, step

    def path_of(self, attempt: Attempt, step: int) -> str | None:
        """Where the service said it stored the save of an attempt at a step."""
        at = attempt.id, step
        return next((path for path, stored in self._stored.items() if stored == at), None)

    def learn_canaries(self, records: Iterable[CheckpointRecord]) -> None:
        """Take over what listed checkpoints, and the journal, say that the canary answered."""
        for record in records:
            said = record.canary or self.noted_canaries.get(record.path)
            if said is not None:
                self.canaries.learn(record.attempt, record.step, said)

    def note_canary(self, attempt: Attempt, step: int, output: types.ForwardBackwardOutput) -> None:
        """The canary was run on the weights of a checkpoint."""
        answer = answer_of(output)
        fingerprint = fingerprint_of(answer)
        # What is no number says nothing of the weights, and no later answer would be equal to it.
        if fingerprint is not None:
            self.canaries.record(attempt.id, step, answer)
            # The next checkpoint tells of it, so that any later process can compare.
            attempt.saver.canary = step, fingerprint
            self.fingerprints[attempt.id, step] = fingerprint

    def note_resumed(self, start_step: int) -> None:
        """A new attempt has taken over, on weights that were looked at."""
        self._outage_from, self._looking = None, False
        self._confirmed_step = self._sound_step = start_step

    def note_unreachable(self, current: Attempt | None) -> None:
        """The service could not be reached: what it holds may be older when it comes back."""
        if self._outage_from is None:
            self._outage_from = self._confirmed_step
            self._open_at_outage = 0 if current is None else current.client.run_canary_next()

    def note_reachable(self, current: Attempt) -> None:
        """The service answers, and calls the run sound; after an outage that is not enough."""
        self._sound_step = self._confirmed_step
        if self._outage_from is None or self._looking:
            return
        if not self._has_canary:
            self._outage_from = None
        elif self._open_at_outage:
            self._give_up_on(current, self._outage_from)
        else:
            self._looking = True
            self._spawn(functools.partial(self._look, current, self._outage_from))

    async def settle(self, current: Attempt) -> None:
        """See, before the run is over, whether an outage nobody has looked into changed it."""
        if self._outage_from is None or not self._has_canary:
            return
        if self._open_at_outage:
            self._give_up_on(current, self._outage_from)
        else:
            await self._look(current, self._outage_from)

    def expects(self, checkpoint: CheckpointRecord | None) -> bool:
        """Whether it is known what the canary says on weights restored from there."""
        at = self._answered_at(checkpoint)
        return at is not None and self.canaries.expects(*at)

    def objection(self, checkpoint: CheckpointRecord | None, answer: Answer) -> str | None:
        """Why this answer speaks against weights just restored from there; None if it does not.

        Args:
            checkpoint: What they were restored from; None if the run started over.
            answer: What the canary said.
        """
        at = self._answered_at(checkpoint)
        return None if at is None else self.canaries.objection(answer, *at)

    def condemns(self, checkpoint: CheckpointRecord, answer: Answer) -> bool:
        """Whether an answer that speaks against a restore speaks against its checkpoint as well.

        One that is no number does from the second time on: once it may be the service's doing.
        """
        if fingerprint_of(answer) is not None or checkpoint.path in self._unanswered:
            return True
        self._unanswered.add(checkpoint.path)
        return False

    def _answered_at(self, checkpoint: CheckpointRecord | None) -> tuple[str, int] | None:
        if checkpoint is None or (self._began is not None and checkpoint.path == self._began[0]):
            # Where the run began is known by what its first client answered before any step.
            return None if self._began is None else self._began[1:]
        return checkpoint.attempt, checkpoint.step

    def distrust_since(self, fault: Fault, current: Attempt) -> None:
        """What was saved since the fault began is not what its step number says.

        That counts from the outage before it, if nobody has looked into that yet; what the client
        knows of its own requests comes on top (``first_doubtful_step``).
        """
        steps = [] if self._outage_from is None else [self._outage_from]
        if fault.detected_by is DetectedBy.POLL:
            # It may have begun right after the poll before this one.
            steps.append(self._sound_step)
        if fault.kind is Kind.LOSS_NOT_FINITE and fault.failed_step is not None:
            # Weights of one step earlier gave a loss that was finite.
            steps.append(fault.failed_step - 1)
        if steps:
            self._distrust(current, min(steps))

    def trusted_to(self, segment: Segment) -> float:
        """The last step of a segment whose checkpoints may be gone back to."""
        limit = self._limits.get(segment.attempt, math.inf)
        for attempt in self._attempts():
            if attempt.id == segment.attempt and attempt.faulty:
                return min(limit, attempt.client.first_doubtful_step)
        return limit

    def _distrust(self, attempt: Attempt, above_step: float) -> None:
        self._limits[attempt.id] = min(above_step, self._limits.get(attempt.id, math.inf))

    def _give_up_on(self, current: Attempt, trusted_step: int) -> None:
        # Whatever was under way may have been applied to older weights since, and then the canary
        # answers as it never did before. Exact is to go back.
        self._distrust(current, trusted_step)
        current.declare(
            RULES[Kind.ROLLED_BACK],
            DetectedBy.CANARY,
            FaultError(
                f"the service was out of reach with {self._open_at_outage} requests under way, so "
                "nothing can tell which weights they were applied to",
                kind=Kind.ROLLED_BACK.value,
            ),
        )

    async def _look(self, attempt: Attempt, trusted_step: int) -> None:
        """After an outage: are the weights still those of the newest step?"""
        # Only checkpoints known before the outage: what was saved since may be of either state.
        branch = [at for at in self._known_on_branch() if at[1] <= trusted_step]
        if attempt.faulty or attempt.closed or (asked := attempt.client.run_canary()) is None:
            return
        looking, step = asked
        try:
            answer = answer_of(await result_of(looking))
        except Exception:  # noqa: BLE001 - a request like any other: the call's own ear hears of it
            return
        finally:
            self._looking = False
        back_to = self.canaries.rolled_back_to(answer, step, branch)
        if back_to is None:
            self._outage_from = None
            return
        logger.warning(
            "run %s: %d steps are submitted, and the weights are those of step %d",
            self._run,
            step,
            back_to,
        )
        self._distrust(attempt, trusted_step)
        attempt.declare(RULES[Kind.ROLLED_BACK], DetectedBy.CANARY)

    def _known_on_branch(self) -> list[tuple[str, int]]:
        attempts = self._attempts()
        by_run = {each.run_id: each for each in attempts}
        return [
            at
            for segment, limit in on_branch([each.segment for each in attempts])
            for at in self.canaries.known(by_run[segment.run_id].id)
            if at[1] <= limit
        ]
