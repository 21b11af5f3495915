"""``tinker-recovery doctor``, run as a user runs it: in a process of its own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import anyio
import pytest
from click.testing import CliRunner
from inspection import doctor_for_machines, doctor_for_people, doctor_status
from loops import until

from tinker_recovery.cli import main
from tinker_recovery.doctor import Report
from tinker_recovery.doctor.comparison import Diagnosis, OptimizerFinding
from tinker_recovery.testing import FaultRule, LocalTinker


async def _run(local: LocalTinker, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "TINKER_BASE_URL": local.base_url, "TINKER_API_KEY": local.api_key}
    command = [sys.executable, "-m", "tinker_recovery.cli", "doctor", *arguments]
    with anyio.fail_after(50):
        return await anyio.run_process(command, env=env, check=False)


def test_the_result_is_a_sentence_with_the_distances_behind_it() -> None:
    found = Diagnosis(
        OptimizerFinding.WITHIN_NOISE, "It comes back.", 1.0, 0.0, 0.5, 0.01, 0.0, math.inf
    )
    report = Report("http://x", "0.38.0", "m", 8, 4, 1e-3, found)
    shown = doctor_for_people(report)
    assert shown.startswith("It comes back.\n\nLogprobs at http://x, tinker 0.38.0, m, rank 8")
    assert "with the optimizer, differ by    0.01" in shown
    result = doctor_for_machines(report)
    assert (result["finding"], result["real"], result["noise_after"]) == (
        "within_noise",
        True,
        None,
    )
    assert json.loads(json.dumps(result)) == result
    assert {finding: doctor_status(real=finding.real) for finding in OptimizerFinding} == {
        OptimizerFinding.EXACT: 0,
        OptimizerFinding.WITHIN_NOISE: 0,
        OptimizerFinding.INEXACT: 1,
        OptimizerFinding.COLD: 1,
        OptimizerFinding.WEIGHTS_CHANGED: 1,
        OptimizerFinding.INCONCLUSIVE: 3,
    }


async def test_a_cold_restore_is_status_1_and_one_json_object() -> None:
    async with LocalTinker(cold_optimizer=True) as local:
        done = await _run(local, "--json", "--steps", "3", "--rank", "4")
        assert done.returncode == 1, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert (result["finding"], result["real"]) == ("cold", False)
        assert result["restored_off"] == result["optimizer_part"] > 0
        assert (result["base_url"], result["rank"], result["steps"]) == (local.base_url, 4, 3)
        assert result["facts"]["optimizer restored"]["found"] == "no"
        assert result["facts"]["export"]["promise"].startswith("The bytes of checkpoints can be")
        assert b"s] resuming with optimizer, one step" in done.stderr
        assert "active" not in local.sessions().values()
        assert local.api_key not in done.stdout.decode() + done.stderr.decode()


async def test_the_table_of_a_bare_service_fits_80_columns_and_is_status_0() -> None:
    async with LocalTinker(dialect="bare") as local:
        done = await _run(local)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    _, _, table = shown.partition("What this service does:\n")
    assert len(table.splitlines()) >= 24
    assert max(map(len, table.splitlines())) <= 80
    assert "  export              missing\n      Bytes cannot be verified" in table
    unguarded = (
        "one trainer by the journal (reading sessions/search: HTTP 404) Processes that share"
    )
    assert unguarded in " ".join(table.split())


async def test_trials_that_fail_leave_the_exit_status_to_the_optimizer() -> None:
    done: list[subprocess.CompletedProcess[bytes]] = []

    async def run(local: LocalTinker) -> None:
        done.append(await _run(local, "--json"))

    async with LocalTinker() as local:
        local.inject(FaultRule("fail", request="save_weights_external"))
        await run(local)
    async with LocalTinker() as local, anyio.create_task_group() as group:
        group.start_soon(run, local)
        # The examination's last session is open: a first step is now one of a trial.
        await until(lambda: len(local.sessions()) == 4, 40.0)
        local.inject(FaultRule("fail", at_step=0, request="forward_backward"))
    failed, cut = done
    for each, export in ((failed, "failed"), (cut, None)):
        assert each.returncode == 0, each.stderr
        facts = json.loads(each.stdout.splitlines()[-1])["facts"]
        assert facts["optimizer restored"]["found"] == "yes"
        assert facts.get("export", {}).get("found") == export
    assert b"the rest of the table was not found out" in cut.stderr


async def test_a_service_out_of_reach_is_status_3_within_seconds() -> None:
    async with LocalTinker() as local:
        pass
    done = await _run(local, "--json")
    assert done.returncode == 3, done.stderr
    error = json.loads(done.stderr.splitlines()[-1])  # as --help says of every command
    assert (done.stdout, error["status"]) == (b"", 3)
    assert "cannot be reached: nothing listens" in error["error"]


@pytest.mark.parametrize(
    "arguments", [["--steps", "1"], ["--rank", "0"], ["--timeout", "0"], ["--timeout", "x"]]
)
def test_a_wrong_option_is_status_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["doctor", *arguments])
    assert done.exit_code == 2
    assert arguments[1] in done.output


def test_help_says_what_it_does_what_it_costs_and_what_the_exit_status_means() -> None:
    done = CliRunner().invoke(main, ["doctor", "--help"])
    assert done.exit_code == 0
    for word in ("resumed with weights only", "Costs up to eleven sessions", "Exit status: 0 if"):
        assert word in " ".join(done.output.split())
