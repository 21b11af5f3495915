"""How many restarts are too many: the sliding window, and whether it can ever fill."""

from __future__ import annotations

from collections import deque

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import number, whole
from tinker_recovery.supervision.errors import SpecError


class RestartLedger:
    """At most ``max_restarts`` within any ``max_seconds``: one budget for a whole supervisor.

    Pure: it is told the time. It keeps the last ``max_restarts`` moments and no more, and each
    question costs the same however many there are.
    """

    __slots__ = ("_max_restarts", "_max_seconds", "_spent")

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._spent: deque[float] = deque(maxlen=max_restarts)

    def spend(self, now: float) -> bool:
        """Count one restart at this moment; False if it is one too many."""
        spent = self._spent
        if len(spent) == self._max_restarts and (not spent or now - spent[0] <= self._max_seconds):
            return False
        spent.append(now)
        return True

    def within(self, now: float) -> int:
        """How many restarts count at this moment."""
        return sum(1 for moment in self._spent if now - moment <= self._max_seconds)


def healthy_after(
    given_s: float | None, *, max_restarts: int, max_seconds: float, backoff: Backoff
) -> float:
    """Seconds of life after which a child counts as healthy, and its backoff starts again.

    Two wishes pull at it. A healthy child should wait the short initial delay again, and a child
    that dies for ever must trip the limit, though it lives a while each time. A child never living
    longer than this dies ``max_restarts + 1`` times in at most ``max_restarts`` lives and delays,
    so the limit is certain to trip as long as those fit into the window; that is what is held
    here. Without a wish, half of the longest possible is taken: then even a child that lives up
    to about twice this long each time trips the limit.

    Raises:
        SpecError: The backoff alone outlasts the window, or ``given_s`` is too long for it.
    """
    if max_restarts == 0:
        return 0.0 if given_s is None else given_s
    waits = backoff.longest_s(max_restarts)
    if waits >= max_seconds:
        raise SpecError(
            "max_seconds",
            max_seconds,
            f"{max_restarts} restarts with {backoff} wait up to {waits:g} s, so the limit could "
            f"never trip: allow more than {waits:g} s, fewer restarts, or shorter delays",
        )
    longest = (max_seconds - waits) / max_restarts
    if given_s is None:
        return longest / 2
    if not 0 <= number("healthy_after_s", given_s, "0 seconds or more") < longest:
        raise SpecError(
            "healthy_after_s",
            given_s,
            f"from 0 to less than {longest:g} s, or a child that lives as long and dies for ever "
            f"would never need more than {max_restarts} restarts within {max_seconds:g} s",
        )
    return given_s


def check_intensity(max_restarts: object, max_seconds: object) -> None:
    """Refuse limits that mean nothing.

    Raises:
        SpecError: ``max_restarts`` is not a whole number from 0, ``max_seconds`` not above 0.
    """
    whole("max_restarts", max_restarts)
    if number("max_seconds", max_seconds, "more than 0 seconds") <= 0:
        raise SpecError("max_seconds", max_seconds, "more than 0 seconds")
