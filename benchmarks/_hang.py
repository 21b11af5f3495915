"""What a play that does not end waits for, said by itself.

A schedule that hangs once in a thousand does not hang again when somebody looks. So a thread
watches each play, and writes down where every thread of the process and every task of its event
loops stands, as soon as the play takes longer than it may. That thread needs neither event loop.

What the machine denies the process does not count: beside other work, at idle priority, a play of
two seconds takes two minutes and waits for nothing but a processor.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

LOOK_S = 0.25
"""How often it is looked whether the time is over."""

AT_MOST = 10
"""However little the process gets of the machine, after this many times its limit it has hung."""

LAST = 40
"""How many of the last notes are said."""

_THREADS = Path("/proc/self/task")


def denied_s() -> dict[str, float]:
    """For how long each thread of this process has waited for a processor so far; empty if unknown.

    Linux counts it, for each thread from its start.
    """
    waited: dict[str, float] = {}
    try:
        for each in _THREADS.iterdir():
            try:
                waited[each.name] = int((each / "schedstat").read_text().split()[1]) / 1e9
            except (OSError, IndexError, ValueError):
                continue  # it has just ended, or the kernel does not count
    except OSError:
        return {}
    return waited


def chain(coroutine: object) -> Iterator[str]:
    """Where a coroutine stands, and what that awaits, from outside to inside."""
    seen = set[int]()
    while coroutine is not None and id(coroutine) not in seen:
        seen.add(id(coroutine))
        for kind in ("cr", "gi", "ag"):
            code: CodeType | None = getattr(coroutine, f"{kind}_code", None)
            if code is not None:
                frame: FrameType | None = getattr(coroutine, f"{kind}_frame", None)
                line = code.co_firstlineno if frame is None else frame.f_lineno
                yield f"{code.co_qualname} ({_short(code.co_filename)}:{line})"
                inner = "cr_await" if kind == "cr" else f"{kind}_yieldfrom"
                coroutine = getattr(coroutine, inner, None)
                break
        else:
            yield repr(coroutine)
            return


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])


def tasks_of(loop: asyncio.AbstractEventLoop) -> list[asyncio.Task[Any]]:
    """The tasks of a loop that may be another thread's, and may be stuck."""
    for _ in range(100):
        try:
            return list(asyncio.all_tasks(loop))
        except RuntimeError:  # it has just begun or ended one
            continue
    return []


def whereabouts(loops: Mapping[str, asyncio.AbstractEventLoop]) -> str:
    """Where every thread and every task stands."""
    lines: list[str] = []
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    me = threading.get_ident()
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - there is no public way to it
        if ident != me:
            lines.append(f"thread {names.get(ident, ident)}:")
            lines += [
                f"  {each.name} ({_short(each.filename)}:{each.lineno})"
                for each in traceback.extract_stack(frame)[-12:]
            ]
    for name, loop in loops.items():
        tasks = tasks_of(loop)
        lines.append(
            f"{name}, with {len(tasks)} tasks{'' if loop.is_running() else ', not running'}:"
        )
        for task in tasks:
            asked = f", asked to end {task.cancelling()} times" if task.cancelling() else ""
            lines.append(f"  task {task.get_name()}{asked}:")
            lines += [f"    {each}" for each in chain(task.get_coro())]
    return "\n".join(lines)


class Watch:
    """Watches one play; made by :func:`watched`.

    Attributes:
        report: What it waited for, once that was written down; empty before.
    """

    def __init__(
        self,
        limit_s: float,
        loops: Mapping[str, asyncio.AbstractEventLoop],
        over: Callable[[], object],
        facts: Callable[[], str],
    ) -> None:
        self.report = ""
        self._limit_s = limit_s
        self._loops = loops
        self._over = over
        self._facts = facts
        self._notes: deque[str] = deque(maxlen=LAST)
        self._began = time.monotonic()
        self._cpu = time.process_time()
        self._denied = denied_s()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch of a play", daemon=True)

    def note(self, what: object) -> None:
        """Keep what has happened, for the report."""
        self._notes.append(f"{time.monotonic() - self._began:8.2f} s  {what}")

    @property
    def lasted_s(self) -> float:
        """How long the play lasts, on the clock."""
        return time.monotonic() - self._began

    @property
    def starved_s(self) -> float:
        """For how long of that the thread that waited longest has waited for a processor."""
        before = self._denied
        return max((now - before.get(name, 0.0) for name, now in denied_s().items()), default=0.0)

    @property
    def is_over(self) -> bool:
        """Whether it has lasted longer than it may, without what the machine has denied it."""
        lasted_s = self.lasted_s
        if lasted_s <= self._limit_s:
            return False
        return lasted_s - self.starved_s > self._limit_s or lasted_s > AT_MOST * self._limit_s

    def explain(self) -> str:
        """Everything that may say what is waited for."""
        used = time.process_time() - self._cpu
        head = (
            f"after {self.lasted_s:.1f} s, of which it has computed for {used:.1f} s, and a thread "
            f"has waited for a processor for {self.starved_s:.1f} s:"
        )
        return "\n".join([head, self._facts(), *self._notes, whereabouts(self._loops)])

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """The play has ended."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_S):
            if self.is_over:
                self.report = self.explain()
                self._over()
                break
        # It is cancelled now. What holds that back as well holds up everything for ever.
        if not self._ended.wait(self._limit_s) and self.report:
            print(f"CANCELLED IN VAIN {self.explain()}", file=sys.stderr, flush=True)


@contextmanager
def watched(
    limit_s: float,
    loops: Mapping[str, asyncio.AbstractEventLoop],
    *,
    over: Callable[[], object],
    facts: Callable[[], str] = str,
) -> Generator[Watch]:
    """Watch what is done inside.

    Args:
        limit_s: How long it may take, without the time in which the process got no processor.
        loops: The event loops whose tasks are to be said, by name.
        over: Called in the watching thread when the time is over, and the report is written.
        facts: What else to say then.
    """
    watch = Watch(limit_s, loops, over, facts)
    # Should even the watching thread not come to run: this needs no interpreter lock.
    faulthandler.dump_traceback_later(AT_MOST * limit_s + 60.0, file=sys.__stderr__ or sys.stderr)
    watch.start()
    try:
        yield watch
    finally:
        faulthandler.cancel_dump_traceback_later()
        watch.stop()


LOGGERS = ("tinker_recovery", "tinker", "asyncio")
"""What is logged by these belongs to the report."""

_ALWAYS_SAID = "because of try_again"


class _Notes(logging.Handler):
    """Keeps what is logged for a report."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.INFO)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _ALWAYS_SAID not in message:
            self._watch.note(f"{record.name} {record.levelname}: {message[:400]}")


@contextmanager
def noted(watch: Watch) -> Generator[None]:
    """Inside, what is logged is kept for the report of this watch."""
    handler = _Notes(watch)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


def log_nowhere_else() -> None:
    """Have what is logged go to reports alone, and not to the terminal."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
