"""An outage is said as a person would: at growing intervals, and when it is over."""

from __future__ import annotations

from tinker_recovery import RecoveryEvent
from tinker_recovery.detection.outage import Outage
from tinker_recovery.telemetry import EventSink


class Hours:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _outage() -> tuple[Outage, Hours, list[RecoveryEvent]]:
    said, clock = list[RecoveryEvent](), Hours()
    return Outage(EventSink(said.append), clock, 3600.0), clock, said


def test_it_is_reported_at_growing_intervals_with_what_is_waited_for() -> None:
    outage, clock, said = _outage()
    outage.lasts("sft", 700.0)
    assert said == [], "it has answered so far"
    assert outage.begins() is True
    assert outage.begins() is False
    for _ in range(700):
        clock.now += 1
        outage.lasts("sft", clock.now - 1000 + 3)
    assert [each.message.partition(";")[0] for each in said] == [
        f"no step for {seconds + 3} s" for seconds in (5, 15, 35, 75, 155, 315, 635)
    ]
    assert said[0].message == (
        "no step for 8 s; the service does not answer; waiting up to 3600 s (max_wait_s)"
    )
    assert {(each.name, each.run) for each in said} == {("recovery.waiting", "sft")}


def test_its_end_is_said_once_with_how_long_it_was() -> None:
    outage, clock, said = _outage()
    outage.begins()
    clock.now += 71
    outage.over("sft")
    outage.over("sft")
    assert [(each.name, each.message) for each in said] == [
        ("service.back", "the service is back after 71 s")
    ]


def test_one_that_is_hardly_any_is_not_spoken_of() -> None:
    outage, clock, said = _outage()
    outage.begins()
    clock.now += 2
    outage.lasts("sft", None)
    outage.over("sft")
    assert said == []
    assert outage.begins(), "and the next is another"


def test_without_open_work_it_is_the_service_that_is_silent() -> None:
    outage, clock, said = _outage()
    outage.begins()
    clock.now += 40
    outage.lasts("", None)
    assert said[0].message.startswith("the service has not answered for 40 s; waiting up to")


def test_where_there_is_no_limit_to_the_waiting_none_is_said() -> None:
    clock = Hours()
    outage = Outage(EventSink(), clock)
    assert outage.waiting(40.0, silent_s=None) == "the service has not answered for 40 s"
    assert outage.waiting(40.0, silent_s=7.0) == "no step for 40 s; the service does not answer"
