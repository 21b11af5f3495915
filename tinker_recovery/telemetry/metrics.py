"""Metrics, on opentelemetry-api alone: without an SDK configured they cost next to nothing.

Rare things are recorded from their events. What happens at every step is not recorded, but read
from the run when metrics are collected.

| metric | unit | attributes |
|---|---|---|
| tinker_recovery.recovery.duration | s | fault.kind, outcome, error.type |
| tinker_recovery.recovery.attempt | {attempt} | outcome, error.type |
| tinker_recovery.detection.lag | s | fault.kind, fault.detected_by |
| tinker_recovery.step.done, .replayed | {step} | run.name |
| tinker_recovery.token.used, .replayed | {token} | run.name, token.kind, base_model |
| tinker_recovery.run.cost | {usd} | run.name |
| tinker_recovery.checkpoint.save.duration | s | |
| tinker_recovery.checkpoint.save.error | {error} | error.type |
| tinker_recovery.checkpoint.kept | {checkpoint} | run.name |
| tinker_recovery.checkpoint.deleted | {checkpoint} | run.name |
| tinker_recovery.poll.error | {error} | error.type |
| tinker_recovery.run.active | {run} | |
| tinker_recovery.run.ended | {run} | outcome, error.type |
| tinker_recovery.run.goodput_ratio | 1 | run.name |

With ``telemetry_run_label=True`` in the policy, those without run.name have it as well, poll.error
only for a run. Prometheus's names have underscores, units and suffixes:
``tinker_recovery_run_goodput_ratio``, ``tinker_recovery_run_ended_total``.

Source: OpenTelemetry's conventions for metrics (units of UCUM, no plurals, error.type only on what
failed).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.util.types import AttributeValue

from tinker_recovery.costs import Tokens, Usage, bill
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.figures import Figures, RunFigures
from tinker_recovery.telemetry.record import RecoveryEvent
from tinker_recovery.telemetry.spans import Attributes

RECOVERY_DURATION = "tinker_recovery.recovery.duration"
RECOVERY_ATTEMPT = "tinker_recovery.recovery.attempt"
DETECTION_LAG = "tinker_recovery.detection.lag"
STEP_DONE = "tinker_recovery.step.done"
STEP_REPLAYED = "tinker_recovery.step.replayed"
USAGE = "tinker_recovery.token.used"
USAGE_REPLAYED = "tinker_recovery.token.replayed"
RUN_COST = "tinker_recovery.run.cost"
SAVE_DURATION = "tinker_recovery.checkpoint.save.duration"
SAVE_ERROR = "tinker_recovery.checkpoint.save.error"
CHECKPOINT_KEPT = "tinker_recovery.checkpoint.kept"
CHECKPOINT_DELETED = "tinker_recovery.checkpoint.deleted"
POLL_ERROR = "tinker_recovery.poll.error"
RUN_ACTIVE = "tinker_recovery.run.active"
RUN_ENDED = "tinker_recovery.run.ended"
RUN_GOODPUT = "tinker_recovery.run.goodput_ratio"

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Bucket bounds that resolve both our own milliseconds and a service's minutes."""

_RUNS_REMEMBERED = 500
"""How many ended runs are still reported; the SDK accepts 2000 sets of attributes."""


class _Registry:
    """The figures of every run of the process, by name."""

    def __init__(self) -> None:
        self._active: dict[RunFigures, str] = {}
        self._past: OrderedDict[str, list[Figures]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, run: RunFigures) -> None:
        """Report a run from now on."""
        with self._lock:
            self._active[run] = name
        _instruments()

    def end(self, name: str, run: RunFigures) -> None:
        """Keep the last figures of a run that is over."""
        with self._lock:
            self._active.pop(run, None)
            self._past.setdefault(name, []).append(run.read())
            self._past.move_to_end(name)
            if len(self._past) > _RUNS_REMEMBERED:
                self._past.popitem(last=False)

    def forked(self) -> None:
        """In a forked child, whose parent reports its runs itself: there are none.

        OpenTelemetry's SDK exports from a child as well, and by a series of its own, so that in a
        sum over both each run would be there twice, and once more with every loader of data.
        """
        self._lock = threading.Lock()  # the thread that held it is not there to release it
        self._active, self._past = {}, OrderedDict()

    def active(self) -> int:
        return len(self._active)

    def read(self) -> Iterator[tuple[str, Figures]]:
        """The name and figures of every run; a name may occur several times."""
        with self._lock:
            past = [(name, each) for name, every in self._past.items() for each in every]
            active = list(self._active.items())
        yield from past
        for run, name in active:
            yield name, run.read()


RUNS = _Registry()


def _forked() -> None:
    RUNS.forked()  # the one there is by then


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _sum(pick: Callable[[Figures], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        # Runs of one name are one series, which never goes down.
        sums: dict[str, int] = defaultdict(int)
        for name, figures in RUNS.read():
            sums[name] += pick(figures)
        return [Observation(value, {names.RUN: name}) for name, value in sums.items()]

    return observe


def _tokens(pick: Callable[[Usage], Tokens]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        sums: dict[tuple[str, str, str], int] = defaultdict(int)
        for name, figures in RUNS.read():
            for (kind, model), number in pick(figures.usage).counts.items():
                sums[name, kind, model or figures.model] += number
        return [
            Observation(number, {names.RUN: name, names.USAGE_KIND: kind, names.BASE_MODEL: model})
            for (name, kind, model), number in sums.items()
        ]

    return observe


def _cost(_: CallbackOptions) -> Iterable[Observation]:
    sums: dict[str, float] = defaultdict(float)
    for name, figures in RUNS.read():
        if figures.prices is not None:
            sums[name] += bill(figures.usage.tokens, figures.prices, figures.model).usd
    return [Observation(value, {names.RUN: name}) for name, value in sums.items()]


def _active(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(RUNS.active())]


def _goodput(_: CallbackOptions) -> Iterable[Observation]:
    newest = {name: figures.goodput for name, figures in RUNS.read()}
    return [
        Observation(value, {names.RUN: name}) for name, value in newest.items() if value is not None
    ]


class _Instruments:
    """The instruments of one meter provider."""

    def __init__(self, provider: MeterProvider) -> None:
        self.provider = provider
        meter = provider.get_meter(names.SCOPE)

        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(
                name,
                unit="s",
                description=description,
                explicit_bucket_boundaries_advisory=_SECONDS,
            )

        self.recovery = seconds(RECOVERY_DURATION, "From detection to hand-over, or to giving up.")
        self.lag = seconds(DETECTION_LAG, "How long a fault can have gone unseen.")
        self.save = seconds(SAVE_DURATION, "What a save takes once its turn has come.")
        self.attempt = meter.create_counter(
            RECOVERY_ATTEMPT, unit="{attempt}", description="Recovery attempts, by outcome."
        )
        self.poll_error = meter.create_counter(
            POLL_ERROR, unit="{error}", description="Status reads that failed."
        )
        self.save_error = meter.create_counter(
            SAVE_ERROR, unit="{error}", description="Saves that failed, the first of each row."
        )
        self.deleted = meter.create_counter(
            CHECKPOINT_DELETED, unit="{checkpoint}", description="Checkpoints deleted."
        )
        self.ended = meter.create_counter(
            RUN_ENDED, unit="{run}", description="Runs that have ended, by outcome."
        )
        self.kept = meter.create_gauge(
            CHECKPOINT_KEPT, unit="{checkpoint}", description="Checkpoints a run keeps now."
        )
        meter.create_observable_counter(
            STEP_DONE,
            [_sum(lambda run: run.done)],
            unit="{step}",
            description="Optimizer steps completed.",
        )
        meter.create_observable_counter(
            STEP_REPLAYED,
            [_sum(lambda run: run.replayed)],
            unit="{step}",
            description="Optimizer steps completed that had to be done again.",
        )
        meter.create_observable_counter(
            USAGE,
            [_tokens(lambda usage: usage.tokens)],
            unit="{token}",
            description="Tokens trained, sampled and used for checks.",
        )
        meter.create_observable_counter(
            USAGE_REPLAYED,
            [_tokens(lambda usage: usage.replayed)],
            unit="{token}",
            description="Tokens in steps that had to be done again.",
        )
        meter.create_observable_counter(
            RUN_COST, [_cost], unit="{usd}", description="Cost of the tokens that have a price."
        )
        meter.create_observable_up_down_counter(
            RUN_ACTIVE, [_active], unit="{run}", description="Runs under way."
        )
        meter.create_observable_gauge(
            RUN_GOODPUT,
            [_goodput],
            unit="1",
            description="Share of a run's time in steps that are still in its weights.",
        )


_current: _Instruments | None = None


def _instruments() -> _Instruments:
    """The instruments of the current provider; created anew if the provider was set since."""
    global _current  # noqa: PLW0603 - one set of instruments per process, as in OpenTelemetry
    provider = metrics.get_meter_provider()
    if _current is None or _current.provider is not provider:
        _current = _Instruments(provider)
    return _current


def recovered(
    *,
    kind: str,
    outcome: str,
    duration_s: float,
    error: BaseException | None,
    run: str | None = None,
) -> None:
    """Record the end of a recovery; ``run`` labels it with its run."""
    attributes = {names.FAULT_KIND: kind, **_ended(outcome, error, run)}
    _instruments().recovery.record(duration_s, attributes)


def run_ended(*, outcome: str, error: BaseException | None, run: str | None = None) -> None:
    """Count the end of a run; ``run`` labels it with its name."""
    _instruments().ended.add(1, _ended(outcome, error, run))


def _ended(outcome: str, error: BaseException | None, run: str | None) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {names.OUTCOME: outcome}
    if error is not None:
        attributes[names.ERROR_TYPE] = type(error).__qualname__
    return attributes | _label(run)


def _label(run: str | None) -> dict[str, AttributeValue]:
    return {names.RUN: run} if run else {}


def kept(run: str, checkpoints: int) -> None:
    """Record how many checkpoints retention has kept of a run."""
    _instruments().kept.set(checkpoints, {names.RUN: run})


_Count = Callable[[_Instruments, RecoveryEvent, Attributes], None]


def count(event: RecoveryEvent, *, label_run: bool = False) -> None:
    """Record an event in the metrics it belongs to, if any, and with its run if asked."""
    counted = _COUNTS.get(event.name)
    if counted is not None:
        counted(_instruments(), event, _label(event.run if label_run else None))


def _only(event: RecoveryEvent, *keys: str) -> Attributes:
    return {key: event.fields[key] for key in keys if key in event.fields}


def _record(
    histogram: Histogram, event: RecoveryEvent, seconds: str, attributes: Attributes
) -> None:
    value = event.fields.get(seconds)
    if isinstance(value, (int, float)):
        histogram.record(value, attributes)


def _tried(outcome: str) -> _Count:
    return lambda to, event, label: to.attempt.add(
        1, {names.OUTCOME: outcome, **_only(event, names.ERROR_TYPE), **label}
    )


_COUNTS: Mapping[str, _Count] = {
    names.EVENT_DETECTED: lambda to, event, label: _record(
        to.lag,
        event,
        names.SILENT_S,
        {**_only(event, names.FAULT_KIND, names.FAULT_DETECTED_BY), **label},
    ),
    names.EVENT_COMPLETED: _tried(names.RECOVERED),
    names.EVENT_FAILED: _tried(names.FAILED),
    names.EVENT_CHECKPOINT_SAVED: lambda to, event, label: _record(
        to.save, event, names.SAVE_S, label
    ),
    names.EVENT_CHECKPOINT_SAVE_FAILED: lambda to, event, label: to.save_error.add(
        1, {**_only(event, names.ERROR_TYPE), **label}
    ),
    names.EVENT_CHECKPOINT_DELETED: lambda to, event, _: to.deleted.add(1, {names.RUN: event.run}),
    names.EVENT_POLL_ERROR: lambda to, event, label: to.poll_error.add(
        1, {**_only(event, names.ERROR_TYPE), **label}
    ),
}
