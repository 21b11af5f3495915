"""Jobs: runs submitted to a database, carried out by this process or by workers on any machine.

::

    from tinker_recovery.jobs import Jobs, RetryPolicy

    async with Jobs() as jobs:
        handle = await jobs.submit(train, name="sft-42", base_model="Qwen/Qwen3-8B",
                                   retry=RetryPolicy(max_attempts=5), args={"lr": 1e-4})
        result = await handle.result()

The engine is DBOS, which is imported when a :class:`Jobs` is entered; what is ours is what a job
does with a run. The run's claim at the service keeps two processes off one run, whatever the engine
does. See docs/jobs.md.
"""

from __future__ import annotations

from tinker_recovery.errors import JobCancelled, JobFailed
from tinker_recovery.jobs.handle import JobHandle
from tinker_recovery.jobs.jobs import Jobs
from tinker_recovery.jobs.records import Failure, JobEvent, JobResult, JobStatus
from tinker_recovery.jobs.retry import RetryPolicy

__all__ = [
    "Failure",
    "JobCancelled",
    "JobEvent",
    "JobFailed",
    "JobHandle",
    "JobResult",
    "JobStatus",
    "Jobs",
    "RetryPolicy",
]
