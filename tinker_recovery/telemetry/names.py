"""Every span, event and attribute name, in one place, so that dashboards can rely on them."""

from typing import Final

SCOPE: Final = "tinker_recovery"
"""Instrumentation scope of the tracer, and name of the logger."""

# Spans: one trace per incident, its root first.
SPAN_RECOVERY: Final = "recovery"
SPAN_DETECT: Final = "recovery.detect"
SPAN_BACKOFF: Final = "recovery.backoff"
SPAN_QUEUE: Final = "recovery.queue"
"""Waiting for others: ``max_concurrent_recoveries``, or a mass failure."""
SPAN_SELECT: Final = "recovery.select"
SPAN_VALIDATE: Final = "recovery.validate"
SPAN_CREATE: Final = "recovery.create_client"
SPAN_VERIFY: Final = "recovery.verify"
SPAN_RESUME: Final = "recovery.resume"

# Short root spans of their own, since one that stays open for days is lost in a crash.
SPAN_RUN_START: Final = "run.start"
SPAN_SEGMENT: Final = "run.segment"
"""A stretch of training begins, on a client of its own."""
SPAN_RUN_END: Final = "run.end"

# Events, on the span they belong to and in the log.
EVENT_DETECTED: Final = "recovery.detected"
EVENT_STARTED: Final = "recovery.started"
EVENT_CHECKPOINT_SELECTED: Final = "recovery.checkpoint_selected"
EVENT_CLIENT_CREATED: Final = "recovery.client_created"
EVENT_COMPLETED: Final = "recovery.completed"
EVENT_FAILED: Final = "recovery.failed"
EVENT_EXHAUSTED: Final = "recovery.exhausted"
EVENT_GAVE_UP: Final = "recovery.gave_up"
EVENT_STEP_SKIPPED: Final = "recovery.step_skipped"
EVENT_STALL_WARNING: Final = "recovery.stall_warning"
EVENT_POLL_ERROR: Final = "recovery.poll_error"
EVENT_OPTIMIZER_NOT_RESTORED: Final = "recovery.optimizer_not_restored"
EVENT_MASS_FAILURE: Final = "recovery.mass_failure"
"""Many runs failed alike: from here on the log tells of them in one."""
EVENT_MASS_OVER: Final = "recovery.mass_failure_over"
EVENT_CHECKPOINT_SAVED: Final = "checkpoint.saved"
EVENT_CHECKPOINT_BAD: Final = "checkpoint.bad"
EVENT_CHECKPOINT_SAVE_FAILED: Final = "checkpoint.save_failed"
EVENT_CHECKPOINT_DELETED: Final = "checkpoint.deleted"
EVENT_CHECKPOINT_DELETE_FAILED: Final = "checkpoint.delete_failed"
EVENT_CHECKPOINT_RENEWED: Final = "checkpoint.renewed"
EVENT_CHECKPOINT_RENEWAL_FAILED: Final = "checkpoint.renewal_failed"
EVENT_RETENTION_FAILED: Final = "checkpoint.retention_failed"

# Attributes. A name is never the namespace of another (OpenTelemetry's rule for names).
EVENT: Final = "event.name"
"""In log records: which event it is."""
RUN: Final = "tinker_recovery.run.name"
LINEAGE: Final = "tinker_recovery.run.lineage"
"""Id of the logical run, over all its Tinker runs."""
RUN_ID: Final = "tinker_recovery.tinker_run.id"
ATTEMPT: Final = "tinker_recovery.attempt.number"
"""Which attempt at the loop, from 1."""
ATTEMPT_ID: Final = "tinker_recovery.attempt.id"
START_STEP: Final = "tinker_recovery.attempt.start_step"
TRY: Final = "tinker_recovery.recovery.try"
"""Which try at recovering from one incident, from 1."""
OUTCOME: Final = "tinker_recovery.outcome"
"""How a recovery or a run ended; one of ``OUTCOMES``."""
RUNS: Final = "tinker_recovery.runs.count"
"""How many runs something concerns."""
FAULT_KIND: Final = "tinker_recovery.fault.kind"
FAULT_REASON: Final = "tinker_recovery.fault.reason"
FAULT_DETECTED_BY: Final = "tinker_recovery.fault.detected_by"
FAULT_STEP: Final = "tinker_recovery.fault.step"
VERDICT: Final = "tinker_recovery.fault.verdict"
SILENT_S: Final = "tinker_recovery.silent_s"
CHECKPOINT_PATH: Final = "tinker_recovery.checkpoint.path"
CHECKPOINT_STEP: Final = "tinker_recovery.checkpoint.step"
CHECKPOINTS_FOUND: Final = "tinker_recovery.checkpoint.found"
"""How many candidates a listing gave."""
SAVE_S: Final = "tinker_recovery.checkpoint.save_s"
"""Seconds a save took once its turn had come."""
REPLAYED_STEPS: Final = "tinker_recovery.recovery.replayed_steps"
RESTORE_OPTIMIZER: Final = "tinker_recovery.recovery.restore_optimizer"
BACKOFF_S: Final = "tinker_recovery.recovery.backoff_s"
REASON: Final = "tinker_recovery.reason"
STEP: Final = "tinker_recovery.step"
RECOVERIES: Final = "tinker_recovery.run.recoveries"
LINK: Final = "tinker_recovery.link"
"""On a link: what the span it points to is to this one; one of ``LINK_*``."""
ERROR_TYPE: Final = "error.type"

LINK_PREVIOUS: Final = "previous_recovery"
LINK_REPLACED: Final = "replaced_segment"
LINK_LAST_SEGMENT: Final = "last_segment"
LINK_RUN: Final = "run_start"
LINK_RECOVERY: Final = "recovered_by"
LINK_CALLER: Final = "caller"

# How a recovery ended.
RECOVERED: Final = "recovered"
EXHAUSTED: Final = "exhausted"
REFUSED: Final = "refused"
NO_CHECKPOINT: Final = "no_checkpoint"
OBSERVED: Final = "observed"
"""Recovery is off, or the fault is one that is not recovered from."""
ABANDONED: Final = "abandoned"
"""The user's own code ended the run meanwhile."""
FAILED: Final = "failed"
"""One try that failed; others may follow."""
INTERRUPTED: Final = "interrupted"
"""Cancelled: the Supervisor was left, or its Executor crashed and another goes on."""
COMPLETED: Final = "completed"
"""A run whose loop came to its end."""
OUTCOMES: Final = (
    RECOVERED,
    EXHAUSTED,
    REFUSED,
    NO_CHECKPOINT,
    OBSERVED,
    ABANDONED,
    FAILED,
    INTERRUPTED,
    COMPLETED,
)

BAD_CHECKPOINT: Final = "bad_checkpoint"
"""``error.type`` of a candidate that something speaks against."""
