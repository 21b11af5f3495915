"""After any faults in any order, the server itself still works."""

from __future__ import annotations

import contextlib

import anyio
import anyio.to_thread
import httpx
from hypothesis import given, settings
from wire import Wire, wired

from tinker_recovery.testing import FaultRule, LocalTinker
from tinker_recovery.testing.strategies import schedules

STEPS = 4


async def train(wire: Wire, run: str) -> None:
    for step in range(STEPS):
        await wire.forward_backward(run, 3 * step + 1, [step, 2, 3])
        await wire.result(await wire.optim_step(run, 3 * step + 2))
        await wire.result(await wire.save(run, 3 * step + 3, f"s{step}"))


async def suffer(server: LocalTinker) -> None:
    """A client that gives up at the first error, or after a moment."""
    with (
        contextlib.suppress(AssertionError, httpx.HTTPError, KeyError, ValueError),
        anyio.move_on_after(0.05),
    ):
        async with wired(server) as wire:
            run = await wire.create()
            await train(wire, run)
            await wire.load(1, f"tinker://{run}/weights/s0")
            await wire.get(f"training_runs/{run}")


async def test_after_any_faults_a_new_session_is_served_as_if_there_had_been_none() -> None:
    async with LocalTinker(long_poll_s=0.02) as server:
        async with wired(server) as wire:
            calm = await wire.create()
            await train(wire, calm)
        expected = server.run_state(calm)

        async def live_through(faults: list[FaultRule]) -> None:
            for rule in faults:
                server.inject(rule)
            await suffer(server)
            server.release()
            async with wired(server) as wire:
                run = await wire.create()
                await train(wire, run)
                assert server.run_state(run) == expected

        @settings(max_examples=15, deadline=None)
        @given(schedules(steps=range(STEPS)))
        def check(faults: list[FaultRule]) -> None:
            anyio.run(live_through, faults)

        await anyio.to_thread.run_sync(check)
