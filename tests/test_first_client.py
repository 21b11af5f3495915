"""The first client of a run: what of it is announced, looked at and closed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from made import path, record, stored

from tinker_recovery import LeaseLost
from tinker_recovery.checkpoints import CheckpointRecord
from tinker_recovery.checkpoints.record import checkpoint_metadata
from tinker_recovery.errors import NoUsableCheckpoint, StatusUnavailable
from tinker_recovery.run.first_client import first_client

CLIENT = SimpleNamespace(run_id="new")


class World:
    """A run that is started from what a user saved at step 5; or from nothing, without a root."""

    def __init__(self, root: Any = None) -> None:
        self.log: list[Any] = []
        self.listed: Any = []
        self.announcing: BaseException | None = None
        self.run: Any = SimpleNamespace(
            name="r",
            root=root,
            parent=path("a", 5),
            start_step=5,
            policy=SimpleNamespace(close_timeout_s=7.0),
            guard=SimpleNamespace(announce="announce", announce_run=self._announce_run),
            collaborators=SimpleNamespace(
                backend=SimpleNamespace(connect=self._connect, close=self._close),
                reader=SimpleNamespace(checkpoints=self._checkpoints),
            ),
        )

    async def _connect(self, origin: object, *, patience: object, announce: object) -> Any:
        self.log.append(("connect", origin, patience, announce))
        return CLIENT

    async def _close(self, connection: object, *how: str, deadline_s: float) -> None:
        assert connection is CLIENT
        self.log.append(("close", *how, deadline_s))

    async def _announce_run(self, run_id: str) -> None:
        self.log.append(("announce", run_id))
        if self.announcing is not None:
            raise self.announcing

    async def _checkpoints(self, run_id: str) -> Any:
        self.log.append(("listed", run_id))
        if isinstance(self.listed, Exception):
            raise self.listed
        return self.listed

    async def client(self) -> Any:
        given: Any = "origin", "patience"
        return await first_client(self.run, *given)


MADE = [("connect", "origin", "patience", "announce"), ("announce", "new")]
CLOSED = ("close", "interrupted", "it may have been made from another checkpoint", 7.0)


@pytest.mark.parametrize("root", [None, record(5)])
async def test_a_client_of_what_nothing_overwrites_is_announced_and_needs_no_look(
    root: Any,
) -> None:
    world = World(root)
    assert await world.client() is CLIENT
    assert world.log == MADE


async def test_one_of_what_a_user_saved_is_kept_if_that_is_still_what_is_listed() -> None:
    listed = stored(
        checkpoint_metadata(step=5, lineage="l", attempt="a", parent=None, saved_by="user")
    )
    world = World(CheckpointRecord.from_listing(listed))
    world.listed = [stored(None), listed]
    assert await world.client() is CLIENT
    assert world.log == [*MADE, ("listed", "run")]


async def test_what_was_written_again_meanwhile_is_not_taken_for_the_step_it_had() -> None:
    world = World(record(5, saved_by="user"))
    with pytest.raises(NoUsableCheckpoint) as raised:
        await world.client()
    assert str(raised.value).startswith(
        "tinker://a/weights/5 was written again while run 'r' was started from it, so it is not "
        "known whether its weights have 5 steps: run it again"
    )
    assert world.log == [*MADE, ("listed", "a"), CLOSED]


async def test_a_client_of_which_that_cannot_be_found_out_is_closed() -> None:
    world = World(record(5, saved_by="user"))
    world.listed = StatusUnavailable("it is away")
    with pytest.raises(StatusUnavailable):
        await world.client()
    assert world.log == [*MADE, ("listed", "a"), CLOSED]


async def test_a_client_of_a_run_that_was_lost_meanwhile_is_closed() -> None:
    world = World()
    world.announcing = LeaseLost("taken over", run="r")
    with pytest.raises(LeaseLost):
        await world.client()
    assert world.log == [*MADE, CLOSED]
