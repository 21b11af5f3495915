"""What is mended in the SDK, seen at the SDK itself."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from typing import Any

import anyio.to_thread
import httpx
import pytest
import tinker
from loops import MODEL, batch, quick, train
from tinker import _base_client
from tinker.lib.internal_client_holder import InternalClientHolder

from tinker_recovery import Attempt, Supervisor
from tinker_recovery.service import sdk_requests, sdk_workarounds
from tinker_recovery.testing import FaultRule, LocalTinker

OPENED = 5
FETCH = "_fetch_client_config"


def _open_and_close(local: LocalTinker) -> None:
    for _ in range(OPENED):
        service = local.service()
        service.holder  # noqa: B018 - opens the session, as the SDK's own creating calls do first
        service.close("success").result()


async def _left_open(local: LocalTinker, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many HTTP clients the SDK leaves to the garbage collector while they are open."""
    left: list[object] = []

    def finalize(client: Any) -> None:
        if not client.is_closed:
            left.append(id(client))

    gc.collect()
    monkeypatch.setattr(_base_client.AsyncHttpxClientWrapper, "__del__", finalize)
    await anyio.to_thread.run_sync(_open_and_close, local)
    gc.collect()
    return len(left)


async def test_no_http_client_of_a_first_request_is_left_to_a_finalizer(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InternalClientHolder, FETCH, sdk_workarounds.fetch_and_close)
    assert await _left_open(local, monkeypatch) == 0


async def test_the_sdk_by_itself_leaves_one_for_each_session(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once this fails, the workaround has done its work and can go."""
    monkeypatch.setattr(InternalClientHolder, FETCH, sdk_workarounds.ORIGINAL)
    assert await _left_open(local, monkeypatch) == OPENED


async def test_no_http_client_is_left_to_make_when_a_session_is_used_that_was_opened_ahead(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create() -> Any:
        service = local.service()
        sdk_workarounds.make_http_clients(service)
        made: list[Any] = []
        init = _base_client.AsyncHttpxClientWrapper.__init__

        def count(self: Any, **given: Any) -> None:
            made.append(self)
            init(self, **given)

        monkeypatch.setattr(_base_client.AsyncHttpxClientWrapper, "__init__", count)
        service.create_lora_training_client(MODEL, rank=8).result()
        service.close("success").result()
        return made

    assert await anyio.to_thread.run_sync(create) == []


async def test_a_session_uses_the_transports_of_one_that_is_over_and_none_that_is_open(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reads all certificates of the system."""
    made: list[object] = []

    def make() -> httpx.AsyncBaseTransport:
        assert make_one is not None
        made.append(make_one())
        return made[-1]  # type: ignore[return-value]  # as made

    make_one = sdk_workarounds.MAKE
    monkeypatch.setattr(sdk_workarounds, "MAKE", make)
    monkeypatch.setattr(sdk_workarounds, "FREE", sdk_workarounds.FreeTransports())
    monkeypatch.setattr(
        _base_client, "_default_pyqwest_transport", sdk_workarounds.reused_transport
    )

    def train(sessions: int) -> None:
        services = [local.service() for _ in range(sessions)]
        clients = [
            each.create_lora_training_client(MODEL, rank=8, seed=1).result() for each in services
        ]
        for client in clients:
            client.forward_backward(batch(0), "cross_entropy").result()
        for each in services:
            each.close("success").result()

    await anyio.to_thread.run_sync(train, 1)
    first = len(made)
    for _ in range(3):
        await anyio.to_thread.run_sync(train, 1)
    assert len(made) == first, "one after the other they need no more"
    await anyio.to_thread.run_sync(train, 3)
    assert first < len(made) <= 3 * first, "side by side each has its own"
    gone = [weakref.ref(each) for each in made]
    made.clear()
    gc.collect()
    left = sum(ref() is not None for ref in gone)
    assert left <= sdk_workarounds.LEAST_FREE, "once all have ended, none is kept open for each"


async def test_a_fault_is_noticed_at_once_though_the_route_of_telemetry_hangs(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_TELEMETRY", "1")
    local.inject(FaultRule("slow", request="telemetry", delay_s=4.0, for_s=60.0))
    failed_at = began_again_at = 0.0

    async def loop(attempt: Attempt) -> None:
        nonlocal failed_at, began_again_at
        if attempt.number > 1:
            began_again_at = time.monotonic()
            local.release()
            return
        await train(attempt, steps=2)
        local.inject(FaultRule("fail", request="forward_backward"))
        failed_at = time.monotonic()
        await train(attempt, steps=4)

    async with Supervisor(quick()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8)
    assert 0 < began_again_at - failed_at < 2.0


def test_clients_that_cannot_be_made_ahead_are_no_error(local: LocalTinker) -> None:
    service = local.service()
    service.holder  # noqa: B018 - opens the session
    service.close("success").result()
    sdk_workarounds.make_http_clients(service)


def test_it_is_off_by_a_variable_and_for_an_sdk_it_was_not_written_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sdk_workarounds.is_wanted()
    monkeypatch.setattr(tinker, "__version__", "0.40.0")
    assert not sdk_workarounds.is_wanted()
    monkeypatch.undo()
    monkeypatch.setenv(sdk_workarounds.OFF, "0")
    assert not sdk_workarounds.is_wanted()


async def test_what_the_sdks_requests_meet_is_reported_of_the_service_listened_to_and_of_no_other(
    local: LocalTinker,
) -> None:
    here: list[str] = []
    another: list[str] = []

    def refused() -> None:
        service = local.service()
        future = service.create_lora_training_client(MODEL, rank=8)
        client = future.result()
        local.crash(1.5)  # longer than the SDK waits before it sends the request again
        with contextlib.suppress(tinker.TinkerError):
            client.save_state("x").result(timeout=20)
        service.close("success").result()

    with (
        sdk_requests.listening(local.base_url, here.append),
        sdk_requests.listening("http://127.0.0.1:1", another.append),
    ):
        await anyio.to_thread.run_sync(refused)
    assert "refused" in here
    assert another == []
    heard = len(here)
    await anyio.to_thread.run_sync(refused)
    assert len(here) == heard
