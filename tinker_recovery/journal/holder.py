"""Who holds a run: which process, on which machine, and whether it still lives."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tinker_recovery.errors import RunHeld


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that trains a run.

    Attributes:
        host: The machine's name, for people.
        machine: What tells this machine, since it was booted, and this space of process ids from
            every other; empty where the system does not say.
        pid: The process id.
        born: When the process was started, in the system's own ticks: an id is used again.
        since: Seconds since the epoch at which it took the run.
        expires: The same, at which it is held to be gone unless it says otherwise. For people:
            nothing is decided by a clock that can be set.
    """

    host: str
    machine: str
    pid: int
    born: str
    since: float
    expires: float

    @classmethod
    def here(cls, *, now: float, lease_s: float) -> Self:
        """This process."""
        pid = os.getpid()
        return cls(socket.gethostname(), _machine(), pid, _born(pid), now, now + lease_s)

    def lives(self, born: Callable[[int], str] | None = None) -> bool | None:
        """Whether it lives; None if that cannot be told from here."""
        if not self.machine or self.machine != _machine():
            return None
        now = (born or _born)(self.pid)
        return bool(now) and now == self.born

    def held(self, run: str, message: str) -> RunHeld:
        """The error for whoever wants this run and does not wait for it."""
        return RunHeld(
            message,
            run=run,
            pid=self.pid,
            host=self.host,
            since=self.since,
            expires=self.expires,
        )

    def __str__(self) -> str:
        def at(seconds: float) -> str:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

        return (
            f"process {self.pid} on {self.host}, since {at(self.since)} (its lease runs to "
            f"{at(self.expires)}, and is renewed while it lives)"
        )


@functools.cache
def _machine() -> str:
    """This boot of this machine and this space of process ids; empty if that cannot be told.

    Containers of one machine share its boot, and number their processes each for itself.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - pathlib would make a path of it
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process was started, or empty if there is none, or only its remains."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The name in brackets may hold anything, brackets and blanks too.
    fields = said.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
