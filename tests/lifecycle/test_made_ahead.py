"""A client made ahead that is not used is closed, whoever cancels that, within a limit."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import anyio
import pytest
from loops import until

from tinker_recovery.recovery.ahead import Ahead
from tinker_recovery.service import Connection, TinkerBackend
from tinker_recovery.testing import LocalTinker

CONNECTION = cast("Connection", object())


class _Making:
    """Makes a client, which takes until it is let on, whether cancelled or not."""

    def __init__(self, local: LocalTinker, group: anyio.abc.TaskGroup) -> None:
        self.go, self.begun, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.closed: list[Connection] = []
        self.ahead = Ahead(TinkerBackend(local.service), group.start_soon, self.close)

    async def __call__(self) -> Connection:
        self.begun.set()
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            self.cancelled.set()
        with anyio.CancelScope(shield=True):
            await self.go.wait()
        return CONNECTION

    async def close(self, connection: Connection) -> None:
        await asyncio.sleep(0)
        self.closed.append(connection)


async def test_a_task_cancelled_while_it_gives_up_a_client_has_it_closed_first(
    local: LocalTinker,
) -> None:
    async with anyio.create_task_group() as group:
        making = _Making(local, group)
        making.ahead.make("tinker://run/weights/a", making, None)
        await making.begun.wait()
        giving_up = asyncio.create_task(making.ahead.discard())
        await making.cancelled.wait()
        for _ in range(2):
            giving_up.cancel()
            await asyncio.sleep(0)
        assert not giving_up.done()
        making.go.set()
        with pytest.raises(asyncio.CancelledError):
            await giving_up
        assert making.closed == [CONNECTION]


async def test_what_does_not_end_is_waited_for_within_a_limit_and_closed_later(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr("tinker_recovery.recovery.ahead.END_S", 0.05)
    async with anyio.create_task_group() as group:
        making = _Making(local, group)
        making.ahead.make("tinker://run/weights/a", making, None)
        await making.begun.wait()
        with anyio.fail_after(10.0):
            await making.ahead.discard()
        assert "still being made 0.05 s after that was ended" in caplog.text
        assert making.closed == []
        making.go.set()
        await until(lambda: bool(making.closed))
