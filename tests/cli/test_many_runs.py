"""An operator with two hundred runs: what commands print, in a pipe and in terminals."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from two_hundred import STATES, leave_a_long_run, leave_two_hundred

from tinker_recovery.cli import main
from tinker_recovery.cli.plot import Mark, axis, replays
from tinker_recovery.cli.records import Cell, Column, show_records
from tinker_recovery.cli.states import STYLES
from tinker_recovery.cli.watch.chosen import Chosen
from tinker_recovery.cli.watch.overview import overview, shortened
from tinker_recovery.cli.watch.rows import RunRow
from tinker_recovery.cli.watch.sources import JournalSource
from tinker_recovery.cli.watch.view import detail
from tinker_recovery.journal.reading import read_runs

COUNT = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of two hundred runs; only to be read."""
    # Of half an hour ahead: on a machine that stands still for minutes, none stalls meanwhile.
    return leave_two_hundred(tmp_path_factory.mktemp("many"), COUNT, now=time.time() + 1800)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal of a run of 5,000 steps and 20 recoveries; only to be read."""
    return leave_a_long_run(tmp_path_factory.mktemp("long"))


def _cli(*arguments: str, columns: int = 40) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"COLUMNS": str(columns)})


def _json(*arguments: str) -> Any:
    done = _cli(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def _terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        color_system=None,
        legacy_windows=False,
    )


def _printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_piped_each_run_is_one_line_of_which_nothing_is_cut(many: Path) -> None:
    head, *lines = _cli("runs", "--journal", str(many)).stdout.splitlines()
    assert len(lines) == COUNT
    (found,) = (line for line in lines if "seed023" in line)
    assert found.startswith("sweep-qwen3-8b-lr3e-4-seed023  ")
    assert "https://tinker.example" in found
    names = ["run", "state", "since", "step", "loss", "recov.", "last fault", "when", "job"]
    assert re.split(r"  +", head) == [*names, "host", "service"]
    for line in lines:
        cells = re.split(r"  +", line)
        assert len(cells) == len(names) + 2
        assert datetime.fromisoformat(cells[2]).utcoffset() is not None


def test_runs_are_chosen_by_state_sorted_and_limited(many: Path) -> None:
    journal = ("--journal", str(many))
    assert {run["state"] for run in _json("runs", *journal)} == {*STATES, "training"}
    failed = _json("runs", "--state", "failed", "--state", "stalled", *journal)
    assert len(failed) == STATES["failed"] + STATES["stalled"]
    assert all(run["last_fault"] for run in failed if run["state"] == "failed")
    losses = [run["loss"] for run in _json("runs", "--sort", "loss", "--limit", "9", *journal)]
    assert losses == sorted(losses)
    assert len(losses) == 9
    names = [run["run"] for run in _json("runs", "--sort", "name", *journal)]
    assert names == sorted(names)
    urgent = [run["state"] for run in _json("runs", "--sort", "trouble", *journal)]
    assert urgent == sorted(urgent, key=list(STYLES).index)
    recoveries = [run["recoveries"] for run in _json("runs", "--sort", "recoveries", *journal)]
    assert recoveries == sorted(recoveries, reverse=True)
    faults = [run["last_fault_at"] for run in _json("runs", "--sort", "fault", *journal)]
    dated = list(itertools.takewhile(bool, faults))
    assert dated == sorted(dated, reverse=True)
    assert not any(faults[len(dated) :])
    steps = [run["step"] for run in _json("runs", "--sort", "step", *journal)]
    assert steps == sorted(steps, reverse=True)
    wrong = _cli("runs", "--sort", "luck", *journal)
    assert wrong.exit_code == 2


def test_the_same_runs_are_in_runs_and_in_watch_and_show_their_job(many: Path) -> None:
    journal = ("--journal", str(many))
    listed, watched = _json("runs", *journal), _json("watch", "--once", *journal)
    keys = ("run", "state", "step", "loss", "recoveries", "last_fault", "job", "named", "since")
    assert [{key: run[key] for key in keys} for run in listed] == [
        {key: run[key] for key in keys} for run in watched
    ]
    assert sum(not run["named"] for run in listed) == 5
    named = ("--named", *journal)
    assert len(_json("runs", *named)) == len(_json("watch", "--once", *named)) == COUNT - 5
    (run,) = (run for run in listed if run["run"].endswith("seed001"))
    assert run["job"] == "sweep-qwen3-8b-lr3e-4-seed001 try 2"
    for command in (["runs"], ["watch", "--once"]):
        (line,) = (
            each for each in _cli(*command, *journal).stdout.splitlines() if "seed001" in each
        )
        assert "  try 2  " in line, "its name is that of the run"


def test_a_run_that_does_no_step_is_stalled_by_its_own_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("tinker_recovery.journal.reading.time", SimpleNamespace(time=lambda: now))
    file = leave_two_hundred(tmp_path, 20, now=now)
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("DELETE FROM leases")
        database.execute(
            "INSERT INTO leases SELECT id, 1, 'x', 0, 'gpu', 'another', 1, '1', 0, 0 FROM runs"
        )
        database.execute("UPDATE runs SET state = 'training', step = 100")
        database.execute("UPDATE attempts SET start_step = 0")
        for run, (pace, quiet) in enumerate(
            ((2, 290), (2, 310), (1000, 4900), (1000, 5100), (2, 0)), 1
        ):
            database.execute("UPDATE runs SET updated = ? WHERE id = ?", (now - quiet, run))
            began = now - quiet - 100 * pace
            database.execute("UPDATE attempts SET started = ? WHERE run = ?", (began, run))
        # Before the first step of an attempt nobody knows how long one takes.
        database.execute("UPDATE runs SET step = 0, updated = ? WHERE id IN (6, 7)", (now - 1700,))
        database.execute("UPDATE runs SET updated = ? WHERE id = 7", (now - 1900,))
    states = {run.id: run.display_state for run in read_runs(file)}
    wanted = {1: "training", 2: "stalled", 3: "training", 4: "stalled", 5: "training"}
    assert {run: states[run] for run in wanted} == wanted
    assert (states[6], states[7]) == ("training", "stalled")
    quiet_since = {run.id: run.quiet_since for run in read_runs(file)}
    assert quiet_since[1] == now - 290, (
        "of steps of 2 s none for longer than three of them, and 30 s"
    )
    assert quiet_since[3] == now - 4900
    assert [quiet_since[each] for each in (2, 5, 6)] == [None] * 3, (
        "stalled, at its pace, before a first step"
    )
    listed = _terminal(80)
    monkeypatch.setattr("tinker_recovery.cli.runs.plain_console", lambda: listed)
    named = {run.id: run.name for run in read_runs(file)}
    with monkeypatch.context() as patched:
        patched.setattr("tinker_recovery.cli.runs.time", SimpleNamespace(time=lambda: now))
        assert _cli("runs", "--journal", str(file)).exit_code == 0
    (line,) = (each for each in _printed(listed) if each.startswith(named[1]))
    assert "training (no step for 4 min)" in line
    (row,) = (each for each in _json("watch", named[1], "--once", "--journal", str(file)))
    assert row["quiet_since"] == now - 290
    assert row["quiet_since_at"]


def test_two_hundred_runs_are_read_in_one_opening_of_the_journal(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    connect = sqlite3.connect

    def counting(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(arguments)
        connection: sqlite3.Connection = connect(*arguments, **options)
        return connection

    monkeypatch.setattr(sqlite3, "connect", counting)
    assert _cli("runs", "--journal", str(many)).exit_code == 0
    assert len(opened) == 1


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_watch_of_two_hundred_fits_the_terminal_with_trouble_first(
    width: int, many: Path
) -> None:
    rows = JournalSource(many, Chosen()).rows()
    console = _terminal(width)
    console.print(overview(rows, now=time.time(), width=width, height=24))
    lines = _printed(console)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= 24 - 2, "and the line on how to quit"
    whole = " ".join(" ".join(lines).split())
    assert whole.startswith("200 runs: 3 failed, 2 dead, 1 stalled, 4 recovering, 125 training")
    start = next(place for place, line in enumerate(lines) if line.startswith("run "))
    states = [line.split()[1] for line in lines[start + 1 :] if "seed" in line]
    assert states == sorted(states, key=list(STYLES).index)
    assert len(states) >= 14
    assert f"and {COUNT - len(states)} more" in whole
    assert all("seed" in line.split()[0] for line in lines[start + 1 : start + len(states)])


def test_a_watch_of_some_states_shows_those(many: Path) -> None:
    rows = _json("watch", "--once", "--state", "dead", "--journal", str(many))
    assert [row["state"] for row in rows] == ["dead"] * STATES["dead"]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_long_run_is_watched_without_a_line_that_wraps(width: int, long: Path) -> None:
    source = JournalSource(long, Chosen("long"))
    console = _terminal(width)
    shown = detail(
        source.rows()[0], source.detail(), source.news(), now=time.time(), width=width, height=40
    )
    console.print(shown)
    lines = _printed(console)
    assert all(cell_len(line) <= width for line in lines)
    assert len(lines) <= 40 - 2
    (steps,) = (line for line in lines if line.strip().startswith("step  "))
    assert (steps.split()[1], steps.split()[-1]) == ("3", "4998")
    assert len(steps) == width - 1 or width == 60
    assert sum("→" in line for line in lines) == 3, "each arrow is on one line"
    assert "1 above, up to 40.6" in " ".join(lines), "the scale is not that of the one spike"


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(12, 130))
def test_no_axis_is_wider_than_its_curve(first: int, steps: int, width: int) -> None:
    line = axis(steps, width=width, first=first)
    assert len(line) <= width
    labels = line.split()
    assert labels[-1] == str(first + steps)
    assert labels == sorted(labels, key=int)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_an_arrow_has_its_label_where_there_is_room(one: int, other: int) -> None:
    low, high = sorted((one, other))
    (line,) = replays([Mark(high, low)], 5000, width=60)
    assert f"step {high} → {low}" in line
    assert len(line) <= 60


def test_a_name_that_is_too_long_keeps_its_end() -> None:
    assert shortened("sweep-qwen3-8b-lr3e-4-seed023", 16).endswith("seed023")
    assert len(shortened("sweep-qwen3-8b-lr3e-4-seed023", 16)) == 16
    assert shortened("sft", 16) == "sft"


COLUMNS = (
    Column("run", 0),
    Column("step", 2, right=True),
    Column("path", 1),
    Column("service", 3, once=True),
    Column("job", 4, sparse=True),
)
PATH = "tinker://0d3f8f5e-5c1e-5d1e-9a51-0123456789ab:train:0/weights/step-00000042-aaaa"


@pytest.mark.parametrize("width", [30, 60, 90, 160])
def test_in_a_terminal_no_value_is_split_and_what_all_share_is_said_once(width: int) -> None:
    console = _terminal(width)
    show_records(console, COLUMNS, [(f"run{n}", str(n), PATH, "http://x", "-") for n in range(3)])
    lines = _printed(console)
    assert sum(PATH in line for line in lines) == 3
    assert [line for line in lines if "http://x" in line] == ["service http://x"]
    assert not any("job" in line for line in lines)
    if width >= 94:
        assert len(lines) == 1 + 3 + 1


def test_what_does_not_fit_stands_below_its_record_by_rank() -> None:
    console = _terminal(20)
    show_records(console, COLUMNS, [("run-with-a-name", "7", "short", "http://x", "j")])
    assert _printed(console) == [
        "run",
        "run-with-a-name",
        "    step 7",
        "    path short",
        "    service http://x",
        "    job j",
    ]


def test_one_long_name_does_not_push_the_columns_of_the_others_away() -> None:
    console = Console(file=io.StringIO(), width=20)
    columns = (Column("run"), Column("step"))
    show_records(console, columns, [("a", "1"), ("b" * 900, "2"), (Cell("x", plain="y"), "3")])
    paths = Console(file=io.StringIO(), width=20)
    show_records(paths, (Column("path"), Column("notes")), [(PATH, "-")] * 3)
    assert _printed(paths)[0].index("notes") == len(PATH) + 2
    head, first, second, third = _printed(console)
    assert len(first) < 60
    assert head.index("step") == first.index("1") == third.index("3")
    assert third.startswith("y ")
    assert second == "b" * 900 + "  2"


def test_errors_are_json_where_the_output_is(many: Path, tmp_path: Path) -> None:
    journal = ("--journal", str(many))
    for status, arguments, said in (
        (1, ["show", "nobody", *journal], "there is no run 'nobody'"),
        (1, ["show", "seed023x", *journal], "; its runs: "),
        (1, ["show", "seed0", *journal], "did you mean sweep-"),
        (3, ["runs", "--journal", str(tmp_path)], "there is no journal at"),
        (2, ["runs", "--sort", "luck"], "is not one of"),
        (2, ["checkpoints", "list", "--al"], "No such option"),
        (2, ["checkpoint", "lst"], "No such command"),
        (2, ["rusn"], "Did you mean"),
    ):
        done = _cli(*arguments, "--json")
        assert done.exit_code == status, done.output
        assert done.stdout == ""
        error = json.loads(done.stderr)
        assert error["status"] == status
        assert said in error["error"]
        plainly = _cli(*arguments)
        assert plainly.exit_code == status
        assert said in plainly.stderr


def test_what_is_behind_two_dashes_is_not_ours(tmp_path: Path) -> None:
    done = _cli("run", "--bogus=1", "--", "true", "--json")
    assert done.exit_code in (2, 127)
    assert not done.stderr.startswith("{")
    del tmp_path


def test_times_in_json_are_in_seconds_and_in_iso_8601_with_a_zone(many: Path, long: Path) -> None:
    (run,) = _json("runs", "--limit", "1", "--journal", str(many))
    shown = _json("show", "long", "--journal", str(long))
    (row,) = _json("watch", "long", "--once", "--journal", str(long))
    for record, key in (
        *((run, each) for each in ("created", "updated", "since", "held_since")),
        (shown, "created"),
        (shown["attempts"][0], "started"),
        (shown["incidents"][0], "ended"),
        (shown["checkpoints"][0], "saved"),
        (shown["events"][0], "time"),
        (row, "checkpoint_saved"),
        (row["event"], "time"),
    ):
        moment = datetime.fromisoformat(record[f"{key}_at"])
        assert moment.utcoffset() is not None
        assert abs(moment.timestamp() - record[key]) < 1


def test_the_words_of_the_sdks_own_command_work_and_a_script_of_that_name_still_runs(
    many: Path, tmp_path: Path
) -> None:
    journal = ("--journal", str(many))
    assert _cli("run", "list", *journal).stdout == _cli("runs", *journal).stdout
    name = "sweep-qwen3-8b-lr3e-4-seed023"
    assert _cli("run", "info", name, *journal).stdout == _cli("show", name, *journal).stdout
    listing = ("list", "--help")
    assert _cli("checkpoint", *listing).stdout == _cli("checkpoints", *listing).stdout
    program = tmp_path / "list"
    program.write_text("#!/bin/sh\necho trained\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "tinker_recovery.cli", "run"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for arguments in (["--", "list"], ["--max-restarts", "0", "--", "list"]):
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, *arguments], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "trained\n"


def _completed(*words: str) -> list[str]:
    complete = ShellComplete(main, {}, "tinker-recovery", "_TINKER_RECOVERY_COMPLETE")
    return [each.value for each in complete.get_completions(list(words[:-1]), words[-1])]


def test_a_shell_completes_commands_options_and_names_of_runs(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(many.parent))
    assert "runs" in _completed("ru")
    assert "--sort" in _completed("runs", "--so")
    name = "sweep-qwen3-8b-lr3e-4-seed023"
    for command in (["show"], ["watch"], ["report"], ["abandon"], ["recover"]):
        found = _completed(*command, name[:-1])
        assert sorted(found) == [f"{name[:-1]}{digit}" for digit in range(10)]
    assert name in _completed("checkpoints", "list", "--run", name[:-1])
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(many.parent / "nowhere"))
    assert _completed("show", "") == []


def test_no_name_is_completed_that_a_shell_would_act_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = leave_two_hundred(tmp_path, 6)
    hostile = ["$(touch x)", "`x`", "a b", "a;b", "a\\x1b[2J", "plain-name_1.5:train/x"]
    with closing(sqlite3.connect(file)) as database, database:
        for run, name in enumerate(hostile, 1):
            database.execute("UPDATE runs SET name = ? WHERE id = ?", (name, run))
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path))
    assert [each for each in _completed("show", "") if each in hostile] == [hostile[-1]]


def test_help_documents_completion_and_the_other_words() -> None:
    shown = _cli("--help", columns=100).stdout
    assert "_TINKER_RECOVERY_COMPLETE=bash_source" in shown
    assert "run list" in shown


def test_no_two_commands_of_a_group_are_one_name() -> None:
    assert isinstance(main, click.Group)
    assert not {"checkpoint", "list"} & set(main.list_commands(click.Context(main)))


def test_a_row_of_events_has_its_last_fault_and_its_job() -> None:
    from tinker_recovery.cli.watch.rows import after  # noqa: PLC0415 - of this one test
    from tinker_recovery.telemetry import RecoveryEvent, names  # noqa: PLC0415 - the same

    row: RunRow | None = None
    for name, message, fields, at in (
        (names.EVENT_JOB_TRY, "job sft try 2", {}, 1.0),
        (names.EVENT_DETECTED, "poisoned", {names.FAULT_KIND: "poisoned"}, 2.0),
    ):
        row = after(row, RecoveryEvent(name, "sft", message, fields, at))
    assert row is not None
    assert (row.job, row.last_fault, row.last_fault_time) == ("sft try 2", "poisoned", 2.0)
    assert (row.state, row.since) == ("recovering", 2.0)
