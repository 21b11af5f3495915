"""The supervisors that a program enters: SupervisionTree, and DynamicSupervisor for its many."""

from __future__ import annotations

import itertools
import random as chance
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Literal, Self

import anyio
from anyio import AsyncContextManagerMixin

from tinker_recovery.supervision import admin
from tinker_recovery.supervision.backoff import Backoff
from tinker_recovery.supervision.checks import one_of, text, whole
from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.engine import Engine
from tinker_recovery.supervision.errors import (
    SpecError,
    SupervisionError,
    SupervisorStopped,
    TooManyChildren,
)
from tinker_recovery.supervision.events import Listener
from tinker_recovery.supervision.intensity import check_intensity
from tinker_recovery.supervision.life import AbandonedChild, ChildCounts, ChildInfo
from tinker_recovery.supervision.settings import Settings
from tinker_recovery.supervision.specs import ChildSpec, Shutdown, check_specs
from tinker_recovery.supervision.strategies import AutoShutdown, Restart, Strategy, is_a_crash


class BaseSupervisor(AsyncContextManagerMixin):
    """What both kinds of supervisor share: entry and end, and the calls that know a child's id."""

    def __init__(self, settings: Settings, *templates: ChildSpec) -> None:
        text("name", settings.name)
        if not isinstance(settings.backoff, Backoff):
            raise SpecError("backoff", settings.backoff, "a Backoff, or None for the default one")
        for spec in (*settings.specs, *templates):
            settings.healthy_s(spec)
        settings.healthy_s(None)
        self._settings = settings
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        """Its name, in events, logs and errors."""
        return self._settings.name

    @property
    def abandoned(self) -> tuple[AbandonedChild, ...]:
        """The report of what would not stop: every incarnation left behind since the last entry.

        asyncio cannot kill a task. One that goes on after its shutdown limit and a second round of
        cancellations is left behind, still running, and is listed here.
        """
        return () if self._engine is None else tuple(self._engine.stopper.left_behind)

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
                raise engine.fatal  # KeyboardInterrupt and its like come before all else
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

        Each incarnation begins with the specs given at construction: children added later are gone
        with the incarnation they were added to. Giving up is one crash in the eyes of the parent;
        ending by ``auto_shutdown`` is a normal exit. The parent's child value is this supervisor.

        Args:
            id: Its id there; its name, if not given.
            restart: As in ChildSpec.
            shutdown: As in ChildSpec; the default leaves its children their own limits.
            significant: As in ChildSpec.
            backoff: As in ChildSpec.
        """
        return ChildSpec(
            id=self.name if id is None else id,
            start=self._serve,
            restart=restart,
            shutdown=shutdown,
            significant=significant,
            type="supervisor",
            backoff=backoff,
        )

    async def _serve(self, child: Child) -> None:
        async with self._entered():
            child.started(self)
            await anyio.sleep_forever()

    async def terminate_child(self, child: str) -> None:
        """Stop a child; returns once it has ended, or was abandoned.

        It stays down, also where a backoff was running or its siblings are restarted, until
        ``restart_child``. A temporary or dynamic child is forgotten. One that is down already is
        left as it is.

        Cancelling this call ends the wait, not the stop.

        Raises:
            ChildNotFound: There is none of that id.
            SupervisorStopped: The supervisor is not running.
        """
        await admin.terminate(self._running(), child)

    def which_children(self) -> list[ChildInfo]:
        """Every child, in the order of start.

        Raises:
            SupervisorStopped: The supervisor is not running.
        """
        return [record.info() for record in self._running().records.values()]

    def count_children(self) -> ChildCounts:
        """How many children there are, up and down.

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
    """Starts children in order, restarts what dies, stops them in reverse, gives up in time.

    ``async with SupervisionTree(specs) as tree:`` starts each child once the one before is ready.
    A start that fails stops those already up, in reverse, and raises the child's own exception,
    with a note that names the child; the body does not run.

    Within the restart limit a crash never touches the body. Beyond it the children are stopped,
    the body is cancelled, and :class:`RestartLimitReached` is raised, whose ``__cause__`` is the
    child's own exception: never a bare CancelledError, and never an ExceptionGroup. It is not the
    child's exception itself because the reader has to learn that restarts were tried, and because
    ``except OSError`` around a tree is meant for the body's. A body that raises an exception of its
    own leaves with that very object. KeyboardInterrupt and SystemExit of a child are never
    restarted: everything stops, and they are raised as they are.

    Cancelling the host stops the children, each within its shutdown limit; the wait for that is
    shielded, and the cancellation goes on after it.

    Args:
        specs: The children, in the order of their start.
        name: In events, logs and errors.
        strategy: Who is restarted with a child that died.
        max_restarts: Restarts allowed within any ``max_seconds``, over all children together. A
            failed attempt at a restart counts as well.
        max_seconds: The sliding window, in seconds.
        backoff: Delays before restarts, where a child has none of its own.
        healthy_after_s: A child that was up this long begins again with the shortest delay. The
            default is derived from the limit, see :func:`intensity.healthy_after`.
        auto_shutdown: Whether the end of significant children ends the supervisor: its children
            are stopped, its body is cancelled, and ``async with`` is left without an error.
        on_event: Called with every :class:`SupervisionEvent`; has to be quick, and what it raises
            is logged.
        monotonic: Seconds that only grow.
        sleep: Waits that many seconds; cancellable.
        random: A number in [0, 1), for jitter.

    Raises:
        SpecError: Something that cannot work; says the field, its value and what is allowed.
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
        one_of("strategy", strategy, Strategy)
        one_of("auto_shutdown", auto_shutdown, AutoShutdown)
        check_intensity(max_restarts, max_seconds)
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
                dynamic=False,
                on_event=on_event,
                monotonic=monotonic,
                sleep=sleep,
                random=random,
            )
        )

    async def start_child(self, spec: ChildSpec) -> ChildInfo:
        """Add a child at the end and start it; returns once it is ready or has said ``ignore()``.

        A start that fails leaves no trace of the child and costs no restart.

        Cancelling this call ends the wait, not the start.

        Raises:
            ChildAlreadyStarted: Its id is that of a child that is up or on its way.
            ChildAlreadyPresent: Its id is that of a child that is down.
            ChildTerminated: Someone stopped it before it was ready.
            SpecError: It does not go with this supervisor.
            SupervisorStopped: The supervisor is not running.
            BaseException: Whatever the child raised before it was ready, as it is.
        """
        return await admin.start(self._running(), spec)

    async def restart_child(self, child: str) -> ChildInfo:
        """Start a child that is down; returns once it is ready or has said ``ignore()``.

        A start that fails leaves it down and costs no restart.

        Cancelling this call ends the wait, not the start.

        Raises:
            ChildNotFound: There is none of that id.
            ChildRunning: It is up.
            ChildRestarting: It is being restarted already; there will be one incarnation of it.
            ChildTerminated: Someone stopped it before it was ready.
            SupervisorStopped: The supervisor is not running.
            BaseException: Whatever the child raised before it was ready, as it is.
        """
        return await admin.restart(self._running(), child)

    async def delete_child(self, child: str) -> None:
        """Forget a child that is down.

        Raises:
            ChildNotFound: There is none of that id.
            ChildRunning: It is up, or still being stopped.
            ChildRestarting: It is being restarted.
            SupervisorStopped: The supervisor is not running.
        """
        await admin.delete(self._running(), child)


class DynamicSupervisor(BaseSupervisor):
    """Many children of one kind, each started when asked for (OTP's simple_one_for_one).

    It starts with none. Each is independent of the others (one_for_one), is forgotten once it is
    down for good, and all are stopped side by side. Otherwise as :class:`SupervisionTree`, which
    explains the arguments not named here.

    Args:
        template: What each child is like. Its ``start`` is called with the Child and whatever
            ``start_child`` was given.
        max_children: How many there may be at a time, those being restarted included.
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
        auto_shutdown: Literal["never", "any_significant", "all_significant"] = "never",
        on_event: Listener | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
        random: Callable[[], float] = chance.random,
    ) -> None:
        one_of("auto_shutdown", auto_shutdown, AutoShutdown)
        check_intensity(max_restarts, max_seconds)
        check_specs([template], auto_shutdown)
        if max_children is not None:
            whole("max_children", max_children)
        super().__init__(
            Settings(
                name=name,
                specs=(),
                strategy="one_for_one",
                max_restarts=max_restarts,
                max_seconds=max_seconds,
                backoff=Backoff() if backoff is None else backoff,
                healthy_after_s=healthy_after_s,
                auto_shutdown=auto_shutdown,
                dynamic=True,
                on_event=on_event,
                monotonic=monotonic,
                sleep=sleep,
                random=random,
            ),
            template,
        )
        self._template = template
        self._max_children = max_children
        self._numbers = itertools.count(1)

    async def start_child(self, *args: object, id: str | None = None) -> ChildInfo:  # noqa: A002 - the field's own name in a ChildSpec
        """Start one more; returns once it is ready. Its id is in what is returned.

        Cancelling this call ends the wait, not the start.

        Args:
            args: Handed to the template's ``start``, after the Child.
            id: Its id; without one, the template's and a number.

        Raises:
            TooManyChildren: There are ``max_children`` already.
            ChildAlreadyStarted: Its id is taken.
            ChildTerminated: Someone stopped it before it was ready.
            SupervisorStopped: The supervisor is not running.
            BaseException: Whatever the child raised before it was ready, as it is.
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
