"""The worker: carries out tries in one Supervisor, and takes over what dead workers have left."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup
from opentelemetry import trace

from tinker_recovery.clock import Clock
from tinker_recovery.errors import LeaseLost, RunFinished, TinkerRecoveryError, causes
from tinker_recovery.faults import Kind
from tinker_recovery.jobs.database import JobDatabase
from tinker_recovery.jobs.reach import once_if_reached, until_reached
from tinker_recovery.jobs.records import (
    Failure,
    JobEvent,
    JobResult,
    Limits,
    Progress,
    Say,
    TryOutcome,
)
from tinker_recovery.jobs.spec import JobSpec
from tinker_recovery.run.blocking import run_body
from tinker_recovery.run.view import Run
from tinker_recovery.supervisor import Supervisor
from tinker_recovery.telemetry import RecoveryEvent, names
from tinker_recovery.telemetry.redaction import redact
from tinker_recovery.telemetry.spans import mark

logger = logging.getLogger(names.SCOPE)

TRY, RETRY, FINISHED, FAILED = "job.try", "job.retry", "job.finished", "job.failed"
"""Events of jobs."""


@dataclass(eq=False)
class Try:
    """A try that was asked for; see :class:`~tinker_recovery.jobs.engine.UnderWay`."""

    spec: JobSpec
    number: int
    say: Say
    worker: Worker
    outcome: Future[TryOutcome] = field(default_factory=Future)
    gone: Future[None] = field(default_factory=Future)
    scope: anyio.CancelScope | None = None
    progress: Progress = field(default_factory=Progress)

    def cancel(self) -> None:
        """End it; from any thread."""
        self.worker.post(self._cancel)

    def _cancel(self) -> None:
        if self.scope is None:
            self.end()
        else:
            self.scope.cancel()

    def end(self) -> None:
        """Nothing of it runs any more."""
        if not self.gone.done():
            self.gone.set_result(None)


class Worker:
    """Runs the tries that the engine hands over.

    Args:
        supervisor: What they are runs of.
        database: Where their progress is written.
        group: Where they run.
        clock: Time and chance.
        limits: How many loops may block in threads, and how fast jobs begin after each other.
        is_held: Asks whether the claim of this worker itself is still there.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        database: JobDatabase,
        group: TaskGroup,
        clock: Clock,
        limits: Limits,
        is_held: Callable[[], Awaitable[bool]],
    ) -> None:
        self._is_held = is_held
        self._supervisor = supervisor
        self._database = database
        self._group = group
        self._clock = clock
        self._threads = anyio.CapacityLimiter(limits.concurrency)
        self._gap_s = 1.0 / limits.starts_per_s
        self._next_at = clock.monotonic()
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[str, Try] = {}
        self._leaving = False
        self._asked: asyncio.Queue[Callable[[], object]] = asyncio.Queue()
        group.start_soon(self._serve)

    def post(self, call: Callable[[], object]) -> None:
        """Have something called on the event loop, in order; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing runs on it
            self._loop.call_soon_threadsafe(self._take, call)

    def _take(self, call: Callable[[], object]) -> None:
        if self._leaving:
            call()  # nothing is begun any more, and so no task has to be
        else:
            self._asked.put_nowait(call)

    async def _serve(self) -> None:
        while True:
            call = await self._asked.get()
            call()

    def start(self, spec: JobSpec, number: int, say: Say) -> Try:
        """Start a try; from the engine's thread."""
        asked = Try(spec, number, say, self)
        self.post(functools.partial(self._begin, asked))
        return asked

    def leave(self) -> None:
        """Begin nothing from here on, and say of nothing that it has ended."""
        self._leaving = True
        while not self._asked.empty():
            self._asked.get_nowait()()

    def note_event(self, event: RecoveryEvent) -> None:
        """Something happened to a run; to be the Supervisor's ``on_event``."""
        asked = self._under_way.get(event.run)
        if asked is None or event.name == names.EVENT_JOB_TRY:
            return
        if event.name == names.EVENT_CHECKPOINT_SAVED:
            path = str(event.fields.get(names.CHECKPOINT_PATH, ""))
            asked.progress = asked.progress.model_copy(update={"checkpoint": path})
        elif not event.name.startswith("checkpoint.") or event.name == names.EVENT_CHECKPOINT_BAD:
            asked.say(
                JobEvent(
                    event=event.name,
                    message=event.message,
                    at=self._clock.wall(),
                    fields={key: _plain(value) for key, value in event.fields.items()},
                )
            )

    def _begin(self, asked: Try) -> None:
        if self._leaving:
            asked.end()
            return
        asked.scope = anyio.CancelScope()
        self._group.start_soon(self._run, asked, asked.scope, name=f"job {asked.spec.name}")

    async def _run(self, asked: Try, scope: anyio.CancelScope) -> None:
        name = asked.spec.name
        earlier = self._under_way.get(name)
        if earlier is not None:
            # It was taken over while it ran: the engine refuses what that one says.
            earlier.cancel()
            await asyncio.wrap_future(earlier.gone)
        self._under_way[name] = asked
        try:
            with scope:
                await self._turn()
                outcome = await self._outcome(asked)
                if not self._leaving:
                    asked.outcome.set_result(outcome)
        finally:
            if self._under_way.get(name) is asked:
                del self._under_way[name]
            asked.end()

    async def _turn(self) -> None:
        """Wait until another may begin.

        The engine hands over at once what may begin in a second or more, and what a dead worker has
        left at once as well.
        """
        now = self._clock.monotonic()
        at = max(now, self._next_at)
        self._next_at = at + self._gap_s
        if at > now:
            await self._clock.sleep(at - now)

    async def _outcome(self, asked: Try) -> TryOutcome:
        spec, number = asked.spec, asked.number
        facts: dict[str, str | int] = {names.JOB: spec.name, names.JOB_TRY: number}
        # Over at once, since a span that stays open for days is lost in a crash; the run's first
        # span links to it.
        span = trace.NonRecordingSpan(mark(names.SPAN_JOB, {**facts, names.RUN: spec.name}))
        with trace.use_span(span):
            try:
                result = await self._pass(asked)
            except BaseException as error:  # whatever it is, the policy decides
                if not _is_of_the_loop(error):
                    raise
                return await self._failed(asked, error)
        said = f"finished at step {result.step}"
        asked.say(JobEvent(event=FINISHED, message=said, at=self._clock.wall(), fields=facts))
        return TryOutcome(result=result)

    async def _failed(self, asked: Try, error: BaseException) -> TryOutcome:
        spec, number = asked.spec, asked.number
        lost = any(isinstance(each, LeaseLost) for each in causes(error))
        if lost and not await self._is_held():
            # It was paused or cut off, and says so. Whoever takes the job over resumes this try.
            await anyio.sleep_forever()
        kind = type(error)
        failure = Failure(type=f"{kind.__module__}.{kind.__qualname__}", message=redact(str(error)))
        again = spec.retry.retries(error, tried=number)
        level = logging.WARNING if again else logging.ERROR
        mistake = not isinstance(error, TinkerRecoveryError)
        logger.log(
            level,
            "job %s: try %d of %d failed: %s",
            spec.name,
            number,
            spec.retry.max_attempts,
            failure,
            exc_info=error if mistake else None,
        )
        await self._write(asked)
        if not again:
            asked.say(JobEvent(event=FAILED, message=str(failure), at=self._clock.wall()))
            return TryOutcome(failure=failure)
        delay_ms = spec.retry.delay_ms_before(number + 1, self._clock.random())
        asked.say(
            JobEvent(
                event=RETRY,
                message=f"try {number + 1} in {delay_ms / 1000:.1f} s, as this one failed: "
                f"{failure}",
                at=self._clock.wall(),
                fields={"delay_ms": delay_ms},
            )
        )
        return TryOutcome(failure=failure, retry_after_ms=delay_ms)

    async def _pass(self, asked: Try) -> JobResult:
        """One pass of the Supervisor over the run."""
        spec = asked.spec
        train = spec.loop()
        before = await until_reached(self._database.progress, spec.name)
        asked.progress = before.model_copy(
            update={"number": asked.number, "worker": f"{socket.gethostname()}/{os.getpid()}"}
        )
        resumed = "" if asked.number > before.number else ", resumed"
        asked.say(
            JobEvent(
                event=TRY,
                message=f"try {asked.number} on {asked.progress.worker}{resumed}",
                at=self._clock.wall(),
                fields={"try": asked.number, "worker": asked.progress.worker},
            )
        )
        value: Any = None
        limit_s = self._supervisor.policy.close_timeout_s
        runner = functools.partial(
            anyio.to_thread.run_sync, abandon_on_cancel=True, limiter=self._threads
        )
        try:
            async for attempt in self._supervisor.attempts(
                **spec.options(), name=spec.name, job=f"{spec.name} try {asked.number}"
            ):
                async with attempt:
                    self._take_note(asked, before)
                    await self._write_now(asked)
                    value = await run_body(train, attempt, runner=runner, limit_s=limit_s)
        except RunFinished as error:
            # If this job had begun before, it was this job that came to its end, and the worker
            # died before it could say so.
            if not before.lineage:
                raise
            self._update(asked, before, step=error.step, checkpoint=error.checkpoint)
            await self._write(asked)
            return _result(spec, asked, value=None, kept=False)
        self._take_note(asked, before)
        await self._write(asked)
        try:
            kept = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            return _result(spec, asked, value=None, kept=False)
        return _result(spec, asked, value=kept, kept=True)

    def _take_note(self, asked: Try, before: Progress) -> None:
        run = next(each for each in reversed(self._supervisor.runs) if each.name == asked.spec.name)
        here = [segment.run_id for segment in run.segments]
        self._update(
            asked,
            before,
            lineage=run.lineage,
            run_ids=tuple(dict.fromkeys([*before.run_ids, *here])),
            step=run.step,
            recoveries=before.recoveries + _recoveries(run),
        )

    def _update(self, asked: Try, before: Progress, **facts: Any) -> None:
        facts.setdefault("checkpoint", asked.progress.checkpoint or before.checkpoint)
        asked.progress = asked.progress.model_copy(update=facts)

    async def _write(self, asked: Try) -> None:
        """Write where a job stands, of which nothing trains now."""
        await until_reached(self._database.note, asked.spec.name, asked.progress)

    async def _write_now(self, asked: Try) -> None:
        """The same of one whose loop is about to go on: it does not wait for the database."""
        await once_if_reached(
            self._database.note,
            asked.spec.name,
            asked.progress,
            otherwise=f"shows where job {asked.spec.name} stood before; its run goes on",
        )


def _is_of_the_loop(error: BaseException) -> bool:
    """Whether a try has failed with this, and not the worker's process ends by it.

    A loop that calls ``sys.exit()`` would end this worker with all its jobs, and then each other
    one that takes its job over.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(_is_of_the_loop(each) for each in error.exceptions)
    return isinstance(error, (Exception, SystemExit))


def _recoveries(run: Run) -> int:
    # That a pass resumes where an earlier one left the run is none of its faults.
    return sum(each.fault.kind not in (Kind.PROCESS_LOST, Kind.STOPPED) for each in run.recoveries)


def _result(spec: JobSpec, asked: Try, *, value: Any, kept: bool) -> JobResult:
    return JobResult(
        name=spec.name,
        lineage=asked.progress.lineage,
        run_ids=asked.progress.run_ids,
        checkpoint=asked.progress.checkpoint,
        step=asked.progress.step,
        recoveries=asked.progress.recoveries,
        retries=asked.number - 1,
        value=value,
        value_kept=kept,
    )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
