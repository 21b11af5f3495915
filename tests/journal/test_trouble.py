"""When the journal fails: full disks, torn files, other writers, clocks that are set."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from inspection import beat, journal_connection, locked, set_write_retries_s
from loops import MODEL, SEED, policy, script, train, undisturbed_state
from test_records import SERVICE, request

from tinker_recovery import Attempt, JournalError, RunFinished, Supervisor
from tinker_recovery.journal import HeldLease, Journal, Recorder, RunRecord, default_path
from tinker_recovery.journal.holder import Holder
from tinker_recovery.journal.lease import LEASE_S, may_take
from tinker_recovery.journal.reading import read_events, read_run
from tinker_recovery.telemetry import RecoveryEvent, names
from tinker_recovery.testing import LocalTinker

STEPS = 22


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite3"


@contextmanager
def _full(journal: Journal) -> Iterator[None]:
    """A full disk: SQLite refuses to grow the file, with the error it has for that."""
    with locked(journal) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS filler (bytes BLOB)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
    yield
    with locked(journal) as connection:
        connection.execute("PRAGMA max_page_count = 1000000")


def _many(recorder: Recorder) -> None:
    for number in range(500):
        recorder.note_event(RecoveryEvent(names.EVENT_STARTED, "sft", f"{number} " + "x" * 500))


async def test_a_full_disk_is_logged_once_and_what_fits_later_is_not_lost(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_write_retries_s(monkeypatch, (0.01, 0.02))
    with Journal(file, service=SERVICE) as journal:
        async with Recorder(journal, service=SERVICE) as recorder:
            record = await recorder.open_run(request())
            assert isinstance(record, RunRecord)
            with _full(journal):
                _many(recorder)
                assert await record.submit(lambda _: "written") is None
                await record.attempt_begins(1, "a1", "r", 0, None)  # logged, and training continues
            await record.submit(lambda _: None)
    logged = [each.message for each in caplog.records if each.levelno == logging.ERROR]
    assert len(logged) == 1
    assert "disk is full" in logged[0]
    assert "Training continues" in logged[0]
    assert "can be written again; 0 entries were lost" in caplog.text
    assert len(read_events(file, limit=10_000)) == 500


async def test_a_disk_that_fills_up_while_training_changes_nothing_of_the_training(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    expected = await undisturbed_state(local, steps=STEPS)
    local.poison(at_step=13)
    supervisor = Supervisor(policy())

    async def filling(attempt: Attempt) -> None:
        if attempt.number == 1:
            # Every write fails from here on.
            journal_connection(supervisor).execute("PRAGMA query_only = 1")
        await train(attempt, steps=STEPS)

    async with supervisor:
        await supervisor.run(filling, base_model=MODEL, rank=8, seed=SEED, name="sft")
    (run,) = supervisor.runs
    assert [attempt.start_step for attempt in run.attempts] == [0, 10]
    assert local.run_state(run.segments[-1].run_id) == expected
    assert caplog.text.count("Training continues") == 1
    said = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert max(map(said.count, said)) == 1, "each once, however many saves there are"
    # The same command finds it again, and what could not be written is read from the service.
    with closing(sqlite3.connect(default_path())) as database, database:
        database.execute("UPDATE leases SET pid = 4194305")
    with pytest.raises(RunFinished, match=f"at step {STEPS}"):
        async with Supervisor(policy()) as again:
            await again.run(
                functools.partial(train, steps=STEPS),
                base_model=MODEL,
                rank=8,
                seed=SEED,
                name="sft",
            )


async def test_a_journal_that_cannot_be_used_at_all_is_refused_before_anything_starts(
    local: LocalTinker, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file, where a folder should be")
    with pytest.raises(JournalError, match=r"cannot be used.*another folder"):
        async with Supervisor(policy(), journal=tmp_path / "taken" / "journal.sqlite3"):
            pytest.fail("the body never runs")
    read_only = Path("/proc/tinker_recovery/journal.sqlite3")
    with pytest.raises(JournalError, match=r"cannot be used.*another folder"):
        async with Supervisor(policy(), journal=read_only):
            pytest.fail("the body never runs")
    assert not local.sessions()


_WRITES = """
import asyncio, itertools, pathlib, sys
from tinker_recovery.journal import Journal, Recorder, RunRequest
from tinker_recovery.telemetry import RecoveryEvent
async def main():
    file, name = sys.argv[1:]
    with Journal(pathlib.Path(file), service="s") as journal:
        async with Recorder(journal, service="s") as recorder:
            record = await recorder.open_run(RunRequest("s", name, True, "l", {}, {}, 0))
            for number in itertools.count():
                recorder.note_event(RecoveryEvent("e", name, str(number)))
                await record.submit(lambda _: None)
                print(number, flush=True)
asyncio.run(main())
"""


@contextmanager
def _writing(file: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, script(file.parent, _WRITES), str(file), name],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _acknowledged(process: subprocess.Popen[str], count: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline()) for _ in range(count)]


_MAKES = """
import multiprocessing, pathlib, sys
from tinker_recovery.journal import Journal
def make(together, folder):
    for number in range(40):
        together.wait()
        with Journal(pathlib.Path(folder) / str(number), service="s") as journal:
            journal.pin("tinker://r/weights/a")
if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    together = fork.Barrier(6)
    makers = [fork.Process(target=make, args=(together, sys.argv[1])) for _ in range(6)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join(10)
        maker.kill()
    sys.exit(any(maker.exitcode for maker in makers))
"""


def test_processes_that_create_a_journal_at_the_same_moment_all_get_it(tmp_path: Path) -> None:
    """SQLite reports "locked" without waiting while a file is turned to WAL."""
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, script(tmp_path, _MAKES), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_write_at_once_and_being_killed_and_torn_loses_no_acknowledged_event(
    file: Path,
) -> None:
    with _writing(file, "left") as left, _writing(file, "right") as right:
        acknowledged = {"left": _acknowledged(left, 20), "right": _acknowledged(right, 20)}
        left.send_signal(signal.SIGKILL)
        right.send_signal(signal.SIGKILL)
    for name, numbers in acknowledged.items():
        run = read_run(file, name)
        assert run is not None
        assert not run.live, "its process is dead, which is seen at once"
        seen = {int(event.message) for event in read_events(file, name, limit=100_000)}
        assert set(numbers) <= seen
    # What a power cut leaves of the last write: half a page of it.
    wal = file.with_name(file.name + "-wal")
    os.truncate(wal, wal.stat().st_size - 2_000)
    before = len(read_events(file, limit=100_000))
    with Journal(file, service="s") as journal:
        journal.pin("tinker://r/weights/a")
    assert len(read_events(file, limit=100_000)) == before >= 38


def test_a_damaged_file_says_so_and_what_to_do_and_is_left_unchanged(
    file: Path,
) -> None:
    with Journal(file, service=SERVICE) as journal:
        for number in range(300):
            journal.pin(f"tinker://r/weights/{number}", "x" * 100)
    content = bytearray(file.read_bytes())
    content[4096:-4096] = b"\xff" * (len(content) - 8192)
    file.write_bytes(content)
    message = r"the file is damaged.*was left unchanged.*mv .*found again by name"
    with pytest.raises(JournalError, match=message), Journal(file, service=SERVICE) as journal:
        journal.notes()
    with pytest.raises(JournalError, match=message):
        read_run(file, "sft")
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("lives", "silent_s", "taken"),
    [
        (True, 1e9, False),
        (False, 0.0, True),
        (None, LEASE_S - 0.1, False),
        (None, LEASE_S, True),
    ],
)
def test_a_run_is_taken_from_a_dead_holder_and_from_one_silent_for_a_whole_lease(
    *, lives: bool | None, silent_s: float, taken: bool
) -> None:
    held = HeldLease(Holder("h", "m", 1, "1", 0.0, 0.0), 3, 7, unchanged_since=100.0)
    assert may_take(held, now=100.0 + silent_s, lives=lives) is taken


def _held(answer: HeldLease | RunRecord) -> HeldLease:
    assert isinstance(answer, HeldLease)
    return answer


async def test_setting_a_clock_does_not_give_a_run_to_two_processes(file: Path) -> None:
    """The holder is on another machine; the clock here is years ahead, then years behind."""
    moment, wall = [0.0], [time.time()]

    def recorder(journal: Journal) -> Recorder:
        return Recorder(journal, service=SERVICE, wall=lambda: wall[0], monotonic=lambda: moment[0])

    with Journal(file, service=SERVICE) as one, Journal(file, service=SERVICE) as other:
        async with recorder(one) as first, recorder(other) as second:
            record = await first.open_run(request())
            assert isinstance(record, RunRecord)
            with closing(sqlite3.connect(file)) as database, database:
                database.execute("UPDATE leases SET machine = 'elsewhere'")
            held: HeldLease | None = None
            for years in (0, 10, -10):
                wall[0] = time.time() + years * 365 * 86_400
                held = _held(await second.open_run(request(), held))
            moment[0] = LEASE_S - 1
            beat(first)  # a heartbeat, just in time
            held = _held(await second.open_run(request(), held))
            moment[0] += LEASE_S
            taken = await second.open_run(request(), held)
            assert isinstance(taken, RunRecord)
            assert taken.token == record.token + 1
            record.saved("a", "tinker://r/weights/late", 5, sound=True)
            await record.end("finished")  # as if it was only suspended: it changes nothing
    run = read_run(file, "sft")
    assert run is not None
    assert (run.state, run.checkpoints) == ("training", ())


def test_a_process_id_that_is_reused_is_not_the_holder() -> None:
    here = Holder.here(now=0.0, lease_s=LEASE_S)
    assert here.lives() is True
    assert replace(here, born="1").lives() is False
    assert replace(here, pid=4194305).lives() is False
    assert replace(here, machine="elsewhere").lives() is None


def test_many_threads_of_many_supervisors_take_each_run_once(file: Path) -> None:
    """Sixteen at once: each run has one holder, and the others learn who it is."""
    import asyncio  # noqa: PLC0415 - each thread has a loop of its own

    def take(_: int) -> list[bool]:
        async def all_runs() -> list[bool]:
            with Journal(file, service=SERVICE) as journal:
                async with Recorder(journal, service=SERVICE) as recorder:
                    got = [await recorder.open_run(request(f"run-{n}")) for n in range(3)]
                    return [isinstance(each, RunRecord) for each in got]

        return asyncio.run(all_runs())

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(take, range(16)))
    assert [sum(column) for column in zip(*answers, strict=True)] == [1, 1, 1]


def test_a_process_whose_name_was_cut_within_a_letter_holds_runs_and_lives(tmp_path: Path) -> None:
    """The system keeps fifteen bytes of a name, and takes that of a script that is executable."""
    program = tmp_path / "обучение.py"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path[:0] = {sys.path}\n"
        "from tinker_recovery.journal.holder import Holder\n"
        "print(Holder.here(now=0.0, lease_s=1.0).lives())\n"
    )
    program.chmod(0o755)
    done = subprocess.run([program], capture_output=True, text=True, check=False)  # noqa: S603 - our own
    assert (done.stdout, done.stderr) == ("True\n", "")
