"""A client loaded from each new checkpoint, so that a fault costs neither a session nor a load."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from inspection import spare_of, status_reader
from loops import ADAM, MODEL, SEED, batch, policy, undisturbed_state, until

from tinker_recovery import (
    Attempt,
    Kind,
    RecoveryEvent,
    RecoveryPolicy,
    Run,
    Supervisor,
)
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.recovery.spares import Spares
from tinker_recovery.testing import FaultRule, LocalTinker

STEPS = 12
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}


def with_spares(**changes: Any) -> RecoveryPolicy:
    return policy(**({"standby": "loaded", "canary": "auto"} | changes))


async def trained(
    local: LocalTinker,
    at_8: Callable[[str], Any] = str,
    *,
    name: str | None = None,
    waits: bool = True,
    **changes: Any,
) -> tuple[Run, list[str]]:
    """A run that faults at step 8 of its first attempt, and what became of its spares.

    ``at_8`` is called with the Tinker run of the spare, which is loaded from step 5 by then.
    """
    said: list[str] = []

    def note(event: RecoveryEvent) -> None:
        if event.name == "recovery.client_created":
            said.append(event.message)

    async def train(attempt: Attempt) -> None:
        for step in range(attempt.start_step, STEPS):
            if step == 8 and attempt.number == 1:
                await attempt.client.drain()
                spare = ("", "")
                if waits:
                    await until(lambda: spare_of(supervisor, run_name) is not None)
                    spare = spare_of(supervisor, run_name) or spare
                    assert "/weights/" in spare[0]
                outcome = at_8(spare[1])
                if isawaitable(outcome):
                    await outcome
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
        if waits and attempt.number > 1:
            # Nothing is being opened as the server goes, which would keep its thread.
            await until(lambda: spare_of(supervisor, run_name) is not None)

    run_name = ""
    given = with_spares(**changes)
    async with Supervisor(given, service=local.service, on_event=note) as supervisor:
        start = START if name is None else START | {"name": name}
        async for attempt in supervisor.attempts(**start):
            run_name = supervisor.runs[0].name
            async with attempt:
                await train(attempt)
    return supervisor.runs[0], [each for each in said if "spare client takes over" in each]


@pytest.mark.parametrize("name", [None, "spared"])
async def test_it_takes_over_without_a_load_and_costs_no_bit(
    local: LocalTinker, name: str | None
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=8)
    run, took_over = await trained(local, name=name)
    assert [each.start_step for each in run.attempts] == [0, 5]
    assert took_over == [f"its spare client takes over: Tinker run {run.segments[-1].run_id}"]
    assert local.run_state(run.segments[-1].run_id) == expected
    # The fixture sees to it that no session is left open, of a spare neither.


async def test_one_that_fails_is_done_without_and_its_checkpoint_is_none_the_worse(
    local: LocalTinker,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)

    def both_fail(spare: str) -> None:
        local.fail_session(spare.partition(":train:")[0])
        local.inject(FaultRule("fail", None, "forward_backward", times=1))

    run, took_over = await trained(local, both_fail, max_attempts=1)
    assert [each.start_step for each in run.attempts] == [0, 5]
    assert local.run_state(run.segments[-1].run_id) == expected
    assert len(took_over) <= 1, "it was tried, and not used"


async def test_one_whose_weights_the_service_has_lost_is_never_trained_on(
    local: LocalTinker, tmp_path: Path
) -> None:
    """Or may have: what it kept of the optimizer, no canary shows."""
    expected = await undisturbed_state(local, steps=STEPS)
    spares: list[str] = []
    async with LocalTinker(tmp_path, restart="rollback") as server:

        async def crash(spare: str) -> None:
            spares.append(spare)
            server.crash(0.3)
            await anyio.sleep(1.0)

        run, _ = await trained(server, crash)
        assert [each.fault.kind for each in run.recoveries] == [Kind.ROLLED_BACK]
        assert run.segments[-1].run_id != spares[0]
        assert server.run_state(run.segments[-1].run_id) == expected


async def test_one_is_closed_when_the_service_is_out_of_reach_whoever_finds_that_out(
    local: LocalTinker,
) -> None:
    """The requests of the SDK report it by a callback of the event loop, outside any task."""

    async def train(attempt: Attempt) -> None:
        for step in range(6):
            forward = attempt.client.forward_backward(batch(step), "cross_entropy")
            await attempt.client.optim_step(ADAM)
            await forward
        await until(lambda: spare_of(supervisor, "run") is not None)
        _, spare = spare_of(supervisor, "run") or ("", "")
        unreachable = status_reader(supervisor).http.unreachable
        asyncio.get_running_loop().call_soon(unreachable, "silent", 0.0)
        session = spare.partition(":train:")[0]
        await until(lambda: local.sessions()[session] != "active")
        assert spare_of(supervisor, "run") is None

    async with Supervisor(with_spares()) as supervisor:
        await supervisor.run(train, name="run", **START)


class _Backend:
    """Clients that are made when the test says so: which one is given away is all that counts."""

    def __init__(self) -> None:
        self.asked: list[anyio.Event] = []
        self.closed: list[int] = []

    async def connect(self, origin: object, **options: object) -> int:
        del origin, options
        number = len(self.asked)
        self.asked.append(anyio.Event())
        await self.asked[number].wait()
        return number

    async def close(self, connection: int, *said: object, deadline_s: float) -> None:
        del said, deadline_s
        self.closed.append(connection)


async def test_what_was_being_loaded_in_an_outage_is_not_used_though_it_is_wanted_again() -> None:
    """It may be from before the outage, and have lost what no canary shows."""
    backend = _Backend()
    async with anyio.create_task_group() as group:
        spares = Spares(cast("Any", backend), with_spares(), group.start_soon)
        spares.load("run", "path")
        await until(lambda: len(backend.asked) == 1)
        spares.distrust("run")
        spares.load("run", "path")
        spares.drop("other")
        await until(lambda: len(backend.asked) == 2)
        backend.asked[0].set()
        await until(lambda: backend.closed == [0])
        assert spares.take("run", "path") is None
        backend.asked[1].set()
        taken: list[object] = []

        def is_taken() -> bool:
            taken.append(spares.take("run", "path"))
            return taken[-1] is not None

        await until(is_taken)
        assert taken[-1] == 1
        await spares.aclose()
    assert backend.closed == [0]


async def test_one_is_there_for_its_own_checkpoint_until_the_next_has_been_loaded() -> None:
    backend = _Backend()
    async with anyio.create_task_group() as group:
        spares = Spares(cast("Any", backend), with_spares(), group.start_soon)
        spares.load("run", "first")
        await until(lambda: len(backend.asked) == 1)
        assert spares.take("run", "first") is None, "it is being loaded"
        backend.asked[0].set()
        await anyio.wait_all_tasks_blocked()
        spares.load("run", "second")
        await until(lambda: len(backend.asked) == 2)
        assert spares.take("run", "second") is None
        taken: list[object] = [spares.take("run", "first"), spares.take("run", "first")]
        assert taken == [0, None], "it is given away once"
        backend.asked[1].set()
        await until(lambda: backend.closed == [1])
        assert spares.take("run", "second") is None, "what is loaded for a run that recovers ends"
        await spares.aclose()


async def test_one_that_is_still_being_loaded_is_not_waited_for(tmp_path: Path) -> None:
    async with LocalTinker(tmp_path) as server:
        server.inject(FaultRule("slow", None, "load_weights", delay_s=30.0, times=1))
        server.poison(at_step=8)
        with anyio.fail_after(25):
            run, took_over = await trained(server, waits=False)
        assert [each.start_step for each in run.attempts] == [0, 5]
        assert took_over == []


async def test_without_a_canary_it_is_not_used(local: LocalTinker) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=8)
    run, took_over = await trained(local, canary=None)
    assert took_over == []
    assert local.run_state(run.segments[-1].run_id) == expected


def test_what_is_asked_of_the_spares_reaches_them_where_there_are_any() -> None:
    asked: list[tuple[str, ...]] = []
    kept = SimpleNamespace(
        load=lambda run, path: asked.append(("load", run, path)),
        distrust=lambda run: asked.append(("distrust", run)),
        drop=lambda run: asked.append(("drop", run)),
    )
    for spares in (None, kept):
        nothing: Any = None
        collaborators = Collaborators(
            policy(), nothing, nothing, nothing, spares=cast("Spares | None", spares)
        )
        collaborators.load_spare("r", None)
        collaborators.load_spare("r", "path")
        collaborators.distrust_spare("r")
        collaborators.drop_spare("r")
    assert asked == [("load", "r", "path"), ("distrust", "r"), ("drop", "r")]
