"""The household of a Supervisor: all that lives from its entry to its exit, and the runs in it."""

from __future__ import annotations

import anyio
from anyio.abc import TaskGroup

from tinker_recovery.clock import Clock
from tinker_recovery.detection.monitor import Monitor
from tinker_recovery.doctor import OptimizerCheck
from tinker_recovery.errors import UsageError
from tinker_recovery.journal import Notebook, Recorder
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.recovery.executor import Executor
from tinker_recovery.recovery.queue import FaultQueue
from tinker_recovery.retention.collector import Collector
from tinker_recovery.retention.loop import RetentionLoop
from tinker_recovery.retention.verifier import Verifier
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.mailbox import Mailbox
from tinker_recovery.run.open import OpenedRun, open_run
from tinker_recovery.run.options import StartPlan
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import Backend, FromBaseModel, StatusReader
from tinker_recovery.service.listing import find_checkpoint
from tinker_recovery.supervision import Backoff, ChildSpec, SupervisionTree
from tinker_recovery.telemetry import EventSink
from tinker_recovery.watched.watch import Watches

SHUTDOWN_MARGIN_S = 5.0
"""How much longer the Executor has for stopping than the longest thing it does then."""


class Household:
    """Made on entry, on the event loop.

    Args:
        policy: The user's policy.
        backend: Creates clients.
        reader: The service's word.
        notebook: The journal's notes.
        recorder: What the journal keeps of runs.
        background: Runs things for as long as the Supervisor is entered.
        events: Where progress is told.
        interruption: Whether a signal has asked the process to stop.
        clock: Time and chance.
    """

    def __init__(  # noqa: PLR0913 - what it is made of, by name
        self,
        *,
        policy: RecoveryPolicy,
        backend: Backend,
        reader: StatusReader,
        notebook: Notebook,
        recorder: Recorder,
        background: TaskGroup,
        events: EventSink,
        interruption: StopSignals,
        clock: Clock,
    ) -> None:
        self.policy = policy
        self.reader = reader
        self.notebook = notebook
        self.recorder = recorder
        self.background = background
        self.runs: dict[str, SupervisedRun] = {}
        """Every run since entry, oldest first."""
        self._backend = backend
        self._events = events
        self._interruption = interruption
        self._clock = clock
        self._channel = FaultQueue()
        self._opening: set[str] = set()
        self.mailbox = Mailbox()
        self.keeper = RetentionLoop(
            Collector(
                reader=reader,
                notebook=notebook,
                policy=policy.checkpoints,
                events=events,
                clock=clock,
                verifier=Verifier(backend, reader, notebook, clock=clock),
            ),
            look_every_s=policy.poll_interval_s,
            events=events,
            clock=clock,
        )
        self.optimizer_check = OptimizerCheck(
            backend=backend,
            reader=reader,
            notebook=notebook,
            events=events,
            close_s=policy.close_timeout_s,
        )
        self.watches = Watches(
            policy=policy,
            backend=backend,
            reader=reader,
            clock=clock,
            report=self._channel.put,
            spawn=background.start_soon,
        )

    def tree(self) -> SupervisionTree:
        """The children that watch, recover and keep house."""
        policy, watches = self.policy, self.watches
        monitor = Monitor(
            lambda: [*self.runs.values(), *watches],
            reader=self.reader,
            interval_s=policy.poll_interval_s,
            check_silence_every_s=_look_every_s(policy),
            events=self._events,
            clock=self._clock,
        )
        executor = Executor(
            channel=self._channel,
            find=lambda name: self.runs.get(name) or watches.find(name),
            backend=self._backend,
            policy=policy,
            events=self._events,
            clock=self._clock,
            watched=lambda: len(watches) + sum(not run.ended for run in self.runs.values()),
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
                ChildSpec(id="keeper", start=self.keeper.serve),
            ],
            name="tinker-recovery",
            max_restarts=10,
            max_seconds=60.0,
            backoff=Backoff(initial_s=0.1, max_s=5.0),
            on_event=self._events.tree,
            monotonic=self._clock.monotonic,
            sleep=self._clock.sleep,
            random=self._clock.random,
        )

    async def close_runs(self) -> None:
        """Close whatever the runs still have open."""
        async with anyio.create_task_group() as group:
            for run in self.runs.values():
                group.start_soon(run.abandon)

    def check_name(self, name: str) -> None:
        """Refuse the name of a run under way."""
        known = self.runs.get(name)
        if name in self._opening or (known is not None and not known.ended):
            raise UsageError(
                f"name={name!r} is the name of a run under way: choose another, names are unique"
            )

    async def open_run(self, plan: StartPlan, name: str) -> SupervisedRun:
        """Register a run, and find out at which step it starts."""
        self.check_name(name)
        self._opening.add(name)  # others may be asked for a while
        opened: OpenedRun | None = None
        try:
            if self.policy.checkpoint_strategy.startswith("tinker://"):
                # Better refused now than at the first fault, hours later.
                await find_checkpoint(self.reader, self.policy.checkpoint_strategy)
            opened = await open_run(
                self.recorder, self.reader, plan, name, policy=self.policy, clock=self._clock
            )
            run = self.runs[name] = SupervisedRun(
                name,
                origin=opened.plan.origin,
                root=opened.root,
                start_step=opened.start_step,
                policy=self.policy,
                backend=self._backend,
                reader=self.reader,
                events=self._events,
                clock=self._clock,
                report=self._channel.put,
                settled=self._channel.settled,
                spawn=self.background.start_soon,
                mailbox=self.mailbox,
                notebook=self.notebook,
                changed=self.keeper.ask,
                interruption=self._interruption,
                record=opened.record,
                snapshot=opened.snapshot,
            )
            await run.read_notes()
        except BaseException:
            self.runs.pop(name, None)
            if opened is not None:
                await opened.record.end(None)
            raise
        finally:
            self._opening.discard(name)
        if self.policy.verify_optimizer and isinstance(plan.origin, FromBaseModel):
            self.background.start_soon(self.optimizer_check.run, plan.origin)
        return run

    async def first_attempt(self, run: SupervisedRun, plan: StartPlan) -> Attempt:
        """The first client of a run; a fault on the way is recovered from like any other."""
        snapshot = run.snapshot
        # An adopted client that was never saved cannot be remade, and the same code made another.
        if snapshot is not None and (
            plan.adopted is None or snapshot.saved or snapshot.segments[-1].parent
        ):
            if plan.adopted is not None:
                # What the same code made anew; the run goes on from what it has saved.
                await self._backend.close(
                    plan.adopted,
                    "interrupted",
                    "the run goes on from its checkpoint",
                    deadline_s=self.policy.close_timeout_s,
                )
            run.go_on()
            return await run.next_attempt()
        if plan.adopted is not None:
            return await run.written_down(run.begin(plan.adopted))
        if run.origin is None:
            raise UsageError("a run without an origin has to be adopted")
        try:
            connection = await self._backend.connect(
                run.origin, deadline_s=self.policy.create_timeout_s
            )
        except Exception as error:
            if not run.start_failed(error):
                await run.over(error)
                raise
            return await run.next_attempt()
        except BaseException as error:
            await run.over(error)  # cancelled: its name is free again
            raise
        return await run.written_down(run.begin(connection))


def _look_every_s(policy: RecoveryPolicy) -> float | None:
    """Often enough that silence is noticed within a tenth of its deadlines, and never in haste."""
    deadlines = [each for each in (policy.stall_warning_s, policy.stall_after_s) if each]
    return max(0.01, min([5.0, *(each / 10 for each in deadlines)])) if deadlines else None
