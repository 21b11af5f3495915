"""A training run at the service: its queue of requests, their promises, what can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinker_recovery.testing.actions import Request
from tinker_recovery.testing.faults import FaultRule
from tinker_recovery.testing.model import BigramLora

Reply = dict[str, Any] | bytes
"""A result: a JSON object, or protobuf bytes."""

_SETTLE_S = 0.05


class ServiceError(Exception):
    """A request the service answers with an HTTP error.

    Attributes:
        status: The HTTP status.
        message: What is wrong with it.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status = status
        self.message = message

    def __str__(self) -> str:
        return self.message


class RequestError(Exception):
    """Raised while a request is executed: its future fails with this message and category."""

    def __init__(self, message: str, category: str = "user") -> None:
        super().__init__(message)
        self.message = message
        self.category = category


@dataclass(slots=True)
class Promise:
    """The result of a request, once there is one.

    Attributes:
        request: The kind of request.
        run_id: The run it belongs to.
        seq_id: Its place in the run; 0 if it makes the run.
        step: Optimizer steps in the run's weights when its turn came; None before that.
        reply: The result, once it is done.
        gone: Whether the result was lost.
        queue_state: Why it waits, until it is done.
    """

    request: Request
    run_id: str
    seq_id: int = 0
    step: int | None = None
    reply: Reply | None = None
    gone: bool = False
    queue_state: str = "active"
    _told: str = "active"
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.reply is not None

    def keep(self, reply: Reply, *, gone: bool = False) -> None:
        """Here is the result; the first one counts."""
        if self.reply is None:
            self.reply, self.gone = reply, gone
            self._changed.set()

    def fail(self, message: str, category: str) -> None:
        """There will be no result."""
        self.keep({"error": message, "category": category})

    def wait_because(self, queue_state: str) -> None:
        """Tell whoever asks why it waits."""
        self.queue_state = queue_state
        self._changed.set()

    async def news(self, limit_s: float) -> None:
        """Return once it is done, or there is another reason to wait, or after a limit."""
        if not self.done and self._told == self.queue_state:
            self._changed.clear()
            try:
                async with asyncio.timeout(limit_s):
                    await self._changed.wait()
            except TimeoutError:
                pass
        self._told = self.queue_state


@dataclass(slots=True)
class Job:
    """A request of a run, to be executed in its turn."""

    promise: Promise
    execute: Callable[[Run], Reply]


@dataclass(frozen=True, slots=True)
class RunState:
    """What is inside a run, for tests to compare.

    Attributes:
        steps: Optimizer steps contained in its weights, over all the runs they went through.
        weights_digest: SHA-256 of the weights.
        optimizer_digest: SHA-256 of the optimizer's moments and step count.
        corrupted: Whether the service calls it corrupted.
        parent: The checkpoint it was loaded from, if it was; two runs that differ in nothing else
            are equal.
    """

    steps: int
    weights_digest: str
    optimizer_digest: str
    corrupted: bool
    parent: str | None = field(default=None, compare=False)


class Run:
    """One training run: a model, and its requests in order of seq_id.

    Args:
        facts: What it says of itself.
        model: Its weights; None if they are lost.
        next_seq: The seq_id to come; None if the first one to arrive decides.
    """

    def __init__(
        self, facts: dict[str, Any], model: BigramLora | None, next_seq: int | None = 1
    ) -> None:
        self.run_id = str(facts["run_id"])
        self.facts = facts
        self.model = model
        self.requests: dict[int, str] = {}
        self.poisoned_by: FaultRule | None = None
        self.queue_state = "active"
        self.current: Promise | None = None
        self.worker: asyncio.Task[None] | None = None
        self._next_seq = next_seq
        self._waiting: dict[int, Job] = {}
        self._arrived = asyncio.Event()

    @property
    def corrupted(self) -> bool:
        """Whether its weights can no longer be trusted."""
        return bool(self.facts["corrupted"])

    @property
    def steps(self) -> int:
        """Optimizer steps contained in its weights; 0 if they are lost."""
        return self.model.steps if self.model else 0

    def loaded(self) -> BigramLora:
        """Its model.

        Raises:
            RequestError: Its weights are lost.
        """
        if self.model is None:
            raise RequestError(f"model {self.run_id} is not loaded", "server")
        return self.model

    def state(self) -> RunState:
        """What is inside."""
        digests = self.model.digests() if self.model else ("", "")
        return RunState(self.steps, *digests, self.corrupted, self.facts.get("parent"))

    def queue(self, job: Job) -> None:
        """One more request."""
        job.promise.wait_because(self.queue_state)
        self._waiting[job.promise.seq_id] = job
        self._arrived.set()

    async def next(self) -> Job:
        """The next request in its turn."""
        if self._next_seq is None:
            # A client that was there before goes on counting. Its chunks may come out of order.
            while not self._waiting:
                await self._arrival()
            await asyncio.sleep(_SETTLE_S)
            self._next_seq = min(self._waiting)
        while self._next_seq not in self._waiting:
            await self._arrival()
        self._next_seq += 1
        return self._waiting.pop(self._next_seq - 1)

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def pending(self) -> list[Promise]:
        """What is being executed, and what waits for its turn."""
        current = [self.current] if self.current is not None and not self.current.done else []
        return current + [job.promise for job in self._waiting.values()]

    def hold(self, queue_state: str) -> None:
        """Let everything pending know why it waits."""
        self.queue_state = queue_state
        for promise in self.pending():
            promise.wait_because(queue_state)

    def fail_pending(self, message: str, category: str) -> None:
        """Everything pending fails; what comes behind it goes on."""
        for promise in self.pending():
            promise.fail(message, category)

    def step_for(self, seq_id: int) -> int:
        """Optimizer steps in the weights when the turn of a seq_id comes, if none before fails."""
        before = [promise for promise in self.pending() if promise.seq_id < seq_id]
        return self.steps + sum(promise.request == "optim_step" for promise in before)
