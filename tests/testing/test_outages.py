"""Outages and restarts: the service is down and comes back, intact or rolled back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import pytest
import pytest_asyncio
import tinker
from inspection import crash_between_accept_and_connection
from loops import ADAM, until
from sdk_loops import a_service, fresh, train
from wire import NO_TLS, Wire, http

from tinker_recovery.testing import FaultRule, LocalTinker, LocalTinkerProcess


@pytest_asyncio.fixture
async def server() -> AsyncIterator[LocalTinker]:
    """One that a poll waits at, so that requests are under way when an outage begins."""
    async with LocalTinker() as server:
        yield server


async def is_up(base_url: str) -> bool:
    async with httpx.AsyncClient(base_url=base_url, verify=NO_TLS) as client:
        try:
            return (await client.get("/api/v1/healthz")).is_success
        except httpx.TransportError:
            return False


async def test_connections_are_refused_until_the_outage_ends_and_nothing_is_lost(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create()
    await wire.result(await wire.optim_step(run, 1))
    server.begin_outage()
    for _ in range(2):
        with pytest.raises((httpx.ConnectError, httpx.ReadError)):
            await wire.http.get("training_runs")
    server.begin_outage()
    server.end_outage()
    server.end_outage()
    assert await wire.result(await wire.optim_step(run, 2)) == {"metrics": {}}
    assert server.run_state(run).steps == 2


async def test_a_connection_accepted_in_the_moment_of_a_crash_is_broken_off_at_once(
    server: LocalTinker,
) -> None:
    with crash_between_accept_and_connection(server, 0.05) as connection:
        connection.settimeout(5.0)
        with suppress(ConnectionResetError):
            assert connection.recv(1) == b""


async def test_everything_is_answered_with_one_status_until_the_outage_ends(
    server: LocalTinker, wire: Wire
) -> None:
    server.begin_outage(status=502)
    for path in ("training_runs", "healthz", "get_server_capabilities"):
        assert (await wire.http.get(path)).status_code == 502
    await wire.post("session_heartbeat", {"session_id": wire.session}, status=502)
    server.end_outage()
    await wire.get("training_runs")


@pytest.mark.parametrize("status", [None, 503])
async def test_an_outage_ends_by_itself_after_its_time_by_the_clock(status: int | None) -> None:
    now = [0.0]
    async with LocalTinker(clock=lambda: now[0]) as server:
        server.outage(60, status=status)
        now[0] = 59.9
        assert not await is_up(server.base_url)
        now[0] = 60
        with anyio.fail_after(5):
            while not await is_up(server.base_url):  # noqa: ASYNC110 - another thread's
                await anyio.sleep(0.005)


async def test_an_open_poll_ends_when_the_outage_begins(server: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    server.inject(FaultRule("hang"))
    hanging = await wire.optim_step(run, 1)

    async def poll() -> None:
        with pytest.raises(httpx.TransportError):
            await wire.result(hanging)

    async with anyio.create_task_group() as group:
        group.start_soon(poll)
        await until(lambda: server.stats.by_route["retrieve_future"] == 2)
        server.begin_outage(status=503)
    server.end_outage()


@pytest.mark.parametrize("status", [None, 503])
async def test_the_sdk_rides_out_a_short_outage_and_no_step_is_lost(
    server: LocalTinker, status: int | None
) -> None:
    async with a_service(server) as service:
        client = await fresh(service)
        await train(client, 0, 1)
        server.outage(0.1, status=status)
        await train(client, 1, 2)
        assert server.run_state(client.model_id).steps == 2


async def test_after_a_rollback_outage_an_idle_client_continues_and_has_lost_steps(
    server: LocalTinker,
) -> None:
    async with a_service(server) as service:
        client = await fresh(service)
        await train(client, 0, 2)
        await client.save_state("two")
        await train(client, 2, 4)
        server.begin_outage(rollback=True)
        server.end_outage()
        state = server.run_state(client.model_id)
        assert (state.steps, state.corrupted) == (2, False)
        await train(client, 4, 6)
        assert server.run_state(client.model_id).steps == 4
        assert server.sessions()[client.model_id.partition(":train:")[0]] == "active"


async def test_requests_under_way_in_a_rollback_outage_have_failed(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create()
    await wire.result(await wire.optim_step(run, 1))
    server.inject(FaultRule("hang"))
    hanging = await wire.optim_step(run, 2)
    server.begin_outage(status=503, rollback=True)
    server.end_outage()
    reply = await wire.result(hanging)
    assert reply["category"] == "server"
    assert "restarted" in reply["error"]
    assert await wire.result(await wire.optim_step(run, 3)) == {"metrics": {}}
    assert server.run_state(run).steps == 1


async def test_a_corrupted_run_stays_so_when_the_others_are_rolled_back(
    server: LocalTinker, wire: Wire
) -> None:
    sick, well = await wire.create(0), await wire.create(1)
    server.poison(run=sick)
    await wire.result(await wire.optim_step(sick, 1))
    server.begin_outage(rollback=True)
    server.end_outage()
    assert server.run_state(sick).corrupted
    assert "not loaded" in (await wire.result(await wire.optim_step(sick, 2)))["error"]
    assert await wire.result(await wire.optim_step(well, 1)) == {"metrics": {}}


async def test_an_outage_may_begin_the_moment_the_server_is_entered() -> None:
    async with LocalTinker() as server:
        server.begin_outage()
        assert not await is_up(server.base_url)
        server.end_outage()
        assert await is_up(server.base_url)


async def test_an_outage_with_bad_arguments_is_refused(server: LocalTinker) -> None:
    with pytest.raises(ValueError, match="status=200 is not allowed"):
        server.begin_outage(status=200)
    with pytest.raises(ValueError, match="for_s=0 is not allowed"):
        server.outage(0)


# Restarts, and a process of its own


async def _saved_after_one_step(wire: Wire) -> str:
    """A run with one step saved and two made."""
    run = await wire.create()
    await wire.result(await wire.optim_step(run, 1))
    await wire.result(await wire.save(run, 2, "one"))
    await wire.result(await wire.optim_step(run, 3))
    return run


async def test_a_killed_server_can_come_back_with_its_runs_silently_rolled_back(
    tmp_path: Path,
) -> None:
    async with (
        LocalTinkerProcess(tmp_path, restart="rollback") as server,
        http(server.base_url, server.api_key) as client,
    ):
        wire = Wire(client)
        wire.session = (await wire.post("create_session", {"tags": []}))["session_id"]
        run = await _saved_after_one_step(wire)
        await server.kill()
        await server.start()
        assert not (await wire.get(f"training_runs/{run}"))["corrupted"]
        assert (await server.run_state(run)).steps == 1
        late = await wire.optim_step(run, 5)
        assert await wire.result(await wire.optim_step(run, 4)) == {"metrics": {}}
        assert await wire.result(late) == {"metrics": {}}
        assert (await server.run_state(run)).steps == 3


async def test_a_server_can_come_back_without_its_runs_and_say_so_only_in_replies(
    tmp_path: Path,
) -> None:
    async with LocalTinker(tmp_path) as server, http(server.base_url, server.api_key) as client:
        wire = Wire(client)
        wire.session = (await wire.post("create_session", {"tags": []}))["session_id"]
        run = await _saved_after_one_step(wire)
    async with (
        LocalTinker(tmp_path, restart="unloaded") as server,
        http(server.base_url, server.api_key) as client,
    ):
        wire.http = client
        assert not (await wire.get(f"training_runs/{run}"))["corrupted"]
        body = {"model_id": run, "seq_id": 4, "adam_params": {}}
        reply = await wire.post("optim_step", body, status=400)
        assert "is not loaded" in reply["detail"]
        assert await wire.load(1, f"tinker://{run}/weights/one")
        assert server.run_state(f"{wire.session}:train:1").steps == 1


async def test_another_process_takes_every_fault_and_outage_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"long_poll_s": 0.02, "jwt": True, "api_key": "tml-other"}
    async with LocalTinkerProcess(tmp_path, **options) as server:
        service = await anyio.to_thread.run_sync(
            lambda: tinker.ServiceClient(base_url=server.base_url, api_key="tml-other")
        )
        try:
            client = await fresh(service)
            await train(client, 0, 1)
            rule = FaultRule("pause", at_step=1, request="optim_step")
            await server.inject(rule)
            pending = client.optim_step(ADAM)
            while not await server.fired():  # noqa: ASYNC110 - another process
                await anyio.sleep(0.005)
            assert (await server.run_state(client.model_id)).steps == 1
            await server.release(rule)
            await pending
            assert (await server.run_state(client.model_id)).steps == 2

            await server.begin_outage()
            assert not await is_up(server.base_url)
            await server.end_outage()
            await server.begin_outage(status=503, rollback=True)
            assert not await is_up(server.base_url)
            await server.end_outage()
            assert (await server.run_state(client.model_id)).steps == 0
            await server.outage(0.05)
            await server.end_outage()
            assert await server.runs() == [client.model_id]
            (session,) = await server.sessions()
            await server.fail_session(session)
            assert await server.sessions() == {session: "failed"}
            with pytest.raises(ValueError, match="for_s=-1 is not allowed"):
                await server.outage(-1)
        finally:
            await service.close("success")


async def test_a_server_that_is_not_there_cannot_end_its_outage(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"start\(\) it"):
        await LocalTinkerProcess(tmp_path).end_outage()
