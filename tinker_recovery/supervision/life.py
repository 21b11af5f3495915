"""What a supervisor keeps of a child: its record, and the life of its present incarnation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, Protocol

from tinker_recovery.supervision.child import Child, ChildHost
from tinker_recovery.supervision.errors import HeartbeatMissed
from tinker_recovery.supervision.specs import ChildSpec, ChildType
from tinker_recovery.supervision.strategies import Restart

ChildState = Literal["starting", "running", "stopping", "restarting", "stopped"]
"""``starting`` and ``stopping`` take time; ``restarting`` lasts from a crash, through its backoff
and further attempts, to ready; ``stopped`` is down until someone says otherwise."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """What ``which_children`` tells of one child.

    Attributes:
        id: Its id.
        state: Where it is.
        incarnation: Number of the newest incarnation; 0 before the first.
        restart: As in its spec.
        type: As in its spec.
        significant: As in its spec.
        value: What the newest incarnation passed to ``started()``; None while it is not up.
    """

    id: str
    state: ChildState
    incarnation: int
    restart: Restart
    type: ChildType
    significant: bool
    value: object


@dataclass(frozen=True, slots=True)
class ChildCounts:
    """What ``count_children`` tells.

    Attributes:
        specs: Children there are, up or down.
        active: Those of them with a running task.
        supervisors: Those of type supervisor, up or down.
        workers: Those of type worker, up or down.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


@dataclass(frozen=True, slots=True)
class AbandonedChild:
    """An incarnation that ignored every cancellation and was left behind, still running.

    Attributes:
        id: The child's id.
        incarnation: Which incarnation.
        waited_s: Seconds it was given, from the exit signal on.
        task: Its task. It can be watched, but asyncio has no way to kill it.
    """

    id: str
    incarnation: int
    waited_s: float
    task: asyncio.Task[None]


class Record:
    """One child of a supervisor, through all its incarnations."""

    __slots__ = (
        "down_at",
        "failures",
        "fresh",
        "healthy_s",
        "incarnations",
        "life",
        "restarting",
        "spec",
        "terminated",
        "timer",
    )

    def __init__(self, spec: ChildSpec, healthy_s: float) -> None:
        self.spec = spec
        self.healthy_s = healthy_s
        self.incarnations = 0
        self.life: Life | None = None
        self.failures = 0
        """Failures in a row, for the backoff."""
        self.fresh = True
        """It was never up: if this start fails, it leaves no trace."""
        self.restarting = False
        """The supervisor has decided to start it again, and it is not up yet."""
        self.terminated = False
        """Stopped by ``terminate_child``: stays down until ``restart_child``."""
        self.timer: asyncio.Task[None] | None = None
        self.down_at = 0.0

    @property
    def state(self) -> ChildState:
        """For people and for administration."""
        life = self.life
        if life is None:
            return "restarting" if self.restarting else "stopped"
        if life.stopping:
            return "stopping"
        if life.is_ready:
            return "running"
        return "restarting" if self.restarting else "starting"

    @property
    def up(self) -> bool:
        """Whether it runs, or is on its way to."""
        return self.life is not None or self.restarting

    def info(self) -> ChildInfo:
        """What ``which_children`` tells of it."""
        return ChildInfo(
            id=self.spec.id,
            state=self.state,
            incarnation=self.incarnations,
            restart=self.spec.restart,
            type=self.spec.type,
            significant=self.spec.significant,
            value=self.life.value if self.life is not None else None,
        )

    def stay_down(self) -> None:
        """Whatever restart was under way is not any more."""
        self.restarting = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class LifeHost(ChildHost, Protocol):
    """What a life needs of the supervisor behind it."""

    def exited(self, life: Life, error: BaseException | None) -> None:
        """Its code has ended."""
        ...


class Life(Child):
    """One incarnation: the handshake the child sees, and what the supervisor knows of its task."""

    __slots__ = (
        "_exited",
        "_gone_event",
        "began_at",
        "begun",
        "enforcer",
        "failure",
        "gone",
        "ready_at",
        "record",
        "silence",
        "stopping",
        "stopping_at",
        "task",
        "waiter",
        "watch",
    )

    task: asyncio.Task[None]

    def __init__(self, record: Record, host: LifeHost) -> None:
        super().__init__(record.spec.id, record.incarnations, host)
        self.record = record
        self._exited = host.exited
        self.begun = False
        """Whether its code has run at all: a task cancelled before that ends unseen."""
        self.gone = False
        """It has ended, or was abandoned."""
        self.stopping = False
        """It was given the exit signal, so its end is no crash."""
        self.failure: BaseException | None = None
        """Why its start failed."""
        self.silence: HeartbeatMissed | None = None
        """It was stopped because it had gone silent."""
        self.enforcer: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.began_at = 0.0
        self.ready_at = 0.0
        self.stopping_at = 0.0
        self._gone_event: asyncio.Event | None = None

    def over(self, _: asyncio.Task[None]) -> None:
        """Its task is done; the exit is known, unless it was cancelled before its first step."""
        if not self.gone:
            self._exited(self, asyncio.CancelledError("cancelled before its first step"))

    def settle(self) -> None:
        """Wake whoever waits for it to be ready, or to have failed to be."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def is_gone(self) -> None:
        """Mark its end, stop what watched over it, and wake whoever waited for that."""
        self.gone = True
        for guard in (self.enforcer, self.watch):
            if guard is not None:
                guard.cancel()
        self.enforcer = self.watch = None
        if self._gone_event is not None:
            self._gone_event.set()
        self.settle()

    async def wait_gone(self) -> None:
        """Return once it has ended or was abandoned."""
        if not self.gone:
            if self._gone_event is None:
                self._gone_event = asyncio.Event()
            await self._gone_event.wait()
