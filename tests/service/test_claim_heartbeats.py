"""The heartbeats of claims, sent from a thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from loops import until
from pydantic import SecretStr

from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.service.claim_sessions import ClaimSessions
from tinker_recovery.service.heartbeats import ThreadHeartbeats
from tinker_recovery.service.http import Missed, Unreached
from tinker_recovery.testing import FaultRule, LocalTinker

BEAT_S = 0.02
THREAD = "tinker-recovery/heartbeats"


@asynccontextmanager
async def beating(
    local: LocalTinker, unreachable: Missed = lambda *_: None
) -> AsyncIterator[ThreadHeartbeats]:
    heartbeats = ThreadHeartbeats(_endpoint(local), BEAT_S, unreachable)
    try:
        yield heartbeats
    finally:
        await heartbeats.aclose()
    assert not [each for each in threading.enumerate() if each.name == THREAD]


def _endpoint(local: LocalTinker) -> Endpoint:
    return Endpoint(local.base_url, SecretStr(local.api_key))


async def _opened(local: LocalTinker) -> str:
    async with StatusReader(_endpoint(local)) as reader:
        return await ClaimSessions(reader.http).open("claim", {})


def _arrived(local: LocalTinker) -> int:
    return local.stats.by_route.get("session_heartbeat", 0)


async def test_they_are_sent_until_they_are_stopped_and_the_thread_ends_with_the_last_word(
    local: LocalTinker,
) -> None:
    ended: list[str] = []
    async with beating(local) as heartbeats:
        assert not [each for each in threading.enumerate() if each.name == THREAD]
        sessions = [await _opened(local) for _ in range(2)]
        stops = [heartbeats.start(each, partial(ended.append, each)) for each in sessions]
        await until(lambda: _arrived(local) >= 4)
        local.fail_session(sessions[0])
        await until(lambda: ended == sessions[:1])
        # One that was stopped is finished by its owner: its end is no loss.
        stops[1]()
        local.fail_session(sessions[1])
        await anyio.sleep(5 * BEAT_S)
        arrived = _arrived(local)
        await anyio.sleep(5 * BEAT_S)
        assert _arrived(local) == arrived
    assert ended == sessions[:1]


async def test_a_service_that_one_of_them_does_not_reach_is_heard_of_and_ends_no_claim(
    server: LocalTinker,
) -> None:
    heard: list[Unreached] = []
    ended: list[bool] = []
    async with beating(server, lambda how, _: heard.append(how)) as heartbeats:
        session = await _opened(server)
        heartbeats.start(session, lambda: ended.append(True))
        server.begin_outage(status=503)
        await until(lambda: "unserved" in heard)
        server.end_outage()
        arrived = _arrived(server)
        await until(lambda: _arrived(server) > arrived + 1)
    assert not ended


async def test_a_gateway_that_answers_404_for_the_service_ends_no_claim(
    server: LocalTinker,
) -> None:
    ended: list[bool] = []
    async with beating(server) as heartbeats:
        session = await _opened(server)
        heartbeats.start(session, lambda: ended.append(True))
        server.inject(FaultRule("status", request="session_heartbeat", status=404, times=3))
        await until(lambda: len(server.fired) == 3)
        server.begin_outage(status=404)
        arrived = _arrived(server)
        await until(lambda: _arrived(server) > arrived + 2)
        server.end_outage()
        assert not ended
        server.fail_session(session)
        await until(lambda: bool(ended))


async def test_whatever_one_of_them_fails_with_the_next_is_sent(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beat = ClaimSessions.beat
    errors = [OSError(24, "Too many open files"), RuntimeError("a mistake of ours")]

    async def fails_first(self: ClaimSessions, session_id: str) -> int | None:
        if errors:
            raise errors.pop()
        return await beat(self, session_id)

    monkeypatch.setattr(ClaimSessions, "beat", fails_first)
    ended: list[bool] = []
    async with beating(local) as heartbeats:
        session = await _opened(local)
        heartbeats.start(session, lambda: ended.append(True))
        await until(lambda: _arrived(local) >= 2)
        assert ended == []
        local.fail_session(session)
        await until(lambda: ended == [True])
    assert "failed; it is sent again" in caplog.text
