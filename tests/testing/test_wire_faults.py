"""Faults on the wire, as the real SDK sees them: storms, lost, slow, broken replies."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
import pytest_asyncio
import tinker
from inspection import requests_open
from loops import ADAM, batch, until
from sdk_loops import fresh, train
from tinker.lib.public_interfaces.rest_client import RestClient
from tinker.lib.retryable_exception import RetryableException
from wire import Wire, wired

from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.actions import Target


@pytest_asyncio.fixture
async def client(service: tinker.ServiceClient) -> tinker.TrainingClient:
    """A client that has trained one step."""
    client = await fresh(service)
    await train(client, 0, 1)
    return client


# Status storms


@pytest.mark.parametrize("request_", ["forward_backward", "optim_step"])
async def test_the_sdk_rides_out_a_storm_on_submits(
    server: LocalTinker, client: tinker.TrainingClient, request_: Target
) -> None:
    run = client.model_id
    storm = [
        FaultRule("status", 1, request_, run, status=status, retry_after_s=0.01)
        for status in (408, 409, 429, 500, 502, 503)
    ]
    server.inject(replace(storm[0], run="another"))
    for rule in storm:
        server.inject(rule)
    before = server.stats.by_route[request_]
    await train(client, 1, 2)
    assert server.stats.by_route[request_] == before + len(storm) + 1
    assert [fired.rule for fired in server.fired] == storm
    assert {(fired.request, fired.run) for fired in server.fired} == {(request_, run)}
    assert server.run_state(run).steps == 2


async def test_a_refused_submit_raises_at_once(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    errors: dict[int, type[Exception]] = {
        400: tinker.BadRequestError,
        401: tinker.AuthenticationError,
        403: tinker.PermissionDeniedError,
        404: tinker.NotFoundError,
        410: tinker.APIStatusError,
        422: tinker.UnprocessableEntityError,
    }
    for status, error in errors.items():
        client = await fresh(service)
        reason = f"not today: {status}"
        server.inject(FaultRule("status", request="optim_step", status=status, message=reason))
        with pytest.raises(error, match=reason):
            await client.optim_step(ADAM)
        assert server.run_state(client.model_id).steps == 0
    assert server.stats.by_route["optim_step"] == len(errors)


async def test_polls_are_repeated_without_a_pause_while_the_storm_lasts(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    for status in (408, 500, 502, 503):
        server.inject(
            FaultRule(
                "status", request="retrieve_future", polled="optim_step", status=status, times=9
            )
        )
    began = time.monotonic()
    await train(client, 1, 2)
    assert time.monotonic() - began < 5, "36 pauses of the shortest kind would take longer"
    assert [fired.step for fired in server.fired] == [1] * 36


async def test_a_refused_poll_raises_though_the_step_was_made(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    for steps, status in enumerate((400, 401, 403, 404, 409, 410, 422), 2):
        times = 4 if status == 400 else 1
        server.inject(FaultRule("status", request="retrieve_future", status=status, times=times))
        with pytest.raises(RetryableException if status == 410 else ValueError) as caught:
            await client.optim_step(ADAM)
        assert isinstance(caught.value.__cause__, tinker.APIStatusError)
        assert caught.value.__cause__.status_code == status
        assert [fired.rule.status for fired in server.fired].count(status) == times
        assert server.run_state(client.model_id).steps == steps


@pytest.mark.parametrize("request_", ["optim_step", "retrieve_future"])
async def test_a_402_is_waited_out_in_silence(
    server: LocalTinker, client: tinker.TrainingClient, request_: Any
) -> None:
    server.inject(FaultRule("status", request=request_, status=402))
    before = server.stats.by_route[request_]
    pending = client.optim_step(ADAM)
    await until(lambda: len(server.fired) == 1)
    with anyio.move_on_after(0.1) as waited:
        await anyio.to_thread.run_sync(pending.future().exception, abandon_on_cancel=True)
    assert waited.cancelled_caught
    assert server.stats.by_route[request_] == before + 1
    pending.future().cancel()


async def test_a_poll_is_chosen_by_what_it_asks_for_and_by_its_step(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    server.inject(FaultRule("status", 3, "retrieve_future", polled="forward_backward"))
    server.inject(FaultRule("status", 2, "retrieve_future", polled="save_weights"))
    # Submitted far ahead: the step is that of the request's turn, not of the poll's arrival.
    pending: list[Any] = [
        one
        for step in range(1, 5)
        for one in (client.forward_backward(batch(step), "cross_entropy"), client.optim_step(ADAM))
    ]
    for one in pending:
        await one
    (fired,) = server.fired
    assert (fired.request, fired.rule.polled, fired.step) == (
        "retrieve_future",
        "forward_backward",
        3,
    )


async def test_a_status_read_fails_the_number_of_times_set(server: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    reads: dict[Target, str] = {
        "training_run": f"training_runs/{run}",
        "training_runs": "training_runs",
        "run_checkpoints": f"training_runs/{run}/checkpoints",
        "checkpoints": "checkpoints",
        "sessions": "sessions",
        "session": f"sessions/{wire.session}",
        "capabilities": "get_server_capabilities",
        "health": "healthz",
    }
    for request_ in reads:
        server.inject(FaultRule("status", request=request_, times=2, retry_after_s=0.5))
    for request_, url in reads.items():
        replies = [await wire.http.get(url) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [503, 503, 200], request_
        assert replies[0].headers["retry-after"] == "0.5"


async def test_the_sdk_reads_on_after_a_storm_on_reads(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    rest = await anyio.to_thread.run_sync(
        lambda: RestClient(base_url=server.base_url, api_key=server.api_key)
    )
    server.inject(FaultRule("status", request="training_run", times=2, retry_after_s=0.01))
    assert not (await rest.get_training_run(client.model_id)).corrupted
    assert server.stats.by_route["training_run"] == 3
    await anyio.to_thread.run_sync(rest.holder.close)


async def test_a_refused_heartbeat_leaves_the_session_active(
    server: LocalTinker, wire: Wire
) -> None:
    server.inject(FaultRule("status", request="session_heartbeat", status=410, times=2))
    body = {"session_id": wire.session}
    for status in (410, 410, 200):
        await wire.post("session_heartbeat", body, status=status)
    assert server.sessions()[wire.session] == "active"


async def test_the_sdk_makes_a_session_and_a_run_in_a_storm(server: LocalTinker) -> None:
    requests: list[Target] = ["config", "create_session", "create_model"]
    for request_ in requests:
        server.inject(FaultRule("status", request=request_, retry_after_s=0.01))
    service = await anyio.to_thread.run_sync(server.service)
    try:
        await fresh(service)
    finally:
        await service.close("success")
    assert [server.stats.by_route[name] for name in requests] == [2, 2, 2]
    assert len(server.runs()) == 1


async def test_a_storm_lasts_for_its_time_by_the_servers_clock() -> None:
    now = [0.0]
    async with LocalTinker(clock=lambda: now[0]) as server, wired(server) as wire:
        server.inject(FaultRule("status", request="training_runs", for_s=60, after_s=5))
        codes = []
        for at in (0, 4.9, 5, 30, 64.9, 65):
            now[0] = at
            codes.append((await wire.http.get("training_runs")).status_code)
        assert codes == [200, 200, 503, 503, 503, 200]


# Lost replies


@pytest.mark.parametrize("action", ["drop", "truncate"])
async def test_a_submit_whose_reply_was_lost_is_made_exactly_once(
    server: LocalTinker, service: tinker.ServiceClient, action: Any
) -> None:
    calm, one, other = [await fresh(service) for _ in range(3)]
    server.inject(FaultRule(action, 1, "forward_backward", one.model_id))
    server.inject(FaultRule(action, 2, "optim_step", other.model_id))
    losses = await asyncio.gather(*(train(client, 0, 3) for client in (calm, one, other)))
    assert losses[0] == losses[1] == losses[2]
    assert len(server.fired) == 2
    for request_ in ("forward_backward", "optim_step"):
        assert server.stats.by_route[request_] == 3 * 3 + 1
    for hit in (one, other):
        assert server.run_state(hit.model_id) == server.run_state(calm.model_id)
        assert server.run_state(hit.model_id).steps == 3


async def test_a_run_whose_creation_lost_its_reply_is_made_once(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    server.inject(FaultRule("drop", request="create_model"))
    client = await fresh(service)
    assert server.runs() == [client.model_id]
    assert server.stats.by_route["create_model"] == 2


@pytest.mark.parametrize("action", ["drop", "truncate"])
async def test_a_poll_whose_reply_was_lost_is_made_again(
    server: LocalTinker, client: tinker.TrainingClient, action: Any
) -> None:
    server.inject(FaultRule(action, request="retrieve_future", polled="optim_step"))
    await client.optim_step(ADAM)
    assert server.run_state(client.model_id).steps == 2


async def test_a_dropped_reply_is_no_reply_and_a_truncated_one_is_a_part_of_it(
    server: LocalTinker, wire: Wire
) -> None:
    server.inject(FaultRule("drop", request="training_runs"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        await wire.http.get("training_runs")
    server.inject(FaultRule("truncate", request="training_runs"))
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        await wire.http.get("training_runs")
    assert (await wire.http.get("training_runs")).is_success


async def test_a_truncated_reply_may_hang_until_it_is_released(
    server: LocalTinker, wire: Wire
) -> None:
    rule = FaultRule("truncate", request="training_runs", silent=True)
    server.inject(rule)
    with pytest.raises(httpx.ReadTimeout):
        await wire.http.get("training_runs", timeout=0.1)
    server.inject(rule)

    async def ask() -> None:
        with pytest.raises(httpx.RemoteProtocolError, match="complete message body"):
            await wire.http.get("training_runs")

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await until(lambda: len(server.fired) == 2)
        server.release()


async def test_a_slow_reply_comes_late_or_when_it_is_released() -> None:
    now = [0.0]
    async with LocalTinker(clock=lambda: now[0]) as server, wired(server) as wire:
        run = await wire.create()
        for seq_id in (1, 2):
            server.inject(FaultRule("slow", request="optim_step", delay_s=30))
            async with anyio.create_task_group() as group:
                group.start_soon(wire.optim_step, run, seq_id)
                await until(lambda: server.run_state(run).steps == len(server.fired) == seq_id)  # noqa: B023 - awaited here
                await anyio.sleep(0.02)
                assert requests_open(group) == 1, "it was executed, and is not answered"
                if seq_id == 1:
                    now[0] += 30
                else:
                    server.release()


async def test_the_sdk_waits_for_a_slow_reply(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    server.inject(FaultRule("slow", request="retrieve_future", delay_s=0.1))
    began = time.monotonic()
    await client.optim_step(ADAM)
    assert time.monotonic() - began > 0.1
    assert server.run_state(client.model_id).steps == 2


# Malformed replies


@pytest.mark.parametrize("request_", ["optim_step", "save_weights"])
async def test_a_malformed_reply_to_a_submit_raises_though_it_was_executed(
    server: LocalTinker, service: tinker.ServiceClient, request_: Any
) -> None:
    bodies: dict[Any, type[Exception]] = {
        "text": json.JSONDecodeError,
        "shape": tinker.APIResponseValidationError,
        "garbage": tinker.APIResponseValidationError,
    }
    for body, error in bodies.items():
        client = await fresh(service)
        server.inject(FaultRule("malformed", request=request_, body=body))
        with pytest.raises(error):
            await (client.optim_step(ADAM) if request_ == "optim_step" else client.save_state("a"))
        if request_ == "optim_step":
            await until(lambda: server.run_state(client.model_id).steps == 1)  # noqa: B023 - awaited here
    assert server.stats.by_route[request_] == len(bodies)


async def test_a_malformed_result_of_a_forward_backward_is_a_value_error(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    said: dict[Any, str] = {
        "text": "expected a JSON",
        "shape": "JSON payload",
        "garbage": "Proto deserialization failed",
    }
    for body, reason in said.items():
        server.inject(FaultRule("malformed", request="retrieve_future", body=body))
        with pytest.raises(ValueError, match=reason):
            await client.forward_backward(batch(1), "cross_entropy")


async def test_a_result_of_the_wrong_shape_passes_as_a_step_without_metrics(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    server.inject(FaultRule("malformed", request="retrieve_future", body="shape"))
    assert (await client.optim_step(ADAM)).metrics is None


# Saves


async def test_a_save_refused_as_taken_though_its_name_is_free_is_made(
    server: LocalTinker, client: tinker.TrainingClient
) -> None:
    server.inject(FaultRule("status", request="save_weights", status=409))
    path = (await client.save_state("a")).path
    assert path.endswith("/weights/a")
    assert server.stats.by_route["save_weights"] == 2


async def test_a_save_that_landed_while_its_reply_was_lost_is_refused_ever_after(
    server: LocalTinker, client: tinker.TrainingClient, wire: Wire
) -> None:
    server.inject(FaultRule("lost_save"))
    pending = client.save_state("a", user_metadata={"ours": "1"})
    await until(lambda: server.stats.by_route.get("save_weights", 0) >= 2)
    assert not pending.future().done()
    (found,) = (await wire.get(f"training_runs/{client.model_id}/checkpoints"))["checkpoints"]
    assert (found["checkpoint_id"], found["user_metadata"]) == ("weights/a", {"ours": "1"})
    await wire.post(
        "save_weights", {"model_id": client.model_id, "seq_id": 3, "path": "a"}, status=409
    )
    pending.future().cancel()
