"""Attempts made up for tests: with real clients and savers, on a run and a service that are not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

from made import LINEAGE, segment

from tinker_recovery import CheckpointPolicy, RecoveryPolicy
from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.clock import Clock
from tinker_recovery.faults import Fault
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.run.history import RunHistory
from tinker_recovery.run.recall import RunRecall
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.service import Connection
from tinker_recovery.service.metadata import ServiceMetadata
from tinker_recovery.telemetry import EventSink


class Sdk:
    """A training client whose requests are answered when, and as, the test says."""

    model_id = "a"
    _queue_state_logger = SimpleNamespace(on_queue_state_change=print)

    def __init__(self) -> None:
        self.submitted: list[Future[Any]] = []
        self.saved: list[dict[str, str]] = []
        """The metadata of each save."""
        self.answers = False
        """Whether each request succeeds at once."""

    def _submit(self, *_: object, **__: object) -> Any:
        future: Future[Any] = Future()
        self.submitted.append(future)
        if self.answers:
            self.answer()
        return SimpleNamespace(future=lambda: future)

    forward_backward = optim_step = _submit

    def save_state(self, *given: Any, user_metadata: Any = None, **more: Any) -> Any:
        self.saved.append(user_metadata or {})
        return self._submit(*given, **more)

    def answer(self) -> None:
        """Everything that was submitted so far succeeds."""
        for each in self.submitted:
            if not each.done():
                each.set_result(SimpleNamespace(path="tinker://a/weights/s", metrics={}))


class World:
    """A run, with a service and a clock."""

    def __init__(self, *, start: int = 0, **policy: Any) -> None:
        self.now_s = 100.0
        self.slept: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None
        self.posted: list[Callable[[], object]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.faults: list[Fault] = []
        self.closed: list[tuple[Any, ...]] = []
        self.closing: Callable[[], Any] | None = None
        """Awaited by who closes a client."""
        self.known: list[tuple[str, str | None]] = []
        """Attempts that who reads the service's listings knows of, and their parents."""
        self.reported: list[tuple[Any, ...]] = []
        self.over: list[BaseException | None] = []
        self.corrupted = False
        self.looked_into: list[Any] = []
        """Attempts with a save that failed, of a run that is not corrupted."""
        self.asked_status = 0
        self.on_status: Callable[[], object] = lambda: None
        self.settling: BaseException | None = None
        self.settled = 0
        self.metadata = ServiceMetadata()
        self.metadata.keeps = "kept"
        know = self.metadata.know_attempt

        def know_attempt(id_: str, parent: str | None) -> None:
            self.known.append((id_, parent))
            know(id_, parent)

        self.metadata.know_attempt = know_attempt  # type: ignore[method-assign, assignment]  # to be seen
        saving = CheckpointPolicy(strategy="steps", save_every=1, save_best=False)
        self.policy = RecoveryPolicy(**{"checkpoints": saving, "canary": None, **policy})
        kept: Any = SimpleNamespace(
            record=SimpleNamespace(given_name=None, path=None, lineage=LINEAGE, stored=None)
        )
        self.run: Any = SimpleNamespace(
            name="r",
            given_name=None,
            lineage=LINEAGE,
            origin=object(),
            start_step=start,
            parent=None,
            segments=[segment("a", start)],
            policy=self.policy,
            clock=Clock(lambda: self.now_s, lambda: 0.0, self._sleep, lambda: 0.0),
            history=RunHistory(RunRecall(kept, limit=0)),
            checkpoints=CheckpointState("r"),
            attempts=SimpleNamespace(find=lambda _: None),
            signals=SimpleNamespace(requested=False),
            collaborators=SimpleNamespace(
                reader=SimpleNamespace(metadata=self.metadata),
                backend=SimpleNamespace(close=self._close),
                outlets=SimpleNamespace(
                    reported=lambda *given, **more: self.reported.append((*given, more))
                ),
                events=EventSink(),
            ),
            journal=SimpleNamespace(
                metrics=lambda *_: None, step_done=lambda _: None, stored=lambda *_, **__: None
            ),
            retention=SimpleNamespace(ask=lambda _: None),
            rollbacks=SimpleNamespace(
                sound_to=math.inf,
                settle=self._settle,
                note_save_failed=self.looked_into.append,
            ),
            skipped=set(),
            current=None,
            recoveries=[],
            ended=False,
            mailbox=SimpleNamespace(post=self.posted.append, deliver=self.deliver),
            spawn=lambda work: self.tasks.append(asyncio.create_task(work())),
            is_corrupted=self._is_corrupted,
            report_fault=self.faults.append,
            attempt_over=self._over,
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.on_sleep()

    async def _settle(self, scope: object) -> None:
        del scope
        self.settled += 1
        if self.settling is not None:
            raise self.settling

    async def _is_corrupted(self) -> bool:
        self.asked_status += 1
        self.on_status()
        return self.corrupted

    async def _over(self, scope: object, error: BaseException | None) -> None:
        del scope
        self.over.append(error)

    async def _close(self, *given: Any, deadline_s: float) -> None:
        self.closed.append((*given[1:], deadline_s))
        if self.closing is not None:
            await self.closing()

    def deliver(self) -> None:
        """Run what was posted to the event loop."""
        while self.posted:
            self.posted.pop(0)()

    async def background(self) -> None:
        """Wait for what runs in the background."""
        while self.tasks:
            await self.tasks.pop()

    async def end(self) -> None:
        """End what runs in the background."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def attempt(
        self, checkpoint: CheckpointRecord | None = None, *, service: Any = None
    ) -> Attempt:
        """A new attempt of the run."""
        return Attempt(self, checkpoint, service)


class Attempt(AttemptScope):
    """One with the stand-in of the SDK's client at hand."""

    def __init__(self, world: World, checkpoint: CheckpointRecord | None, service: Any) -> None:
        self.sdk = Sdk()
        connection = Connection(self.sdk, "a", service)  # type: ignore[arg-type]  # as far as it is used
        super().__init__(world.run, 3, connection, checkpoint)

    def steps(self, count: int = 1, *, answered: bool = True) -> None:
        """The loop trains these."""
        for _ in range(count):
            self.client.forward_backward([], "cross_entropy")
            self.client.optim_step(None)
            if answered:
                self.sdk.answer()

    def is_cancelled(self) -> bool:
        """Whether its body is."""
        return self._scope.cancel_called
