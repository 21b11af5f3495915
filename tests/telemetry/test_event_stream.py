"""Events, as a stream of records and as structured log records."""

from __future__ import annotations

import asyncio
import functools
import logging

import anyio
import pytest
from inspection import logged_events, open_streams
from loops import MODEL, CrashAtDetection, policy, train

from tinker_recovery import Clock, RecoveryEvent, Supervisor, UsageError
from tinker_recovery.supervision import (
    ChildReady,
    ChildRestarted,
    ChildStarted,
    CrashReport,
    RestartScheduled,
    SupervisionEvent,
)
from tinker_recovery.telemetry import Event, EventsDropped, EventStream, names
from tinker_recovery.telemetry.stream import Streams
from tinker_recovery.testing import LocalTinker

STEPS = 12
LOG_RECORD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


def _event(number: int) -> RecoveryEvent:
    return RecoveryEvent(f"event-{number}", "sft", "")


async def _read(stream: EventStream) -> list[Event]:
    return [event async for event in stream]


async def test_every_consumer_gets_events_of_runs_and_the_tree_until_the_supervisor_is_left(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    listened: list[RecoveryEvent] = []
    async with (
        asyncio.TaskGroup() as group,
        Supervisor(policy(), on_event=listened.append) as chief,
    ):
        readers = [group.create_task(_read(chief.events())) for _ in range(2)]
        await chief.run(functools.partial(train, steps=STEPS), base_model=MODEL, name="sft")
    first, second = (reader.result() for reader in readers)
    assert first == second
    runs = [event for event in first if isinstance(event, RecoveryEvent)]
    assert runs == listened
    recovery = [event.name for event in runs if event.name.startswith("recovery.")]
    assert recovery == [
        names.EVENT_DETECTED,
        names.EVENT_STARTED,
        names.EVENT_CHECKPOINT_SELECTED,
        names.EVENT_CLIENT_CREATED,
        names.EVENT_COMPLETED,
    ]
    tree = [event for event in first if isinstance(event, SupervisionEvent)]
    assert {"monitor", "executor"} <= {event.child for event in tree}
    assert {type(event).__name__ for event in tree} == {"ChildExited"}


async def test_a_crash_of_the_executor_and_its_restart_are_in_the_stream_and_in_the_log(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    local.poison(at_step=7)
    crash = CrashAtDetection(RuntimeError("a defect of ours"))
    supervisor = Supervisor(policy(), clock=Clock(monotonic=crash.monotonic), on_event=crash.note)
    stream = supervisor.events()
    async with supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL)
    executors = [
        event
        for event in await _read(stream)
        if isinstance(event, SupervisionEvent) and event.child == "executor"
    ]
    kinds = [type(event) for event in executors]
    for kind in (ChildStarted, ChildReady, CrashReport, RestartScheduled, ChildRestarted):
        assert kind in kinds
    logged = [vars(record) for record in caplog.records if "event.name" in vars(record)]
    named = [record["event.name"] for record in logged]
    assert {event.name for event in executors} <= set(named)
    (report,) = (each for each in logged if each["event.name"] == CrashReport.name)
    assert report["supervision.child"] == "executor"
    assert report["supervision.reason.type"] == "ExceptionGroup"


def test_every_event_has_a_level_in_the_log() -> None:
    assert logged_events() == {
        value for name, value in vars(names).items() if name.startswith("EVENT_")
    }


async def test_log_records_carry_the_attributes_and_none_clashes_with_one_of_loggings_own(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "tinker_recovery")
    local.poison(at_step=7)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(functools.partial(train, steps=STEPS), base_model=MODEL, name="sft")
    ours = [vars(record) for record in caplog.records if record.name.startswith("tinker_recovery")]
    structured = [record for record in ours if "event.name" in record]
    (detected,) = (each for each in structured if each["event.name"] == names.EVENT_DETECTED)
    assert detected[names.RUN] == "sft"
    assert detected[names.FAULT_KIND] == "request_failed"
    assert detected["levelname"] == "WARNING"
    assert any(each["event.name"].startswith("supervision.") for each in structured)
    for record in structured:
        assert all("." in key for key in record.keys() - LOG_RECORD)


async def test_a_slow_consumer_loses_the_oldest_and_learns_how_many() -> None:
    streams = Streams()
    slow, quick = streams.new(3), streams.new(10)
    for number in range(5):
        streams.put(_event(number))
    assert await anext(slow) == EventsDropped(2)
    assert _name(await anext(slow)) == "event-2"
    for number in range(5, 8):
        streams.put(_event(number))
    assert await anext(slow) == EventsDropped(2)
    streams.end()
    assert [_name(event) for event in await _read(slow)] == ["event-5", "event-6", "event-7"]
    assert [_name(event) for event in await _read(quick)] == [f"event-{n}" for n in range(8)]


def _name(event: Event) -> str:
    assert isinstance(event, RecoveryEvent)
    return event.name


async def test_a_read_that_is_cancelled_takes_nothing() -> None:
    streams = Streams()
    stream = streams.new(3)
    with anyio.move_on_after(0):
        await anext(stream)
    streams.put(_event(1))
    with anyio.move_on_after(0):
        await anext(stream)
    reading = asyncio.create_task(anext(stream))
    assert _name(await reading) == "event-1"
    streams.end()
    assert await _read(stream) == []


async def test_two_tasks_on_one_stream_share_its_events_and_both_end() -> None:
    streams = Streams()
    stream = streams.new(10)
    async with asyncio.TaskGroup() as group:
        readers = [group.create_task(_read(stream)) for _ in range(2)]
        await anyio.lowlevel.checkpoint()
        for number in range(4):
            streams.put(_event(number))
        streams.end()
    got = [_name(event) for reader in readers for event in reader.result()]
    assert sorted(got) == [f"event-{number}" for number in range(4)]


async def test_an_unreferenced_stream_is_dropped_and_one_opened_too_late_is_at_its_end() -> None:
    streams = Streams()
    streams.new(3)
    assert not open_streams(streams)
    closed = streams.new(3)
    streams.put(_event(1))
    await closed.aclose()
    assert await _read(closed) == []
    streams.end()
    assert await _read(streams.new(3)) == []


def test_a_buffer_of_size_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="buffer=0"):
        Supervisor().events(buffer=0)
