"""Where ``watch`` looks: at a journal, or at the lines of events that another process writes."""

from __future__ import annotations

import io
import queue
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tinker_recovery.cli.watch.rows import RunRow, Said, after, said
from tinker_recovery.journal.reading import RunView, read_events, read_run
from tinker_recovery.journal.summary import read_summaries
from tinker_recovery.telemetry import from_json_line

_CHUNK = 65536
_EVENTS = 500
"""So many events are kept for show."""


class Source(Protocol):
    """Something that tells of runs; each call may block for as long as a disk does."""

    ended: bool
    """Whether it will tell nothing more."""

    def rows(self) -> list[RunRow]:
        """Every run that is wanted, as it stands now, the most recently alive first."""
        ...

    def news(self) -> list[Said]:
        """Their events since the last call, oldest first; of the first call, the newest."""
        ...

    def detail(self) -> RunView | None:
        """The one run that is wanted with its history, if this knows it."""
        ...


class JournalSource:
    """A journal, read while others write it.

    Args:
        path: Its file.
        run: The name of the one run wanted; None for all.
        service: Base URL of the service whose runs are wanted; None for all.

    Raises:
        JournalError: From any call: it is not there, or cannot be read.
    """

    ended = False

    def __init__(self, path: Path, run: str | None, service: str | None = None) -> None:
        self._path, self._run, self._service = path, run, service
        self._seen = 0

    def rows(self) -> list[RunRow]:
        """See :class:`Source`; of several runs of the one name wanted, the newest."""
        summaries = read_summaries(self._path, self._run, service=self._service)
        if self._run is not None:
            summaries = sorted(summaries, key=lambda each: each.run.id)[-1:]
        return [RunRow.of(each) for each in summaries]

    def news(self) -> list[Said]:
        """See :class:`Source`."""
        told = read_events(self._path, self._run, after=self._seen, limit=_EVENTS)
        if told:
            self._seen = told[-1].id
        return [said(each.time, each.run, each.name, each.message, each.fields) for each in told]

    def detail(self) -> RunView | None:
        """See :class:`Source`."""
        return None if self._run is None else read_run(self._path, self._run, service=self._service)


class EventsSource:
    """Lines of events: of a file that may grow, or of standard input until its end.

    Args:
        file: ``-`` for standard input.
        run: The name of the one run wanted; None for all.
        wait: Read standard input to its end before anything is told.

    Raises:
        OSError: The file cannot be opened or read; from any call.
    """

    def __init__(self, file: str, run: str | None, *, wait: bool) -> None:
        self._run = run
        self._rows: dict[str, RunRow] = {}
        self._news: deque[Said] = deque(maxlen=_EVENTS)
        self.ended = False
        self.not_events = 0
        """Lines that were none."""
        self._lines: _File | _Input = _Input(wait=wait) if file == "-" else _File(Path(file))

    def rows(self) -> list[RunRow]:
        """See :class:`Source`."""
        self._read()
        return sorted(
            self._rows.values(), key=lambda row: row.newest.time if row.newest else 0, reverse=True
        )

    def news(self) -> list[Said]:
        """See :class:`Source`."""
        self._read()
        told = list(self._news)
        self._news.clear()
        return told

    def detail(self) -> RunView | None:
        """See :class:`Source`."""
        return None

    def _read(self) -> None:
        lines, self.ended = self._lines.read()
        for line in filter(str.strip, lines):
            try:
                event = from_json_line(line)
            except ValueError:
                self.not_events += 1
                continue
            if self._run in (None, event.run):
                row = after(self._rows.get(event.run), event)
                if event.run:  # or it concerns no single one
                    self._rows[event.run] = row
                if row.newest is not None:
                    self._news.append(row.newest)


class _File:
    """The lines of a file, as far as they are whole; it may still grow, or be begun anew."""

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
    """The lines of standard input; a thread waits for them, so that a picture never does."""

    def __init__(self, *, wait: bool) -> None:
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ended = False
        thread = threading.Thread(target=self._fill, name="events from standard input", daemon=True)
        thread.start()
        if wait:
            thread.join()

    def _fill(self) -> None:
        # Unbuffered where it can be: an interpreter that ends takes the buffer's lock, and dies of
        # it while a thread waits inside.
        given = getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)
        rest = b""
        while chunk := given.read(_CHUNK):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._lines.put(line.decode(errors="replace"))
        self._lines.put(rest.decode(errors="replace"))
        self._lines.put(None)

    def read(self) -> tuple[Sequence[str], bool]:
        lines: list[str] = []
        while not self._lines.empty():
            line = self._lines.get()
            self._ended = self._ended or line is None
            lines += [] if line is None else [line]
        return lines, self._ended
