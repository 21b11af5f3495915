"""The figures of a run: steps done, steps replayed, goodput, and tokens. Without OpenTelemetry.

They are computed when read, so the loop pays nothing for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinker_recovery.costs import Meter, PriceTable, Tokens, Usage, usage_of


@dataclass(slots=True)
class AttemptFigures:
    """The figures of one attempt.

    Attributes:
        start_step: Optimizer steps in the weights it started with.
        done: Optimizer steps it completed.
        kept_to: The step that a later attempt rewound the run to; infinite if none did.
        busy_s: Seconds it trained.
        meter: Counts its tokens.
    """

    start_step: int
    done: int
    kept_to: float
    busy_s: float
    meter: Meter = field(default_factory=Meter)

    @property
    def kept(self) -> int:
        """How many of its steps are in the run's weights."""
        return int(max(0, min(self.start_step + self.done, self.kept_to) - self.start_step))

    @property
    def tokens(self) -> tuple[Tokens, Tokens]:
        """All its tokens, and those that went into the steps kept."""
        tokens = self.meter.read()
        return tokens, tokens if math.isinf(self.kept_to) else self.meter.up_to(self.kept_to)

    @property
    def useful_s(self) -> float:
        """The part of its time that went into the steps kept."""
        return self.busy_s * self.kept / self.done if self.done else 0.0


def goodput(attempts: Sequence[AttemptFigures], elapsed_s: float) -> float | None:
    """The share of a run's time that went into steps that are in its weights, 0 to 1.

    Recoveries, waits and replayed steps count as lost. None before the first step.
    """
    if elapsed_s <= 0 or not any(each.done for each in attempts):
        return None
    return min(1.0, sum(each.useful_s for each in attempts) / elapsed_s)


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a run.

    Attributes:
        done: Optimizer steps completed, in all attempts.
        replayed: Those of them that had to be done again.
        goodput: See :func:`goodput`.
        usage: Their tokens.
        model: The run's own base model; empty if it is not known.
        prices: What tokens cost.
    """

    done: int
    replayed: int
    goodput: float | None
    usage: Usage
    model: str
    prices: PriceTable | None


class RunFigures:
    """Keeps the times and steps of one run. Updated in the event loop, readable from any thread."""

    def __init__(self, monotonic: Callable[[], float], prices: PriceTable | None = None) -> None:
        self.model = ""
        """The run's own base model; empty if it is not known."""
        self._prices = prices
        self._meter = Meter()
        self._monotonic = monotonic
        self._began = monotonic()
        self._ended: float | None = None
        self._past: list[AttemptFigures] = []
        self._start_step = 0
        self._done: Callable[[], int] = lambda: 0
        self._since: float | None = None
        self._busy_s = 0.0
        self._lock = threading.Lock()

    def segment_began(
        self, start_step: int, done: Callable[[], int], meter: Meter | None = None
    ) -> None:
        """An attempt starts training at this step.

        Args:
            start_step: The step.
            done: Returns its completed steps.
            meter: Counts its tokens.
        """
        with self._lock:
            self._close()
            for attempt in self._past:
                attempt.kept_to = min(attempt.kept_to, start_step)
            self._start_step, self._done = start_step, done
            self._meter = Meter() if meter is None else meter
            self._since, self._busy_s = self._monotonic(), 0.0

    def stopped(self) -> None:
        """A fault ended the attempt's training."""
        with self._lock:
            if self._since is not None:
                self._busy_s += self._monotonic() - self._since
                self._since = None

    def ended(self) -> None:
        """The run is over: freeze its figures, and release the client."""
        self.stopped()
        with self._lock:
            self._close()
            self._ended = self._monotonic()

    def _close(self) -> None:
        current = self._current()
        if current is not None:
            self._past.append(current)
        self._done, self._meter = (lambda: 0), Meter()

    def _current(self) -> AttemptFigures | None:
        done = self._done()
        running_s = 0.0 if self._since is None else self._monotonic() - self._since
        busy_s = self._busy_s + running_s
        if not done and not self._meter.read():
            return None
        return AttemptFigures(self._start_step, done, math.inf, busy_s, self._meter)

    def read(self) -> Figures:
        """The figures as they are now."""
        with self._lock:
            current = self._current()
            attempts = self._past if current is None else [*self._past, current]
            elapsed_s = (self._monotonic() if self._ended is None else self._ended) - self._began
            done = sum(each.done for each in attempts)
            kept = sum(each.kept for each in attempts)
            usage = usage_of(each.tokens for each in attempts)
            good = goodput(attempts, elapsed_s)
            return Figures(done, done - kept, good, usage, self.model, self._prices)
