"""The spans and figures of one run: its start, segments, recoveries and end.

Each is a trace of its own, so that they are visible while a run of days still lasts; links connect
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from opentelemetry.trace import INVALID_SPAN_CONTEXT, Span, SpanContext

from tinker_recovery.costs import Meter, PriceTable
from tinker_recovery.telemetry import metrics, names
from tinker_recovery.telemetry.figures import RunFigures
from tinker_recovery.telemetry.lost_time import Stretch
from tinker_recovery.telemetry.spans import Attributes, caller, mark, new_trace, open_root

if TYPE_CHECKING:
    from tinker_recovery.checkpoints import Segment


class RunTelemetry:
    """Emits the spans of one run, keeps those that later ones link to, and keeps its figures."""

    def __init__(
        self,
        name: str,
        lineage: str,
        monotonic: Callable[[], float],
        prices: PriceTable | None = None,
        *,
        label_run: bool = False,
    ) -> None:
        self.figures = RunFigures(monotonic, prices)
        """Steps, goodput and tokens."""
        self._name = name
        self._run: Attributes = {names.RUN: name, names.LINEAGE: lineage}
        self._start: SpanContext = INVALID_SPAN_CONTEXT
        self._label_run = label_run
        self._segment: SpanContext = INVALID_SPAN_CONTEXT
        self._training: tuple[Span, Callable[[], int]] | None = None
        self._recovery: SpanContext = INVALID_SPAN_CONTEXT
        self._ended = False

    def started(self, step: int, model: str = "") -> None:
        """The run starts at this step; call it where the user's own span is current.

        ``model`` is its base model, and empty if it is not known.
        """
        self.figures.model = model
        metrics.RUNS.add(self._name, self.figures)
        self._start = mark(
            names.SPAN_RUN_START,
            {**self._run, names.START_STEP: step},
            related=[(names.LINK_CALLER, caller())],
        )

    def segment_began(
        self,
        segment: Segment,
        number: int,
        done: Callable[[], int],
        meter: Meter | None = None,
        pauses: Callable[[], Sequence[Stretch]] = tuple,
    ) -> None:
        """An attempt begins on a client of its own.

        ``done`` returns its completed steps, ``meter`` counts its tokens, and ``pauses`` returns
        when it made no progress.
        """
        self.figures.segment_began(segment.start_step, done, meter, pauses)
        self._close_segment()
        parent = {} if segment.parent is None else {names.CHECKPOINT_PATH: segment.parent}
        span = open_root(
            names.SPAN_SEGMENT,
            {
                **self._run,
                **parent,
                names.RUN_ID: segment.run_id,
                names.ATTEMPT: number,
                names.ATTEMPT_ID: segment.attempt,
                names.START_STEP: segment.start_step,
            },
            related=[(names.LINK_RUN, self._start), (names.LINK_RECOVERY, self._recovery)],
        )
        self._segment = span.get_span_context()
        self._training = span, lambda: segment.start_step + done()

    def _close_segment(self) -> None:
        """It trains no more: that is its length."""
        if self._training is not None:
            (span, step), self._training = self._training, None
            span.set_attribute(names.STEP, step())
            span.end()

    def faulted(self, silent_s: float) -> None:
        """A fault ended the attempt, or the start, which had made no progress for ``silent_s``."""
        self.figures.faulted(silent_s)
        self._close_segment()

    def stopped(self) -> None:
        """The attempt trains no more, and was to be no attempt."""
        self.figures.stopped()
        self._close_segment()

    @contextmanager
    def recovery(self, attributes: Attributes, *, start_ns: int) -> Iterator[Span]:
        """The root span of an incident, linked to the one before and the segment it replaces."""
        related = [
            (names.LINK_PREVIOUS, self._recovery),
            (names.LINK_REPLACED, self._segment),
            (names.LINK_RUN, self._start),
        ]
        with new_trace(
            names.SPAN_RECOVERY, {**self._run, **attributes}, start_ns=start_ns, related=related
        ) as span:
            self._recovery = span.get_span_context()
            yield span

    @contextmanager
    def going_on(self, attributes: Attributes, *, start_ns: int) -> Iterator[Span]:
        """The root span of a run that goes on after a stop."""
        attributes, related = {**self._run, **attributes}, [(names.LINK_RUN, self._start)]
        with new_trace(names.SPAN_CONTINUE, attributes, start_ns=start_ns, related=related) as span:
            yield span

    def ended(self, *, step: int, recoveries: int, error: BaseException | None) -> bool:
        """The run is over, at this step; later calls are ignored. Whether this was the first."""
        if self._ended:
            return False
        self._ended = True
        self._close_segment()
        self.figures.ended()
        metrics.RUNS.end(self._name, self.figures)
        outcome = names.COMPLETED
        if error is not None:
            outcome = names.FAILED if isinstance(error, Exception) else names.INTERRUPTED
        metrics.run_ended(outcome=outcome, error=error, run=self._name if self._label_run else None)
        mark(
            names.SPAN_RUN_END,
            {**self._run, names.OUTCOME: outcome, names.STEP: step, names.RECOVERIES: recoveries},
            related=[
                (names.LINK_RUN, self._start),
                (names.LINK_LAST_SEGMENT, self._segment),
                (names.LINK_PREVIOUS, self._recovery),
            ],
            error=error,
        )
        return True
