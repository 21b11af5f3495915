"""The Inspector: may a checkpoint be trusted, as far as that is known without loading it?

Asked by choosing what to restore, by retention, by verification and by manual recovery. The checks
themselves are pure, in :mod:`tinker_recovery.checkpoints.validation`; here the service is asked for
what they need.

A service may refuse to say what a checkpoint's weights are (``weights_info``). A refusal is never
an objection to restoring: whether the checkpoint loads tells more, and costs one request. Where
others are deleted because this one exists, it counts by what it is about:

=============  ======================  ====================  =================================
HTTP status    about                   restore, verify       relied on (others are deleted)
=============  ======================  ====================  =================================
405, 501       the call: there is none no objection          no objection: the listing counts
401, 402, 403  the caller              no objection          raised: nothing is deleted
any other      the checkpoint          no objection          an objection: nothing relies on it
=============  ======================  ====================  =================================

No answer at all says nothing of any checkpoint and is raised as :class:`StatusUnavailable`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

from tinker_recovery.checkpoints import (
    Finding,
    Listed,
    WeightsFacts,
    check_listing,
    check_metadata,
    check_weights,
    first_objection,
)
from tinker_recovery.errors import StatusError, StatusRefused
from tinker_recovery.recovery.checkpoint_state import CheckpointState
from tinker_recovery.service import StatusReader
from tinker_recovery.service.checkpoint_calls import CheckpointCalls
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_T = TypeVar("_T")

NO_SUCH_CALL = frozenset({405, 501})
"""There is no such call: this service says of no checkpoint what its weights are."""

ABOUT_THE_CALLER = frozenset({401, 402, 403})
"""Refusals that say who may not ask, and nothing of the checkpoint."""


def recorded_of(listed: Listed | None, recorded: Mapping[str, _T]) -> _T | None:
    """What was recorded of a checkpoint at first sight; None if another may have its place now."""
    if listed is None or listed.rewritable:
        return None
    return recorded.get(listed.path)


class Inspector:
    """Looks at checkpoints of one service; keeps nothing, so every answer is of now."""

    def __init__(self, reader: StatusReader) -> None:
        self._calls = CheckpointCalls(reader.http)
        self._reader = reader

    async def objection(
        self,
        listed: Listed,
        known: CheckpointState,
        run: WeightsFacts,
        *,
        lineage: str | None = None,
        relied_on: bool = False,
    ) -> str | None:
        """Why not to trust a checkpoint that was listed just now, in words; None for no reason.

        In rising cost: rejected or being deleted, its metadata if it has any, its listing, its
        weights.

        Args:
            listed: The checkpoint.
            known: What is known of the run's checkpoints.
            run: What the run's weights are.
            lineage: The run it has to belong to; None for any.
            relied_on: Whether others may be deleted because it exists.

        Raises:
            StatusUnavailable: The service did not answer.
            StatusRefused: With ``relied_on``: it refuses the caller.
        """
        if listed.path in (unusable := known.unusable):
            return unusable[listed.path]
        size = recorded_of(listed, known.sizes)
        checks = [lambda: self.listing(listed.path, listed, size)]
        if listed.record is not None:
            checks.insert(0, lambda: check_metadata(listed, lineage=lineage))
        finding = first_objection(checks)
        if finding is None:
            finding = await self.weights(listed.path, run, relied_on=relied_on)
        return None if finding is None or finding.ok else finding.reason

    def listing(
        self, path: str, listed: Listed | None, recorded_size: int | None = None
    ) -> Finding:
        """Level 2, from a listing read just now.

        Args:
            path: The checkpoint.
            listed: As it is listed; None if it is not.
            recorded_size: Bytes at first sight, if that is known.
        """
        entries = {} if listed is None else {path: listed}
        return check_listing(
            path, entries, now=self._reader.service_date(), recorded_size=recorded_size
        )

    async def weights(
        self, path: str, run: WeightsFacts, *, relied_on: bool = False
    ) -> Finding | None:
        """Level 3; None where nothing can be compared, by the table of this module.

        Args:
            path: The checkpoint.
            run: What the run's weights are. If that is not known, nothing is asked, unless
                ``relied_on``.
            relied_on: Whether others may be deleted because this one exists.

        Raises:
            StatusUnavailable: The service did not answer.
            StatusRefused: With ``relied_on``: it refuses the caller.
        """
        if not relied_on and run == WeightsFacts():
            return None
        try:
            facts = WeightsFacts.of(await self._calls.weights_info(path))
        except StatusError as error:
            if error.status_code in NO_SUCH_CALL:
                return None
            if not isinstance(error, StatusRefused):
                raise
            logger.debug("weights_info of %s: %s", path, error)
            if not relied_on:
                return None
            if error.status_code in ABOUT_THE_CALLER:
                raise
            reason = f"the service does not say what its weights are: {error}"
            return Finding("weights", ok=False, reason=reason)
        return check_weights(facts, run)
