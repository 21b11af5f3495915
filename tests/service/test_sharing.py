"""Many who ask for the same at once: few readings, and none that is older than its asking."""

from __future__ import annotations

import asyncio

import pytest
from loops import MODEL, policy, train

from tinker_recovery import CheckpointPolicy, Supervisor
from tinker_recovery.service.sharing import Shared
from tinker_recovery.testing import FaultRule, LocalTinker


class Source:
    """What is read: a number that grows."""

    def __init__(self) -> None:
        self.now = 0
        self.readings = 0
        self.running = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def read(self) -> int:
        self.readings += 1
        self.running += 1
        found = self.now
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return found


async def _turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_asks_during_a_reading_shares_the_next_and_sees_all_there_was_by_then() -> None:
    source = Source()
    shared = Shared(source.read)
    first = asyncio.create_task(shared.get())
    await _turns()
    source.now = 1
    later = [asyncio.create_task(shared.get()) for _ in range(20)]
    await _turns()
    assert source.readings == 1
    source.go.set()
    assert await first == 0
    assert set(await asyncio.gather(*later)) == {1}
    assert source.readings == 2
    source.now = 2
    assert await shared.get() == 2


async def test_one_that_is_cancelled_takes_the_reading_from_no_other_and_the_last_ends_it() -> None:
    source = Source()
    shared = Shared(source.read)
    one, other, waits = (asyncio.create_task(shared.get()) for _ in range(3))
    await _turns()
    one.cancel()
    waits.cancel()
    await _turns()
    assert (one.cancelled(), waits.cancelled(), source.running) == (True, True, 1)
    other.cancel()
    await _turns()
    assert source.running == 0
    source.go.set()
    assert await shared.get() == 0
    assert source.readings == 2


async def test_a_reading_that_fails_fails_for_all_who_share_it_and_for_nobody_later() -> None:
    source = Source()
    shared = Shared(source.read)
    source.go.set()
    source.error = ValueError("no")
    asked = [asyncio.create_task(shared.get()) for _ in range(3)]
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(each) for each in done] == [ValueError] * 3
    source.error = None
    assert await shared.get() == 0


async def test_one_that_waits_for_its_turn_and_is_cancelled_leaves_the_turn_to_the_next() -> None:
    source = Source()
    shared = Shared(source.read)
    first = asyncio.create_task(shared.get())
    await _turns()
    second = asyncio.create_task(shared.get())
    await _turns()
    second.cancel()
    await _turns()
    source.now = 1
    third = asyncio.create_task(shared.get())
    await _turns()
    source.go.set()
    assert (await first, await third, source.readings) == (0, 1, 2)


@pytest.mark.timeout(120)
async def test_runs_that_begin_together_read_the_list_of_all_checkpoints_a_few_times_alone(
    local: LocalTinker,
) -> None:
    count = 12

    async def one(supervisor: Supervisor, number: int) -> None:
        await supervisor.run(
            lambda attempt: train(attempt, steps=2),
            name=f"together-{number}",
            base_model=MODEL,
            rank=8,
        )

    # As from a service far away with a long list: long enough for all of them to ask meanwhile.
    local.inject(FaultRule("slow", request="checkpoints", times=count, delay_s=2.0))
    given = policy(checkpoints=CheckpointPolicy(save_every=1))
    async with Supervisor(given) as supervisor:
        await asyncio.gather(*(one(supervisor, number) for number in range(count)))
    assert 1 <= local.stats.by_route["checkpoints"] <= count // 2
