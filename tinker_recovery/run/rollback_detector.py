"""The RollbackDetector: notices that the service has lost weights, and since when.

A service can lose weights and not say so: it is out of reach for a while, comes back with those of
its last checkpoint, and carries on. What was saved since then, or since any fault began, has the
wrong step number on it. With a canary (a small batch of the user's) the weights are looked at after
each outage; what is found out goes into the run's :class:`CheckpointState`.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import TYPE_CHECKING

from tinker_recovery.checkpoints import on_branch
from tinker_recovery.checkpoints.canary import answer_of
from tinker_recovery.errors import FaultError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.service.waiting import result_of
from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(names.SCOPE)


class RollbackDetector:
    """Watches one run for weights that are older than its steps."""

    def __init__(self, run: SupervisedRun) -> None:
        self._run = run
        self._sound_step = run.start_step
        self._outage_from: int | None = None
        self._open_at_outage = 0
        self._looking = False

    @property
    def sound_to(self) -> float:
        """The last step before an outage not looked into yet; infinite where there is none."""
        outage_from = self._outage_from
        return math.inf if outage_from is None else outage_from

    @property
    def polled_step(self) -> int:
        """The newest step saved when the service last called the run sound."""
        return self._sound_step

    def confirmed_to(self, attempt_id: str) -> float:
        """The last step of an attempt that stays trusted whatever fault is found next.

        What the next answer or the next poll may still cast doubt on is above it.
        """
        current = self._run.current
        if current is None or current.id != attempt_id or current.finished:
            return math.inf
        limits = [self.sound_to, current.client.first_doubtful_step, self._sound_step]
        if self._run.policy.guard_loss:
            # The loss of a step shows whether the weights it began with are finite, and the loop
            # reports its own when the step is done.
            limits.append(current.start_step + current.saver.steps_done() - 2)
        return min(limits)

    @property
    def _confirmed_step(self) -> int:
        """The newest stored save of the current attempt that nothing before it casts doubt on."""
        current = self._run.current
        if current is None:
            return self._run.start_step
        doubtful = current.client.first_doubtful_step
        stored = self._run.checkpoints.stored.values()
        steps = [step for of, step in stored if of == current.id and step <= doubtful]
        return max(steps, default=current.start_step)

    def note_resumed(self, start_step: int) -> None:
        """A new attempt has taken over, on weights that were looked at."""
        self._outage_from, self._looking = None, False
        self._sound_step = start_step

    def note_unreachable(self, current: AttemptScope | None) -> None:
        """The service could not be reached: what it holds may be older when it comes back."""
        if self._outage_from is None:
            self._outage_from = self._confirmed_step
            self._open_at_outage = 0 if current is None else current.client.run_canary_next()

    def note_reachable(self, current: AttemptScope) -> None:
        """The service answers, and calls the run sound; after an outage that is not enough."""
        confirmed_step = self._confirmed_step
        if confirmed_step > self._sound_step:
            self._sound_step = confirmed_step
            self._run.changed(self._run)  # more of what is stored can be relied on
        if self._outage_from is None or self._looking:
            return
        if self._run.policy.canary is None:
            self._outage_from = None
        elif self._open_at_outage:
            self._give_up_on(current, self._outage_from)
        else:
            self._looking = True
            self._run.spawn(functools.partial(self._look, current, self._outage_from))

    async def settle(self, current: AttemptScope) -> None:
        """See, before the run is over, whether an outage not looked into yet changed it."""
        if self._outage_from is None or self._run.policy.canary is None:
            return
        if self._open_at_outage:
            self._give_up_on(current, self._outage_from)
        else:
            await self._look(current, self._outage_from)

    def distrust_since(self, fault: Fault, current: AttemptScope) -> None:
        """What was saved since the fault began is not what its step number says.

        That counts from the outage before it, if that was not looked into yet; what the client
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
            self._run.checkpoints.distrust(current.id, min(steps))

    def _give_up_on(self, current: AttemptScope, trusted_step: int) -> None:
        # Whatever was under way may have been applied to older weights since, and then the canary
        # answers as it never did before. Exact is to go back.
        self._run.checkpoints.distrust(current.id, trusted_step)
        current.declare_fault(
            RULES[Kind.ROLLED_BACK],
            DetectedBy.CANARY,
            FaultError(
                f"the service was out of reach with {self._open_at_outage} requests under way, so "
                "nothing can tell which weights they were applied to",
                kind=Kind.ROLLED_BACK.value,
            ),
        )

    async def _look(self, attempt: AttemptScope, trusted_step: int) -> None:
        """After an outage: are the weights still those of the newest step?"""
        # Only checkpoints known before the outage: what was saved since may be of either state.
        branch = [at for at in self._known_on_branch() if at[1] <= trusted_step]
        if attempt.faulty or attempt.closed or (asked := attempt.client.run_canary()) is None:
            return
        looking, step = asked
        try:
            answer = answer_of(await result_of(looking))
        except Exception:  # noqa: BLE001 - a request like any other: its failure is reported where it was made
            return
        finally:
            self._looking = False
        back_to = self._run.checkpoints.canaries.rolled_back_to(answer, step, branch)
        if back_to is None:
            self._outage_from = None
            return
        logger.warning(
            "run %s: %d steps are submitted, and the weights are those of step %d",
            self._run.name,
            step,
            back_to,
        )
        self._run.checkpoints.distrust(attempt.id, trusted_step)
        attempt.declare_fault(RULES[Kind.ROLLED_BACK], DetectedBy.CANARY)

    def _known_on_branch(self) -> list[tuple[str, int]]:
        segments = [attempt.segment for attempt in self._run.attempts]
        return [
            at
            for segment, limit in on_branch(segments)
            for at in self._run.checkpoints.canaries.known(segment.attempt)
            if at[1] <= limit
        ]
