"""The attempts of a run in this process, and what those hit by a fault cast doubt on."""

from __future__ import annotations

import math

from tinker_recovery.run.scope import AttemptScope


class Attempts(list[AttemptScope]):
    """Every attempt that ran, oldest first."""

    def first_doubtful_step(self, attempt_id: str) -> float:
        """The first step with a request not known to have succeeded, if a fault ended the attempt.

        Infinite where there is none.
        """
        steps = [
            attempt.client.first_doubtful_step
            for attempt in self
            if attempt.id == attempt_id and attempt.faulty
        ]
        return min(steps, default=math.inf)

    def unsettled_saves(self) -> set[str]:
        """Paths that a save of an attempt that ended by a fault may still write to."""
        ended = (attempt.client for attempt in self if attempt.faulty)
        return {path for client in ended for path in client.unsettled_saves}
