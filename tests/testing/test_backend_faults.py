"""Faults inside the service, as the real SDK sees them: rollbacks, bad restores, pauses, NaN."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread
import pytest
import pytest_asyncio
import tinker
from loops import ADAM, batch, until
from sdk_loops import a_service, fresh, resumed, train
from tinker import types
from tinker.lib.experimental import ExperimentalWarning
from tinker.lib.public_interfaces.rest_client import RestClient
from wire import Wire, wired

from tinker_recovery.testing import FaultRule, LocalTinker

# Rollbacks


async def test_a_rollback_loses_the_steps_since_the_checkpoint_and_says_nothing(
    server: LocalTinker, service: tinker.ServiceClient, wire: Wire
) -> None:
    client = await fresh(service)
    await train(client, 0, 2)
    await client.save_state("two")
    saved = server.run_state(client.model_id)
    server.inject(FaultRule("rollback", 5, "forward_backward"))
    await train(client, 2, 5)
    assert server.run_state(client.model_id).steps == 5
    await client.forward_backward(batch(5), "cross_entropy")
    state = server.run_state(client.model_id)
    assert state == saved
    assert (state.steps, state.corrupted) == (2, False)
    assert not (await wire.get(f"training_runs/{client.model_id}"))["corrupted"]
    await train(client, 6, 8)
    assert server.run_state(client.model_id).steps == 4


async def test_a_run_without_a_checkpoint_goes_back_to_its_beginning(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    origin = await fresh(service)
    await train(origin, 0, 3)
    path = (await origin.save_state("three")).path
    beginnings = [await fresh(service), await resumed(service, path)]
    states = [server.run_state(client.model_id) for client in beginnings]
    for client, state in zip(beginnings, states, strict=True):
        await train(client, 3, 5)
        server.inject(FaultRule("rollback", run=client.model_id, request="forward_backward"))
        await client.forward_backward(batch(5), "cross_entropy")
        assert server.run_state(client.model_id) == state
    assert [state.steps for state in states] == [0, 3]
    assert [state.parent for state in states] == [None, path]


# Restores


async def _resumed_losses(
    server: LocalTinker, service: tinker.ServiceClient, *rules: FaultRule
) -> tuple[list[float], list[float]]:
    """Losses of a run that continued, and of one resumed under faults."""
    client = await fresh(service)
    await train(client, 0, 5)
    path = (await client.save_state("five")).path
    for rule in rules:
        server.inject(rule)
    again = await resumed(service, path)
    return await train(client, 5, 8), await train(again, 5, 8)


async def test_an_optimizer_silently_not_restored_shows_in_the_second_step(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    on, again = await _resumed_losses(server, service, FaultRule("cold_optimizer"))
    assert again[0] == on[0]
    assert again[1] != on[1]
    assert [fired.step for fired in server.fired] == [5]


async def test_a_server_may_restore_no_optimizer_ever() -> None:
    async with LocalTinker(cold_optimizer=True) as server, a_service(server) as service:
        on, again = await _resumed_losses(server, service)
        assert again[0] == on[0]
        assert again[1] != on[1]


async def test_weights_restored_wrong_show_in_the_first_loss_a_little(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    on, again = await _resumed_losses(server, service, FaultRule("wrong_restore"))
    assert again[0] != on[0]
    assert again[0] == pytest.approx(on[0], rel=1e-2)


async def test_both_at_once_strike_one_load(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    rules = [FaultRule("cold_optimizer"), FaultRule("wrong_restore")]
    await _resumed_losses(server, service, *rules)
    assert [fired.rule for fired in server.fired] == rules


async def test_a_load_takes_the_time_set() -> None:
    async with LocalTinker(load_s=0.1, long_poll_s=0.01) as server, wired(server) as wire:
        run = await wire.create()
        path = (await wire.result(await wire.save(run, 1, "a")))["path"]
        assert (await wire.load(1, path))["type"] == "try_again"
        await until(lambda: len(server.runs()) == 2)
        assert server.run_state(f"{wire.session}:train:1").parent == path


# Pauses


@pytest.mark.parametrize("state", ["paused_capacity", "paused_rate_limit"])
async def test_a_pause_holds_a_run_until_it_is_released_and_changes_nothing(
    server: LocalTinker,
    service: tinker.ServiceClient,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    state: Any,
) -> None:
    monkeypatch.setattr("tinker.lib.queue_state_logger.PAUSE_GRACE_PERIOD", 0)
    calm, held = await fresh(service), await fresh(service)
    server.inject(FaultRule("pause", 1, "optim_step", held.model_id, queue_state=state))
    with caplog.at_level(logging.WARNING, "tinker.lib.queue_state_logger"):
        pending: list[Any] = []
        for step in range(3):
            pending.append(held.forward_backward(batch(step), "cross_entropy"))
            pending.append(held.optim_step(ADAM))
        reason = {"paused_capacity": "short on capacity", "paused_rate_limit": "rate limit hit"}
        await until(lambda: reason[state] in caplog.text)
    assert server.run_state(held.model_id).steps == 1
    assert not pending[-1].future().done()
    server.release()
    for one in pending:
        await one
    await train(calm, 0, 3)
    assert server.run_state(held.model_id) == server.run_state(calm.model_id)


async def test_a_paused_poll_says_why_at_once_and_a_pause_ends_with_its_time() -> None:
    now = [0.0]
    async with LocalTinker(clock=lambda: now[0]) as server, wired(server) as wire:
        one, other = await wire.create(0), await wire.create(1)
        server.inject(FaultRule("pause", for_s=600))
        sent = [await wire.optim_step(run, seq_id) for run in (one, other) for seq_id in (1, 2)]
        replies = [await wire.result(accepted) for accepted in sent]
        expected = {"type": "try_again", "queue_state": "paused_capacity"}
        assert [reply | expected for reply in replies] == replies
        now[0] = 600
        await until(lambda: server.run_state(other).steps == 2)
        assert await wire.result(sent[0]) == {"metrics": {}}
        assert server.run_state(one).steps == 2


async def test_the_creation_of_a_run_can_be_paused_too(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    server.inject(FaultRule("pause", request="create_model"))
    making = service.create_lora_training_client
    pending = await anyio.to_thread.run_sync(lambda: making("b", rank=8))
    await until(lambda: len(server.fired) == 1)
    assert server.runs() == []
    server.release()
    client: tinker.TrainingClient = await pending
    assert server.runs() == [client.model_id]


# Losses that are not finite


@pytest.mark.parametrize("loss", ["nan", "inf"])
async def test_a_loss_is_nan_once_and_the_weights_are_unchanged(
    server: LocalTinker, service: tinker.ServiceClient, loss: Any
) -> None:
    calm, hit = await fresh(service), await fresh(service)
    server.inject(FaultRule("nan_loss", 2, run=hit.model_id, loss=loss))
    expected, losses = await train(calm, 0, 5), await train(hit, 0, 5)
    assert str(losses[2]) == loss
    assert losses[:2] + losses[3:] == expected[:2] + expected[3:]
    assert server.run_state(hit.model_id) == server.run_state(calm.model_id)


async def test_a_sticky_nan_is_in_the_weights_from_there_on(
    server: LocalTinker, service: tinker.ServiceClient
) -> None:
    client = await fresh(service)
    server.inject(FaultRule("nan_loss", 2, sticky=True))
    losses = await train(client, 0, 5)
    assert [math.isnan(loss) for loss in losses] == [False, False, True, True, True]
    path = (await client.save_state("nan")).path
    again = await resumed(service, path)
    assert math.isnan((await train(again, 5, 6))[0])


# Sessions


@pytest_asyncio.fixture
async def rest(server: LocalTinker) -> AsyncIterator[RestClient]:
    rest = await anyio.to_thread.run_sync(
        lambda: RestClient(base_url=server.base_url, api_key=server.api_key)
    )
    yield rest
    await anyio.to_thread.run_sync(rest.holder.close)


async def _search(rest: RestClient, **query: Any) -> types.SessionSearchResponse:
    with pytest.warns(ExperimentalWarning):
        pending = rest.search_sessions(types.SessionSearchRequest(**query))
    found: types.SessionSearchResponse = await pending
    return found


async def test_a_request_can_fail_its_whole_session_and_no_other(
    server: LocalTinker, service: tinker.ServiceClient, rest: RestClient, wire: Wire
) -> None:
    one, other = await fresh(service), await fresh(service)
    second = await wire.create()
    await train(one, 0, 2)
    await train(other, 0, 1)
    server.inject(FaultRule("fail_session", 2, run=one.model_id, message="out of memory"))
    with pytest.raises(tinker.RequestFailedError, match="out of memory") as caught:
        await train(one, 2, 3)
    assert caught.value.category == "server"
    with pytest.raises(tinker.APIStatusError, match="has failed: out of memory"):
        await other.optim_step(ADAM)
    session = one.model_id.partition(":train:")[0]
    assert server.sessions()[session] == "failed"
    await wire.post("session_heartbeat", {"session_id": session}, status=410)
    await wire.post("create_model", {"session_id": session, "model_seq_id": 9, "base_model": "b"},
                    status=410)  # fmt: skip
    assert await wire.result(await wire.optim_step(second, 1)) == {"metrics": {}}

    (failed,) = (await _search(rest, statuses=[{"type": "failed"}])).sessions
    assert failed.session_id == session
    status = failed.status
    assert isinstance(status, types.session_status.SessionFailed)
    assert (status.category, status.message) == ("internal", "out of memory")
    assert isinstance(status.reason, types.session_status.SessionFailedRequestReason)
    assert status.reason.request_type == "forward_backward"
    assert server.run_state(one.model_id).steps == 2


async def test_a_session_fails_on_request_and_what_is_queued_fails_and_is_not_made(
    server: LocalTinker, service: tinker.ServiceClient, rest: RestClient
) -> None:
    client = await fresh(service)
    await train(client, 0, 1)
    server.inject(FaultRule("pause", 1))
    pending = [client.optim_step(ADAM) for _ in range(3)]
    await until(lambda: len(server.fired) == 1)
    await until(lambda: server.stats.by_route["optim_step"] == 4)
    session = client.model_id.partition(":train:")[0]
    server.fail_session(session, category="user", message="over quota")
    for one in pending:
        with pytest.raises(tinker.RequestFailedError, match="over quota"):
            await one
    server.release()
    (failed,) = (await _search(rest, session_id=session)).sessions
    assert isinstance(failed.status, types.session_status.SessionFailed)
    assert failed.status.category == "user"
    assert failed.status.reason == types.session_status.SessionFailedTrainingRunReason(
        training_run_id=client.model_id
    )
    assert server.run_state(client.model_id).steps == 1


async def test_sessions_are_found_by_name_metadata_and_status_in_pages(
    rest: RestClient, wire: Wire
) -> None:
    made = []
    for number in range(5):
        body = {"tags": [], "display_name": f"Night {number}", "user_metadata": {"n": str(number)}}
        made.append((await wire.post("create_session", body))["session_id"])
    for session, how in zip(made, ["success", "errored", "interrupted"], strict=False):
        await wire.post(
            f"sessions/{session}/finish", {"reason": {"type": how}, "detail": "the end"}
        )
    first = await _search(rest, limit=2)
    assert [one.session_id for one in first.sessions] == [made[4], made[3]]
    assert first.next_cursor is not None
    others = await _search(rest, limit=200, cursor=first.next_cursor)
    assert [one.session_id for one in others.sessions] == [*made[2::-1], wire.session]
    assert others.next_cursor is None
    (named,) = (await _search(rest, display_name="3 night")).sessions
    (tagged,) = (await _search(rest, user_metadata={"n": "3"})).sessions
    assert named == tagged
    assert (named.session_id, named.display_name) == (made[3], "Night 3")
    assert isinstance(named.status, types.session_status.SessionActive)
    wanted = [{"type": "client_finished", "reasons": ["errored", "interrupted"]}]
    ended = (await _search(rest, statuses=wanted)).sessions
    assert [one.session_id for one in ended] == [made[2], made[1]]
    assert isinstance(ended[0].status, types.session_status.ClientSessionFinished)
    assert ended[0].status.detail == "the end"
    for session in made[3:]:
        await wire.post(f"sessions/{session}/finish", {"reason": {"type": "success"}})
