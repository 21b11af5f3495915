"""When a sampling request counts as silent: never while it may wait for its turn."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.service.sampling import SampleFuture, Sampling

LIMIT_S = 100.0


class _Sdk:
    """An SDK that sends requests in their order, some of them at once; a virtual clock."""

    def __init__(self, at_once: int) -> None:
        self.now_s = 0.0
        self.sampling = Sampling(cast("Any", None), monotonic=lambda: self.now_s)
        self._at_once = at_once
        self._waiting: list[tuple[Future[None], float]] = []
        self._running: list[tuple[Future[None], float]] = []

    def submit(self, takes_s: float) -> None:
        future: Future[None] = Future()
        self.sampling.watch(future)
        self._waiting.append((future, takes_s))
        self._send()

    def _send(self) -> None:
        while self._waiting and len(self._running) < self._at_once:
            future, takes_s = self._waiting.pop(0)
            self._running.append((future, self.now_s + takes_s))

    def silent_s(self) -> float:
        return self.sampling.silent_s() or 0.0

    def passes(self, seconds: float) -> float:
        """Let time pass; the longest silence seen, which is longest right before one ends."""
        until_s, longest = self.now_s + seconds, 0.0
        while True:
            ends_s = min((at for _, at in self._running), default=float("inf"))
            self.now_s = min(ends_s, until_s)
            longest = max(longest, self.silent_s())
            if ends_s > until_s:
                return longest
            for future, at in [one for one in self._running if one[1] == ends_s]:
                self._running.remove((future, at))
                future.set_result(None)
            self._send()


SECONDS = st.floats(0.1, LIMIT_S - 1)


@given(
    at_once=st.integers(1, 5),
    batches=st.lists(st.tuples(st.lists(SECONDS, max_size=8), SECONDS), max_size=6),
)
def test_no_request_is_silent_for_longer_than_the_slowest_takes(
    at_once: int, batches: list[tuple[list[float], float]]
) -> None:
    """However many wait for their turn behind it."""
    sdk = _Sdk(at_once)
    for batch, pause_s in batches:
        for takes_s in batch:
            sdk.submit(takes_s)
        assert sdk.passes(pause_s) < LIMIT_S
    assert sdk.passes(60 * LIMIT_S) < LIMIT_S
    assert sdk.sampling.open_requests == 0


@given(batches=st.lists(st.lists(SECONDS, min_size=1, max_size=4), min_size=1, max_size=8))
def test_one_that_never_comes_is_silent_though_later_ones_come(
    batches: list[list[float]],
) -> None:
    """A loop that samples all the time would otherwise hide it for ever."""
    sdk = _Sdk(at_once=5)
    sdk.submit(float("inf"))
    for batch in batches:
        for takes_s in batch:
            sdk.submit(takes_s)
        sdk.passes(LIMIT_S)
    assert sdk.silent_s() >= LIMIT_S * (len(batches) - 1)


def test_a_pause_for_lack_of_capacity_is_no_silence() -> None:
    sdk = _Sdk(at_once=1)
    sdk.submit(float("inf"))
    sdk.passes(LIMIT_S)
    sdk.sampling.paused()
    assert sdk.silent_s() == 0.0


class _Failing:
    """A sampler whose first request fails, and what the renewal asks of the attempt."""

    def __init__(self) -> None:
        self.made: Future[Any] = Future()

    def newest(self) -> tuple[Any, int]:
        return None, 0

    def fresh(self, used: int, reason: str) -> Future[Any]:
        del used, reason
        return self.made

    def is_worth_renewing(self, error: BaseException) -> bool:
        return isinstance(error, TimeoutError)


def test_one_that_is_cancelled_just_as_it_is_sent_again_is_not_waited_for() -> None:
    sampler, sent = _Failing(), list[Future[Any]]()
    sampling = Sampling(cast("Any", sampler))

    def send(client: Any) -> Any:
        if client is not None:
            answer.cancel()  # by the loop, while the SDK takes the request
        future: SampleFuture[Any] = SampleFuture()
        sent.append(future)
        return future

    answer = sampling.submit(cast("Any", sampler), send)
    sent[0].set_exception(TimeoutError())
    sampler.made.set_result("a fresh one")
    assert (len(sent), answer.cancelled(), sent[1].cancelled()) == (2, True, True)
    assert (sampling.open_requests, sampling.silent_s()) == (0, None)
