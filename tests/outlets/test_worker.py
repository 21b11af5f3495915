"""The thread that hands things over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import anyio.to_thread
import pytest
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_HTTP_INSTRUMENTATION_KEY, _SUPPRESS_INSTRUMENTATION_KEY

from tinker_recovery.outlets.worker import Worker, in_worker


async def test_what_it_calls_is_not_traced_since_addresses_are_secrets() -> None:
    seen: list[tuple[object, object, bool, bool]] = []

    def handle(_: Sequence[int]) -> None:
        seen.append(
            (
                context.get_value(_SUPPRESS_INSTRUMENTATION_KEY),
                context.get_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY),
                in_worker(),
                threading.current_thread().daemon,
            )
        )

    worker = Worker("it", handle, most=1)
    worker.put(1)
    await worker.finish(10.0)
    assert seen == [(True, True, True, True)]
    assert context.get_value(_SUPPRESS_INSTRUMENTATION_KEY) is None
    assert not in_worker()


async def test_nothing_is_taken_after_its_end_and_ending_twice_is_allowed() -> None:
    seen: list[int] = []
    worker = Worker("it", seen.extend, most=10)
    worker.put(1)
    worker.put(2)
    await worker.finish(10.0)
    worker.put(3)
    await worker.finish(10.0)
    worker.close()
    assert seen == [1, 2]


async def test_what_is_given_up_at_the_end_is_not_handled_later() -> None:
    go_on = threading.Event()
    seen: list[int] = []

    def handle(things: Sequence[int]) -> None:
        go_on.wait(30.0)
        seen.extend(things)

    worker = Worker("it", handle, most=10)
    worker.put(1)
    while worker._waiting:  # until its thread has taken that
        threading.Event().wait(0.001)
    worker.put(2)
    await worker.finish(0.05)
    go_on.set()
    await worker.finish(10.0)
    assert seen == [1]


@pytest.mark.parametrize(
    "error", [SystemExit("over"), KeyboardInterrupt(), asyncio.CancelledError()]
)
async def test_whatever_is_raised_is_warned_of_and_what_comes_later_is_handled(
    caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    seen: list[int] = []
    first = threading.Event()

    def handle(things: Sequence[int]) -> None:
        if 1 in things:
            first.set()
            raise error
        seen.extend(things)

    worker = Worker("it", handle, most=10)
    worker.put(1)
    await anyio.to_thread.run_sync(first.wait, 10.0)
    worker.put(2)
    await worker.finish(10.0)
    assert seen == [2]
    assert f"it failed, and the run goes on: {type(error).__name__}" in caplog.text
