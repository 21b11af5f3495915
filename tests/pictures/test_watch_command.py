"""``watch``: what it shows of a journal and of a stream of events, and how it is left."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from poisoned_run import EVENTS, NAME, STEPS

from tinker_recovery.cli import main
from tinker_recovery.cli.watch.rows import RunRow, after
from tinker_recovery.journal.journal import JOURNAL_FILE
from tinker_recovery.telemetry import RecoveryEvent, from_json_line, json_line, names

COMMAND = [sys.executable, "-m", "tinker_recovery.cli", "watch"]


def _watch(*arguments: str, given: str | None = None) -> tuple[int, str, str]:
    done = CliRunner(env={"COLUMNS": "130"}).invoke(main, ["watch", *arguments], input=given)
    return done.exit_code, done.stdout, done.stderr


def test_once_shows_the_state_of_each_run(written: Path) -> None:
    status, shown, _ = _watch("--journal", str(written), "--once")
    assert status == 0
    assert re.search(rf"finished +\S+ +{STEPS} +\S+ +2 +\S+ +{STEPS} at \d{{4}}-", shown)
    assert f"saved at step {STEPS}" in shown


def test_tries_at_a_recovery_are_called_recovery_attempts_on_every_screen(written: Path) -> None:
    _, many, _ = _watch("--journal", str(written), "--once")
    _, one, _ = _watch(NAME, "--journal", str(written), "--once")
    page = CliRunner().invoke(main, ["report", NAME, "--journal", str(written), "-o", "-"]).stdout
    for shown in (many, one, page):
        assert "recovery attempts left" in shown
        assert not re.search(r"(?<!recovery )attempts left|\btries\b", shown)


def test_one_run_is_shown_with_its_curve_its_attempts_incidents_and_events(written: Path) -> None:
    status, shown, _ = _watch(NAME, "--journal", str(written), "--once")
    assert status == 0
    assert "⠉" in shown, "a curve"
    assert shown.count("◄") + shown.count("✗ step") >= 2, "an arrow for each recovery"
    assert re.search(r"3 +\d+ +finished +step-0+\d+-\S+", shown), "the last attempt"
    assert len(re.findall(r" recovered$", shown, re.MULTILINE)) == 2
    assert "recovered: the loop runs again from step" in shown


def test_once_as_json_is_one_array(written: Path) -> None:
    status, said, _ = _watch("--journal", str(written), "--once", "--json")
    (row,) = json.loads(said)
    assert status == 0
    assert (row["run"], row["state"], row["step"], row["recoveries"]) == (
        NAME,
        "finished",
        STEPS,
        2,
    )
    assert (row["checkpoint_step"], row["next_save_step"]) == (STEPS, None)
    assert isinstance(row["loss"], float)
    assert row["event"]["name"] == names.EVENT_CHECKPOINT_SAVED


def test_runs_that_are_not_in_the_state_asked_for_are_not_said_not_to_be(written: Path) -> None:
    status, shown, _ = _watch("--journal", str(written), "--once", "--state", "failed")
    assert (status, shown.strip()) == (0, "0 of 1 run chosen (see --state, --named)")
    _, shown, _ = _watch(NAME, "--journal", str(written), "--once", "--state", "failed")
    assert shown.strip() == "0 of 1 run chosen (see --state, --named)"
    lines = (written / EVENTS).read_text()
    _, shown, _ = _watch("--events", "-", "--once", "--state", "failed", given=lines)
    assert shown.strip() == "0 of 1 run chosen (see --state, --named)"


def test_an_unknown_run_or_file_is_reported_with_what_there_is(
    written: Path, tmp_path: Path
) -> None:
    for expected, arguments, said in (
        (3, ["--journal", str(tmp_path)], "there is no journal at"),
        (1, ["sft", "--journal", str(written)], "; did you mean <script>"),
        (3, ["--events", str(tmp_path / "none")], "No such file"),
    ):
        status, _, errors = _watch(*arguments, "--once")
        assert status == expected, errors
        assert said in errors
    status, _, errors = _watch("--events", "-", "--journal", str(written))
    assert status == 2
    assert "do not go together" in errors


def test_a_process_that_was_killed_is_distinguished_from_one_that_trains(
    written: Path, tmp_path: Path
) -> None:
    file = tmp_path / JOURNAL_FILE
    shutil.copy(written / JOURNAL_FILE, file)
    with closing(sqlite3.connect(file)) as database, database:
        # Of this moment: it was written when the first test here began, for all of them.
        database.execute("UPDATE runs SET state = 'training', updated = ?", (time.time(),))
        database.execute("UPDATE leases SET holder = 'dead', pid = 4194305")
    _, said, _ = _watch("--journal", str(file), "--once", "--json")
    assert json.loads(said)[0]["state"] == "dead"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE leases SET machine = 'of another'")
    _, said, _ = _watch("--journal", str(file), "--once", "--json")
    (row,) = json.loads(said)
    assert (row["state"], row["next_save_step"]) == ("training", STEPS + 5 - STEPS % 5)


def test_events_of_another_process_are_shown_as_they_come_and_end_with_their_stream(
    written: Path,
) -> None:
    lines = (written / EVENTS).read_text() + "not an event\n\n"
    status, said, errors = _watch("--events", "-", "--once", "--json", given=lines)
    (row,) = json.loads(said)
    assert (status, row["run"], row["recoveries"], row["step"]) == (0, NAME, 2, STEPS)
    status, said, errors = _watch("--events", "-", "--interval", "0.05", given=lines)
    assert status == 0
    assert "training, step" in said
    assert "lines skipped because they are not events: 1" in errors
    status, shown, _ = _watch(NAME, "--events", str(written / EVENTS), "--once")
    assert status == 0
    assert "recovered: the loop runs again from step" in shown
    assert _watch("sft", "--events", "-", "--once", given=lines)[1].strip() == "no runs yet"


def _read_until(read: Callable[[], str], wanted: str, limit_s: float = 20) -> str:
    shown, deadline = "", time.monotonic() + limit_s
    while wanted not in shown and time.monotonic() < deadline:
        shown += read()
    assert wanted in shown
    return shown


def test_in_a_terminal_it_shows_changes_as_they_are_written_and_ctrl_c_leaves_with_status_0(
    written: Path, tmp_path: Path
) -> None:
    file = tmp_path / JOURNAL_FILE
    shutil.copy(written / JOURNAL_FILE, file)
    ours, its = pty.openpty()
    watching = subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "--journal", str(file), "--interval", "0.05"],
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "COLUMNS": "130", "LINES": "30", "TERM": "xterm"},
    )
    os.close(its)

    def read() -> str:
        ready, _, _ = select.select([ours], [], [], 1)
        return os.read(ours, 65536).decode(errors="replace") if ready else ""

    try:
        first = _read_until(read, "finished")
        assert re.match(r"reading the journal \.\.\.\r\x1b\[2K(?!.*reading)", first, re.DOTALL), (
            first
        )
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE runs SET state = 'failed', step = 777")
        assert "failed" in _read_until(read, "777")
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=10) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)


def test_ctrl_c_ends_it_while_it_waits_for_an_event(written: Path) -> None:
    watching = subprocess.Popen(  # noqa: S603 - our own command
        [*COMMAND, "--events", "-", "--interval", "0.05"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stdin is not None
    assert watching.stdout is not None
    try:
        of_no_run = json_line(RecoveryEvent(names.EVENT_MASS_OVER, "", "it is over"))
        watching.stdin.write((written / EVENTS).read_text() + of_no_run + "\n")
        watching.stdin.flush()
        shown = ""
        while "training, step" not in shown:
            shown += watching.stdout.readline()
        watching.send_signal(signal.SIGINT)
        rest, errors = watching.communicate(timeout=10)
    finally:
        watching.kill()
        watching.wait()
    assert (watching.returncode, errors) == (0, "")
    assert "-: training" not in shown + rest, "an event that concerns no single run makes no row"


attributes = st.dictionaries(
    st.text(max_size=9), st.text(max_size=9) | st.integers() | st.booleans()
)
happened = st.builds(
    RecoveryEvent,
    name=st.sampled_from(
        [names.EVENT_DETECTED, names.EVENT_COMPLETED, names.EVENT_EXHAUSTED, "another"]
    ),
    run=st.sampled_from(["a", "b", ""]),
    message=st.text(max_size=20),
    fields=attributes,
    time=st.floats(0, 1e10),
)


@settings(max_examples=50)
@given(happened)
def test_an_event_is_the_same_after_it_was_a_line(event: RecoveryEvent) -> None:
    line = json_line(event)
    assert "\n" not in line
    assert from_json_line(line) == event


@settings(max_examples=50)
@given(st.binary(max_size=40) | st.text(max_size=40) | happened.map(lambda e: json_line(e)[:-1]))
def test_a_line_that_is_no_event_is_refused_and_nothing_else_happens(line: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_json_line(line)


@settings(max_examples=20)
@given(st.lists(happened, min_size=1, max_size=8))
def test_a_row_from_events_counts_recoveries_and_has_the_newest(
    history: list[RecoveryEvent],
) -> None:
    row: RunRow | None = None
    for event in history:
        row = after(row, event)
    assert row is not None
    assert row.recoveries == sum(each.name == names.EVENT_COMPLETED for each in history)
    assert row.event is not None
    assert row.event.time == history[-1].time
    if history[-1].name == names.EVENT_EXHAUSTED:
        assert row.state == "failed"


def _event(name: str, run: str, message: str, **fields: str) -> str:
    return json_line(RecoveryEvent(name, run, message, dict(fields)))


def test_piped_a_watch_of_some_states_prints_the_events_of_runs_in_them_alone(
    tmp_path: Path,
) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text(
        f"{_event(names.EVENT_DETECTED, 'bad', 'poisoned')}\n"
        f"{_event(names.EVENT_CHECKPOINT_SAVED, 'good', 'saved')}\n"
    )
    command = [*COMMAND, "--events", str(events), "--state", "recovering", "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:  # noqa: S603 - our own command
        assert watching.stdout is not None
        assert "bad: recovering" in watching.stdout.readline()
        with events.open("a") as file:
            for name, run, message in (
                (names.EVENT_CHECKPOINT_SAVED, "good", "saved again"),
                ("", "", "of no single run"),
                (names.EVENT_STARTED, "bad", "recovery attempt 1"),
            ):
                file.write(f"{_event(name or names.EVENT_MASS_OVER, run, message)}\n")
        assert "bad: recovery attempt 1" in watching.stdout.readline()
        with events.open("a") as file:
            file.write(f"{_event(names.EVENT_COMPLETED, 'bad', 'recovered')}\n")
        assert "bad: recovered" in watching.stdout.readline(), "the end of it, too"
        with events.open("a") as file:
            file.write(f"{_event(names.EVENT_STARTED, 'bad', 'once more')}\n")
            file.write(f"{_event(names.EVENT_DETECTED, 'good', 'poisoned too')}\n")
        said = [watching.stdout.readline() for _ in range(4)]
        watching.terminate()
    assert any("good: poisoned too" in each for each in said)
    assert any("good: recovering" in each for each in said)
    assert not any("saved" in each or "no single" in each for each in said)


@pytest.mark.parametrize("at", ["NaN", "1e300", "1e400", "-1e12", "1764270000000"])
def test_a_line_whose_time_is_no_date_is_skipped_like_any_other_that_is_no_event(at: str) -> None:
    line = f'{{"name": "x", "run": "r", "time": {at}, "message": "", "fields": {{}}}}'
    with pytest.raises(ValueError, match="time is no date"):
        from_json_line(line)
    status, shown, said = _watch("--events", "-", "--once", given=f"{line}\n")
    assert (status, shown.strip()) == (0, "no runs yet")
    assert said.endswith("not events: 1\n")
