"""A supervisor of asyncio tasks, after OTP's: start, watch, restart, stop, and give up in time.

::

    async def serve(child: Child) -> None:
        connection = await connect()
        child.started()                      # only now does the next child start
        async for message in connection: ...

    specs = [ChildSpec(id="feed", start=serve), inner.as_child()]
    async with SupervisionTree(specs, strategy="rest_for_one", max_restarts=3, max_seconds=60):
        ...

:class:`DynamicSupervisor` is for many children of one kind. Every room may import this package. It
needs only asyncio and anyio, imports nothing else of ``tinker_recovery``, and knows nothing of
training or Tinker.

What a restart does, exactly
============================

Which exit leads to a restart:

==================================  ===========  ===========  =========================
an incarnation that was ready       permanent    transient    temporary
==================================  ===========  ===========  =========================
returns                             restarted    down, kept   forgotten
raises an Exception                 restarted    restarted    forgotten
raises CancelledError by itself     restarted    restarted    forgotten
misses its heartbeat                stopped, then as for an Exception
raises KeyboardInterrupt,           the supervisor stops everything and raises it unchanged
SystemExit, or a group with one
is stopped by ``terminate_child``   down, kept   down, kept   forgotten
is stopped by a group restart       restarted    restarted    forgotten
==================================  ===========  ===========  =========================

What becomes of an incarnation that was not ready yet:

==================================  =======================================================
it raises or returns                first start of a spec: the children already up are stopped
                                    in reverse, the error is raised, the body never runs;
                                    ``start_child``: the error is raised, it is forgotten;
                                    ``restart_child``: the error is raised, it stays down;
                                    a restart: it counts as one, and another is due
it is not ready in time             stopped after its ``start_timeout_s``, then as if it had raised
                                    StartTimedOut
it calls ``ignore()`` and returns   it is down, and its start counts as done
==================================  =======================================================

Which siblings of A, B, C, D are restarted together with C:

================  =========================  ================================================
strategy          stopped, in this order     started, in this order
================  =========================  ================================================
one_for_one       none                       C; several starts and backoffs run side by side
rest_for_one      D                          C, D, each once the one before is ready
one_for_all       D, B, A                    A, B, C, D, each once the one before is ready
================  =========================  ================================================

In a group restart a temporary sibling is forgotten; one that had ended by itself, or had called
``ignore()``, is started again; one stopped by ``terminate_child`` stays down. If a start in it
fails, one_for_all begins again, and rest_for_one continues from the child that failed. If a child
dies meanwhile, the children that its restart affects are stopped once more and started in order.

What is kept and what is new:

==========================  ===================================================================
kept                        the spec, the place in the order, the restart ledger, the count of
                            failures in a row, what the spec's ``start`` closes over
new                         the task, a copy of the context the supervisor was entered in, the
                            :class:`Child` with the next incarnation number, every local of
                            ``start``; in a supervisor that is a child: its ledger, and its
                            children, which are those of its specs and no others
ignored                     calls that the old incarnation still makes on its ``Child``, and the
                            end of one that was abandoned
==========================  ===================================================================

What counts against the limit (``max_restarts`` within any ``max_seconds``, one budget for all the
children of a supervisor; a child whose spec has ``max_restarts`` has one of its own instead):

==========================  ===================================================================
counts, once each           an exit that leads to a restart, however many siblings are restarted
                            with it; a restart whose start fails; a missed heartbeat
does not count              the first start, ``start_child``, ``restart_child``,
                            ``terminate_child``, siblings of a child that died, exits without a
                            restart
one more than allowed       every child is stopped, in reverse. At the root the body is cancelled
                            and :class:`RestartLimitReached` raised, its ``__cause__`` the last
                            crash. In a child supervisor that is its crash, and counts as one there
==========================  ===================================================================

When the backoff applies: before every restart, including the first; ``initial_s`` doubled (by
``factor``) for each failure of that child in a row, up to ``max_s``, then lengthened by jitter. In
a group restart it lies between the stops and the starts. It never applies to ``start_child`` and
``restart_child``. It begins again for a child that was ready for ``healthy_after_s``. The
constructor keeps that so short that a crash loop always exceeds the limit, whether each life ends
just before or just after it: ``max_restarts`` times ``healthy_after_s``, and the longest backoffs,
fit into ``max_seconds``. A window shorter than the backoffs alone is refused.

How a child is stopped: one cancellation, after which its clean-up may await for ``shutdown``
seconds; then ten more over a second, which interrupt the clean-up; then it is abandoned and listed
in ``abandoned``, because asyncio cannot kill a task. The cancellation is asyncio's own: an
``anyio.CancelScope(shield=True)`` in the child's own task does not hold it back, one in a task
group of the child's does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinker_recovery.supervision.backoff import Backoff
    from tinker_recovery.supervision.child import Child
    from tinker_recovery.supervision.errors import (
        ChildAlreadyPresent,
        ChildAlreadyStarted,
        ChildError,
        ChildNotFound,
        ChildNotReady,
        ChildRestarting,
        ChildRunning,
        ChildTerminated,
        HeartbeatMissed,
        RestartLimitReached,
        SpecError,
        StartTimedOut,
        SupervisionError,
        SupervisorStopped,
        TooManyChildren,
        UnexpectedExit,
    )
    from tinker_recovery.supervision.events import (
        ChildExited,
        ChildReady,
        ChildRestarted,
        ChildStarted,
        Context,
        CrashReport,
        Escalated,
        Outcome,
        RestartScheduled,
        StopTimedOut,
        SupervisionEvent,
    )
    from tinker_recovery.supervision.life import AbandonedChild, ChildCounts, ChildInfo, ChildState
    from tinker_recovery.supervision.specs import ChildSpec, ChildType, Shutdown
    from tinker_recovery.supervision.strategies import AutoShutdown, Restart, Strategy
    from tinker_recovery.supervision.tree import BaseSupervisor, DynamicSupervisor, SupervisionTree

__all__ = [
    "AbandonedChild",
    "AutoShutdown",
    "Backoff",
    "BaseSupervisor",
    "Child",
    "ChildAlreadyPresent",
    "ChildAlreadyStarted",
    "ChildCounts",
    "ChildError",
    "ChildExited",
    "ChildInfo",
    "ChildNotFound",
    "ChildNotReady",
    "ChildReady",
    "ChildRestarted",
    "ChildRestarting",
    "ChildRunning",
    "ChildSpec",
    "ChildStarted",
    "ChildState",
    "ChildTerminated",
    "ChildType",
    "Context",
    "CrashReport",
    "DynamicSupervisor",
    "Escalated",
    "HeartbeatMissed",
    "Outcome",
    "Restart",
    "RestartLimitReached",
    "RestartScheduled",
    "Shutdown",
    "SpecError",
    "StartTimedOut",
    "StopTimedOut",
    "Strategy",
    "SupervisionError",
    "SupervisionEvent",
    "SupervisionTree",
    "SupervisorStopped",
    "TooManyChildren",
    "UnexpectedExit",
]

_HOMES = {
    "backoff": ("Backoff",),
    "child": ("Child",),
    "errors": (
        "ChildAlreadyPresent",
        "ChildAlreadyStarted",
        "ChildError",
        "ChildNotFound",
        "ChildNotReady",
        "ChildRestarting",
        "ChildRunning",
        "ChildTerminated",
        "HeartbeatMissed",
        "RestartLimitReached",
        "SpecError",
        "StartTimedOut",
        "SupervisionError",
        "SupervisorStopped",
        "TooManyChildren",
        "UnexpectedExit",
    ),
    "events": (
        "ChildExited",
        "ChildReady",
        "ChildRestarted",
        "ChildStarted",
        "Context",
        "CrashReport",
        "Escalated",
        "Outcome",
        "RestartScheduled",
        "StopTimedOut",
        "SupervisionEvent",
    ),
    "life": ("AbandonedChild", "ChildCounts", "ChildInfo", "ChildState"),
    "specs": ("ChildSpec", "ChildType", "Shutdown"),
    "strategies": ("AutoShutdown", "Restart", "Strategy"),
    "tree": ("BaseSupervisor", "DynamicSupervisor", "SupervisionTree"),
}
"""In which module each public name is: it is imported when one of them is asked for."""

if not TYPE_CHECKING:  # with it, every name would be taken for one that there is

    def __getattr__(name: str) -> Any:
        for module, names in _HOMES.items():
            if name in names:
                home = importlib.import_module(f"{__name__}.{module}")
                value = globals()[name] = getattr(home, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
