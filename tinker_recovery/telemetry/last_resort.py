"""What a program that has configured no logging sees of the SDK's log: each line once in a while.

Python prints warnings that no handler takes (``logging.lastResort``). In an outage the SDK
logs a lost heartbeat every ten seconds for each session, and each batch of telemetry that it could
not send with a traceback of fifty lines, and what a person should read is lost among them. A filter
on that one handler concerns nobody who has configured logging: there, every record is as it was.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tinker_recovery.clock import Reminder
from tinker_recovery.telemetry.text import counted

FIRST_S = 600.0
"""A line that comes again is said again after so long, and then at growing intervals."""

_SDK = "tinker"
_MOST = 500
"""Different lines that are remembered."""


class SaidOnce(logging.Filter):
    """Lets a warning of the SDK through the first time, and then now and then; without traceback.

    Numbers and ids in it do not make it another one. Errors, and what others log, pass as they are.

    Args:
        monotonic: Seconds, from anywhere.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._said: dict[str, _Line] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is printed; only the handler that this is on has the record."""
        if record.levelno > logging.WARNING or record.name.partition(".")[0] != _SDK:
            return True
        try:
            message = record.getMessage()
            if record.exc_info and (error := record.exc_info[1]) is not None:
                message += f": {type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - logging itself reports what cannot be put into words
            return True
        left_out = self._left_out(f"{record.name} {_VARYING.sub('#', message)}")
        if left_out is None:
            return False
        more = f" (and {counted(left_out, 'line')} like it, left out)" if left_out else ""
        record.msg, record.args = message + more, None
        record.exc_info = record.exc_text = record.stack_info = None
        return True

    def _left_out(self, key: str) -> int | None:
        """How many like it were left out since one was printed; None if this one is, too."""
        now = self._monotonic()
        with self._lock:
            if (line := self._said.get(key)) is None:
                if len(self._said) >= _MOST:
                    del self._said[next(iter(self._said))]
                self._said[key] = _Line(now)
                return 0
            return line.left_out_by(now)


class _Line:
    def __init__(self, first: float) -> None:
        self._first, self._left_out = first, 0
        self._reminder = Reminder(FIRST_S)

    def left_out_by(self, now: float) -> int | None:
        if not self._reminder.is_due(now - self._first):
            self._left_out += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return left_out


_VARYING = re.compile(r"\S*\d\S*")
"""Words with a number in them: seconds, ids, ports."""


@contextmanager
def repeats_left_out() -> Iterator[None]:
    """While inside, a warning of the SDK that nobody's logging takes is not printed each time."""
    handler, once = logging.lastResort, SaidOnce()
    if handler is not None:
        handler.addFilter(once)
    try:
        yield
    finally:
        if handler is not None:
            handler.removeFilter(once)
