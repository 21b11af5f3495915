"""A service without finish, search and export: each is said once, and nothing relies on it."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import AsyncIterator, Callable

import anyio.to_thread
import pytest
import pytest_asyncio
from click.testing import CliRunner
from loops import MODEL, SEED, policy, quick, train, undisturbed_state, until

from tinker_recovery import Attempt, CheckpointPolicy, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.recovery.resume import finish_sessions
from tinker_recovery.service import StatusReader, TinkerBackend
from tinker_recovery.testing import Dialect, LocalTinker

NO_FINISH = "does not answer sessions/finish"
NO_SEARCH = "does not answer sessions/search"
NO_EXPORT = "no checkpoint is deleted: verify_deep is on, and this service has no export"


@pytest_asyncio.fixture
async def bare(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[LocalTinker]:
    """A bare service, and what is logged of it."""
    caplog.set_level(logging.INFO, logger="tinker_recovery")
    async with LocalTinker(dialect="bare") as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        monkeypatch.setenv("TINKER_API_KEY", server.api_key)
        yield server


async def trained(
    checkpoints: CheckpointPolicy, *, runs: int = 1, last: Callable[[], bool] = lambda: True
) -> Supervisor:
    """Runs of eight steps, each of which ends when ``last`` is true."""

    async def body(attempt: Attempt) -> None:
        await train(attempt, steps=8)
        await until(last)

    given = quick(checkpoints=checkpoints, poll_interval_s=0.05)
    async with Supervisor(given) as supervisor:
        for _ in range(runs):
            await supervisor.run(body, base_model=MODEL, rank=8, seed=SEED)
    return supervisor


async def test_sessions_that_cannot_be_finished_or_searched_are_spoken_of_once(
    bare: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = await trained(
        CheckpointPolicy(save_every=2), runs=3, last=lambda: NO_SEARCH in caplog.text
    )
    async with StatusReader(await TinkerBackend(bare.service).endpoint()) as reader:
        run_ids = [each.run_id for run in supervisor.runs for each in run.segments]
        await finish_sessions(reader, run_ids)
    for said in (NO_FINISH, NO_SEARCH):
        lines = [each for each in caplog.records if said in each.getMessage()]
        assert [each.levelno for each in lines] == [logging.INFO]
    # OpenTelemetry warns as well where a test before this one has shut its provider down.
    ours = [each for each in caplog.records if not each.name.startswith("opentelemetry")]
    assert not [each for each in ours if each.levelno > logging.INFO]


async def test_verify_deep_gives_its_shallow_results_and_says_that_bytes_were_not_looked_at(
    bare: LocalTinker,
) -> None:
    supervisor = await trained(CheckpointPolicy(save_at_start=False, save_every=8))
    (path,) = (each.path for each in bare.checkpoints(supervisor.runs[0].segments[0].run_id))

    def verified(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["checkpoints", "verify", path, "--deep", *options])
        return done.exit_code, done.stdout

    status, shown = await anyio.to_thread.run_sync(verified, "--json")
    assert status == 0, shown
    (found,) = json.loads(shown.splitlines()[-1])
    assert found["ok"]
    assert [(each["level"], each["ok"], each["looked"]) for each in found["verdicts"]] == [
        ("metadata", True, True),
        ("listing", True, True),
        ("weights", True, True),
        ("bytes", True, False),
    ]
    status, shown = await anyio.to_thread.run_sync(verified)
    assert status == 0
    assert "bytes     not looked at: this service has no export" in shown
    assert "1 checkpoint, 0 bad, 1 not looked at in full" in shown


async def test_where_bytes_cannot_be_looked_at_nothing_is_deleted_or_rejected_and_that_is_said_once(
    bare: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    given = policy(
        checkpoints=CheckpointPolicy(
            save_at_start=False, save_every=2, keep_last=1, verify_deep=True
        )
    )
    async with Supervisor(given) as supervisor:
        await supervisor.run(functools.partial(train, steps=8), base_model=MODEL, rank=8, seed=SEED)
    run_id = supervisor.runs[0].segments[0].run_id
    assert [each.steps for each in bare.checkpoints(run_id)] == [2, 4, 6, 8]
    lines = [each for each in caplog.records if NO_EXPORT in each.getMessage()]
    assert [each.levelno for each in lines] == [logging.WARNING]
    assert not [each for each in caplog.records if "rejected" in each.getMessage()]


@pytest.mark.parametrize("dialect", ["bare", "server_category"])
async def test_a_run_that_fails_there_ends_with_the_bits_of_the_undisturbed_one(
    dialect: Dialect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalTinker() as hosted:  # the bare SDK's own close() fails without finish
        expected = await undisturbed_state(hosted, steps=8)
    async with LocalTinker(dialect=dialect) as local:
        monkeypatch.setenv("TINKER_BASE_URL", local.base_url)
        monkeypatch.setenv("TINKER_API_KEY", local.api_key)
        local.poison(at_step=5)
        supervisor = await trained(CheckpointPolicy(save_every=2))
        assert len(supervisor.runs[0].segments) == 2
        assert local.run_state(supervisor.runs[0].segments[-1].run_id) == expected
