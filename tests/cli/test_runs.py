"""``runs``, ``show`` and ``abandon``: runs in the journal, as text and as JSON."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import re
import socket
import sqlite3
import time

import pytest
from click.testing import CliRunner, Result
from inspection import set_beat_s
from loops import MODEL, policy, train

from tinker_recovery import LeaseLost, Supervisor
from tinker_recovery.cli import main
from tinker_recovery.journal.journal import default_path
from tinker_recovery.report.words import moment
from tinker_recovery.testing import LocalTinker


def _cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


async def test_a_run_is_listed_shown_and_forgotten_and_its_name_starts_over(
    local: LocalTinker,
) -> None:
    local.poison(at_step=7)
    loop = functools.partial(train, steps=12)
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, name="sft-42")
        await supervisor.run(functools.partial(train, steps=1), base_model=MODEL)
    both = [run["run"] for run in json.loads(_cli("runs", "--json").stdout)]
    assert len(both) == 2, "what has no name of its own is listed as well, as `watch` shows it"
    (run,) = json.loads(_cli("runs", "--named", "--json").stdout)
    assert (run["run"], run["state"], run["step"], run["pid"]) == ("sft-42", "finished", 12, None)
    assert (run["recoveries"], run["last_fault"], run["job"]) == (1, "request_failed", None)
    assert [run["run"] for run in json.loads(_cli("watch", "--once", "--json").stdout)] == both
    assert [run["run"] for run in json.loads(_cli("runs", "--all", "--json").stdout)] == both
    assert "sft-42" in _cli("runs").stdout
    shown = json.loads(_cli("show", "sft-42", "--json").stdout)
    assert (run["next_save_step"], shown["next_save_step"]) == (None, None), "it saves no more"
    assert [each["outcome"] for each in shown["attempts"]] == ["request_failed", "finished"]
    assert [(each["step"], each["to_step"]) for each in shown["incidents"]] == [(8, 5)]
    assert [each["step"] for each in shown["checkpoints"]] == [5, 10, 12]
    text = _cli("show", "sft-42").stdout
    assert "finished, at step 12" in text
    assert "recovery.completed" in text
    assert all(attempt["run_id"] in text for attempt in shown["attempts"])
    assert json.loads(_cli("abandon", "sft-42", "--json").stdout) == {
        "run": "sft-42",
        "service": local.base_url,
        "was": "finished",
        "checkpoints_kept": 3,
    }
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, name="sft-42")
    assert [attempt.start_step for attempt in supervisor.runs[0].attempts] == [0]


async def test_a_run_that_is_being_trained_is_forgotten_only_by_force_and_then_ends(
    local: LocalTinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    del local
    set_beat_s(monkeypatch, 0.02)
    with pytest.raises(LeaseLost):
        async with Supervisor(policy()) as supervisor:
            async for attempt in supervisor.attempts(base_model=MODEL, name="sft-42"):
                async with attempt:
                    held = await asyncio.to_thread(_cli, "abandon", "sft-42")
                    assert held.exit_code == 4
                    assert "is being trained by process" in held.stderr
                    forced = await asyncio.to_thread(_cli, "abandon", "sft-42", "--force")
                    assert forced.exit_code == 0
                    await asyncio.Event().wait()


async def test_a_run_that_is_held_names_the_process_and_the_host_of_its_holder(
    local: LocalTinker,
) -> None:
    del local
    async with Supervisor(policy()) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, name="sft-42"):
            async with attempt:
                for holder in (socket.gethostname(), "gpu-7"):
                    (run,) = json.loads(_cli("runs", "--json").stdout)
                    assert (run["pid"], run["host"]) == (os.getpid(), holder)
                    assert abs(time.time() - run["held_since"]) < 60
                    assert re.search(rf"host.*\nsft-42.* {holder} ", _cli("runs").stdout)
                    since = moment(run["held_since"])
                    line = f"held by process {os.getpid()} on {holder} since {since}"
                    shown = _cli("show", "sft-42").stdout
                    assert [each for each in shown.splitlines() if each.startswith(line)]
                    whole = json.loads(_cli("show", "sft-42", "--json").stdout)
                    for each in ("pid", "host", "held_since"):
                        assert whole[each] == run[each]
                    # As another machine leaves it in a journal that both can reach.
                    with sqlite3.connect(default_path()) as journal:
                        journal.execute("UPDATE leases SET host = 'gpu-7', machine = 'another'")
    (run,) = json.loads(_cli("runs", "--json").stdout)
    assert (run["pid"], run["host"], run["held_since"]) == (None, None, None)
    assert "held by" not in _cli("show", "sft-42").stdout


def test_help_says_that_a_run_held_at_the_service_alone_is_not_seen() -> None:
    for command in ("runs", "show"):
        text = " ".join(_cli(command, "--help").stdout.split())
        assert "The service is not asked" in text
        assert "journal of its own" in text


def test_without_a_journal_the_exit_status_is_3() -> None:
    for arguments in (["runs"], ["show", "x"], ["abandon", "x"]):
        done = _cli(*arguments)
        assert done.exit_code == 3
        assert "there is no journal at" in done.stderr


async def test_an_unknown_run_is_status_1(local: LocalTinker) -> None:
    del local
    async with Supervisor(policy()):
        pass
    for command in ("show", "abandon"):
        done = _cli(command, "unknown")
        assert done.exit_code == 1
        assert "there is no run 'unknown'" in done.stderr


async def test_a_run_shows_the_job_and_the_try_that_trains_it(local: LocalTinker) -> None:
    del local
    for number in (1, 2):
        with pytest.raises(ZeroDivisionError):
            async with Supervisor(policy()) as supervisor:
                async for attempt in supervisor.attempts(
                    base_model=MODEL, name="sft-42", job=f"sft-42 try {number}"
                ):
                    async with attempt:
                        (run,) = json.loads(_cli("runs", "--json").stdout)
                        (row,) = json.loads(_cli("watch", "--once", "--json").stdout)
                        assert run["job"] == row["job"] == f"sft-42 try {number}"
                        assert f"  try {number}  " in _cli("runs").stdout
                        assert f"job sft-42 try {number}" in _cli("show", "sft-42").stdout
                        raise ZeroDivisionError


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    "command",
    [
        ["runs"],
        ["show", "sft"],
        ["report", "sft"],
        ["watch", "--once"],
        ["abandon", "sft"],
        ["recover", "sft"],
        ["export", "sft", "--to", "to"],
        ["checkpoints", "list"],
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_journal_that_may_not_be_looked_at_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, command: list[str], way: str
) -> None:
    """As that of root; here by a name that no file can have, which stops root as well."""
    folder = f"/{'x' * 300}"
    given = ["--journal", f"{folder}/journal.sqlite3"] if way == "option" else []
    if way == "variable":
        monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", folder)
    done = _cli(*command, *given)
    assert done.exit_code == 3
    assert "journal.sqlite3 cannot be used: [Errno " in done.stderr
    assert isinstance(done.exception, SystemExit)
