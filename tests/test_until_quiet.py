"""Waiting until no other process trains a run that only the service knows."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import anyio
import pytest

from tinker_recovery.errors import DeadlineExceeded, StatusRefused, StatusUnavailable
from tinker_recovery.recovery.discovery import until_quiet
from tinker_recovery.service import StatusReader

_T = TypeVar("_T")

TICK_S = 2**-10
"""From one look to the next, by the clock of the test."""
START_S = 512.0
"""When a clock that counts from the start of its machine begins here."""
QUIET_S = 5 * TICK_S
MAX_WAIT_S = 20 * TICK_S


class Service:
    """What the service says of a run, from look to look; the last of each list for ever.

    Args:
        over: Whether the run's session is over; None where the service does not say.
        asked: When the run was last asked something; None where there is no answer.
    """

    def __init__(self, over: Sequence[bool | None], asked: Sequence[int | None]) -> None:
        self.looks = -1
        self._over, self._asked = _then_the_last(over), _then_the_last(asked)

    def now(self) -> float:
        return START_S + self.looks * TICK_S

    async def session_over(self, run_id: str) -> bool | None:
        del run_id
        self.looks += 1
        return next(self._over)

    async def run(self, run_id: str) -> Any:
        if (said := next(self._asked)) is None:
            raise StatusUnavailable(f"no answer about {run_id}")
        return SimpleNamespace(last_request_time=said)

    async def until_quiet(self) -> bool:
        return await until_quiet(
            cast("StatusReader", self),
            "sft-42",
            "other:train:0",
            quiet_s=QUIET_S,
            max_wait_s=MAX_WAIT_S,
            monotonic=self.now,
        )


def _then_the_last(given: Sequence[_T]) -> Iterator[_T]:
    yield from given
    while True:
        yield given[-1]


async def test_a_session_that_is_over_is_not_waited_for() -> None:
    service = Service(over=[True], asked=[7])
    assert await service.until_quiet() is False
    assert service.looks == 0


@pytest.mark.parametrize("over", [False, None])
async def test_one_that_ends_meanwhile_was_waited_for(*, over: bool | None) -> None:
    service = Service(over=[over, over, True], asked=[*range(9)])
    assert await service.until_quiet()
    assert service.looks == 2


async def test_where_the_service_does_not_say_a_run_has_to_be_quiet_for_a_while() -> None:
    service = Service(over=[None], asked=[1, 2, 3, 3])
    assert await service.until_quiet()
    assert service.looks == 2 + 5, "from the last request on"


async def test_an_active_session_is_waited_for_however_long_it_asks_nothing() -> None:
    service = Service(over=[False], asked=[3])
    with pytest.raises(DeadlineExceeded, match="sft-42"):
        await service.until_quiet()
    assert service.looks == 21, "past max_wait_s, and not before"


async def test_a_run_that_is_trained_on_is_waited_for_no_longer_than_the_policy_says() -> None:
    service = Service(over=[None], asked=[*range(99)])
    with pytest.raises(DeadlineExceeded):
        await service.until_quiet()
    assert service.looks == 21


async def test_a_run_goes_on_within_a_second_of_the_end_of_the_process_that_trained_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(anyio, "sleep", sleep)
    service = Service(over=[False, False, False, False, True], asked=[3])
    assert await until_quiet(
        cast("StatusReader", service),
        "sft-42",
        "other:train:0",
        max_wait_s=60.0,
        monotonic=lambda: START_S + sum(slept),
    )
    assert slept == [1.0] * 4


async def test_what_is_not_answered_is_no_quiet_and_is_waited_for_as_long() -> None:
    service = Service(over=[None], asked=[3, 3, 3, None, 3])
    assert await service.until_quiet()
    assert service.looks == 4 + 5, "nothing is known of the moment without an answer"
    silent = Service(over=[None], asked=[None])
    with pytest.raises(StatusUnavailable):
        await silent.until_quiet()
    assert silent.looks == 21


def paced(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> tuple[list[float], Callable[[float | None], Awaitable[bool]]]:
    """The pauses between its looks, and how to wait by a clock that they alone move on."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def wait(quiet_s: float | None) -> bool:
        given = {} if quiet_s is None else {"quiet_s": quiet_s}
        reader = cast("StatusReader", service)
        return await until_quiet(
            reader,
            "sft-42",
            "r:train:0",
            max_wait_s=99.0,
            monotonic=lambda: START_S + sum(slept),
            **given,
        )

    monkeypatch.setattr(anyio, "sleep", sleep)
    return slept, wait


@pytest.mark.parametrize(("quiet_s", "pause_s"), [(2.5, 0.5), (50.0, 1.0)])
async def test_a_short_quiet_is_looked_at_five_times(
    monkeypatch: pytest.MonkeyPatch, quiet_s: float, pause_s: float
) -> None:
    slept, wait = paced(monkeypatch, Service(over=[None], asked=[3]))
    assert await wait(quiet_s)
    assert slept == [pause_s] * int(quiet_s / pause_s)


async def test_a_process_counts_as_gone_once_it_has_asked_nothing_for_half_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept, wait = paced(monkeypatch, Service(over=[None], asked=[3]))
    assert await wait(None)
    assert sum(slept) == 30.0
    said = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(said) == 1, "that it waits is said at once, and again only after a minute"
    assert "it continues here once" in said[0].getMessage()


async def test_what_is_waited_for_is_said_again_at_growing_intervals(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept, wait = paced(monkeypatch, Service(over=[False] * 90 + [True], asked=[3]))
    assert await wait(None)
    said = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert (sum(slept), len(said)) == (90.0, 2)


@pytest.mark.parametrize(("status", "said"), [(404, True), (501, True), (400, False)])
async def test_a_service_that_cannot_search_its_sessions_is_judged_by_the_runs_requests(
    caplog: pytest.LogCaptureFixture, status: int, *, said: bool
) -> None:
    caplog.set_level(logging.INFO)

    class Searchless(Service):
        http = SimpleNamespace(endpoint=SimpleNamespace(base_url=f"http://searchless-{status}"))

        async def session_over(self, run_id: str) -> bool | None:
            await super().session_over(run_id)
            raise StatusRefused("no", status_code=status)

    service = Searchless(over=[None], asked=[1, 2, 2])
    assert await service.until_quiet()
    assert service.looks == 1 + 5
    missing = [each for each in caplog.messages if "does not answer sessions/search" in each]
    assert len(missing) == said, "once, and only where there is no such route"
