"""What the fencing benchmark sees at the server: who trained, when, and with what result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from _fencing_machine import LIMIT_S

from tinker_recovery.testing import LocalTinker

KINDLY_S = 0.1
"""What claims allow a service for listing that lists at once."""

LAG_S = 0.3
JITTER_S = 1000.0
SKEW_S = -500.0

_TRAINING = frozenset({"forward_backward", "optim_step", "save_weights"})


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        kind: Which kind of case.
        two_trainers: What a run was asked after a successor had begun; empty for nothing.
        weights: How the finished run differs from an undisturbed one; empty for not at all.
        stuck: Who did not come to an end in time; empty for none.
        failed: Who ended with an error that is none of those to expect; empty for none.
        otherwise: What else went another way than the case is made for; empty for nothing.
        takeover_s: From the moment the holder died, or was paused, to the successor's first step.
    """

    kind: str
    two_trainers: str = ""
    weights: str = ""
    stuck: str = ""
    failed: str = ""
    otherwise: str = ""
    takeover_s: float | None = None

    @property
    def as_made(self) -> bool:
        """Whether nothing was found."""
        found = self.two_trainers, self.weights, self.stuck, self.failed, self.otherwise
        return not any(found)


@dataclass
class Trained:
    """Every training request that a server has executed, in order: when, of which Tinker run."""

    requests: list[tuple[float, str, str]] = field(default_factory=list)

    @property
    def runs(self) -> list[str]:
        """The Tinker runs in the order in which they were first trained."""
        return list(dict.fromkeys(run for _, run, _ in self.requests))

    def overlap(self) -> str:
        """What was executed for a run after one that came later had been trained.

        Each process trains in Tinker runs of its own, and each of its attempts in another. So a
        step, or a save, that is executed in one run once the next has been trained is one by a
        process that was taken over.
        """
        order = {run: place for place, run in enumerate(self.runs)}
        newest = -1
        for at_s, run, request in self.requests:
            if order[run] < newest:
                return f"{request} of {run} at {at_s:.3f}: {self.requests}"
            newest = order[run]
        return ""


def watched(server: LocalTinker) -> Trained:
    """Write down what a server executes from now on; its one look inside."""
    trained = Trained()
    book = server._book  # noqa: SLF001 - asked about each request right before it is executed
    strike = book.strike

    def noted(layer: str, request: str, run: str | None, *given: Any, **more: Any) -> Any:
        if layer == "engine" and request in _TRAINING and run:
            trained.requests.append((time.monotonic(), run, request))
        return strike(layer, request, run, *given, **more)

    book.strike = noted  # type: ignore[method-assign]  # it answers the same
    return trained


@contextlib.asynccontextmanager
async def service(*, unkind: bool) -> AsyncIterator[tuple[LocalTinker, Trained, float]]:
    """A server, what it executes, and how long it may take to list a session.

    One that is not kind lists late, and dates sessions up to 25 minutes wrong.
    """
    lag_s = LAG_S if unkind else 0.0
    async with LocalTinker(
        heartbeat_limit_s=LIMIT_S,
        listing_delay_s=lag_s,
        created_jitter_s=JITTER_S if unkind else 0.0,
        created_skew_s=SKEW_S if unkind else 0.0,
    ) as server:
        yield server, watched(server), lag_s + KINDLY_S
