"""The SDK's thread rests while the interpreter ends.

It is a daemon thread, which Python before 3.14 ends wherever it next takes the interpreter's lock.
Where that is in a function that the SDK's HTTP library calls, as when the span of a request is
exported, it would have to leave functions written in Rust, which abort the process: a program that
has done all it had to ends with SIGABRT (plain SDK 0.38: 2 of 360 that end with requests under way,
and each with a slow exporter). So at exit that thread waits in a function that can be ended.

For the whole process. Off with ``TINKER_RECOVERY_SDK_WORKAROUNDS=0``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
from asyncio import AbstractEventLoop
from typing import Any

from tinker.lib import internal_client_holder

from tinker_recovery.service.sdk_workarounds import is_on

WAIT_S = 2.0
"""How long the end of a process waits for the SDK's thread to rest."""

REST_S = 5.0
"""How long it rests, if the interpreter still lives: what is done at exit later may use the SDK."""

_SDK: Any = getattr(internal_client_holder, "_internal_client_holder_thread_singleton", None)


@functools.cache
def apply() -> None:
    """Have the SDK's thread rest at exit; does nothing the second time, or if that is off."""
    if is_on():
        atexit.register(rest)


def rest() -> None:
    """Have the SDK's thread rest; returns once it does, or cannot be brought to it."""
    thread: threading.Thread | None = getattr(_SDK, "_thread", None)
    loop: AbstractEventLoop | None = getattr(_SDK, "_loop", None)
    if thread is None or loop is None or not thread.is_alive():
        return  # it has not been started, or this is a forked child
    rests = threading.Event()

    def wait() -> None:
        rests.set()
        threading.Event().wait(REST_S)

    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(wait)
        rests.wait(WAIT_S)
