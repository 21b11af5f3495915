"""The process that holds a run: where it runs, and whether it is still alive."""

from __future__ import annotations

import functools
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from tinker_recovery.errors import RunHeld


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that trains a run.

    Attributes:
        host: The host name, for display.
        machine: Identifies this boot of this machine and this PID namespace; empty where the
            system does not say.
        pid: The process id.
        born: Start time of the process in clock ticks, since process ids are reused.
        since: When it took the run, in seconds since the epoch.
        expires: When its lease ends unless renewed, in seconds since the epoch. For display only:
            no decision uses a clock that can be set.
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

    def lives(self) -> bool | None:
        """Whether the process is alive; None if that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        now = _born(self.pid)
        return bool(now) and now == self.born

    def gone(self) -> Self:
        """The same, as if it had ended: of what it is not at any more."""
        return replace(self, born="")

    def held(self, run: str, message: str) -> RunHeld:
        """The error that refuses this run to another process."""
        return RunHeld(
            message, run=run, pid=self.pid, host=self.host, since=self.since, expires=self.expires
        )

    def __str__(self) -> str:
        def at(seconds: float) -> str:
            return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))

        return (
            f"process {self.pid} on {self.host}, since {at(self.since)} (its lease ends at "
            f"{at(self.expires)}, and is renewed while the process is alive)"
        )


@functools.cache
def _machine() -> str:
    # Containers of one machine share its boot id, and have PID namespaces of their own.
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - pathlib would make a path of it
    except OSError:
        return ""


def _born(pid: int) -> str:
    """Start time of a process in clock ticks; empty if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return ""
    # The name in brackets may itself contain brackets and blanks, and ends within a letter where it
    # was cut to fifteen bytes.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]
