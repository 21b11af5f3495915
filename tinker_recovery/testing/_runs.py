"""A training run at the service: its model, its queue of requests and their promises."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tinker_recovery.testing._faults import FaultRule
from tinker_recovery.testing._model import BigramLora
from tinker_recovery.testing.actions import Request

Reply = dict[str, Any] | bytes
"""A JSON object, or protobuf bytes."""

_SETTLE_S = 0.05


class ServiceError(Exception):
    """A request is answered with an HTTP error.

    Attributes:
        status: The HTTP status.
        message: The detail in its body.
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
        reply: The result; None until it is done.
        gone: Whether the result was lost.
        queue_state: What polls report until it is done.
        when_done: Called once it is.
    """

    request: Request
    run_id: str
    seq_id: int = 0
    step: int | None = None
    reply: Reply | None = None
    gone: bool = False
    queue_state: str = "active"
    when_done: Callable[[], None] | None = None
    _reported: str = "active"
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.reply is not None

    def set_reply(self, reply: Reply, *, gone: bool = False) -> None:
        """Finish it; later replies are ignored."""
        if self.reply is None:
            self.reply, self.gone = reply, gone
            self._changed.set()
            if self.when_done is not None:
                self.when_done()

    def fail(self, message: str, category: str) -> None:
        """Finish it with an error."""
        self.set_reply({"error": message, "category": category})

    def set_queue_state(self, queue_state: str) -> None:
        """Change what polls report."""
        self.queue_state = queue_state
        self._changed.set()

    async def wait_changed(self, limit_s: float) -> None:
        """Return once it is done or its queue state is new, or after ``limit_s`` seconds."""
        if not self.done and self._reported == self.queue_state:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limit_s):
                    await self._changed.wait()
        self._reported = self.queue_state


@dataclass(frozen=True, slots=True)
class RunState:
    """The contents of a run, for tests to compare.

    Attributes:
        steps: Optimizer steps in its weights, over all the runs they went through.
        weights_digest: SHA-256 of the weights.
        optimizer_digest: SHA-256 of the optimizer's moments and step count.
        corrupted: Whether the service reports it as corrupted.
        parent: The checkpoint it was loaded from, if any; not compared.
    """

    steps: int
    weights_digest: str
    optimizer_digest: str
    corrupted: bool
    parent: str | None = field(default=None, compare=False)


def session_of(run_id: str) -> str:
    """The id of the session that a run or a sampler is in."""
    return run_id.partition(":")[0]


class ServiceRun:
    """One training run: a model, and its requests in order of seq_id.

    Args:
        facts: Its stored record.
        model: Its weights; None if they are lost.
        next_seq: The next seq_id; None to begin with the first to arrive.
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
        self._lost: int | None = None
        self._queue: dict[int, tuple[Promise, Callable[[ServiceRun], Reply]]] = {}
        self._arrived = asyncio.Event()

    @property
    def session(self) -> str:
        """The id of its session."""
        return session_of(self.run_id)

    @property
    def corrupted(self) -> bool:
        """Whether the service reports it as corrupted."""
        return bool(self.facts["corrupted"])

    @property
    def steps(self) -> int:
        """Optimizer steps in its weights; 0 if they are lost."""
        return self.model.steps if self.model else 0

    def loaded(self) -> BigramLora:
        """Its model; raises RequestError if its weights are lost."""
        if self.model is None:
            raise RequestError(f"model {self.run_id} is not loaded", "server")
        return self.model

    def state(self) -> RunState:
        """Its contents."""
        digests = self.model.digests() if self.model else ("", "")
        return RunState(self.steps, *digests, self.corrupted, self.facts.get("parent"))

    def lose(self, seq_id: int) -> None:
        """This request was refused and its seq_id will never come: those behind it fail."""
        self._lost = min(seq_id, self._lost or seq_id)

    def queue(self, promise: Promise, execute: Callable[[ServiceRun], Reply]) -> None:
        """Add a request."""
        if self._lost is not None and promise.seq_id > self._lost:
            promise.fail(
                f"Sequence conflict: expected {self._lost}, got {promise.seq_id}", "server"
            )
            return
        promise.set_queue_state(self.queue_state)
        self._queue[promise.seq_id] = promise, execute
        self._arrived.set()

    async def next(self) -> tuple[Promise, Callable[[ServiceRun], Reply]]:
        """The next request in its turn."""
        if self._next_seq is None:
            # A client from before a restart keeps counting; its chunks may arrive out of order.
            while not self._queue:
                await self._arrival()
            await asyncio.sleep(_SETTLE_S)
            self._next_seq = min(self._queue)
        while self._next_seq not in self._queue:
            await self._arrival()
        self._next_seq += 1
        return self._queue.pop(self._next_seq - 1)

    def stop(self) -> None:
        """Execute no more requests."""
        if self.worker is not None:
            self.worker.cancel()

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def pending(self) -> list[Promise]:
        """The request being executed, and those in the queue."""
        current = [self.current] if self.current is not None and not self.current.done else []
        return current + [promise for promise, _ in self._queue.values()]

    def set_queue_state(self, queue_state: str) -> None:
        """Change what polls of everything pending report."""
        self.queue_state = queue_state
        for promise in self.pending():
            promise.set_queue_state(queue_state)

    def fail_pending(self, message: str, category: str) -> None:
        """Fail everything pending; later requests are executed."""
        for promise in self.pending():
            promise.fail(message, category)

    def step_for(self, seq_id: int) -> int:
        """Optimizer steps in the weights when a seq_id's turn comes, if none before it fails."""
        before = [promise for promise in self.pending() if promise.seq_id < seq_id]
        return self.steps + sum(promise.request == "optim_step" for promise in before)
