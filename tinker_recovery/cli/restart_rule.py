"""Whether ``tinker-recovery run`` restarts a script that ended: a pure decision.

The rules are those of a service manager (systemd's ``Restart=on-failure``), with a limit on
restarts in a row and a backoff.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

from tinker_recovery.supervision import Backoff

USAGE_ERROR = 2
"""The exit status for bad arguments, which a restart would not change."""

ASKED_TO_END = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
"""Signals by which a person or the system asks a process to end."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a script ended.

    Attributes:
        code: Its exit status, or minus the signal it died of, as in ``subprocess``.
        lived_s: Seconds it ran.
        asked_to_end: Whether a signal to end was passed on to it.
        finished_before: Whether it reported that its run was finished already.
    """

    code: int
    lived_s: float
    asked_to_end: bool = False
    finished_before: bool = False

    @property
    def status(self) -> int:
        """The exit status, or 128 plus the signal it died of, as in a shell."""
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
        number: The number of this restart in a row, from 1.
        delay_s: Seconds to wait before.
    """

    number: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Do not start it again.

    Attributes:
        reason: Why.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RestartRule:
    """How often a script is started again, and how soon.

    Attributes:
        max_restarts: Restarts in a row.
        backoff: Delays before the second restart in a row and later ones; the first is immediate.
        healthy_after_s: After a run of this many seconds, restarts are counted from 0 again.
    """

    max_restarts: int
    backoff: Backoff
    healthy_after_s: float

    def after(self, ending: Ending, restarts: int, random: float = 0.0) -> Restart | Stop:
        """The decision after a script ended.

        Args:
            ending: How it ended.
            restarts: Restarts in a row so far.
            random: A number in [0, 1), for jitter.
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
    """Why it is not restarted even if restarts are left; None if it crashed."""
    if ending.code == 0:
        return "it is done"
    if ending.asked_to_end or (ending.code < 0 and -ending.code in ASKED_TO_END):
        return "a signal asked it to end"
    if ending.finished_before:
        return "its run was finished already, so there is nothing to train"
    if ending.code == USAGE_ERROR:
        return "it refuses its arguments, and would again"
    return None
