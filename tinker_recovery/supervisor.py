"""The Supervisor: what the user enters. Builds the tree, owns the fault channel and the runs."""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import anyio
import tinker
from anyio import AsyncContextManagerMixin
from anyio.abc import TaskGroup
from typing_extensions import Unpack

from tinker_recovery.attempt import Attempt
from tinker_recovery.blocking import (
    BlockingSupervisor,
    Elsewhere,
    in_worker_thread,
    is_async,
    run_blocking,
)
from tinker_recovery.channel import FaultChannel
from tinker_recovery.choice import find_checkpoint
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.doctor import OptimizerCheck
from tinker_recovery.errors import UsageError
from tinker_recovery.executor import Executor
from tinker_recovery.housekeeping import Housekeeping
from tinker_recovery.interruption import Interruption
from tinker_recovery.journal import (
    STATE_FOLDER,
    Journal,
    Notebook,
    Recorder,
    StateFolder,
    journal_path,
)
from tinker_recovery.keeper import Keeper
from tinker_recovery.mailbox import Mailbox
from tinker_recovery.monitor import Monitor
from tinker_recovery.opening import OpenedRun, open_run
from tinker_recovery.policy import Callback, RecoveryPolicy
from tinker_recovery.run import SupervisedRun
from tinker_recovery.service import Backend, FromBaseModel, StatusReader, TinkerBackend
from tinker_recovery.service.base import Endpoint, ServiceFactory
from tinker_recovery.start import StartOptions, StartPlan, plan_start
from tinker_recovery.supervision import Backoff, ChildSpec, SupervisionTree
from tinker_recovery.telemetry import EventSink, EventStream, RecoveryEvent, names
from tinker_recovery.verification import Verifier
from tinker_recovery.watch import Watch, Watches

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

BEAT_S = 10.0
"""How often the leases on runs are renewed; they last three times as long."""

SHUTDOWN_MARGIN_S = 5.0
"""How much longer the Executor has for stopping than the longest thing it does then."""


class Supervisor(AsyncContextManagerMixin):
    """Watches training runs and brings them back when their backend fails.

    Enter it with ``async with Supervisor(policy) as supervisor:`` and train inside, either with
    ``async for attempt in supervisor.attempts(...)`` or with ``await supervisor.run(train, ...)``.
    In a script without asyncio, ``with Supervisor(policy) as supervisor:`` and
    ``supervisor.run(train, ...)`` with a plain function do the same.
    An exception of the body leaves unchanged. On the way out every client still open is closed,
    each within ``policy.close_timeout_s``.

    Cancelling the body cancels everything inside, closes the clients, and passes through.

    Args:
        policy: What to do; without one, recovery is enabled with the defaults.
        service: Returns a fresh ``tinker.ServiceClient``, one for each attempt. The default reads
            TINKER_BASE_URL and TINKER_API_KEY, as the SDK does.
        on_event: Called with every :class:`RecoveryEvent`; must be quick, and what it raises is
            logged.
        journal: The file of what must survive this process; by default one in the user's state
            folder (see :func:`~tinker_recovery.journal.default_path`), None keeps it in memory,
            and then no run is gone on with by its name.
        clock: Time and chance, for tests.

    Raises:
        JournalError: On entry: the journal cannot be used.
    """

    def __init__(
        self,
        policy: RecoveryPolicy | None = None,
        *,
        service: ServiceFactory = tinker.ServiceClient,
        on_event: Callable[[RecoveryEvent], object] | None = None,
        journal: Path | str | StateFolder | None = STATE_FOLDER,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.policy = RecoveryPolicy(enabled=True) if policy is None else policy
        self._backend: Backend = TinkerBackend(service)
        self._on_event = on_event
        self._events = EventSink(self._heard)
        self._journal_path = journal_path(journal)
        self._notebook: Notebook | None = None
        self._keeper: Keeper | None = None
        self._optimizer_check: OptimizerCheck | None = None
        self._recorder: Recorder | None = None
        self._interruption = Interruption()
        self._clock = clock
        self._channel = FaultChannel()
        self._runs: dict[str, SupervisedRun] = {}
        self._opening: set[str] = set()
        self._background: TaskGroup | None = None
        self._reader: StatusReader | None = None
        self._mailbox: Mailbox | None = None
        self._watches: Watches | None = None
        self._blocking: BlockingSupervisor[Supervisor] | None = None

    @property
    def runs(self) -> list[SupervisedRun]:
        """Every run since entry, oldest first."""
        return list(self._runs.values())

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Supervisor]:
        if self._background is not None:
            raise UsageError("this Supervisor is already entered: make one for each `async with`")
        if not self.policy.enabled:
            logger.warning(
                "recovery is off (enabled=False): faults are observed and reported, and the run "
                "is left as it is"
            )
        endpoint = await self._backend.endpoint()
        with self._interruption.heard_by_task():
            async with self._entered(endpoint):
                yield self

    @asynccontextmanager
    async def _entered(self, endpoint: Endpoint) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        journal = Journal(self._journal_path, service=endpoint.base_url)
        async with (
            self._events.streams,
            Notebook(journal) as self._notebook,
            Recorder(
                journal, service=endpoint.base_url, hide=secrets_of(endpoint), beat_s=BEAT_S
            ) as self._recorder,
            StatusReader(endpoint, timeout_s=self.policy.status_timeout_s) as self._reader,
            anyio.create_task_group() as self._background,
        ):
            self._keeper = self._make_keeper(self._reader, self._notebook)
            self._optimizer_check = OptimizerCheck(
                backend=self._backend,
                reader=self._reader,
                notebook=self._notebook,
                events=self._events,
                close_s=self.policy.close_timeout_s,
            )
            self._watches = Watches(
                policy=self.policy,
                backend=self._backend,
                reader=self._reader,
                clock=self._clock,
                report=self._channel.put,
                spawn=self._background.start_soon,
            )
            self._mailbox = Mailbox()
            self._background.start_soon(self._mailbox.serve)
            try:
                async with self._tree(self._reader, self._keeper, self._watches):
                    yield
                    await self._keeper.settle(self.policy.close_timeout_s)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below, outside the group that would wrap it
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await self._close_runs()
                    await self._watches.aclose()
                # Ends the mailbox. Clients still being closed are shielded, each by its deadline.
                self._background.cancel_scope.cancel()
        for run in self.runs:
            failure = failure or run.lost
        if failure is not None:
            raise failure

    def _heard(self, event: RecoveryEvent) -> None:
        if self._recorder is not None:
            self._recorder.note_event(event)
        if self._on_event is not None:
            self._on_event(event)

    def _make_keeper(self, reader: StatusReader, notebook: Notebook) -> Keeper:
        house = Housekeeping(
            reader=reader,
            notebook=notebook,
            policy=self.policy.checkpoints,
            events=self._events,
            clock=self._clock,
            verifier=Verifier(self._backend, reader, notebook, clock=self._clock),
        )
        return Keeper(
            house,
            look_every_s=self.policy.poll_interval_s,
            events=self._events,
            clock=self._clock,
        )

    def _tree(self, reader: StatusReader, keeper: Keeper, watches: Watches) -> SupervisionTree:
        policy = self.policy
        monitor = Monitor(
            lambda: [*self._runs.values(), *watches],
            reader=reader,
            interval_s=policy.poll_interval_s,
            look_every_s=_look_every_s(policy),
            events=self._events,
            clock=self._clock,
        )
        executor = Executor(
            channel=self._channel,
            find=lambda name: self._runs.get(name) or watches.find(name),
            backend=self._backend,
            policy=policy,
            events=self._events,
            clock=self._clock,
            watched=lambda: len(watches) + sum(not run.ended for run in self._runs.values()),
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
                ChildSpec(id="keeper", start=keeper.serve),
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

    async def _close_runs(self) -> None:
        async with anyio.create_task_group() as group:
            for run in self.runs:
                group.start_soon(run.abandon)

    def attempts(self, **start: Unpack[StartOptions]) -> AsyncIterator[Attempt]:
        """The attempts of one run, for ``async for``; ends when one comes to its end.

        See :class:`StartOptions` for the arguments, which are checked here and now.

        Raises:
            UsageError: The arguments do not go together, or a run of that name is under way.
            RecoveryExhausted: From the iteration, when ``max_attempts`` are spent.
            CheckpointError: From the iteration, when there is nothing to recover from.
        """
        plan = plan_start(start, restore_optimizer=self.policy.restore_optimizer)
        name = plan.name or f"run-{secrets.token_hex(3)}"
        self.check_name(name)
        return _Attempts(self, plan, name)

    def watch(self, run_id: str, *, on_recovery: Callback) -> Watch:
        """Watch a run that is trained elsewhere, by its status alone.

        When the service calls it corrupted, or has failed its session, a client is made in a new
        session, from the newest checkpoint that was stored while the run was last seen to be well
        and that nothing speaks against, and handed over. So many at once as the policy allows; a
        canary and ``checkpoint_strategy`` do not apply. Of a run that cannot be recovered
        ``policy.on_failure`` is told.

        It costs no task and well under 4 KB, so there can be thousands.

        Args:
            run_id: The Tinker run id, ``training_client.model_id``.
            on_recovery: Called as ``on_recovery(old_run_id, client, checkpoint)``, sync or async,
                and within ``policy.close_timeout_s``: start the training elsewhere. ``client`` is
                a ``tinker.TrainingClient``, open until its run is recovered again, until
                ``await watch.aclose()`` or the end of the Supervisor. ``checkpoint`` is a
                ``tinker.types.Checkpoint``; ``CheckpointRecord.from_listing(checkpoint)`` gives its
                step, if a supervised client saved it.

        Returns:
            The watch, to look at or to cancel. It follows the run made by a recovery.

        Raises:
            UsageError: An argument is of the wrong kind, the run is watched or supervised here
                already, or the Supervisor is not entered.
        """
        if self._watches is None:
            raise UsageError("enter the Supervisor first: `async with Supervisor(policy) as ...`")
        for run in self._runs.values():
            if run_id in (run.name, run.watched_run_id):
                raise UsageError(
                    f"run_id={run_id!r} is run {run.name!r} of this Supervisor, which looks after "
                    "it already"
                )
        return self._watches.add(run_id, on_recovery)

    def events(self, *, buffer: int = 1024) -> EventStream:
        """What happens from now on, as a stream for ``async for``; each call is one consumer.

        It gives :class:`RecoveryEvent`, the tree's ``SupervisionEvent`` and, where a consumer was
        too slow, ``EventsDropped`` in place of the oldest; nothing ever waits for a consumer. It
        ends when the Supervisor is left, so its task belongs around the Supervisor and not inside::

            async with anyio.create_task_group() as group, Supervisor(policy) as supervisor:
                group.start_soon(show, supervisor.events())

        Args:
            buffer: How many events may wait to be read.

        Raises:
            UsageError: ``buffer`` is less than 1.
        """
        if buffer < 1:
            raise UsageError(f"buffer={buffer!r} is not allowed: 1 or more")
        return self._events.streams.new(buffer)

    def check_name(self, name: str) -> None:
        """Refuse the name of a run under way."""
        known = self._runs.get(name)
        if name in self._opening or (known is not None and not known.ended):
            raise UsageError(
                f"name={name!r} is the name of a run under way: choose another, names are unique"
            )

    @overload
    async def run(
        self, train: Callable[[Attempt], Awaitable[_T]], **start: Unpack[StartOptions]
    ) -> _T: ...
    @overload
    async def run(self, train: Callable[[Attempt], _T], **start: Unpack[StartOptions]) -> _T: ...
    async def run(self, train: Callable[[Attempt], Any], **start: Unpack[StartOptions]) -> Any:
        """Run ``train(attempt)`` until one attempt comes to its end; returns what that returned.

        ``train`` is called once for each attempt and begins at ``attempt.start_step``. A plain
        function, whose loop blocks on ``.result()``, runs in a worker thread; a fault ends what it
        waits for. Otherwise as :meth:`attempts`, and cancellable like any coroutine.
        """
        return await self.run_elsewhere(train, in_worker_thread, start)

    async def run_elsewhere(
        self, train: Callable[[Attempt], Any], elsewhere: Elsewhere, start: StartOptions
    ) -> Any:
        """As :meth:`run`, for whoever has a place of their own for what blocks."""
        outcome: list[Any] = []
        async for attempt in self.attempts(**start):
            async with attempt:
                if is_async(train):
                    outcome[:] = [await train(attempt)]
                else:
                    outcome[:] = [
                        await run_blocking(
                            train,
                            attempt,
                            elsewhere=elsewhere,
                            limit_s=self.policy.close_timeout_s,
                        )
                    ]
        return outcome[0]

    def __enter__(self) -> BlockingSupervisor[Supervisor]:
        self._blocking = BlockingSupervisor(self, self, self.run_elsewhere, self._interruption)
        return self._blocking

    def __exit__(self, *exc_info: object) -> bool | None:
        blocking, self._blocking = self._blocking, None
        return None if blocking is None else blocking.close(*exc_info)

    async def open_run(self, plan: StartPlan, name: str) -> SupervisedRun:
        """Register a run, and find out at which step it starts."""
        if (
            self._background is None
            or self._reader is None
            or self._mailbox is None
            or self._notebook is None
            or self._keeper is None
            or self._optimizer_check is None
            or self._recorder is None
        ):
            raise UsageError("enter the Supervisor first: `async with Supervisor(policy) as ...`")
        self.check_name(name)
        self._opening.add(name)  # others may be asked for a while
        opened: OpenedRun | None = None
        try:
            if self.policy.checkpoint_strategy.startswith("tinker://"):
                # Better refused now than at the first fault, hours later.
                await find_checkpoint(self._reader, self.policy.checkpoint_strategy)
            opened = await open_run(
                self._recorder, self._reader, plan, name, policy=self.policy, clock=self._clock
            )
            run = self._runs[name] = SupervisedRun(
                name,
                origin=opened.plan.origin,
                root=opened.root,
                start_step=opened.start_step,
                policy=self.policy,
                backend=self._backend,
                reader=self._reader,
                events=self._events,
                clock=self._clock,
                report=self._channel.put,
                settled=self._channel.settled,
                spawn=self._background.start_soon,
                mailbox=self._mailbox,
                notebook=self._notebook,
                changed=self._keeper.ask,
                interruption=self._interruption,
                record=opened.record,
                standing=opened.standing,
            )
            await run.read_notes()
        except BaseException:
            self._runs.pop(name, None)
            if opened is not None:
                await opened.record.end(None)
            raise
        finally:
            self._opening.discard(name)
        if self.policy.verify_optimizer and isinstance(plan.origin, FromBaseModel):
            self._background.start_soon(self._optimizer_check.run, plan.origin)
        return run

    async def first_attempt(self, run: SupervisedRun, plan: StartPlan) -> Attempt:
        """The first client of a run; a fault on the way is recovered from like any other."""
        standing = run.standing
        # An adopted client that was never saved cannot be remade, and the same code made another.
        if standing is not None and (
            plan.adopted is None or standing.saved or standing.segments[-1].parent
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


class _Attempts:
    """The iterator behind ``supervisor.attempts(...)``."""

    def __init__(self, supervisor: Supervisor, plan: StartPlan, name: str) -> None:
        self._supervisor = supervisor
        self._plan = plan
        self._name = name
        self._run: SupervisedRun | None = None
        self._last: Attempt | None = None

    def __aiter__(self) -> _Attempts:
        return self

    async def __anext__(self) -> Attempt:
        if self._run is None:
            self._run = await self._supervisor.open_run(self._plan, self._name)
            self._last = await self._supervisor.first_attempt(self._run, self._plan)
            return self._last
        if self._last is None or not self._last.entered:
            raise UsageError(
                "an attempt was asked for while the one before was never entered: the loop's body "
                "is `async with attempt: ...`"
            )
        # A body that takes its time to leave may find the recovery done already.
        if not self._run.recovering and self._last is self._run.current:
            raise StopAsyncIteration
        self._last = await self._run.next_attempt()
        return self._last


def secrets_of(endpoint: Endpoint) -> list[str]:
    """What lets someone in at the service, and so must not be written anywhere."""
    key = endpoint.api_key
    return [*([] if key is None else [key.get_secret_value()]), *endpoint.headers.values()]


def _look_every_s(policy: RecoveryPolicy) -> float | None:
    """Often enough that silence is noticed within a tenth of its deadlines, and never in haste."""
    deadlines = [each for each in (policy.stall_warning_s, policy.stall_after_s) if each]
    return max(0.01, min([5.0, *(each / 10 for each in deadlines)])) if deadlines else None
