"""A service that is not kind with sessions: silence ends them, dates are off, lists lag behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sdk_loops import a_service, fresh, train
from tinker import types
from virtual import ManualClock
from wire import Wire, http

from tinker_recovery.testing import LocalTinker, LocalTinkerProcess, serve

WALL = 1_790_000_000.0
RACE = {"race": "one"}


@asynccontextmanager
async def a_server(**options: Any) -> AsyncIterator[tuple[LocalTinker, ManualClock, Wire]]:
    """A server whose clocks a test moves, and a session there."""
    clock = ManualClock()
    async with (
        LocalTinker(clock=clock, wall=lambda: WALL + clock.now, **options) as local,
        http(local.base_url, local.api_key) as client,
    ):
        yield local, clock, await opened(client)


async def opened(client: httpx.AsyncClient) -> Wire:
    """A new session."""
    wire = Wire(client)
    body = {"tags": [], "user_metadata": RACE}
    wire.session = (await wire.post("create_session", body))["session_id"]
    return wire


async def found(wire: Wire, **query: object) -> list[types.SessionSummary]:
    """What a search shows, as the SDK's types read it."""
    reply = await wire.post("sessions/search", {"user_metadata": RACE, **query})
    return types.SessionSearchResponse.model_validate(reply).sessions


async def beat(wire: Wire, *, status: int = 200) -> None:
    await wire.post("session_heartbeat", {"session_id": wire.session}, status=status)


async def test_a_session_lives_as_long_as_its_heartbeats_come() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, wire):
        for _ in range(5):
            clock.now += 29.0
            await beat(wire)
        assert local.sessions() == {wire.session: "active"}


async def test_a_session_without_heartbeats_is_answered_410_from_the_limit_on() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, wire):
        run = await wire.create()
        earlier = await wire.optim_step(run, 1)
        await wire.result(earlier)
        clock.now += 31.0
        assert local.sessions() == {wire.session: "ended"}
        await beat(wire, status=410)
        gone = "no heartbeat for 30 s"
        assert gone in (await wire.post("get_info", {"model_id": run}, status=410))["detail"]
        request = {"model_id": run, "seq_id": 2}
        await wire.post("optim_step", {**request, "adam_params": {}}, status=410)
        await wire.post("save_weights", {**request, "path": "late"}, status=410)
        await wire.post("retrieve_future", {"request_id": earlier["request_id"]}, status=410)
        new = {"session_id": wire.session, "model_seq_id": 1, "base_model": "b"}
        await wire.post("create_model", new, status=410)
        assert local.run_state(run).steps == 1
        assert (await opened(wire.http)).session in local.sessions()


async def test_what_a_session_had_queued_when_it_ended_is_not_executed() -> None:
    async with a_server(heartbeat_limit_s=30.0, save_s=0.2) as (local, clock, wire):
        run = await wire.create()
        await wire.save(run, 1, "slow")
        await wire.optim_step(run, 2)
        clock.now += 31.0
        other = await opened(wire.http)
        run_2 = await other.create()
        await other.result(await other.save(run_2, 1, "behind_it"))
        assert local.checkpoints(run) == []
        assert local.run_state(run).steps == 0


async def test_a_search_no_longer_shows_it_as_active_nor_as_finished() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (_, clock, wire):
        assert isinstance((await found(wire))[0].status, types.SessionActive)
        clock.now += 31.0
        (shown,) = await found(wire)
        assert (shown.session_id, shown.status) == (wire.session, None)
        assert await found(wire, statuses=[{"type": "active"}]) == []


async def test_one_that_ended_by_silence_can_still_be_finished_by_anyone() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, wire):
        clock.now += 31.0
        await wire.post(f"sessions/{wire.session}/finish", {"reason": {"type": "interrupted"}})
        assert local.sessions() == {wire.session: "interrupted"}
        await beat(wire, status=410)


async def test_without_a_limit_no_silence_ends_a_session() -> None:
    async with a_server() as (local, clock, wire):
        clock.now += 1e6
        await beat(wire)
        assert local.sessions() == {wire.session: "active"}


async def test_the_time_that_the_service_was_down_is_no_silence() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, wire):
        local.begin_outage(status=503)
        clock.now += 31.0
        local.end_outage()
        await beat(wire)
        assert local.sessions() == {wire.session: "active"}


async def test_an_outage_revives_no_session_that_had_been_silent_for_too_long() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, wire):
        clock.now += 31.0
        local.begin_outage(status=503)
        local.end_outage()
        await beat(wire, status=410)


async def test_runs_that_were_added_need_no_heartbeat() -> None:
    async with a_server(heartbeat_limit_s=30.0) as (local, clock, _):
        (run,) = local.add_runs(1)
        clock.now += 31.0
        assert local.sessions()[run.partition(":")[0]] == "active"


async def test_the_sdk_keeps_its_session_by_itself_and_is_answered_410_after_a_silence() -> None:
    clock = ManualClock()
    async with (
        LocalTinker(clock=clock, heartbeat_limit_s=30.0) as local,
        a_service(local) as service,
    ):
        client = await fresh(service)
        await train(client, 0, 1)
        clock.now += 31.0
        with pytest.raises(Exception, match="no heartbeat for 30 s"):
            await train(client, 1, 2)


async def test_created_at_can_be_off_by_a_fixed_time_and_by_one_of_each_session() -> None:
    off = {"created_skew_s": -100.0, "created_jitter_s": 5.0, "chance": 3}
    async with a_server(**off) as (_, clock, wire):
        for _ in range(9):
            await opened(wire.http)
        shown = [one.created_at.timestamp() - (WALL + clock.now) for one in await found(wire)]
        assert all(-105.0 <= each <= -95.0 for each in shown)
        assert max(shown) - min(shown) > 1.0
        assert shown == sorted(shown, reverse=True), "newest first, by what they are dated"


async def test_every_session_is_on_one_page_of_a_search_however_they_are_dated() -> None:
    async with a_server(created_jitter_s=5.0) as (local, _, wire):
        for _ in range(6):
            await opened(wire.http)
        seen: list[str] = []
        query: dict[str, Any] = {"limit": 2}
        while True:
            reply = await wire.post("sessions/search", query)
            seen += [one["session_id"] for one in reply["sessions"]]
            if "next_cursor" not in reply:
                break
            query["cursor"] = reply["next_cursor"]
        assert sorted(seen) == sorted(local.sessions())


async def test_a_new_session_is_in_lists_and_searches_only_after_the_delay() -> None:
    async with a_server(listing_delay_s=3.0) as (local, clock, wire):
        clock.now += 2.9
        assert await found(wire) == []
        assert await found(wire, session_id=wire.session) == []
        assert (await wire.get("sessions"))["sessions"] == []
        await beat(wire)
        await wire.get(f"sessions/{wire.session}")
        assert local.sessions() == {wire.session: "active"}
        clock.now += 0.1
        (shown,) = await found(wire)
        assert shown.session_id == wire.session
        assert (await wire.get("sessions"))["sessions"] == [wire.session]


async def test_a_new_checkpoint_is_listed_only_after_the_delay_and_can_be_loaded_at_once() -> None:
    async with a_server(listing_delay_s=3.0) as (local, clock, wire):
        run = await wire.create()
        path = (await wire.result(await wire.save(run, 1, "one")))["path"]
        listed = (f"training_runs/{run}/checkpoints", "checkpoints")
        assert [(await wire.get(each))["checkpoints"] for each in listed] == [[], []]
        assert "last_checkpoint" not in await wire.get(f"training_runs/{run}")
        assert "type" in await wire.load(1, path)
        assert len(local.checkpoints(run)) == 1
        clock.now += 3.0
        for each in listed:
            (shown,) = (await wire.get(each))["checkpoints"]
            assert shown["tinker_path"] == path
        assert "last_checkpoint" in await wire.get(f"training_runs/{run}")


async def test_a_server_in_a_process_of_its_own_is_as_unkind(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "heartbeat_limit_s": 0.05,
        "created_skew_s": 3600.0,
        "listing_delay_s": 0.05,
    }
    async with (
        LocalTinkerProcess(tmp_path, **options) as server,
        http(server.base_url, server.api_key) as client,
    ):
        wire = await opened(client)
        while not (listed := await found(wire)):
            pass
        assert (listed[0].created_at - datetime.now(listed[0].created_at.tzinfo)).seconds > 3000
        while (await server.sessions())[wire.session] != "ended":
            pass
        await beat(wire, status=410)
        await server.restart()
        assert (await found(wire))[0].session_id == wire.session
        assert (await server.sessions())[wire.session] == "ended"


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("heartbeat_limit_s", 0.0, "more than 0"),
        ("heartbeat_limit_s", float("inf"), "more than 0"),
        ("created_skew_s", float("nan"), "a number of seconds"),
        ("created_jitter_s", -1.0, "0 or more"),
        ("listing_delay_s", -1.0, "0 or more"),
    ],
)
def test_an_option_out_of_its_range_is_refused_with_what_is_allowed(
    option: str, value: float, allowed: str
) -> None:
    given: Any = {option: value}
    with pytest.raises(ValueError, match=f"{option}={value!r} is not allowed: {allowed}"):
        LocalTinker(**given)
    with pytest.raises(ValueError, match=f"{option}={value!r} is not allowed: {allowed}"):
        serve(**given)
