"""CanaryLoss: a service that refuses the canary, or does not answer it, as one attempt finds out.

Not every service carries out a forward pass alone. One that was not accepted is missing in the
order of the client's requests, and what is behind one that is never answered waits for ever. A
loop without a canary would go on, so this one goes on without: at once where the service refuses a
canary that we have made; after two attempts in a row in which it answered none, as one may as well
be met by a fault of the backend. One that answers it on the clients restored in between carries out
such passes, and has faults: that takes six.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinker_recovery.faults import Kind, VerdictRule
from tinker_recovery.service.refusals import in_words
from tinker_recovery.telemetry.text import counted

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

OFF_AFTER = 2
"""Attempts in a row that have lost a canary, after which a run asks none any more."""

OFF_AT_LAST = 6
"""The same, where it was answered on the clients restored in between."""

_REFUSED = frozenset({Kind.USER_ERROR, Kind.INVALID_REQUEST, Kind.FORBIDDEN})
_OF_ALL = frozenset(
    {Kind.UNAUTHORIZED, Kind.UNPAID, Kind.GONE, Kind.CORRUPTED, Kind.SESSION_FAILED}
)
"""What says nothing of the canary: any request would have met it."""


class CanaryLoss:
    """Whether the canaries of one attempt were lost. Safe to call from any thread."""

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope
        self._counted = False

    def drops(self, rule: VerdictRule, error: BaseException | None) -> bool:
        """Whether the run goes on without a canary, after one has failed or is silent.

        Args:
            rule: What the failure would be of any other request.
            error: What it failed with; None if it is silent.
        """
        run = self._scope.run
        prompt = run.checkpoints.prompt
        if prompt.batch is None:
            return True  # of several, another was the first to fail
        if rule.kind in _REFUSED:
            return prompt.auto and self._drop("the service refuses it", error)
        if rule.kind in _OF_ALL or self._counted or run.rollbacks.is_out_of_reach:
            return False
        self._counted = True
        prompt.lost += 1
        prompt.lost_in_all += 1
        # A bare loop would not have asked: what it costs is none of the run's own attempts.
        self._scope.post(run.budget.refund)
        if prompt.lost < OFF_AFTER and prompt.lost_in_all < OFF_AT_LAST:
            return False
        times = counted(prompt.lost_in_all, "time")
        why = f"{times} in a row the service has not answered it, although it answers all else"
        return self._drop(why, error)

    def answered(self) -> None:
        """The service has answered a canary."""
        prompt = self._scope.run.checkpoints.prompt
        prompt.lost = prompt.lost_in_all = 0

    def _drop(self, why: str, error: BaseException | None) -> bool:
        said = why if error is None else f"{why}: {in_words(error)}"
        self._scope.run.checkpoints.prompt.drop(said)
        self._scope.hooks.no_canary()
        return True
