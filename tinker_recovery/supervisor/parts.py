"""The parts of an entered Supervisor: its tree, its queue of faults, its runs."""

from __future__ import annotations

import inspect

from tinker_recovery.clock import Clock
from tinker_recovery.detection.monitor import Monitor, silence_check_s
from tinker_recovery.detection.outage import Outage
from tinker_recovery.errors import UsageError
from tinker_recovery.forks import HomeProcess
from tinker_recovery.journal import Recorder
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.executor import Executor
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.run.claiming import Claiming
from tinker_recovery.run.home_task import HomeTask
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.publishing import Publishing
from tinker_recovery.run.register import RunRegister
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.supervision import Backoff, ChildSpec, SupervisionTree
from tinker_recovery.watched.watch import Watches

SHUTDOWN_MARGIN_S = 5.0
"""How much longer the Executor has for stopping than the longest thing it does then."""


def check_listener(on_event: object) -> None:
    """Refuse a listener that cannot be called, or whose call does nothing by itself.

    Raises:
        UsageError: It is such a one.
    """
    if on_event is not None and not callable(on_event):
        raise UsageError(
            f"on_event={on_event!r} is not allowed: a function that is called with each "
            "RecoveryEvent, or None"
        )
    if any(map(inspect.iscoroutinefunction, (on_event, getattr(on_event, "__call__", None)))):  # noqa: B004 - whether that is async
        raise UsageError(
            f"on_event={on_event!r} is not allowed: it is async, and what it returns is not "
            "awaited: a plain function, or `async for event in supervisor.events()`"
        )


def check_arguments(on_event: object, clock: object, quiet: object) -> None:
    """Refuse arguments of a Supervisor that would be missed only once it trains.

    Raises:
        UsageError: One of them is of another kind; names it, its value and what is allowed.
    """
    check_listener(on_event)
    if not isinstance(clock, Clock):
        raise UsageError(f"clock={clock!r} is not allowed: a Clock, as Clock(sleep=...)")
    if not isinstance(quiet, bool):
        raise UsageError(f"quiet={quiet!r} is not allowed: True or False")


class Entered:
    """What lives from a Supervisor's entry to its exit: the parts of the tree, and the runs.

    Made on the event loop.
    """

    def __init__(
        self,
        collaborators: Collaborators,
        recorder: Recorder,
        claiming: Claiming,
        signals: StopSignals,
    ) -> None:
        self.home, self.task = HomeProcess(), HomeTask()
        """The process and the task that it was entered in."""
        self._claiming = claiming
        self.collaborators = collaborators
        self.recorder = recorder
        self.queue = FaultQueue()
        policy, events = collaborators.policy, collaborators.events
        self.outage = Outage(events, collaborators.clock.monotonic, policy.max_wait_s)
        self.mailbox = Mailbox()
        self.watches = Watches(collaborators, self.queue)
        self.retention = RetentionLoop(collaborators, Publishing(collaborators))
        self.runs = RunRegister(
            collaborators, recorder, claiming, signals, self.queue, self.mailbox, self.retention
        )

    def tree(self) -> SupervisionTree:
        """The children: Monitor, Executor, retention, and what publishes."""
        policy, clock = self.collaborators.policy, self.collaborators.clock
        runs, watches = self.runs, self.watches
        monitor = Monitor(
            lambda: [*runs.monitored.values(), *watches.polled()],
            reader=self.collaborators.reader,
            interval_s=policy.poll_interval_s,
            check_silence_every_s=silence_check_s(policy),
            events=self.collaborators.events,
            clock=clock,
            urgent=lambda: [run for run in runs.monitored.values() if run.is_urgent],
            outage=self.outage,
        )
        executor = Executor(
            self.collaborators,
            outage=self.outage,
            queue=self.queue,
            find=lambda name: runs.by_name.get(name) or watches.find(name),
            watched=lambda: len(watches) + runs.under_way,
        )
        return SupervisionTree(
            [
                ChildSpec(
                    id="monitor",
                    start=monitor.serve,
                    # Its longest silence is one interval or one read; past both and another read
                    # it hangs.
                    heartbeat_s=policy.poll_interval_s + 2 * policy.status_timeout_s,
                ),
                ChildSpec(
                    id="executor",
                    start=executor.serve,
                    # What it may have to close when it is stopped has this deadline of its own.
                    shutdown=policy.close_timeout_s + SHUTDOWN_MARGIN_S,
                ),
                *self.retention.children(),
            ],
            name="tinker-recovery",
            max_restarts=10,
            max_seconds=60.0,
            backoff=Backoff(initial_s=0.1, max_s=5.0),
            on_event=self.collaborators.events.tree,
            monotonic=clock.monotonic,
            sleep=clock.sleep,
            random=clock.random,
        )

    async def aclose(self) -> None:
        """Close whatever is open at the service."""
        await self.retention.aclose()
        await self.runs.close()
        await self.watches.aclose()
        if self.collaborators.spares is not None:
            await self.collaborators.spares.aclose()
        await self._claiming.aclose()
