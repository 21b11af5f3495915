"""Restart intensity: the sliding window of restarts, and whether a crash loop can fill it."""

from __future__ import annotations

from collections import deque

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import number
from tinker_recovery.supervision.errors import SpecError


class RestartLedger:
    """At most ``max_restarts`` within any ``max_seconds``, for a whole supervisor.

    Pure: the time is an argument. It keeps the last ``max_restarts`` times only.
    """

    __slots__ = ("_max_restarts", "_max_seconds", "_spent")

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._spent: deque[float] = deque(maxlen=max_restarts)

    def spend(self, now: float) -> bool:
        """Count one restart; False if it exceeds the limit."""
        spent = self._spent
        if len(spent) == self._max_restarts and (not spent or now - spent[0] <= self._max_seconds):
            return False
        spent.append(now)
        return True

    def within(self, now: float) -> int:
        """How many restarts are in the window now."""
        return sum(1 for moment in self._spent if now - moment <= self._max_seconds)


def healthy_after(
    given_s: float | None, *, max_restarts: int, max_seconds: float, backoff: Backoff
) -> float:
    """Seconds up after which a child counts as healthy, and its backoff begins again.

    A healthy child should get the short initial delay again, and a child in a crash loop must
    exceed the limit even if it lives for a while each time. A child that never lives longer than
    this dies ``max_restarts + 1`` times within ``max_restarts`` lives and delays, so it exceeds the
    limit if those fit into the window, which is checked here. The default is half of the longest
    possible value: then even a child that lives about twice this long each time exceeds the limit.

    Raises:
        SpecError: The backoff alone is longer than the window, or ``given_s`` is too long for it.
    """
    if max_restarts == 0:
        return 0.0 if given_s is None else given_s
    waits = backoff.longest_s(max_restarts)
    if waits >= max_seconds:
        raise SpecError(
            "max_seconds",
            max_seconds,
            f"{max_restarts} restarts with {backoff} wait up to {waits:g} s, so the limit could "
            f"never be reached: allow more than {waits:g} s, fewer restarts, or shorter delays",
        )
    longest = (max_seconds - waits) / max_restarts
    if given_s is None:
        return longest / 2
    if not 0 <= number("healthy_after_s", given_s, "0 seconds or more") < longest:
        raise SpecError(
            "healthy_after_s",
            given_s,
            f"from 0 to less than {longest:g} s, or a child that crashes each time after that long "
            f"would never need more than {max_restarts} restarts within {max_seconds:g} s",
        )
    return given_s
