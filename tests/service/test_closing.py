"""Whoever begins to close a session ends that as well: nothing of it goes on for minutes."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import anyio.to_thread
import httpx
import pytest
import pytest_asyncio
from conftest import SDK_LOOP, sdk_tasks
from inspection import give_up_a_session_within
from loops import until
from tinker import _base_client
from tinker.resources import models, weights

from tinker_recovery.service import FromBaseModel, FromCheckpoint, Patience, TinkerBackend, closing
from tinker_recovery.testing import FaultRule, LocalTinker

SOON_S = 5.0
"""The SDK itself tries for 300 s."""


@pytest.fixture
def at_rest() -> Callable[[], bool]:
    """Whether nothing runs on the SDK's loop that did not before."""
    before = len(sdk_tasks())
    return lambda: len(sdk_tasks()) <= before


@pytest_asyncio.fixture
async def deaf() -> AsyncIterator[LocalTinker]:
    """A server that does not take note that a session is over."""
    async with LocalTinker() as server:
        server.inject(FaultRule("status", request="finish", status=503, for_s=60.0))
        yield server


async def test_a_session_that_opens_once_it_is_given_up_is_not_closed_for_minutes(
    deaf: LocalTinker, monkeypatch: pytest.MonkeyPatch, at_rest: Callable[[], bool]
) -> None:
    """Its thread closes it, and nobody is left to have that end."""
    give_up_a_session_within(monkeypatch, 0.2)
    deaf.inject(FaultRule("slow", request="create_session", delay_s=1.0))
    pending = TinkerBackend(deaf.service).open_ahead()
    await TinkerBackend(deaf.service).discard(pending)
    assert not pending.finished.done()
    await until(pending.finished.done)
    await until(at_rest, SOON_S)


@pytest.mark.parametrize(
    ("origin", "sent_by"),
    [
        (
            FromCheckpoint("tinker://a/weights/b", optimizer=True),
            (weights.AsyncWeightsResource, "load"),
        ),
        (FromBaseModel("m", {"rank": 8}), (models.AsyncModelsResource, "create")),
    ],
)
async def test_a_creation_that_loses_its_cancellation_is_cancelled_again(
    local: LocalTinker,
    monkeypatch: pytest.MonkeyPatch,
    at_rest: Callable[[], bool],
    origin: Any,
    sent_by: Any,
) -> None:
    """As one does whose request fails just as it is cancelled: the SDK tries it again."""
    begun, lost = threading.Event(), list[str]()

    async def request(*_: Any, **__: Any) -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost.append("a cancellation")
        await asyncio.sleep(60)

    monkeypatch.setattr(sent_by[0], sent_by[1], request)
    async with anyio.create_task_group() as group:
        group.start_soon(
            partial(TinkerBackend(local.service).connect, patience=Patience(30)), origin
        )
        await until(begun.is_set)
        group.cancel_scope.cancel()
    await until(at_rest, SOON_S)
    assert lost == ["a cancellation"]


async def test_a_close_that_begins_once_its_deadline_is_over_is_ended_all_the_same(
    deaf: LocalTinker, at_rest: Callable[[], bool]
) -> None:
    """The SDK holds a lock of its client while that opens its session."""
    service = deaf.service()
    await anyio.to_thread.run_sync(lambda: service.holder)
    with service._lifecycle_lock:
        await closing.close(service, "interrupted", "of a test", deadline_s=0.1)
    await until(at_rest, SOON_S)


async def test_a_close_that_the_sdks_loop_does_not_come_to_still_stops_the_heartbeats(
    deaf: LocalTinker, at_rest: Callable[[], bool]
) -> None:
    service = deaf.service()
    await anyio.to_thread.run_sync(lambda: service.holder)
    SDK_LOOP.call_soon_threadsafe(time.sleep, 0.5)
    await closing.close(service, "interrupted", "of a test", deadline_s=0.1)
    await until(at_rest, SOON_S)


async def test_a_close_is_begun_even_if_no_worker_thread_is_free_for_it_in_time(
    deaf: LocalTinker, at_rest: Callable[[], bool]
) -> None:
    """A process that hardly gets a processor, or whose threads are all blocked."""
    service = deaf.service()
    await anyio.to_thread.run_sync(lambda: service.holder)
    limiter = anyio.to_thread.current_default_thread_limiter()
    holders = [object() for _ in range(int(limiter.total_tokens))]
    for holder in holders:
        limiter.acquire_on_behalf_of_nowait(holder)
    await closing.close(service, "interrupted", "of a test", deadline_s=0.1)
    for holder in holders:
        limiter.release_on_behalf_of(holder)
    await until(at_rest, SOON_S)


async def test_a_cancellation_that_the_http_client_loses_is_not_the_last_one(
    monkeypatch: pytest.MonkeyPatch, at_rest: Callable[[], bool]
) -> None:
    """As it is if it comes together with an error of the request: the SDK would try for 300 s."""
    wrapper = _base_client.AsyncHttpxClientWrapper
    send, lost = wrapper.send, list[httpx.Request]()

    async def losing(self: Any, request: httpx.Request, **given: Any) -> httpx.Response:
        try:
            return await send(self, request, **given)
        except asyncio.CancelledError:
            if lost:
                raise
            lost.append(request)
            raise httpx.ConnectError("all connection attempts failed") from None

    monkeypatch.setattr(wrapper, "send", losing)
    async with LocalTinker() as server:
        service = server.service()
        await anyio.to_thread.run_sync(lambda: service.holder)
        server.inject(FaultRule("slow", request="finish", delay_s=30.0, times=100))
        await closing.close(service, "interrupted", "of a test", deadline_s=0.3)
        await until(lambda: bool(lost) and at_rest(), SOON_S)
        server.release()
    assert lost[0].url.path.endswith("/finish")


async def test_a_close_that_fails_just_as_it_is_ended_leaves_no_traceback_in_the_log(
    deaf: LocalTinker,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    at_rest: Callable[[], bool],
) -> None:
    service = deaf.service()
    holder = await anyio.to_thread.run_sync(lambda: service.holder)
    answers: list[asyncio.Future[None]] = []
    looked, ended = threading.Event(), threading.Event()

    async def sent(*_: Any) -> None:
        answers.append(asyncio.get_running_loop().create_future())
        await answers[0]

    def refuse() -> None:
        answers[0].set_exception(ConnectionRefusedError("of a test"))
        looked.set()
        ended.wait(SOON_S)

    monkeypatch.setattr(holder, "execute_with_retries", sent)
    async with anyio.create_task_group() as group:
        group.start_soon(
            partial(closing.close, service, "interrupted", "of a test", deadline_s=60.0)
        )
        await until(lambda: bool(answers))
        SDK_LOOP.call_soon_threadsafe(refuse)
        await until(looked.is_set)
        group.cancel_scope.cancel()
    ended.set()
    await until(at_rest, SOON_S)
    del answers[:]
    gc.collect()
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]
