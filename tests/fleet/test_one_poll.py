"""What one poll asks, in which order and how fast, and what is said of it: at a service made up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from tinker_recovery import RecoveryEvent, StatusError, StatusRefused, StatusUnavailable
from tinker_recovery.clock import Clock
from tinker_recovery.detection.outage import REMIND_S
from tinker_recovery.detection.plan import FEW
from tinker_recovery.detection.poller import Poller, by_run_id
from tinker_recovery.service import Asked, RunStatus
from tinker_recovery.service.status import PAGE, FailedPage, RunPage
from tinker_recovery.telemetry import EventSink, names

MANY = FEW + 1


class Run:
    """A watched run, and what polls say of it."""

    def __init__(self, number: int) -> None:
        self.name = f"name-{number}"
        self.run_id = f"session-{number}:train:0"
        self.watched_run_id: str | None = self.run_id
        self.silent_s: float | None = None
        self.statuses: list[RunStatus] = []
        self.asked: list[Asked] = []
        self.failed: list[tuple[str, str]] = []

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        assert status.run_id == self.run_id
        self.statuses.append(status)
        self.asked.append(asked)

    def note_session_failed(self, run_id: str, message: str) -> None:
        self.failed.append((run_id, message))

    def check_silence(self) -> None:
        raise AssertionError("that is the Monitor's to do")


class Service:
    """A list of runs, newest first; each request is noted, and may fail."""

    def __init__(self, runs: int = 0) -> None:
        self.now_s = 0.0
        self.runs = [Run(number) for number in range(runs)]
        self.listed = [run.run_id for run in self.runs]
        self.requests: list[str] = []
        self.errors: dict[str, StatusError] = {}
        """What a request fails with, by its beginning."""
        self.failed: list[FailedPage] = []
        """What is answered to the search, page by page; then nothing more."""
        self.failure: dict[str, str] = {}
        """Why a session failed, by its run."""
        self.at_once = self.most_at_once = 0
        self.takes = 3
        """Turns of the event loop that a request takes."""
        self.answered = 0
        self.slept: list[float] = []
        self.before: Callable[[str], object] = lambda _: None
        self.http = SimpleNamespace(endpoint=SimpleNamespace(base_url="http://127.0.0.1:1"))
        self.events: list[RecoveryEvent] = []

    async def _asked(self, request: str) -> None:
        self.before(request)
        self.requests.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        for _ in range(self.takes):
            await anyio.lowlevel.checkpoint()
        self.at_once -= 1
        for beginning, error in self.errors.items():
            if request.startswith(beginning):
                raise error

    def service_now(self) -> float:
        return 1000.0 + self.now_s

    async def run(self, run_id: str) -> Any:
        await self._asked(f"run {run_id}")
        return SimpleNamespace(
            training_run_id=run_id, corrupted=False, base_model=None, lora_rank=None
        )

    async def run_page(self, offset: int) -> RunPage:
        await self._asked(f"page {offset}")
        page = [RunStatus(each, corrupted=False) for each in self.listed[offset : offset + PAGE]]
        return RunPage(page, len(self.listed))

    async def session_failure(self, run_id: str) -> str | None:
        await self._asked(f"session of {run_id}")
        return self.failure.get(run_id)

    async def failed_sessions(self, cursor: Any) -> FailedPage:
        await self._asked(f"search {cursor}")
        return self.failed.pop(0) if self.failed else FailedPage({}, None)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await anyio.lowlevel.checkpoint()

    def _count(self) -> None:
        self.answered += 1

    def poller(self, interval_s: float = 0.0) -> Poller:
        clock = Clock(monotonic=lambda: self.now_s, sleep=self._sleep)
        reader: Any = self
        sink = EventSink(self.events.append)
        return Poller(reader, interval_s=interval_s, events=sink, clock=clock, answered=self._count)

    def of(self, kind: str) -> list[str]:
        return [each for each in self.requests if each.startswith(kind)]

    def said(self, name: str) -> list[RecoveryEvent]:
        return [event for event in self.events if event.name == name]


def missing() -> StatusRefused:
    return StatusRefused("there is no such route", status_code=404)


@pytest.mark.parametrize("count", [0, 1, FEW])
async def test_a_few_are_asked_for_one_by_one_each_with_its_session(count: int) -> None:
    service = Service(count)
    service.failure = {run.run_id: "the node is gone" for run in service.runs[:1]}
    faults = await service.poller().poll(by_run_id(service.runs))
    assert (len(service.of("run")), len(service.of("session"))) == (count, count)
    assert len(service.requests) == service.answered == 2 * count
    assert [len(run.statuses) for run in service.runs] == [1] * count
    for number, run in enumerate(service.runs):
        assert run.failed == ([(run.run_id, "the node is gone")] if number == 0 else [])
    assert (faults, service.events) == (0, [])


async def test_more_are_read_by_pages_and_their_failed_sessions_in_one_search() -> None:
    service = Service(MANY)
    service.failed = [FailedPage({"session-3": "the node is gone", "another": "x"}, None)]
    faults = await service.poller().poll(by_run_id(service.runs))
    assert service.requests == ["page 0", "search None"]
    assert service.answered == 2
    assert all(len(run.statuses) == 1 for run in service.runs)
    assert [run.name for run in service.runs if run.failed] == ["name-3"]
    assert service.runs[3].failed == [(service.runs[3].run_id, "the node is gone")]
    assert faults == 0


async def test_the_runs_that_have_gone_from_under_their_id_meanwhile_are_those_at_fault() -> None:
    service = Service(3)
    watched = by_run_id(service.runs)
    service.runs[0].watched_run_id = None
    service.runs[1].watched_run_id = "the next"
    assert await service.poller().poll(watched) == 2
    assert list(by_run_id(service.runs)) == ["the next", service.runs[2].run_id]


async def test_a_look_in_between_asks_for_the_status_alone_and_reports_no_failure() -> None:
    service = Service(2)
    service.errors["run session-0"] = StatusUnavailable("refused")
    poller = service.poller()
    await poller.look(by_run_id(service.runs))
    assert len(service.requests) == len(service.of("run")) == service.answered == 2
    assert [len(run.statuses) for run in service.runs] == [0, 1]
    assert (service.events, poller.out_of_reach) == ([], False)


@pytest.mark.parametrize("count", [1, MANY])
async def test_a_status_has_the_time_at_which_it_was_asked_for(count: int) -> None:
    service = Service(count)
    service.now_s = 7.0

    def tick(_: str) -> None:
        service.now_s += 1.0

    service.before = tick
    await service.poller().poll(by_run_id(service.runs))
    assert {each for run in service.runs for each in run.asked} == {Asked(7.0, 1007.0)}


# -- what fails ----------------------------------------------------------------------------------


async def test_a_status_that_is_refused_is_reported_of_its_run_and_its_session_not_asked_for() -> (
    None
):
    service = Service(2)
    service.errors["run session-0"] = missing()
    poller = service.poller()
    await poller.poll(by_run_id(service.runs))
    (event,) = service.said(names.EVENT_POLL_ERROR)
    assert event.run == "name-0"
    assert event.fields == {
        names.RUN_ID: service.runs[0].run_id,
        names.ERROR_TYPE: "StatusRefused",
    }
    assert service.of("session") == [f"session of {service.runs[1].run_id}"]
    assert not poller.out_of_reach
    assert service.answered == 3


async def test_an_outage_is_said_of_the_one_run_at_its_first_failure_and_when_it_lasts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Service(1)
    service.runs[0].silent_s = 40.0
    service.errors["run"] = StatusUnavailable("refused")
    poller = service.poller()
    for seconds in (0.0, REMIND_S):
        service.now_s += seconds
        with caplog.at_level(logging.DEBUG):
            await poller.poll(by_run_id(service.runs))
        assert poller.out_of_reach
    assert caplog.text.count("reading the status of the run failed") == 2
    assert len(service.said(names.EVENT_POLL_ERROR)) == 1, "the further ones are only counted"
    (lasts,) = service.said(names.EVENT_WAITING)
    assert (lasts.run, lasts.message.startswith("no step for 40 s")) == ("name-0", True)
    service.errors.clear()
    assert await poller.poll({}) == 0
    assert not service.said(names.EVENT_SERVICE_BACK), "nothing was asked"
    await poller.poll(by_run_id(service.runs))
    (back,) = service.said(names.EVENT_SERVICE_BACK)
    assert (back.run, poller.out_of_reach) == ("name-0", False)


async def test_an_outage_is_said_once_of_several_runs_and_of_none_by_name() -> None:
    service = Service(2)
    service.errors["run"] = StatusUnavailable("refused")
    poller = service.poller()
    for seconds in (0.0, REMIND_S):
        service.now_s += seconds
        await poller.poll(by_run_id(service.runs))
    (lasts,) = service.said(names.EVENT_WAITING)
    assert lasts.run == ""
    assert lasts.message.startswith("the service has not answered for 5 s")
    service.errors.clear()
    await poller.poll(by_run_id(service.runs))
    (back,) = service.said(names.EVENT_SERVICE_BACK)
    assert back.run == ""


@pytest.mark.parametrize("status", [404, 405, 501, 500])
async def test_only_a_service_without_the_search_is_asked_for_it_no_more(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    service = Service(1)
    service.http.endpoint.base_url = f"http://127.0.0.1:{status}"
    service.errors["session"] = StatusRefused("no", status_code=status)
    poller = service.poller()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            await poller.poll(by_run_id(service.runs))
    assert ("does not answer sessions/search" in caplog.text) == (status != 500)
    assert len(service.of("session")) == (2 if status == 500 else 1)
    assert (service.events, service.runs[0].failed) == ([], [])


@pytest.mark.parametrize("status", [404, 400, 422, 500])
async def test_the_same_where_it_is_searched_for_many(status: int) -> None:
    service = Service(MANY)
    service.errors["search"] = StatusRefused("no", status_code=status)
    poller = service.poller()
    for _ in range(2):
        await poller.poll(by_run_id(service.runs))
    assert len(service.of("search")) == (2 if status == 500 else 1)
    assert len(service.of("page")) == 2
    assert service.events == []


async def test_a_page_that_fails_ends_the_poll_and_is_said_once_of_all() -> None:
    service = Service(MANY)
    service.errors["page"] = StatusUnavailable("refused")
    poller = service.poller()
    await poller.poll(by_run_id(service.runs))
    assert (service.requests, service.answered) == (["page 0"], 1)
    (event,) = service.said(names.EVENT_POLL_ERROR)
    assert (event.run, event.fields[names.RUNS]) == ("", MANY)
    assert poller.out_of_reach


@pytest.mark.parametrize("missed", [1, 2])
async def test_runs_on_no_page_are_asked_for_one_by_one_and_their_failures_said_together(
    missed: int,
) -> None:
    service = Service(MANY)
    service.listed = service.listed[missed:]
    service.errors["run"] = missing()
    await service.poller().poll(by_run_id(service.runs))
    assert service.requests == [
        "page 0",
        *(f"run {run.run_id}" for run in service.runs[:missed]),
        "search None",
    ]
    (event,) = service.said(names.EVENT_POLL_ERROR)
    assert event.fields[names.RUNS] == missed


async def test_once_the_service_is_out_of_reach_the_remaining_ones_are_not_asked_for() -> None:
    service = Service(40)
    service.listed = []
    service.errors["run"] = StatusUnavailable("refused")
    poller = service.poller()
    await poller.poll(by_run_id(service.runs))
    assert len(service.of("run")) < 20, "those that were under way"
    assert service.of("search") == []
    (event,) = service.said(names.EVENT_POLL_ERROR)
    assert event.fields[names.RUNS] == len(service.of("run"))


# -- how fast ------------------------------------------------------------------------------------


async def test_no_more_than_eight_are_asked_for_at_once() -> None:
    service = Service(40)
    service.listed, service.takes = [], 50
    await service.poller().poll(by_run_id(service.runs))
    assert (service.most_at_once, len(service.of("run"))) == (8, 40)
    assert {len(run.statuses) for run in service.runs} == {1}


async def test_no_more_than_eight_pages_are_read_at_once_however_slow_the_service() -> None:
    service = Service(20 * PAGE)
    poller = service.poller(60.0)
    await poller.poll(by_run_id(service.runs))
    service.takes = 50
    await poller.poll(by_run_id(service.runs))
    assert (service.most_at_once, len(service.of("page"))) == (8, 40)


async def test_pages_are_read_one_after_the_other_where_they_are_not_spread() -> None:
    service = Service(3 * PAGE)
    await service.poller(60.0).poll(by_run_id(service.runs))
    assert service.of("page") == ["page 0", "page 100", "page 200"]
    assert (service.most_at_once, service.slept) == (1, []), "the first poll is not spread"


async def test_a_later_poll_spreads_its_pages_over_a_fifth_of_the_interval() -> None:
    service = Service(3 * PAGE)
    poller = service.poller(60.0)
    await poller.poll(by_run_id(service.runs))
    await poller.poll(by_run_id(service.runs))
    assert service.slept == [pytest.approx(12.0 / 3)] * 3
    assert service.most_at_once > 1, "the next begins in time though the last is not answered"


async def test_a_poll_that_the_service_has_not_answered_is_not_the_first() -> None:
    service = Service(3 * PAGE)
    poller = service.poller(60.0)
    service.errors["page"] = StatusUnavailable("refused")
    await poller.poll(by_run_id(service.runs))
    service.errors.clear()
    await poller.poll(by_run_id(service.runs))
    assert service.slept == []


@pytest.mark.parametrize(("count", "each_s"), [(FEW, None), (MANY, 6.0 / MANY)])
async def test_many_that_are_on_no_page_are_spread_over_a_tenth_of_the_interval(
    count: int, each_s: float | None
) -> None:
    service = Service(count + MANY)
    service.listed = service.listed[count:]
    await service.poller(60.0).poll(by_run_id(service.runs))
    assert len(service.of("run")) == count
    assert service.slept == ([] if each_s is None else [pytest.approx(each_s)] * count)


async def test_a_quick_poll_of_many_reads_eight_pages_at_most_and_nothing_besides() -> None:
    service = Service(20 * PAGE)
    await service.poller(60.0).poll(by_run_id(service.runs), quick=True)
    assert service.requests == [f"page {number * PAGE}" for number in range(8)]
    assert service.slept == []


async def test_what_the_last_poll_has_found_says_how_far_the_next_one_reads() -> None:
    service = Service(MANY)
    service.listed = [f"another{number}:train:0" for number in range(30 * PAGE)]
    poller = service.poller()
    await poller.poll(by_run_id(service.runs))
    assert len(service.of("page")) == MANY, "no more than there are runs"
    service.requests.clear()
    await poller.poll(by_run_id(service.runs))
    assert (len(service.of("page")), len(service.of("run"))) == (0, MANY)


# -- the search ----------------------------------------------------------------------------------


async def test_the_search_goes_on_where_the_last_poll_stopped_after_the_newest_page() -> None:
    service = Service(MANY)
    poller = service.poller()
    service.failed = [FailedPage({f"session-{at}": "gone"}, {"at": at + 1}) for at in range(9)]
    await poller.poll(by_run_id(service.runs))
    assert service.of("search") == [
        "search None",
        *(f"search {{'at': {at}}}" for at in range(1, 8)),
    ]
    assert [len(run.failed) for run in service.runs] == [1] * 8 + [0]
    service.requests.clear()
    service.failed = [
        FailedPage({}, {"at": 1}),
        FailedPage({"session-8": "gone"}, {"at": 9}),
        FailedPage({}, None),
    ]
    await poller.poll(by_run_id(service.runs))
    assert service.of("search") == ["search None", "search {'at': 8}", "search {'at': 9}"]
    assert len(service.runs[8].failed) == 1
    service.requests.clear()
    await poller.poll(by_run_id(service.runs))
    assert service.of("search") == ["search None"], "it had come to the end"


async def test_where_the_newest_page_is_the_last_there_is_nothing_to_go_on_with() -> None:
    service = Service(MANY)
    poller = service.poller()
    service.failed = [FailedPage({}, {"at": at}) for at in range(8)]
    await poller.poll(by_run_id(service.runs))
    service.requests.clear()
    await poller.poll(by_run_id(service.runs))
    assert service.of("search") == ["search None"]


async def test_what_was_read_before_the_search_failed_counts() -> None:
    service = Service(MANY)
    service.failed = [FailedPage({"session-2": "gone"}, {"at": 1})]
    service.errors["search {"] = StatusUnavailable("refused")
    poller = service.poller()
    await poller.poll(by_run_id(service.runs))
    assert service.runs[2].failed == [(service.runs[2].run_id, "gone")]
    assert not poller.out_of_reach
