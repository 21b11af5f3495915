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
    """Whether the service restores the optimizer: examined at most once, and remembered.

    The result is noted in the journal with the version of the SDK, for later processes.

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
        """Examine the service, unless that was done before, and warn of restores that are not real.

        Raises no Exception. Cancelling it cleans up first, as :func:`examine` does.

        Args:
            origin: How the run was made: the same model is examined.
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
            logger.info("the notes on the service's restores cannot be read or written: %s", error)
        except Exception as error:  # noqa: BLE001 - an experiment that fails proves nothing, and training goes on
            logger.info("could not find out whether the optimizer is restored: %r", error)

    async def _find_out(self, origin: FromBaseModel) -> str:
        """What is wrong with the service's restores, in words; empty if nothing is known to be."""
        plan = ExamPlan(
            base_model=origin.base_model,
            rank=int(origin.options.get("rank") or _RANK),
            close_s=self._close_s,
        )
        report = await examine(plan, backend=self._backend, reader=self._reader, progress=_log)
        diagnosis = report.diagnosis
        logger.info("is the optimizer restored? %s", diagnosis.words)
        if diagnosis.finding.real is None:
            return ""
        problem = "" if diagnosis.finding.real else diagnosis.words
        await self._notebook.note_optimizer(report.sdk, problem)
        return problem


def _log(phase: str) -> None:
    logger.debug("is the optimizer restored? %s", phase)
