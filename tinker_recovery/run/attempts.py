"""The attempts of a run in this process, and what those hit by a fault cast doubt on."""

from __future__ import annotations

import math

import anyio

from tinker_recovery.run.scope import AttemptScope


class Attempts(list[AttemptScope]):
    """Every attempt that ran, oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = anyio.Event()
        """Set once the beginning of the first is over, well or not."""
        self._by_id: dict[str, AttemptScope] = {}
        self._whole: list[AttemptScope] = []

    def add(self, attempt: AttemptScope) -> None:
        """One more begins: of the errors of those before the newest two, the frames are dropped."""
        self.append(attempt)
        self._by_id[attempt.id] = attempt
        self._whole.append(attempt)
        for each in self._whole[:-2]:
            if each.gone.is_set() and each.left.is_set():
                each.forget_frames()
                self._whole.remove(each)

    def find(self, attempt_id: str) -> AttemptScope | None:
        """The attempt of this id; None if it is of another process."""
        return self._by_id.get(attempt_id)

    def first_doubtful_step(self, attempt_id: str) -> float:
        """The first step with a request not known to have succeeded, if a fault ended the attempt.

        Infinite where there is none.
        """
        attempt = self.find(attempt_id)
        if attempt is None or not attempt.faulty:
            return math.inf
        return attempt.client.first_doubtful_step

    def unsettled_saves(self) -> set[str]:
        """Paths that a save of an attempt that ended by a fault may still write to."""
        ended = (attempt.client for attempt in self if attempt.faulty)
        return {path for client in ended for path in client.unsettled_saves}
