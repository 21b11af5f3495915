"""A run's name at two services, in one journal: no command mixes the two runs."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tinker_recovery.cli import main
from tinker_recovery.cli.watch.chosen import Chosen
from tinker_recovery.cli.watch.sources import JournalSource
from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.telemetry import RecoveryEvent

HERE, THERE = "http://127.0.0.1:8110", "http://127.0.0.1:8112"


async def _write(
    file: Path,
    service: str,
    name: str = "ref1",
    end: str = "finished",
    *,
    begun: bool = True,
    saved: int = 0,
) -> None:
    with Journal(file, service=service) as journal:
        async with Recorder(journal, service=service) as recorder:
            record = await recorder.open_run(
                RunRequest(
                    service=service,
                    name=name,
                    named=True,
                    lineage=f"lineage of {service}",
                    origin={"way": "base_model", "base_model": "m"},
                    policy={},
                    start_step=0,
                )
            )
            assert isinstance(record, RunRecord)
            if begun:
                await record.attempt_begins(1, "a1", "s:train:0", 0, None)
            for step in range(1, saved + 1):
                record.saved("a1", f"tinker://s/weights/{step}", step, sound=True)
            recorder.note_event(RecoveryEvent("attempt.started", name, f"trained at {service}", {}))
            await record.end(end)
    if end == "killed":
        with sqlite3.connect(file) as database:
            database.execute("UPDATE runs SET state = 'training' WHERE name = ?", (name,))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A journal with a run of the same name at each of two services, begun at the same time."""
    file = tmp_path / "journal.sqlite3"
    for service in (HERE, THERE):
        asyncio.run(_write(file, service))
    return file


def _cli(*arguments: str, status: int = 0) -> Result:
    done = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "300"})
    assert done.exit_code == status, done.output
    return done


def _lines_of(text: str) -> Sequence[str]:
    return [each for each in text.splitlines() if "trained at" in each]


@pytest.mark.parametrize(("of", "not_of"), [(HERE, THERE), (THERE, HERE)])
def test_the_events_of_a_run_are_of_its_service_alone(file: Path, of: str, not_of: str) -> None:
    chosen = ("ref1", "--service", of, "--journal", str(file))
    page = file.with_name("page.html")
    _cli("report", *chosen, "-o", str(page))
    for shown in (
        _cli("show", *chosen).stdout,
        _cli("watch", *chosen, "--once").stdout,
        page.read_text(),
    ):
        assert f"trained at {of}" in shown
        assert f"trained at {not_of}" not in shown
    whole = json.loads(_cli("show", *chosen, "--json").stdout)
    assert [each["message"] for each in whole["events"]] == [f"trained at {of}"]


def test_without_a_service_they_are_those_of_the_newest_run(file: Path) -> None:
    for command in (["show"], ["watch", "--once"]):
        shown = _cli(*command, "ref1", "--journal", str(file)).stdout
        assert f"trained at {THERE}" in shown
        assert f"trained at {HERE}" not in shown


def test_the_events_of_an_earlier_run_of_that_name_are_not_those_of_the_newest(
    file: Path,
) -> None:
    _cli("abandon", "ref1", "--service", THERE, "--journal", str(file))
    asyncio.run(_write(file, THERE))
    shown = _cli("show", "ref1", "--service", THERE, "--journal", str(file)).stdout
    assert len(_lines_of(shown)) == 1


def test_a_watch_of_one_service_prints_the_events_of_its_runs_alone(file: Path) -> None:
    source = JournalSource(file, Chosen(service=HERE))
    assert [row.service for row in source.rows()] == [HERE]
    assert [each.message for each in source.news()] == [f"trained at {HERE}"]
    asyncio.run(_write(file, THERE, "other"))
    asyncio.run(_write(file, HERE, "other"))
    assert [each.message for each in source.news()] == [f"trained at {HERE}"]


def test_a_run_that_is_forgotten_is_called_as_it_is_listed_and_what_stays_is_counted(
    file: Path,
) -> None:
    journal = ("--journal", str(file))
    asyncio.run(_write(file, HERE, "kill1", "killed", saved=1))
    asyncio.run(_write(file, HERE, "kill2", "killed", saved=2))
    listed = {each["run"]: each for each in json.loads(_cli("runs", "--json", *journal).stdout)}
    assert listed["kill1"]["state"] == "dead"
    assert _cli("abandon", "kill1", *journal).stdout == (
        f"run 'kill1' at {HERE} is forgotten (it was dead, at step 1); its 1 checkpoint stays at "
        "the service\n"
    )
    assert _cli("abandon", "kill2", "--json", *journal).stdout == (
        f'{{"run": "kill2", "service": "{HERE}", "was": "dead", "checkpoints_kept": 2}}\n'
    )


def test_of_two_runs_of_one_name_one_is_forgotten_after_the_other(file: Path) -> None:
    journal = ("--journal", str(file))
    wrong = _cli("abandon", "ref1", "--service", "http://other", *journal, status=1)
    assert "there is no run 'ref1' at http://other" in wrong.stderr
    assert f"the run of that name is at {THERE}, {HERE}" in wrong.stderr
    for service in (THERE, HERE):
        assert f"run 'ref1' at {service} is forgotten" in _cli("abandon", "ref1", *journal).stdout
    assert "there is no run 'ref1' to forget" in _cli("abandon", "ref1", *journal, status=1).stderr


def test_a_service_may_be_given_with_a_slash_at_its_end(file: Path) -> None:
    chosen = ("ref1", "--service", f"{HERE}/", "--journal", str(file))
    assert json.loads(_cli("show", *chosen, "--json").stdout)["service"] == HERE


def test_a_fault_for_a_run_without_a_tinker_run_says_that_it_has_none_yet(file: Path) -> None:
    asyncio.run(_write(file, HERE, "roll1", "stopped", begun=False))
    said = _cli("inject", HERE, "rollback", "roll1", "--journal", str(file), status=1).stderr
    assert f"run 'roll1' at {HERE} has no Tinker run yet (it is stopped)" in said
    assert "there is no run" not in said


def test_a_journal_that_is_not_there_is_blamed_on_what_named_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = _cli("runs", "--journal", str(tmp_path / "nope"), status=3).stderr
    assert f"there is no journal at {tmp_path / 'nope'}" in named
    assert "TINKER_RECOVERY_STATE_DIR" not in named
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "nowhere"))
    assert "TINKER_RECOVERY_STATE_DIR names another folder" in _cli("runs", status=3).stderr


@pytest.mark.parametrize("command", ["faults", "runs"])
def test_a_command_that_takes_no_run_names_the_one_that_does(command: str) -> None:
    said = _cli(command, "kill1", status=2).stderr
    assert "kill1" in said
    assert f"`tinker-recovery {command}` takes no run: see `tinker-recovery show RUN`" in said
