"""MetadataRefusal: a service that refuses the metadata of saves, as one attempt finds out.

A refused request is missing in the order of the client's requests for good, so the client cannot be
used after it. Where it is not yet known what the service does, the save ahead of the loop's first
request finds out, before a step is lost.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from tinker_recovery.errors import causes
from tinker_recovery.faults import RULES, DetectedBy, Kind

if TYPE_CHECKING:
    from tinker_recovery.run.scope import AttemptScope

REFUSED_WITHIN_S = 5.0
"""A service that refuses the metadata of a save has done so by then."""


class MetadataRefusal:
    """Whether a save of one attempt was refused for its metadata."""

    def __init__(self, scope: AttemptScope) -> None:
        self._scope = scope
        self._seen = anyio.Event()
        self.error: BaseException | None = None
        """What the save failed with."""

    def is_it(self, error: BaseException) -> bool:
        """Whether a save has failed because the service refuses our metadata. From any thread."""
        if error is self.error:
            return True
        if not self._scope.saver.sends_metadata():
            return False  # it carried none
        metadata = self._scope.run.collaborators.reader.metadata
        if not any(map(metadata.is_refusal, causes(error))):
            return False
        self.error = error
        return True

    def note(self, error: BaseException) -> None:
        """The client cannot be used any more: another is made, that sends no metadata."""
        self._scope.run.collaborators.reader.metadata.refused()
        self._seen.set()
        if self._scope.entered:
            self._scope.declare_fault(RULES[Kind.METADATA_REFUSED], DetectedBy.CALL, error)
        else:
            # What fails behind the save is no fault of the run: another client is made anyway.
            self._scope.finished = True

    async def is_absent(self) -> bool:
        """Wait whether the service refuses the save before the loop begins, if it may.

        If it does, this attempt is over, and another client has to be made. Cancelling it leaves
        the attempt as it is.
        """
        scope = self._scope
        if not scope.saver.probes:
            return True
        with anyio.move_on_after(REFUSED_WITHIN_S), contextlib.suppress(Exception):
            await scope.client.drain()
        scope.saver.probes = False
        scope.run.mailbox.deliver()
        if not self._seen.is_set() or scope.faulty:
            return True
        scope.left.set()
        await scope.close("interrupted", "the service refuses the metadata of saves")
        return False
