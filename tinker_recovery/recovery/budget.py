"""How many recoveries a run may still try: a pure ledger."""

from __future__ import annotations


class AttemptBudget:
    """Counts recovery attempts that led to no progress.

    Progress is a saved checkpoint newer than the one last recovered from: only then has a recovery
    proved itself, and the count starts again. A fault can overtake the answer to a save, so a
    newer checkpoint that the service lists counts as well.
    """

    def __init__(self, max_attempts: int) -> None:
        self._max_attempts = max_attempts
        self._spent = 0
        self._recovered_to = 0
        self._errors: list[BaseException] = []

    @property
    def left(self) -> int:
        """Attempts that may still be tried."""
        return self._max_attempts - self._spent

    @property
    def errors(self) -> tuple[BaseException, ...]:
        """What went wrong since the last progress, oldest first."""
        return tuple(self._errors)

    def spend(self) -> int:
        """Take one attempt and return its number, from 1; 0 means none is left."""
        if self.left <= 0:
            return 0
        self._spent += 1
        return self._spent

    def refund(self) -> None:
        """Give one attempt back: it ended by no fault of the run's."""
        self._spent = max(0, self._spent - 1)

    def note_error(self, error: BaseException) -> None:
        """Remember a fault or a failed attempt, for the report when the budget is spent."""
        if error not in self._errors:
            self._errors.append(error)

    def note_recovered(self, step: int) -> None:
        """A recovery handed over a client that stands at this optimizer step.

        A step further than the last one was saved in between, heard of or not, so only this
        recovery's own attempt counts.
        """
        if step > self._recovered_to:
            self._spent = min(self._spent, 1)
        self._recovered_to = step

    def note_saved(self, step: int) -> None:
        """A checkpoint with this many optimizer steps was saved."""
        if step > self._recovered_to:
            self._spent = 0
            self._errors.clear()
