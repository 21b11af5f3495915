"""The figures of a run: steps done, steps replayed, goodput, and tokens. Without OpenTelemetry.

They are computed when read, so the loop pays nothing for them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tinker_recovery.costs import Meter, PriceTable, Tokens, Usage, usage_of
from tinker_recovery.telemetry.lost_time import Stretch, length, lost, without


@dataclass(slots=True)
class AttemptFigures:
    """The figures of one attempt.

    Attributes:
        start_step: Optimizer steps in the weights it started with.
        done: Optimizer steps it completed.
        kept_to: The step that a later attempt rewound the run to; infinite if none did.
        busy_s: Seconds it trained; not those in which it made no progress.
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

    Recoveries, waits, starts and replayed steps are not in it. None before the first step.
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
        lost_s: See :func:`~tinker_recovery.telemetry.lost_time.lost`.
        usage: Their tokens.
        model: The run's own base model; empty if it is not known.
        prices: What tokens cost.
    """

    done: int
    replayed: int
    goodput: float | None
    lost_s: float
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
        self._pauses: Callable[[], Sequence[Stretch]] = tuple
        self._since: float | None = None
        self._until: float | None = None
        self._away: list[Stretch] = []
        self._away_since: float | None = None
        self._earlier: list[AttemptFigures] = []
        self._lock = threading.Lock()

    def segment_began(
        self,
        start_step: int,
        done: Callable[[], int],
        meter: Meter | None = None,
        pauses: Callable[[], Sequence[Stretch]] = tuple,
    ) -> None:
        """An attempt starts training at this step.

        Args:
            start_step: The step.
            done: Returns its completed steps.
            meter: Counts its tokens.
            pauses: Returns when it made no progress.
        """
        with self._lock:
            self._close()
            for attempt in [*self._earlier, *self._past]:
                attempt.kept_to = min(attempt.kept_to, start_step)
            self._start_step, self._done, self._pauses = start_step, done, pauses
            self._meter = Meter() if meter is None else meter
            self._since, self._until = self._monotonic(), None

    def follows(self, attempt: AttemptFigures | None) -> None:
        """An earlier process left this attempt; counts only for the time lost here."""
        with self._lock:
            self._earlier = [] if attempt is None else [attempt]

    def stopped(self) -> None:
        """The attempt trains no more."""
        with self._lock:
            if self._since is not None and self._until is None:
                self._until = self._monotonic()

    def faulted(self, silent_s: float = 0.0) -> None:
        """A fault ended the attempt's training, which had made no progress for ``silent_s``."""
        self.stopped()
        with self._lock:
            if self._away_since is None:
                self._away_since = self._monotonic() - silent_s

    def recovered(self, *, counts: bool) -> None:
        """A client is handed over; unless that ``counts``, the run goes on after a stop."""
        with self._lock:
            if not counts:
                self._away_since = None

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
        self._away = self._away_now()
        self._away_since = None
        self._done, self._meter, self._pauses = (lambda: 0), Meter(), tuple

    def _away_now(self) -> list[Stretch]:
        open_since = [] if self._away_since is None else [(self._away_since, self._monotonic())]
        return [*self._away, *self._pauses(), *open_since]

    def _current(self) -> AttemptFigures | None:
        done = self._done()
        busy_s = 0.0
        if self._since is not None:
            until = self._monotonic() if self._until is None else self._until
            busy_s = length(without(self._since, until, self._away_now()))
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
            lost_s = lost(self._away_now(), [*self._earlier, *attempts])
            return Figures(done, done - kept, good, lost_s, usage, self.model, self._prices)
