"""Try a request again while it fails for a reason that passes.

stamina does the same, and logs each retry by structlog or logging unless the whole program's hooks
are changed. Its line names neither the request nor the run, so no user could do anything with it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from tinker_recovery.errors import StatusUnavailable

_T = TypeVar("_T")

waits = True
"""Whether there is a wait between two tries; tests set it to False."""


async def retried(
    once: Callable[[int], Awaitable[_T]], *, tries: int, first_s: float, most_s: float
) -> _T:
    """What ``once(number)`` returns, with ``number`` from 1; asked again on StatusUnavailable.

    Args:
        once: The request.
        tries: How often it is asked at most.
        first_s: The wait before the second try; doubled before each further one, with jitter.
        most_s: The longest wait.

    Raises:
        StatusUnavailable: Of the last try.
    """
    for number in itertools.count(1):
        try:
            return await once(number)
        except StatusUnavailable:
            if number == tries:
                raise
        longest_s = min(most_s, first_s * 2 ** (number - 1))
        # From half of it: clients that failed together do not ask together again.
        await anyio.sleep(longest_s * random.uniform(0.5, 1.0) if waits else 0.0)  # noqa: S311 - jitter
    raise AssertionError("count() does not end")  # pragma: no cover
