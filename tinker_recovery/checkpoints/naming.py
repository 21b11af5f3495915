"""The names of the schedule's saves: what is known of a checkpoint where nothing else is kept.

``step-00000012-1f2e3d4c-0a1b2c3d4e5f6071``: optimizer steps, attempt, and a short digest of the
run's name and of its lineage. ``-lag2``: the last two steps were not known to have succeeded when
it was submitted. ``-state``: the save has a loop state or epochs, which a name cannot carry. A
number at the end: the step was saved again, as the loop had set more for it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

_UNKNOWN = "~"
"""Before the mark of a lineage, where no more of it is known than that."""

_NAME = re.compile(
    r"step-(?P<step>[0-9]{8,})-(?P<attempt>[0-9a-f]{8})"
    r"-(?P<run>[0-9a-f]{8})(?P<lineage>[0-9a-f]{8})"
    r"(?:-lag(?P<lag>[0-9]+))?(?P<state>-state)?(?:-(?P<again>[0-9]+))?"
)


def mark_of(text: str) -> str:
    """The short digest of a run's name or of a lineage: eight hexadecimal digits."""
    if text.startswith(_UNKNOWN):
        return text.removeprefix(_UNKNOWN)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def lineage_by_mark(mark: str) -> str:
    """A lineage of which only its mark is known; :func:`mark_of` gives that back."""
    return _UNKNOWN + mark


@dataclass(frozen=True, slots=True)
class SaveName:
    """What the name of a save says.

    Attributes:
        step: Optimizer steps in it.
        attempt: Id of the attempt that saved it.
        run: Mark of the run's name; that of its lineage where the user gave it no name.
        lineage: Mark of its lineage.
        lag: How many of its last steps were not known to have succeeded when it was submitted.
        has_state: Whether a loop state or epochs were saved with it, as metadata.
        again: Which of the attempt's second saves of a step it is; 0 for a first save.
    """

    step: int
    attempt: str
    run: str
    lineage: str
    lag: int = 0
    has_state: bool = False
    again: int = 0

    def __str__(self) -> str:
        own = f"step-{self.step:08d}-{self.attempt}-{self.run}{self.lineage}"
        lag = f"-lag{self.lag}" if self.lag else ""
        state = "-state" if self.has_state else ""
        again = f"-{self.again}" if self.again else ""
        return own + lag + state + again

    @classmethod
    def read(cls, name: str) -> Self | None:
        """From a checkpoint's name; None if the schedule did not give it."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        step, attempt, run, lineage, lag, state, again = found.groups()
        return cls(
            int(step), attempt, run, lineage, int(lag or 0), state is not None, int(again or 0)
        )
