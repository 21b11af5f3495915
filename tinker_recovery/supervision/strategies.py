"""A supervisor's decisions, as pure functions."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Literal

Restart = Literal["permanent", "transient", "temporary"]
"""permanent: always. transient: after an abnormal exit. temporary: never."""

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
"""Which siblings are restarted with a child that died: none, all, or those started after it."""

AutoShutdown = Literal["never", "any_significant", "all_significant"]
"""Whether the end of significant children ends the supervisor."""


def is_restarted(restart: Restart, *, normal: bool) -> bool:
    """Whether a child that was ready and ended by itself is restarted."""
    return restart == "permanent" or (restart == "transient" and not normal)


def affected(strategy: Strategy, order: Sequence[str], crashed: Collection[str]) -> list[str]:
    """The children to stop and start again, in start order."""
    if strategy == "one_for_all":
        return list(order)
    if strategy == "one_for_one":
        return [child for child in order if child in crashed]
    first = next((place for place, child in enumerate(order) if child in crashed), len(order))
    return list(order[first:])


def is_shutdown_due(auto_shutdown: AutoShutdown, *, significant_left: Iterable[bool]) -> bool:
    """Whether the end of a significant child ends its supervisor.

    Args:
        auto_shutdown: The supervisor's setting.
        significant_left: For each other significant child, whether it is up or coming up.
    """
    if auto_shutdown == "all_significant":
        return not any(significant_left)
    return auto_shutdown == "any_significant"


def is_a_crash(error: BaseException) -> bool:
    """Whether an exit may be answered with a restart.

    True for Exceptions, and for a CancelledError that the supervisor did not cause. False for
    KeyboardInterrupt, SystemExit and the like, alone or in a group: they end the program.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(is_a_crash(inner) for inner in error.exceptions)
    return isinstance(error, (Exception, asyncio.CancelledError))
