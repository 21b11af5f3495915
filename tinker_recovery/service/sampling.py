"""The sampling of one attempt: its clients, and its requests until they have an answer.

A failed sample does not make the training client unusable. So a request that fails, or of which
nothing is heard, is sent once more, to a fresh sampler of the same weights; only what fails there
too reaches the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import threading
import time
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import tinker
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_recovery.costs import Meter
from tinker_recovery.errors import StaleAttempt
from tinker_recovery.forks import HomeProcess
from tinker_recovery.service.future import succeeded
from tinker_recovery.service.queue_state import is_held_back
from tinker_recovery.service.waits import Waits

if TYPE_CHECKING:
    from tinker_recovery.service.sampler import SupervisedSampler

_T = TypeVar("_T")

_ERRORS_KEPT = 64

Renew = Callable[[], APIFuture[Any] | None]
"""Submits the making of a fresh sampler of the same weights; None if the weights have changed."""


class SamplingHooks(Protocol):
    """What the sampling of an attempt asks and reports; called in any thread."""

    def is_worth_renewing(self, error: BaseException) -> bool:
        """Whether a request that failed with this may succeed at a fresh sampler."""
        ...

    def sampler_renewed(self, reason: str) -> None:
        """A fresh sampler takes the place of one that failed, or was silent."""
        ...


class SampleFuture(Future[_T], APIFuture[_T]):
    """The answer to a sampling request, whichever sampler gives it.

    Like the SDK's, it is an APIFuture that is a ``concurrent.futures.Future`` too. Cancelling it,
    or a wait for it, cancels the request.
    """

    async def result_async(self, timeout: float | None = None) -> _T:  # noqa: ASYNC109 - the SDK's signature
        """Wait for the answer; raises the request's error, or TimeoutError."""
        async with asyncio.timeout(timeout):
            return await asyncio.wrap_future(self)

    def future(self) -> Future[_T]:
        """Itself."""
        return self


class _Request:
    """One request of the loop, over the samplers that it is sent to."""

    def __init__(
        self,
        sampler: SupervisedSampler | None,
        send: Callable[[tinker.SamplingClient], APIFuture[Any]] | None,
        answer: Future[Any],
    ) -> None:
        self.sampler = sampler
        self.send = send
        self.answer = answer
        self.number = 0
        self.sent_at = 0.0
        self.renewed = sampler is None
        self.generation = 0
        self.sent: Future[Any] | None = None


class _Reading:
    """That a sampler is of the weights which a path holds."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.saved_over = False


class Sampling:
    """All sampling of one attempt.

    Args:
        hooks: What it asks and reports.
        meter: Counts what is sampled.
        renews: Whether a request is sent again to a fresh sampler.
        monotonic: The clock that silence is measured by.
        waits: Takes note of how long each request was silent.
    """

    def __init__(
        self,
        hooks: SamplingHooks,
        *,
        meter: Meter | None = None,
        renews: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
        waits: Waits | None = None,
    ) -> None:
        self.meter = Meter() if meter is None else meter
        """Counts what is sampled."""
        self._hooks = hooks
        self._renews = renews
        self._monotonic = monotonic
        self._waits = Waits() if waits is None else waits
        self._first_done = False
        self._home = HomeProcess()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._open: dict[_Request, None] = {}
        self._ended_at = monotonic()
        self._paused_at = self._ended_at
        # Each time one ended that was sent later than any that had: its number, and when.
        self._latest: list[tuple[int, float]] = []
        self._retired: str | None = None
        self._readings: weakref.WeakSet[_Reading] = weakref.WeakSet()
        self._left: list[Future[Any]] = []
        self.failed: deque[BaseException] = deque(maxlen=_ERRORS_KEPT)
        """Errors of the newest requests that failed at a fresh sampler too."""

    @property
    def open_requests(self) -> int:
        """How many requests have no answer yet, with what the loop has asked to be watched."""
        return len(self._open)

    def watch(self, future: Any) -> None:
        """Count a future of the loop's own among what must not be silent; it stays as it is."""
        self._add(_Request(None, None, future), future)

    def note_saving(self, path: str) -> None:
        """The loop is about to save to this path: later it may hold other weights."""
        with self._lock:
            for reading in self._readings:
                reading.saved_over |= reading.path == path

    def unless_saved_over(self, path: str | None, renew: Renew | None) -> Renew | None:
        """The same, for as long as nothing is saved to the path that it reads from."""
        if path is None or renew is None:
            return renew
        reading = _Reading(path)
        with self._lock:
            self._readings.add(reading)
        return lambda: None if reading.saved_over else renew()

    def paused(self) -> None:
        """The service has reported that it has no capacity now, which is no silence."""
        self._paused_at = self._monotonic()

    def check_live(self, of: object) -> None:
        """Raise StaleAttempt, naming the client that was used, if the attempt is over.

        Raises:
            UsageError: This is another process.
        """
        self._home.check(of)
        if self._retired is not None:
            raise StaleAttempt(
                f"{of!r}: {self._retired}; make a new one in the attempt of now, by "
                "attempt.client.save_weights_and_get_sampling_client() or "
                "attempt.service.create_sampling_client()"
            )

    # Requests

    def submit(
        self,
        sampler: SupervisedSampler,
        send: Callable[[tinker.SamplingClient], APIFuture[_T]],
    ) -> SampleFuture[_T]:
        """Send a request; what it raises at once is the caller's own mistake."""
        self.check_live(sampler)
        answer: SampleFuture[_T] = SampleFuture()
        request = _Request(sampler, send, answer)
        client, request.generation = sampler.newest()
        self._add(request, send(client).future())
        answer.add_done_callback(functools.partial(self._answered, request))
        if self._retired is not None:  # meanwhile
            self._refuse(request)
        return answer

    def _add(self, request: _Request, sent: Future[Any]) -> None:
        request.number, request.sent_at = next(self._numbers), self._monotonic()
        request.sent = sent
        self._open.pop(request, None)  # so that they are in the order of their numbers
        self._open[request] = None
        sent.add_done_callback(functools.partial(self._ended, request))

    def _answered(self, request: _Request, answer: Future[Any]) -> None:
        self._open.pop(request, None)
        sent = request.sent
        if answer.cancelled() and sent is not None:
            sent.cancel()

    def _ended(self, request: _Request, sent: Future[Any]) -> None:
        # In the SDK's thread, where nothing may raise.
        if request.sent is not sent:
            return  # it was given up, and sent again
        if request.sampler is not None and succeeded(sent):
            if self._first_done:
                self._waits.note(self._silent_s(request))
            self._first_done = True
        self._ended_at = now = self._monotonic()
        with self._lock:
            if not self._latest or request.number > self._latest[-1][0]:
                oldest = next(iter(self._open), request)
                self._latest = [one for one in self._latest if one[0] > oldest.number]
                self._latest.append((request.number, now))
        if request.sampler is None:
            self._open.pop(request, None)
            return
        error = None if sent.cancelled() else sent.exception()
        if error is not None and self._may_renew(request) and self._hooks.is_worth_renewing(error):
            self._renew(request, error)
            return
        if error is not None:
            self.failed.append(error)
        settle(request.answer, sent)

    def _may_renew(self, request: _Request) -> bool:
        return self._renews and not request.renewed and self._retired is None

    def _renew(self, request: _Request, error: BaseException | None) -> bool:
        """Have a request sent to a fresh sampler; False if there can be none."""
        sampler, request.renewed = request.sampler, True
        request.sent_at = self._monotonic()
        reason = (
            "a request to it makes no progress" if error is None else f"a request failed: {error}"
        )
        fresh = None if sampler is None else sampler.fresh(request.generation, reason)
        if fresh is None:
            if error is not None:
                self._fail(request, error)
            return False
        old, request.sent = request.sent, None
        if old is not None:
            old.cancel()
        fresh.add_done_callback(functools.partial(self._send_again, request, error))
        return True

    def _send_again(
        self, request: _Request, error: BaseException | None, fresh: Future[Any]
    ) -> None:
        if request.answer.done() or request.send is None:
            return
        failure = None if fresh.cancelled() else fresh.exception()
        if fresh.cancelled() or failure is not None:
            self._fail(request, error or failure or asyncio.CancelledError())
            return
        try:
            sent = request.send(fresh.result()).future()
        except Exception as refused:  # noqa: BLE001 - as any other error of the request
            self._fail(request, refused)
            return
        self._add(request, sent)
        if request.answer.done():  # meanwhile, so that nothing was known to be cancelled
            self._answered(request, request.answer)

    def _fail(self, request: _Request, error: BaseException) -> None:
        self.failed.append(error)
        with contextlib.suppress(InvalidStateError):
            request.answer.set_exception(error)

    def renewed(self, sampler: SupervisedSampler, reason: str) -> None:
        """A fresh sampler is being made."""
        self._hooks.sampler_renewed(f"a fresh one is made for {sampler!r}: {reason}")

    # Silence

    def silent_s(self) -> float | None:
        """Seconds for which nothing was heard of the request that has waited longest; None if idle.

        The SDK sends requests in their order, and holds back what exceeds its limit. So a request
        waits since it was sent, or, as long as none that was sent later has ended, since any has.
        """
        requests = list(self._open)
        for sampler in {request.sampler for request in requests}:
            if sampler is not None and is_held_back(sampler.newest()[0]):
                self.paused()
        return max(map(self._silent_s, requests), default=None)

    @property
    def slow_s(self) -> float | None:
        """Seconds that slow requests take; None where that says nothing of those that are open.

        That is before the first answer, which may take longer, and with a future of the loop's own.
        """
        if not self._first_done or any(request.sampler is None for request in list(self._open)):
            return None
        return self._waits.slow_s

    def _silent_s(self, request: _Request) -> float:
        with self._lock:
            later = bisect_right(self._latest, (request.number, float("inf")))
            passed_at = self._latest[later][1] if later < len(self._latest) else self._ended_at
        return self._monotonic() - max(request.sent_at, self._paused_at, passed_at)

    def renew_silent(self, limit_s: float) -> bool:
        """Send what was silent for so long to a fresh sampler; False if that was done before."""
        silent = [one for one in list(self._open) if self._silent_s(one) >= limit_s]
        renewed = [self._may_renew(one) and self._renew(one, None) for one in silent]
        return all(renewed)

    # The end

    def retire(self, reason: str) -> None:
        """Refuse every further request, and end every wait for an open one, with StaleAttempt."""
        self._retired = self._retired or reason
        for request in list(self._open):
            self._refuse(request)

    def _refuse(self, request: _Request) -> None:
        self._open.pop(request, None)
        if request.sampler is None:
            return
        try:
            self.check_live(request.sampler)
        except StaleAttempt as stale:
            with contextlib.suppress(InvalidStateError):
                request.answer.set_exception(stale)
        if request.sent is not None:
            self._left.append(request.sent)

    def left_open(self) -> Sequence[Future[Any]]:
        """What was open when it was retired: each holds a task on the SDK's loop."""
        left = list(self._left)
        self._left.clear()
        return left


def settle(answer: Future[Any], ended: Future[Any]) -> None:
    """Give an answer what a future has ended with, unless it was cancelled meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if ended.cancelled():
            answer.cancel()
        elif (error := ended.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(ended.result())
