"""The SDK's warnings in a program without logging: each kind of line now and then, in one line."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import anyio.to_thread
import pytest
from loops import script

from tinker_recovery.telemetry import last_resort
from tinker_recovery.telemetry.last_resort import SaidOnce
from tinker_recovery.testing import LocalTinker

PROGRAM = """
import asyncio, functools, logging
import tinker.lib.telemetry, tinker.lib.internal_client_holder
from loops import MODEL, policy, train
from tinker_recovery import Supervisor

{before}

def complain(number):
    # As the SDK does, with its own loggers, every ten seconds of an outage.
    tinker.lib.internal_client_holder.logger.warning(
        f"Session heartbeat failed for {{120.5 + number}} seconds for session s-{{number}}a.\\n"
        + "Your connection may be unreliable or Tinker is down."
    )
    try:
        raise ConnectionError("Connection error.")
    except ConnectionError as error:
        tinker.lib.telemetry.logger.warning("Dropping telemetry batch", exc_info=error)

async def loop(attempt):
    await train(attempt, steps=3)
    for number in range(4):
        complain(number)
    logging.getLogger("tinker_recovery").warning("no step for 6 s")
    logging.getLogger("tinker_recovery").warning("no step for 6 s")

async def main():
    async with Supervisor(policy()) as supervisor:
        await supervisor.run(loop, base_model=MODEL, rank=8, name="sft-42")

asyncio.run(main())
complain(9)
"""


async def _stderr(folder: Path, before: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = await anyio.to_thread.run_sync(
        lambda: subprocess.run(  # noqa: S603 - our own program
            [sys.executable, script(folder, PROGRAM.format(before=before))],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    )
    return done.stderr


async def test_a_warning_of_the_sdk_that_repeats_is_printed_once_and_without_its_traceback(
    local: LocalTinker, tmp_path: Path
) -> None:
    del local
    inside, outside = (await _stderr(tmp_path)).split("sft-42 finished at step 3")
    assert inside.count("Session heartbeat failed for 120.5 seconds") == 1
    assert inside.count("Session heartbeat failed") == 1
    assert inside.count("Dropping telemetry batch: ConnectionError: Connection error.\n") == 1
    assert inside.count("Dropping telemetry batch") == 1
    assert "Traceback" not in inside
    assert inside.count("no step for 6 s") == 2, "what we say is as it was"
    assert outside.count("Traceback") == 1, "the filter is there while a Supervisor is entered"


@pytest.mark.parametrize(
    "before",
    [
        "logging.basicConfig(level='WARNING')",
        "logging.getLogger('tinker').addHandler(logging.StreamHandler())",
    ],
)
async def test_who_has_configured_logging_gets_every_record_of_the_sdk(
    local: LocalTinker, tmp_path: Path, before: str
) -> None:
    del local
    said = await _stderr(tmp_path, before)
    assert said.count("Session heartbeat failed") == 5
    assert said.count("Traceback (most recent call last)") == 5


def _record(
    message: str, level: int = logging.WARNING, name: str = "tinker.x"
) -> logging.LogRecord:
    return logging.LogRecord(name, level, __file__, 1, message, None, None)


def test_a_line_that_lasts_is_printed_again_with_how_many_were_left_out() -> None:
    now = [0.0]
    once, printed = SaidOnce(lambda: now[0]), []
    for _ in range(200):
        record = _record(f"paused after {now[0]} s")
        if once.filter(record):
            printed.append(record.getMessage())
        now[0] += 10
    assert printed == [
        "paused after 0.0 s",
        "paused after 600.0 s (and 59 lines like it, left out)",
        "paused after 1800.0 s (and 119 lines like it, left out)",
    ]


class Wordless(Exception):
    """It cannot be put into words."""

    def __str__(self) -> str:
        raise ValueError("no words")


def test_errors_other_lines_and_those_of_others_are_printed_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(last_resort, "_MOST", 2)
    once = SaidOnce(lambda: 0.0)
    for _ in range(2):
        assert once.filter(_record("failed", logging.ERROR))
        assert once.filter(_record("failed", name="tinker_recovery"))
        assert once.filter(_record("%s %s", name="tinker_other"))
    assert [once.filter(_record(each)) for each in ("a", "b", "a", "c", "b", "a")] == [
        *(True, True, False),
        *(True, False, True),
    ], "the oldest of more than it remembers is forgotten"
    unfit = logging.LogRecord("tinker", logging.WARNING, __file__, 1, "%d", ("x",), None)
    assert once.filter(unfit), "logging reports it"
    wordless = _record("failed")
    wordless.exc_info = Wordless, Wordless(), None
    assert once.filter(wordless), "the same"
    assert not logging.lastResort or not logging.lastResort.filters
