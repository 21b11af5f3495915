"""A supervisor's events: one frozen record for each thing that happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

Attribute = str | int | float | bool

Outcome = Literal["normal", "crash", "failed_start", "ignored", "shutdown", "abandoned"]
"""How an incarnation ended. ``shutdown``: it was asked to stop, whatever it raised."""

Context = Literal["start_error", "child_terminated", "shutdown_error"]
"""When a child failed: while starting, running or being stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionEvent:
    """Something that happened to a child.

    Attributes:
        supervisor: The supervisor's name.
        child: The child's id.
        incarnation: Which incarnation of it.
        at: Monotonic seconds, on the supervisor's clock.
    """

    name: ClassVar[str] = "supervision"

    supervisor: str
    child: str
    incarnation: int
    at: float

    def as_attributes(self) -> dict[str, Attribute]:
        """The event as a flat mapping for log records and spans, without fields that are None.

        Every key has a dot in it, so none clashes with those of a ``logging.LogRecord``.
        """
        flat: dict[str, Attribute] = {"event.name": self.name}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, BaseException):
                flat[f"supervision.{field.name}.type"] = type(value).__qualname__
                flat[f"supervision.{field.name}.message"] = str(value)
            elif value is not None:
                flat[f"supervision.{field.name}"] = value
        return flat


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(SupervisionEvent):
    """An incarnation got its task; it is not ready yet."""

    name: ClassVar[str] = "supervision.child.started"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReady(SupervisionEvent):
    """It called ``started()``.

    Attributes:
        startup_s: Seconds since it was started.
    """

    name: ClassVar[str] = "supervision.child.ready"

    startup_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExited(SupervisionEvent):
    """It ended, or was abandoned.

    Attributes:
        outcome: How it ended.
        error: Its exception, if any.
        lived_s: Seconds since it was ready; 0 if it never was.
    """

    name: ClassVar[str] = "supervision.child.exited"

    outcome: Outcome
    error: BaseException | None
    lived_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartScheduled(SupervisionEvent):
    """It will be started again.

    Attributes:
        delay_s: Seconds of backoff before that.
        failures: Failures in a row, including this one.
        restarts: Restarts that count against the supervisor's limit now, including this one.
    """

    name: ClassVar[str] = "supervision.child.restart_scheduled"

    delay_s: float
    failures: int
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRestarted(SupervisionEvent):
    """A restarted child is ready.

    Attributes:
        downtime_s: Seconds since the incarnation before it ended.
    """

    name: ClassVar[str] = "supervision.child.restarted"

    downtime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StopTimedOut(SupervisionEvent):
    """It did not stop within its shutdown limit.

    Attributes:
        waited_s: Seconds since the exit signal.
        abandoned: False: it is cancelled again. True: it ignored that too and was abandoned.
    """

    name: ClassVar[str] = "supervision.child.stop_timed_out"

    waited_s: float
    abandoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalated(SupervisionEvent):
    """The supervisor gave up: it stops its children and raises an error, in its parent if nested.

    Attributes:
        error: The error.
        restarts: Restarts that counted against the limit.
    """

    name: ClassVar[str] = "supervision.escalated"

    error: BaseException
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport(SupervisionEvent):
    """OTP's supervisor report: which child failed, when, and why.

    Attributes:
        context: When it failed.
        reason: The exception.
        restart: The child's restart type.
        shutdown: The child's shutdown limit.
        type: The child's type.
    """

    name: ClassVar[str] = "supervision.crash_report"

    context: Context
    reason: BaseException
    restart: str
    shutdown: float | str
    type: str


Listener = Callable[[SupervisionEvent], object]
