"""Names, errors and metadata of others are shown as the text they are, by every command."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import click
import pytest
from click.testing import CliRunner, Result
from hostile import Reply, hostile, text
from hypothesis import given
from hypothesis import strategies as st

from tinker_recovery.checkpoints import checkpoint_metadata
from tinker_recovery.cli import main
from tinker_recovery.cli.common import plain_console
from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.telemetry import EventSink, RecoveryEvent
from tinker_recovery.telemetry.text import as_text

CUT = 27
"""Characters of a name that a line of the watch has room for."""

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
    "long" * 2500,
]
ERROR = "boom [/x] :train: \x1b[2J\x07 \u202e\x9b2J[lr=1]"
HOSTILE = "".join(NAMES[:-1]) + "\nError: [red]forged"
PATH = f"tinker://s{HOSTILE}:train:0/weights/{HOSTILE}".replace("/data/x", "").replace("[/]", "")


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


def _shown(*arguments: str, status: int | None = 0) -> str:
    done: Result = CliRunner().invoke(main, list(arguments), env={"COLUMNS": "400"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert status is None or done.exit_code == status, done.output
    whole = done.output
    assert all(each.isprintable() or each == "\n" for each in whole), repr(whole)
    return whole


def _unfolded(table: str) -> str:
    """What is longer than a line in a row; of a table, the pieces of its first column."""
    lines = table.splitlines()
    rows = [each.split("│")[1].strip() for each in lines if each.startswith("│")]
    return "".join(rows if len(rows) > 1 else map(str.strip, lines))


def test_every_command_shows_a_runs_name_and_errors_as_text(left: tuple[str, Path]) -> None:
    name, file = left
    journal = ("--journal", str(file))
    shown = as_text(name)
    listed = _shown("runs", *journal)
    assert shown in listed or shown in _unfolded(listed)
    history = _shown("show", name, *journal)
    assert shown in history
    assert as_text(ERROR) in history
    # The watch fits the terminal, whatever its runs are called.
    assert shown[:CUT] in _shown("watch", "--once", *journal)
    assert shown[:CUT] in _shown("watch", name, "--once", *journal)
    assert shown in _shown("show", f"no {name}", *journal, status=1)
    page = file.with_name("page.html")
    _shown("report", name, *journal, "-o", str(page))
    written = page.read_text()
    assert all(each.isprintable() or each in "\n\t" for each in written)
    assert ":smile:" in written or ":smile:" not in name
    assert json.loads(_shown("runs", *journal, "--json"))[0]["run"] == name


def _answers(path: str) -> Reply:
    """Of a service whose listings, metadata and errors are hostile, as far as they can be read."""
    checkpoint = {
        "checkpoint_id": f"weights/{HOSTILE}",
        "checkpoint_type": "training",
        "time": "2026-01-01T00:00:00Z",
        "tinker_path": PATH,
        "size_bytes": 1,
        "public": False,
        "user_metadata": {
            "tinker_recovery.run": HOSTILE,
            "tinker_recovery.step": ERROR,
            "tinker_recovery.lineage": HOSTILE,
            HOSTILE: ERROR,
        },
    }
    sound = checkpoint | {
        "tinker_path": PATH + "-2",
        "user_metadata": METADATA,
    }
    run = {
        "training_run_id": f"s{HOSTILE}:train:0",
        "base_model": HOSTILE,
        "model_owner": ERROR,
        "is_lora": True,
        "lora_rank": 8,
        "corrupted": False,
        "last_request_time": "2026-01-01T00:00:00Z",
    }
    route = path.partition("?")[0].rpartition("/api/v1/")[2]
    if route.endswith("checkpoints"):
        total = {"offset": 0, "limit": 100, "total_count": 2}
        return {}, text({"checkpoints": [checkpoint, sound], "cursor": total})
    if route == "training_runs":
        total = {"offset": 0, "limit": 100, "total_count": 1}
        return {}, text({"training_runs": [run], "cursor": total})
    if route.startswith("training_runs/"):
        return {}, text(run)
    if route == "sessions/search":
        return {}, text({"sessions": [], "next_cursor": None})
    return {"Status": "400"}, text({"detail": ERROR, "error": ERROR, "message": ERROR})


def _leaves(group: click.Group, *above: str) -> Iterator[str]:
    """Every command, as it is called."""
    context = click.Context(group)
    for name in group.list_commands(context):
        each = group.get_command(context, name)
        if isinstance(each, click.Group):
            yield from _leaves(each, *above, name)
        else:
            yield " ".join([*above, name])


METADATA = checkpoint_metadata(
    step=3,
    lineage=HOSTILE,
    attempt=HOSTILE,
    parent=PATH,
    saved_by="schedule",
    run_name=HOSTILE,
    metrics={HOSTILE: 1.0},
)

CASES: dict[str, list[list[str]]] = {
    "abandon": [[f"no {HOSTILE}"], [HOSTILE, "--journal", "J"]],
    "checkpoints list": [["--all"], ["--run", HOSTILE], ["--run", f"s{HOSTILE}:train:0"]],
    "checkpoints pin": [[PATH], [HOSTILE], [f"{PATH}-3"]],
    "checkpoints prune": [["--all", "--dry-run"], ["--all", "--yes"], ["--run", HOSTILE]],
    "checkpoints unpin": [[PATH], [HOSTILE]],
    "checkpoints verify": [[PATH], ["--all"], [HOSTILE]],
    "config show": [[], ["--file", HOSTILE], ["--json"]],
    "cookbook": [["--", HOSTILE], ["--", "python", "-m", HOSTILE]],
    "doctor": [["--base-model", HOSTILE, "--timeout", "4"], ["--steps", HOSTILE]],
    "export": [
        [HOSTILE, "--push", "me/x"],
        [f"{PATH}-2", "--push", "me/x", "--json"],
        [PATH, "--push", HOSTILE],
    ],
    "jobs cancel": [[HOSTILE], [HOSTILE, "--database", HOSTILE]],
    "jobs list": [[], ["--database", HOSTILE], ["--state", HOSTILE]],
    "jobs retry": [[HOSTILE], [HOSTILE, "--json"]],
    "jobs show": [[HOSTILE], [HOSTILE, "--json"]],
    "inject": [
        [f"http://{HOSTILE}", "poison"],
        ["http://127.0.0.1:1", HOSTILE],
        ["http://127.0.0.1:1", f"poison,{HOSTILE}={HOSTILE}"],
        ["http://127.0.0.1:1", "poison", f"s{HOSTILE}:train:0"],
        ["http://127.0.0.1:1", "poison", HOSTILE, "--journal", "J"],
    ],
    "jobs work": [[HOSTILE], ["json", "--concurrency", HOSTILE]],
    "prices": [["-o", HOSTILE, "--timeout", "2"], [f"--{HOSTILE}"]],
    "recover": [
        [HOSTILE],
        [f"s{HOSTILE}:train:0"],
        [f"s{HOSTILE}:train:0", "--checkpoint", f"{PATH}-2"],
        [HOSTILE, "--lineage", HOSTILE, "--json"],
    ],
    "report": [[HOSTILE, "--journal", "J"], [HOSTILE, "--journal", "J", "-o", f"/no/{HOSTILE}"]],
    "run": [
        ["--", HOSTILE],
        ["--max-restarts", "0", "--", "sh", "-c", "exit 1", HOSTILE],
        ["--max-restarts", "0", "--json", "--", "sh", "-c", "exit 1", f"tinker_cookbook{HOSTILE}"],
        ["--max-restarts", HOSTILE, "true"],
    ],
    "runs": [["--journal", "J"], ["--journal", HOSTILE]],
    "show": [[HOSTILE, "--journal", "J"], [f"no {HOSTILE}", "--journal", "J"]],
    "watch": [["--once", "--journal", "J"], [HOSTILE, "--once", "--journal", "J"]],
}
"""How each command is called with hostile words; J is a journal with such a run."""

OWN_PROCESS = {"cookbook", "doctor", "jobs", "prices", "run"}
"""What handles signals, changes the process, or ends it as it is while the SDK still tries."""

OF_THEIR_OWN = {
    "demo": "trains a run of its own on a server of its own",
    "faults": "prints a table of the package",
    "serve": "prints its own address",
}
"""What shows no text of others, and why."""


def test_every_command_has_a_case_here_or_shows_no_text_of_others() -> None:
    assert isinstance(main, click.Group)
    assert sorted(_leaves(main)) == sorted([*CASES, *OF_THEIR_OWN])


@pytest.mark.timeout(240)  # a process for each
@pytest.mark.parametrize("command", CASES)
async def test_what_arguments_and_the_service_say_is_shown_as_text(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    monkeypatch.setenv("TINKER_RECOVERY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)  # for what is written into the current folder
    journal = tmp_path / "journal.sqlite3"
    await _write(journal, HOSTILE)
    async with hostile(_answers) as server:
        monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
        for arguments in CASES[command]:
            given = [str(journal) if each == "J" else each for each in arguments]
            shown = await _printed(command.split() + given)
            assert all(each.isprintable() or each == "\n" for each in shown), repr(shown)
            assert "Traceback" not in shown, shown
            assert not any(each.startswith("Error: [red]forged") for each in shown.splitlines())


async def _printed(arguments: list[str]) -> str:
    """All that a command prints."""
    if arguments[0] not in OWN_PROCESS:
        return await anyio.to_thread.run_sync(lambda: _shown(*arguments, status=None))
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [sys.executable, "-m", "tinker_recovery.cli", *arguments],
            env=os.environ | {"COLUMNS": "400"},
            check=False,
            stderr=subprocess.STDOUT,
        )
    return done.stdout.decode()


@pytest.mark.parametrize("name", [*NAMES, "sft\nrun other: all is well"])
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
        assert "\n" not in record.getMessage(), "it would begin a line that we never wrote"
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
