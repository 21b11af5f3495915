"""SavesTogether: runs of a group save the same steps, whatever each one's schedule says."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tinker_recovery.telemetry import names

if TYPE_CHECKING:
    from tinker_recovery.run.saver import Saver

logger = logging.getLogger(names.SCOPE)


class SavesTogether:
    """Which steps the savers of a group save; a run of its own decides for itself.

    Whoever comes to the end of a step first decides for all: it is saved if it is due for any, if
    none has too many in flight or one still to come, and if none has trained past it. The others
    save it when they come to its end.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        """Held by each saver of the group while it decides."""
        self._warned = False
        self.begin(())

    def begin(self, savers: Sequence[Saver]) -> None:
        """Attempts of all runs of a group begin, at the same step."""
        with self.lock:
            self._savers = savers
            self.together = len(savers) > 1
            """Whether there is more than one run."""
            self._agreed: set[int] = set()
            self._owed: set[Saver] = set()
            self._passed = -1

    def passed(self, step: int) -> None:
        """A run trains past the end of this step."""
        self._passed = max(self._passed, step)

    def due(self, saver: Saver, step: int, *, end: bool) -> bool:
        """Whether this saver has to save the step it stands at."""
        if not self.together:
            return saver.decides(step, end=end)
        if step not in self._agreed:
            if not any(each.decides(step, end=end) for each in self._savers):
                return False
            if not end and not self._may_agree(step):
                return False
            self._agreed.add(step)
            self._owed = set(self._savers)
        self._owed.discard(saver)
        return saver.may_begin(step)

    def _may_agree(self, step: int) -> bool:
        if self._owed and not self._warned:
            self._warned = True
            late = ", ".join(sorted(each.run_name for each in self._owed))
            logger.warning(
                "step %d is due and not saved: of the same group, run %s has yet to come to the "
                "end of step %d, which is saved first. All runs of a group count the same steps: "
                "where one leaves out an iteration, call its attempt.client.skip_step()",
                step,
                late,
                max(self._agreed),
            )
        saving = any(each.is_full for each in self._savers)
        return step > self._passed and not self._owed and not saving
