"""A schedule that hangs says what it waits for."""

from __future__ import annotations

import asyncio
import logging
import threading

import _hang
import anyio
import anyio.lowlevel
import pytest
from _hang import Watch, noted, watched

LIMIT_S = 0.3


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hang, "LOOK_S", 0.01)


async def _waits_for_what_never_comes() -> None:
    await anyio.Event().wait()


async def test_what_hangs_is_cancelled_and_says_where_each_task_and_thread_stands() -> None:
    loop, scope, blocks = asyncio.get_running_loop(), anyio.CancelScope(), threading.Event()
    over = threading.Event()

    def blocked_thread() -> None:
        blocks.wait(30.0)

    def end() -> None:
        over.set()
        loop.call_soon_threadsafe(scope.cancel)

    thread = threading.Thread(target=blocked_thread, name="one that blocks")
    thread.start()
    loops = {"the loop": loop}
    with watched(LIMIT_S, loops, over=end, facts=lambda: "a fact") as watch, noted(watch), scope:
        logging.getLogger("tinker_recovery").warning("this came before")
        async with anyio.create_task_group() as group:
            group.start_soon(_waits_for_what_never_comes)
            await anyio.sleep_forever()
    blocks.set()
    thread.join()
    assert scope.cancelled_caught
    assert over.is_set()
    for said in (
        "a fact",
        "this came before",
        "_waits_for_what_never_comes (tests/chaos/test_hang.py:",
        "thread one that blocks:",
        "blocked_thread (tests/chaos/test_hang.py:",
        "Event.wait",
    ):
        assert said in watch.report


async def test_what_ends_in_time_says_nothing() -> None:
    with watched(30.0, {}, over=pytest.fail) as watch:
        await anyio.lowlevel.checkpoint()
    assert watch.report == ""


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the machine has denied each thread so far."""
    given = {"1": 5.0, "2": 0.0}
    monkeypatch.setattr(_hang, "denied_s", lambda: dict(given))
    return given


def test_time_without_a_processor_does_not_count_but_not_for_ever(
    times: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("_hang.time.monotonic", lambda: now[0])
    watch = Watch(10.0, {}, over=str, facts=str)
    over = [watch.is_over]
    for passed_s, denied_s in ((11.0, 0.0), (0.0, 2.0), (2.0, 0.0), (0.0, 1000.0), (100.0, 0.0)):
        now[0] += passed_s
        times["1" if denied_s < 1000.0 else "2"] += denied_s  # denied since the play began
        over.append(watch.is_over)
    assert over == [False, True, False, True, False, True]


def test_this_machine_counts_for_how_long_threads_wait() -> None:
    assert str(threading.get_native_id()) in _hang.denied_s()
