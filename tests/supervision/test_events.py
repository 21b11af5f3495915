"""The events and log records of a supervisor."""

from __future__ import annotations

import logging

import pytest
from virtual import World

from tinker_recovery.supervision import (
    Backoff,
    ChildExited,
    CrashReport,
    RestartLimitReached,
    SupervisionEvent,
)

SLOW = Backoff(initial_s=1, max_s=1, jitter=0)


def summaries(world: World) -> list[tuple[str, str, int]]:
    return [
        (event.name.removeprefix("supervision."), event.child, event.incarnation)
        for event in world.events
    ]


async def test_the_life_of_a_child_from_start_to_restart_to_stop(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid], backoff=SLOW):
        kid.crash()
        await world.clock.sleep(2)
    assert summaries(world) == [
        ("child.started", "kid", 1),
        ("child.ready", "kid", 1),
        ("child.exited", "kid", 1),
        ("crash_report", "kid", 1),
        ("child.restart_scheduled", "kid", 1),
        ("child.started", "kid", 2),
        ("child.ready", "kid", 2),
        ("child.restarted", "kid", 2),
        ("child.exited", "kid", 2),
    ]
    assert {event.supervisor for event in world.events} == {"tree"}
    assert [event.at for event in world.events] == [0, 0, 0, 0, 0, 1, 1, 1, 2]


async def test_every_event_is_flat_attributes_of_plain_values(world: World) -> None:
    kid, slow = world.kid("kid"), world.kid("slow", stop_s=99)
    with pytest.raises(RestartLimitReached):
        async with world.tree([kid, slow.spec(shutdown=1.0)], max_restarts=1):
            for _ in range(2):
                kid.crash(OSError("disk full"))
                await world.clock.sleep(3)
    assert {event.name for event in world.events} == {
        "supervision.child.started",
        "supervision.child.ready",
        "supervision.child.exited",
        "supervision.crash_report",
        "supervision.child.restart_scheduled",
        "supervision.child.restarted",
        "supervision.child.stop_timed_out",
        "supervision.escalated",
    }
    for event in world.events:
        flat = event.as_attributes()
        assert flat["event.name"] == event.name
        assert flat["supervision.child"] == event.child
        assert all(type(value) in (str, int, float, bool) for value in flat.values())


async def test_a_crash_report_names_supervisor_context_reason_and_offender(world: World) -> None:
    kid = world.kid("kid", failing=[None, OSError("no port")])
    async with world.tree([kid.spec(restart="transient", shutdown="brutal_kill")]):
        kid.crash(OSError("disk full"))
        await world.clock.sleep(2)
    reports = [event for event in world.events if isinstance(event, CrashReport)]
    assert [report.as_attributes() for report in reports] == [
        {
            "event.name": "supervision.crash_report",
            "supervision.supervisor": "tree",
            "supervision.child": "kid",
            "supervision.incarnation": incarnation,
            "supervision.at": 0.0,
            "supervision.context": context,
            "supervision.reason.type": "OSError",
            "supervision.reason.message": reason,
            "supervision.restart": "transient",
            "supervision.shutdown": "brutal_kill",
            "supervision.type": "worker",
        }
        for incarnation, context, reason in [
            (1, "child_terminated", "disk full"),
            (2, "start_error", "no port"),
        ]
    ]


@pytest.mark.parametrize(
    ("how", "outcome"),
    [("finish", "normal"), ("crash", "crash"), ("stop", "shutdown"), ("ignore", "ignored")],
)
async def test_an_exit_says_how_it_came(world: World, how: str, outcome: str) -> None:
    kid = world.kid("kid", failing=["ignore"] if how == "ignore" else [])
    async with world.tree([kid.spec(restart="temporary")]):
        if how in ("finish", "crash"):
            getattr(kid, how)()
            await world.settle()
    (exit_,) = [event for event in world.events if isinstance(event, ChildExited)]
    assert exit_.outcome == outcome


async def test_a_listener_that_raises_is_logged_and_harmless(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    def listener(event: SupervisionEvent) -> None:
        raise KeyError(event.name)

    kid = world.kid("kid")
    async with world.tree([kid], on_event=listener):
        kid.crash()
        await world.settle()
        assert kid.starts == 2
    assert "on_event raised for supervision.child.exited; supervision continues" in caplog.text


async def test_without_a_listener_everything_works_the_same(world: World) -> None:
    kid = world.kid("kid")
    async with world.tree([kid], on_event=None):
        kid.crash()
        await world.settle()
        assert kid.starts == 2


async def test_a_crash_is_in_the_log_with_its_traceback(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    kid = world.kid("kid")
    with caplog.at_level(logging.ERROR):
        async with world.tree([kid]):
            kid.crash(OSError("disk full"))
            await world.settle()
    (record,) = caplog.records
    assert "supervisor tree: child kid (incarnation 1), child terminated" in record.message
    assert record.exc_info
