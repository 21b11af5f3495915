"""What is noted of a run's checkpoints: by other processes before, and by this one for later ones.

The journal shares it: which were found bad, whose deletion has begun, how large they were at first
sight, what the canary answered. A journal that fails on the way is told of, and stands in no way.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping

from tinker import types

from tinker_recovery.checkpoints import DeletionLedger
from tinker_recovery.clock import Clock
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import Notebook
from tinker_recovery.recovery.collaborators import Spawn
from tinker_recovery.run.scope import AttemptScope
from tinker_recovery.run.trust import Trust
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)


class NotedCheckpoints:
    """The half of a run that keeps its checkpoints' notes.

    Args:
        name: The run's name, for the log.
        trust: Where they are looked up.
        notebook: Where they are kept.
        clock: The date.
        spawn: Runs something in the background.
    """

    def __init__(
        self, name: str, *, trust: Trust, notebook: Notebook, clock: Clock, spawn: Spawn
    ) -> None:
        self.name = name
        self.trust = trust
        """Which of its weights and checkpoints are what they say they are."""
        self.clock = clock
        self.spawn = spawn
        self._notebook = notebook

    async def read_notes(self) -> None:
        """Take over what other processes noted of the service's checkpoints, before or meanwhile.

        Raises:
            JournalError: The journal cannot be used.
        """
        notes = await self._notebook.notes()
        self.trust.bad.update(notes.bad)
        self.trust.sizes.update(notes.sizes)
        self.trust.noted_canaries.update(notes.canaries)
        ledger = DeletionLedger.from_lines(notes.deletions.values())
        self.note_being_deleted(ledger.being_deleted(now_s=self.clock.wall()))

    def note_being_deleted(self, paths: Collection[str]) -> None:
        """These checkpoints may be gone at any moment: nothing may rely on them."""
        self.trust.being_deleted = dict.fromkeys(paths, "its deletion was begun")

    def note_sizes(self, sizes: Mapping[str, int]) -> None:
        """The size of each checkpoint at first sight."""
        self.trust.sizes.update(sizes)

    async def refresh_notes(self) -> None:
        """The same, where a journal that cannot be read must not stand in the way."""
        try:
            await self.read_notes()
        except JournalError as error:
            logger.error("run %s: %s", self.name, error)  # noqa: TRY400 - the message says it all

    async def mark_bad(self, path: str, reason: str) -> None:
        """Never use a checkpoint again, in this process or a later one."""
        self.trust.bad[path] = reason
        try:
            await self._notebook.mark_bad(path, reason)
        except JournalError as error:
            # This process knows; what matters now is the recovery.
            logger.error("run %s: %s", self.name, error)  # noqa: TRY400 - the message says it all

    def note_canary(
        self, attempt: AttemptScope, step: int, output: types.ForwardBackwardOutput
    ) -> None:
        """The canary was run on the weights of a checkpoint."""
        self.trust.note_canary(attempt, step, output)
        self.keep_canary(attempt, step)

    def keep_canary(self, attempt: AttemptScope, step: int) -> None:
        """Note down what the canary answered, once both its answer and the path are known."""
        path = self.trust.path_of(attempt, step)
        said = self.trust.fingerprints.get((attempt.id, step))
        if path is not None and said is not None:
            self.spawn(functools.partial(self._note_down_canary, path, said))

    async def _note_down_canary(self, path: str, said: str) -> None:
        try:
            await self._notebook.note_canary(path, said)
        except JournalError as error:
            logger.error("run %s: %s", self.name, error)  # noqa: TRY400 - the message says it all
