"""The handle of a job, and the database behind it as long as Jobs is entered."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Concatenate, ParamSpec, TypeVar

import anyio

from tinker_recovery.errors import JobCancelled, JobFailed, UsageError
from tinker_recovery.jobs.database import JobDatabase, shown
from tinker_recovery.jobs.reach import in_thread, named_outage, until_reached
from tinker_recovery.jobs.records import ENDED, JobEvent, JobResult, JobStatus
from tinker_recovery.shielding import to_the_end

_T = TypeVar("_T")
_P = ParamSpec("_P")

POLL_S = 0.25
"""Seconds between two looks at the jobs that are waited for; one query for all of them."""


def not_entered() -> UsageError:
    """The error of a call outside ``async with``."""
    return UsageError("enter Jobs first: `async with Jobs() as jobs:`")


class Opened:
    """A database as long as its Jobs is entered."""

    def __init__(self, database: JobDatabase) -> None:
        self.database = database
        self._closed = False
        self._awaited: dict[str, anyio.Event] = {}
        self._asked = anyio.Event()

    async def ask(
        self,
        method: Callable[Concatenate[JobDatabase, _P], _T],
        *given: _P.args,
        **named: _P.kwargs,
    ) -> _T:
        """Call a method of the database, in a thread.

        Raises:
            UsageError: Jobs has been left.
            JournalError: The database cannot be reached now.
        """
        with named_outage(self.database.url):
            return await in_thread(functools.partial(self._call, method, *given, **named))

    async def ask_until_reached(
        self,
        method: Callable[Concatenate[JobDatabase, _P], _T],
        *given: _P.args,
        **named: _P.kwargs,
    ) -> _T:
        """The same, again while the database is out of reach: for what waits as it is."""
        return await until_reached(functools.partial(self._call, method, *given, **named))

    def _call(
        self,
        method: Callable[Concatenate[JobDatabase, _P], _T],
        *given: _P.args,
        **named: _P.kwargs,
    ) -> _T:
        if self._closed:
            raise not_entered()
        return method(self.database, *given, **named)

    async def ended(self, name: str) -> None:
        """Wait for the end of a job."""
        event = self._awaited.setdefault(name, anyio.Event())
        self._asked.set()
        await event.wait()

    async def poll(self) -> None:
        """Look for the ends of all jobs that are waited for."""
        while True:
            await self._asked.wait()
            for name in await self.ask_until_reached(JobDatabase.ended, list(self._awaited)):
                self._awaited.pop(name).set()
            if not self._awaited:
                self._asked = anyio.Event()
            await anyio.sleep(POLL_S)

    async def aclose(self) -> None:
        """Close it; completes even if cancelled."""
        self._closed = True
        await to_the_end(in_thread(self.database.close))


class JobHandle:
    """A job: what came of it, where it stands, and what happens to it."""

    def __init__(self, opened: Opened, name: str) -> None:
        self._opened = opened
        self.name = name
        """The job's id, and its run's name."""

    def __repr__(self) -> str:
        return f"<JobHandle {self.name!r} in {shown(self._opened.database.url)}>"

    async def result(self) -> JobResult:
        """Wait for the job's end; returns what came of it. Cancelling the wait leaves it be.

        Raises:
            JobFailed: It failed, and is not tried again.
            JobCancelled: It was cancelled.
            UsageError: There is no such job.
        """
        ask = self._opened.ask_until_reached
        status = await ask(JobDatabase.status, self.name)
        if status.state not in ENDED:
            await self._opened.ended(self.name)
        found = await ask(JobDatabase.result, self.name)
        if isinstance(found, JobResult):
            return found
        status = await ask(JobDatabase.status, self.name)
        if found is None:
            raise JobCancelled(
                f"job {self.name!r} was cancelled; to have it tried anew: tinker-recovery jobs "
                f"retry {self.name}",
                job=self.name,
            )
        raise JobFailed(
            f"job {self.name!r} failed in try {status.number} of {status.max_attempts}: {found}; "
            f"to have it tried anew: tinker-recovery jobs retry {self.name}",
            job=self.name,
            error=found.type,
            tries=status.number,
            checkpoint=status.checkpoint,
        )

    async def status(self) -> JobStatus:
        """Where it stands.

        Raises:
            UsageError: There is no such job.
            JournalError: The database cannot be reached now.
        """
        return await self._opened.ask(JobDatabase.status, self.name)

    async def cancel(self) -> None:
        """Have it end, if it has not ended; its worker notices within a second or two.

        Raises as :meth:`status` does.
        """
        await self._opened.ask(JobDatabase.cancel, self.name)

    async def retry(self) -> None:
        """Have it tried anew, with as many tries as at first, if it failed or was cancelled.

        Raises:
            UsageError: It did neither, or there is no such job.
            JournalError: The database cannot be reached now.
        """
        await self._opened.ask(JobDatabase.retry, self.name)

    async def __aiter__(self) -> AsyncIterator[JobEvent]:
        """What has happened to it and what happens, oldest first; ends with the job.

        What was written around a worker's death may come twice.
        """
        seen, ask = 0, self._opened.ask_until_reached
        while True:
            over = (await ask(JobDatabase.status, self.name)).state in ENDED
            for event in await ask(JobDatabase.events, self.name, seen):
                seen += 1
                yield event
            if over:
                return
            await anyio.sleep(2 * POLL_S)
