"""The supervisors that a program enters: SupervisionTree and DynamicSupervisor."""

from __future__ import annotations

import itertools
import random as chance
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Self

import anyio
from anyio import AsyncContextManagerMixin

from tinker_recovery.supervision import admin
from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import whole
from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.engine import Engine
from tinker_recovery.supervision.errors import SupervisionError, SupervisorStopped, TooManyChildren
from tinker_recovery.supervision.events import Listener
from tinker_recovery.supervision.life import AbandonedChild, ChildCounts, ChildInfo
from tinker_recovery.supervision.settings import Settings
from tinker_recovery.supervision.specs import ChildSpec, Shutdown, check_specs
from tinker_recovery.supervision.strategies import AutoShutdown, Restart, Strategy, is_a_crash


class BaseSupervisor(AsyncContextManagerMixin):
    """What both kinds of supervisor share: entry and exit, and the calls that take a child's id."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        """The name in events, logs and errors."""
        return self._settings.name

    @property
    def abandoned(self) -> tuple[AbandonedChild, ...]:
        """Every incarnation that would not stop since the last entry, oldest first.

        asyncio cannot kill a task. One that outlives its shutdown limit and a second round of
        cancellations is abandoned, still running, and listed here.
        """
        return () if self._engine is None else tuple(self._engine.stopper.abandoned)

    def __asynccontextmanager__(self) -> AbstractAsyncContextManager[Self]:
        if self._engine is not None and self._engine.closing is None:
            raise SupervisionError(f"{self!r} is already entered: make one for each `async with`")
        return self._entered()

    @asynccontextmanager
    async def _entered(self) -> AsyncGenerator[Self]:
        scope = anyio.CancelScope()
        self._engine = engine = Engine(self._settings, scope.cancel)
        try:
            await engine.start()
            with scope:
                yield self
        finally:
            await engine.closed()
            if engine.fatal is not None and not is_a_crash(engine.fatal):
                raise engine.fatal  # KeyboardInterrupt and the like replace the body's exception
        if engine.fatal is not None:
            raise engine.fatal

    def as_child(
        self,
        id: str | None = None,  # noqa: A002 - the field's own name in a ChildSpec
        *,
        restart: Restart = "permanent",
        shutdown: Shutdown = "infinity",
        significant: bool = False,
        backoff: Backoff | None = None,
    ) -> ChildSpec:
        """This supervisor as a child of another.

        Each incarnation begins with the specs given at construction: children added later go with
        the incarnation they were added to. To the parent, giving up is one crash, and ending by
        ``auto_shutdown`` a normal exit. ``ChildInfo.value`` is this supervisor.

        The arguments are those of ChildSpec. The default ``id`` is this supervisor's name; the
        default ``shutdown`` leaves its children their own limits, and so does its start, which has
        no deadline beside theirs.
        """
        return ChildSpec(
            id=self.name if id is None else id,
            start=self._serve,
            restart=restart,
            shutdown=shutdown,
            significant=significant,
            type="supervisor",
            backoff=backoff,
            start_timeout_s=None,
        )

    async def _serve(self, child: Child) -> None:
        async with self._entered():
            child.started(self)
            await anyio.sleep_forever()

    async def terminate_child(self, child: str) -> None:
        """Stop a child; returns once it has ended, or was abandoned.

        It stays down until ``restart_child``, even if it was in a backoff or its siblings are
        restarted. A temporary or dynamic child is forgotten. One that is down stays as it is.

        Cancelling this call ends the wait, not the stop.

        Raises:
            ChildNotFound: No child has that id.
            SupervisorStopped: The supervisor is not running.
        """
        await admin.terminate(self._running(), child)

    def which_children(self) -> list[ChildInfo]:
        """Every child, in start order.

        Raises:
            SupervisorStopped: The supervisor is not running.
        """
        return [record.info() for record in self._running().records.values()]

    def count_children(self) -> ChildCounts:
        """The number of children, up and down.

        Raises:
            SupervisorStopped: The supervisor is not running.
        """
        return admin.counts(self._running())

    def _running(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise SupervisorStopped(f"enter it first: `async with {self!r}`")
        if engine.closing is not None:
            raise engine.stopped()
        return engine


class SupervisionTree(BaseSupervisor):
    """Starts children in order, restarts those that die, stops them in reverse.

    ``async with SupervisionTree(specs) as tree:`` starts each child once the one before is ready.
    If a start fails, those already up are stopped in reverse, the body does not run, and the
    child's own exception is raised, with a note that names the child.

    Within the restart limit a crash never touches the body. Beyond it the children are stopped,
    the body is cancelled, and :class:`RestartLimitReached` is raised, with the child's exception as
    its ``__cause__``: never a bare CancelledError, and never an ExceptionGroup. (The child's
    exception itself would not show that restarts were tried, and ``except OSError`` around a tree
    is meant for the body's.) An exception of the body is raised unchanged. KeyboardInterrupt and
    SystemExit of a child are never restarted: everything stops, and they are raised unchanged.

    Cancelling the host stops the children, each within its shutdown limit; the wait for that is
    shielded, and the cancellation continues after it.

    Args:
        specs: The children, in start order.
        name: Appears in events, logs and errors.
        strategy: Which siblings are restarted with a child that died.
        max_restarts: Restarts allowed within any ``max_seconds``, over all children together. A
            failed attempt at a restart counts as well.
        max_seconds: The sliding window, in seconds.
        backoff: Delays before restarts, for children without a backoff of their own.
        healthy_after_s: After this many seconds up, a child's backoff begins again with the
            shortest delay. The default is derived from the limit, see
            :func:`intensity.healthy_after`.
        auto_shutdown: Whether the end of significant children ends the supervisor: its children
            are stopped, its body is cancelled, and ``async with`` ends without an error.
        on_event: Called with every :class:`SupervisionEvent`; has to be quick. What it raises is
            logged.
        monotonic: Seconds that only grow.
        sleep: Waits that many seconds; cancellable.
        random: A number in [0, 1), for jitter.

    Raises:
        SpecError: An argument that cannot work.
    """

    def __init__(  # noqa: PLR0913 - every setting by its own name; all but the specs have defaults
        self,
        specs: Iterable[ChildSpec] = (),
        *,
        name: str = "supervisor",
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        backoff: Backoff | None = None,
        healthy_after_s: float | None = None,
        auto_shutdown: AutoShutdown = "never",
        on_event: Listener | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        super().__init__(
            Settings(
                name=name,
                specs=check_specs(specs, auto_shutdown),
                strategy=strategy,
                max_restarts=max_restarts,
                max_seconds=max_seconds,
                backoff=Backoff() if backoff is None else backoff,
                healthy_after_s=healthy_after_s,
                auto_shutdown=auto_shutdown,
                on_event=on_event,
                monotonic=monotonic,
                sleep=sleep,
                random=random,
            )
        )

    async def start_child(self, spec: ChildSpec) -> ChildInfo:
        """Add a child at the end and start it; returns once it is ready or called ``ignore()``.

        If the start fails, the child is forgotten, and no restart is counted.

        Cancelling this call ends the wait, not the start.

        Raises:
            ChildAlreadyStarted: A child of that id is up, starting or restarting.
            ChildAlreadyPresent: A child of that id is down.
            ChildTerminated: It was stopped before it was ready.
            SpecError: It is significant, and ``auto_shutdown`` is ``never``.
            SupervisorStopped: The supervisor is not running.
            BaseException: What the child raised before it was ready, unchanged.
        """
        return await admin.start(self._running(), spec)

    async def restart_child(self, child: str) -> ChildInfo:
        """Start a child that is down; returns once it is ready or called ``ignore()``.

        If the start fails, the child stays down, and no restart is counted.

        Cancelling this call ends the wait, not the start.

        Raises:
            ChildNotFound: No child has that id.
            ChildRunning: It is up.
            ChildRestarting: It is being restarted already.
            ChildTerminated: It was stopped before it was ready.
            SupervisorStopped: The supervisor is not running.
            BaseException: What the child raised before it was ready, unchanged.
        """
        return await admin.restart(self._running(), child)

    async def delete_child(self, child: str) -> None:
        """Forget a child that is down.

        Raises:
            ChildNotFound: No child has that id.
            ChildRunning: It is up, or still being stopped.
            ChildRestarting: It is being restarted.
            SupervisorStopped: The supervisor is not running.
        """
        await admin.delete(self._running(), child)


class DynamicSupervisor(BaseSupervisor):
    """Many children of one kind, each started on request (OTP's simple_one_for_one).

    It begins with none. Each is independent of the others (one_for_one) and forgotten once it is
    down for good; all are stopped side by side. Otherwise as :class:`SupervisionTree`, which
    explains the arguments not listed here.

    Args:
        template: The spec of each child. Its ``start`` is called with the Child and the arguments
            of ``start_child``.
        max_children: How many there may be at a time, including those being restarted.
    """

    def __init__(  # noqa: PLR0913 - every setting by its own name; all but the template have defaults
        self,
        template: ChildSpec,
        *,
        name: str = "supervisor",
        max_children: int | None = None,
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        backoff: Backoff | None = None,
        healthy_after_s: float | None = None,
        auto_shutdown: AutoShutdown = "never",
        on_event: Listener | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        check_specs([template], auto_shutdown)
        if max_children is not None:
            whole("max_children", max_children)
        super().__init__(
            Settings(
                name=name,
                template=template,
                max_restarts=max_restarts,
                max_seconds=max_seconds,
                backoff=Backoff() if backoff is None else backoff,
                healthy_after_s=healthy_after_s,
                auto_shutdown=auto_shutdown,
                on_event=on_event,
                monotonic=monotonic,
                sleep=sleep,
                random=random,
            )
        )
        self._template = template
        self._max_children = max_children
        self._numbers = itertools.count(1)

    async def start_child(self, *args: object, id: str | None = None) -> ChildInfo:  # noqa: A002 - the field's own name in a ChildSpec
        """Start one more child; returns once it is ready.

        Cancelling this call ends the wait, not the start.

        Args:
            args: Passed to the template's ``start`` after the Child.
            id: The child's id; by default the template's with a number.

        Raises:
            TooManyChildren: There are ``max_children`` already.
            ChildAlreadyStarted: The id is taken.
            ChildTerminated: It was stopped before it was ready.
            SupervisorStopped: The supervisor is not running.
            BaseException: What the child raised before it was ready, unchanged.
        """
        engine = self._running()
        child = f"{self._template.id}-{next(self._numbers)}" if id is None else id
        if self._max_children is not None and len(engine.records) >= self._max_children:
            raise TooManyChildren(
                child,
                f"supervisor {self.name!r} has max_children={self._max_children} children already",
            )
        template = self._template

        def start(handshake: Child) -> Awaitable[object]:
            return template.start(handshake, *args)

        spec = replace(template, id=child, start=start)
        return await admin.start(engine, spec)
