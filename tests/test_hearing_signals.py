"""What Ctrl-C, SIGTERM and ``stop()`` set off: by themselves, without a Supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from tinker_recovery import forks
from tinker_recovery.run.ending import stop_in_words
from tinker_recovery.run.signals import STOPPED, StopSignals, _Fork


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """As in a program of its own, whoever runs the tests."""
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


def _in_fork(work: Callable[[], int]) -> int:
    """How a forked child ends that does this: its exit status, or minus the signal."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.alarm(10)
            os._exit(work())
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- stop() --------------------------------------------------------------------------------------


def test_a_stop_is_noted_ends_what_is_under_way_and_is_done_once_the_supervisor_is_left() -> None:
    signals = StopSignals()
    assert (signals.requested, signals.terminated, signals.over) == (False, False, False)
    ended: list[str] = []
    with signals.ended_by_stop(lambda: ended.append("before")):
        pass
    with signals.ended_by_stop(lambda: ended.append("a")):
        left = signals.stop()
        assert (signals.requested, signals.terminated, ended) == (True, False, ["a"])
        with signals.ended_by_stop(lambda: ended.append("b")):
            assert ended == ["a", "b"], "it began after the stop was asked for"
    signals.stop()
    assert ended == ["a", "b"], "both are over"
    assert (signals.over, left.future().done()) == (False, False)
    for _ in range(2):
        signals.note_left()
    assert (signals.over, left.result(timeout=0)) == (True, None)


def test_a_stop_of_what_has_been_left_stops_nothing_and_is_done() -> None:
    signals = StopSignals()
    signals.note_left()
    ended: list[str] = []
    with signals.ended_by_stop(lambda: ended.append("a")):
        assert signals.stop().result(timeout=0) is None
    assert (signals.requested, ended) == (False, [])


async def test_who_waits_for_a_stop_may_be_cancelled_and_it_is_done_all_the_same() -> None:
    signals = StopSignals()
    left = signals.stop()
    with anyio.move_on_after(0.01) as waited:
        await left
    assert waited.cancelled_caught
    signals.note_left()
    assert (await signals.stop(), left.result(timeout=0)) == (None, None)


async def test_a_stop_cancels_the_task_once_and_only_while_it_is_in_there() -> None:
    signals = StopSignals()
    said: list[tuple[object, ...]] = []

    async def loop() -> int:
        with signals.listen_in_task():
            try:
                signals.stop()
                signals.stop()
                await anyio.sleep_forever()
            except asyncio.CancelledError as error:
                said.append(error.args)
                for _ in range(3):
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                task = asyncio.current_task()
                assert task is not None
                cancelled = task.cancelling()
                task.uncancel()
        signals.stop()
        await asyncio.sleep(0.01)
        return cancelled

    with anyio.fail_after(5):
        assert await asyncio.create_task(loop()) == 1
    assert said == [(STOPPED,)]


async def test_a_stop_that_was_asked_for_as_the_task_left_does_not_cancel_it_later() -> None:
    signals = StopSignals()

    async def loop() -> None:
        with signals.listen_in_task():
            signals.stop()
        await asyncio.sleep(0.01)

    await asyncio.create_task(loop())


def test_a_stop_may_come_from_anywhere_after_the_loop_was_closed() -> None:
    signals = StopSignals()
    listening = signals.listen_in_task()

    async def enter() -> None:
        listening.__enter__()

    asyncio.run(enter())
    signals.stop()
    assert signals.requested
    listening.__exit__(None, None, None)


# -- SIGTERM -------------------------------------------------------------------------------------


async def test_sigterm_cancels_the_task_and_then_ends_the_process_with_its_status() -> None:
    signals = StopSignals()
    cancelling, exited = list[int](), list[object]()

    async def loop(*, catches: bool) -> None:
        try:
            with signals.listen_in_task():
                signal.raise_signal(signal.SIGTERM)
                assert (signals.requested, signals.terminated) == (True, True)
                assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "a second one ends it"
                with contextlib.suppress(*[asyncio.CancelledError] * catches):
                    await anyio.sleep_forever()
        except SystemExit as error:
            exited.append(error.code)
            task = asyncio.current_task()
            assert task is not None
            cancelling.append(task.cancelling())

    with anyio.fail_after(5):
        await asyncio.create_task(loop(catches=False))
        await asyncio.create_task(loop(catches=True))
    assert (cancelling, exited) == ([0, 1], [143, 143])


async def test_a_task_that_others_cancel_is_cancelled_and_no_process_ends() -> None:
    signals = StopSignals()

    async def loop() -> None:
        with signals.listen_in_task():
            await anyio.sleep_forever()

    task = asyncio.create_task(loop())
    await anyio.lowlevel.checkpoint()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (signals.requested, signals.terminated) == (False, False)


def test_sigterm_ends_a_process_whose_task_ended_without_leaving() -> None:
    def work() -> int:
        listening = StopSignals().listen_in_task()

        async def enter() -> None:
            listening.__enter__()

        asyncio.run(enter())
        signal.raise_signal(signal.SIGTERM)
        return 3

    assert _in_fork(work) == -signal.SIGTERM


def test_without_asyncio_sigterm_raises_the_same_and_the_next_one_is_not_held_back() -> None:
    signals = StopSignals()
    with pytest.raises(SystemExit) as exited, signals.listen_here():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGTERM)
    assert exited.value.code == 143
    assert (signals.requested, signals.terminated) == (True, True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# -- what stopped a run, in words ----------------------------------------------------------------


def test_a_run_is_said_to_be_stopped_by_what_asked_first() -> None:
    signals = StopSignals()
    cancelled = asyncio.CancelledError()
    assert stop_in_words(cancelled, signals) == "cancelled", "by the program itself"
    with signals.listen_here(), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    signals.stop()
    assert stop_in_words(cancelled, signals) == "stopped by Ctrl-C"
    terminated = StopSignals()
    with contextlib.suppress(SystemExit), terminated.listen_here():
        signal.raise_signal(signal.SIGTERM)
    assert stop_in_words(cancelled, terminated) == "stopped by SIGTERM"
    stopped = StopSignals()
    stopped.stop()
    assert stop_in_words(cancelled, stopped) == "stopped by stop()"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped by Ctrl-C"),
        (SystemExit(3), "stopped by SystemExit"),
        (asyncio.CancelledError("CancelledError"), "cancelled"),
    ],
)
def test_where_no_signal_was_heard_the_error_says_what_stopped_a_run(
    error: BaseException, said: str
) -> None:
    assert stop_in_words(error, StopSignals()) == stop_in_words(error) == said


# -- handlers that are there already -------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_users_own_handler_is_called_as_ever_and_the_stop_is_noted(
    number: signal.Signals,
) -> None:
    got: list[tuple[int, bool]] = []

    def own(given: int, frame: FrameType | None) -> None:
        got.append((given, frame is not None))

    signal.signal(number, own)
    signals = StopSignals()
    with signals.listen_here():
        assert not signals.requested
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert (signals.requested, signals.terminated) == (True, False)
    assert got == [(number, True)] * 2
    assert signal.getsignal(number) is own


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    signals = StopSignals()
    with signals.listen_here():
        signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    assert not signals.requested


def test_ctrl_c_that_would_end_the_process_on_the_spot_still_does() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with StopSignals().listen_here():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_handler_that_was_installed_meanwhile_is_left() -> None:
    def own(number: int, frame: FrameType | None) -> None:
        del number, frame

    with StopSignals().listen_here():
        signal.signal(signal.SIGTERM, own)
    assert signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("given", [{"saves": True}, {"saves": False}, {}])
def test_outside_the_main_thread_no_signal_is_heard_which_is_said_if_a_step_would_be_saved(
    caplog: pytest.LogCaptureFixture, given: dict[str, bool]
) -> None:
    there: list[object] = []

    def work() -> None:
        with StopSignals(**given).listen_here():
            there.append(signal.getsignal(signal.SIGTERM))

    with caplog.at_level(logging.WARNING):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert there == [signal.SIG_DFL]
    assert ("Ctrl-C and SIGTERM are not heard" in caplog.text) == given.get("saves", False)


def test_nothing_is_kept_of_a_supervisor_that_was_left() -> None:
    signals = StopSignals()
    with signals.listen_here():
        kept = weakref.ref(signals)
    del signals
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize("inner_first", [True, False])
def test_of_two_supervisors_the_one_that_is_left_hears_nothing_more_and_no_handler_stays(
    *, inner_first: bool
) -> None:
    signal.signal(signal.SIGINT, lambda *_: None)
    before = signal.getsignal(signal.SIGINT)
    signals = [StopSignals(), StopSignals()]
    entered = [each.listen_here() for each in signals]
    for each in entered:
        each.__enter__()
    entered[inner_first].__exit__(None, None, None)
    signal.raise_signal(signal.SIGINT)
    assert [each.requested for each in signals] == [inner_first, not inner_first]
    entered[not inner_first].__exit__(None, None, None)
    assert signal.getsignal(signal.SIGINT) is before
    signal.raise_signal(signal.SIGINT)


def _ours() -> tuple[StopSignals, dict[int, Callable[..., object]]]:
    """The handlers of a Supervisor that has been left, as one that wrapped them still has them."""
    signals = StopSignals()
    with signals.listen_here():
        ours: Any = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    return signals, ours


@pytest.mark.parametrize("left", ["its Supervisor", "its process"])
def test_a_handler_that_outlives_its_supervisor_or_process_does_what_was_done_before(
    monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """As one of the user's calls ours that was installed over it; or in a child forked by C."""
    signals, ours = _ours()
    raised: list[int] = []
    with contextlib.ExitStack() as entered:
        if left == "its process":
            entered.enter_context(signals.listen_here())
            ours = {each: cast("Any", signal.getsignal(each)) for each in ours}
            monkeypatch.setattr(forks, "_here", -1)
        monkeypatch.setattr(signal, "raise_signal", raised.append)
        with pytest.raises(KeyboardInterrupt):
            ours[signal.SIGINT](signal.SIGINT, None)
        assert ours[signal.SIGTERM](signal.SIGTERM, None) is None
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert raised == [signal.SIGTERM], "it ends the process"
    assert (signals.requested, signals.terminated, signals.by) == (False, False, None)


def test_sigterm_ends_a_process_on_the_spot_whose_task_ended_and_is_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals, raised = StopSignals(), list[int]()
    listening = signals.listen_in_task()

    async def enter() -> None:
        listening.__enter__()

    asyncio.run(enter())
    ours: Any = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    ours(signal.SIGTERM, None)
    assert (raised, signals.terminated) == ([signal.SIGTERM], True)
    with pytest.raises(SystemExit):
        listening.__exit__(None, None, None)


# -- forks ---------------------------------------------------------------------------------------


def test_a_forked_child_has_the_handlers_from_before_and_hears_signals_again() -> None:
    def look() -> int:
        own = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ctrl_c = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        return own + 2 * ctrl_c + 4 * (signal.SIGTERM not in blocked)

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        outer, inner = StopSignals(), StopSignals()
        with outer.listen_here(), inner.listen_here():
            assert _in_fork(look) == 7
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == {signal.SIGUSR1}
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "of the parent"
        assert _in_fork(look) == 7
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    assert (outer.requested, inner.requested) == (False, False)


def _blocked() -> set[int]:
    return {*signal.pthread_sigmask(signal.SIG_BLOCK, ())} & {signal.SIGINT, signal.SIGTERM}


def test_around_a_fork_signals_are_held_back_and_let_through_again_in_both_processes() -> None:
    fork, signals = _Fork(), StopSignals()
    fork.after()
    fork.before()
    assert _blocked() == set(), "nobody listens"
    with signals.listen_here():
        ours = signal.getsignal(signal.SIGTERM)
        fork.before()
        assert _blocked() == {signal.SIGINT, signal.SIGTERM}
        fork.after()
        assert _blocked() == set()
        assert signal.getsignal(signal.SIGTERM) is ours, "of the parent"
        fork.before()
        fork.in_child()
        assert _blocked() == set()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_comes_to_a_forked_child_by_a_handler_of_the_users_is_not_the_parents() -> (
    None
):
    """One installed later, that calls ours: a child cannot take ours out of it."""
    signals = StopSignals()
    with signals.listen_here():
        for number in (signal.SIGINT, signal.SIGTERM):
            ours = signal.getsignal(number)
            assert callable(ours)

            def own(
                given: int, frame: FrameType | None, ours: Callable[..., object] = ours
            ) -> None:
                ours(given, frame)

            signal.signal(number, own)

        def interrupted() -> int:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            return signals.requested

        def terminated() -> int:
            with contextlib.suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            return 1

        assert _in_fork(interrupted) == 0
        assert _in_fork(terminated) == -signal.SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
