"""Starting, stopping, killing and restarting the local server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import httpx
import pytest
from inspection import folder_of
from wire import Wire, http

from tinker_recovery.testing import FaultRule, LocalTinker, LocalTinkerProcess, serve

pytest_plugins = ["tinker_recovery.testing.fixtures"]


async def session(client: httpx.AsyncClient) -> Wire:
    wire = Wire(client)
    wire.session = (await wire.post("create_session", {"tags": []}))["session_id"]
    return wire


async def test_it_stops_at_once_with_requests_open_and_leaves_no_thread_and_no_folder() -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = LocalTinker(long_poll_s=60)
        async with server:
            client = await stack.enter_async_context(http(server.base_url, server.api_key))
            wire = await session(client)
            run = await wire.create()
            server.inject(FaultRule("hang"))
            hanging = await wire.optim_step(run, 1)
            group = await stack.enter_async_context(anyio.create_task_group())

            async def poll() -> None:
                with pytest.raises(httpx.TransportError):
                    await wire.result(hanging)

            for _ in range(5):
                group.start_soon(poll)
            while server.stats.by_route.get("retrieve_future", 0) < 1 + 5:  # noqa: ASYNC110 - another thread's
                await anyio.sleep(0.001)
            began = time.monotonic()
        assert time.monotonic() - began < 10, "an open question is good for a minute"
    assert "local-tinker" not in [thread.name for thread in threading.enumerate()]
    assert not folder_of(server).exists()


async def test_leaving_it_while_cancelled_stops_it_all_the_same() -> None:
    server = LocalTinker()
    with anyio.move_on_after(0.05):
        async with server:
            await anyio.sleep_forever()
    assert not folder_of(server).exists()
    assert "local-tinker" not in [thread.name for thread in threading.enumerate()]


async def test_a_server_is_entered_once() -> None:
    server = LocalTinker()
    async with server:
        with pytest.raises(RuntimeError, match="make a new one"):
            await server.__aenter__()


async def test_a_port_in_use_is_an_error_at_entry() -> None:
    async with LocalTinker() as server:
        port = int(server.base_url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            serve(port=port)
        with pytest.raises(OSError, match="in use"):
            async with LocalTinker(port=port):
                pass


async def test_the_fixture_points_the_sdk_to_its_server(local_tinker: LocalTinker) -> None:
    assert os.environ["TINKER_BASE_URL"] == local_tinker.base_url
    assert os.environ["TINKER_API_KEY"] == local_tinker.api_key
    assert os.environ["TINKER_TELEMETRY"] == "0"


async def test_after_a_kill_what_was_saved_is_there_and_what_was_not_is_lost(
    tmp_path: Path,
) -> None:
    async with (
        LocalTinkerProcess(tmp_path) as server,
        http(server.base_url, server.api_key) as client,
    ):
        wire = await session(client)
        run = await wire.create()
        await wire.result(await wire.optim_step(run, 1))
        path = (await wire.result(await wire.save(run, 2, "one", user_metadata={"step": "1"})))[
            "path"
        ]
        saved = await server.run_state(run)
        stale = await wire.optim_step(run, 3)
        await wire.result(stale)
        base_url = server.base_url
        await server.restart()
        assert server.base_url == base_url

        (found,) = (await wire.get("training_runs"))["training_runs"]
        assert (found["training_run_id"], found["corrupted"]) == (run, True)
        (checkpoint,) = (await wire.get("checkpoints"))["checkpoints"]
        assert checkpoint["user_metadata"] == {"step": "1"}
        assert (await wire.result(stale))["category"] == "server"
        assert (await wire.result(await wire.optim_step(run, 4)))["category"] == "server"
        await wire.post("session_heartbeat", {"session_id": wire.session})

        other = await session(client)
        fresh = await other.create()
        assert (await other.result(stale))["category"] == "server", "an id names one request"
        await other.load(1, path)
        assert await server.run_state(f"{other.session}:train:1") == saved
        assert fresh != run
        await wire.post(f"sessions/{wire.session}/finish", {"reason": {"type": "success"}})


async def test_a_fault_is_injected_into_another_process(tmp_path: Path) -> None:
    async with (
        LocalTinkerProcess(tmp_path) as server,
        http(server.base_url, server.api_key) as client,
    ):
        wire = await session(client)
        run = await wire.create()
        rule = FaultRule("poison", at_step=0)
        await server.inject(rule)
        assert "error" in await wire.result(await wire.optim_step(run, 1))
        (fired,) = await server.fired()
        assert (fired.rule, fired.run, fired.step) == (rule, run, 0)
        assert (await server.stats()).by_route["optim_step"] == 1
        with anyio.fail_after(10):
            await server.stop()  # with a connection open that is kept alive
        await server.start()
        async with http(server.base_url, "tml-another") as stranger:
            refused = await stranger.post(f"{server.base_url}/testing/faults", json={})
        assert refused.status_code == 401


async def test_a_killed_server_refuses_connections(tmp_path: Path) -> None:
    async with LocalTinkerProcess(tmp_path) as server:
        await server.kill()
        async with http(server.base_url, server.api_key) as client:
            with pytest.raises(httpx.ConnectError):
                await client.get("healthz")


def test_the_module_serves_until_its_parent_is_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinker_recovery.testing", "--root", str(tmp_path)]
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [*command, "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        base_url = process.stdout.readline().strip()
        assert httpx.get(f"{base_url}/api/v1/healthz").json() == {"status": "ok"}
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_module_ends_cleanly_on_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tinker_recovery.testing", "--root", str(tmp_path)]
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (0, "")


def test_without_the_extra_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['starlette'] = None\nimport tinker_recovery.testing"
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "tinker-recovery[local]" in done.stderr
