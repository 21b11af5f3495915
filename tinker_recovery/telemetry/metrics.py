"""Metrics, on opentelemetry-api alone: without an SDK configured they cost next to nothing.

What happens now and then is recorded when it does, from the events. What happens at every step is
not recorded at all: it is read from the run when a collection asks for it.

| metric | unit | attributes |
|---|---|---|
| tinker_recovery.recovery.duration | s | fault.kind, outcome, error.type |
| tinker_recovery.recovery.attempt | {attempt} | outcome, error.type |
| tinker_recovery.detection.lag | s | fault.kind, fault.detected_by |
| tinker_recovery.step.done, .replayed | {step} | run.name |
| tinker_recovery.checkpoint.save.duration | s | |
| tinker_recovery.checkpoint.save.error | {error} | error.type |
| tinker_recovery.checkpoint.kept | {checkpoint} | run.name |
| tinker_recovery.checkpoint.deleted | {checkpoint} | run.name |
| tinker_recovery.poll.error | {error} | error.type |
| tinker_recovery.run.active | {run} | |
| tinker_recovery.run.goodput | 1 | run.name |

Source: OpenTelemetry's conventions for metrics (units of UCUM, no plurals, error.type only on what
failed).
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.util.types import AttributeValue

from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.figures import Figures, RunFigures
from tinker_recovery.telemetry.record import RecoveryEvent

RECOVERY_DURATION = "tinker_recovery.recovery.duration"
RECOVERY_ATTEMPT = "tinker_recovery.recovery.attempt"
DETECTION_LAG = "tinker_recovery.detection.lag"
STEP_DONE = "tinker_recovery.step.done"
STEP_REPLAYED = "tinker_recovery.step.replayed"
SAVE_DURATION = "tinker_recovery.checkpoint.save.duration"
SAVE_ERROR = "tinker_recovery.checkpoint.save.error"
CHECKPOINT_KEPT = "tinker_recovery.checkpoint.kept"
CHECKPOINT_DELETED = "tinker_recovery.checkpoint.deleted"
POLL_ERROR = "tinker_recovery.poll.error"
RUN_ACTIVE = "tinker_recovery.run.active"
RUN_GOODPUT = "tinker_recovery.run.goodput"

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
"""Bounds that tell our own milliseconds from a service's minutes."""

_RUNS_REMEMBERED = 500
"""How many runs that have ended stay in what is read; the SDK takes 2000 sets of attributes."""

Attributes = Mapping[str, AttributeValue]


class _Registry:
    """The figures of every run of the process, by name."""

    def __init__(self) -> None:
        self._active: dict[RunFigures, str] = {}
        self._past: OrderedDict[str, list[Figures]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, run: RunFigures) -> None:
        with self._lock:
            self._active[run] = name

    def end(self, name: str, run: RunFigures) -> None:
        with self._lock:
            self._active.pop(run, None)
            self._past.setdefault(name, []).append(run.read())
            self._past.move_to_end(name)
            if len(self._past) > _RUNS_REMEMBERED:
                self._past.popitem(last=False)

    def active(self) -> int:
        return len(self._active)

    def read(self) -> Iterator[tuple[str, Figures]]:
        """The figures of every run; several of one name are told one after the other."""
        with self._lock:
            past = [(name, each) for name, every in self._past.items() for each in every]
            active = list(self._active.items())
        yield from past
        for run, name in active:
            yield name, run.read()


_RUNS = _Registry()


def run_began(name: str, run: RunFigures) -> None:
    """A run of this name is to be read from now on."""
    _RUNS.add(name, run)
    _instruments()


def run_ended(name: str, run: RunFigures) -> None:
    """It is over; its last figures stay."""
    _RUNS.end(name, run)


def _sum(pick: Callable[[Figures], int]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        # Runs of one name are one series, which never goes down.
        sums: dict[str, int] = defaultdict(int)
        for name, figures in _RUNS.read():
            sums[name] += pick(figures)
        return [Observation(value, {names.RUN: name}) for name, value in sums.items()]

    return observe


def _active(_: CallbackOptions) -> Iterable[Observation]:
    return [Observation(_RUNS.active())]


def _goodput(_: CallbackOptions) -> Iterable[Observation]:
    newest = {name: figures.goodput for name, figures in _RUNS.read()}
    return [
        Observation(value, {names.RUN: name}) for name, value in newest.items() if value is not None
    ]


class _Instruments:
    """What is recorded to, of one meter provider."""

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
            RECOVERY_ATTEMPT, unit="{attempt}", description="Tries at recovering, by outcome."
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
    """Those of the provider that is set now; set later, it gets its own (the SDK's, once)."""
    global _current  # noqa: PLW0603 - one set of instruments a process, as OpenTelemetry has it
    provider = metrics.get_meter_provider()
    if _current is None or _current.provider is not provider:
        _current = _Instruments(provider)
    return _current


def recovered(*, kind: str, outcome: str, duration_s: float, error: BaseException | None) -> None:
    """Dealing with one fault ended."""
    attributes: dict[str, AttributeValue] = {names.FAULT_KIND: kind, names.OUTCOME: outcome}
    if error is not None:
        attributes[names.ERROR_TYPE] = type(error).__qualname__
    _instruments().recovery.record(duration_s, attributes)


def kept(run: str, checkpoints: int) -> None:
    """House was kept: so many checkpoints of the run are left."""
    _instruments().kept.set(checkpoints, {names.RUN: run})


_Count = Callable[[_Instruments, RecoveryEvent], None]


def count(event: RecoveryEvent) -> None:
    """Record what an event says, if it is one that is measured."""
    counted = _COUNTED.get(event.name)
    if counted is not None:
        counted(_instruments(), event)


def _only(fields: Attributes, *keys: str) -> dict[str, AttributeValue]:
    return {key: fields[key] for key in keys if key in fields}


def _detected(to: _Instruments, event: RecoveryEvent) -> None:
    told = _only(event.fields, names.FAULT_KIND, names.FAULT_DETECTED_BY)
    _record(to.lag, event.fields.get(names.SILENT_S), told)


def _saved(to: _Instruments, event: RecoveryEvent) -> None:
    _record(to.save, event.fields.get(names.SAVE_S), {})


def _record(to: Histogram, seconds: AttributeValue | None, attributes: Attributes) -> None:
    if isinstance(seconds, (int, float)):
        to.record(seconds, attributes)


def _tried(outcome: str) -> _Count:
    def tried(to: _Instruments, event: RecoveryEvent) -> None:
        to.attempt.add(1, {names.OUTCOME: outcome, **_only(event.fields, names.ERROR_TYPE)})

    return tried


def _save_failed(to: _Instruments, event: RecoveryEvent) -> None:
    to.save_error.add(1, _only(event.fields, names.ERROR_TYPE))


def _poll_failed(to: _Instruments, event: RecoveryEvent) -> None:
    to.poll_error.add(1, _only(event.fields, names.ERROR_TYPE))


def _deleted(to: _Instruments, event: RecoveryEvent) -> None:
    to.deleted.add(1, {names.RUN: event.run})


_COUNTED: Mapping[str, _Count] = {
    names.EVENT_DETECTED: _detected,
    names.EVENT_COMPLETED: _tried(names.RECOVERED),
    names.EVENT_FAILED: _tried(names.FAILED),
    names.EVENT_CHECKPOINT_SAVED: _saved,
    names.EVENT_CHECKPOINT_SAVE_FAILED: _save_failed,
    names.EVENT_CHECKPOINT_DELETED: _deleted,
    names.EVENT_POLL_ERROR: _poll_failed,
}
