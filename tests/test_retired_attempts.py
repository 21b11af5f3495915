"""What is done about an attempt that a fault has ended: its session, and when its client closes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest

from tinker_recovery.run import retiring
from tinker_recovery.run.retiring import finish, retire


class World:
    """An attempt that was hit by a fault, the requests sent for it, and the waits for its body."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **facts: Any) -> None:
        self.sent: list[tuple[str, str, Any]] = []
        self.closed: list[tuple[str, str]] = []
        self.waits: list[tuple[float, anyio.CancelScope]] = []
        self.left, self.replaced = anyio.Event(), anyio.Event()
        timed = SimpleNamespace(move_on_after=self._move_on_after, Event=anyio.Event)
        monkeypatch.setattr(retiring, "anyio", timed)
        http = SimpleNamespace(send=self._send)
        self.attempt: Any = SimpleNamespace(
            run_id="session:train:0",
            connection=facts.get("connection", SimpleNamespace(service=object())),
            entered=facts.get("entered", True),
            blocking=facts.get("blocking", False),
            left=self.left,
            close=self._close,
            run=SimpleNamespace(
                collaborators=SimpleNamespace(reader=SimpleNamespace(http=http)),
                policy=SimpleNamespace(close_timeout_s=60.0),
            ),
        )

    def _move_on_after(self, seconds: float) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self.waits.append((seconds, scope))
        return scope

    async def _send(self, method: str, route: str, *, json: object) -> int:
        self.sent.append((method, route, json))
        return 200

    async def _close(self, how: str, why: str) -> None:
        self.closed.append((how, why))

    async def retired(self) -> asyncio.Task[None]:
        task = asyncio.create_task(retire(self.attempt, self.replaced))
        await anyio.wait_all_tasks_blocked()
        return task

    def waits_for(self) -> list[float]:
        return [seconds for seconds, _ in self.waits]


CLOSED = [("errored", "replaced by a recovery")]


@pytest.mark.parametrize("in_time", [False, True])
async def test_a_client_is_closed_once_its_body_has_left_it_and_another_has_taken_over(
    monkeypatch: pytest.MonkeyPatch, *, in_time: bool
) -> None:
    """Or once it has had its time to: ``close_timeout_s``, and then a moment."""
    world = World(monkeypatch)
    await world.retired()
    for seconds, event in ((60.0, world.left), (0.25, world.replaced)):
        assert (world.waits_for()[-1], world.closed) == (seconds, [])
        if in_time:
            event.set()
        else:
            world.waits[-1][1].cancel()
        await anyio.wait_all_tasks_blocked()
    assert (world.waits_for(), world.closed) == ([60.0, 0.25], CLOSED)


@pytest.mark.parametrize("facts", [{"blocking": True}, {"entered": False}])
async def test_a_client_that_nobody_can_leave_by_itself_is_closed_at_once(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, bool]
) -> None:
    world = World(monkeypatch, **facts)
    await world.retired()
    assert (world.waits, world.closed) == ([], CLOSED)


async def test_a_client_is_closed_as_well_where_the_run_ends_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch)
    task = await world.retired()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.closed == CLOSED


@pytest.mark.parametrize(
    ("connection", "ours"),
    [
        (None, False),
        (SimpleNamespace(service=None), False),
        (SimpleNamespace(service=object()), True),
    ],
)
async def test_the_session_of_a_client_of_ours_is_finished_at_the_service(
    monkeypatch: pytest.MonkeyPatch, connection: object, *, ours: bool
) -> None:
    world = World(monkeypatch, connection=connection)
    await finish(cast("Any", world.attempt))
    finished = {"reason": {"type": "errored"}, "detail": "replaced by a recovery"}
    assert [(method, json) for method, _, json in world.sent] == ([("POST", finished)] * ours)
    assert all("session" in route and route.endswith("/finish") for _, route, _ in world.sent)
