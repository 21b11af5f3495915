"""Names, errors and metadata of others are shown as the text they are, by every command."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.cli import main
from tinker_recovery.cli.common import plain_console
from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.telemetry import EventSink, RecoveryEvent
from tinker_recovery.telemetry.text import as_text

NAMES = [
    "sft[/data/x]",
    "sft[lr=1e-4]",
    "[bold red]sft[/]",
    "sft:train:0 :smile:",
    "\x1b[31msft\x1b]0;title\x07",
    "sft\rgone",
    "sft\x9b2J",
    "s\u202eft",
    "s\u200bft",
]
ERROR = "boom [/x] :train: \x1b[2J\x07 \u202e[lr=1]"


async def _write(file: Path, name: str) -> None:
    with Journal(file, service="http://s") as journal:
        async with Recorder(journal, service="http://s") as recorder:
            record = await recorder.open_run(
                RunRequest(
                    service="http://s",
                    name=name,
                    named=True,
                    lineage="line",
                    origin={"way": "base_model", "base_model": ERROR},
                    policy={"strategy": ERROR},
                    start_step=0,
                )
            )
            assert isinstance(record, RunRecord)
            await record.attempt_begins(1, "a1", f"s{ERROR}:train:0", 0, None)
            record.reported(3, {f"loss{ERROR}": 1.0, "loss": 2.0})
            record.saved("a1", f"tinker://s{ERROR}/weights/{ERROR}", 3, sound=True)
            record.fault((ERROR, ERROR, 4), "a1", 3.0, recovers=True)
            recorder.note_event(RecoveryEvent("recovery.detected", name, ERROR, {}))
            await record.end("exhausted", ERROR)


@pytest.fixture(params=NAMES)
def left(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    file = tmp_path / "journal.sqlite3"
    asyncio.run(_write(file, request.param))
    return request.param, file


def _shown(*arguments: str, status: int = 0) -> str:
    done: Result = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"})
    assert done.exit_code == status, done.output
    whole = done.output
    assert all(each.isprintable() or each == "\n" for each in whole), repr(whole)
    return whole


def test_every_command_shows_a_runs_name_and_errors_as_text(left: tuple[str, Path]) -> None:
    name, file = left
    journal = ("--journal", str(file))
    shown = as_text(name)
    assert shown in _shown("runs", *journal)
    history = _shown("show", name, *journal)
    assert shown in history
    assert as_text(ERROR) in history
    assert shown in _shown("watch", "--once", *journal)
    assert shown in _shown("watch", name, "--once", *journal)
    assert shown in _shown("show", f"no {name}", *journal, status=1)
    page = file.with_name("page.html")
    _shown("report", name, *journal, "-o", str(page))
    written = page.read_text()
    assert all(each.isprintable() or each in "\n\t" for each in written)
    assert ":smile:" in written or ":smile:" not in name
    assert json.loads(_shown("runs", *journal, "--json"))[0]["run"] == name


@pytest.mark.parametrize("name", NAMES)
def test_the_log_shows_names_and_errors_as_text(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tinker_recovery"):
        EventSink(None).emit("recovery.exhausted", name, ERROR)
        logging.getLogger("tinker_recovery").warning("run %s: %s", name, ERROR)
        error = RuntimeError(ERROR)
        logging.getLogger("tinker_recovery").warning("run %s", name, exc_info=error)
    assert as_text(name) in caplog.messages[0]
    for record in caplog.records:
        said = logging.Formatter("%(message)s").format(record)
        assert all(each.isprintable() or each == "\n" for each in said), repr(said)


@given(st.text())
def test_whatever_is_printed_is_shown_as_it_is_or_as_its_escapes(text: str) -> None:
    console = plain_console()
    with console.capture() as captured:
        console.print(text, soft_wrap=True)
    assert captured.get() == as_text(text, lines=True) + "\n"
    assert as_text(as_text(text)) == as_text(text)
    assert as_text(text).isprintable()
