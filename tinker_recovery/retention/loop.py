"""The RetentionLoop: has the Collector look after the checkpoints of the runs while they train.

It is asked after each save and each recovery, collects what is still owed when the Supervisor ends,
and looks by itself once something it has seen falls due: a lifetime to renew, a deletion to try
again. Nothing it does or fails to do disturbs the training.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.errors import LeaseLost
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.retention.collector import Collector
from tinker_recovery.supervision import Child, ChildSpec
from tinker_recovery.telemetry import metrics, names

if TYPE_CHECKING:
    from tinker_recovery.run.publishing import Publishing
    from tinker_recovery.run.supervised import SupervisedRun

GAP_S = 1.0
"""Seconds between two collections, so that a run that saves at every step is not listed at each."""

RETRY_S = 60.0
"""Seconds until a collection that failed is tried again."""


class RetentionLoop:
    """Collects for one run after the other.

    Args:
        collaborators: What it is done with; it looks every ``policy.poll_interval_s`` whether
            something has fallen due.
        publishing: What is to be published; None where nothing is.
    """

    def __init__(self, collaborators: Collaborators, publishing: Publishing | None = None) -> None:
        self._collector = Collector(
            collaborators, keeps=None if publishing is None else publishing.keeps
        )
        self._publishing = publishing
        self._look_every_s = collaborators.policy.poll_interval_s
        self._events = collaborators.events
        self._clock = collaborators.clock
        self._asked: dict[str, SupervisedRun] = {}
        self._next_at: dict[str, tuple[float, SupervisedRun]] = {}
        self._failing: dict[str, str] = {}
        """Why each run's last collection failed, until one succeeds."""
        self._news = anyio.Event()
        self._turn = anyio.Lock()

    def ask(self, run: SupervisedRun) -> None:
        """Something has changed: collect for this run soon."""
        self._asked[run.name] = run
        self._news.set()
        if self._publishing is not None:
            self._publishing.ask(run)

    async def serve(self, child: Child) -> None:
        """Collect as it is asked for, for ever; a child of the supervision tree."""
        child.started()
        async with anyio.create_task_group() as group:
            group.start_soon(self._remind)
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                await self._collect_all()
                await self._clock.sleep(GAP_S)

    def children(self) -> list[ChildSpec]:
        """The children of the supervision tree: this loop, and what publishes, if anything does."""
        own = ChildSpec(id="retention", start=self.serve)
        return [own, *(self._publishing.children() if self._publishing else ())]

    async def settle(self, limit_s: float) -> None:
        """Before the Supervisor ends: collect what is owed, for ``limit_s`` seconds at most.

        Then publish what is, within ``publish_timeout_s``.
        """
        with anyio.move_on_after(limit_s):
            await self._collect_all()
        if self._publishing is not None:
            await self._publishing.settle()

    async def aclose(self) -> None:
        """After the tree has ended."""
        if self._publishing is not None:
            await self._publishing.aclose()

    async def settle_run(self, run: SupervisedRun, limit_s: float) -> None:
        """The same for one run, before its claim is released."""
        with anyio.move_on_after(limit_s):
            async with self._turn:
                if self._asked.pop(run.name, None) is not None:
                    await self._collect(run)

    async def _remind(self) -> None:
        while True:
            await self._clock.sleep(self._look_every_s)
            now = self._clock.wall()
            for at, run in list(self._next_at.values()):
                if at <= now and not run.ended:
                    self.ask(run)

    async def _collect_all(self) -> None:
        async with self._turn:
            for name, run in list(self._asked.items()):
                # Struck off first: what is asked for meanwhile is owed again.
                del self._asked[name]
                # It asks again once it has resumed; what was claimed and released is another's.
                if run.recovering or (run.guard.claim and run.guard.released.is_set()):
                    continue
                finished = False
                try:
                    await self._collect(run)
                    finished = True
                finally:
                    if not finished:
                        self._asked.setdefault(name, run)

    async def _collect(self, run: SupervisedRun) -> None:
        next_at = math.inf
        try:
            if self._publishing is not None:
                await self._publishing.let_go(run)
            done = await self._collector.collect(run, guard=run.guard)
            next_at = done.next_at
            self._failing.pop(run.name, None)
            metrics.kept(run.name, done.kept)
        except Exception as error:  # noqa: BLE001 - an unread listing, a full disk, the user's own predicate: training continues, and nothing was deleted
            next_at = self._clock.wall() + RETRY_S
            claim = run.guard.claim
            lost = claim is not None and claim.lost.is_set()
            if run.ended and isinstance(error, LeaseLost) and not lost:
                return  # the run has given its claim free meanwhile
            # Each save is a reason to look: the same failure is said once, until a look succeeds.
            if self._failing.get(run.name) != (why := f"{type(error).__qualname__}: {error}"):
                self._failing[run.name] = why
                self._events.emit(
                    names.EVENT_RETENTION_FAILED,
                    run.name,
                    f"checkpoints are left as they are for now, and looked at again later: {error}",
                    {names.ERROR_TYPE: type(error).__qualname__},
                )
        if run.ended:
            self._next_at.pop(run.name, None)
            self._failing.pop(run.name, None)
        else:
            self._next_at[run.name] = (next_at, run)
