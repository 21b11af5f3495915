"""In a process forked inside a Supervisor, everything of the Supervisor is inert."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from pathlib import Path

import anyio.to_thread
import pytest
from forking import NAME
from inspection import at_work, hiding_a_secret, submitting
from loops import ADAM, MODEL, batch, policy, process, train

from tinker_recovery import Supervisor, UsageError
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import default_path
from tinker_recovery.journal.database import Database
from tinker_recovery.journal.reading import read_runs
from tinker_recovery.journal.writer import Writer
from tinker_recovery.telemetry import redaction
from tinker_recovery.testing import LocalTinker

SCRIPT = Path(__file__).parents[1] / "forking.py"
LIMIT_S = 10.0


def _child(function: Callable[[], object]) -> ForkProcess:
    def limited() -> None:
        signal.alarm(int(2 * LIMIT_S))  # it outlives no test, whatever becomes of the parent
        function()

    started = multiprocessing.get_context("fork").Process(target=limited, daemon=True)
    started.start()
    return started


def _ended(child: ForkProcess) -> int | None:
    """Its exit code; None if it had to be killed."""
    child.join(LIMIT_S)
    if child.exitcode is None:
        child.kill()
        child.join()
        return None
    return child.exitcode


def _said(function: Callable[[], object]) -> str:
    """What a forked child says of calling this."""
    read, write = os.pipe()

    def say() -> None:
        try:
            said = repr(function())
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())

    code = _ended(_child(say))
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    assert code == 0, f"exit code {code}"
    return said


def _terminated() -> int | None:
    read, write = os.pipe()

    def wait() -> None:
        os.write(write, b"!")
        time.sleep(2 * LIMIT_S)

    child = _child(wait)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    child.terminate()
    return _ended(child)


async def test_a_forked_worker_ends_when_it_is_terminated(local: LocalTinker) -> None:
    async with Supervisor(policy(), service=local.service, journal=None):
        assert await anyio.to_thread.run_sync(_terminated) == -signal.SIGTERM


def test_a_forked_worker_of_a_blocking_script_ends_when_it_is_terminated(
    local: LocalTinker,
) -> None:
    with Supervisor(policy(), service=local.service, journal=None):
        assert _terminated() == -signal.SIGTERM


async def test_pools_of_processes_can_be_left(local: LocalTinker) -> None:
    def pools() -> list[int]:
        sums = []
        for _ in range(20):
            with multiprocessing.get_context("fork").Pool(2, signal.alarm, [60]) as pool:
                sums.append(sum(pool.map(abs, range(5))))
        return sums

    async with Supervisor(policy(), service=local.service, journal=None):
        with anyio.fail_after(3 * LIMIT_S):
            assert await anyio.to_thread.run_sync(pools, abandon_on_cancel=True) == [10] * 20


async def test_a_forked_child_has_the_signal_handlers_from_before_and_the_parent_keeps_ours(
    local: LocalTinker,
) -> None:
    def mine(number: int, frame: object) -> None:
        del number, frame

    before = signal.signal(signal.SIGTERM, mine)
    try:
        async with Supervisor(policy(), service=local.service, journal=None):
            ours = signal.getsignal(signal.SIGTERM)
            said = _said(lambda: signal.getsignal(signal.SIGTERM) is mine)
            assert said == "True"
            assert signal.getsignal(signal.SIGTERM) is ours is not mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.optim_step(ADAM),
        lambda client: client.forward_backward(batch(0), "cross_entropy"),
        lambda client: client.get_info(),
        lambda client: client.skip_step(),
    ],
)
async def test_a_supervised_client_called_in_a_forked_child_says_where_it_belongs(
    local: LocalTinker, call: Callable[[object], object]
) -> None:
    async with Supervisor(policy(), service=local.service, journal=None) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                said = _said(functools.partial(call, attempt.client))
                assert said.startswith(f"{UsageError.__name__}: ")
                assert f"process {os.getpid()}" in said
                await train(attempt, steps=3)
    assert [local.run_state(run).steps for run in local.runs()] == [3]


async def test_a_request_waited_for_in_a_forked_child_says_so_instead_of_hanging(
    local: LocalTinker,
) -> None:
    async with Supervisor(policy(), service=local.service, journal=None) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                update = attempt.client.optim_step(ADAM)
                said = _said(update.result)
                assert said.startswith(f"{UsageError.__name__}: ")
                await update


async def test_a_supervised_client_says_so_in_a_forked_child_while_its_lock_is_held(
    local: LocalTinker,
) -> None:
    """Another thread of the parent may be submitting in the moment of the fork."""
    async with Supervisor(policy(), service=local.service, journal=None) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                with submitting(attempt):
                    said = _said(functools.partial(attempt.client.optim_step, ADAM))
                assert said.startswith(f"{UsageError.__name__}: ")


async def test_a_supervisor_asked_in_a_forked_child_says_where_it_belongs(
    local: LocalTinker,
) -> None:
    async with Supervisor(policy(), service=local.service, journal=None) as supervisor:
        async for attempt in supervisor.attempts(base_model=MODEL, rank=8):
            async with attempt:
                for said in (
                    _said(lambda: supervisor.attempts(base_model=MODEL, rank=8)),
                    _said(lambda: supervisor.watch("x", on_recovery=print)),
                    _said(functools.partial(attempt.report, loss=1.0)),
                    _said(
                        functools.partial(attempt.service.create_sampling_client, base_model=MODEL)
                    ),
                ):
                    assert said.startswith(f"{UsageError.__name__}: ")


@pytest.mark.parametrize("how", ["exits", "fails", "returns"])
async def test_a_forked_child_that_leaves_a_blocking_script_ends_and_disturbs_nothing(
    local: LocalTinker, how: str
) -> None:
    with process([str(SCRIPT), how]) as script:
        _, errors = await anyio.to_thread.run_sync(lambda: script.communicate(timeout=50))
    assert script.returncode == 0, errors
    (run,) = local.runs()
    assert local.run_state(run).steps == 3
    (stored,) = read_runs(default_path())
    assert (stored.name, stored.state, stored.step) == (NAME, "finished", 3)
    assert "active" not in local.sessions().values()


def test_the_journal_of_a_parent_is_not_used_in_a_forked_child(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite3"
    database = Database(file)
    _write(database, "parent")
    assert _said(lambda: _write(database, "child")).startswith(f"{JournalError.__name__}: ")
    assert "spawn" in _said(lambda: _write(Database(file), "child"))
    assert _said(lambda: _write(Database(tmp_path / "another"), "child")) == "None"
    with database.transaction() as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert ("parent",) in tables
    assert ("child",) not in tables
    database.close()
    # What was closed in time is inherited by none.
    assert _said(lambda: _write(Database(file), "child")) == "None"


def _write(database: Database, name: str) -> None:
    with database.transaction() as connection:
        connection.execute(f"CREATE TABLE {name} (x)")


def test_a_writer_forked_while_its_thread_holds_its_lock_blocks_no_child(tmp_path: Path) -> None:
    database = Database(tmp_path / "journal.sqlite3")
    writer = Writer(database, heartbeat=lambda: None, heartbeat_every_s=60.0)
    writer.start()

    def use() -> object:
        writer.put(lambda _: None)
        done = writer.submit(lambda _: None)
        writer.close(LIMIT_S)
        return done.exception()

    with at_work(writer):
        said = _said(use)
    assert said.startswith(f"{JournalError.__name__}(")
    writer.close(LIMIT_S)
    database.close()


def test_a_log_line_of_a_forked_child_waits_for_no_lock_of_a_thread_that_is_not_there() -> None:
    def hides_in_a_thread() -> bool:
        # The lock may be entered again by its holder, which is the thread that forks.
        thread = threading.Thread(target=redaction.hide, args=["a-secret-of-a-child"], daemon=True)
        thread.start()
        thread.join(LIMIT_S / 2)
        return not thread.is_alive()

    with hiding_a_secret():
        assert _said(hides_in_a_thread) == "True"
