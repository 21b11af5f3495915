"""A service that answers, and has nothing of the run: another one, or one that was emptied."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from typing import Self

import anyio
import pytest
import pytest_asyncio
from inspection import set_claim_s
from loops import policy, quick, train, until
from named_runs import NAMED, left_at, trained_to
from pydantic import SecretStr

from tinker_recovery import Attempt, LeaseLost, Supervisor
from tinker_recovery.journal import default_path
from tinker_recovery.journal.reading import read_run
from tinker_recovery.service import Endpoint, StatusReader
from tinker_recovery.testing import FaultRule, LocalTinker

KNOWS_NOTHING = (
    " knows nothing of run 'sft-42': none of its Tinker runs, sessions or checkpoints. It is "
    "another service, was emptied, or the API key is another account's: set TINKER_BASE_URL and "
    "TINKER_API_KEY to where the run is; or, to begin it anew, `tinker-recovery abandon sft-42` "
    "and the same command again"
)


class Restarted:
    """A server that can be started again, with nothing in it."""

    def __init__(self) -> None:
        self.server = LocalTinker()

    async def __aenter__(self) -> Self:
        await self.server.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.__aexit__(None, None, None)

    async def empty(self) -> None:
        """Stop it and start another in its place."""
        port = int(self.server.base_url.rpartition(":")[2])
        await self.__aexit__()
        self.server = LocalTinker(port=port)
        await self.__aenter__()


@pytest_asyncio.fixture
async def restarted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Restarted]:
    async with Restarted() as restarted:
        monkeypatch.setenv("TINKER_BASE_URL", restarted.server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", restarted.server.api_key)
        yield restarted


async def test_a_run_that_waits_there_says_so_and_is_not_begun_anew(
    restarted: Restarted, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinker_recovery.recovery.waits.REMIND_S", 0.2)
    caplog.set_level(logging.INFO)
    await left_at(12)
    await restarted.empty()
    waiting = asyncio.create_task(trained_to(22))
    await until(lambda: "no step for" in caplog.text)
    assert restarted.server.runs() == []
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    said = [each.getMessage() for each in caplog.records]
    (first, *_) = [each for each in said if "no step for" in each]
    assert f"the service at {restarted.server.base_url} (TINKER_BASE_URL){KNOWS_NOTHING}" in first
    assert "the service answers, and lacks what this run has stored; waiting up to" in first
    silent = "the service does not answer", "the service has not answered", "cannot be reached"
    assert not [each for each in said if any(words in each for words in silent)]
    (end,) = [each for each in said if " stopped at step " in each]
    written = read_run(default_path(), "sft-42")
    assert written is not None
    assert written.state == "stopped"
    assert f" stopped at step {written.step}: " in end
    assert written.step == 12


async def test_what_is_only_listed_late_is_not_called_unknown(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await left_at(12)
    local.inject(FaultRule("status", request="run_checkpoints", status=404, times=4))
    async with Supervisor(quick()) as supervisor:
        await supervisor.run(functools.partial(train, steps=22), **NAMED)
    assert "and has stored" in caplog.text
    assert "knows nothing" not in caplog.text


async def test_a_claim_that_is_gone_with_all_else_is_not_laid_to_silence(
    restarted: Restarted, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=0.1)

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=6)
        await attempt.client.drain()
        await restarted.empty()
        await anyio.sleep(30)

    with anyio.fail_after(20), pytest.raises(LeaseLost) as lost:
        async with Supervisor(policy()) as supervisor:
            await supervisor.run(body, **NAMED)
    said = str(lost.value)
    assert said.startswith("run 'sft-42' is not held by this process any more: the service at ")
    assert said.endswith(KNOWS_NOTHING)
    assert "sign of life" not in said


@pytest.mark.parametrize("missing", ["training_run", "search_sessions", None])
@pytest.mark.parametrize("emptied", [False, True])
async def test_it_takes_an_answer_of_every_route_to_call_a_run_unknown(
    monkeypatch: pytest.MonkeyPatch, missing: str | None, *, emptied: bool
) -> None:
    given = {} if missing is None else {"missing": (missing,)}
    async with LocalTinker(**given) as server:  # type: ignore[arg-type]  # one option
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        (run,) = server.add_runs(1)
        asked = ["session-of-another:train:0"] if emptied else [run]
        async with StatusReader(Endpoint(server.base_url, SecretStr(server.api_key))) as reader:
            unknown = await reader.knows_nothing_of(asked)
            assert unknown is (emptied and missing != "search_sessions")
            assert not await reader.knows_nothing_of([])
            server.begin_outage(status=503)
            assert not await reader.knows_nothing_of(asked)
