"""Jobs while their database is out of reach, as when it is restarted: no run ends by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
import sqlalchemy
from click.testing import CliRunner
from dbos import DBOSClient
from dbos._sys_db import SystemDatabase
from loops import MODEL, SEED, quick, undisturbed_state, until
from loops_of_jobs import rests_at, train

from tinker_recovery import JournalError
from tinker_recovery.cli import main
from tinker_recovery.jobs import Jobs, reach
from tinker_recovery.testing import LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
STEPS = 8
SECRET = "of-the-Tests-0wn"  # noqa: S105 - a test's


class _Restart:
    """A database that cannot be reached, as our own client of it finds it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.refused = 0
        for name in ("list_workflows", "update_workflow_attributes", "enqueue"):
            monkeypatch.setattr(DBOSClient, name, self._unless_down(getattr(DBOSClient, name)))
        monkeypatch.setattr(reach, "AGAIN_S", 0.05)

    def _unless_down(self, call: Any) -> Any:
        def called(*args: Any, **given: Any) -> Any:
            if self.down:
                self.refused += 1
                lost = ConnectionError(f"postgresql://me:{SECRET}@host: Connection refused")
                raise sqlalchemy.exc.OperationalError("SELECT 1", {}, lost)
            return call(*args, **given)

        return called

    async def for_calls(self, count: int) -> None:
        """Be out of reach for as many calls, and then be there again."""
        self.down, self.refused = True, 0
        with anyio.fail_after(60):
            while self.refused < count:  # noqa: ASYNC110 - other threads ask it
                await anyio.sleep(0.02)
        self.down = False


@pytest.mark.timeout(180)
async def test_a_database_that_is_restarted_ends_no_run_and_no_wait_for_one(
    local: LocalTinker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    restart = _Restart(monkeypatch)
    args = {"steps": STEPS, "at": 3, "file": str(tmp_path / "go")}
    async with Jobs(tmp_path / "jobs.db", policy=quick(), starts_per_s=50.0) as jobs:
        handle = await jobs.submit(rests_at, name="one", args=args, **START)
        # In turn while it begins, while it is waited for, and while it ends.
        await restart.for_calls(3)
        async with anyio.create_task_group() as group:

            async def release() -> None:
                with anyio.fail_after(60):
                    while not any(local.run_state(run).steps == 3 for run in local.runs()):  # noqa: ASYNC110 - the worker's doing
                        await anyio.sleep(0.05)
                await restart.for_calls(5)
                restart.down = True
                (tmp_path / "go").touch()
                await restart.for_calls(40)

            group.start_soon(release)
            result = await handle.result()
        status = await handle.status()
    assert (result.step, result.retries, result.recoveries) == (STEPS, 0, 0)
    assert (status.state, status.step, status.run_ids) == ("finished", STEPS, result.run_ids)
    assert local.run_state(result.run_ids[-1]) == expected
    said = [each.getMessage() for each in caplog.records if each.name == "tinker_recovery"]
    assert any("database of jobs cannot be reached" in each for each in said)
    assert not any(SECRET in each for each in said)


@pytest.mark.timeout(180)
async def test_leaving_without_the_database_is_no_error_and_says_who_carries_on(
    local: LocalTinker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    del local
    restart = _Restart(monkeypatch)
    async with Jobs(tmp_path / "jobs.db", policy=quick(), starts_per_s=50.0) as jobs:
        first = await jobs.submit(train, name="first", args={"steps": 2}, **START)
        assert (await first.result()).step == 2
        restart.down = True
    assert any("another worker takes them over" in each.getMessage() for each in caplog.records)


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("local")
async def test_a_call_without_the_database_raises_one_named_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restart = _Restart(monkeypatch)
    file = str(tmp_path / "jobs.db")
    async with Jobs(file, work=False) as jobs:
        handle = await jobs.submit(train, name="one", args={"steps": 2}, **START)
        restart.down = True
        for call in (
            lambda: jobs.submit(train, name="two", args={"steps": 2}, **START),
            jobs.list,
            handle.status,
            handle.cancel,
            handle.retry,
        ):
            with pytest.raises(
                JournalError, match=r"cannot be reached: .*refused.*do it again"
            ) as no:
                await call()
            assert SECRET not in f"{no.value!r} {no.value.__cause__!r}"
    for command in (["list"], ["show", "one"], ["cancel", "one"], ["retry", "one"]):
        said = CliRunner().invoke(main, ["jobs", *command, "--database", file])
        assert (said.exit_code, SECRET in said.output) == (3, False), said.output
        assert "cannot be reached" in said.output


async def test_a_database_that_is_a_standby_for_now_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reach, "AGAIN_S", 0.01)

    class ReadOnly(Exception):
        sqlstate = "25006"

    asked = []

    def ask() -> str:
        asked.append(1)
        if len(asked) < 3:
            raise sqlalchemy.exc.InternalError("UPDATE", {}, ReadOnly("read-only transaction"))
        return "written"

    assert await reach.until_reached(ask) == "written"


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ("write_stream_from_step", True),
        ("record_operation_result", False),
        ("update_workflow_outcome", True),
    ],
)
async def test_a_disk_that_is_full_for_a_moment_fails_no_job_and_leaves_none_behind(
    local: LocalTinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, method: str, kept: bool
) -> None:
    full = {"left": 0}
    write = getattr(SystemDatabase, method)

    def refused(*given: Any, **named: Any) -> Any:
        if full["left"]:
            full["left"] -= 1
            raise sqlalchemy.exc.OperationalError("INSERT", {}, Exception("disk is full"))
        return write(*given, **named)

    monkeypatch.setattr(SystemDatabase, method, refused)
    monkeypatch.setattr("tinker_recovery.jobs.jobs.LOOK_S", 0.3)
    monkeypatch.setattr(reach, "AGAIN_S", 0.05)
    args = {"steps": STEPS, "at": 3, "file": str(tmp_path / "go")}
    async with Jobs(tmp_path / "jobs.db", policy=quick(), starts_per_s=50.0) as jobs:
        handle = await jobs.submit(rests_at, name="one", args=args, **START)
        await until(lambda: any(local.run_state(run).steps == 3 for run in local.runs()))
        full["left"] = 2
        (tmp_path / "go").touch()
        with anyio.fail_after(60):
            result = await handle.result()
    assert full["left"] == 0
    assert (result.step, result.retries) == (STEPS, 0)
    assert result.value_kept == kept
