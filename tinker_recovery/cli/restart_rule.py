"""What to do when a script ends: a pure decision, for ``tinker-recovery run``.

The rules are those of a service manager (systemd's ``Restart=on-failure``), with a
budget and a backoff as a recovery has them.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from tinker_recovery.supervision import Backoff

USAGE_ERROR = 2
"""What a command line that makes no sense ends with; it would make none the next time."""

ASKED_TO_END = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
"""Who dies of one of these was asked to, by a person or by the system."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a script ended.

    Attributes:
        code: As ``subprocess`` tells it: its exit status, or minus the signal it died of.
        lived_s: How long it had run.
        asked_to_end: Whether a signal to end was passed on to it.
        finished_before: Whether it said that its run has come to its end before.
    """

    code: int
    lived_s: float
    asked_to_end: bool = False
    finished_before: bool = False

    @property
    def status(self) -> int:
        """As a shell tells it: the exit status, or 128 and the signal it died of."""
        return 128 - self.code if self.code < 0 else self.code

    def __str__(self) -> str:
        if self.code >= 0:
            return f"ended with status {self.code}"
        try:
            return f"died of {signal.Signals(-self.code).name}"
        except ValueError:
            return f"died of signal {-self.code}"


@dataclass(frozen=True, slots=True)
class Restart:
    """Start it again.

    Attributes:
        number: Which restart in a row this is, from 1.
        delay_s: How long to wait before.
    """

    number: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave it at that.

    Attributes:
        reason: Why, in words.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RestartRule:
    """How often a script is started again, and how soon.

    Attributes:
        max_restarts: In a row.
        backoff: Before the second in a row, and each further one; the first is at once.
        healthy_after_s: A script that ran for so long had got going, and the row begins again.
    """

    max_restarts: int
    backoff: Backoff
    healthy_after_s: float

    def after(self, ending: Ending, restarts: int, random: float = 0.0) -> Restart | Stop:
        """What follows from how a script ended.

        Args:
            ending: How.
            restarts: Restarts in a row so far.
            random: A number in [0, 1) that decides the jitter.
        """
        reason = _no_crash(ending)
        if reason is not None:
            return Stop(reason)
        row = 0 if ending.lived_s >= self.healthy_after_s else restarts
        if row < self.max_restarts:
            return Restart(row + 1, self.backoff.delay_s(row - 1, random) if row else 0.0)
        if not row:
            return Stop("no restarts are allowed")
        return Stop(f"{row} restarts in a row, and none ran for {self.healthy_after_s:g} s")


def _no_crash(ending: Ending) -> str | None:
    """Why it is not started again, however many restarts are left."""
    if ending.code == 0:
        return "it is done"
    if ending.asked_to_end:
        return "it was told to end"
    if ending.finished_before:
        return "its run had come to its end before, so there is nothing to train"
    if ending.code == USAGE_ERROR:
        return "it refuses its arguments, and would again"
    if ending.code < 0 and -ending.code in ASKED_TO_END:
        return "it was asked to end"
    return None
