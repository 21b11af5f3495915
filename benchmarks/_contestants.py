"""The supervisors that benchmarks/supervision.py compares, each as an async context manager.

Entering one starts its workers, and leaving it stops them. The libraries are optional
(`pip install "tinker-recovery[bench]"`).
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import ModuleType
from typing import Any

import anyio
from anyio.abc import TaskStatus

from tinker_recovery.supervision import Backoff, Child, ChildSpec, SupervisionTree

CLOCK = time.perf_counter
ALWAYS = 10**9


class Crash(Exception):
    """Raised by a worker that was ordered to crash."""


class Yard:
    """Counts the workers that come up, and wakes whoever waits for the last of them."""

    def __init__(self) -> None:
        self._missing = 0
        self._all_up: asyncio.Future[None] | None = None

    def expect(self, count: int) -> asyncio.Future[None]:
        """A future that is done once this many more have come up."""
        self._missing = count
        self._all_up = asyncio.get_running_loop().create_future()
        return self._all_up

    def one_up(self) -> None:
        """One more is up."""
        self._missing -= 1
        if self._missing == 0 and self._all_up is not None and not self._all_up.done():
            self._all_up.set_result(None)


class Worker:
    """Waits for the order to crash; the same for every contestant."""

    def __init__(self, yard: Yard, name: str) -> None:
        self.name = name
        self.down_s = 0.0
        """From its last crash to the first line of its next life."""
        self.crash: Callable[[], object] = self._order_crash
        self._yard = yard
        self._crashed_at = 0.0
        self._order: asyncio.Future[None] | None = None

    def came_up(self) -> None:
        """The first line of a life."""
        self.down_s = CLOCK() - self._crashed_at
        self._order = asyncio.get_running_loop().create_future()

    def die(self) -> None:
        """The last line of a life."""
        self._crashed_at = CLOCK()
        raise Crash

    async def live(self, ready: Callable[[], object] = lambda: None) -> None:
        """One life."""
        self.came_up()
        ready()
        self._yard.one_up()
        if self._order is not None:
            await self._order
        self.die()

    def _order_crash(self) -> None:
        if self._order is not None and not self._order.done():
            self._order.set_result(None)


Contestant = Callable[[Sequence[Worker], Yard], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def ours(workers: Sequence[Worker], _: Yard) -> AsyncGenerator[None]:
    """SupervisionTree, without a backoff, because the manual ones have none."""

    def spec(worker: Worker) -> ChildSpec:
        async def serve(child: Child) -> None:
            await worker.live(child.started)

        return ChildSpec(id=worker.name, start=serve)

    async with SupervisionTree(
        [spec(worker) for worker in workers], max_restarts=ALWAYS, backoff=Backoff.none()
    ):
        yield


@asynccontextmanager
async def anyio_manual(workers: Sequence[Worker], _: Yard) -> AsyncGenerator[None]:
    """A bare anyio task group: each start waits for ready, each crash starts a fresh task."""
    async with anyio.create_task_group() as group:

        async def keep(
            worker: Worker, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED
        ) -> None:
            try:
                await worker.live(task_status.started)
            except Crash:
                group.start_soon(keep, worker)

        for worker in workers:
            await group.start(keep, worker)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def anyio_loop(workers: Sequence[Worker], _: Yard) -> AsyncGenerator[None]:
    """The same with a loop inside one task, which cannot be replaced or abandoned."""
    async with anyio.create_task_group() as group:

        async def keep(worker: Worker, *, task_status: TaskStatus[None]) -> None:
            while True:
                try:
                    await worker.live(task_status.started)
                except Crash:
                    task_status = anyio.TASK_STATUS_IGNORED

        for worker in workers:
            await group.start(keep, worker)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def asyncio_manual(workers: Sequence[Worker], _: Yard) -> AsyncGenerator[None]:
    """A bare asyncio.TaskGroup: each start waits for ready, each crash starts a fresh task."""
    tasks: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:

        async def keep(worker: Worker, ready: Callable[[], object]) -> None:
            try:
                await worker.live(ready)
            except Crash:
                tasks[worker.name] = group.create_task(keep(worker, lambda: None))

        for worker in workers:
            up = asyncio.Event()
            tasks[worker.name] = group.create_task(keep(worker, up.set))
            await up.wait()
        yield
        for task in tasks.values():
            task.cancel()


def library(name: str) -> ModuleType:
    """An optional library; raises ImportError if it is not installed."""
    return importlib.import_module(name)


@asynccontextmanager
async def chrono_daemon(workers: Sequence[Worker], yard: Yard) -> AsyncGenerator[None]:
    """chrono-daemon's Supervisor, restarting without a delay."""
    chrono = library("chrono_daemon")

    async def live(_: object, worker: Worker) -> None:
        await worker.live()

    up = yard.expect(len(workers))
    policy = chrono.RestartPolicy(base=0.0, cap=0.0)
    async with chrono.Supervisor(on_error="restart", restart=policy) as supervisor:
        for worker in workers:
            supervisor.spawn(live, worker, name=worker.name)
        await up
        yield
        await supervisor.stop(grace=0)


@asynccontextmanager
async def tapio(workers: Sequence[Worker], yard: Yard) -> AsyncGenerator[None]:
    """tapio-py's actors, each restarted by its strategy; a crash is a message there."""
    package = library("tapio")
    restart = library("tapio.actor").SupervisorStrategy.restart()
    order = type("Order", (package.Message,), {"__module__": __name__})

    def behavior(worker: Worker) -> Any:
        async def on_message(_: object) -> Any:
            worker.die()

        def setup(_: object) -> Any:
            worker.came_up()
            yard.one_up()
            return package.Behaviors.receive_message(on_message, order)

        return package.Behaviors.supervise(package.Behaviors.setup(setup)).on_failure(restart)

    up = yard.expect(len(workers))
    async with package.ActorSystem("bench") as system:
        for worker in workers:
            ref = system.spawn(behavior(worker), worker.name)
            worker.crash = functools.partial(ref.tell, order())
        await up
        yield


@asynccontextmanager
async def mode(workers: Sequence[Worker], yard: Yard) -> AsyncGenerator[None]:
    """mode-streaming's OneForOneSupervisor over one Service for each worker."""
    package = library("mode")

    async def run(service: Any) -> None:
        await service.worker.live()

    service_type = type("Bench", (package.Service,), {"run": package.Service.task(run)})
    up = yard.expect(len(workers))
    supervisor = package.OneForOneSupervisor(max_restarts=float(ALWAYS), over=1.0)
    for worker in workers:
        service = service_type()
        service.worker = worker
        supervisor.add(service)
    await supervisor.start()
    await up
    yield
    await supervisor.stop()


@asynccontextmanager
async def fauxtp(workers: Sequence[Worker], yard: Yard) -> AsyncGenerator[None]:
    """Fauxtp's Supervisor over one Actor for each worker."""
    package = library("fauxtp")
    module = library("fauxtp.supervisor")

    async def run(actor: Any, _: object) -> None:
        await actor.worker.live()

    def spec(worker: Worker) -> Any:
        return module.ChildSpec(
            actor=type("Bench", (package.Actor,), {"run": run, "worker": worker}), name=worker.name
        )

    up = yard.expect(len(workers))
    async with anyio.create_task_group() as group:
        await module.Supervisor.start([spec(worker) for worker in workers], task_group=group)
        await up
        yield
        group.cancel_scope.cancel()


CONTESTANTS: dict[str, Contestant] = {
    "tinker_recovery.supervision": ours,
    "anyio task group, manual": anyio_manual,
    "anyio, a loop in one task": anyio_loop,
    "asyncio.TaskGroup, manual": asyncio_manual,
    "chrono-daemon": chrono_daemon,
    "tapio-py": tapio,
    "mode-streaming": mode,
    "fauxtp": fauxtp,
}
OURS, BARE, *_ = CONTESTANTS
CHEAP = 4
"""The first four are measured in every round, the libraries only in the first few."""
