"""The background tasks of a Supervisor end with it, whatever they were at."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from tinker_recovery.run.background import Background


async def test_a_supervisor_that_is_left_waits_for_no_task_that_has_not_begun() -> None:
    cleaned_up: list[str] = []

    async def serve(name: str) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.append(name)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            background = Background(group)
            background.spawn(lambda: serve("under way"))
            await anyio.lowlevel.checkpoint()
            background.spawn(lambda: serve("not begun"))
            background.cancel()
            background.spawn(lambda: serve("asked for by another's end"))
    assert sorted(cleaned_up) == ["asked for by another's end", "not begun", "under way"]


async def test_a_task_that_fails_is_an_error_of_the_supervisor_and_not_of_the_others() -> None:
    async def fails() -> None:
        raise LookupError("its own")

    with pytest.RaisesGroup(LookupError):
        async with anyio.create_task_group() as group:
            Background(group).spawn(fails)
