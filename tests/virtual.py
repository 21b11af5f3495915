"""Virtual time, and children under control: what the supervision tests run on."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio

from tinker_recovery.clock import Clock
from tinker_recovery.supervision import (
    Backoff,
    Child,
    ChildSpec,
    DynamicSupervisor,
    SupervisionEvent,
    SupervisionTree,
)


class VirtualClock:
    """Time that stands still while anything can run, and jumps to the next timer when nothing can.

    So a sleep of an hour costs nothing, and the order of events is always the same.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._driven = False

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        timer = loop.create_future()
        heapq.heappush(self._timers, (self.now + seconds, next(self._order), timer))
        if not self._driven:
            self._driven = True
            loop.call_soon(self._drive, loop)
        await timer

    def jump(self, seconds: float) -> None:
        """Time passes at once, as if the event loop had stood still."""
        self.now += seconds

    async def settle(self) -> None:
        """Let everything run that can run without time passing."""
        loop: Any = asyncio.get_running_loop()
        idle = 0
        while idle < 2:
            idle = 0 if self._busy(loop) else idle + 1
            await asyncio.sleep(0)

    def _busy(self, loop: Any) -> bool:
        return len(loop._ready) > self._driven

    def _drive(self, loop: Any) -> None:
        while self._timers and self._timers[0][2].done():
            heapq.heappop(self._timers)
        if not loop._ready and self._timers:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            timer.set_result(None)
        self._driven = bool(self._timers)
        if self._driven:
            loop.call_soon(self._drive, loop)


class ManualClock:
    """A clock to read: it stands still until a test sets ``now``."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


_FASTER = 20

FAST_CLOCK = Clock(
    monotonic=lambda: _FASTER * time.monotonic(), sleep=lambda s: anyio.sleep(s / _FASTER)
)
"""Real time, twenty times as fast: for waits on a local server that are made for a slower one."""


class Kid:
    """A child that stays up until `crash` or `finish` is called.

    Args:
        id: Its id.
        log: Where it writes ``+id`` when it starts and ``-id`` when it is cancelled.
        clock: For its own delays.
        failing: What its next starts raise, in order; None for one that succeeds.
        stop_s: How long its clean-up takes.
        deaf: How many cancellations it ignores.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - as in ChildSpec
        log: list[str],
        clock: VirtualClock,
        *,
        failing: Iterable[BaseException | str | None] = (),
        start_s: float = 0.0,
        stop_s: float = 0.0,
        deaf: int = 0,
    ) -> None:
        self.id = id
        self.log = log
        self.clock = clock
        self.failing = list(failing)
        self.start_s = start_s
        self.stop_s = stop_s
        self.deaf = deaf
        self.starts = 0
        self.alive = 0
        self.most_alive = 0
        self.child: Child | None = None
        self.order: asyncio.Future[BaseException | None] | None = None

    async def serve(self, child: Child, *args: object) -> None:
        self.starts += 1
        self.child = child
        self.alive += 1
        self.most_alive = max(self.alive, self.most_alive)
        try:
            await self._serve(child, args)
        finally:
            self.alive -= 1

    async def _serve(self, child: Child, args: tuple[object, ...]) -> None:
        self.log.append(f"+{self.id}")
        if self.start_s:
            await self.clock.sleep(self.start_s)
        failure = self.failing.pop(0) if self.failing else None
        if isinstance(failure, BaseException):
            raise failure
        if failure == "hang":
            await asyncio.get_running_loop().create_future()
        if failure == "ignore":
            child.ignore()
        if failure is None:
            child.started(args or self.id)
            await self._stay(asyncio.get_running_loop().create_future())

    async def _stay(self, order: asyncio.Future[BaseException | None]) -> None:
        self.order = order
        while not order.done():
            try:
                await asyncio.shield(order)
            except asyncio.CancelledError:
                if self.deaf > 0:
                    self.deaf -= 1
                    continue
                self.log.append(f"-{self.id}")
                if self.stop_s:
                    await self.clock.sleep(self.stop_s)
                    self.log.append(f"~{self.id}")
                raise
        error = order.result()
        if error is not None:
            raise error

    def crash(self, error: BaseException | None = None) -> None:
        assert self.order is not None
        assert not self.order.done()
        self.order.set_result(error or ValueError(f"{self.id} crashed"))

    def finish(self) -> None:
        assert self.order is not None
        self.order.set_result(None)

    def spec(self, **changes: Any) -> ChildSpec:
        return ChildSpec(id=self.id, start=self.serve, **changes)


class World:
    """A clock, a log of what children did, a list of events; and supervisors that use them."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.log: list[str] = []
        self.events: list[SupervisionEvent] = []
        self.errors: list[dict[str, object]] = []

    def kid(self, id: str, **settings: Any) -> Kid:  # noqa: A002 - as in ChildSpec
        return Kid(id, self.log, self.clock, **settings)

    def kids(self, ids: str) -> list[Kid]:
        return [self.kid(one) for one in ids]

    def settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        return {
            "max_restarts": 3,
            "max_seconds": 60.0,
            "backoff": Backoff.none(),
            "on_event": self.events.append,
            "monotonic": self.clock.monotonic,
            "sleep": self.clock.sleep,
            "random": lambda: 0.0,
            **changes,
        }

    def tree(self, specs: Iterable[ChildSpec | Kid], **changes: Any) -> SupervisionTree:
        made = [spec.spec() if isinstance(spec, Kid) else spec for spec in specs]
        return SupervisionTree(made, **self.settings({"name": "tree", **changes}))

    def dynamic(self, template: ChildSpec, **changes: Any) -> DynamicSupervisor:
        return DynamicSupervisor(template, **self.settings({"name": "dynamic", **changes}))

    async def settle(self) -> None:
        await self.clock.settle()

    def cleared(self) -> list[str]:
        """The log since the last look."""
        log = list(self.log)
        self.log.clear()
        return log


def states(tree: SupervisionTree | DynamicSupervisor) -> dict[str, str]:
    return {child.id: child.state for child in tree.which_children()}


def caught(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except BaseException as error:  # noqa: BLE001 - that is the question
        return error
    raise AssertionError("nothing was raised")
