"""The RollbackDetector: notices that the service has lost weights, and since when.

A service can lose weights and not say so: it is out of reach for a while, comes back with those of
its last checkpoint, and carries on. What was saved since then, or since any fault began, has the
wrong step number on it. With a canary the weights are looked at after each outage; where that tells
nothing, the policy's ``on_outage`` decides. What is found out goes into the run's
:class:`CheckpointState`.
"""

from __future__ import annotations

import functools
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.checkpoints import on_branch
from tinker_recovery.checkpoints.canary import Match, answer_of
from tinker_recovery.errors import FaultError
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.service import sdk_requests
from tinker_recovery.service.http import Unreached
from tinker_recovery.service.waiting import ended, result_of
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.text import counted, is_are

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope
    from tinker_recovery.run.supervised import SupervisedRun

logger = logging.getLogger(names.SCOPE)


MOMENT_S = 0.5
"""Connections refused for this long are an outage in which the service may have been restarted."""

LONG_S = 5.0
"""A service that did not answer for this long may have been restarted; else it was busy."""


@dataclass(slots=True)
class _Outage:
    """Time in which the service was out of reach, or may have been.

    Attributes:
        since_step: The newest step whose checkpoint is from before it.
        open_requests: How many requests of the loop were open when it was noticed.
        seen: When requests of ours met it, the first and the last time; None for a mere hint.
        refused: The same of those whose connections were refused.
        down: Whether any of them was more than an answer that did not come in time.
        unserved: Whether all that was met is answers of HTTP 502, 503 or 504.
        heard: Whether requests of the SDK's may have met it as well.
    """

    since_step: int
    open_requests: int
    seen: tuple[float, float] | None = None
    refused: tuple[float, float] | None = None
    down: bool = False
    unserved: bool = True
    heard: bool = False

    def note(self, now: float, how: Unreached) -> None:
        """A request of ours met it."""
        self.down = self.down or how != "silent"
        self.unserved = self.unserved and how == "unserved"
        self.seen = (now if self.seen is None else self.seen[0], now)
        if how == "refused":
            self.refused = (now if self.refused is None else self.refused[0], now)

    @property
    def lasted_s(self) -> float:
        """For how long it is known to have lasted."""
        return 0.0 if self.seen is None else self.seen[1] - self.seen[0]

    @property
    def met_open(self) -> bool:
        """Whether it may have been met by requests of the loop's.

        The SDK polls all the time for what is open, and hears of a proxy at once that the service
        is gone. Where only requests of ours were answered so, it was their route alone.
        """
        return self.open_requests > 0 and (self.heard or not self.unserved)

    @property
    def met_down(self) -> bool:
        """Whether requests were under way while a proxy or a broken connection said it was down."""
        return self.met_open and self.down

    @property
    def met_requests(self) -> bool:
        """Whether requests may have been applied to older weights since.

        Then the canary answers as it never did before.
        """
        return self.met_open and (self.refused is not None or self.lasted_s >= LONG_S)

    @property
    def refused_s(self) -> float:
        """For how long connections are known to have been refused."""
        return 0.0 if self.refused is None else self.refused[1] - self.refused[0]


class RollbackDetector:
    """Watches one run for weights that are older than its steps."""

    def __init__(self, run: SupervisedRun) -> None:
        self._run = run
        self._sound_step = run.start_step
        self._outage: _Outage | None = None
        self._looking = False
        self._warned_of_cut = False
        self._next_hint_at = -math.inf
        self.corrupted: AttemptScope | None = None
        """The attempt that a poll has found corrupted, be it declared or not."""
        # Where the SDK's requests cannot be listened to, they may have met anything.
        self._heard_at = -math.inf if sdk_requests.is_possible() else math.inf
        self._heard_since = -math.inf
        self._saves_succeed = True
        self._known_at: dict[int, float] = {}  # by step; only of the newest saves

    @property
    def sound_to(self) -> float:
        """The last step before an outage not looked into yet; infinite where there is none."""
        return math.inf if self._outage is None else self._outage.since_step

    @property
    def is_out_of_reach(self) -> bool:
        """Whether requests of ours have met an outage that is not looked into yet."""
        return self._outage is not None and self._outage.seen is not None

    @property
    def in_doubt(self) -> bool:
        """Whether the service has yet to say if the newest attempt's weights are what they were."""
        return self.is_out_of_reach or self.corrupted is self._run.current is not None

    @property
    def polled_step(self) -> int:
        """The newest step saved when the service was asked that last called the run sound."""
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

    def _confirmed_step(self, known_at_s: float) -> int:
        """The newest save of the current attempt that nothing before it casts doubt on.

        Args:
            known_at_s: It was known to be stored by then: what the service says when it is asked
                tells nothing of what it does until its answer is here.
        """
        current = self._run.current
        if current is None:
            return self._run.start_step
        doubtful = current.client.first_doubtful_step
        stored = self._run.checkpoints.stored.values()
        known_at = self._known_at
        steps = [
            step
            for of, step in stored
            if of == current.id and step <= doubtful and known_at.get(step, -math.inf) <= known_at_s
        ]
        return max(steps, default=current.start_step)

    def note_stored(self, step: int) -> None:
        """The service has said that it has stored a save of the current attempt."""
        now = self._run.clock.monotonic()
        # What was stored before any request now under way was sent needs no time.
        under_way_s = 2 * self._run.policy.status_timeout_s
        for old in [each for each, at in self._known_at.items() if at < now - under_way_s]:
            del self._known_at[old]
        self._known_at.setdefault(step, now)
        self._saves_succeed = True

    def note_resumed(self, start_step: int) -> None:
        """A new attempt has taken over, on weights that were looked at."""
        self._outage, self._looking = None, False
        self._sound_step = start_step
        self._known_at.clear()

    def note_unreachable(
        self, current: AttemptScope | None, how: Unreached, waited_s: float = 0.0
    ) -> None:
        """The service could not be reached: what it holds may be older when it comes back.

        Args:
            current: The attempt that trains.
            how: How it could not.
            waited_s: How long a request had waited by then; the outage may have begun with it.
        """
        now = self._run.clock.monotonic()
        if self._outage is None or self._outage.seen is None:
            open_requests = 0 if current is None else current.client.run_canary_next()
            self._outage = _Outage(self._confirmed_step(now - waited_s), open_requests)
            self._drop_spare()
            # Whoever met it first, it is the same.
            self._outage.heard = self._heard_at >= now - waited_s - self._lately_s
        self._outage.note(now, how)

    def note_heard(self) -> None:
        """A request of the SDK's could not reach the service."""
        now = self._run.clock.monotonic()
        if self._heard_at < now - self._lately_s:
            self._heard_since = now
        self._heard_at = max(self._heard_at, now)
        if self._outage is not None:
            self._outage.heard = True

    @property
    def _lately_s(self) -> float:
        """How long ago something may have been met and be of the same outage."""
        return max(LONG_S, self._run.policy.poll_interval_s)

    def note_save_failed(self, current: AttemptScope) -> None:
        """The service says that a save has failed, and does not call the run corrupted.

        One that was restarted has lost it, and may have lost weights, if connections were broken
        off lately. Steps may have been applied since, so no canary could tell.
        """
        now = self._run.clock.monotonic()
        heard = self._heard_at >= now - self._lately_s
        if not (heard or self.is_out_of_reach) or current.faulty:
            return
        certain = self._heard_at < math.inf
        since = self.sound_to
        if heard:
            known_at = self._heard_since if certain else now - self._lately_s
            since = min(since, self._confirmed_step(known_at))
        outage = _Outage(int(since), 0)
        what = "the service has lost a save, around a time when it could not be reached"
        # Where saves go on failing, going back each time would cost the run.
        first, self._saves_succeed = self._saves_succeed, False
        if certain and first:
            self._decide(current, outage, what)
        elif certain or first:
            self._warn(outage, what)

    def note_cut(self, current: AttemptScope | None, *, asked: bool = False) -> None:
        """An idle connection of ours was closed: worth one look at the weights of an idle loop.

        Args:
            current: The attempt that trains.
            asked: Whether its client has asked the canary since, and before its next request.
        """
        if current is None or self._outage is not None:
            return
        if current.client.oldest_open_step is not None and not asked:
            return  # of the loop's own: what is applied to other weights is not recognised
        if self._run.checkpoints.prompt.batch is None and (
            self._warned_of_cut or not current.saver.steps_done()
        ):
            return
        now = self._run.clock.monotonic()
        if not asked:
            if now < self._next_hint_at:
                return
            current.client.run_canary_next()
        self._next_hint_at = now + self._run.policy.poll_interval_s / 2
        self._outage = _Outage(self._confirmed_step(now), 0)

    def note_reachable(self, current: AttemptScope, *, asked_s: float) -> None:
        """The service answers, and calls the run sound; after an outage that is not enough.

        Args:
            current: The attempt that trains.
            asked_s: When the service was asked, by the monotonic clock.
        """
        confirmed_step = self._confirmed_step(asked_s)
        if confirmed_step > self._sound_step:
            self._sound_step = confirmed_step
            self._run.retention.ask(self._run)  # more of what is stored can be relied on
        if self._outage is None or self._looking:
            return
        if self._can_be_looked_into(current, self._outage):
            self._looking = True
            self._run.spawn(functools.partial(self._look, current, self._outage))

    async def settle(self, current: AttemptScope) -> None:
        """See, before the run is over, whether what is not looked into yet has changed it."""
        if self.corrupted is current:
            # A poll's word counts, even where every answer that was under way has come since.
            current.declare_fault(RULES[Kind.CORRUPTED], DetectedBy.POLL)
            return
        outage = self._outage
        if outage is None or not self._can_be_looked_into(current, outage):
            return
        # As long as a restored client has to answer: a service silent by now keeps no run.
        with anyio.move_on_after(self._run.policy.create_timeout_s):
            await self._look(current, outage)
        self._run.mailbox.deliver()  # what looking failed with may be a fault of its own
        if self._outage is outage and not current.faulty:
            self._cannot_tell(current, outage)

    def distrust_since(self, fault: Fault, current: AttemptScope) -> None:
        """What was saved since the fault began is not what its step number says.

        That counts from the outage before it, if that was not looked into yet; what the client
        knows of its own requests comes on top (``first_doubtful_step``).
        """
        if fault.kind in (Kind.ROLLED_BACK, Kind.UNAVAILABLE):
            self._drop_spare()
        steps = [] if self._outage is None else [self._outage.since_step]
        if fault.detected_by is DetectedBy.POLL:
            # It may have begun right after the poll before this one.
            steps.append(self._sound_step)
        if fault.kind is Kind.LOSS_NOT_FINITE and fault.failed_step is not None:
            # Weights of one step earlier gave a loss that was finite.
            steps.append(fault.failed_step - 1)
        if steps:
            self._run.checkpoints.distrust(current.id, min(steps))

    def _drop_spare(self) -> None:
        # A service that was restarted may have its weights and not its moments, which no canary
        # shows.
        collaborators, name = self._run.collaborators, self._run.name
        collaborators.distrust_spare(name)
        # Closed from a task: this may be a callback of the event loop's.
        self._run.mailbox.post(functools.partial(collaborators.drop_spare, name))

    def _can_be_looked_into(self, current: AttemptScope, outage: _Outage) -> bool:
        """Whether the canary can tell what an outage did; decides without it where it cannot."""
        asks = self._run.checkpoints.prompt.batch is not None
        # Who asks for a canary wants to know; a proxy's 503 alone is no reason to go back blindly.
        if (outage.met_requests or (asks and outage.met_down)) and not (
            asks and self._run.policy.on_outage == "warn"
        ):
            self._decide(current, outage, _met(outage))
        elif not asks:
            self._cannot_tell(current, outage)
        else:
            return True
        return False

    def _cannot_tell(self, current: AttemptScope, outage: _Outage) -> None:
        """There is no canary, or its answer says nothing."""
        if outage.refused_s >= MOMENT_S:
            self._decide(
                current, outage, f"the service refused connections for {outage.refused_s:.1f} s"
            )
            return
        self._outage = None
        if outage.met_down or outage.lasted_s >= MOMENT_S:
            self._warn(outage, f"the service was out of reach for {outage.lasted_s:.1f} s")
        elif (outage.seen is None or outage.down) and not self._warned_of_cut:
            # Once for each run: most services close idle connections and lose nothing.
            self._warned_of_cut = True
            how = "closed an idle connection" if outage.seen is None else "was away for a moment"
            self._warn(outage, f"the service {how}, and may have been restarted")

    def _decide(self, current: AttemptScope, outage: _Outage, what: str) -> None:
        """The service may have lost weights, and nothing can tell: go back, or say so."""
        if self._run.policy.on_outage == "warn" or not self._can_go_back(current):
            self._outage = None
            self._warn(outage, what)
            return
        self._run.checkpoints.distrust(current.id, outage.since_step)
        current.declare_fault(
            RULES[Kind.ROLLED_BACK],
            DetectedBy.CANARY,
            FaultError(
                f"{what}, so nothing can tell which weights it has kept",
                kind=Kind.ROLLED_BACK.value,
            ),
        )

    def _can_go_back(self, current: AttemptScope) -> bool:
        run = self._run
        return bool(run.origin or current.checkpoint or run.checkpoints.stored)

    def _warn(self, outage: _Outage, what: str) -> None:
        self._run.collaborators.events.emit(
            names.EVENT_WEIGHTS_UNKNOWN,
            self._run.name,
            f"{what}: if it has lost weights since step {outage.since_step}, nothing here can "
            "tell, and the steps since then are not what they seem: on_outage='recover' goes back "
            "where it may have been restarted, and a canary mostly tells",
            {names.CHECKPOINT_STEP: outage.since_step},
        )

    async def _look(self, attempt: AttemptScope, outage: _Outage) -> None:
        """After an outage: are the weights still those of the newest step?"""
        since = outage.since_step
        # Known before the outage: what was saved since may be of either state.
        branch = [at for at in self._known_on_branch() if at[1] <= since]
        try:
            if attempt.faulty or attempt.closed or (asked := attempt.client.run_canary()) is None:
                return
            looking, step = asked
            answer = answer_of(await result_of(looking))
            # Those asked before it are answered by now, if not heard of.
            for earlier in tuple(attempt.client.unanswered.values()):
                if earlier is not None:
                    await ended(earlier)
            self._run.mailbox.deliver()
        except Exception:  # noqa: BLE001 - a request like any other: its failure is reported where it was made
            return
        finally:
            self._looking = False
        canaries = self._run.checkpoints.canaries
        match, back_to = canaries.older(answer, step, branch)
        if match is Match.DIFFERENT:
            # It may have stored a save whose answer was still on its way, and gone back to that.
            match, back_to = canaries.older(answer, step, self._known_on_branch())
            if match is Match.DIFFERENT and any(
                since <= at < step for at in tuple(attempt.client.unanswered)
            ):
                match = Match.UNCLEAR
        if match is Match.DIFFERENT:
            self._outage = None
            if outage.met_open:
                self._warn(outage, _met(outage))
        elif back_to is None:
            self._cannot_tell(attempt, outage)
        else:
            logger.warning(
                "run %s: %s %s submitted, and the weights are those of step %d",
                self._run.name,
                counted(step, "step"),
                is_are(step),
                back_to,
            )
            # A save that was under way may have been carried out on the older weights, and stored
            # before the outage was noticed. Not one on which the canary has answered otherwise.
            otherwise = canaries.others(answer, attempt.id, branch)
            sound_to = max([min(back_to, since), *otherwise])
            self._run.checkpoints.distrust(attempt.id, sound_to)
            attempt.declare_fault(
                RULES[Kind.ROLLED_BACK],
                DetectedBy.CANARY,
                FaultError(
                    f"the canary answers as at step {back_to}: the service lost later steps in an "
                    "outage without reporting it",
                    kind=Kind.ROLLED_BACK.value,
                ),
            )

    def _known_on_branch(self) -> list[tuple[str, int]]:
        segments = [attempt.segment for attempt in self._run.attempts]
        return [
            at
            for segment, limit in on_branch(segments)
            for at in self._run.checkpoints.canaries.known(segment.attempt)
            if at[1] <= limit
        ]


def _met(outage: _Outage) -> str:
    return f"the service was out of reach with {counted(outage.open_requests, 'request')} under way"
