"""``Supervisor.stop()``: the orderly end of a signal, where no signal is heard or meant."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from inspection import training_sessions
from loops import ADAM, MODEL, SEED, batch, most_steps, quick, until

from tinker_recovery import Attempt, RecoveryPolicy, Supervisor, UsageError
from tinker_recovery.journal.reading import read_runs
from tinker_recovery.testing import FaultRule, LocalTinker

SAVES: Any = {"save_every": 100_000, "save_at_start": False, "save_at_end": False}
START: Any = {"base_model": MODEL, "rank": 8, "seed": SEED, "name": "stopped"}
BY_STOP = ("stopped", "stopped by stop()")
NOT_HEARD = "Ctrl-C and SIGTERM are not heard"


def _policy(**checkpoints: object) -> RecoveryPolicy:
    return quick(checkpoints=SAVES | checkpoints)


async def _train(attempt: Attempt) -> None:
    """An endless loop."""
    for step in range(attempt.start_step, 100_000):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        await attempt.client.optim_step(ADAM)
        await forward


def _train_blocking(attempt: Attempt) -> None:
    for step in range(attempt.start_step, 100_000):
        forward = attempt.client.forward_backward(batch(step), "cross_entropy")
        attempt.client.optim_step(ADAM).result()
        forward.result()


class Job(threading.Thread):
    """A job of a host: a thread of its own, and what it ended with."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(name="a host's job")
        self._work = work
        self.ended_with: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - what it ended with is what is looked at
            self.ended_with = error


@contextmanager
def _job(work: Callable[[], object]) -> Iterator[Job]:
    job = Job(work)
    job.start()
    try:
        yield job
    finally:
        job.join(20)
        assert not job.is_alive()


Loop = Callable[[Supervisor], Awaitable[object]]


async def _by_attempts(supervisor: Supervisor) -> None:
    async for attempt in supervisor.attempts(**START):
        async with attempt:
            await _train(attempt)


async def _by_group(supervisor: Supervisor) -> None:
    async for attempts in supervisor.group([START, START | {"name": "another"}]):
        async with attempts:
            for step in range(attempts.start_step, 100_000):
                for attempt in attempts:
                    forward = attempt.client.forward_backward(batch(step), "cross_entropy")
                    await attempt.client.optim_step(ADAM)
                    await forward


async def _in_a_task_of_its_own(supervisor: Supervisor) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run(_train, **START))


LOOPS: dict[str, Loop] = {
    "attempts": _by_attempts,
    "run": lambda supervisor: supervisor.run(_train, **START),
    "a plain function": lambda supervisor: supervisor.run(_train_blocking, **START),
    "group": _by_group,
    "a task group": _in_a_task_of_its_own,
}


def _saved_last(local: LocalTinker) -> list[tuple[int, int]]:
    """Of each run at the server: the step saved last, and its steps."""
    return [
        (
            max((each.steps for each in local.checkpoints(run)), default=0),
            local.run_state(run).steps,
        )
        for run in local.runs()
    ]


@pytest.mark.parametrize("loop", LOOPS)
async def test_a_job_in_a_thread_is_stopped_from_another_with_its_last_step_saved(
    local: LocalTinker, loop: str, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.db"
    supervisor = Supervisor(_policy(), journal=journal)

    async def main() -> None:
        async with supervisor:
            await LOOPS[loop](supervisor)

    with anyio.fail_after(30), _job(functools.partial(asyncio.run, main())) as job:
        await until(lambda: most_steps(local) >= 3)
        supervisor.stop()
        await supervisor.stop()
        assert supervisor.runs
    assert isinstance(job.ended_with, asyncio.CancelledError), repr(job.ended_with)
    for saved, steps in _saved_last(local):
        assert saved == steps > 0
    assert set(training_sessions(local).values()) == {"interrupted"}
    assert {(run.state, run.detail) for run in read_runs(journal)} == {BY_STOP}


async def test_a_script_without_asyncio_is_stopped_from_another_thread(
    local: LocalTinker, tmp_path: Path
) -> None:
    journal = tmp_path / "journal.db"
    supervisor = Supervisor(_policy(), journal=journal)

    def main() -> None:
        with supervisor as blocking:
            blocking.run(_train_blocking, **START)

    with anyio.fail_after(30), _job(main) as job:
        await until(lambda: most_steps(local) >= 3)
        await supervisor.stop()
    assert isinstance(job.ended_with, asyncio.CancelledError), repr(job.ended_with)
    ((saved, steps),) = _saved_last(local)
    assert saved == steps
    assert [(run.state, run.detail) for run in read_runs(journal)] == [BY_STOP]


async def test_a_stop_ends_what_the_loop_was_submitting_and_not_after_its_limit(
    local: LocalTinker,
) -> None:
    supervisor = Supervisor(_policy(save_on_stop_s=20.0))
    with anyio.fail_after(15):
        async with asyncio.TaskGroup() as group:

            async def stopped() -> None:
                with pytest.raises(asyncio.CancelledError):
                    async with supervisor:
                        await supervisor.run(_train_blocking, **START)

            group.create_task(stopped())
            await until(lambda: most_steps(local) >= 3)
            await supervisor.stop()
    ((saved, steps),) = _saved_last(local)
    assert saved == steps


async def test_a_stop_waits_no_longer_for_the_save_than_a_signal_does(
    local: LocalTinker, caplog: pytest.LogCaptureFixture
) -> None:
    local.inject(FaultRule("hang", request="save_weights"))
    supervisor = Supervisor(_policy(save_on_stop_s=0.3))

    async def main() -> None:
        async with supervisor:
            await supervisor.run(_train, **START)

    with anyio.fail_after(20):
        running = asyncio.create_task(main())
        await until(lambda: most_steps(local) >= 3)
        await supervisor.stop()
        with pytest.raises(asyncio.CancelledError, match="stop"):
            await running
    assert "was not saved within 0.3 s" in caplog.text


async def test_where_nothing_is_to_be_saved_a_stop_ends_all_the_same(local: LocalTinker) -> None:
    supervisor = Supervisor(_policy(save_on_stop_s=None))

    async def main() -> None:
        async with supervisor:
            await supervisor.run(_train, **START)

    running = asyncio.create_task(main())
    await until(lambda: most_steps(local) >= 3)
    await supervisor.stop()
    assert running.cancelled() or isinstance(
        (await asyncio.gather(running, return_exceptions=True))[0], asyncio.CancelledError
    )
    assert [saved for saved, _ in _saved_last(local)] == [0]


async def test_a_stop_in_the_middle_of_a_recovery_ends_it(local: LocalTinker) -> None:
    local.inject(FaultRule("poison", 8, "optim_step"))
    supervisor = Supervisor(_policy())

    async def main() -> None:
        async with supervisor:
            await supervisor.run(_train, **START)

    with anyio.fail_after(20):
        running = asyncio.create_task(main())
        await until(lambda: most_steps(local) >= 1)
        local.inject(FaultRule("hang", request="create_model"))
        await until(lambda: any(fault.rule.action == "hang" for fault in local.fired))
        await supervisor.stop()
        with pytest.raises(asyncio.CancelledError):
            await running


@pytest.mark.usefixtures("local")
async def test_a_stop_that_comes_before_the_supervisor_is_entered_is_not_lost() -> None:
    supervisor = Supervisor(_policy())
    stopped = supervisor.stop()
    with anyio.fail_after(10), pytest.raises(asyncio.CancelledError):
        async with supervisor:
            await supervisor.run(_train, **START)
    assert stopped.future().done()


async def test_a_stop_after_the_end_does_nothing(local: LocalTinker) -> None:
    async with Supervisor(_policy()) as supervisor:
        pass
    await supervisor.stop()
    await anyio.lowlevel.checkpoint()
    supervisor.stop().result(timeout=1)
    assert local.runs() == []


@pytest.mark.usefixtures("local")
async def test_stopping_one_supervisor_leaves_another_on_the_same_loop_alone() -> None:
    async with Supervisor(_policy()) as stays:
        ended = asyncio.Event()

        async def main() -> None:
            try:
                async with Supervisor(_policy()) as goes:
                    goes.stop()
                    await anyio.sleep_forever()
            finally:
                ended.set()

        running = asyncio.create_task(main())
        await ended.wait()
        with pytest.raises(asyncio.CancelledError):
            await running

        async def one(attempt: Attempt) -> str:
            await attempt.client.forward_backward(batch(0), "cross_entropy")
            return "done"

        assert await stays.run(one, **START) == "done"


@pytest.mark.usefixtures("local")
async def test_a_stop_of_a_supervisor_that_only_watches_ends_its_body() -> None:
    supervisor = Supervisor(_policy())

    async def main() -> None:
        async with supervisor:
            supervisor.watch("a-run:train:0", on_recovery=print)
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        running = asyncio.create_task(main())
        await anyio.sleep(0.05)
        await supervisor.stop()
        with pytest.raises(asyncio.CancelledError):
            await running


# -- where signals are not heard ------------------------------------------------------------------


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(("saves", "said"), [(30.0, True), (None, False)])
async def test_entering_outside_the_main_thread_says_that_signals_are_not_heard(
    caplog: pytest.LogCaptureFixture,
    *,
    blocking: bool,
    saves: float | None,
    said: bool,
) -> None:
    async def enter() -> None:
        async with Supervisor(_policy(save_on_stop_s=saves)):
            pass

    def enter_blocking() -> None:
        with Supervisor(_policy(save_on_stop_s=saves)):
            pass

    entering = enter_blocking if blocking else lambda: asyncio.run(enter())
    with caplog.at_level(logging.WARNING, "tinker_recovery"):
        await anyio.to_thread.run_sync(entering)
    warned = [record.getMessage() for record in caplog.records if NOT_HEARD in record.getMessage()]
    assert len(warned) == said
    assert all("stop()" in each for each in warned)


@pytest.mark.usefixtures("local")
async def test_in_the_main_thread_nothing_is_said_of_signals(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Supervisor(_policy()):
        pass
    assert NOT_HEARD not in caplog.text


# -- notebooks: each cell is a task of its own on one loop ----------------------------------------


class Notebook:
    """A kernel: one loop for its life, and a task for each cell."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def cell(self, cell: Callable[[], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            return await cell()

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.close()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalTinker]:
    """As the fixture ``local``, for tests without a loop of their own."""
    server = LocalTinker()
    asyncio.run(server.__aenter__())
    monkeypatch.setenv("TINKER_BASE_URL", server.base_url)
    monkeypatch.setenv("TINKER_API_KEY", server.api_key)
    yield server
    asyncio.run(server.__aexit__(None, None, None))


@pytest.fixture
def notebook(handlers: list[object]) -> Iterator[Notebook]:
    del handlers  # those of a Supervisor that is never left stay
    notebook = Notebook()
    yield notebook
    notebook.close()


def test_a_supervisor_entered_in_one_cell_and_used_in_another_says_what_to_write(
    served: LocalTinker, notebook: Notebook
) -> None:
    supervisor = Supervisor(_policy())
    notebook.cell(supervisor.__aenter__)
    for use in (
        lambda: supervisor.run(_train, **START),
        lambda: anext(aiter(supervisor.attempts(**START))),
    ):
        with pytest.raises(UsageError, match="async with Supervisor") as caught:
            notebook.cell(use)
        assert "cell" in str(caught.value)
        assert "stop()" in str(caught.value)
    assert served.runs() == []


def test_a_supervisor_entered_in_one_cell_and_left_in_another_closes_its_sessions_and_says_so(
    served: LocalTinker, notebook: Notebook
) -> None:
    supervisor = Supervisor(_policy())

    async def one(attempt: Attempt) -> None:
        await attempt.client.forward_backward(batch(0), "cross_entropy")

    async def first() -> None:
        await supervisor.__aenter__()
        async for attempt in supervisor.attempts(**START):
            await attempt.__aenter__()
            return

    notebook.cell(first)
    with pytest.raises(UsageError, match="async with Supervisor"):
        notebook.cell(lambda: supervisor.__aexit__(None, None, None))
    assert "active" not in served.sessions().values()


def test_a_supervisor_left_by_another_task_while_its_own_still_runs_is_left_alone(
    served: LocalTinker, notebook: Notebook
) -> None:
    supervisor = Supervisor(_policy())

    async def cell() -> None:
        left = asyncio.Event()

        async def own() -> str:
            async with supervisor:
                left.set()
                await anyio.sleep(0.05)
                return "its own way out"

        task = asyncio.create_task(own())
        await left.wait()
        with pytest.raises(UsageError, match="the task that entered it"):
            await supervisor.__aexit__(None, None, None)
        assert await task == "its own way out"

    notebook.cell(cell)
    assert served.runs() == []


def test_a_notebook_trains_in_the_background_and_stops_from_another_cell(
    served: LocalTinker, notebook: Notebook
) -> None:
    """As the docs write it."""
    supervisor = Supervisor(_policy())

    async def main() -> None:
        async with supervisor:
            await supervisor.run(_train, **START)

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(main())
        await until(lambda: most_steps(served) >= 3)
        return task

    task = notebook.cell(start)
    notebook.cell(lambda: anyio.sleep(0.01))

    async def stop() -> None:
        await supervisor.stop()

    notebook.cell(stop)
    assert task.cancelled()
    ((saved, steps),) = _saved_last(served)
    assert saved == steps


def test_a_host_that_keeps_futures_of_its_jobs_gets_a_cancellation_and_no_exit(
    served: LocalTinker,
) -> None:
    supervisor = Supervisor(_policy())

    async def main() -> None:
        async with supervisor:
            await supervisor.run(_train, **START)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        job = pool.submit(asyncio.run, main())
        while most_steps(served) < 3:
            threading.Event().wait(0.005)
        supervisor.stop().result(timeout=20)
        with pytest.raises(asyncio.CancelledError):
            job.result()
