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
from typing_extensions import Unpack

from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.errors import UsageError
from tinker_recovery.household import Household
from tinker_recovery.journal import (
    STATE_FOLDER,
    Journal,
    Notebook,
    Recorder,
    StateFolder,
    journal_path,
)
from tinker_recovery.policy import Callback, RecoveryPolicy
from tinker_recovery.run.attempt import Attempt
from tinker_recovery.run.blocking import (
    BlockingRunner,
    BlockingSupervisor,
    in_worker_thread,
    is_async,
    run_blocking,
)
from tinker_recovery.run.options import StartOptions, StartPlan, plan_start
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.run.supervised import SupervisedRun
from tinker_recovery.service import Backend, StatusReader, TinkerBackend
from tinker_recovery.service.base import Endpoint, ServiceFactory
from tinker_recovery.telemetry import EventSink, EventStream, RecoveryEvent, names
from tinker_recovery.watched.watch import Watch

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

BEAT_S = 10.0
"""How often the leases on runs are renewed; they last three times as long."""


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
        self._backend: Backend = TinkerBackend(
            service, standby=self.policy.enabled and self.policy.standby_session
        )
        self._on_event = on_event
        self._events = EventSink(self._heard)
        self._journal_path = journal_path(journal)
        self._interruption = StopSignals()
        self._clock = clock
        self._household: Household | None = None
        self._blocking: BlockingSupervisor[Supervisor] | None = None

    @property
    def runs(self) -> list[SupervisedRun]:
        """Every run since entry, oldest first."""
        return [] if self._household is None else list(self._household.runs.values())

    @property
    def household(self) -> Household:
        """What lives from entry to exit.

        Raises:
            UsageError: The Supervisor is not entered.
        """
        if self._household is None:
            raise UsageError("enter the Supervisor first: `async with Supervisor(policy) as ...`")
        return self._household

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Supervisor]:
        if self._household is not None:
            raise UsageError("this Supervisor is already entered: make one for each `async with`")
        if not self.policy.enabled:
            logger.warning(
                "recovery is off (enabled=False): faults are observed and reported, and the run "
                "is left as it is"
            )
        endpoint = await self._backend.endpoint()
        try:
            with self._interruption.listen_in_task():
                async with self._entered(endpoint):
                    yield self
        finally:
            with anyio.CancelScope(shield=True):
                await self._backend.aclose()

    @asynccontextmanager
    async def _entered(self, endpoint: Endpoint) -> AsyncGenerator[None]:
        failure: BaseException | None = None
        journal = Journal(self._journal_path, service=endpoint.base_url)
        async with (
            self._events.streams,
            Notebook(journal) as notebook,
            Recorder(
                journal, service=endpoint.base_url, hide=secrets_of(endpoint), heartbeat_s=BEAT_S
            ) as recorder,
            StatusReader(endpoint, timeout_s=self.policy.status_timeout_s) as reader,
            anyio.create_task_group() as background,
        ):
            household = self._household = Household(
                policy=self.policy,
                backend=self._backend,
                reader=reader,
                notebook=notebook,
                recorder=recorder,
                background=background,
                events=self._events,
                interruption=self._interruption,
                clock=self._clock,
            )
            background.start_soon(household.mailbox.serve)
            try:
                async with household.tree():
                    yield
                    await household.keeper.settle(self.policy.close_timeout_s)
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001 - raised again below, outside the group that would wrap it
                failure = error
            finally:
                with anyio.CancelScope(shield=True):
                    await household.close_runs()
                    await household.watches.aclose()
                # Ends the mailbox. Clients still being closed are shielded, each by its deadline.
                background.cancel_scope.cancel()
        for run in self.runs:
            failure = failure or run.lost
        if failure is not None:
            raise failure

    def _heard(self, event: RecoveryEvent) -> None:
        if self._household is not None:
            self._household.recorder.note_event(event)
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
        name = plan.name or f"run-{secrets.token_hex(3)}"
        if self._household is not None:
            self._household.check_name(name)
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
        watches = self.household.watches
        for run in self.runs:
            if run_id in (run.name, run.watched_run_id):
                raise UsageError(
                    f"run_id={run_id!r} is run {run.name!r} of this Supervisor, which looks after "
                    "it already"
                )
        return watches.add(run_id, on_recovery)

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
        return await self.run_elsewhere(train, in_worker_thread, start)

    async def run_elsewhere(
        self, train: Callable[[Attempt], Any], elsewhere: BlockingRunner, start: StartOptions
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
            self._run = await self._supervisor.household.open_run(self._plan, self._name)
            self._last = await self._supervisor.household.first_attempt(self._run, self._plan)
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
