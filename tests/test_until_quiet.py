"""Waiting until no other process trains a run that only the service knows."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import anyio
import pytest

from tinker_recovery.errors import DeadlineExceeded, StatusUnavailable
from tinker_recovery.recovery.discovery import until_quiet
from tinker_recovery.service import StatusReader

_T = TypeVar("_T")

TICK_S = 0.001
"""From one look to the next, by the clock of the test."""
QUIET_S = 5 * TICK_S
MAX_WAIT_S = 20 * TICK_S


class Service:
    """What the service says of a run, from look to look; the last of each list for ever.

    Args:
        over: Whether the run's session is over; None where the service does not say.
        asked: When the run was last asked something; None where there is no answer.
    """

    def __init__(self, over: list[bool | None], asked: list[int | None]) -> None:
        self.looks = -1
        self._over, self._asked = _then_the_last(over), _then_the_last(asked)

    def now(self) -> float:
        return self.looks * TICK_S

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


def _then_the_last(given: list[_T]) -> Iterator[_T]:
    yield from given
    while True:
        yield given[-1]


async def test_a_session_that_is_over_is_not_waited_for() -> None:
    service = Service(over=[True], asked=[7])
    assert not await service.until_quiet()
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
        monotonic=lambda: sum(slept),
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
