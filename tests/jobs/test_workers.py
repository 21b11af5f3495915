"""Workers as processes: one is killed, one is asked to stop, and another goes on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _postgres as postgres
import anyio
import anyio.to_thread
import pytest
from click.testing import CliRunner
from loops import MODEL, SEED, STARTED_WITHIN_S, process, quick, undisturbed_state, until
from loops_of_jobs import rests_at

from tinker_recovery.cli import main
from tinker_recovery.jobs import Jobs
from tinker_recovery.telemetry import names
from tinker_recovery.telemetry.record import from_json_line
from tinker_recovery.testing import LocalTinker

HERE = Path(__file__).parent
START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
STEPS, RESTS_AT = 9, 5
PASSWORD = "of-the-Tests-0wn"  # noqa: S105 - of a server that lives as long as one test


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the jobs are kept."""
    if request.param == "sqlite":
        yield str(tmp_path / "jobs.db")
        return
    if why := postgres.why_not():
        pytest.skip(why)
    with postgres.served(PASSWORD) as url:
        yield url


@contextlib.contextmanager
def worker(monkeypatch: pytest.MonkeyPatch, database: str) -> Iterator[Any]:
    """A worker's process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent), *sys.path]))
    monkeypatch.setenv("TINKER_RECOVERY_DATABASE", database)
    code = "from tinker_recovery.cli import main; main()"
    given = ["jobs", "work", "loops_of_jobs", "--concurrency", "10", "--starts-per-s", "20"]
    given.append("--json")
    with process(["-c", code, *given], stdout=subprocess.PIPE) as running:
        yield running


def _cli(*arguments: str) -> Any:
    done = CliRunner().invoke(main, ["jobs", *arguments])
    assert PASSWORD not in done.output
    return done


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("database", "how"),
    [("sqlite", signal.SIGKILL), ("postgres", signal.SIGTERM)],
    indirect=["database"],
    ids=["a killed worker, on SQLite", "one that is asked to stop, on PostgreSQL"],
)
async def test_what_a_worker_leaves_another_carries_on(
    local: LocalTinker,
    tmp_path: Path,
    database: str,
    how: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    before = set(local.runs())
    args = {"steps": STEPS, "at": RESTS_AT, "file": str(tmp_path / "go")}
    called = ["first", "second"]

    def rest() -> bool:
        mine = [local.run_state(run).steps for run in set(local.runs()) - before]
        return mine == [RESTS_AT] * len(called)

    async with Jobs(database, work=False) as jobs:
        for name in called:
            await jobs.submit(rests_at, name=name, args=args, **START)
        with worker(monkeypatch, database) as left:
            await until(rest, 2 * STARTED_WITHIN_S)
            left.send_signal(how)
            told, errors = await anyio.to_thread.run_sync(lambda: left.communicate(timeout=60))
        killed = how == signal.SIGKILL
        assert left.returncode == (-how if killed else 128 + how), errors
        assert PASSWORD not in told + errors
        tries = [from_json_line(line) for line in told.splitlines()]
        assert {event.run for event in tries if event.name == names.EVENT_JOB_TRY} == set(called)
        listed = json.loads(_cli("list", "--json", "--database", database).stdout)
        state = "running" if killed else "queued"
        assert [(each["state"], each["try"]) for each in listed] == [(state, 1)] * 2
    (tmp_path / "go").touch()
    async with Jobs(database, policy=quick(), starts_per_s=20.0) as jobs:
        results = [await jobs.handle(name).result() for name in called]
    gone = f"the worker, process {left.pid} on"
    assert any(gone in each.getMessage() for each in caplog.records) == killed
    for result in results:
        assert (result.step, result.retries, result.value) == (STEPS, 0, os.getpid())
        first, second = result.run_ids
        assert local.run_state(second) == expected
        assert (local.checkpoints(first)[-1].steps == RESTS_AT) == (not killed)
    _check_commands(database, tmp_path)
    if killed:  # a session that is open for later is nobody's to finish
        for session in [key for key, state in local.sessions().items() if state == "active"]:
            local.fail_session(session)


def _check_commands(database: str, tmp_path: Path) -> None:
    shown = json.loads(_cli("show", "first", "--json", "--database", database).stdout)
    assert [each["event"] for each in shown["events"] if each["event"].startswith("job")] == [
        *("job.try", "job.try", "job.finished")
    ]
    assert (shown["state"], shown["result"]["step"]) == ("finished", STEPS)
    assert "finished, try 1 of 3" in _cli("show", "first", "--database", database).stdout
    for command, status in (("retry", 1), ("cancel", 0), ("show", 0)):
        done = _cli(command, "first", "--database", database)
        assert done.exit_code == status, done.output
        assert _cli(command, "none", "--database", database).exit_code == 1
    assert _cli("list", "--database", str(tmp_path / "no.db")).exit_code == 3
    assert _cli("list", "--database", "mysql://me@host/db").exit_code == 2
