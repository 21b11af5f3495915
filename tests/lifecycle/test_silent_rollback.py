"""A service that goes away, comes back with older weights and says nothing: noticed by default."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import pytest_asyncio
from inspection import confirmed_step, in_an_outage, run_id_of, scope_of
from loops import ADAM, MODEL, SEED, batch, train, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    CheckpointPolicy,
    Clock,
    Kind,
    RecoveryEvent,
    RecoveryPolicy,
    Supervisor,
)
from tinker_recovery.checkpoints.canary import CanaryBook, Match
from tinker_recovery.errors import StatusUnavailable
from tinker_recovery.run.rollback_detector import LONG_S, MOMENT_S, RollbackDetector
from tinker_recovery.run.scope import IDLE_S
from tinker_recovery.service import sdk_requests
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.service.http import Unreached
from tinker_recovery.service.status import StatusReader
from tinker_recovery.telemetry import names
from tinker_recovery.testing import FaultRule, LocalTinker, LocalTinkerProcess, RunState

STEPS = 12
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
SAVES = CheckpointPolicy(save_every=5)


def default(**changes: Any) -> RecoveryPolicy:
    """The default settings, so a poll every thirty seconds; but for how often to save.

    And for the standby: a session that is being opened as its server goes keeps its thread.
    """
    return RecoveryPolicy(
        enabled=True,
        backoff_s=0.0,
        max_backoff_s=0.0,
        checkpoints=SAVES,
        standby="none",
        **changes,
    )


@pytest_asyncio.fixture
async def dying(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LocalTinkerProcess]:
    """One that comes back at its last checkpoint, and calls nothing corrupted."""
    async with LocalTinkerProcess(tmp_path / "service", dialect="rolls_back") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


async def one_step(attempt: Attempt, step: int) -> None:
    forward = attempt.client.forward_backward(batch(step), "cross_entropy")
    update = attempt.client.optim_step(ADAM)
    await forward
    await update


async def final(server: LocalTinkerProcess, supervisor: Supervisor) -> RunState:
    (run,) = supervisor.runs
    return await server.run_state(run.segments[-1].run_id)


@pytest.mark.timeout(180)  # the server is started twice, in processes of its own
@pytest.mark.parametrize("when", ["training", "saving", "idle", "idle for longer than a poll"])
async def test_a_service_killed_and_back_with_older_weights_costs_no_bit_with_default_settings(
    local: LocalTinker, dying: LocalTinkerProcess, when: str
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    struck = False

    async def loop(attempt: Attempt) -> None:
        nonlocal struck
        for step in range(attempt.start_step, STEPS):
            if step == 8 and not struck:
                struck = True
                if when == "saving":
                    attempt.client.save_state("by-hand")
                if when.startswith("idle"):
                    await attempt.client.drain()
                    await anyio.sleep(1.1)
                    await dying.kill()
                    await anyio.sleep(1.0)
                    await dying.start()
                else:
                    async with anyio.create_task_group() as group:
                        await dying.kill()
                        group.start_soon(one_step, attempt, step)
                        await anyio.sleep(3.0)
                        await dying.start()
                    continue
            await one_step(attempt, step)

    given = default(poll_interval_s=2.0) if when.endswith("poll") else default()
    with anyio.fail_after(90):
        async with Supervisor(given) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert len(run.recoveries) == 1
    assert await final(dying, supervisor) == expected


@pytest.mark.timeout(180)  # the server is started twice, in processes of its own
async def test_what_was_made_of_weights_that_the_service_had_lost_is_not_recalled(
    local: LocalTinker, dying: LocalTinkerProcess
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    by: dict[tuple[int, int], int] = {}

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 8 and attempt.number == 1:
                await attempt.client.drain()
                await anyio.sleep(1.1)
                await dying.kill()
                await anyio.sleep(1.0)
                await dying.start()
            by[attempt.number, step] = await attempt.recall("by", lambda: attempt.number)
            await one_step(attempt, step)

    with anyio.fail_after(90):
        async with Supervisor(default()) as supervisor:
            await supervisor.run(loop, **START)
    assert await final(dying, supervisor) == expected
    assert by[1, 8] == 1, "it was made of what the service came back with"
    assert [by[2, step] for step in range(8, STEPS)] == [2] * 4


async def _ask_status(reader: StatusReader, run_id: str) -> None:
    await reader.run(run_id)


async def _list(reader: StatusReader, run_id: str) -> None:
    await reader.checkpoints(run_id)


async def _delete(reader: StatusReader, run_id: str) -> None:
    await CheckpointCalls(reader.http).delete(f"tinker://{run_id}/weights/none")


async def _finish(reader: StatusReader, run_id: str) -> None:
    await reader.http.send("POST", f"sessions/{run_id}/finish", json={})


@pytest.mark.parametrize("ask", [_ask_status, _list, _delete, _finish])
async def test_any_request_of_ours_that_is_refused_counts_as_an_outage_met(
    local: LocalTinker, ask: Any
) -> None:
    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=2)
        reader = scope_of(attempt).run.collaborators.reader
        await reader.run(run_id_of(attempt))
        local.begin_outage()
        with anyio.move_on_after(2):
            with contextlib.suppress(StatusUnavailable):
                await ask(reader, run_id_of(attempt))
        assert in_an_outage(attempt)
        local.end_outage()

    async with Supervisor(default(on_outage="warn", canary=None)) as supervisor:
        await supervisor.run(loop, **START)


async def _after(
    local: LocalTinker,
    given: RecoveryPolicy,
    *,
    status: int | None,
    for_s: float,
    rollback: bool,
    drain: bool = True,
) -> tuple[Supervisor, list[RecoveryEvent]]:
    """A run that is idle while the service is away."""
    events: list[RecoveryEvent] = []

    async def loop(attempt: Attempt) -> None:
        if attempt.number > 1:
            return await train(attempt, steps=STEPS)
        await train(attempt, steps=8)
        if drain:
            await attempt.client.drain()
        else:
            known = scope_of(attempt).run.checkpoints.canaries
            await until(lambda: known.expects(scope_of(attempt).id, 5))
        local.begin_outage(status=status, rollback=rollback)
        await until(lambda: in_an_outage(attempt))
        await anyio.sleep(for_s)
        local.end_outage()
        with anyio.move_on_after(10):
            await until(lambda: not in_an_outage(attempt))
        for step in range(8, STEPS):
            await one_step(attempt, step)
        return None

    with anyio.fail_after(60):
        async with Supervisor(given, on_event=events.append) as supervisor:
            await supervisor.run(loop, **START)
    return supervisor, events


@pytest.mark.parametrize("status", [None, 503])
async def test_going_back_to_a_save_whose_answer_was_still_on_its_way_is_noticed(
    local: LocalTinker, status: int | None
) -> None:
    """The service has stored it, and asked there the canary has answered; the client knew neither.

    So the weights answer as at no step that was known to be stored before the outage.
    """
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("slow", 5, "retrieve_future", polled="save_weights", delay_s=30.0))
    with anyio.fail_after(30):
        supervisor, _ = await _after(
            local,
            default(poll_interval_s=0.05),
            status=status,
            for_s=0.2,
            rollback=True,
            drain=False,
        )
    (run,) = supervisor.runs
    assert [recovery.fault.kind for recovery in run.recoveries] == [Kind.ROLLED_BACK]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("canary", ["auto", None])
@pytest.mark.parametrize("on_outage", ["recover", "warn"])
async def test_a_restart_that_nothing_but_a_save_meets_is_noticed_once_that_has_failed(
    local: LocalTinker, canary: Any, on_outage: Any
) -> None:
    """Quicker than any request is sent again: the loop goes on before it is known."""
    expected = await undisturbed_state(local, steps=STEPS)
    local.inject(FaultRule("slow", 5, "retrieve_future", polled="save_weights", delay_s=30.0))
    events: list[RecoveryEvent] = []
    failed = anyio.Event()

    def told(event: RecoveryEvent) -> None:
        events.append(event)
        if event.name == names.EVENT_CHECKPOINT_SAVE_FAILED:
            failed.set()

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 8 and attempt.number == 1:
                await until(lambda: local.checkpoints(attempt.client.model_id)[-1].steps == 5)
                local.begin_outage(status=None, rollback=True)
                local.end_outage()
            await one_step(attempt, step)
            if step == 9 and attempt.number == 1:
                await failed.wait()

    given = default(canary=canary, on_outage=on_outage)
    with anyio.fail_after(30):
        async with Supervisor(given, on_event=told) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    if on_outage == "warn":
        assert run.recoveries == []
        assert UNKNOWN in {event.name for event in events}
        return
    assert [recovery.fault.kind for recovery in run.recoveries] == [Kind.ROLLED_BACK]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("on_outage", ["recover", "warn"])
async def test_what_was_saved_behind_a_canary_that_a_restart_has_lost_is_not_gone_back_to(
    local: LocalTinker, on_outage: Any
) -> None:
    """Its answer is late, so by then the loop has saved what it made of the older weights."""
    expected = await undisturbed_state(local, steps=STEPS)
    slow = FaultRule("slow", 5, "retrieve_future", polled="forward_backward", delay_s=3.0)
    local.inject(replace(slow, delay_s=30.0))

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 5 and attempt.number == 1:
                await until(lambda: len(local.fired) == 1)  # the save and its canary are sent
            if step == 8 and attempt.number == 1:
                local.begin_outage(status=None, rollback=True)
                local.inject(slow)
                local.end_outage()
                await until(lambda: len(local.fired) == 2)  # it is asked for again
            await one_step(attempt, step)
            if step == 10 and attempt.number == 1:
                await until(lambda: "step-00000010" in _newest(local, attempt))
                await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with Supervisor(default(on_outage=on_outage)) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


def _newest(local: LocalTinker, attempt: Attempt) -> str:
    return local.checkpoints(attempt.client.model_id)[-1].path


@pytest.mark.parametrize("canary", ["auto", None])
@pytest.mark.parametrize("late", [False, True])
async def test_also_where_it_fails_as_the_loop_ends_or_after_that(
    local: LocalTinker, canary: Any, *, late: bool
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    slow = FaultRule("slow", 10, "retrieve_future", polled="save_weights", delay_s=30.0)
    local.inject(slow)

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 11 and attempt.number == 1:
                await until(lambda: local.checkpoints(attempt.client.model_id)[-1].steps == 10)
                local.begin_outage(status=None, rollback=True)
                if late:
                    local.inject(replace(slow, delay_s=2.0))
                local.end_outage()
                if late:
                    await until(lambda: len(local.fired) == 2)  # it is asked for again
            await one_step(attempt, step)

    with anyio.fail_after(30):
        async with Supervisor(default(canary=canary)) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [recovery.fault.kind for recovery in run.recoveries] == [Kind.ROLLED_BACK]
    assert local.run_state(run.segments[-1].run_id) == expected


UNKNOWN = "recovery.weights_unknown"


async def test_without_a_canary_connections_refused_for_longer_than_a_moment_have_the_run_go_back(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    given = default(canary=None, poll_interval_s=0.2)
    supervisor, _ = await _after(local, given, status=None, for_s=1.5, rollback=True)
    (run,) = supervisor.runs
    (recovery,) = run.recoveries
    assert recovery.fault.kind is Kind.ROLLED_BACK
    assert "refused connections for" in str(recovery.fault.error)
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_or_have_it_warned_of_where_that_is_wanted(local: LocalTinker) -> None:
    given = default(canary=None, poll_interval_s=0.2, on_outage="warn")
    supervisor, events = await _after(local, given, status=None, for_s=1.5, rollback=True)
    assert supervisor.runs[0].recoveries == []
    (said,) = [event for event in events if event.name == UNKNOWN]
    assert "since step 5" in said.message


async def test_going_back_to_a_save_of_the_users_own_inside_an_iteration_is_not_silent(
    local: LocalTinker,
) -> None:
    """The canary is not asked there, as these weights are of no step: so nothing can tell."""
    events: list[RecoveryEvent] = []

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, 4):
            await one_step(attempt, step)
            if step == 2:
                await attempt.client.save_state("inside")
            await one_step(attempt, step)
        await attempt.client.drain()
        local.begin_outage(status=503, rollback=True)
        await until(lambda: in_an_outage(attempt))
        await anyio.sleep(1.2 * MOMENT_S)
        local.end_outage()
        await until(lambda: not in_an_outage(attempt))

    async with Supervisor(default(poll_interval_s=0.05), on_event=events.append) as supervisor:
        with anyio.fail_after(30):
            await supervisor.run(loop, **START, updates_per_step=2)
    assert supervisor.runs[0].recoveries == []
    assert [event.name for event in events].count(UNKNOWN) == 1


@pytest.mark.parametrize("saving", [False, True])
async def test_a_restart_that_only_the_sdks_own_requests_meet_costs_no_bit(
    tmp_path: Path, local: LocalTinker, *, saving: bool
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    met: list[Unreached] = []
    async with LocalTinker(tmp_path, restart="rollback") as server:

        async def come_back() -> None:
            await until(lambda: "refused" in met)
            await anyio.to_thread.run_sync(server.end_outage)

        async def strike(attempt: Attempt) -> None:
            await attempt.client.drain()
            server.begin_outage()
            async with anyio.create_task_group() as group:
                group.start_soon(come_back)
                # Sent again by the SDK until it is carried out, by older weights.
                if saving:
                    await attempt.client.save_state("by-hand")
                await one_step(attempt, 8)

        async def loop(attempt: Attempt) -> None:
            for step in range(attempt.start_step, STEPS):
                if step == 8 and attempt.number == 1:
                    await strike(attempt)
                else:
                    await one_step(attempt, step)

        async with Supervisor(default(), service=server.service) as supervisor:
            with sdk_requests.listening(server.base_url, met.append):
                await supervisor.run(loop, **START)
        (run,) = supervisor.runs
        assert [recovery.fault.kind for recovery in run.recoveries] == [Kind.ROLLED_BACK]
        assert server.run_state(run.segments[-1].run_id) == expected


async def test_a_save_that_older_weights_carried_out_is_not_gone_back_to(
    tmp_path: Path, local: LocalTinker
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    async with LocalTinker(tmp_path, restart="rollback") as server:

        async def loop(attempt: Attempt) -> None:
            for step in range(attempt.start_step, STEPS):
                if step == 9 and attempt.number == 1:
                    await anyio.sleep(1.5)  # until retention asks nothing any more
                if step == 10 and attempt.number == 1:
                    # The save of step 10 is due, and sent once the loop is found to wait.
                    server.crash(0.3)
                    await anyio.sleep(4 * IDLE_S)
                    await until(lambda: len(server.checkpoints(attempt.client.model_id)) > 2)
                await one_step(attempt, step)

        async with Supervisor(default(), service=server.service) as supervisor:
            await supervisor.run(loop, **START)
        (run,) = supervisor.runs
        assert [attempt.start_step for attempt in run.attempts] == [0, 5]
        assert server.run_state(run.segments[-1].run_id) == expected


async def test_weights_taken_for_much_older_ones_cost_no_more_than_the_steps_since_the_last_save(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a model that has converged answers by chance what it answered at the beginning.

    The canary has answered otherwise on what was saved since, so that is what it should be.
    """
    expected = await undisturbed_state(local, steps=STEPS)
    mistakes: list[tuple[Match, int | None]] = [(Match.SAME, 0)]
    older = CanaryBook.older

    def mistaken(book: CanaryBook, *asked: Any) -> tuple[Match, int | None]:
        return mistakes.pop() if mistakes else older(book, *asked)

    monkeypatch.setattr(CanaryBook, "older", mistaken)

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 8 and attempt.number == 1:
                await attempt.client.drain()
                local.begin_outage(status=503)
                await anyio.sleep(0.5)
                local.end_outage()
                await until(lambda: not mistakes)
            await one_step(attempt, step)

    async with Supervisor(default(poll_interval_s=0.1)) as supervisor:
        await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected


async def test_without_a_canary_an_idle_connection_that_was_closed_is_warned_of_once(
    tmp_path: Path,
) -> None:
    events: list[RecoveryEvent] = []

    async with LocalTinker(tmp_path, restart="rollback") as server:

        async def loop(attempt: Attempt) -> None:
            for step in range(STEPS):
                if step in {6, 8}:
                    await attempt.client.drain()
                    server.crash(0.3)
                    await anyio.sleep(2 * IDLE_S)
                await one_step(attempt, step)

        async with Supervisor(
            default(canary=None), service=server.service, on_event=events.append
        ) as supervisor:
            await supervisor.run(loop, **START)
    assert supervisor.runs[0].recoveries == []
    (said,) = [event for event in events if event.name == UNKNOWN]
    assert "and may have been restarted" in said.message
    assert "since step 5" in said.message


@pytest.mark.parametrize("canary", ["auto", None])
async def test_a_proxys_503_with_nothing_under_way_never_rewinds_a_healthy_run(
    local: LocalTinker, canary: Any
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    given = default(canary=canary, poll_interval_s=0.2)
    supervisor, events = await _after(local, given, status=503, for_s=1.5, rollback=False)
    (run,) = supervisor.runs
    assert run.recoveries == []
    assert local.run_state(run.segments[-1].run_id) == expected
    assert len([event for event in events if event.name == UNKNOWN]) == (canary is None)


async def test_on_a_noisy_service_a_return_to_older_weights_is_recognised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with LocalTinker(dialect="noisy") as noisy:
        monkeypatch.setenv("TINKER_BASE_URL", noisy.base_url)
        monkeypatch.setenv("TINKER_API_KEY", noisy.api_key)
        expected = await undisturbed_state(noisy, steps=STEPS)
        supervisor, _ = await _after(
            noisy, default(poll_interval_s=0.2), status=503, for_s=0.1, rollback=True
        )
        (run,) = supervisor.runs
        assert [recovery.fault.kind for recovery in run.recoveries] == [Kind.ROLLED_BACK]
        assert noisy.run_state(run.segments[-1].run_id) == expected


async def test_a_return_to_a_save_of_the_loops_own_is_recognised_as_well(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)

    async def loop(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            await one_step(attempt, step)
            if attempt.number == 1 and step == 6:
                await attempt.client.save_state("by-hand")
            if attempt.number == 1 and step == 8:
                await attempt.client.drain()
                local.begin_outage(status=503, rollback=True)
                await until(lambda: in_an_outage(attempt))
                local.end_outage()
                await until(lambda: not in_an_outage(attempt))

    with anyio.fail_after(60):
        async with Supervisor(default(poll_interval_s=0.2)) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 7]
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize("how", ["an answer", "no answer"])
async def test_a_poll_vouches_for_no_save_that_was_stored_after_it_was_asked(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Its answer is of the moment in which the service wrote it, and may be long under way."""
    asked, stored, ended = anyio.Event(), anyio.Event(), anyio.Event()
    confirmed: list[int] = []
    read = StatusReader.run

    async def late(reader: StatusReader, run_id: str) -> Any:
        status = await read(reader, run_id)
        if not confirmed:
            return status
        if asked.is_set():
            await anyio.sleep_forever()  # the next one is of a later moment
        began_s = time.monotonic()
        asked.set()
        await stored.wait()
        if how == "no answer":
            reader.http.unreachable("silent", time.monotonic() - began_s)
            raise StatusUnavailable("late")
        return status

    monkeypatch.setattr(StatusReader, "run", late)

    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=5)
        await until(lambda: confirmed_step(attempt) == 5)
        confirmed.append(confirmed_step(attempt))
        await asked.wait()
        rollbacks = scope_of(attempt).run.rollbacks
        for step in range(5, 10):
            await one_step(attempt, step)
        await until(lambda: len(local.checkpoints(attempt.client.model_id)) > 2)
        await attempt.client.drain()
        polls = local.stats.by_route["training_run"]
        stored.set()
        await until(lambda: local.stats.by_route["training_run"] > polls or in_an_outage(attempt))
        confirmed.append(confirmed_step(attempt) if how == "an answer" else int(rollbacks.sound_to))
        ended.set()

    monkeypatch.setattr(RollbackDetector, "_can_be_looked_into", lambda *_: False)
    async with Supervisor(default(poll_interval_s=0.05, status_timeout_s=2.0)) as supervisor:
        await supervisor.run(loop, **START)
    assert ended.is_set()
    assert confirmed == [5, 5]


async def test_the_last_look_at_the_weights_ends_with_the_deadline_of_a_restore(
    local: LocalTinker,
) -> None:
    async def loop(attempt: Attempt) -> None:
        await train(attempt, steps=2)
        await attempt.client.drain()
        local.inject(FaultRule("hang", request="forward_backward"))
        scope_of(attempt).run.rollbacks.note_unreachable(scope_of(attempt), "silent")

    # Without a save of the end, whose own canary would be waited for as any request is.
    given = default(stall_after_s="off", create_timeout_s=0.5).model_copy(
        update={"checkpoints": CheckpointPolicy(save_at_end=False)}
    )
    with anyio.fail_after(20):
        async with Supervisor(given) as supervisor:
            await supervisor.run(loop, **START)


@pytest.mark.parametrize(("refused_s", "starts"), [(MOMENT_S, [0, 0]), (0.0, [0])])
async def test_a_last_look_that_the_service_refuses_is_decided_as_without_a_canary(
    local: LocalTinker, refused_s: float, starts: list[int]
) -> None:
    expected = await undisturbed_state(local, steps=2)
    events: list[RecoveryEvent] = []
    passed_s = 0.0

    async def loop(attempt: Attempt) -> None:
        nonlocal passed_s
        await train(attempt, steps=2)
        if attempt.number == 1:
            await attempt.client.drain()
            local.inject(FaultRule("fail", request="forward_backward", category="user"))
            rollbacks = scope_of(attempt).run.rollbacks
            rollbacks.note_unreachable(scope_of(attempt), "refused")
            passed_s += refused_s
            rollbacks.note_unreachable(scope_of(attempt), "refused")

    given = default(stall_after_s="off").model_copy(
        update={"checkpoints": CheckpointPolicy(save_at_end=False)}
    )
    clock = Clock(monotonic=lambda: time.monotonic() + passed_s)
    async with Supervisor(given, on_event=events.append, clock=clock) as supervisor:
        await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [each.start_step for each in run.attempts] == starts
    unknown = [each for each in events if each.name == names.EVENT_WEIGHTS_UNKNOWN]
    assert len(unknown) == (not refused_s), "where it does not go back, it says so"
    assert local.run_state(run.segments[-1].run_id) == expected


@pytest.mark.parametrize(
    ("how", "lasted_s", "on_outage", "starts"),
    [
        ("refused", 0.0, "recover", [0, 5]),
        ("down", 0.0, "recover", [0, 5]),
        ("silent", 0.0, "recover", [0]),
        ("silent", LONG_S - 0.1, "recover", [0]),
        ("silent", LONG_S, "recover", [0, 5]),
        ("refused", 0.0, "warn", [0]),
    ],
)
async def test_an_outage_met_with_requests_under_way_is_gone_back_from_if_it_may_be_a_restart(
    local: LocalTinker, how: Unreached, lasted_s: float, on_outage: str, starts: list[int]
) -> None:
    """They may have been applied to older weights, and then no answer is one that is known."""
    expected = await undisturbed_state(local, steps=STEPS)
    events: list[RecoveryEvent] = []
    passed_s = 0.0

    async def loop(attempt: Attempt) -> None:
        nonlocal passed_s
        for step in range(attempt.start_step, STEPS):
            if attempt.number == 1 and step == 8:
                local.inject(FaultRule("slow", request="retrieve_future", delay_s=0.5, times=2))
                async with anyio.create_task_group() as group:
                    group.start_soon(one_step, attempt, step)
                    await until(lambda: attempt.client.open_requests == 2)
                    rollbacks = scope_of(attempt).run.rollbacks
                    rollbacks.note_unreachable(scope_of(attempt), how)
                    passed_s += lasted_s
                    rollbacks.note_unreachable(scope_of(attempt), how)
                await until(lambda: not in_an_outage(attempt))
            else:
                await one_step(attempt, step)

    clock = Clock(monotonic=lambda: time.monotonic() + passed_s)
    with anyio.fail_after(60):
        given = default(poll_interval_s=0.2, on_outage=on_outage)
        async with Supervisor(given, clock=clock, on_event=events.append) as supervisor:
            await supervisor.run(loop, **START)
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == starts
    said = [event for event in events if event.name == UNKNOWN]
    # That it stays is never silent: nothing can tell which weights they were applied to.
    assert len(said) == (starts == [0])
    assert local.run_state(run.segments[-1].run_id) == expected
