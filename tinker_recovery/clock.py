"""Clocks, sleeps and jitter as arguments, so that no test waits for a real backoff."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import anyio


@dataclass(frozen=True, slots=True)
class Clock:
    """The source of time and jitter.

    Attributes:
        monotonic: Seconds that never decrease; for durations and deadlines.
        wall: Seconds since the epoch; for dates, and to compare across processes.
        sleep: Waits for these seconds; cancellable.
        random: A number in [0, 1), for jitter only.
    """

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


SYSTEM_CLOCK = Clock()
