"""A run's name that the journal knows at another service: a new run begins, and the log says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from named_runs import Killed, begun_at, left_at, trained_to


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if "a new one begins here" in each.message]


async def test_a_new_run_whose_name_was_left_at_another_service_says_so_in_one_line(
    serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as first:
        await left_at(7, by=Killed)
    assert _said(caplog) == []
    async with serving() as second:
        supervisor = await left_at(6)
        assert begun_at(supervisor) == [0]
        (line,) = _said(caplog)
        assert line == (
            f"run sft-42 exists at {first.base_url}, at step 7 (stopped); a new one begins here, "
            f"at {second.base_url}"
        )
        caplog.clear()
        assert begun_at(await trained_to(9)) == [5]
        assert _said(caplog) == [], "it is resumed here: nothing new begins"


async def test_nothing_is_said_of_a_run_that_has_finished_at_another_service(
    serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with serving():
            assert begun_at(await trained_to(3)) == [0]
    assert _said(caplog) == []
