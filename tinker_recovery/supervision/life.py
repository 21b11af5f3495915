"""What a supervisor keeps about a child: its record, and the life of its current incarnation."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tinker_recovery.supervision.child import Child
from tinker_recovery.supervision.errors import HeartbeatMissed, StartTimedOut
from tinker_recovery.supervision.intensity import RestartLedger
from tinker_recovery.supervision.specs import ChildSpec, ChildType
from tinker_recovery.supervision.strategies import Restart

if TYPE_CHECKING:
    from tinker_recovery.supervision.engine import Engine

ChildState = Literal["starting", "running", "stopping", "restarting", "stopped"]
"""``restarting`` lasts from a crash, through backoff and failed attempts, until ready; ``stopped``
until ``restart_child``."""


@dataclass(frozen=True, slots=True)
class ChildInfo:
    """One child, as ``which_children`` returns it; ``restart`` to ``significant`` as in its spec.

    Attributes:
        id: The child's id.
        state: Where it is in its life cycle.
        incarnation: Number of the newest incarnation; 0 before the first.
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
    """What ``count_children`` returns.

    Attributes:
        specs: All children, up or down.
        active: Those with a running task.
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
        waited_s: Seconds from the exit signal until it was abandoned.
        task: Its task, which asyncio has no way to kill.
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
        "ledger",
        "life",
        "restarting",
        "spec",
        "terminated",
        "timer",
    )

    def __init__(self, spec: ChildSpec, healthy_s: float, ledger: RestartLedger) -> None:
        self.spec = spec
        self.healthy_s = healthy_s
        self.ledger = ledger
        """What its restarts count against: its own, or that of all children."""
        self.incarnations = 0
        self.life: Life | None = None
        self.failures = 0
        """Failures in a row, for the backoff."""
        self.fresh = True
        """It was never up: if its start fails, it is forgotten."""
        self.restarting = False
        """It is to be started again, and is not up yet."""
        self.terminated = False
        """Stopped by ``terminate_child``: stays down until ``restart_child``."""
        self.timer: asyncio.Task[None] | None = None
        self.down_at = 0.0

    @property
    def state(self) -> ChildState:
        """Where it is in its life cycle."""
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
        """Whether it runs, or is being restarted."""
        return self.life is not None or self.restarting

    def info(self) -> ChildInfo:
        """What ``which_children`` returns for it."""
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
        """Drop a pending restart."""
        self.restarting = False
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Life(Child):
    """One incarnation: the handshake that the child sees, and what its supervisor knows of it."""

    __slots__ = (
        "_gone_event",
        "began_at",
        "begun",
        "enforcer",
        "failure",
        "gone",
        "overdue",
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

    def __init__(self, record: Record, engine: Engine) -> None:
        super().__init__(record.spec.id, record.incarnations, engine)
        self.record = record
        self.begun = False
        """Whether its code has run at all: a task cancelled before that ends without it."""
        self.gone = False
        """It has ended, or was abandoned."""
        self.stopping = False
        """It was sent the exit signal, so its end is not a crash."""
        self.failure: BaseException | None = None
        """Why its start failed."""
        self.silence: HeartbeatMissed | None = None
        """The missed heartbeat it was stopped for."""
        self.overdue: StartTimedOut | None = None
        """The start deadline it was stopped for."""
        self.enforcer: asyncio.Task[None] | None = None
        self.watch: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.began_at = 0.0
        self.ready_at = 0.0
        self.stopping_at = 0.0
        self._gone_event: asyncio.Event | None = None

    def over(self, _: asyncio.Task[None]) -> None:
        """Callback of its task: reports the exit of one cancelled before its first step."""
        if not self.gone:
            self._engine.exited(self, asyncio.CancelledError("cancelled before its first step"))

    def settle(self) -> None:
        """Wake whoever waits for the outcome of its start."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def mark_gone(self) -> None:
        """Record its end, cancel the tasks that watched it, and wake whoever waited for it."""
        self.gone = True
        if self.enforcer is not None:
            self.enforcer.cancel()
        if self.watch is not None:
            self.watch.cancel()
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
