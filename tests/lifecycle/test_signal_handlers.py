"""The handlers of SIGINT and SIGTERM: ours inside a Supervisor, those from before after it."""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import signal
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import pytest
from inspection import signal_handlers
from loops import policy

from tinker_recovery import Supervisor
from tinker_recovery.run.signals import StopSignals
from tinker_recovery.testing import LocalTinker


class _Entered:
    """Supervisors' signals, each to be left by itself."""

    def __init__(self, count: int) -> None:
        self.signals = [StopSignals() for _ in range(count)]
        self._stacks = [ExitStack() for _ in range(count)]
        for stack, signals in zip(self._stacks, self.signals, strict=True):
            stack.enter_context(signals.listen_here())

    def leave(self, number: int) -> None:
        self._stacks[number].close()

    @property
    def heard(self) -> list[bool]:
        return [each.requested for each in self.signals]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_in_whatever_order_supervisors_of_one_process_are_left_no_handler_is_left(
    handlers: list[object], order: tuple[int, ...]
) -> None:
    entered = _Entered(3)
    for number in order:
        assert signal_handlers() != handlers
        entered.leave(number)
    assert signal_handlers() == handlers


async def test_two_supervisors_left_in_the_order_they_were_entered_leave_no_handler(
    local: LocalTinker,
) -> None:
    handlers = signal_handlers()  # one of them is asyncio's
    entered, inside, left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def first() -> None:
        async with Supervisor(policy(), service=local.service, journal=None):
            entered.set()
            await inside.wait()
        left.set()

    async def second() -> None:
        await entered.wait()
        async with Supervisor(policy(), service=local.service, journal=None):
            inside.set()
            await left.wait()

    await asyncio.gather(first(), second())
    assert signal_handlers() == handlers


def test_sigterm_ends_the_one_that_is_still_entered_and_no_other_hears_it(
    handlers: list[object],
) -> None:
    entered = _Entered(2)
    entered.leave(0)
    with pytest.raises(SystemExit) as ended:
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 128 + signal.SIGTERM
    assert entered.heard == [False, True]
    assert entered.signals[1].terminated
    entered.leave(1)
    assert signal_handlers()[0] == handlers[0]


def test_a_handler_of_the_users_over_ours_stays_and_reaches_what_was_there_before(
    handlers: list[object],
) -> None:
    """As one does that calls on to what it has found, also once the Supervisor is left."""
    heard: list[str] = []

    def underneath(number: int, frame: FrameType | None) -> None:
        del number, frame
        heard.append("from before")

    signal.signal(signal.SIGTERM, underneath)
    entered = _Entered(1)
    found: Callable[[int, FrameType | None], object] = signal.getsignal(signal.SIGTERM)  # type: ignore[assignment]  # ours

    def over(number: int, frame: FrameType | None) -> None:
        heard.append("the user's")
        found(number, frame)

    signal.signal(signal.SIGTERM, over)
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["the user's", "from before"]
    assert entered.heard == [True]
    entered.leave(0)
    assert signal.getsignal(signal.SIGTERM) is over
    signal.raise_signal(signal.SIGTERM)
    assert heard == ["the user's", "from before"] * 2
    del handlers


def test_a_handler_of_ours_that_was_put_back_after_its_supervisor_lets_sigterm_end_the_process(
    handlers: list[object],
) -> None:
    """As one does that wraps a part of the program, and ends after the Supervisor."""

    def child() -> None:
        signal.alarm(20)  # it outlives no test
        entered = _Entered(1)
        found = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        entered.leave(0)
        signal.signal(signal.SIGTERM, found)
        signal.raise_signal(signal.SIGTERM)

    ends = multiprocessing.get_context("fork").Process(target=child)
    ends.start()
    ends.join()
    assert ends.exitcode == -signal.SIGTERM
    assert signal_handlers() == handlers
