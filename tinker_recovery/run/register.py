"""RunRegister: the runs of an entered Supervisor, each opened once, and closed with it."""

from __future__ import annotations

import functools

import anyio

from tinker_recovery.doctor import OptimizerCheck
from tinker_recovery.errors import UsageError
from tinker_recovery.journal import Recorder
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.recovery.resume import until_read
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.run.claiming import Claiming, end_when_lost
from tinker_recovery.run.group import MakeRun
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.monitored import MonitoredRun
from tinker_recovery.run.open import OpenedRun, leave_unopened, open_run
from tinker_recovery.run.options import StartPlan
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import FromBaseModel
from tinker_recovery.service.contact import FirstContact, say_unusable
from tinker_recovery.service.listing import find_checkpoint
from tinker_recovery.telemetry import names

KEPT = 1000
"""How many runs that have ended a Supervisor keeps, for who looks at its ``runs``."""


class RunRegister:
    """Opens runs, and knows them by their names.

    Args:
        collaborators: What each works with.
        recorder: What the journal is written by.
        claiming: How a named run is held.
        signals: What has asked the runs to stop.
        queue: Where they report faults.
        mailbox: Inbox for calls from the SDK's thread.
        retention: What looks after their checkpoints.
    """

    def __init__(
        self,
        collaborators: Collaborators,
        recorder: Recorder,
        claiming: Claiming,
        signals: StopSignals,
        queue: FaultQueue,
        mailbox: Mailbox,
        retention: RetentionLoop,
    ) -> None:
        self.by_name: dict[str, SupervisedRun] = {}
        """Every run under way, and the newest ``KEPT`` that have ended; oldest first."""
        self.monitored: dict[str, MonitoredRun] = {}
        """The same, as the Monitor sees them."""
        self._collaborators = collaborators
        self._recorder = recorder
        self._claiming = claiming
        self._parts = queue, mailbox, signals, retention
        self._opening: set[str] = set()
        self._optimizer_check = OptimizerCheck(collaborators)

    @property
    def under_way(self) -> int:
        """How many have not ended."""
        return sum(not run.ended for run in self.by_name.values())

    def progress(self) -> dict[str, object]:
        """Of each run under way, a value that is another one once it has made progress.

        A run that is being recovered counts as in progress: that has deadlines of its own. One that
        is given up is not under way.
        """
        return {
            name: _pulse(run)
            for name, run in self.by_name.items()
            if not run.ended and run.failure is None
        }

    def check_name(self, name: str) -> None:
        """Refuse the name of a run under way."""
        known = self.by_name.get(name)
        if name in self._opening or (known is not None and not known.ended):
            raise UsageError(
                f"name={name!r} is the name of a run under way: choose another, names are unique"
            )

    async def open(
        self, plan: StartPlan, name: str, make: MakeRun = SupervisedRun
    ) -> SupervisedRun:
        """Register a run, and find out at which step it starts."""
        self.check_name(name)
        self._opening.add(name)  # opening may take a while
        opened: OpenedRun | None = None
        over = anyio.Event()
        shared, policy = self._collaborators, self._collaborators.policy
        http = shared.reader.http

        async def begun() -> None:
            await over.wait()
            if (run := self.by_name.get(name)) is not None:
                await run.attempts.begun.wait()

        shared.spawn(functools.partial(say_unusable, http, name, clock=shared.clock, begun=begun))
        try:
            with FirstContact(http.endpoint):
                if policy.checkpoint_strategy.startswith("tinker://"):
                    # Better refused now than at the first fault, hours later.
                    find = functools.partial(
                        find_checkpoint, shared.reader, policy.checkpoint_strategy
                    )
                    await until_read(find, policy, shared.clock)
                opened = await open_run(
                    self._recorder,
                    shared.reader,
                    plan,
                    name,
                    claiming=self._claiming,
                    policy=policy,
                    clock=shared.clock,
                )
            self._forget_ended()
            run = self.by_name[name] = make(opened, shared, *self._parts)
            self.monitored[name] = MonitoredRun(run, shared.events)
            await run.checkpoints.read(shared)
        except BaseException as error:
            self.by_name.pop(name, None)
            self.monitored.pop(name, None)
            if opened is not None:
                try:
                    await leave_unopened(opened.record, error)
                finally:
                    await opened.guard.release()
            raise
        finally:
            self._opening.discard(name)
            over.set()
        shared.greeting.started(name, named=plan.name is not None, recovers=policy.enabled)
        if plan.job is not None:
            shared.events.emit(names.EVENT_JOB_TRY, name, f"job {plan.job}")
        shared.spawn(functools.partial(end_when_lost, run))
        if policy.verify_optimizer and isinstance(plan.origin, FromBaseModel):
            shared.spawn(functools.partial(self._optimizer_check.run, plan.origin))
        return run

    def _forget_ended(self) -> None:
        """Let go of the oldest runs that have ended, as a process may go through thousands."""
        ended = [name for name, run in self.by_name.items() if run.ended and run.lost is None]
        for name in ended[: max(0, len(ended) - KEPT)]:
            del self.by_name[name], self.monitored[name]

    async def close(self) -> None:
        """Close whatever the runs still have open."""
        async with anyio.create_task_group() as group:
            for run in self.by_name.values():
                run.attempts.begun.set()
                group.start_soon(run.abandon)


def _pulse(run: SupervisedRun) -> object:
    """What changes while a run does anything at all."""
    current = run.current
    if current is None or run.recovering:
        return object() if run.recovering else None
    client, saver = current.client, current.saver
    return current.number, client.step, saver.steps_done(), client.meter.read(), run.metrics
