"""Jobs: what the user enters."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import anyio
import tinker
from anyio import AsyncContextManagerMixin

from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.errors import LeaseLost, UsageError
from tinker_recovery.jobs.database import JobDatabase, database_url, shown
from tinker_recovery.jobs.handle import JobHandle, Opened, not_entered
from tinker_recovery.jobs.presence import Presence, named, present
from tinker_recovery.jobs.reach import in_thread, once_if_reached, until_reached
from tinker_recovery.jobs.records import JobStatus, Limits, State
from tinker_recovery.jobs.retry import RetryPolicy
from tinker_recovery.jobs.spec import job_spec
from tinker_recovery.jobs.worker import Worker
from tinker_recovery.journal import STATE_FOLDER, StateFolder
from tinker_recovery.policy import RecoveryPolicy
from tinker_recovery.policy_settings import given_or_set
from tinker_recovery.service.base import ServiceFactory
from tinker_recovery.shielding import to_the_end
from tinker_recovery.supervisor import Supervisor
from tinker_recovery.supervisor.parts import check_listener
from tinker_recovery.telemetry import RecoveryEvent, names

logger = logging.getLogger(names.SCOPE)

LOOK_S = 2.0
"""Seconds between two looks for jobs of workers that are gone."""

LOOKS = 3
"""A job of this worker that its engine does not know in so many looks is queued again."""


class Jobs(AsyncContextManagerMixin):
    """Runs submitted as jobs, and this process as one of the workers that carry them out.

    Enter it with ``async with Jobs() as jobs:``. Jobs that are queued or were left by a worker that
    is gone are begun or resumed at once. On the way out every job that runs here saves its last
    step, as by ``Supervisor.stop()``, and is queued again: it goes on where Jobs is entered next.
    So wait for the results before you leave.

    An error of the body, Ctrl-C, SIGTERM and cancelling its task end it the same way. A cancel
    scope of anyio around it ends the jobs themselves: they go on from their newest checkpoints.
    One a process at a time.

    Args:
        database: Where jobs are kept: the path of a SQLite file, or
            ``postgresql://USER@HOST/DATABASE`` for workers on many machines. By default what
            TINKER_RECOVERY_DATABASE says, or a file beside the journal.
        policy: What a Supervisor does about faults; without one, what the user's settings say.
        service: Returns a fresh ``tinker.ServiceClient``, as for a Supervisor.
        journal: As for a Supervisor.
        work: Whether to carry out jobs here. False only submits, looks, cancels and retries.
        concurrency: The most jobs at once in each worker. This and the next two are kept in the
            database, and the worker that starts last sets them for all.
        per_model: The most jobs at once on one base model, over all workers; None for no limit.
        starts_per_s: The most jobs begun in a second, over all workers, each of which opens two
            sessions or three. A worker spaces those it begins evenly, retries and what it takes
            over from another included.
        version: Which workers may run which jobs: those of the same version. Code may change within
            one.
        on_event: Called with every :class:`RecoveryEvent` of the runs here, as by a Supervisor.
        clock: Time and chance, for tests.

    Raises:
        UsageError: An argument is not allowed, DBOS is not installed, or this process uses it
            already.
        JournalError: On entry: the database or the journal cannot be used.
        LeaseLost: The service has ended this worker's claim, since it was paused or cut off.
    """

    def __init__(  # noqa: PLR0913 - a Supervisor's, and the limits of the queue
        self,
        database: str | Path | None = None,
        *,
        policy: RecoveryPolicy | None = None,
        service: ServiceFactory = tinker.ServiceClient,
        journal: Path | str | StateFolder | None = STATE_FOLDER,
        work: bool = True,
        concurrency: int = 500,
        per_model: int | None = None,
        starts_per_s: float = 5.0,
        version: str = "1",
        on_event: Callable[[RecoveryEvent], object] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        for name, count in (("concurrency", concurrency), ("per_model", per_model)):
            if count is not None and (type(count) is not int or count < 1):
                raise UsageError(f"{name}={count!r} is not allowed: an int, 1 or more")
        if not 0 < starts_per_s < float("inf"):
            raise UsageError(f"starts_per_s={starts_per_s!r} is not allowed: a number above 0")
        if not version or not isinstance(version, str):
            raise UsageError(f"version={version!r} is not allowed: a text that is not empty")
        check_listener(on_event)
        self._url = database_url(database)
        self._policy = given_or_set(policy)
        self._service = service
        self._journal = journal
        self._work = work
        self._limits = Limits(concurrency, per_model, starts_per_s)
        self._version = version
        self._on_event = on_event
        self._clock = clock
        self._worker: Worker | None = None
        self._opened: Opened | None = None

    def __repr__(self) -> str:
        return f"<Jobs in {shown(self._url)}>"

    @asynccontextmanager
    async def __asynccontextmanager__(self) -> AsyncGenerator[Self]:
        if self._opened is not None:
            raise UsageError("this Jobs is already entered: make one for each `async with`")
        database = await in_thread(JobDatabase, self._url)
        opened = self._opened = Opened(database)
        failure: BaseException | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(opened.poll)
                try:
                    async with self._working(database):
                        yield self
                except BaseException as error:  # noqa: BLE001 - raised below, outside the group, which would wrap it
                    failure = error
                group.cancel_scope.cancel()
        finally:
            self._opened = None
            await opened.aclose()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _working(self, database: JobDatabase) -> AsyncGenerator[None]:
        """Carry out jobs while in here, and give back on the way out what has not ended."""
        if not self._work:
            yield
            return
        async with present(self._service, self._policy, self._clock.wall) as presence:
            try:
                async with self._supervised(database, presence):
                    yield
            finally:
                await to_the_end(
                    once_if_reached(
                        database.give_all_back,
                        str(presence.executor),
                        otherwise="the jobs of this worker could not be queued again: another "
                        "worker takes them over once it sees that this one is gone",
                    )
                )

    @asynccontextmanager
    async def _supervised(self, database: JobDatabase, presence: Presence) -> AsyncGenerator[None]:
        supervisor = Supervisor(
            self._policy,
            service=self._service,
            on_event=self._note_event,
            journal=self._journal,
            clock=self._clock,
        )
        asked_to = launched = False
        lost: LeaseLost | None = None
        failure: BaseException | None = None

        def leave() -> None:
            nonlocal asked_to
            asked_to = True
            supervisor.stop()

        async def watch() -> None:
            nonlocal lost
            lost = await presence.lost()
            leave()

        try:
            async with supervisor, anyio.create_task_group() as group:
                worker = self._worker = Worker(
                    supervisor, database, group, self._clock, self._limits, presence.is_held
                )
                try:
                    # To its end: an engine that is left half started would never be stopped.
                    await to_the_end(
                        in_thread(self._launch, worker, presence),
                        undo=lambda _: in_thread(_shut_down),
                    )
                    launched = True
                    group.start_soon(watch)
                    group.start_soon(self._take_over, presence, database)
                    yield
                    leave()
                    # The Supervisor cancels this task, and its runs save their last step.
                    await anyio.sleep_forever()
                except BaseException as error:  # noqa: BLE001 - as above
                    failure = error
                    # As on the ordinary way out. Whom a signal has stopped is not stopped twice.
                    if not supervisor._signals.requested:  # noqa: SLF001 - of our own, and nobody else's to ask
                        leave()
                worker.leave()
                group.cancel_scope.cancel()
            if failure is not None:
                raise failure
        except asyncio.CancelledError:
            if not asked_to or _is_cancelled_by_others():
                raise
        finally:
            self._worker = None
            if launched:
                await to_the_end(in_thread(_shut_down))
        # The body's, behind which this task was cancelled.
        over = lost if isinstance(failure, asyncio.CancelledError) else failure
        if over is not None:
            raise over

    def _launch(self, worker: Worker, presence: Presence) -> None:
        from tinker_recovery.jobs import engine  # noqa: PLC0415 - it imports DBOS

        engine.launch(
            worker,
            self._url,
            executor=str(presence.executor),
            version=self._version,
            limits=self._limits,
        )

    async def _take_over(self, presence: Presence, database: JobDatabase) -> None:
        """Queue again, now and then, what no worker carries out any more.

        That is the jobs of workers that are gone, and those of which the engine here could not
        write how they stand: to it they are over.
        """
        from tinker_recovery.jobs import engine  # noqa: PLC0415 - as above

        here = str(presence.executor)
        missed: dict[str, int] = {}
        while True:
            try:
                running = await until_reached(
                    functools.partial(database.running, version=self._version)
                )
                for other in set(running.values()) - {here, ""}:
                    if await presence.is_gone(other):
                        logger.warning("%s is gone: its jobs are taken over", named(other))
                        await in_thread(engine.take_over, other)
                mine = {name for name, worker in running.items() if worker == here}
                missed = {name: missed.get(name, 0) + 1 for name in mine - engine.active()}
                left = [name for name, looks in missed.items() if looks >= LOOKS]
                await in_thread(database.give_back, here, left)
            except Exception:
                logger.exception("looking for jobs that were left failed; it is tried again")
            await self._clock.sleep(LOOK_S)

    def _note_event(self, event: RecoveryEvent) -> None:
        if self._worker is not None:
            self._worker.note_event(event)
        if self._on_event is not None:
            self._on_event(event)

    async def submit(
        self,
        train: Callable[..., Any] | str,
        *,
        name: str,
        retry: RetryPolicy | None = None,
        args: Mapping[str, Any] | None = None,
        priority: int = 0,
        **start: Any,
    ) -> JobHandle:
        """Submit a run as a job; it is stored once this returns.

        Submitted again with the same arguments, it is the same job, whatever became of it: a script
        can be run again as it is.

        Args:
            train: ``train(attempt, **args)``, async or plain, as for ``Supervisor.run``; defined at
                the top of a module, as a worker imports it. Or its path, ``"module:name"``.
            name: The job's id, unique in the database, and its run's name.
            retry: When it is tried again if a pass of the Supervisor fails.
            args: Further arguments of ``train``: JSON, or pydantic models, which are given to it as
                such if its hints say so.
            priority: Jobs with smaller numbers start first; 0 or more.
            **start: How the run starts: ``base_model=`` or ``from_checkpoint=``, and what goes with
                them, as for ``Supervisor.run``.

        Raises:
            UsageError: An argument is not allowed, or the job is there with other arguments.
            JournalError: The database cannot be reached now.
        """
        if type(priority) is not int or not 0 <= priority < 2**31:
            raise UsageError(f"priority={priority!r} is not allowed: an int, 0 or more")
        spec = job_spec(train, name, retry or RetryPolicy(), args or {}, start)
        await self._inside.ask(JobDatabase.submit, spec, version=self._version, priority=priority)
        return JobHandle(self._inside, name)

    def handle(self, name: str) -> JobHandle:
        """The handle of a job that was submitted before, here or elsewhere."""
        return JobHandle(self._inside, name)

    async def list(self, state: State | None = None) -> list[JobStatus]:
        """Where every job stands, the newest first; those in one ``state`` if it is given.

        Raises:
            JournalError: The database cannot be reached now.
        """
        return await self._inside.ask(JobDatabase.statuses, state)

    @property
    def _inside(self) -> Opened:
        if self._opened is None:
            raise not_entered()
        return self._opened


def _is_cancelled_by_others() -> bool:
    """Whether this task is cancelled by more than the stop of its own Supervisor; forgets that."""
    task = asyncio.current_task()
    return task is None or task.uncancel() > 0


def _shut_down() -> None:
    from tinker_recovery.jobs import engine  # noqa: PLC0415 - it imports DBOS

    engine.shut_down()
