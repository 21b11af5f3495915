"""The sources of ``watch``: a journal, or lines of events that another process writes."""

from __future__ import annotations

import io
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tinker_recovery.cli.output import check_open
from tinker_recovery.cli.watch.chosen import Chosen
from tinker_recovery.cli.watch.rows import EventText, RunRow, after, event_text
from tinker_recovery.journal.reading import RunView, read_events, read_run
from tinker_recovery.journal.summary import read_summaries
from tinker_recovery.telemetry import from_json_line

_CHUNK = 65536
_EVENTS = 500
"""How many events are kept."""


class WatchSource(Protocol):
    """A source of runs; each call may read from a disk."""

    ended: bool
    """Whether there will be no more news."""
    skipped_lines: int
    """Lines that were not events."""
    known: int
    """How many runs there were when the rows were last read, the ones not chosen included."""

    def rows(self) -> list[RunRow]:
        """The current state of every chosen run, the most recently active first."""
        ...

    def news(self) -> list[EventText]:
        """Their events since the last call, oldest first; at the first call, the newest ones."""
        ...

    def detail(self) -> RunView | None:
        """The history of the one chosen run, if it is known."""
        ...


class JournalSource:
    """A journal, read while others write it.

    Args:
        path: Its file.
        chosen: Which runs to show.

    Raises:
        JournalError: From any call: it does not exist or cannot be read.
    """

    ended = False
    skipped_lines = 0
    known = 0

    def __init__(self, path: Path, chosen: Chosen) -> None:
        self._path, self._chosen = path, chosen
        self._run, self._service = chosen.run, chosen.service
        self._id: int | None = None
        self._seen = 0

    def rows(self) -> list[RunRow]:
        """See :class:`WatchSource`; of several runs with the chosen name, the newest."""
        summaries = read_summaries(self._path, self._run, service=self._service)
        if self._run is not None:
            summaries = sorted(summaries, key=lambda each: each.run.id)[-1:]
            self._id = summaries[0].run.id if summaries else None
        self.known = len(summaries)
        return list(filter(self._chosen.shows, map(RunRow.of, summaries)))

    def news(self) -> list[EventText]:
        """See :class:`WatchSource`; of one run, those of the row that was read last."""
        events = read_events(
            self._path,
            self._run,
            service=self._service,
            run=self._id,
            after=self._seen,
            limit=_EVENTS,
        )
        if events:
            self._seen = events[-1].id
        return [event_text(each) for each in events]

    def detail(self) -> RunView | None:
        """See :class:`WatchSource`."""
        return None if self._run is None else read_run(self._path, self._run, service=self._service)


class EventsSource:
    """Lines of events, from a file that may grow or from standard input.

    Args:
        file: The file; ``-`` for standard input.
        chosen: Which runs to show.
        wait: Whether to read standard input to its end first.

    Raises:
        OSError: From any call: the file cannot be opened or read.
    """

    def __init__(self, file: str, chosen: Chosen, *, wait: bool) -> None:
        self._chosen, self._run = chosen, chosen.run
        self._rows: dict[str, RunRow] = {}
        self._news: deque[EventText] = deque(maxlen=_EVENTS)
        self.ended = False
        self.skipped_lines = self.known = 0
        self._lines: _File | _Input = _Input(wait=wait) if file == "-" else _File(Path(file))

    def rows(self) -> list[RunRow]:
        """See :class:`WatchSource`."""
        self._read()
        self.known = len(self._rows)
        return sorted(
            filter(self._chosen.shows, self._rows.values()),
            key=lambda row: row.event.time if row.event else 0,
            reverse=True,
        )

    def news(self) -> list[EventText]:
        """See :class:`WatchSource`."""
        self._read()
        events = list(self._news)
        self._news.clear()
        return events

    def detail(self) -> RunView | None:
        """See :class:`WatchSource`."""
        return None

    def _read(self) -> None:
        lines, self.ended = self._lines.read()
        for line in filter(str.strip, lines):
            try:
                event = from_json_line(line)
            except ValueError:
                self.skipped_lines += 1
                continue
            if self._run in (None, event.run):
                row = after(self._rows.get(event.run), event)
                if event.run:  # some events concern no single run
                    self._rows[event.run] = row
                if row.event is not None:
                    self._news.append(row.event)


class _File:
    """The complete lines of a file, which may grow or be truncated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._rest = b""

    def read(self) -> tuple[Sequence[str], bool]:
        with self._path.open("rb") as file:
            if file.seek(0, io.SEEK_END) < self._at:
                self._at, self._rest = 0, b""
            file.seek(self._at)
            *lines, self._rest = (self._rest + file.read()).split(b"\n")
            self._at = file.tell()
        return [line.decode(errors="replace") for line in lines], False


class _Input:
    """The lines of standard input, read in a thread so that the view is never blocked."""

    def __init__(self, *, wait: bool) -> None:
        check_open("stdin")
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        self._error: OSError | None = None
        thread = threading.Thread(target=self._fill, name="events from standard input", daemon=True)
        thread.start()
        if wait:
            thread.join()

    def _fill(self) -> None:
        # Unbuffered if possible: at exit the interpreter takes the buffer's lock, and aborts if a
        # thread that reads holds it.
        stdin = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        rest = b""
        try:
            while chunk := stdin.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._lines.put(line.decode(errors="replace"))
        except OSError as error:
            self._error = error
        self._lines.put(rest.decode(errors="replace"))
        self._lines.put(None)

    def read(self) -> tuple[Sequence[str], bool]:
        lines: list[str] = []
        while not self._lines.empty():
            line = self._lines.get()
            self._ended = self._ended or line is None
            lines += [] if line is None else [line]
        if self._ended and self._error is not None:
            raise self._error
        return lines, self._ended
