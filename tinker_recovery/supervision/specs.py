"""Child specs: what a supervisor is told of a child, checked when it is made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Concatenate, Literal

from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import number, one_of, text
from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import SpecError
from tinker_recovery.supervision.strategies import AutoShutdown, Restart

Shutdown = float | Literal["brutal_kill", "infinity"]
"""Seconds a child has to stop in; ``brutal_kill``: none; ``infinity``: as long as it takes."""

ChildType = Literal["worker", "supervisor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What a supervisor is told of one child.

    Attributes:
        id: Its name, unique in its supervisor.
        start: ``async def serve(child: Child)``: called once for each incarnation, in a task of
            its own. It calls ``child.started()`` when it is up; what it raises or returns before
            that is a failed start. ``child.ignore()`` and a return means: nothing to run here.
        restart: ``permanent``: always restarted. ``transient``: only after an abnormal exit, that
            is an exception. ``temporary``: never, and forgotten once it is gone.
        shutdown: Seconds it has for stopping, from the exit signal (one cancellation) on. Then it
            is cancelled again, which interrupts its clean-up too, and abandoned if even that does
            not end it. ``brutal_kill`` gives no time, ``infinity`` (for supervisors) any.
        significant: Whether its end counts for the supervisor's ``auto_shutdown``.
        type: ``worker``, or ``supervisor`` for one that has children itself; only told on.
        backoff: Delays before its restarts, where they differ from the supervisor's.
        heartbeat_s: It has to call ``child.heartbeat()`` within this many seconds, again and
            again from ``started()`` on, or it is treated as crashed. None: never asked.

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
        if self.heartbeat_s is not None and number("heartbeat_s", self.heartbeat_s, "> 0 s") <= 0:
            raise SpecError("heartbeat_s", self.heartbeat_s, "more than 0 seconds, or None")


def check_specs(specs: Iterable[ChildSpec], auto_shutdown: AutoShutdown) -> tuple[ChildSpec, ...]:
    """The specs as a tuple, once it is certain that they go together.

    Raises:
        SpecError: Two have one id, or one is significant where that would mean nothing.
    """
    checked: dict[str, ChildSpec] = {}
    for spec in specs:
        if not isinstance(spec, ChildSpec):
            raise SpecError("specs", spec, "every one has to be a ChildSpec")
        if spec.id in checked:
            raise SpecError("id", spec.id, "two children have it, and ids have to be unique")
        check_significant(spec, auto_shutdown)
        checked[spec.id] = spec
    return tuple(checked.values())


def check_significant(spec: ChildSpec, auto_shutdown: AutoShutdown) -> None:
    """Refuse a significant child under a supervisor that would not heed it.

    Raises:
        SpecError: ``auto_shutdown`` is ``never``.
    """
    if spec.significant and auto_shutdown == "never":
        raise SpecError(
            "auto_shutdown",
            auto_shutdown,
            f"child {spec.id!r} is significant, which takes 'any_significant' or 'all_significant'",
        )
