"""Claims at a real server: who gets a run, who waits, and what a process that was paused meets."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from loops import until
from pydantic import SecretStr
from sdk_loops import a_service, fresh, train
from virtual import ManualClock

from tinker_recovery import RunHeld, StatusUnavailable
from tinker_recovery.clock import SYSTEM_CLOCK, Clock
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.claim_line import Claimant
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.claims import Claim, Claims, Unguarded
from tinker_recovery.service.heartbeats import TaskHeartbeats
from tinker_recovery.service.status import session_id_of
from tinker_recovery.testing import FaultRule, LocalTinker

RUN = "sft-42"
SETTLE_S = 0.05
"""What a local server needs to list a session, and what a slow machine may take."""


def claimant(host: str) -> Claimant:
    return Claimant(host, 123, "456", f"machine of {host}", "journal.db")


@asynccontextmanager
async def a_machine(
    local: LocalTinker,
    host: str = "here",
    *,
    is_dead: Callable[[Claimant], bool] = lambda _: False,
    beat_s: float = 0.5,
    clock: Clock = SYSTEM_CLOCK,
    max_wait_s: float = 3600.0,
) -> AsyncIterator[Claims]:
    """The claims of one process; its heartbeats stop at the end, as if it were killed."""
    async with (
        StatusReader(Endpoint(local.base_url, SecretStr(local.api_key))) as reader,
        anyio.create_task_group() as group,
    ):
        claims = Claims(
            reader.http,
            claimant(host),
            is_dead=is_dead,
            heartbeats=TaskHeartbeats(ClaimSessions(reader.http), group, SYSTEM_CLOCK, beat_s),
            clock=clock,
            settle_s=SETTLE_S,
            beat_s=beat_s,
            look_s=0.02,
        )
        claims.max_wait_s = max_wait_s
        yield claims
        group.cancel_scope.cancel()


async def taken(claims: Claims, *, on_held: Any = "refuse") -> Claim:
    claim = await claims.enter(RUN, on_held=on_held)
    assert isinstance(claim, Claim)
    return claim


async def test_the_first_takes_the_run_and_the_second_is_refused_and_learns_the_host(
    local: LocalTinker,
) -> None:
    async with a_machine(local, "one") as first, a_machine(local, "two") as second:
        claim = await taken(first)
        with pytest.raises(RunHeld, match="process 123 on one") as refused:
            await taken(second)
        assert (refused.value.run, refused.value.host, refused.value.pid) == (RUN, "one", 123)
        assert await claim.still_held()
        assert await claim.holder_now() is None
        other = await second.enter("another run", on_held="refuse")
        assert isinstance(other, Claim)
        await other.release()
        await claim.release()
        assert set(local.sessions().values()) == {"success"}


async def test_one_that_waits_gets_the_run_when_it_is_released(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_machine(local, "one") as first, a_machine(local, "two") as second:
        claim = await taken(first)
        got: list[Claim] = []

        async def wait() -> None:
            got.append(await taken(second, on_held="wait"))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            while "claimed by process 123 on one" not in caplog.text:  # noqa: ASYNC110 - a log sets no event
                await anyio.sleep(0.01)
            assert not got
            await claim.release()
        assert await got[0].still_held()
        await got[0].release()


async def test_of_three_that_start_together_exactly_one_trains(local: LocalTinker) -> None:
    results: list[Claim | RunHeld] = []

    async def race(claims: Claims) -> None:
        try:
            results.append(await taken(claims))
        except RunHeld as refused:
            results.append(refused)

    async with (
        a_machine(local, "one") as one,
        a_machine(local, "two") as two,
        a_machine(local, "three") as three,
    ):
        async with anyio.create_task_group() as group:
            for each in (one, two, three):
                group.start_soon(race, each)
        (winner,) = [each for each in results if isinstance(each, Claim)]
        assert len(results) == 3
        await winner.release()


async def test_a_process_that_was_paused_past_the_limit_is_fenced_by_its_successor() -> None:
    clock = ManualClock()
    async with (
        LocalTinker(clock=clock, heartbeat_limit_s=30.0) as local,
        a_service(local) as service,
        a_machine(local, "paused", beat_s=3600.0) as paused,
        a_machine(local, "successor") as successor,
    ):
        claim = await taken(paused)
        client = await fresh(service)
        session = session_id_of(client.model_id)
        assert await claim.announce(session)
        await train(client, 0, 1)
        clock.now += 29.0
        # The SDK's own thread keeps the session of the training.
        await reader_beats(local, session)
        clock.now += 2.0
        assert local.sessions()[claim.session_id] == "ended"
        assert local.sessions()[session] == "active"
        mine = await taken(successor)
        assert local.sessions()[session] == "interrupted"
        with pytest.raises(Exception, match="has finished"):
            await train(client, 1, 2)
        assert local.run_state(client.model_id).steps == 1
        assert not await claim.still_held()
        assert claim.lost.is_set()
        holder = await claim.holder_now()
        assert holder is not None
        assert holder.host == "successor"
        await claim.release()
        assert await mine.still_held()
        assert await mine.announce("session-unknown")
        await mine.release()


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


async def reader_beats(local: LocalTinker, session: str) -> None:
    """A heartbeat of a session."""
    async with StatusReader(Endpoint(local.base_url, SecretStr(local.api_key))) as reader:
        body = {"session_id": session, "type": "session_heartbeat"}
        assert await reader.http.send("POST", "session_heartbeat", json=body) == 200


async def test_a_session_opened_after_the_claim_was_lost_is_not_to_be_used() -> None:
    clock = ManualClock()
    async with (
        LocalTinker(clock=clock, heartbeat_limit_s=30.0) as local,
        a_machine(local, beat_s=3600.0) as paused,
    ):
        claim = await taken(paused)
        clock.now += 31.0
        assert not await claim.announce("session-new")


async def test_a_session_being_noted_as_the_claim_is_released_is_not_to_be_used_and_left_in_no_note(
    local: LocalTinker,
) -> None:
    """As of a client that is being made for a run which is cancelled."""
    async with a_machine(local) as claims, anyio.create_task_group() as group:
        claim = await taken(claims)
        local.inject(FaultRule("slow", request="create_session", delay_s=20.0))
        mays: list[bool] = []

        async def announce() -> None:
            mays.append(await claim.announce("session-new"))

        group.start_soon(announce)
        await until(lambda: any(each.request == "create_session" for each in local.fired))
        await claim.release()
        local.release()
        await until(lambda: bool(mays))
        assert mays == [False]
        assert set(local.sessions().values()) <= {"success", "interrupted"}


async def test_a_session_is_noted_before_the_claim_is_asked_for_and_not_after(
    local: LocalTinker,
) -> None:
    """Else a successor might come between the two, and never find the session."""
    async with a_machine(local) as claims:
        claim = await taken(claims)
        asked: list[str] = []

        async def ask(method: str, path: str, *args: Any, **request: Any) -> Any:
            asked.append(path)
            return await http.ask(method, path, *args, **request)

        async def send(method: str, path: str, **request: Any) -> int | None:
            asked.append(path)
            return await http.send(method, path, **request)

        sessions = claims.sessions
        http, sessions.http = sessions.http, SimpleNamespace(ask=ask, send=send)
        assert await claim.announce("session-new")
        sessions.http = http
        noted = asked.index("create_session")
        assert "session_heartbeat" in asked[noted:]
        await claim.release()


async def test_a_claim_of_a_process_known_to_be_dead_is_not_waited_for(local: LocalTinker) -> None:
    async with a_machine(local, "here") as killed:
        left = await taken(killed)
    async with a_machine(local, "here", is_dead=lambda by: by == claimant("here")) as restarted:
        claim = await taken(restarted)
        assert local.sessions()[left.session_id] == "interrupted"
        assert await claim.still_held()
        await claim.release()


async def test_a_claim_whose_opening_lost_its_answer_does_not_stand_in_its_own_way(
    local: LocalTinker,
) -> None:
    local.inject(FaultRule("drop", request="create_session"))
    async with a_machine(local) as claims:
        claim = await taken(claims)
        assert await claim.still_held()
        await claim.release()


async def test_a_service_that_lists_late_and_dates_wrongly_is_waited_for() -> None:
    async with (
        LocalTinker(listing_delay_s=0.5, created_jitter_s=1000.0) as local,
        a_machine(local, "one") as one,
        a_machine(local, "two") as two,
    ):
        results: list[Claim | RunHeld] = []

        async def race(claims: Claims) -> None:
            try:
                results.append(await taken(claims))
            except RunHeld as refused:
                results.append(refused)

        async with anyio.create_task_group() as group:
            group.start_soon(race, one)
            group.start_soon(race, two)
        (winner,) = [each for each in results if isinstance(each, Claim)]
        await winner.release()


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        (("search_sessions",), "sessions/search: HTTP 404"),
        (("session_heartbeat",), "takes no heartbeats"),
        (("create_session",), "create_session: HTTP 404"),
    ],
)
async def test_a_service_without_a_route_leaves_the_run_unguarded_and_says_why(
    missing: tuple[str, ...], why: str
) -> None:
    async with LocalTinker(missing=missing) as local, a_machine(local) as claims:
        for _ in range(2):
            found = await claims.enter(RUN, on_held="refuse")
            assert isinstance(found, Unguarded)
            assert why in found.why


async def test_a_service_that_does_not_finish_sessions_cannot_take_a_run_over() -> None:
    clock = ManualClock()
    async with LocalTinker(clock=clock, heartbeat_limit_s=30.0, missing=("finish",)) as local:
        async with a_machine(local, "killed") as killed:
            await taken(killed)
        clock.now += 31.0
        async with a_machine(local, "next") as claims:
            found = await claims.enter(RUN, on_held="refuse")
            assert isinstance(found, Unguarded)
            assert "does not finish sessions" in found.why


async def test_cancelling_one_that_waits_leaves_no_claim(local: LocalTinker) -> None:
    async with a_machine(local, "one") as first, a_machine(local, "two") as second:
        claim = await taken(first)
        with anyio.move_on_after(0.2) as scope:
            await taken(second, on_held="wait")
        assert scope.cancelled_caught
        active = [each for each, state in local.sessions().items() if state == "active"]
        assert active == [claim.session_id]
        await claim.release()


async def test_a_service_that_does_not_answer_is_waited_for_no_longer_than_allowed_and_aloud(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = ManualClock()

    async def sleep(seconds: float) -> None:
        now.now += seconds

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    async with StatusReader(Endpoint(closed, SecretStr("tml-key"))) as reader:
        claims = Claims(
            reader.http,
            claimant("here"),
            is_dead=lambda _: False,
            heartbeats=None,  # type: ignore[arg-type]  # none is ever begun
            clock=Clock(monotonic=now, sleep=sleep, wall=lambda: now.now + 900.0),
            look_s=150.0,
        )
        claims.max_wait_s = 250.0
        with anyio.fail_after(30), pytest.raises(StatusUnavailable):
            await claims.enter(RUN, on_held="wait")
    assert now.now == pytest.approx(100.0 + 300.0)
    (said,) = [each.getMessage() for each in caplog.records if "waits" in each.getMessage()]
    assert said == (
        f"run {RUN} waits: the service still cannot be reached: nothing listens there (connection "
        f"refused); so for 2 min 30 s, since {_at(1000.0)}; waiting up to 1 min 40 s more "
        "(max_wait_s=250); Ctrl-C stops it"
    )


async def test_what_is_not_finished_is_asked_for_no_longer_than_allowed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = ManualClock()

    async def sleep(seconds: float) -> None:
        now.now += 1000 * seconds
        await anyio.sleep(seconds)

    clock = Clock(monotonic=now, sleep=sleep)
    async with LocalTinker() as local:
        async with a_machine(local, "gone", beat_s=1000.0) as first:
            await taken(first)
        local.inject(FaultRule("status", request="finish", status=503, times=10**6))
        async with a_machine(
            local, "next", is_dead=lambda _: True, clock=clock, max_wait_s=200.0
        ) as claims:
            with anyio.fail_after(30), pytest.raises(StatusUnavailable, match="HTTP 503"):
                await claims.enter(RUN, on_held="wait")
    assert f"run {RUN}" in caplog.text


async def test_an_outage_says_nothing_about_a_claim(local: LocalTinker) -> None:
    async with a_machine(local) as claims:
        claim = await taken(claims)
        local.begin_outage(status=503)
        with pytest.raises(Exception, match="HTTP 503"):
            await claim.still_held()
        local.end_outage()
        assert await claim.still_held()
        assert not claim.lost.is_set()
        await claim.release()


async def test_a_run_whose_claim_cannot_be_asked_for_says_so_after_seconds_and_what_it_waits_for(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    """At growing intervals: 5 s are what other outages are said after."""
    now_s = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += 1.0
        await anyio.sleep(seconds)

    local.inject(FaultRule("status", request="session_heartbeat", status=503, times=40))
    clock = Clock(
        sleep=sleep, random=lambda: 0.0, monotonic=lambda: now_s, wall=lambda: 99.0 + now_s
    )
    async with a_machine(local, beat_s=60.0, clock=clock, max_wait_s=600.0) as machine:
        await (await taken(machine)).release()
    said = [each.message for each in caplog.records if "waits" in each.message]
    assert said[0] == (
        f"run {RUN} waits: the service still does not say whether another process trains it (HTTP "
        f"503 to a heartbeat of the claim on run '{RUN}'); so for 5 s, since {_at(100.0)}; waiting "
        "up to 9 min 55 s more (max_wait_s=600); Ctrl-C stops it"
    )
    assert f"; so for 15 s, since {_at(100.0)}; waiting up to 9 min 45 s more" in said[1]
    assert len(said) == len({5.0, 15.0, 35.0}), "at growing intervals"


async def test_a_claim_is_not_lost_by_a_404_that_the_service_itself_does_not_confirm(
    local: LocalTinker,
) -> None:
    async with a_machine(local) as claims:
        claim = await taken(claims)
        local.begin_outage(status=404)
        with pytest.raises(StatusUnavailable, match="HTTP 404 to a heartbeat of the claim on run"):
            await claim.still_held()
        local.end_outage()
        local.inject(FaultRule("status", request="session_heartbeat", status=404))
        with pytest.raises(StatusUnavailable, match="HTTP 404 to a heartbeat"):
            await claim.still_held()
        assert await claim.still_held()
        assert not claim.lost.is_set()
        await claim.release()
        unknown = Claim(claims, RUN, "entry", "session-of-a-service-that-was-emptied")
        assert not await unknown.still_held()
        assert unknown.lost.is_set()
