"""Waiting for what the service is still at work on, and noticing that it is.

A client that takes long to come looks like one that will never come, but for the service's replies
to the SDK's polls: "try again", with or without a queue state. The SDK keeps them to itself. It
passes those with a queue state to an observer, and for a creation that is one of its own, which
only logs. So its method that reads one reply of a poll is wrapped here, for the whole process, and
"try again" is reported to whoever waits in the context that the request was submitted in. Without
that method in the SDK, or with ``TINKER_RECOVERY_SDK_WORKAROUNDS=0``, no reply is noticed, and a
warning says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import anyio
from tinker.lib import api_future_impl

from tinker_recovery.clock import growing_intervals
from tinker_recovery.errors import DeadlineExceeded
from tinker_recovery.service.sdk_workarounds import OFF, is_on
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

NOTICE_S = 15.0
"""What takes longer than this is reported, and again at growing intervals."""

_TRY_AGAIN_STATUS = 408
_FUTURE: Any = getattr(api_future_impl, "_APIFuture", None)
_REPLY: Any = getattr(api_future_impl, "_TryAgain", None)
_FETCH = "_fetch_via_rest"
ORIGINAL: Any = getattr(_FUTURE, _FETCH, None)

_reported_to: ContextVar[Callable[[str], None] | None] = ContextVar("reported_to", default=None)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for the service.

    Attributes:
        silence_s: Seconds without a word that it is at work on what was asked of it.
        limit_s: Seconds in all, whatever it says; at least ``silence_s`` counts.
        report: Called in the event loop with a sentence for people, at growing intervals while
            this lasts.
    """

    silence_s: float = math.inf
    limit_s: float = math.inf
    report: Callable[[str], object] = logger.warning


@contextlib.contextmanager
def patiently(what: str, patience: Patience) -> Iterator[None]:
    """Wait inside for requests that are submitted inside, as long as that patience lasts.

    Args:
        what: What is waited for, in words: "creating a client".
        patience: How long.

    Raises:
        DeadlineExceeded: The patience is at its end.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    silence_s, ends = patience.silence_s, began + max(patience.silence_s, patience.limit_s)
    said = "has not said anything of it, and may be out of reach or short of capacity"
    allowed_s = silence_s

    def note(state: str) -> None:
        nonlocal said, allowed_s
        said = f"is at work on it, and answered last: {state}"
        # Once it is cancelled, a later deadline would make the end look like a success.
        if not scope.cancel_called:
            scope.deadline = min(loop.time() + silence_s, ends)
            allowed_s = scope.deadline - began

    def noted(state: str) -> None:
        # In the SDK's thread. Our loop may be closed by the time an abandoned request is answered.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(note, state)

    def report() -> None:
        taken_s = loop.time() - began
        left_s = scope.deadline - loop.time()
        end = "" if left_s == math.inf else f"; without an answer this try ends in {left_s:.0f} s"
        patience.report(f"{what} has taken {taken_s:.0f} s so far: the service {said}{end}")
        notices.append(loop.call_later(next(intervals), report))

    intervals = growing_intervals(NOTICE_S)
    notices = [loop.call_later(next(intervals), report)]
    token = _reported_to.set(noted)
    try:
        with anyio.fail_after(silence_s) as scope:
            yield
    except TimeoutError as error:
        raise DeadlineExceeded(what, allowed_s) from error
    finally:
        _reported_to.reset(token)
        notices[-1].cancel()


def is_possible() -> bool:
    """Whether this SDK has what is wrapped, and that is not turned off."""
    return (
        is_on()
        and isinstance(_REPLY, type)
        and inspect.iscoroutinefunction(ORIGINAL)
        and list(inspect.signature(ORIGINAL).parameters) == ["self", "state", "iteration"]
    )


@functools.cache
def apply() -> None:
    """Have the SDK of this process report "try again"; the second time nothing happens."""
    if is_possible():
        setattr(_FUTURE, _FETCH, fetch_and_report)
    else:
        logger.warning(
            "with this version of the tinker SDK, or with %s=0, it cannot be noticed that the "
            "service is at work on a client: set create_timeout_s above the longest load to come",
            OFF,
        )


async def fetch_and_report(self: Any, state: Any, iteration: int) -> Any:
    """``_fetch_via_rest``, and then a reply that says "try again" is reported."""
    outcome = await ORIGINAL(self, state, iteration)
    report = _reported_to.get()
    if report is not None:
        if isinstance(outcome, _REPLY):
            reason = getattr(outcome, "queue_state_reason", None)
            said = getattr(getattr(outcome, "queue_state", None), "value", "try again")
            report(said if reason is None else f"{said}: {reason}")
        elif getattr(outcome, "status_code", None) == _TRY_AGAIN_STATUS:
            report("try again")
    return outcome
