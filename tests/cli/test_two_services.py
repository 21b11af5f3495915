"""A run's name at two services, in one journal: no command mixes the two runs."""

from __future__ import annotations

import asyncio
import json
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


async def _write(file: Path, service: str, name: str = "ref1", end: str = "finished") -> None:
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
            await record.attempt_begins(1, "a1", "s:train:0", 0, None)
            recorder.note_event(RecoveryEvent("attempt.started", name, f"trained at {service}", {}))
            await record.end(end)


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
