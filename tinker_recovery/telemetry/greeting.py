"""Greeting: a line when a run starts and one when it ends, where nobody has set up logging.

They are logged at INFO, as events are. A program that has configured no logging would not see that,
so there they are printed to stderr as well, where Python prints its warnings; no handler is added,
and no level changed, so nothing is left behind and a set-up that comes later sees all of it once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections import Counter
from dataclasses import dataclass

from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.redaction import redact
from tinker_recovery.telemetry.text import as_text, seconds

logger = logging.getLogger(names.SCOPE)

MOST = 5
"""Runs of a Supervisor that are printed one by one; of the others only how many there were."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run ended.

    Attributes:
        run: Its name.
        how: ``finished``, ``stopped``, or ``failed (...)``.
        step: The step it is at.
        recoveries: How many it had here.
        replayed: Steps done again.
        lost_s: See :func:`~tinker_recovery.telemetry.lost_time.lost`; of what this process saw.
        checkpoint: Path of the newest one that is trusted; None if it has none.
        waiting: Path of a newer one that counts if the service still calls the run sound, which
            could not be asked.
        trained: Whether its loop has done a step here.
    """

    run: str
    how: str
    step: int
    recoveries: int
    replayed: int
    lost_s: float
    checkpoint: str | None
    waiting: str | None = None
    trained: bool = True

    @property
    def goes_on_from(self) -> str:
        """Where the same command goes on, in words; empty if there is nothing to go on from."""
        if self.waiting is None:
            return "" if self.checkpoint is None else "goes on from it"
        return "asks it, and goes on from there" + (" or starts over" * (self.checkpoint is None))

    def __str__(self) -> str:
        again = "recovery" if self.recoveries == 1 else "recoveries"
        recovered = f"{self.recoveries} {again}"
        if self.recoveries:
            steps = "step" if self.replayed == 1 else "steps"
            recovered += f", {self.replayed} {steps} replayed, {seconds(self.lost_s)} lost in all"
        saved = self.checkpoint or "none"
        if self.waiting is not None:
            saved += f", or {self.waiting} if the service still calls the run sound"
        return f"{self.run} {self.how} at step {self.step}: {recovered}; last checkpoint {saved}"


class Greeting:
    """The lines of the runs of one Supervisor. On the event loop; never raises.

    Args:
        journal: Where the journal is, in words; empty where it is in memory.
        option: What ``tinker-recovery watch`` needs to find it, behind the run's name.
        quiet: Whether nothing is printed.
    """

    def __init__(self, journal: str = "", option: str = "", *, quiet: bool = True) -> None:
        self._journal, self._option = _from_home(journal), option
        self._quiet = quiet
        self._printed: set[str] = set()
        self._under_way: set[str] = set()
        self._resumable: set[str] = set()
        self._ended: Counter[str] = Counter()

    def started(self, run: str, *, named: bool, recovers: bool = True) -> None:
        """A run is opened; ``named`` by its user, or only observed if it does not recover."""
        self._under_way.add(run)
        if named and recovers:
            self._resumable.add(run)
        said = f"supervised as {run}" if recovers else f"observed as {run}"
        if not named and recovers:
            said += " (for this process alone: with a name= the same command would resume it)"
        if self._journal:
            look = f"tinker-recovery watch {shlex.quote(run)}{self._option}"
            said += f"; journal {self._journal}; look: {look}"
        if len(self._printed) < MOST:
            self._printed.add(run)
        elif self._ended.total() + len(self._under_way) == MOST + 1:
            self._print(
                f"further runs are not announced; look: tinker-recovery watch{self._option}"
            )
        self._say(run, said)

    def goes_on(self, run: str, message: str) -> None:
        """An event of a run that was stopped: it has been logged."""
        if run in self._printed:
            self._print(f"{run} {message}")

    def ended(self, end: RunEnd) -> None:
        """A run is over; what is said of it later is ignored."""
        if end.run in self._under_way:
            self._under_way.discard(end.run)
            self._ended[end.how.partition(" ")[0]] += 1
            said = str(end)
            if end.how == "finished" and not end.trained:
                said += "; the loop did no step in this process"
                if end.run in self._resumable:
                    said += "; to train it further, give its loop more steps, and say extend=True"
            if end.goes_on_from and end.run in self._resumable:
                if end.how == "stopped":
                    said += f"; the same command {end.goes_on_from}"
                elif end.how.startswith("failed"):
                    said += f"; once the reason is mended, the same command {end.goes_on_from}"
            self._resumable.discard(end.run)
            # In a notebook the cell's own output is behind it, and the run can be looked at.
            self._say(end.run, said, printed=not _in_notebook())

    def over(self) -> None:
        """The Supervisor is left: says how the runs ended, if not each was printed."""
        if self._ended.total() > MOST:
            each = ", ".join(f"{count} {how}" for how, count in self._ended.most_common(MOST))
            self._print(f"{self._ended.total()} runs: {each}")

    def _say(self, run: str, message: str, *, printed: bool = True) -> None:
        logger.info("%s", as_text(redact(message)))
        if printed and run in self._printed:
            self._print(message)

    def _print(self, message: str) -> None:
        if self._quiet or logger.hasHandlers() or sys.stderr is None:
            return
        if logger.level > logging.INFO:  # as the program has set it, who wants to hear less
            return
        with contextlib.suppress(OSError, ValueError):  # it may be closed
            print(as_text(redact(message)), file=sys.stderr, flush=True)  # noqa: T201 - see the module


def _from_home(path: str) -> str:
    home = os.path.expanduser("~")  # noqa: PTH111 - which raises nothing
    return f"~{path.removeprefix(home)}" if path.startswith(home + os.sep) else path


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules
