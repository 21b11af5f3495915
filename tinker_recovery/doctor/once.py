"""The examination a Supervisor makes in the background, once for each service."""

from __future__ import annotations

import logging

import tinker

from tinker_recovery.doctor.examination import ExamPlan, examine
from tinker_recovery.errors import JournalError
from tinker_recovery.recovery.collaborators import Collaborators
from tinker_recovery.service import FromBaseModel
from tinker_recovery.telemetry import names

logger = logging.getLogger(names.SCOPE)

_RANK = 32
"""What the SDK takes where no rank is given."""


class OptimizerCheck:
    """Whether the service gives the optimizer back, found out at most once and remembered.

    What was found is noted by the version of the SDK, so that later processes know it.

    Args:
        collaborators: What it is done with.
    """

    def __init__(self, collaborators: Collaborators) -> None:
        self._backend = collaborators.backend
        self._reader = collaborators.reader
        self._notebook = collaborators.notebook
        self._events = collaborators.events
        self._close_s = collaborators.policy.close_timeout_s
        self._begun = False

    async def run(self, origin: FromBaseModel) -> None:
        """Find out, unless it is known, and warn if it does not come back; raises no Exception.

        Args:
            origin: How the run that asks for it was made: the same model is examined.
        """
        if self._begun:
            return
        self._begun = True
        try:
            known = (await self._notebook.notes()).optimizer.get(tinker.__version__)
            if known is None:
                known = await self._find_out(origin)
            if known:
                self._events.emit(
                    names.EVENT_OPTIMIZER_NOT_RESTORED, "", known, {names.REASON: known}
                )
        except JournalError as error:
            logger.info("what is known of the service's restores cannot be read: %s", error)
        except Exception as error:  # noqa: BLE001 - an experiment that fails says nothing, and training goes on
            logger.info("it could not be found out whether the optimizer comes back: %r", error)

    async def _find_out(self, origin: FromBaseModel) -> str:
        """What speaks against the service's restores, in words; empty if nothing does."""
        plan = ExamPlan(
            base_model=origin.base_model,
            rank=int(origin.options.get("rank") or _RANK),
            close_s=self._close_s,
        )
        report = await examine(plan, backend=self._backend, reader=self._reader, progress=_log)
        diagnosis = report.diagnosis
        logger.info("does the optimizer come back? %s", diagnosis.words)
        if diagnosis.finding.real is None:
            return ""
        against = "" if diagnosis.finding.real else diagnosis.words
        await self._notebook.note_optimizer(report.sdk, against)
        return against


def _log(said: str) -> None:
    logger.debug("does the optimizer come back? %s", said)
