"""The journal: what an event costs the training loop, and the size and speed of a million events.

Three ways to store an event are interleaved: the journal's writer (a queue, a thread, batches), one
SQLite commit for each event, and a line appended to a JSON file and synced. What is measured is how
long the training loop is held up by each event. Then a million events of a hundred runs are
written, and read as `watch` and `show` read them.

    python benchmarks/journal.py [--quick] [--json]
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _report import Bar, arguments, bars, table

from tinker_recovery.journal import Journal, Recorder, RunRecord, RunRequest
from tinker_recovery.journal.reading import read_events, read_run, read_runs
from tinker_recovery.telemetry import RecoveryEvent, names

ROUNDS = 7
BURST = 200
"""Events of one round: well below what the queue holds."""

FIELDS: dict[str, str | int] = {
    names.CHECKPOINT_PATH: "tinker://session-0123456789ab:train:0/weights/step-00000100-abcdef01",
    names.CHECKPOINT_STEP: 100,
}


def event(run: str, number: int) -> RecoveryEvent:
    """An event of the most frequent kind."""
    return RecoveryEvent(names.EVENT_CHECKPOINT_SAVED, run, f"saved, at step {number}", FIELDS)


def timed(keep: Callable[[int], object], count: int) -> float:
    """Microseconds that each call holds up its caller."""
    began = time.perf_counter()
    for number in range(count):
        keep(number)
    return (time.perf_counter() - began) / count * 1e6


def committing(path: Path) -> Callable[[int], object]:
    """One commit for each event."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.execute("CREATE TABLE events (name TEXT, message TEXT, fields TEXT)")

    def keep(number: int) -> None:
        one = event("run-0", number)
        database.execute(
            "INSERT INTO events VALUES (?, ?, ?)",
            (one.name, one.message, json.dumps(dict(one.fields))),
        )

    return keep


def appending(path: Path) -> Callable[[int], object]:
    """A line of JSON for each event, synced."""
    lines = path.open("a")

    def keep(number: int) -> None:
        one = event("run-0", number)
        lines.write(json.dumps([one.name, one.message, dict(one.fields)]) + "\n")
        lines.flush()
        os.fsync(lines.fileno())

    return keep


async def fill(path: Path, count: int, scratch: Path) -> tuple[dict[str, float], float]:
    """Compare the three, then write many events; medians in microseconds, and seconds."""
    rounds: dict[str, list[float]] = {"journal": [], "commit each": [], "JSON, synced": []}
    commit, append = committing(scratch / "plain.sqlite3"), appending(scratch / "plain.jsonl")
    with Journal(path, service="s") as journal:
        async with Recorder(journal, service="s") as recorder:
            runs = []
            for number in range(100):
                name = f"run-{number}"
                record = await recorder.open_run(RunRequest("s", name, True, "l", {}, {}, 0))  # noqa: FBT003 - a record's fields in order
                if not isinstance(record, RunRecord):
                    raise TypeError(record)
                runs.append(record)
            for _ in range(ROUNDS):
                rounds["journal"].append(
                    timed(lambda number: recorder.note_event(event("run-0", number)), BURST)
                )
                await runs[0].submit(lambda _: None)
                rounds["commit each"].append(timed(commit, BURST))
                rounds["JSON, synced"].append(timed(append, BURST))
            began = time.perf_counter()
            for number in range(count):
                recorder.note_event(event(f"run-{number % 100}", number))
                if number % 5_000 == 0:
                    await runs[0].submit(lambda _: None)
            await runs[0].submit(lambda _: None)
            took = time.perf_counter() - began
    return {way: statistics.median(times) for way, times in rounds.items()}, took


def reading(path: Path) -> dict[str, float]:
    """Milliseconds of each query, the median of five."""
    newest = read_events(path, limit=1)[0].id
    questions: dict[str, Callable[[], object]] = {
        "every run": lambda: read_runs(path),
        "one run with its history": lambda: read_run(path, "run-7"),
        "its newest 1000 events": lambda: read_events(path, "run-7"),
        "what is new since the last look": lambda: read_events(path, "run-7", after=newest - 500),
    }
    asked: dict[str, list[float]] = {question: [] for question in questions}
    for _ in range(5):
        for question, ask in questions.items():
            began = time.perf_counter()
            ask()
            asked[question].append((time.perf_counter() - began) * 1e3)
    return {question: statistics.median(times) for question, times in asked.items()}


def main() -> None:
    """Measure, and print."""
    given = arguments(__doc__)
    count = 100_000 if given.quick else 1_000_000
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "journal.sqlite3"
        held_up, took = asyncio.run(fill(path, count, Path(scratch)))
        size = sum(each.stat().st_size for each in path.parent.glob("journal.sqlite3*"))
        asked = reading(path)
    table(
        ("the loop is held up, each event", "µs"),
        [(way, f"{each:.1f}") for way, each in held_up.items()],
    )
    print()
    table(
        (f"{count:,} events of 100 runs", ""),
        [
            ("written in", f"{took:.1f} s"),
            ("size", f"{size / 1e6:.0f} MB, {size / count:.0f} bytes each"),
            *((f"read: {question}", f"{each:.1f} ms") for question, each in asked.items()),
        ],
    )
    bars(
        "journal",
        [
            Bar("held up, of a commit each", held_up["journal"] / held_up["commit each"], 0.06),
            Bar("bytes per event", size / count, 300),
            Bar("slowest question ms", max(asked.values()), 25),
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
