"""DBOS, as far as jobs need it: one workflow, whose steps are the tries of a job.

The engine runs what it takes from the queue on an event loop of its own. Nothing is trained there:
each step hands its try over to the worker, on the event loop that entered :class:`Jobs`, and writes
down what the worker says. A step whose try has not ended is never recorded, so another process that
takes the job over runs it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from concurrent.futures import Future
from typing import Any, Final, Protocol

from dbos import DBOS, PortableWorkflowError, WorkflowSerializationFormat
from dbos import _dbos as instances
from dbos._queue import QueueRateLimit

from tinker_recovery.errors import UsageError
from tinker_recovery.jobs.database import APPLICATION, EVENTS, QUEUE, WORKFLOW
from tinker_recovery.jobs.reach import until_answered, why_out_of_reach
from tinker_recovery.jobs.records import JobEvent, Limits, Say, TryOutcome
from tinker_recovery.jobs.spec import JobSpec
from tinker_recovery.telemetry.names import SCOPE

logger = logging.getLogger(SCOPE)

_CONSOLE: Final = "__dbos_console_log_handler__"
_SILENT: Final = logging.NullHandler()

POLL_S: Final = 0.5
"""Seconds between two looks into the queue."""

_PORTABLE = WorkflowSerializationFormat.PORTABLE


class UnderWay(Protocol):
    """A try that the worker was asked for."""

    outcome: Future[TryOutcome]
    """How it ended; never done if the worker is leaving, and the try is to be run elsewhere."""
    gone: Future[None]
    """Done once nothing of it runs any more."""

    def cancel(self) -> None:
        """End it; from any thread."""


class Runner(Protocol):
    """What runs tries: the worker of this process."""

    def start(self, spec: JobSpec, number: int, say: Say) -> UnderWay:
        """Start one; from the engine's thread."""
        ...


_runner: Runner | None = None
"""The engine is one a process, and so is this."""


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None, serialization_type=_PORTABLE)
async def _job(spec: dict[str, Any]) -> dict[str, Any]:
    """A job: tries, with their delays in between, until one of them is the last."""
    try:
        ended = await _last_try(spec)
    except Exception as error:
        why = why_out_of_reach(error)
        if why is None:
            raise
        # No failure of the job, and not to be recorded as one: its row stays, and is queued again.
        logger.warning(
            "job %s: how it stands could not be written into the database of jobs (%s): it is "
            "queued again, and goes on from there",
            spec.get("name"),
            why,
        )
        raise asyncio.CancelledError from error
    if ended.result is None:
        failure = ended.failure
        raise PortableWorkflowError(
            message=str(failure),
            name="JobFailed",
            data=None if failure is None else failure.model_dump(),
        )
    return ended.result.model_dump(mode="json")


async def _last_try(spec: dict[str, Any]) -> TryOutcome:
    number = 1
    while True:
        ended = TryOutcome.model_validate(
            await DBOS.run_step_async(
                {"name": f"try {number}", "preemptible": True}, _try, spec, number
            )
        )
        if ended.retry_after_ms is None:
            return ended
        await DBOS.sleep_async(ended.retry_after_ms / 1000)
        number += 1


_LAST: Final = None


async def _try(spec: dict[str, Any], number: int) -> dict[str, Any]:
    """One try: hand it over, and write down what is said of it."""
    runner, loop = _runner, asyncio.get_running_loop()
    said: asyncio.Queue[JobEvent | None] = asyncio.Queue()
    if runner is None:  # this process is leaving
        await asyncio.Future()
        raise AssertionError("it is cancelled with the engine")

    def say(event: JobEvent | None) -> None:
        with contextlib.suppress(RuntimeError):  # the engine's loop is closed
            loop.call_soon_threadsafe(said.put_nowait, event)

    under_way = runner.start(JobSpec.model_validate(spec), number, say)
    under_way.outcome.add_done_callback(lambda _: say(_LAST))
    try:
        while (event := await said.get()) is not None:
            # Once it can be reached: the run does not depend on it.
            write = functools.partial(
                DBOS.write_stream_async,
                EVENTS,
                event.model_dump(mode="json"),
                serialization_type=_PORTABLE,
            )
            await until_answered(write)
        return under_way.outcome.result().model_dump(mode="json")
    except BaseException:
        under_way.cancel()
        # Its run saves and gives its claim free before it is said that the job has ended.
        await asyncio.wrap_future(under_way.gone)
        raise


def active() -> set[str]:
    """The jobs that the engine of this process carries out."""
    engine = instances._dbos_global_instance  # noqa: SLF001 - it has no public way to ask
    return set() if engine is None else set(engine._active_workflows_set.activeList())  # noqa: SLF001 - as above


def launch(
    runner: Runner,
    url: str,
    *,
    executor: str,
    version: str,
    limits: Limits,
) -> None:
    """Start the engine; blocks. To be called where no event loop runs, so that it uses its own.

    Raises:
        UsageError: The process uses DBOS already.
    """
    global _runner  # noqa: PLW0603 - the engine is one a process
    if _runner is not None:
        raise UsageError("this process has entered Jobs already: one at a time, with all its jobs")
    if instances._dbos_global_instance is not None:  # noqa: SLF001 - it would be used as it is, whatever its database
        raise UsageError("this process uses DBOS already, which is one a process: use another one")
    _runner = runner
    _log_as_others_do()
    try:
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": url,
                "application_version": version,
                "executor_id": executor,
                "log_level": "WARNING",
                "enable_otlp": False,
                "max_executor_threads": 16,
                "notification_listener_polling_interval_sec": 1.0,
            }
        )
        DBOS.launch()
        DBOS.register_queue(
            QUEUE,
            worker_concurrency=limits.concurrency,
            partition_concurrency=limits.per_model,
            limiter=_limiter(limits.starts_per_s),
            polling_interval_sec=POLL_S,
            on_conflict="always_update",
        )
    except BaseException:
        shut_down()
        raise


def _log_as_others_do() -> None:
    """Have the engine's records go to the program's own handlers, and to no console by themselves.

    It would write to what was ``sys.stderr`` when it was imported, which may be closed by now.
    """
    logger = logging.getLogger("dbos")
    for handler in [each for each in logger.handlers if each.name == _CONSOLE]:
        logger.removeHandler(handler)
    logger.addHandler(_SILENT)  # with none at all, it would add its own again
    logger.propagate = True


def _limiter(starts_per_s: float) -> QueueRateLimit:
    # A whole number of starts in a window; of a short one, so that they are spread.
    window_s = max(1.0, 1.0 / starts_per_s)
    return {"limit": max(1, round(starts_per_s * window_s)), "period": window_s}


def take_over(executor: str) -> None:
    """Queue again what an executor that is gone has left; blocks, and does nothing twice."""
    # Not public, as the engine's own service calls it: a row that another process has taken over
    # meanwhile stays as it is, which no public call can promise.
    DBOS._recover_pending_workflows([executor])  # noqa: SLF001 - see above


def dismiss() -> None:
    """Hand nothing over from here on."""
    global _runner  # noqa: PLW0603 - as above
    _runner = None


def shut_down() -> None:
    """Stop the engine; blocks. What it has not recorded stays as it is in the database."""
    dismiss()
    DBOS.destroy()
