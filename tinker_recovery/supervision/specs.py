"""Child specs, checked when they are made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Concatenate, Literal

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import number, one_of, text, whole
from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import SpecError
from tinker_recovery.supervision.strategies import AutoShutdown, Restart

Shutdown = float | Literal["brutal_kill", "infinity"]
"""Seconds a child has to stop in; ``brutal_kill``: none; ``infinity``: as long as it takes."""

ChildType = Literal["worker", "supervisor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How a supervisor starts, restarts and stops one child.

    Attributes:
        id: The child's name, unique in its supervisor.
        start: ``async def serve(child: Child)``: called once for each incarnation, in a task of
            its own. It calls ``child.started()`` when it is up; if it raises or returns before
            that, its start has failed. To run nothing, it calls ``child.ignore()`` and returns.
        restart: ``permanent``: always restarted. ``transient``: only after an abnormal exit, that
            is an exception. ``temporary``: never, and forgotten once it has ended.
        shutdown: Seconds it has to stop, from the exit signal (one cancellation). After that it is
            cancelled again, which interrupts its clean-up, and abandoned if it ignores that too.
            ``brutal_kill``: no time; ``infinity`` (for supervisors): no limit.
        significant: Whether its end counts for the supervisor's ``auto_shutdown``.
        type: ``worker``, or ``supervisor`` for one with children of its own; informative only.
        backoff: Delays before its restarts; None for the supervisor's.
        heartbeat_s: From ``started()`` on, it has to call ``child.heartbeat()`` at least once in
            this many seconds, or it is treated as crashed. None: no heartbeats are expected.
        start_timeout_s: Seconds for its start, until it calls ``started()`` or ``ignore()``. Past
            them it is stopped, and its start has failed with :class:`StartTimedOut`. The default is
            longer than a connection that is refused, resolved or timed out takes to say so; until
            then its siblings wait. None: no limit, as for supervisors, whose children have theirs.
        max_restarts: A restart budget of its own: so many within any ``max_seconds``. Its restarts
            then count against this one and not against the supervisor's; beyond it the supervisor
            gives up in the same way. None: the supervisor's.
        max_seconds: The window of ``max_restarts``; None for the supervisor's.

    Raises:
        SpecError: A field that cannot work.
    """

    id: str
    start: Callable[Concatenate[Child, ...], Awaitable[object]]
    restart: Restart = "permanent"
    shutdown: Shutdown = 5.0
    significant: bool = False
    type: ChildType = "worker"
    backoff: Backoff | None = None
    heartbeat_s: float | None = None
    start_timeout_s: float | None = 60.0
    max_restarts: int | None = None
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        text("id", self.id)
        if not callable(self.start):
            raise SpecError("start", self.start, "an async function that takes a Child")
        one_of("restart", self.restart, Restart)
        one_of("type", self.type, ChildType)
        if self.shutdown not in ("brutal_kill", "infinity"):
            allowed = "seconds above 0, 'brutal_kill' or 'infinity'"
            if number("shutdown", self.shutdown, allowed) <= 0:
                raise SpecError("shutdown", self.shutdown, allowed)
        if not isinstance(self.significant, bool):
            raise SpecError("significant", self.significant, "True or False")
        if self.significant and self.restart == "permanent":
            raise SpecError(
                "significant",
                self.significant,
                f"child {self.id!r} is permanent, so it never ends by itself: only transient and "
                "temporary children can be significant",
            )
        if self.backoff is not None and not isinstance(self.backoff, Backoff):
            raise SpecError("backoff", self.backoff, "a Backoff, or None for the supervisor's")
        self._check_times()

    def _check_times(self) -> None:
        for name in ("heartbeat_s", "start_timeout_s", "max_seconds"):
            value, allowed = getattr(self, name), "more than 0 seconds, or None"
            if value is not None and number(name, value, allowed) <= 0:
                raise SpecError(name, value, allowed)
        if self.max_restarts is not None:
            whole("max_restarts", self.max_restarts)
        elif self.max_seconds is not None:
            raise SpecError("max_seconds", self.max_seconds, "None without max_restarts")


def check_specs(specs: Iterable[ChildSpec], auto_shutdown: AutoShutdown) -> tuple[ChildSpec, ...]:
    """The specs as a tuple, checked against each other and the supervisor.

    Raises:
        SpecError: Two have one id, or one is significant while ``auto_shutdown`` is ``never``.
    """
    checked: dict[str, ChildSpec] = {}
    for spec in specs:
        if not isinstance(spec, ChildSpec):
            raise SpecError("specs", spec, "every one has to be a ChildSpec")
        if spec.id in checked:
            raise SpecError("id", spec.id, "two children have it; ids have to be unique")
        check_significant(spec, auto_shutdown)
        checked[spec.id] = spec
    return tuple(checked.values())


def check_significant(spec: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Raise SpecError for a significant child if ``auto_shutdown`` is ``never``."""
    if spec.significant and auto_shutdown == "never":
        raise SpecError(
            "auto_shutdown",
            auto_shutdown,
            f"child {spec.id!r} is significant: use 'any_significant' or 'all_significant'",
        )
