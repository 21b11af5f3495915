"""What is said of a process that trains a run which another waits for: how to look, and stop."""

from __future__ import annotations

import shlex
from pathlib import Path

from tinker_recovery.journal import option_for
from tinker_recovery.telemetry.text import as_text


def while_held(name: str, *, pid: int, host: str, here: bool, journal: Path | None) -> str:
    """How to look at that process, to end it, and to end the wait: the rest of a log line.

    Args:
        name: The run's name.
        pid: Its process id.
        host: Its host, as it says.
        here: Whether it runs on this machine.
        journal: The journal that it writes, where ``here``.
    """
    look = f"tinker-recovery watch {shlex.quote(name)}"
    if here:
        said = f"look: {look}{option_for(journal)}; end it there by Ctrl-C, or kill -INT {pid}"
    else:
        said = f"look on {host or 'that machine'}: {look}; end it there by Ctrl-C"
    return as_text(f"; {said}; here Ctrl-C ends the wait")
