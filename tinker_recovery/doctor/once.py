"""The examination a Supervisor makes in the background, once for each service."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import tinker

from tinker_recovery.doctor.examination import ExamPlan, examine
from tinker_recovery.errors import JournalError
from tinker_recovery.journal import Notebook
from tinker_recovery.service import Backend, FromBaseModel, StatusReader
from tinker_recovery.telemetry import EventSink, names

logger = logging.getLogger(names.SCOPE)

_RANK = 32
"""What the SDK takes where no rank is given."""


@dataclass(slots=True, kw_only=True)
class OptimizerCheck:
    """Whether the service restores the optimizer: examined at most once, and remembered.

    The result is noted in the journal with the version of the SDK, for later processes.

    Attributes:
        backend: Makes clients.
        reader: Reads the service's status.
        notebook: The journal's notes on this service.
        events: Where a warning goes.
        close_s: Deadline of each part of the cleaning up, in seconds.
    """

    backend: Backend
    reader: StatusReader
    notebook: Notebook
    events: EventSink
    close_s: float
    _begun: bool = field(default=False, init=False)

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
            known = (await self.notebook.notes()).optimizer.get(tinker.__version__)
            if known is None:
                known = await self._find_out(origin)
            if known:
                self.events.emit(
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
            close_s=self.close_s,
        )
        report = await examine(plan, backend=self.backend, reader=self.reader, progress=_log)
        diagnosis = report.diagnosis
        logger.info("is the optimizer restored? %s", diagnosis.words)
        if diagnosis.finding.real is None:
            return ""
        problem = "" if diagnosis.finding.real else diagnosis.words
        await self.notebook.note_optimizer(report.sdk, problem)
        return problem


def _log(phase: str) -> None:
    logger.debug("is the optimizer restored? %s", phase)
