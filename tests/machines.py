"""Processes that run ``one_machine.py``, each as if on a machine of its own."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import anyio.to_thread

SCRIPT = Path(__file__).with_name("one_machine.py")


def command_on(machine: str, folder: Path, **changes: str) -> list[str]:
    """The command of a process there; ``steps`` says to which step it trains."""
    given = {
        "machine": machine,
        "journal": str(folder / f"{machine}.db"),
        "go": str(folder / f"go-{machine}"),
        **changes,
    }
    return [str(SCRIPT), *(f"--{key}={value}" for key, value in given.items())]


async def ended(running: subprocess.Popen[str]) -> str:
    """Wait for its end; what it wrote to stderr."""
    _, errors = await anyio.to_thread.run_sync(functools.partial(running.communicate, timeout=60))
    return errors
