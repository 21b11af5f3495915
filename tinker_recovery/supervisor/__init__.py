"""The Supervisor: what the user enters. Builds the tree, owns the queue of faults and the runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar, overload

import anyio
import anyio.to_thread
import tinker
from tinker.lib.public_interfaces.api_future import APIFuture
from typing_extensions import Unpack

from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.cookbook.runner import run_cookbook
from tinker_recovery.errors import JournalError, UsageError
from tinker_recovery.forks import LeftAtHome
from tinker_recovery.journal import (
    STATE_FOLDER,
    Journal,
    Notebook,
    Recorder,
    StateFolder,
    journal_path,
    lease,
    option_for,
)
from tinker_recovery.outlets import Notify, Outlets
from tinker_recovery.policy import Callback, RecoveryPolicy
from tinker_recovery.policy_settings import given_or_set
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.metadata_notes import recall_metadata
from tinker_recovery.recovery.spares import Spares
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.background import Background
from tinker_recovery.run.blocking import (
    BlockingRunner,
    BlockingSupervisor,
    in_worker_thread,
    run_body,
)
from tinker_recovery.run.claiming import Claiming, Lease, check_lease
from tinker_recovery.run.group import GroupAttempt, GroupRounds, plan_group
from tinker_recovery.run.home_task import LeftByItsTask
from tinker_recovery.run.monitored import listening
from tinker_recovery.run.options import StartOptions, plan_start
from tinker_recovery.run.rounds import Rounds
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.run.unnamed import named
from tinker_recovery.run.view import Run, runs_table
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.service.base import Endpoint, ServiceFactory
from tinker_recovery.shielding import to_the_end
from tinker_recovery.supervisor.parts import Entered, check_arguments
from tinker_recovery.telemetry import EventSink, EventStream, RecoveryEvent, environment, names
from tinker_recovery.telemetry.greeting import Greeting
from tinker_recovery.telemetry.last_resort import repeats_left_out
from tinker_recovery.watched.watch import Watch

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

_SAY_WHAT_TO_DO = (UsageError, JournalError)
"""Errors of an entry whose message is all that helps: what is ours below them is left out."""


class Supervisor:
    """Watches training runs and brings them back when their backend fails.

    Enter it with ``async with Supervisor(policy) as supervisor:`` and train inside, either with
    ``async for attempt in supervisor.attempts(...)`` or with ``await supervisor.run(train, ...)``.
    In a script without asyncio, ``with Supervisor(policy) as supervisor:`` and
    ``supervisor.run(train, ...)`` with a plain function do the same.
    An exception of the body leaves unchanged. On the way out every client still open is closed,
    each within ``policy.close_timeout_s``.

    Cancelling the body cancels everything inside, closes the clients, and passes through. It is
    left by the task that entered it. :meth:`stop` ends it from anywhere.

    Args:
        policy: What to do; without one, what the user's settings say: see
            :func:`policy_from_settings`.
        service: Returns a fresh ``tinker.ServiceClient``, one for each attempt. The default reads
            TINKER_BASE_URL and TINKER_API_KEY, as the SDK does.
        on_event: Called with every :class:`RecoveryEvent`; must be quick, and what it raises is
            logged.
        journal: The file of what must survive this process; by default one in the user's state
            folder (see :func:`~tinker_recovery.journal.default_path`), None keeps it in memory,
            and then no run can be resumed by its name.
        lease: What a named run is held by, so that one process trains it: a claim at the
            ``"service"``, which any number of machines see; the lease in the ``"journal"``, which
            only processes that share the file see; or ``"both"``. Where the service cannot hold
            claims, it is the journal's. A claim costs a session and a heartbeat every ten seconds.
        notify: URLs of `apprise <https://github.com/caronc/apprise>`_ (extra ``notify``), or a
            :class:`Notify`: who is notified when a run is given up, its lease is lost, or many runs
            fail alike. By default, the blank-separated URLs of TINKER_RECOVERY_NOTIFY.
        heartbeat_url: Asked for (GET) once a minute while every run under way makes progress, and
            not while one is stuck or all are over: for a monitor that raises the alarm when this
            ceases.
        trackers: Where what the loop reports goes as well: objects with ``log_metrics(metrics,
            step)``, such as the cookbook's loggers, runs of wandb, mlflow or trackio, and
            SummaryWriters of TensorBoard; or one of them as :class:`WhenSaved`. See
            docs/observability.
        quiet: As ``policy.quiet``: print no line when a run starts and ends.
        clock: Time and chance, for tests.

    What ``notify``, ``heartbeat_url`` and ``trackers`` name never delays a run or a recovery; the
    exit waits five seconds at most for what is being sent. The URLs are secrets, and shown nowhere.

    Raises:
        UsageError: An argument is not allowed, or without a policy a setting is not.
        JournalError: On entry: the journal cannot be used.
    """

    def __init__(  # noqa: PLR0913 - each is given by its name, and has a default
        self,
        policy: RecoveryPolicy | None = None,
        *,
        service: ServiceFactory = tinker.ServiceClient,
        on_event: Callable[[RecoveryEvent], object] | None = None,
        journal: Path | str | StateFolder | None = STATE_FOLDER,
        lease: Lease = "both",
        notify: Sequence[str] | Notify | None = None,
        heartbeat_url: str | None = None,
        trackers: Iterable[object] = (),
        quiet: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        check_lease(lease)
        check_arguments(on_event, clock, quiet)
        self._lease: Lease = lease
        self.policy = given_or_set(policy)
        self._backend = TinkerBackend(
            service, standby=self.policy.enabled and self.policy.standby != "none"
        )
        self._outlets = Outlets(notify, heartbeat_url, trackers)
        self._on_event = on_event
        self._events = EventSink(self._listen, label_runs=self.policy.telemetry_run_label)
        path = self._journal_path = journal_path(journal)
        self._greeting = Greeting(
            "" if path is None else str(path), option_for(path), quiet=quiet or self.policy.quiet
        )
        self._signals = StopSignals(saves=self.policy.checkpoints.save_on_stop_s is not None)
        self._resumes = self.policy.enabled and path is not None
        self._clock = clock
        self._entered: Entered | None = None
        self._entry: LeftAtHome[Supervisor] | None = None
        self._blocking: BlockingSupervisor[Supervisor] | None = None

    @property
    def runs(self) -> Sequence[Run]:
        """Every run under way, and the newest thousand that have ended; oldest first."""
        inside = self._entered
        return [] if inside is None else [Run(run) for run in inside.runs.by_name.values()]

    def _repr_html_(self) -> str:
        """What a notebook shows: its runs."""
        state = (
            "not entered" if self._entered is None else "left" if self._signals.over else "entered"
        )
        return runs_table(f"Supervisor, {state}", self.runs)

    @property
    def _inside(self) -> Entered:
        if self._entered is None:
            raise UsageError("enter the Supervisor first: `async with Supervisor(policy) as ...`")
        self._entered.home.check(self)
        self._entered.task.check()
        return self._entered

    async def __aenter__(self) -> Self:
        entry = LeftByItsTask(self._while_entered(self._signals.listen_in_task), self._close)
        at_home = LeftAtHome(entry)
        try:
            await at_home.__aenter__()
        except _SAY_WHAT_TO_DO as error:
            raise error.with_traceback(None)  # noqa: B904 - it is the same error
        self._entry = at_home
        return self

    async def __aexit__(self, *exc_info: object) -> bool | None:
        return None if self._entry is None else await self._entry.__aexit__(*exc_info)

    @asynccontextmanager
    async def _while_entered(
        self, listen: Callable[[], AbstractContextManager[None]]
    ) -> AsyncGenerator[Supervisor]:
        if self._entered is not None:
            raise UsageError("this Supervisor is already entered: make one for each `async with`")
        if not self.policy.enabled:
            logger.warning(
                "recovery is off (enabled=False): faults are observed and reported, and the run "
                "is left as it is"
            )
        if environment.says_to_export():
            # Loading the exporters takes a second, and a program sets its providers before.
            await anyio.to_thread.run_sync(environment.export_by_environment)
        endpoint = await self._backend.endpoint()
        try:
            with listen(), repeats_left_out():
                async with self._enter(endpoint):
                    yield self
        finally:
            try:
                await to_the_end(self._backend.aclose())
            finally:
                self._greeting.over()
                self._signals.note_left()

    async def _close(self) -> None:
        """Close what has something open at the service; the tasks stay."""
        if self._entered is not None:
            await self._entered.aclose()
        await self._outlets.finish()
        await self._backend.aclose()
        self._signals.note_left()

    @asynccontextmanager
    async def _enter(self, endpoint: Endpoint) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        journal = Journal(self._journal_path, service=endpoint.base_url)
        async with (
            self._events.streams,
            Notebook(journal) as notebook,
            Recorder(
                journal,
                service=endpoint.base_url,
                wall=self._clock.wall,
                heartbeat_s=lease.HEARTBEAT_S,
            ) as recorder,
            StatusReader.by(self.policy, endpoint, self._clock.wall) as reader,
            anyio.create_task_group() as group,
        ):
            background = Background(group)
            collaborators = Collaborators(
                policy=self.policy,
                backend=self._backend,
                reader=reader,
                notebook=notebook,
                events=self._events,
                clock=self._clock,
                spawn=background.spawn,
                spares=Spares(self._backend, self.policy, background.spawn),
                outlets=self._outlets,
                greeting=self._greeting,
            )
            await recall_metadata(collaborators)
            claiming = Claiming(
                self._lease, reader, journal.path, max_wait_s=self.policy.max_wait_s
            )
            entered = Entered(collaborators, recorder, claiming, self._signals)
            self._entered = entered
            background.spawn(entered.mailbox.serve)
            self._outlets.start(background.spawn, entered.runs.progress, self._clock)
            try:
                with listening(reader.http, entered.runs.monitored):
                    async with entered.tree():
                        yield
                        await entered.retention.settle(self.policy.close_timeout_s)
            except BaseException as error:  # noqa: BLE001 - raised again below, outside the group, which would wrap it, or swallow a cancellation from outside that met a fault's own
                failure = error
            finally:
                try:
                    await to_the_end(self._end(entered))
                finally:
                    # Ends the mailbox. Clients still being closed have a deadline each.
                    background.cancel()
        for run in entered.runs.by_name.values():
            failure = failure or run.lost
        if failure is not None:
            raise failure

    async def _end(self, entered: Entered) -> None:
        await entered.aclose()
        await self._outlets.finish()  # with what was said of the ends of the runs

    def _listen(self, event: RecoveryEvent) -> None:
        if self._entered is not None:
            self._entered.recorder.note_event(event)
        self._outlets.note_event(event)
        if self._on_event is not None:
            self._on_event(event)

    def attempts(self, **start: Unpack[StartOptions]) -> AsyncIterator[Attempt]:
        """The attempts of one run, for ``async for``; ends when one comes to its end.

        See :class:`StartOptions` for the arguments, which are checked here and now.

        Raises:
            UsageError: The arguments do not go together, or a run of that name is under way.
            RecoveryExhausted: From the iteration, when ``max_attempts`` are spent.
            CheckpointError: From the iteration, when there is nothing to recover from.
        """
        plan = plan_start(start, restore_optimizer=self.policy.restore_optimizer)
        plan, name = named(plan, resumes=self._resumes)
        if self._entered is not None:
            self._inside.runs.check_name(name)
        return Rounds(lambda: self._inside.runs.open(plan, name))

    def group(self, runs: Sequence[StartOptions]) -> AsyncIterator[GroupAttempt]:
        """The attempts of runs that go back together, such as those of student and teacher.

        They begin at one step, and save the same ones; see :class:`GroupAttempt`. Each of ``runs``
        has the arguments of :meth:`attempts`: ``[{"name": ..., "base_model": ...}, ...]``.

        Raises:
            UsageError: As :meth:`attempts`; or they cannot go back to one step together.
        """
        plans, inside = plan_group(runs, self.policy, resumes=self._resumes), self._inside
        for name in plans:
            inside.runs.check_name(name)
        return GroupRounds(plans, inside.runs.open)

    def watch(self, run_id: str, *, on_recovery: Callback) -> Watch:
        """Watch a run that is trained elsewhere, by its status alone.

        When the service calls it corrupted, or has failed its session, a client is made in a new
        session, from the newest usable checkpoint that was stored before the run was last seen to
        be sound, and handed over. Of a run that was never seen so it is the newest that loads, and
        the event ``recovery.weights_unknown`` says that it may be of the fault. As many at once as
        the policy allows; a canary and ``checkpoint_strategy`` do not apply. ``policy.on_failure``
        is called for a run that cannot be recovered.

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
        for run in self._inside.runs.monitored.values():
            if run_id in (run.name, run.watched_run_id):
                raise UsageError(
                    f"run_id={run_id!r} is run {run.name!r} of this Supervisor, which looks after "
                    "it already"
                )
        return self._inside.watches.add(run_id, on_recovery)

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
        return await self._run_with(train, in_worker_thread, start)

    async def _run_with(
        self, train: Callable[[Attempt], Any], runner: BlockingRunner, start: StartOptions
    ) -> Any:
        """As :meth:`run`, with a ``runner`` for what blocks."""
        outcome: Any = None
        limit_s = self.policy.close_timeout_s
        async for attempt in self.attempts(**start):
            async with attempt:
                outcome = await run_body(train, attempt, runner=runner, limit_s=limit_s)
        return outcome

    async def run_cookbook(
        self,
        main: Callable[..., Any],
        config: Any,
        *args: Any,
        name: str | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run a recipe of the tinker-cookbook, unchanged; returns what its ``main`` returned.

        The same call continues a run that was left. ``main`` is that of a recipe that
        docs/cookbook.md lists; ``name`` is kept in its log folder; further arguments go to it.

        Raises:
            UsageError: The recipe or its version is not known, or the log folder is another run's.
        """
        return await run_cookbook(self, main, config, *args, name=name, seed=seed, **kwargs)

    def stop(self) -> APIFuture[None]:
        """Ask for the same orderly end as Ctrl-C; from any thread, and returns at once.

        The task that entered the Supervisor is cancelled: each run saves its last step, within
        ``save_on_stop_s``, the clients are closed, and ``asyncio.CancelledError`` comes out of
        ``async with``. After ``with``, it comes out of ``supervisor.run``. A run in the journal is
        ``stopped``, and the same command resumes it. Called before it is entered, it is stopped as
        it is; called again or afterwards, nothing more happens.

        Returns:
            Done once the Supervisor has been left: ``await supervisor.stop()`` in another task, or
            ``supervisor.stop().result(timeout=60)`` in another thread.

        Raises:
            UsageError: This process was forked from the Supervisor's, or the task that entered it
                has ended without leaving it.
        """
        if self._entered is not None and not self._signals.over:
            self._inside  # noqa: B018 - raises
        return self._signals.stop()

    def __enter__(self) -> BlockingSupervisor[Supervisor]:
        context = self._while_entered(contextlib.nullcontext)
        try:
            self._blocking = BlockingSupervisor(self, context, self._run_with, self._signals)
        except _SAY_WHAT_TO_DO as error:
            raise error.with_traceback(None)  # noqa: B904 - it is the same error
        return self._blocking

    def __exit__(self, *exc_info: object) -> bool | None:
        blocking, self._blocking = self._blocking, None
        return None if blocking is None else blocking.close(*exc_info)
