"""What a supervisor tells while it works: one frozen record for each thing that happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

Attribute = str | int | float | bool

Outcome = Literal["normal", "crash", "failed_start", "ignored", "shutdown", "abandoned"]
"""How an incarnation ended. ``shutdown``: it was asked to, whatever it answered."""

Context = Literal["start_error", "child_terminated", "shutdown_error"]
"""When a child went wrong: starting, running, or while it was being stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionEvent:
    """Something that happened to a child.

    Attributes:
        supervisor: Name of the supervisor.
        child: Id of the child.
        incarnation: Which incarnation of it.
        at: Monotonic seconds, on the supervisor's clock.
    """

    name: ClassVar[str] = "supervision"

    supervisor: str
    child: str
    incarnation: int
    at: float

    def as_attributes(self) -> dict[str, Attribute]:
        """The event as a flat mapping, for log records and spans; what is None is left out.

        Every key has a dot in it, so none can be one of a ``logging.LogRecord``'s own.
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
    """An incarnation was given its task; it is not ready yet."""

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
    """It ended, or was given up.

    Attributes:
        outcome: How.
        error: Its exception, if there was one.
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
        failures: Failures in a row so far, this one included.
        restarts: Restarts that count against the supervisor's limit now, this one included.
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
        abandoned: False: it is being cancelled again. True: that did not help either, and it was
            left behind.
    """

    name: ClassVar[str] = "supervision.child.stop_timed_out"

    waited_s: float
    abandoned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Escalated(SupervisionEvent):
    """The supervisor gave up, stops its children and hands the error to its parent.

    Attributes:
        error: What it raises.
        restarts: Restarts that counted against the limit.
    """

    name: ClassVar[str] = "supervision.escalated"

    error: BaseException
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport(SupervisionEvent):
    """OTP's supervisor report: which child went wrong, when, and why.

    The offender is the child and incarnation, with what its spec says of restarts.

    Attributes:
        context: When it went wrong.
        reason: The exception.
        restart: The offender's restart type.
        shutdown: The offender's shutdown limit.
        type: The offender's type.
    """

    name: ClassVar[str] = "supervision.crash_report"

    context: Context
    reason: BaseException
    restart: str
    shutdown: float | str
    type: str


Listener = Callable[[SupervisionEvent], object]
