"""What a run keeps to be recalled: values of its newest steps, in files beside the journal.

One file for each value, for its owner's eyes alone, in a folder of the run's own. Losing them costs
no training state: what is not there is made again. Without a folder they are kept in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinker_recovery.journal.private_files import create_private
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

FOLDER = "recalled"
"""Beside the journal's file, with a folder for each run's lineage."""

_CHECK_BYTES = 16

_PLAIN = re.compile(r"~?[A-Za-z0-9_-]{1,64}")
"""A lineage that may be the name of a folder, as all are that are made here."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A value as it is kept.

    Attributes:
        attempt: Id of the attempt that made it.
        step: The step it was asked for.
        made_to: The newest step submitted when it was made: its weights are no newer.
        text: The value, encoded.
    """

    attempt: str
    step: int
    made_to: int
    text: str


@dataclass(slots=True)
class _Place:
    name: str
    step: int
    size: int


class Recalled:
    """The values of one run. Thread-safe; every method may block for as long as the disk does.

    Args:
        folder: Where to keep them, made if missing; None keeps them in memory.
        limit: Most bytes of them: beyond it, those written first are dropped.
    """

    def __init__(self, folder: Path | None, *, limit: int) -> None:
        self.folder = folder
        self._limit = limit
        self._lock = threading.Lock()
        self._memory: dict[str, bytes] = {}
        self._places: dict[str, _Place] | None = None  # in the order they were written
        self._written = 0
        self._said: set[str] = set()

    def get(self, key: str) -> Kept | None:
        """The value kept under this key; None if there is none, or it cannot be read."""
        with self._lock:
            place = self._known().get(key)
            if place is None:
                return None
            try:
                data = self._read(place.name)
                header, _, text = data[_CHECK_BYTES:].partition(b"\n")
                if data[:_CHECK_BYTES] != _check(data[_CHECK_BYTES:]):
                    raise ValueError("it is damaged")  # noqa: TRY301 - handled as what cannot be read
                return Kept(**json.loads(header), text=text.decode(errors="surrogatepass"))
            except (OSError, ValueError, TypeError) as error:
                self._say("what was kept to be recalled cannot be read, and is made again", error)
                self._drop(key)
                return None

    def put(self, key: str, kept: Kept) -> bool:
        """Keep a value, if the limit and the disk allow it; returns whether it is kept."""
        header: dict[str, Any] = {**asdict(kept)}
        text = header.pop("text")
        body = json.dumps(header).encode() + b"\n" + text.encode(errors="surrogatepass")
        data = _check(body) + body
        if len(data) > self._limit:
            if self._limit:
                self._say(
                    "a value is not kept to be recalled",
                    f"it has {len(data)} bytes, and recall_bytes={self._limit}",
                )
            return False
        with self._lock:
            places = self._known()
            self._drop(key)
            self._written += 1
            name = f"{self._written:010d}-{kept.step}-{key}"
            try:
                self._write(name, data)
            except OSError as error:
                self._say("a value could not be kept to be recalled; training continues", error)
                return False
            places[key] = _Place(name, kept.step, len(data))
            while sum(place.size for place in places.values()) > self._limit:
                self._drop(next(iter(places)))
            return True

    def drop_below(self, step: int) -> None:
        """Drop what was made for the steps before this one."""
        with self._lock:
            for key in [key for key, place in self._known().items() if place.step < step]:
                self._drop(key)

    def clear(self) -> None:
        """Drop everything, with the folder."""
        with self._lock:
            self._memory.clear()
            self._places = {}
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _known(self) -> dict[str, _Place]:
        if self._places is None:
            self._places = {}
            if self.folder is not None and self.folder.is_dir():
                try:
                    self._look(self.folder, self._places)
                except OSError as error:
                    self._say("what was kept to be recalled cannot be listed", error)
        return self._places

    def _look(self, folder: Path, places: dict[str, _Place]) -> None:
        for path in sorted(folder.iterdir()):
            written, step, key = [*path.name.split("-", 2), "", ""][:3]
            if not (written.isdecimal() and step.isdecimal() and key):
                # A file half written when its process ended.
                path.unlink(missing_ok=True)
                continue
            places[key] = _Place(path.name, int(step), path.stat().st_size)
            self._written = int(written)

    def _read(self, name: str) -> bytes:
        return self._memory[name] if self.folder is None else (self.folder / name).read_bytes()

    def _write(self, name: str, data: bytes) -> None:
        if self.folder is None:
            self._memory[name] = data
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        half = self.folder / f"writing.{os.getpid()}"
        half.unlink(missing_ok=True)  # of a write that failed
        # Not waited for to be on disk: a killed process loses nothing, and the rest is noticed.
        with os.fdopen(create_private(half), "wb") as file:
            file.write(data)
        half.rename(self.folder / name)

    def _drop(self, key: str) -> None:
        place = self._known().pop(key, None)
        if place is None:
            return
        self._memory.pop(place.name, None)
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / place.name).unlink()

    def _say(self, what: str, why: object) -> None:
        if what not in self._said:
            self._said.add(what)
            logger.warning("%s: %s (%s)", what, why, self.folder or "in memory")


def _check(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECK_BYTES).digest()


def folder_beside(journal: Path, lineage: str) -> Path:
    """Where a run keeps its values beside this journal.

    A lineage may be what the service lists: as a path it could lead anywhere, and what is there is
    removed once the run is over.
    """
    if not _PLAIN.fullmatch(lineage):
        lineage = hashlib.sha256(lineage.encode(errors="surrogatepass")).hexdigest()
    return journal.parent / FOLDER / lineage


def forget_recalled(journal: Path, lineage: str) -> None:
    """Remove what a run has kept beside this journal."""
    shutil.rmtree(folder_beside(journal, lineage), ignore_errors=True)
