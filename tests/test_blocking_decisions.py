"""Loops that block: how one is run in a thread, and what a script without asyncio gets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from tinker_recovery import UsageError
from tinker_recovery.run.blocking import (
    BlockingSupervisor,
    in_worker_thread,
    is_async,
    run_blocking,
    run_body,
)
from tinker_recovery.run.signals import StopSignals

OWN = LookupError("the loop's own")


# -- whether a loop blocks ------------------------------------------------------------------------


async def coroutine_function(attempt: object) -> object:
    return attempt


def plain(attempt: object) -> object:
    return attempt


class Called:
    async def __call__(self, attempt: object) -> object:
        return attempt

    async def method(self, attempt: object) -> object:
        return attempt


class CalledPlainly:
    def __call__(self, attempt: object) -> object:
        return attempt


def timed(train: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows nothing of asyncio."""

    @functools.wraps(train)
    def called(*given: Any) -> Any:
        return train(*given)

    return called


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        (coroutine_function, True),
        (functools.partial(coroutine_function), True),
        (timed(coroutine_function), True),
        (Called(), True),
        (Called().method, True),
        (timed(Called()), True),
        (plain, False),
        (lambda attempt: attempt, False),
        (functools.partial(plain), False),
        (timed(plain), False),
        (CalledPlainly(), False),
    ],
)
async def test_a_loop_blocks_unless_calling_it_gives_a_coroutine(
    train: Callable[..., Any], *, expected: bool
) -> None:
    assert is_async(train) is expected
    used: list[object] = []

    async def runner(body: Callable[[], Any]) -> Any:
        used.append(body)
        return body()

    attempt = Attempt()
    assert await run_body(train, attempt.given, runner=runner, limit_s=1.0) is attempt.given
    assert len(used) == (not expected)


# -- a loop in a thread ---------------------------------------------------------------------------


class Attempt:
    """An attempt whose loop may block; the log has what was asked of it."""

    def __init__(self, *, stopped: bool = False) -> None:
        self.log: list[Any] = []
        self.on_interrupt: Callable[[], object] = lambda: None
        saving = SimpleNamespace(save_on_stop_s=1000.0)
        self.scope = SimpleNamespace(
            blocking=False,
            closed=False,
            ending=False,
            fault=None,
            run=SimpleNamespace(
                name="r",
                policy=SimpleNamespace(checkpoints=saving),
                signals=SimpleNamespace(requested=stopped),
                mailbox=SimpleNamespace(deliver=lambda: None),
            ),
            saver=SimpleNamespace(last=None, awaits_state=False),
            client=SimpleNamespace(
                hold=functools.partial(self.log.append, "hold"),
                save=lambda _: self.log.append("save"),
                drain=self._drain,
                failed=(),
                open_requests=0,
                step=3,
            ),
            interrupt=self._interrupt,
        )
        self.given: Any = SimpleNamespace(_scope=self.scope)

    async def _drain(self) -> None:
        pass

    async def _interrupt(self) -> None:
        await anyio.lowlevel.checkpoint()  # closing a client takes a while
        self.log.append("interrupt")
        self.on_interrupt()


async def directly(body: Callable[[], Any]) -> Any:
    return body()


async def test_what_a_plain_loop_returns_or_raises_is_what_the_caller_gets() -> None:
    attempt = Attempt()

    def train(_: object) -> object:
        assert attempt.scope.blocking is True, "only its client can end it"
        return "done"

    assert await run_blocking(train, attempt.given, runner=directly, limit_s=1.0) == "done"

    async def later() -> str:
        return "in the end"

    result = await run_blocking(lambda _: later(), attempt.given, runner=directly, limit_s=1.0)
    assert result == "in the end", "of a function that returns a coroutine"

    def fails(_: object) -> None:
        raise OWN

    with pytest.raises(LookupError):
        await run_blocking(fails, attempt.given, runner=directly, limit_s=1.0)
    assert attempt.log == []


class Blocked:
    """A loop in a thread that comes out once it is told to."""

    def __init__(self, attempt: Attempt, *, limit_s: float) -> None:
        self.attempt, self.limit_s = attempt, limit_s
        self.begun, self.go_on, self.out = (threading.Event() for _ in range(3))

    def train(self, _: object) -> None:
        self.begun.set()
        self.go_on.wait(50)
        self.attempt.log.append("out")
        self.out.set()

    async def cancelled(self, runner: Callable[..., Awaitable[Any]] = in_worker_thread) -> None:
        """Run it, and cancel that once it has begun, if it does begin."""
        running = run_blocking(self.train, self.attempt.given, runner=runner, limit_s=self.limit_s)
        with anyio.fail_after(55):
            async with anyio.create_task_group() as group:
                group.start_soon(self._run, running)
                if runner is in_worker_thread:
                    await anyio.to_thread.run_sync(self.begun.wait, 50)
                else:
                    await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()

    async def _run(self, running: Any) -> None:
        await running
        self.attempt.log.append("it returned")


@pytest.mark.parametrize("stopped", [True, False])
async def test_a_loop_that_is_cancelled_in_its_thread_comes_out_as_its_client_is_closed(
    caplog: pytest.LogCaptureFixture, *, stopped: bool
) -> None:
    """First the last step is saved, if a signal has asked the process to stop."""
    attempt = Attempt(stopped=stopped)
    loop = Blocked(attempt, limit_s=50.0)
    attempt.on_interrupt = loop.go_on.set
    await loop.cancelled()
    saves = ["save", "save"] if stopped else []
    assert attempt.log == ["hold", *saves, "interrupt", "out"], "and that is waited for"
    assert caplog.records == []


async def test_a_loop_that_does_not_come_out_of_its_thread_is_left_there_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempt = Attempt()
    loop = Blocked(attempt, limit_s=0.01)
    try:
        await loop.cancelled()
        assert attempt.log == ["hold", "interrupt"]
        (said,) = caplog.records
        assert said.levelno == logging.ERROR
        assert "runs on in its thread, 0.01 s after its client was closed" in said.getMessage()
    finally:
        loop.go_on.set()
        await anyio.to_thread.run_sync(loop.out.wait, 50)


async def test_a_loop_that_never_began_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    attempt = Attempt()

    async def never(_: object) -> None:
        await anyio.sleep_forever()

    await Blocked(attempt, limit_s=0.01).cancelled(never)
    assert attempt.log == ["hold", "interrupt"]
    assert caplog.records == []


BESIDE = " is for `async with Supervisor()`"
INSTEAD = {
    "attempts": f": attempts(){BESIDE}. After `with`, the loop is a function: "
    "supervisor.run(train, name=..., base_model=...) with def train(attempt), called again from "
    "attempt.start_step after a fault",
    "events": f": events(){BESIDE}; Supervisor(on_event=...) is called with each event",
    "watch": f": watch(){BESIDE}",
    "runs": ": it is the Supervisor's own, supervisor.supervisor.runs",
    "_runs": "",
    "nothing": "",
}


# -- a script without asyncio ---------------------------------------------------------------------


class Script:
    """A supervisor in a thread of its own, of which a script uses what it is given."""

    runs = _runs = ("a run",)

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.swallows = False
        self.on_enter: BaseException | None = None
        self.signals = StopSignals()
        self.started: list[Any] = []
        self.give_up_run: Callable[[], object] = lambda: None

    @asynccontextmanager
    async def context(self) -> AsyncIterator[None]:
        self.log.append(("entered", threading.current_thread() is threading.main_thread()))
        if self.on_enter is not None:
            raise self.on_enter
        try:
            yield
        except BaseException as error:
            self.log.append(("left by", error))
            if not self.swallows:
                raise
        else:
            self.log.append("left")

    async def run_with(self, train: Any, here: Any, start: Any) -> Any:
        self.started.append(start)
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        self.give_up_run = lambda: loop.call_soon_threadsafe(cast("Any", task).cancel)
        try:
            return await here(functools.partial(train, "an attempt"))
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.log.append("closed")
            raise

    def enter(self) -> BlockingSupervisor[Script]:
        return BlockingSupervisor(self, self.context(), self.run_with, self.signals)


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


def test_the_loop_of_a_script_runs_in_its_own_thread_and_the_supervisor_in_another() -> None:
    script, before = Script(), threads()
    supervisor = script.enter()
    where: list[Any] = []

    def train(attempt: Any) -> str:
        where.append((attempt, threading.current_thread()))
        return "done"

    assert supervisor.supervisor is script
    assert supervisor.run(train, name="n") == "done"
    assert where == [("an attempt", threading.current_thread())]
    assert script.started == [{"name": "n"}]
    assert supervisor.close(None, None, None) is False
    assert script.log == [("entered", False), "left"]
    assert threads() <= before, "its thread has ended"


def test_what_the_loop_of_a_script_raises_leaves_unchanged() -> None:
    script = Script()
    supervisor = script.enter()

    def fail(_: object) -> None:
        raise OWN

    with pytest.raises(LookupError) as caught:
        supervisor.run(fail)
    assert caught.value is OWN

    def stop(_: object) -> None:
        raise StopIteration(1)

    with pytest.raises(RuntimeError, match="the loop raised StopIteration") as refused:
        supervisor.run(stop)
    assert isinstance(refused.value.__cause__, StopIteration)
    script.swallows = True
    assert supervisor.close(LookupError, OWN, None) is True, "as what was entered says"
    assert script.log[-1] == ("left by", OWN)


def test_a_supervisor_that_cannot_be_entered_raises_and_leaves_no_thread_behind() -> None:
    script, before = Script(), threads()
    script.on_enter = OWN
    with pytest.raises(LookupError):
        script.enter()
    assert threads() <= before


def test_ctrl_c_in_the_loop_of_a_script_passes_once_the_attempt_is_closed() -> None:
    script = Script()
    supervisor = script.enter()

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervisor.run(interrupted)
    assert script.log[1:] == ["closed"]
    assert supervisor.close(None, None, None) is False


def test_a_stop_ends_the_loop_of_a_script_as_a_cancellation() -> None:
    script = Script()
    supervisor = script.enter()

    def train(_: object) -> str:
        script.signals.stop()
        return "done"

    with pytest.raises(asyncio.CancelledError, match=r"Supervisor.stop\(\) was called"):
        supervisor.run(train)
    assert script.log[1:] == ["closed"]
    stopped = asyncio.CancelledError("stopped")
    assert supervisor.close(asyncio.CancelledError, stopped, None) is False


@pytest.mark.parametrize(
    ("left_by", "passes"),
    [
        ((), True),
        ((None,), True),
        ((None, None, None), True),
        ((LookupError, OWN, None), True),
        ((asyncio.CancelledError, asyncio.CancelledError(), None), False),
        ((asyncio.CancelledError, asyncio.CancelledError()), False),
    ],
)
def test_a_cancellation_on_its_way_through_the_other_thread_is_the_scripts_own(
    left_by: tuple[Any, ...], *, passes: bool
) -> None:
    """Behind `with` the script's own error is what is raised, and not what has become of it."""
    script, before = Script(), threads()
    supervisor = script.enter()
    inside = cast("Any", supervisor)._inside
    given: list[Any] = []

    def leave(*exc_info: Any) -> None:
        given.append(exc_info)
        inside.__exit__(None, None, None)
        raise concurrent.futures.CancelledError

    cast("Any", supervisor)._inside = SimpleNamespace(__exit__=leave)
    if passes:
        with pytest.raises(concurrent.futures.CancelledError):
            supervisor.close(*left_by)
    else:
        assert supervisor.close(*left_by) is None
    assert given == [left_by]
    assert threads() <= before


def test_signals_are_heard_as_long_as_a_script_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script()

    @contextmanager
    def listen() -> Iterator[None]:
        script.log.append("hears")
        yield
        script.log.append("hears no more")

    monkeypatch.setattr(script.signals, "listen_here", listen)
    supervisor = script.enter()
    supervisor.close(None, None, None)
    assert script.log == [("entered", False), "hears", "left", "hears no more"]


@pytest.mark.parametrize("error", [None, OWN, SystemExit(7)])
def test_a_child_that_the_loop_forks_gets_what_it_returns_or_raises_and_leaves_the_run_alone(
    error: BaseException | None,
) -> None:
    script = Script()
    supervisor = script.enter()
    home = cast("Any", supervisor)._home
    parent = home.pid

    def train(_: object) -> str:
        home.pid = -1  # as in a child: this process is not the supervisor's
        if error is not None:
            raise error
        return "of the child"

    if error is None:
        assert supervisor.run(train) == "of the child"
    else:
        with pytest.raises(type(error)) as caught:
            supervisor.run(train)
        assert caught.value is error
    with pytest.raises(UsageError, match=r"this Script is of process .* was forked from it"):
        supervisor.run(train)
    kept = sys.getrefcount(supervisor)
    assert supervisor.close(None, None, None) is None
    assert sys.getrefcount(supervisor) == kept + 1, (
        "its finalizers never wait for the parent's thread"
    )
    assert (len(script.started), script.log[1:]) == (1, []), "nothing is done about the run"
    home.pid = parent
    script.give_up_run()
    supervisor.close(None, None, None)
    assert script.log[1:] == ["closed", "left"]


def test_what_only_asyncio_has_is_named_with_what_to_use() -> None:
    supervisor: Any = Script().enter()
    try:
        for name, said in INSTEAD.items():
            with pytest.raises(AttributeError) as refused:
                getattr(supervisor, name)
            assert (
                str(refused.value) == f"'BlockingSupervisor' object has no attribute {name!r}{said}"
            )
            assert (refused.value.name, refused.value.obj) == (name, supervisor)
    finally:
        supervisor.close(None, None, None)
