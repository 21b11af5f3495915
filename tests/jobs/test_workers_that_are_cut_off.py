"""A worker that was paused or cut off, and whose claims the service has ended meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from inspection import open_claims, set_claim_s
from loops import MODEL, SEED, quick, until
from loops_of_jobs import rests_at

from tinker_recovery.errors import LeaseLost
from tinker_recovery.jobs import JobFailed, Jobs, presence
from tinker_recovery.run.claiming import Claiming
from tinker_recovery.testing import LocalTinker

START: dict[str, Any] = {"base_model": MODEL, "rank": 8, "seed": SEED}
STEPS, AT = 4, 2


@pytest.fixture(autouse=True)
def _the_runs_are_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heartbeats of the runs' claims find out at once, and those of the worker's never."""

    def late(*given: Any, **named: Any) -> Claiming:
        with monkeypatch.context() as patch:
            set_claim_s(patch, settle=0.02, look=0.02, beat=600.0)
            return Claiming(*given, **named)

    set_claim_s(monkeypatch, settle=0.02, look=0.02, beat=0.2)
    monkeypatch.setattr(presence, "Claiming", late)


def _jobs() -> Jobs:
    return Jobs(policy=quick(), starts_per_s=50.0)


def _rests(local: LocalTinker) -> bool:
    return [local.run_state(each).steps for each in local.runs()] == [AT]


@pytest.mark.timeout(120)
async def test_a_job_whose_worker_has_lost_its_claim_as_well_is_carried_on_and_not_failed(
    local: LocalTinker, tmp_path: Path
) -> None:
    args = {"steps": STEPS, "at": AT, "file": str(tmp_path / "go")}
    with pytest.raises(LeaseLost, match="claim of this worker"), anyio.fail_after(60):
        async with _jobs() as jobs:
            handle = await jobs.submit(rests_at, name="cut off", args=args, **START)
            await until(lambda: _rests(local))
            for claim in open_claims(local):
                local.fail_session(claim)
            await handle.result()
    (tmp_path / "go").touch()
    async with _jobs() as jobs:
        result = await jobs.handle("cut off").result()
    assert (result.step, result.retries) == (STEPS, 0)


@pytest.mark.timeout(120)
async def test_a_job_whose_run_alone_is_lost_has_failed(local: LocalTinker, tmp_path: Path) -> None:
    args = {"steps": STEPS, "at": AT, "file": str(tmp_path / "go")}
    async with _jobs() as jobs:
        (worker,) = open_claims(local)
        handle = await jobs.submit(rests_at, name="lost", args=args, **START)
        await until(lambda: _rests(local))
        (claim,) = set(open_claims(local)) - {worker}
        local.fail_session(claim)
        with pytest.raises(JobFailed, match="not held by this process any more"):
            await handle.result()
    for left in [key for key, state in local.sessions().items() if state == "active"]:
        local.fail_session(left)  # for whoever takes the run over
