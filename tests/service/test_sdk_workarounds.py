"""What is mended in the SDK, seen at the SDK itself."""

from __future__ import annotations

import gc
from typing import Any

import anyio.to_thread
import pytest
import tinker
from tinker import _base_client
from tinker.lib.internal_client_holder import InternalClientHolder

from tinker_recovery.service import sdk_workarounds
from tinker_recovery.testing import LocalTinker

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


def test_it_is_off_by_a_variable_and_for_an_sdk_it_was_not_written_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sdk_workarounds.is_wanted()
    monkeypatch.setattr(tinker, "__version__", "0.40.0")
    assert not sdk_workarounds.is_wanted()
    monkeypatch.undo()
    monkeypatch.setenv(sdk_workarounds.OFF, "0")
    assert not sdk_workarounds.is_wanted()
