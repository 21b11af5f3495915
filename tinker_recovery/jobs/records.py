"""What is known of a job, as the database has it: its state, what happens, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tinker_recovery.fields import Frozen

State = Literal["queued", "running", "finished", "failed", "cancelled"]

ENDED: frozenset[State] = frozenset({"finished", "failed", "cancelled"})
"""States that last, unless a job is retried by hand."""


class Limits(NamedTuple):
    """How much is done at once.

    Attributes:
        concurrency: The most jobs in each worker.
        per_model: The most jobs on one base model, over all workers; None for no limit.
        starts_per_s: The most jobs begun in a second, over all workers.
    """

    concurrency: int
    per_model: int | None
    starts_per_s: float


class JobResult(Frozen):
    """What came of a job that finished.

    Attributes:
        name: The job's id, and its run's name.
        lineage: The run's lineage id.
        run_ids: Every Tinker run that it has lived in, oldest first.
        checkpoint: Path of its newest checkpoint; None if it saved none.
        step: Optimizer steps done.
        recoveries: Faults that a Supervisor recovered it from, over all tries.
        retries: Tries after the first.
        value: What ``train`` returned, as JSON gives it back: a tuple as a list, the keys of a
            dict as strings. None if it is no JSON.
        value_kept: Whether ``value`` is of what ``train`` returned. False if that is no JSON, or
            if the worker died after the run had finished, and before it could write the value.
    """

    name: str
    lineage: str
    run_ids: tuple[str, ...] = ()
    checkpoint: str | None = None
    step: int = 0
    recoveries: int = 0
    retries: int = 0
    value: Any = None
    value_kept: bool = True


class JobEvent(Frozen):
    """Something that happened to a job.

    Attributes:
        event: ``job.try``, ``job.retry``, ``job.finished``, ``job.failed``, or the name of one of
            the run's events, such as ``recovery.detected``.
        message: In words.
        at: Seconds since the epoch.
        fields: Facts, by name.
    """

    event: str
    message: str
    at: float = Field(default_factory=time.time)
    fields: Mapping[str, Any] = {}


Say = Callable[[JobEvent], object]
"""Where what happens to a job is said, from any thread."""


class Progress(Frozen):
    """Where a job stands, as its worker writes it.

    Attributes:
        number: The current try, from 1; 0 before the first.
        worker: ``host/pid`` of the process that began it.
        lineage: The run's lineage id; empty before it has begun.
        run_ids: Every Tinker run that it has lived in.
        step: Optimizer steps when the newest attempt began, or the job ended.
        recoveries: Recoveries of all passes that are over.
        checkpoint: Path of the newest checkpoint when the last pass ended.
    """

    number: int = 0
    worker: str = ""
    lineage: str = ""
    run_ids: tuple[str, ...] = ()
    step: int = 0
    recoveries: int = 0
    checkpoint: str | None = None


class Failure(Frozen):
    """What a try failed with.

    Attributes:
        type: The exception's class, ``module.Name``.
        message: Its text, without secrets.
    """

    type: str
    message: str

    def __str__(self) -> str:
        return f"{self.type.rpartition('.')[2]}: {self.message}"


class TryOutcome(Frozen):
    """How a try ended, as the engine keeps it.

    Attributes:
        result: What came of the job, if it finished.
        failure: What the try failed with, if it did.
        retry_after_ms: How long to wait before the next try; None if there is none.
    """

    result: JobResult | None = None
    failure: Failure | None = None
    retry_after_ms: float | None = None


class JobStatus(Frozen):
    """Where a job stands.

    Attributes:
        name: Its id, and its run's name.
        state: ``queued``, ``running`` (also between two tries), ``finished``, ``failed`` or
            ``cancelled``.
        number: The current or last try, from 1; 0 before the first.
        max_attempts: The most tries.
        train: The function, ``"module:name"``.
        base_model: What it is trained on; empty if it does not say.
        worker: ``host/pid`` of the process that began the try.
        step: Optimizer steps when the newest attempt began, or the job ended.
        recoveries: Recoveries of the passes that are over.
        lineage: The run's lineage id; empty before it has begun.
        run_ids: Every Tinker run that it has lived in.
        checkpoint: Path of its newest checkpoint, as far as a pass that is over knew.
        failure: What it failed with.
        priority: Smaller numbers start first.
        version: Which workers may run it.
        created: When it was submitted, in seconds since the epoch.
        updated: When something of it was last written.
    """

    name: str
    state: State
    number: int = Field(serialization_alias="try")
    max_attempts: int
    train: str
    base_model: str
    worker: str
    step: int
    recoveries: int
    lineage: str
    run_ids: tuple[str, ...]
    checkpoint: str | None
    failure: Failure | None
    priority: int
    version: str
    created: float
    updated: float
