"""One poll of many runs on the real server: by pages, and one by one for those on none of them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
import pytest_asyncio
from inspection import set_failed_pages
from pydantic import SecretStr

from tinker_recovery import RecoveryEvent, StatusRefused
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.detection.poller import Poller
from tinker_recovery.service import Asked, Endpoint, RunStatus, StatusReader
from tinker_recovery.service.http import Unreached
from tinker_recovery.telemetry import EventSink, names
from tinker_recovery.testing import FaultRule, LocalTinker

pytestmark = pytest.mark.usefixtures("no_waiting_between_tries")


class Polled:
    """A watched run, and what polls reported to it."""

    def __init__(self, run_id: str) -> None:
        self.name = run_id
        self.watched_run_id: str | None = run_id
        self.silent_s: float | None = None
        self.statuses: list[bool] = []
        self.asked: list[Asked] = []
        self.failed: list[str] = []

    def note_status(self, status: RunStatus, asked: Asked) -> None:
        assert status.run_id == self.name
        self.statuses.append(status.corrupted)
        self.asked.append(asked)
        if status.corrupted:
            self.watched_run_id = None

    def note_session_failed(self, run_id: str, message: str) -> None:
        assert run_id == self.name
        self.failed.append(message)

    def check_silence(self) -> None:
        pass


class Fleet:
    """Polls runs of a server."""

    def __init__(self, server: LocalTinker, reader: StatusReader) -> None:
        self.server = server
        self.events: list[RecoveryEvent] = []
        self.reader = reader
        self.unreachable: list[Unreached] = []
        reader.http.unreachable = lambda how, _: self.unreachable.append(how)
        self.poller = Poller(
            reader, interval_s=0.0, events=EventSink(self.events.append), clock=SYSTEM_CLOCK
        )

    async def poll(self, runs: list[Polled], *, quick: bool = False) -> dict[str, int]:
        """Poll once; returns the number of requests by route."""
        before = self.server.stats.by_route
        self.faults = await self.poller.poll({run.name: run for run in runs}, quick=quick)
        asked = self.server.stats.by_route
        return {
            route: asked[route] - before.get(route, 0)
            for route in ("training_runs", "training_run", "search_sessions")
            if asked.get(route, 0) > before.get(route, 0)
        }


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with (
        LocalTinker() as server,
        StatusReader(Endpoint(server.base_url, SecretStr(server.api_key))) as reader,
    ):
        yield Fleet(server, reader)


async def test_many_runs_are_read_by_pages_and_no_further_than_the_last_of_them(
    fleet: Fleet,
) -> None:
    old = fleet.server.add_runs(500)
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(250)]
    fleet.server.corrupt([runs[0].name, old[0]])
    assert await fleet.poll(runs) == {"training_runs": 3, "search_sessions": 1}
    assert [run.statuses for run in runs] == [[True], *[[False]] * 249]
    assert fleet.faults == 1
    assert not fleet.events


async def test_a_few_runs_are_asked_for_one_by_one(fleet: Fleet) -> None:
    fleet.server.add_runs(500)
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(3)]
    assert await fleet.poll(runs) == {"training_run": 3, "search_sessions": 3}


@pytest.mark.parametrize("watched", [3, 120])
async def test_a_status_is_of_when_it_was_asked_for_and_not_of_when_its_answer_came(
    fleet: Fleet, watched: int
) -> None:
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(watched)]
    await fleet.poll(runs)
    began_s, began = time.monotonic(), fleet.reader.service_now()
    for request in ("training_run", "training_runs"):
        fleet.server.inject(FaultRule("slow", request=request, times=8, delay_s=0.5))
    await fleet.poll(runs)
    ended_s, ended = time.monotonic(), fleet.reader.service_now()
    for run in runs:
        assert began_s <= run.asked[-1].at_s <= ended_s - 0.5
        assert began <= run.asked[-1].service_s <= ended - 0.5


async def test_a_run_on_no_page_is_asked_for_by_itself_and_a_404_is_not_a_fault(
    fleet: Fleet,
) -> None:
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(120)]
    fleet.server.delete_run(runs[7].name)
    assert await fleet.poll(runs) == {
        "training_runs": 2,
        "training_run": 1,
        "search_sessions": 1,
    }
    assert [run.name for run in runs if not run.statuses] == [runs[7].name]
    assert fleet.faults == 0
    (event,) = fleet.events
    assert (event.name, event.fields[names.RUNS]) == (names.EVENT_POLL_ERROR, 1)


async def test_failed_sessions_are_found_among_thousands_in_one_request(fleet: Fleet) -> None:
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(60)]
    fleet.server.fail_session(runs[3].name.partition(":")[0], message="the node is gone")
    fleet.server.fail_session(runs[4].name.partition(":")[0], category="user")
    assert await fleet.poll(runs) == {"training_runs": 1, "search_sessions": 1}
    assert {run.name: run.failed for run in runs if run.failed} == {
        runs[3].name: ["the node is gone"]
    }


async def test_failed_sessions_beyond_what_one_poll_reads_are_read_in_the_next(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_failed_pages(monkeypatch, size=2, pages=3)
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(20)]
    for run in runs:
        fleet.server.fail_session(run.name.partition(":")[0])
    for _ in range(5):
        assert (await fleet.poll(runs))["search_sessions"] <= 3
    assert all(run.failed for run in runs)


@pytest.mark.parametrize("count", [3, 60])
async def test_a_service_without_the_search_is_not_asked_for_it_again(
    fleet: Fleet, count: int
) -> None:
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(count)]
    fleet.server.inject(FaultRule("status", request="search_sessions", status=404, for_s=60.0))
    assert "search_sessions" in await fleet.poll(runs)
    assert "search_sessions" not in await fleet.poll(runs)


async def test_a_page_that_cannot_be_read_ends_the_poll_and_is_reported_once(fleet: Fleet) -> None:
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(250)]
    fleet.server.inject(FaultRule("status", request="training_runs", status=503, for_s=60.0))
    assert await fleet.poll(runs) == {"training_runs": 3}, "one page, three tries"
    assert fleet.poller.out_of_reach
    assert not any(run.statuses or run.failed for run in runs)
    assert fleet.unreachable == ["unserved"] * 3
    (event,) = fleet.events
    assert (event.name, event.fields[names.RUNS]) == (names.EVENT_POLL_ERROR, 250)
    fleet.server.release()
    await fleet.poll(runs)
    assert all(run.statuses == [False] for run in runs)
    assert not fleet.poller.out_of_reach


async def test_a_quick_poll_reads_its_pages_without_a_pause_in_between(fleet: Fleet) -> None:
    """It is there to find a fault soon; only a full poll is spread, to spare the service."""

    async def sleep(seconds: float) -> None:
        raise AssertionError(f"it waited {seconds} s")

    fleet.poller = Poller(
        fleet.reader, interval_s=60.0, events=EventSink(), clock=Clock(sleep=sleep)
    )
    runs = [Polled(run_id) for run_id in fleet.server.add_runs(250)]
    assert await fleet.poll(runs, quick=True) == {"training_runs": 3}
    assert [run.statuses for run in runs] == [[False]] * 250


async def test_a_quick_poll_takes_a_few_requests_whatever_it_misses(fleet: Fleet) -> None:
    new = fleet.server.add_runs(1000)
    asked = await fleet.poll([Polled(run_id) for run_id in [*new, "unlisted"]], quick=True)
    assert asked == {"training_runs": 8}


async def test_a_page_with_values_of_wrong_types_is_refused_and_not_taken_as_sound() -> None:
    def answering(run: object, total: object = 1) -> Callable[[httpx.Request], httpx.Response]:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/client/config"):
                return httpx.Response(200, json={})
            cursor = {"offset": 0, "limit": 100, "total_count": total}
            return httpx.Response(200, json={"training_runs": [run], "cursor": cursor})

        return answer

    endpoint = Endpoint("http://127.0.0.1:1", SecretStr("tml-x"))
    good = {"training_run_id": "r", "corrupted": True}
    for run, total in [
        ({"training_run_id": "r", "corrupted": "yes"}, 1),
        ({"training_run_id": 7}, 1),
        ({}, 1),
        ("r", 1),
        (good, None),
    ]:
        transport = httpx.MockTransport(answering(run, total))
        async with StatusReader(endpoint, transport=transport) as reader:
            with pytest.raises(StatusRefused, match="cannot be parsed"):
                await reader.run_page(0)
    async with StatusReader(endpoint, transport=httpx.MockTransport(answering(good))) as reader:
        assert await reader.run_page(0) == ([("r", True, None, None)], 1)
