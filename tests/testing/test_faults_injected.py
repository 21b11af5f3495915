"""Scripted faults: what strikes, when, and what remains."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from wire import Reply, Wire

from tinker_recovery.testing import FaultRule, LocalTinker


async def steps(wire: Wire, run: str, first: int, count: int) -> list[Reply]:
    """Results of optimizer steps, from a seq_id on."""
    sent = [await wire.optim_step(run, first + number) for number in range(count)]
    return [await wire.result(one) for one in sent]


async def test_a_poisoned_run_fails_from_that_step_on_and_says_so(
    server: LocalTinker, wire: Wire
) -> None:
    run, healthy = await wire.create(0), await wire.create(1)
    server.poison(at_step=2, run=run)
    sent = [await wire.optim_step(run, seq_id) for seq_id in range(1, 5)]
    replies = [await wire.result(one) for one in sent]
    assert [reply.get("category") for reply in replies] == [None, None, "server", "server"]
    assert await wire.result(sent[0]) == {"metrics": {}}
    state = server.run_state(run)
    assert (state.steps, state.corrupted) == (2, True)
    assert (await wire.get(f"training_runs/{run}"))["corrupted"]
    assert not (await wire.get(f"training_runs/{healthy}"))["corrupted"]
    assert await steps(wire, healthy, 1, 3) == [{"metrics": {}}] * 3
    (fired,) = server.fired
    assert (fired.run, fired.step) == (run, 2)


async def test_a_quietly_poisoned_run_hangs_and_only_its_status_shows_it(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create()
    server.poison(at_step=1, quiet=True)
    replies = await steps(wire, run, 1, 3)
    assert [reply.get("type") for reply in replies] == [None, "try_again", "try_again"]
    assert replies[1]["queue_state"] == "active"
    assert server.run_state(run).corrupted


async def test_one_failed_request_has_no_effect_and_the_next_one_succeeds(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create()
    server.inject(FaultRule("fail", at_step=1, category="unknown", message="disk on fire"))
    replies = await steps(wire, run, 1, 3)
    assert replies[1] == {"error": "disk on fire", "category": "unknown"}
    assert replies[2] == {"metrics": {}}
    assert (server.run_state(run).steps, server.run_state(run).corrupted) == (2, False)


async def test_a_save_that_failed_leaves_its_name_free(server: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    server.inject(FaultRule("fail", request="save_weights"))
    assert "error" in await wire.result(await wire.save(run, 1, "a"))
    assert "path" in await wire.result(await wire.save(run, 2, "a"))


async def test_a_hanging_request_holds_up_all_behind_it(server: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    server.inject(FaultRule("hang", at_step=1))
    replies = await steps(wire, run, 1, 3)
    assert [reply.get("type") for reply in replies] == [None, "try_again", "try_again"]
    assert (server.run_state(run).steps, server.run_state(run).corrupted) == (1, False)


async def test_a_lost_result_answers_410_though_the_request_was_executed(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create()
    server.inject(FaultRule("gone", at_step=0))
    accepted = await wire.optim_step(run, 1)
    for _ in range(2):
        await wire.post("retrieve_future", accepted, status=410)
    assert server.run_state(run).steps == 1


async def test_a_rule_strikes_as_often_as_it_says_and_the_step_counts_over_resumes(
    server: LocalTinker, wire: Wire
) -> None:
    run = await wire.create(0)
    await steps(wire, run, 1, 3)
    path = (await wire.result(await wire.save(run, 4, "three")))["path"]
    server.inject(FaultRule("fail", request="optim_step", at_step=3, times=2))
    await wire.load(1, path)
    resumed = f"{wire.session}:train:1"
    replies = await steps(wire, resumed, 1, 3)
    assert ["error" in reply for reply in replies] == [True, True, False]
    assert [fault.step for fault in server.fired] == [3, 3]


@pytest.mark.parametrize("action", ["fail", "poison"])
async def test_creating_a_run_fails_only_if_a_rule_names_it(
    server: LocalTinker, wire: Wire, action: Any
) -> None:
    server.inject(FaultRule(action, request="create_model"))
    body = {"session_id": wire.session, "model_seq_id": 0, "base_model": "b"}
    reply = await wire.result(await wire.post("create_model", body))
    assert reply["category"] == "server"
    server.inject(FaultRule("fail"))
    run = await wire.create(1)
    (reply,) = await steps(wire, run, 1, 1)
    assert "error" in reply


async def test_an_error_of_the_servers_own_fails_the_request_and_not_the_run(
    server: LocalTinker, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await wire.create()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tinker_recovery.testing._store.Store.save_checkpoint", full)
        reply = await wire.result(await wire.save(run, 1, "a"))
    assert reply["category"] == "server"
    assert "No space left" in reply["error"]
    assert await steps(wire, run, 2, 1) == [{"metrics": {}}]
    assert not server.run_state(run).corrupted


async def test_a_hundred_waiting_requests_cost_no_polling(server: LocalTinker, wire: Wire) -> None:
    run = await wire.create()
    waiting = [await wire.optim_step(run, seq_id) for seq_id in range(2, 102)]
    polls = [asyncio.ensure_future(wire.result(one)) for one in waiting]
    await wire.optim_step(run, 1)
    await asyncio.gather(*polls)
    assert server.run_state(run).steps == 101
