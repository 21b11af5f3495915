"""Time and chance as arguments, so that no test waits for a real backoff."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Clock:
    """Where durations, dates, waits and jitter come from.

    Attributes:
        monotonic: Seconds that only grow; for durations and deadlines.
        wall: Seconds since the epoch; for what is shown to people and compared across processes.
        sleep: Waits that many seconds; cancellable.
        random: A number in [0, 1); for jitter only.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


SYSTEM_CLOCK = Clock()
