"""The database of jobs, as anyone may use it: to submit, to look, to cancel, to try again.

A row is one workflow of DBOS, whose id is the job's name. Everything in it that is ours is JSON.
Every method here blocks.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from tinker_recovery.errors import JournalError, UsageError
from tinker_recovery.jobs.records import (
    Failure,
    JobEvent,
    JobResult,
    JobStatus,
    Progress,
    State,
)
from tinker_recovery.jobs.spec import JobSpec, check_same
from tinker_recovery.journal.journal import default_path
from tinker_recovery.journal.private_files import create_private
from tinker_recovery.telemetry.redaction import (
    RedactingFilter,
    hide,
    hide_userinfo,
    redact,
    split_userinfo,
)

if TYPE_CHECKING:
    from dbos import DBOSClient, EnqueueOptions, WorkflowStatus

APPLICATION: Final = "tinker-recovery"
QUEUE: Final = "tinker-recovery-jobs"
WORKFLOW: Final = "tinker_recovery.job"
EVENTS: Final = "events"

JOBS_FILE: Final = "jobs.sqlite3"
"""The database's name, beside the journal."""

VARIABLE: Final = "TINKER_RECOVERY_DATABASE"
"""Where jobs are kept, if an argument does not say."""

_STATES: Final[dict[str, State]] = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "finished",
    "CANCELLED": "cancelled",
}
"""By the engine's; any other has failed."""

_ENDED: Final = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_NO_MODEL: Final = "-"


def database_url(choice: str | Path | None) -> str:
    """The URL of a ``database=`` argument; its password is in no log or error from here on.

    Raises:
        UsageError: It is neither a file nor the URL of a SQLite or PostgreSQL database.
    """
    if choice is None:
        choice = os.environ.get(VARIABLE) or default_path().with_name(JOBS_FILE)
    if isinstance(choice, Path):
        return f"sqlite:///{choice.absolute()}"
    hide_userinfo(split_userinfo(choice)[1])
    hide(*parse_qs(urlsplit(choice).query).get("password", ()))
    scheme, _, rest = choice.partition("://")
    if scheme in {"postgresql", "postgres"} and rest:
        return f"postgresql://{rest}"
    if scheme == "sqlite" and rest.startswith("/"):
        return choice
    if "://" in choice or not choice:
        raise UsageError(
            f"database={redact(choice)!r} is not allowed: the path of a file, sqlite:///PATH, or "
            "postgresql://USER@HOST/DATABASE"
        )
    return f"sqlite:///{Path(choice).absolute()}"


def shown(url: str) -> str:
    """A database's URL for people: without user, password and options."""
    return split_userinfo(url)[0].partition("?")[0]


def require_engine() -> None:
    """Refuse to do anything without DBOS.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import dbos  # noqa: F401, PLC0415 - the engine is imported when it is used
    except ImportError as error:
        raise UsageError(
            "jobs need DBOS, which is not installed: pip install 'tinker-recovery[jobs]'"
        ) from error


class JobDatabase:
    """The jobs of one database; to be closed.

    Args:
        url: As :func:`database_url` returns it.
        create: Whether to make what is not there: the file, and the tables.

    Raises:
        UsageError: DBOS is not installed.
        JournalError: The database cannot be used.
    """

    def __init__(self, url: str, *, create: bool = True) -> None:
        require_engine()
        from dbos import DBOS, DBOSClient  # noqa: PLC0415 - as above

        quiet()
        self.url = url
        file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite") else None
        if file is not None and not file.exists():
            if not create:
                raise JournalError(f"there is no database of jobs at {file}")
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.close(create_private(file))
        try:
            if create:
                DBOS.migrate(url)
            self._client: DBOSClient = DBOSClient(
                system_database_url=url, application_name=APPLICATION, retry_connection_errors=False
            )
        except Exception as error:  # noqa: BLE001 - of whichever driver
            raise JournalError(
                f"the database of jobs at {shown(url)} cannot be used: {redact(str(error))}"
            ) from None

    def close(self) -> None:
        """Close its connections."""
        self._client.destroy()

    def submit(self, spec: JobSpec, *, version: str, priority: int) -> None:
        """Store a job to be run, unless it is there.

        Raises:
            UsageError: It is there with other arguments.
        """
        from dbos import WorkflowSerializationFormat  # noqa: PLC0415 - as above

        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": spec.name,
            "app_version": version,
            "queue_partition_key": spec.base_model or _NO_MODEL,
            "serialization_type": WorkflowSerializationFormat.PORTABLE,
        }
        if priority:
            options["priority"] = priority
        self._client.enqueue(options, spec.model_dump(mode="json"))
        # Only now, so that of two submissions at once the second is compared with the first.
        check_same(self.spec(spec.name), spec)

    def spec(self, name: str) -> JobSpec:
        """What was submitted under this name.

        Raises:
            UsageError: There is no such job.
        """
        return _spec(self._row(name, load_input=True))

    def status(self, name: str) -> JobStatus:
        """Where a job stands; raises as :meth:`spec` does."""
        return _status(self._row(name, load_input=True, load_output=True))

    def statuses(self, state: State | None = None) -> list[JobStatus]:
        """Where every job stands, the newest first."""
        rows = self._client.list_workflows(
            name=WORKFLOW,
            status=None if state is None else [key for key in _ALL if _state(key) == state],
            sort_desc=True,
        )
        return [_status(row) for row in rows]

    def progress(self, name: str) -> Progress:
        """What its worker has written of it; raises as :meth:`spec` does."""
        return _progress(self._row(name))

    def note(self, name: str, progress: Progress) -> None:
        """Write where a job stands."""
        self._client.update_workflow_attributes(name, {"job": progress.model_dump(mode="json")})

    def ended(self, names: Sequence[str]) -> list[str]:
        """Which of these jobs have ended."""
        rows = self._client.list_workflows(
            workflow_ids=list(names), status=_ENDED, load_input=False, load_output=False
        )
        return [row.workflow_id for row in rows]

    def result(self, name: str) -> JobResult | Failure | None:
        """What came of a job; None if it was cancelled, or has not ended."""
        row = self._row(name, load_output=True)
        if row.status == "SUCCESS":
            return JobResult.model_validate(row.output)
        return _failure(row)

    def events(self, name: str, offset: int) -> list[JobEvent]:
        """What happened to a job, from this number on."""
        from dbos import error  # noqa: PLC0415 - as above

        found: list[JobEvent] = []
        # It ends at the last one of a job that has ended, and is late at that of one that has not.
        with contextlib.suppress(error.DBOSStreamTimeoutError):
            for each in self._client.read_stream(name, EVENTS, offset=offset, timeout_seconds=0):
                found.append(JobEvent.model_validate(each))  # noqa: PERF401 - it may end by raising
        return found

    def cancel(self, name: str) -> JobStatus:
        """Have a job end, if it has not; its worker notices within a second or so."""
        self._row(name)
        self._client.cancel_workflow(name)
        return self.status(name)

    def retry(self, name: str) -> JobStatus:
        """Have a job that failed or was cancelled tried anew, with as many tries as at first.

        Raises:
            UsageError: There is no such job, or it is under way, or has finished.
        """
        row = self._row(name)
        state = _state(row.status)
        if state not in {"failed", "cancelled"}:
            raise UsageError(
                f"job {name!r} is {state}: only one that failed or was cancelled can be retried"
            )
        self._client.rewind_workflow(
            name, queue_name=QUEUE, queue_partition_key=row.queue_partition_key
        )
        return self.status(name)

    def running(self, *, version: str | None = None, executor: str | None = None) -> dict[str, str]:
        """The jobs that the database says are run, and which executor runs each."""
        rows = self._client.list_workflows(
            name=WORKFLOW,
            status="PENDING",
            app_version=version,
            executor_id=executor,
            load_input=False,
            load_output=False,
        )
        return {row.workflow_id: row.executor_id or "" for row in rows}

    def give_back(self, executor: str, names: Iterable[str]) -> None:
        """Queue these jobs again, of those that this executor runs, as the database says.

        One that is cancelled at this moment, or that another has taken over, stays as it is.
        """
        for name in names:
            # Not public. What is would queue again also what was cancelled since the look.
            self._client._sys_db.reenqueue_for_recovery(name, [executor], QUEUE)  # noqa: SLF001 - see above

    def give_all_back(self, executor: str) -> None:
        """The same of all of an executor that is ending."""
        self.give_back(executor, self.running(executor=executor))

    def _row(
        self, name: str, *, load_input: bool = False, load_output: bool = False
    ) -> WorkflowStatus:
        rows = self._client.list_workflows(
            workflow_ids=[name], load_input=load_input, load_output=load_output
        )
        if not rows or rows[0].name != WORKFLOW:
            raise UsageError(f"there is no job {name!r} in {shown(self.url)}")
        return rows[0]


_CANCELLED: Final = "Asyncio task cancelled"
_ALL: Final = [*_STATES, "ERROR", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]


def quiet() -> None:
    """Let the engine's own log say what went wrong alone, and no secret."""
    engine = logging.getLogger("dbos")
    if engine.level == logging.NOTSET:
        engine.setLevel(logging.WARNING)
    if not any(isinstance(each, RedactingFilter) for each in engine.filters):
        engine.addFilter(_not_ours)
        engine.addFilter(RedactingFilter())


def _not_ours(record: logging.LogRecord) -> bool:
    """Whether the engine's record is no news: jobs that fail or are given back are ours to log."""
    failed = record.exc_info is not None and hasattr(record.exc_info[1], "data")
    return not failed and not record.getMessage().startswith(_CANCELLED)


def _state(engine: str) -> State:
    return _STATES.get(engine, "failed")


def _spec(row: WorkflowStatus) -> JobSpec:
    given: Callable[..., JobSpec] = JobSpec.model_validate
    return given((row.input or {"args": [{}]})["args"][0])


def _progress(row: WorkflowStatus) -> Progress:
    return Progress.model_validate((row.attributes or {}).get("job", {}))


def _failure(row: WorkflowStatus) -> Failure | None:
    if _state(row.status) != "failed":
        return None
    error = row.error
    data = getattr(error, "data", None)
    if data is not None:
        return Failure.model_validate(data)
    # The engine's own.
    said = row.status if error is None else redact(str(error))
    return Failure(type=type(error).__name__, message=said)


def _status(row: WorkflowStatus) -> JobStatus:
    spec, progress = _spec(row), _progress(row)
    return JobStatus(
        name=row.workflow_id,
        state=_state(row.status),
        number=progress.number,
        max_attempts=spec.retry.max_attempts,
        train=spec.train,
        base_model=spec.base_model,
        worker=progress.worker,
        step=progress.step,
        recoveries=progress.recoveries,
        lineage=progress.lineage,
        run_ids=progress.run_ids,
        checkpoint=progress.checkpoint,
        failure=_failure(row),
        priority=row.priority or 0,
        version=row.app_version or "",
        created=(row.created_at or 0) / 1000,
        updated=(row.updated_at or 0) / 1000,
    )
