"""When the RetentionLoop collects, and what it does where that fails: at a service made up here."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from collected import START_S, World
from loops import until

from tinker_recovery import LeaseLost
from tinker_recovery.retention.loop import GAP_S, RETRY_S, RetentionLoop
from tinker_recovery.service.guard import Guard
from tinker_recovery.telemetry import metrics, names


class _Guard(Guard):
    """A claim that is there, and is not asked for at any service; it may be found to be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.held: Any = None
        self.error: Exception | None = None

    @property
    def claim(self) -> Any:
        return self.held

    async def check(self, *, for_certain: bool = False) -> None:
        del for_certain
        if self.error is not None:
            raise self.error


def claim(*, lost: bool = False) -> Any:
    made = SimpleNamespace(lost=anyio.Event())
    if lost:
        made.lost.set()
    return made


class Run(World):
    """A run as the loop sees it; of the clock, what was slept between two collections."""

    def __init__(self, *steps: int, name: str = "r", **policy: Any) -> None:
        super().__init__(*steps, **policy)
        self.name = name
        self.guard = _Guard()
        self.ended = False
        self.gaps: list[float] = []
        self.reminders = anyio.Event(), anyio.Event()
        self.gap_over = anyio.Event()

    async def _sleep(self, seconds: float) -> None:
        if seconds == GAP_S:
            self.gaps.append(seconds)
            await self.gap_over.wait()
            self.gap_over = anyio.Event()
        else:  # between two looks whether something has fallen due
            self.reminders[0].set()
            await self.reminders[1].wait()
            self.reminders = anyio.Event(), anyio.Event()

    async def end_gap(self) -> None:
        self.gap_over.set()
        await anyio.wait_all_tasks_blocked()

    async def remind(self) -> None:
        await self.reminders[0].wait()
        self.reminders[1].set()
        await anyio.wait_all_tasks_blocked()

    @asynccontextmanager
    async def loop(self, publishing: Any = None) -> AsyncIterator[RetentionLoop]:
        async with self.collaborators() as collaborators:
            yield RetentionLoop(collaborators, publishing)

    @asynccontextmanager
    async def served(self) -> AsyncIterator[RetentionLoop]:
        started: list[bool] = []
        child: Any = SimpleNamespace(started=lambda: started.append(True))
        async with self.loop() as loop, anyio.create_task_group() as group:
            group.start_soon(loop.serve, child)
            await anyio.wait_all_tasks_blocked()
            assert started == [True]
            yield loop
            group.cancel_scope.cancel()


def asked(loop: RetentionLoop, run: Run) -> None:
    loop.ask(run)  # type: ignore[arg-type]  # as far as the loop looks


async def collected(run: Run) -> None:
    """Wait until it rests behind a collection."""
    await until(lambda: bool(run.gaps))
    run.gaps.clear()


async def test_it_collects_once_for_each_time_it_is_asked_and_then_rests() -> None:
    run = Run(1, 2, 3)
    async with run.served() as loop:
        assert run.gaps == []
        asked(loop, run)
        await collected(run)
        assert run.steps() == [3]
        await run.end_gap()
        assert run.gaps == [], "nobody has asked again"
        run.save(4)
        asked(loop, run)
        await collected(run)
        assert run.steps() == [4]
        run.save(5)
        asked(loop, run)
        await anyio.wait_all_tasks_blocked()
        assert run.steps() == [4, 5], "it rests between two"
        await run.end_gap()
        await collected(run)
        assert run.steps() == [5]


@pytest.mark.parametrize(
    ("facts", "collects"),
    [
        ({}, True),
        ({"recovering": True}, False),
        ({"held": claim()}, True),
        ({"held": claim(), "released": True}, False),
        ({"released": True}, True),
    ],
)
async def test_nothing_is_collected_for_a_run_that_recovers_or_has_given_its_claim_free(
    facts: dict[str, Any], *, collects: bool
) -> None:
    run = Run(1, 2)
    run.recovering = facts.get("recovering", False)
    run.guard.held = facts.get("held")
    if facts.get("released"):
        run.guard.released.set()
    async with run.loop() as loop:
        for _ in range(2):
            asked(loop, run)
            await loop.settle(5.0)
        assert (run.steps() == [2]) == collects
        run.recovering, run.guard.held = False, None
        await loop.settle(5.0)
        assert (run.steps() == [2]) == collects, "it asks again once it has resumed"


async def test_what_a_run_owes_is_collected_before_its_claim_is_released_if_it_owes_any() -> None:
    run, other = Run(1, 2), Run(name="other")
    async with run.loop() as loop:
        await loop.settle_run(run, 5.0)  # type: ignore[arg-type]  # as far as the loop looks
        assert run.steps() == [1, 2]
        asked(loop, run)
        await loop.settle_run(other, 5.0)  # type: ignore[arg-type]  # the same
        assert run.steps() == [1, 2]
        await loop.settle_run(run, 5.0)  # type: ignore[arg-type]  # the same
        assert run.steps() == [2]
        run.save(3)
        await loop.settle(5.0)
        assert run.steps() == [2, 3], "it is owed no more"


async def test_one_failure_is_told_once_and_tried_again_when_it_is_due() -> None:
    run = Run(1, 2)
    run.guard.error = OSError("the disk is full")
    async with run.served() as loop:
        for _ in range(2):
            asked(loop, run)
            await collected(run)
            await run.end_gap()
        (told,) = run.said(names.EVENT_RETENTION_FAILED)
        assert told.fields == {names.ERROR_TYPE: "OSError"}
        run.guard.error = OSError("another")
        asked(loop, run)
        await collected(run)
        await run.end_gap()
        assert len(run.said(names.EVENT_RETENTION_FAILED)) == 2
        run.guard.error = None
        assert RETRY_S == 60.0
        run.now_s += RETRY_S - 1.0
        await run.remind()
        assert run.gaps == [], "it is not due"
        run.now_s += 1.0
        await run.remind()
        await collected(run)
        assert run.steps() == [2]
        await run.end_gap()
        run.now_s += 10 * RETRY_S
        await run.remind()
        assert run.gaps == [], "nothing is due any more"
        run.guard.error = OSError("another")
        run.save(3)
        asked(loop, run)
        await collected(run)
        assert len(run.said(names.EVENT_RETENTION_FAILED)) == 3, "since then it had succeeded"


async def test_a_run_that_has_ended_is_looked_at_no_more() -> None:
    run = Run(1, 2)
    run.guard.error = OSError("the disk is full")
    async with run.served() as loop:
        asked(loop, run)
        await collected(run)
        await run.end_gap()
        run.ended = True
        run.now_s += RETRY_S
        await run.remind()
        assert run.gaps == []


async def test_a_run_that_has_ended_takes_no_memory_any_more() -> None:
    host, run = Run(), Run(name="ended")
    async with host.loop() as loop:
        for ended in (False, True):
            run.ended = ended
            asked(loop, run)
            await loop.settle(5.0)
        left = weakref.ref(run)
        del run
        gc.collect()
        assert left() is None


async def test_the_next_run_of_a_name_has_its_first_failure_said() -> None:
    run = Run(1, 2)
    run.guard.error = OSError("the disk is full")
    async with run.loop() as loop:
        for ended in (True, False):
            run.ended = ended
            asked(loop, run)
            await loop.settle(5.0)
    assert len(run.said(names.EVENT_RETENTION_FAILED)) == 2


@pytest.mark.parametrize(
    ("ended", "held", "told"),
    [
        (True, None, False),
        (True, claim(), False),
        (True, claim(lost=True), True),
        (False, None, True),
    ],
)
async def test_that_a_run_is_no_longer_ours_is_told_unless_it_has_given_its_claim_free_itself(
    held: Any, *, ended: bool, told: bool
) -> None:
    run = Run(1, 2)
    run.ended, run.guard.held = ended, held
    run.guard.error = LeaseLost("another process has it", run="r")
    async with run.loop() as loop:
        asked(loop, run)
        await loop.settle(5.0)
    assert bool(run.said(names.EVENT_RETENTION_FAILED)) == told


async def test_a_collection_that_is_cut_short_is_owed_again() -> None:
    run = Run(1, 2)

    class _Hangs(_Guard):
        async def check(self, *, for_certain: bool = False) -> None:
            del for_certain
            await anyio.sleep_forever()

    run.guard = _Hangs()
    async with run.loop() as loop:
        asked(loop, run)
        await loop.settle(0.01)
        assert run.steps() == [1, 2]
        run.guard = _Guard()
        await loop.settle(5.0)
    assert run.steps() == [2]


async def test_a_lifetime_is_renewed_in_time_though_nobody_asks() -> None:
    run = Run(ttl_s=7200.0)
    newest = run.save(1, lives_s=7200.0)
    async with run.served() as loop:
        asked(loop, run)
        await collected(run)
        await run.end_gap()
        run.now_s = START_S + 3599.0
        await run.remind()
        assert run.lifetimes == []
        run.now_s += 1.0
        await run.remind()
        await collected(run)
    assert run.lifetimes == [(newest, 7200)]


async def test_what_is_due_stays_due_where_a_recovery_comes_between() -> None:
    run = Run(ttl_s=7200.0)
    newest = run.save(1, lives_s=7200.0)
    async with run.served() as loop:
        asked(loop, run)
        await collected(run)
        await run.end_gap()
        run.recovering = True
        asked(loop, run)
        await collected(run)
        await run.end_gap()
        run.recovering = False
        run.now_s = START_S + 3600.0
        await run.remind()
        await collected(run)
    assert run.lifetimes == [(newest, 7200)]


class _Publishing:
    """What publishes, and what it was asked for."""

    def __init__(self, kept: str) -> None:
        self.kept = kept
        self.log: list[str] = []

    def ask(self, run: Run) -> None:
        self.log.append(f"ask {run.name}")

    def keeps(self, run: Run) -> dict[str, str]:
        return {self.kept: f"to be published of {run.name}"}

    async def let_go(self, run: Run) -> None:
        self.log.append(f"let go {run.name}")

    def children(self) -> list[str]:
        return ["publisher"]

    async def settle(self) -> None:
        self.log.append("settle")

    async def aclose(self) -> None:
        self.log.append("close")


async def test_what_publishes_is_asked_with_the_collections_and_keeps_what_it_needs() -> None:
    run = Run(1, 2, 3)
    publishing = _Publishing(next(iter(run.stored)))
    async with run.loop(publishing) as loop:
        asked(loop, run)
        assert publishing.log == ["ask r"]
        assert [getattr(each, "id", each) for each in loop.children()] == ["retention", "publisher"]
        await loop.settle(5.0)
        assert run.steps() == [1, 3]
        assert publishing.log == ["ask r", "let go r", "settle"]
        await loop.aclose()
        assert publishing.log[-1] == "close"


async def test_where_nothing_is_published_there_is_this_loop_alone() -> None:
    async with Run().loop() as loop:
        assert [each.id for each in loop.children()] == ["retention"]
        await loop.settle(5.0)
        await loop.aclose()


async def test_how_many_checkpoints_are_kept_is_a_metric_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[tuple[str, int]] = []
    monkeypatch.setattr(metrics, "kept", lambda *said: kept.append(said))
    run = Run(1, 2, 3)
    async with run.loop() as loop:
        asked(loop, run)
        await loop.settle(5.0)
        run.guard.error = OSError("the disk is full")
        run.save(4)
        asked(loop, run)
        await loop.settle(5.0)
    assert kept == [("r", 1)], "and nothing is said of a collection that failed"
