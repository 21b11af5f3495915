"""How recoveries wait for their slots, and how a mass incident is reported: no service needed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import TaskGroup

from tinker_recovery import RecoveryEvent
from tinker_recovery.clock import Clock
from tinker_recovery.faults import RULES, DetectedBy, Fault, Kind
from tinker_recovery.recovery.admission import MASS_RUNS, WINDOW_S, MassReporter, Slot, Slots
from tinker_recovery.telemetry import EventSink, names


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


class Backoffs:
    """Common backoffs that last until they are ended."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self._over = anyio.Event()

    async def sleep(self, seconds: float) -> None:
        self.asked.append(seconds)
        self._over = anyio.Event()
        await self._over.wait()

    async def end(self) -> None:
        self._over.set()
        await settle()


@asynccontextmanager
async def served(most: int) -> AsyncIterator[tuple[Slots, Backoffs, TaskGroup]]:
    """Slots that are served, with a backoff of ten seconds for each probe that failed."""
    backoffs = Backoffs()
    slots = Slots(most, backoff_s=lambda failed: 10.0 * failed, sleep=backoffs.sleep)
    async with anyio.create_task_group() as group:
        group.start_soon(slots.serve)
        await settle()
        yield slots, backoffs, group
        group.cancel_scope.cancel()


def _slot(slots: Slots, tries: int = 1) -> Slot:
    return slots.slot(left=3, detected_at=0.0, tries=tries)


async def test_a_slot_is_had_at_once_where_there_is_room_and_waited_for_where_there_is_none() -> (
    None
):
    async with served(1) as (slots, _, group):
        entered: list[int] = []

        async def second() -> None:
            async with _slot(slots):
                entered.append(2)

        async with _slot(slots) as first:
            entered.append(1)
            assert first.admitted.is_set()
            group.start_soon(second)
            await settle()
            assert entered == [1]
        await settle()
        assert entered == [1, 2]


async def test_a_wait_that_is_cancelled_gives_its_turn_to_the_next() -> None:
    async with served(1) as (slots, _, group):
        entered: list[str] = []
        patience = anyio.CancelScope()

        async def wait(name: str, scope: anyio.CancelScope) -> None:
            with scope:
                async with _slot(slots):
                    entered.append(name)

        async with _slot(slots):
            group.start_soon(wait, "impatient", patience)
            await settle()
            group.start_soon(wait, "patient", anyio.CancelScope())
            await settle()
            patience.cancel()
            await settle()
        await settle()
        assert entered == ["patient"]


async def test_a_probe_that_fails_is_followed_by_a_longer_common_backoff_and_another() -> None:
    async with served(4) as (slots, backoffs, group):
        slots.be_careful(careful=True)
        entered: list[int] = []
        blamed: list[bool] = []

        async def probe(number: int) -> None:
            slot = _slot(slots)
            async with slot:
                entered.append(number)
                if number < 2:
                    slot.failed()
                else:
                    slot.succeeded()
            blamed.append(slot.backend_blamed)

        for number in range(4):
            group.start_soon(probe, number)
        await settle()
        assert (entered, blamed, backoffs.asked) == ([0], [True], [10.0])
        await backoffs.end()
        assert (entered, blamed, backoffs.asked) == ([0, 1], [True, True], [10.0, 20.0])
        await backoffs.end()
        assert entered == [0, 1, 2, 3], "the third is well, so more may try"
        assert blamed == [True, True, False, False]


async def test_a_try_that_succeeds_lets_others_in_while_it_is_still_there() -> None:
    async with served(4) as (slots, _, group):
        slots.be_careful(careful=True)
        entered: list[int] = []

        async def other(number: int) -> None:
            async with _slot(slots):
                entered.append(number)
                await anyio.sleep_forever()

        async with _slot(slots) as probe:
            for number in range(4):
                group.start_soon(other, number)
            await settle()
            assert entered == []
            probe.succeeded()
            await settle()
            assert entered == [0]
            slots.be_careful(careful=False)
            await settle()
            assert entered == [0], "what the probe has shown is that two at once are not too many"
            probe.succeeded()
            await settle()
            assert entered == [0, 1]


async def test_outside_a_mass_incident_a_failure_is_the_runs_own_and_nobody_backs_off() -> None:
    async with served(1) as (slots, backoffs, _):
        async with _slot(slots) as slot:
            slot.failed()
            assert not slot.backend_blamed
        await settle()
        async with _slot(slots):
            assert backoffs.asked == []


# -- what is reported of a mass incident ---------------------------------------------------------


class Told:
    """A MassReporter over a clock that is set by hand, and what it has emitted."""

    def __init__(self, *, poll_interval_s: float = 5.0) -> None:
        self.now = 100.0
        self.events: list[RecoveryEvent] = []
        self.sink = EventSink(self.events.append)
        self.sink.quiet_runs.add("of an earlier incarnation")
        self.slots = Slots(4, backoff_s=lambda _: 0.0, sleep=lambda _: anyio.sleep_forever())
        self.reporter = MassReporter(
            self.slots,
            watched=lambda: 20,
            poll_interval_s=poll_interval_s,
            events=self.sink,
            clock=Clock(monotonic=lambda: self.now),
        )

    async def free(self) -> int:
        """How many slots could be had just now."""
        asked = [_slot(self.slots) for _ in range(6)]
        for slot in asked:
            self.slots.ask(slot)
        count = sum(slot.admitted.is_set() for slot in asked)
        for slot in reversed(asked):
            self.slots.leave(slot)
        return count


def _fault(number: int, kind: Kind = Kind.CORRUPTED) -> Fault:
    return Fault(
        run=f"r{number}",
        attempt=1,
        run_id=f"id{number}",
        rule=RULES[kind],
        detected_by=DetectedBy.POLL,
        step=1,
    )


async def test_a_mass_incident_is_reported_once_quiets_its_runs_and_ends_with_the_last() -> None:
    told = Told()
    for number in range(MASS_RUNS - 1):
        told.reporter.began(_fault(number))
    assert (told.events, told.sink.quiet_runs) == ([], set())
    assert await told.free() == 2
    told.now += 2.5
    told.reporter.began(_fault(MASS_RUNS - 1))
    (began,) = told.events
    assert began.name == names.EVENT_MASS_FAILURE
    assert began.fields[names.RUNS] == MASS_RUNS
    assert "10 of 20 runs failed alike (corrupted) within 2.5 s" in began.message
    assert told.sink.quiet_runs == {f"r{number}" for number in range(MASS_RUNS)}
    assert await told.free() == 1, "one goes ahead"
    told.reporter.began(_fault(MASS_RUNS))
    assert f"r{MASS_RUNS}" in told.sink.quiet_runs, "one that follows is part of it"
    told.reporter.began(_fault(99, Kind.SILENCE))
    assert "r99" not in told.sink.quiet_runs, "one that failed otherwise is not"
    for number in range(MASS_RUNS):
        told.reporter.ended(_fault(number), recovered=number > 0)
    assert told.sink.quiet_runs == {f"r{MASS_RUNS}"}
    assert told.events == [began]
    assert await told.free() == 1
    told.now += 1.0
    told.reporter.ended(_fault(MASS_RUNS), recovered=True)
    over = told.events[-1]
    assert over.name == names.EVENT_MASS_OVER
    assert "10 of the 11 runs" in over.message
    assert "3.5 s after the first failed" in over.message
    assert (over.fields[names.RUNS], over.fields[names.RECOVERIES]) == (11, 10)
    assert await told.free() == 2


@pytest.mark.parametrize("kind", [Kind.PROCESS_LOST, Kind.STOPPED, Kind.GROUP_REWOUND])
async def test_runs_that_were_lost_with_their_process_say_nothing_of_the_backend(
    kind: Kind,
) -> None:
    told = Told()
    for number in range(2 * MASS_RUNS):
        told.reporter.began(_fault(number, kind))
    assert (told.events, told.sink.quiet_runs) == ([], set())
    assert await told.free() == 2
    for number in range(2 * MASS_RUNS):
        told.reporter.ended(_fault(number, kind), recovered=True)
    assert told.events == []


async def test_while_another_mass_incident_lasts_recoveries_stay_careful() -> None:
    told = Told()
    for kind in (Kind.CORRUPTED, Kind.SILENCE):
        for number in range(MASS_RUNS):
            told.reporter.began(_fault(number, kind))
    for number in range(MASS_RUNS):
        told.reporter.ended(_fault(number, Kind.CORRUPTED), recovered=True)
    assert await told.free() == 1
    for number in range(MASS_RUNS):
        assert await told.free() == 1
        told.reporter.ended(_fault(number, Kind.SILENCE), recovered=True)
    assert await told.free() == 2


@pytest.mark.parametrize(("poll_interval_s", "alike"), [(5.0, False), (30.0, True)])
async def test_runs_that_one_poll_apart_have_failed_together(
    poll_interval_s: float,
    alike: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    told = Told(poll_interval_s=poll_interval_s)
    for number in range(MASS_RUNS):
        if number == MASS_RUNS - 1:
            told.now += 2 * WINDOW_S
        told.reporter.began(_fault(number))
    assert bool(told.events) == alike


async def test_a_mass_incident_with_one_run_left_is_not_over_with_another() -> None:
    told = Told()
    for kind in (Kind.CORRUPTED, Kind.SILENCE):
        for number in range(MASS_RUNS):
            told.reporter.began(_fault(number, kind))
    for number in range(MASS_RUNS - 1):
        told.reporter.ended(_fault(number, Kind.SILENCE), recovered=True)
    for number in range(MASS_RUNS):
        told.reporter.ended(_fault(number, Kind.CORRUPTED), recovered=True)
    assert await told.free() == 1


@pytest.mark.parametrize(("apart_s", "alike"), [(10.0, True), (10.5, False)])
async def test_runs_that_fail_within_ten_seconds_have_failed_together(
    apart_s: float,
    alike: bool,  # noqa: FBT001 - pytest's parameter
) -> None:
    told = Told()
    for number in range(MASS_RUNS):
        told.now += apart_s * (number == MASS_RUNS - 1)
        told.reporter.began(_fault(number))
    assert bool(told.events) == alike


async def test_the_end_of_a_mass_incident_lets_in_who_waits() -> None:
    async with served(4) as (slots, _, group):
        slots.be_careful(careful=True)
        entered: list[int] = []

        async def other() -> None:
            async with _slot(slots):
                entered.append(1)

        async with _slot(slots):
            group.start_soon(other)
            await settle()
            assert entered == []
            slots.be_careful(careful=False)
            await settle()
            assert entered == [1]


async def test_a_common_backoff_is_followed_by_no_other_unless_a_probe_fails() -> None:
    async with served(4) as (slots, backoffs, _):
        slots.be_careful(careful=True)
        async with _slot(slots) as slot:
            slot.failed()
        await settle()
        await backoffs.end()
        assert backoffs.asked == [10.0]


async def test_nothing_is_kept_of_a_wait_that_was_cancelled() -> None:
    async with served(1) as (slots, _, group), _slot(slots):
        kept: list[weakref.ref[Slot]] = []
        patience = anyio.CancelScope()

        async def wait() -> None:
            slot = _slot(slots)
            kept.append(weakref.ref(slot))
            with patience:
                async with slot:
                    raise AssertionError("there is no room")

        group.start_soon(wait)
        await settle()
        patience.cancel()
        await settle()
        gc.collect()
        assert [each() for each in kept] == [None]
