"""What waits to be published, and when it is tried again."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from tinker_recovery.journal.publication import Publication
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)


@dataclass(slots=True)
class _Entry:
    publication: Publication
    next_at: float = 0.0
    failures: int = 0
    said: str = ""


class Waiting:
    """The publications that are not done yet, by their checkpoint's path."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def all(self) -> list[Publication]:
        """All of them."""
        return [each.publication for each in self._entries.values()]

    def of(self, lineage: str) -> list[Publication]:
        """Those of one run."""
        return [each for each in self.all() if each.lineage == lineage]

    def add(self, publication: Publication) -> None:
        """One more, which may be tried at once."""
        self._entries[publication.path] = _Entry(publication)

    def drop(self, path: str) -> None:
        """One is done with."""
        self._entries.pop(path, None)

    def say_left(self, *, durable: bool) -> None:
        """Warn of all of them, and say who goes on with them: nobody, if the journal is in memory.

        Args:
            durable: Whether it is not.
        """
        for each in self.all():
            then = " yet: the next process on this journal goes on with it"
            if not durable:
                command = f"tinker-recovery export {each.path} --push {each.repository}"
                then = f", and the journal in memory is gone: `{command}` publishes it"
            logger.warning("run %s: %s is not published%s", each.run, each.path, then)

    def next_at(self, path: str) -> float:
        """When it may be tried, in seconds since the epoch."""
        return self._entries[path].next_at

    def failures(self, path: str) -> int:
        """How often it has failed."""
        return self._entries[path].failures

    def note_failure(self, path: str, said: str, next_at: float) -> bool:
        """It has failed; whether with the same words as before."""
        entry = self._entries[path]
        repeated = entry.said == said
        entry.failures, entry.said, entry.next_at = entry.failures + 1, said, next_at
        return repeated
